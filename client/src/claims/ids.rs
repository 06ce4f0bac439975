//! The ids of a session's requests.

use lockring_proto::limits;

/// Numbers the requests of a session, over all of its links: an id is never used twice.
#[derive(Clone, Debug, Default)]
pub struct RequestIds {
    /// They begin above this.
    after: u64,
    last: u64,
}

impl RequestIds {
    /// Those of a session that another process has used before: they begin at a place of their own,
    /// chosen by `random`. A request under an id of that process's would be taken for its copy.
    pub fn of_successor(random: u64) -> Self {
        // The session's ids last for long, wherever among these it begins.
        const FIRST: u64 = limits::FIRST_PROCESS_IDS;
        const LAST: u64 = FIRST + FIRST / 2;
        let after = FIRST + random % (LAST - FIRST);
        Self { after, last: after }
    }

    /// Ids from a number on, for tests that come near the end of one.
    #[cfg(feature = "testing")]
    pub fn from(first: u64) -> Self {
        Self { after: 0, last: first }
    }

    /// The number above which they began.
    pub(crate) fn after(&self) -> u64 {
        self.after
    }

    /// The last one that was given out.
    pub(crate) fn last(&self) -> u64 {
        self.last
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.last += 1;
        self.last
    }
}
