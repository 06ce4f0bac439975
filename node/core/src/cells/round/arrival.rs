//! How far this worker is with what the control log has changed. An entry that changes many cells
//! is taken in slices, and others are served between them: until the last slice the worker is one
//! of the version before, and answers no more than that.

use super::Rounds;
use crate::mutant::mutant;
use lockring_ring::RingVersion;

/// The newest entry of which something was taken.
#[derive(Clone, Copy, Debug)]
pub(super) struct Newest {
    version: RingVersion,
    /// While it is taken in part: up to which version all cells had arrived before it was begun.
    settled_before: Option<u64>,
}

impl Newest {
    pub(super) fn new(version: RingVersion) -> Self {
        Self { version, settled_before: None }
    }
}

impl Rounds {
    /// The ring version of the newest entry of which something was taken.
    pub(crate) fn newest(&self) -> RingVersion {
        self.newest.version
    }

    /// A slice of an entry is taken, by a worker of the version `before`.
    pub(crate) fn begins(&mut self, version: RingVersion, before: RingVersion) {
        if self.newest.settled_before.is_none() {
            self.newest.settled_before = Some(self.settled(before.0));
        }
        self.newest.version = version.max(self.newest.version);
    }

    /// Whether one is taken in part. Nothing happens by itself meanwhile: who is granted by what
    /// has come already would be told of the ring before.
    pub(crate) fn is_in_part(&self) -> bool {
        self.newest.settled_before.is_some()
    }

    /// That was the last of them.
    pub(crate) fn is_whole(&mut self) {
        self.newest.settled_before = None;
    }

    /// The last ring version, up to this one, of which all cells that it gave to this worker have
    /// arrived. A cell that never did may be gone by an entry that is taken in part, and this is
    /// told with the version before, by which the cell is still this worker's.
    pub(crate) fn settled(&self, version: u64) -> u64 {
        let most = self.newest.settled_before.filter(|_| !mutant!(self, SettledInPart));
        let most = most.map_or(version, |before| version.min(before));
        let first = self.syncing.first().filter(|_| !mutant!(self, SettledWhileSyncing));
        first.map_or(most, |&(since, _)| most.min(since.0 - 1))
    }
}
