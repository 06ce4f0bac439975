//! What a session is opened with.

use lockring_proto::{SessionId, limits};
use std::time::Duration;

/// Settings of a session.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    pub(crate) ttl: Duration,
    pub(crate) unreachable_after: Duration,
    pub(crate) label: String,
    /// Of another process, to be taken up.
    pub(crate) session: Option<SessionId>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            ttl: limits::TTL_DEFAULT,
            unreachable_after: Duration::from_secs(30),
            label: default_label(),
            session: None,
        }
    }
}

impl Settings {
    /// Cuts the label to what the wire takes.
    pub(crate) fn cut_label(&mut self) {
        let mut cut = self.label.len().min(limits::LABEL_BYTES_MAX);
        while !self.label.is_char_boundary(cut) {
            cut -= 1;
        }
        self.label.truncate(cut);
    }
}

/// `user@host:pid`: who holds a lock, for people.
fn default_label() -> String {
    let user = std::env::var("USER").unwrap_or_else(|_| "someone".to_owned());
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname");
    let host = host.as_deref().map_or("localhost", str::trim);
    format!("{user}@{host}:{}", std::process::id())
}
