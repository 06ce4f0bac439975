//! Connections whose next request was routed by a newer ring than this worker knows.
//!
//! The worker may be about to be told what the client knows already. So it does not send the client
//! away at once: the request waits, and everything behind it on its connection. If the version has
//! not come in time, that connection waits for none before it does: what is behind may be what
//! keeps its session alive.

use crate::event::ConnId;
use lockring_proto::Time;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// How long a request waits for the version by which it was routed.
pub(crate) const PATIENCE: Duration = Duration::from_millis(200);

/// What a connection waits for, or has waited for in vain.
#[derive(Clone, Copy)]
struct Awaited {
    version: u64,
    until: Time,
}

/// What a wait is about to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wait {
    Begins,
    Lasts,
}

#[derive(Clone, Default)]
pub(crate) struct Awaiting {
    by_conn: BTreeMap<ConnId, Awaited>,
    /// Those that wait, by the version and by the end of their patience.
    versions: BTreeSet<(u64, ConnId)>,
    ends: BTreeSet<(Time, ConnId)>,
}

impl Awaiting {
    /// Whether a request that was routed by this version, which is newer than what the worker
    /// knows, is to wait; `None`: it has.
    pub(crate) fn wait(
        &mut self,
        now: Time,
        conn: ConnId,
        (version, known): (u64, u64),
    ) -> Option<Wait> {
        let before = self.by_conn.get(&conn).filter(|before| known < before.version);
        if let Some(before) = before {
            return (now < before.until).then_some(Wait::Lasts);
        }
        self.end(conn);
        let until = now.after(PATIENCE);
        self.by_conn.insert(conn, Awaited { version, until });
        self.versions.insert((version, conn));
        self.ends.insert((until, conn));
        Some(Wait::Begins)
    }

    /// A connection that is to go on: its version has come, or its patience is over.
    pub(crate) fn next_due(&mut self, now: Time, known: u64) -> Option<ConnId> {
        let came = self.versions.first().filter(|&&(version, _)| version <= known);
        let over = self.ends.first().filter(|&&(until, _)| until <= now);
        let conn = came.map(|&(_, conn)| conn).or(over.map(|&(_, conn)| conn))?;
        self.end(conn);
        Some(conn)
    }

    /// When the next connection is to go on; at once if its version has come.
    pub(crate) fn due(&self, last_seen: Time, known: u64) -> Option<Time> {
        let &(version, _) = self.versions.first()?;
        if version <= known {
            return Some(last_seen);
        }
        self.ends.first().map(|&(until, _)| until)
    }

    /// It does not wait any more; what it has waited for is remembered.
    fn end(&mut self, conn: ConnId) {
        if let Some(&Awaited { version, until }) = self.by_conn.get(&conn) {
            self.versions.remove(&(version, conn));
            self.ends.remove(&(until, conn));
        }
    }

    /// Whether nothing is remembered of any connection.
    #[inline]
    pub(crate) fn is_empty(&self) -> bool {
        self.by_conn.is_empty()
    }

    /// A connection is gone, or is closed.
    pub(crate) fn forget(&mut self, conn: ConnId) {
        if !self.by_conn.is_empty() {
            self.end(conn);
            self.by_conn.remove(&conn);
        }
    }
}
