//! Whether durable writes succeed: told by the control thread, read by the admin side.

use crate::store::StoreError;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// A fault that goes on is logged this often.
const LOG_EVERY: Duration = Duration::from_secs(60);

/// How durable writes go.
#[derive(Debug, Default)]
pub struct Health {
    failures: AtomicU64,
    trouble: Mutex<Option<Trouble>>,
}

#[derive(Debug)]
struct Trouble {
    cause: String,
    logged: Instant,
}

impl Health {
    fn trouble(&self) -> MutexGuard<'_, Option<Trouble>> {
        self.trouble.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes that failed since the start.
    pub fn failures(&self) -> u64 {
        self.failures.load(Ordering::Relaxed)
    }

    /// Why the last write failed; `None` if it did not.
    pub fn cause(&self) -> Option<String> {
        self.trouble().as_ref().map(|trouble| trouble.cause.clone())
    }

    pub(super) fn works(&self) {
        if self.trouble().take().is_some() {
            tracing::info!("durable writes succeed again");
        }
    }

    pub(super) fn fails(&self, error: &StoreError) {
        self.failures.fetch_add(1, Ordering::Relaxed);
        let mut trouble = self.trouble();
        let now = Instant::now();
        let due = |before: &Trouble| now.duration_since(before.logged) >= LOG_EVERY;
        let logged = if trouble.as_ref().is_none_or(due) {
            let failures = self.failures();
            tracing::error!(%error, failures, "a durable write failed; it is tried again");
            now
        } else {
            trouble.as_ref().map_or(now, |trouble| trouble.logged)
        };
        *trouble = Some(Trouble { cause: error.cause(), logged });
    }
}
