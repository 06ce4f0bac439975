//! What a node answers to who asks for a newer ring: what has changed of it, as far back as it
//! remembers, or all of it.

use super::{NodeInfo, RingChunk};
use crate::Reply;
use lockring_ring::{Diff, RingTable};
use std::collections::VecDeque;

/// How many changes are remembered. Who has missed more takes all of the ring, which is not much
/// more by then.
const CHANGES_MAX: usize = 64;

/// The ring of now, and how it has become that of late.
#[derive(Clone, Debug)]
pub struct RingHistory {
    newest: RingTable<NodeInfo>,
    /// Each from the version where the one before ends, the last to that of the newest.
    changes: VecDeque<Diff<NodeInfo>>,
}

impl RingHistory {
    /// Of a node that knows nothing of before.
    pub fn new(newest: RingTable<NodeInfo>) -> Self {
        Self { newest, changes: VecDeque::new() }
    }

    /// The ring of now.
    pub fn newest(&self) -> &RingTable<NodeInfo> {
        &self.newest
    }

    /// A ring is known. `false`: it is not newer, or none of this cluster's.
    pub fn learns(&mut self, ring: RingTable<NodeInfo>) -> bool {
        if ring.version() <= self.newest.version() {
            return false;
        }
        let Ok(change) = Diff::between(&self.newest, &ring) else { return false };
        self.newest = ring;
        self.changes.push_back(change);
        if self.changes.len() > CHANGES_MAX {
            self.changes.pop_front();
        }
        true
    }

    /// The answers to a request for a ring that is newer than the one of this version.
    pub fn answers(&self, id: u64, known: u64) -> Vec<Reply> {
        let version = self.newest.version().0;
        if version <= known {
            return vec![Reply::NoNewerRing { id, version }];
        }
        let change = self.change_since(known);
        let parts =
            change.map_or_else(|| RingChunk::whole(&self.newest), |it| RingChunk::change(&it));
        parts.into_iter().map(|chunk| Reply::Ring { id, chunk: Box::new(chunk) }).collect()
    }

    /// What has changed since a version; `None`: that is too long ago, or was never.
    fn change_since(&self, known: u64) -> Option<Diff<NodeInfo>> {
        let first = self.changes.iter().position(|change| change.from.0 == known)?;
        let mut since = self.changes.range(first..);
        let first = since.next()?.clone();
        since.try_fold(first, |whole, change| whole.then(change).ok())
    }
}
