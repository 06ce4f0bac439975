//! What a leader has proposed and not heard of yet.

use super::entry::Entry;
use super::event::{Action, ProposalId};
use crate::retry::Retry;
use lockring_proto::Time;
use lockring_ring::CellId;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// A proposal of which nothing was heard for so long is not counted on.
const LOST: Duration = Duration::from_secs(2);

/// Most proposals under way.
const PROPOSALS_MAX: usize = 64;

/// The proposals of all terms of a node, of which only the present one's count.
#[derive(Debug, Default)]
pub(super) struct Outbox {
    next: u64,
    under_way: BTreeMap<ProposalId, (Entry, Time)>,
    retry: Retry,
}

impl Outbox {
    /// Proposes an entry, unless the same is under way, or proposals fail just now. Who wants it
    /// asks again until the state says that it is done.
    pub fn propose(&mut self, now: Time, entry: Entry, out: &mut Vec<Action>) {
        self.under_way.retain(|_, (_, since)| now.since(*since) < LOST);
        let is_under_way = self.under_way.values().any(|(known, _)| *known == entry);
        let is_full = self.under_way.len() >= PROPOSALS_MAX;
        if is_under_way || is_full || !self.retry.is_due(now) {
            return;
        }
        self.next += 1;
        let id = ProposalId(self.next);
        self.under_way.insert(id, (entry.clone(), now));
        out.push(Action::Propose(id, entry));
    }

    /// A term begins or ends. No id is given again.
    pub fn clear(&mut self) {
        self.under_way.clear();
        self.retry.works();
    }

    /// Cells of which a change is under way.
    pub fn cells(&self) -> BTreeSet<CellId> {
        let cells = |(entry, _): &(Entry, Time)| match entry {
            Entry::Cells(changes) => changes.iter().map(|change| change.cell).collect(),
            _ => Vec::new(),
        };
        self.under_way.values().flat_map(cells).collect()
    }

    /// An entry is in the log.
    pub fn committed(&mut self, entry: &Entry) {
        self.retry.works();
        let same = self.under_way.iter().find(|(_, (known, _))| known == entry);
        if let Some(id) = same.map(|(&id, _)| id) {
            self.under_way.remove(&id);
        }
    }

    /// A proposal failed, as far as is known.
    pub fn failed(&mut self, now: Time, id: ProposalId) {
        if self.under_way.remove(&id).is_some() {
            self.retry.fails(now);
        }
    }
}
