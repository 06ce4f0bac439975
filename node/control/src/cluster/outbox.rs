//! What a leader has proposed and not heard of yet.

use super::entry::{CellChange, Entry};
use super::event::{Action, ProposalId};
use crate::retry::Retry;
use lockring_proto::Time;
use std::collections::BTreeMap;
use std::time::Duration;

/// A proposal of which nothing was heard for this long is not counted on.
const LOST: Duration = Duration::from_secs(2);

/// Most proposals under way, and most of them when another change of cells is proposed: what is
/// said of nodes, as that one is dead, waits for no plan.
const PROPOSALS_MAX: usize = 64;
const WITH_CELLS_MAX: usize = PROPOSALS_MAX - 16;

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
        self.forget_lost(now);
        let is_under_way = self.under_way.values().any(|(known, _)| *known == entry);
        let most = match entry {
            Entry::Cells(_) => WITH_CELLS_MAX,
            _ => PROPOSALS_MAX,
        };
        let is_full = self.under_way.len() >= most;
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

    fn forget_lost(&mut self, now: Time) {
        self.under_way.retain(|_, (_, since)| now.since(*since) < LOST);
    }

    /// The changes of cells that are under way.
    pub fn changes(&mut self, now: Time) -> Vec<CellChange> {
        self.forget_lost(now);
        let changes = |(entry, _): &(Entry, Time)| match entry {
            Entry::Cells(changes) => changes.clone(),
            _ => Vec::new(),
        };
        self.under_way.values().flat_map(changes).collect()
    }

    /// An entry is in the log.
    pub fn committed(&mut self, entry: &Entry) {
        self.retry.works();
        let same = self.under_way.iter().find(|(_, (known, _))| known == entry);
        if let Some(id) = same.map(|(&id, _)| id) {
            self.under_way.remove(&id);
        }
    }

    /// A proposal failed, as far as is known. Those that were under way together fail together,
    /// for one reason: they make the pause no longer.
    pub fn failed(&mut self, now: Time, id: ProposalId) {
        if self.under_way.remove(&id).is_some() && self.retry.is_due(now) {
            self.retry.fails(now);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::{Index, Step};
    use lockring_ring::CellId;

    fn at(ms: u64) -> Time {
        Time(ms * 1000)
    }

    fn drop_copy() -> Entry {
        let step = Step::Detach;
        Entry::Cells(vec![CellChange { cell: CellId(3), revision: Index(1), step }])
    }

    fn cells(outbox: &mut Outbox, ms: u64) -> Vec<CellId> {
        outbox.changes(at(ms)).iter().map(|change| change.cell).collect()
    }

    fn proposed(outbox: &mut Outbox, ms: u64, entry: Entry) -> Option<ProposalId> {
        let mut out = Vec::new();
        outbox.propose(at(ms), entry, &mut out);
        out.into_iter().find_map(|action| match action {
            Action::Propose(id, _) => Some(id),
            _ => None,
        })
    }

    #[test]
    fn what_is_under_way_is_not_proposed_again_until_it_is_committed_or_lost() {
        let mut outbox = Outbox::default();
        let first = proposed(&mut outbox, 0, drop_copy()).unwrap();
        assert_eq!(proposed(&mut outbox, 100, drop_copy()), None);
        assert_eq!(cells(&mut outbox, 100), [CellId(3)]);
        assert_eq!(cells(&mut outbox, 2000), [], "nobody has heard of it");
        let second = proposed(&mut outbox, 2000, drop_copy()).unwrap();
        assert!(second > first, "no id comes twice");
        outbox.committed(&drop_copy());
        assert!(cells(&mut outbox, 2000).is_empty());
        assert!(proposed(&mut outbox, 2000, drop_copy()).is_some());
        outbox.clear();
        assert!(cells(&mut outbox, 2000).is_empty());
    }

    #[test]
    fn after_a_failure_there_is_a_pause() {
        let mut outbox = Outbox::default();
        let id = proposed(&mut outbox, 0, drop_copy()).unwrap();
        outbox.failed(at(0), ProposalId(id.0 + 1));
        assert_eq!(cells(&mut outbox, 0).len(), 1, "another's failure is none of its own");
        outbox.failed(at(0), id);
        assert_eq!(proposed(&mut outbox, 99, Entry::Blank), None);
        assert!(proposed(&mut outbox, 100, Entry::Blank).is_some());
    }

    #[test]
    fn proposals_that_fail_together_are_one_failure() {
        let mut outbox = Outbox::default();
        let bump = |cell| {
            let (cell, revision, step) = (CellId(cell), Index(1), Step::Bump);
            Entry::Cells(vec![CellChange { cell, revision, step }])
        };
        let ids: Vec<ProposalId> =
            (0..10).map(|cell| proposed(&mut outbox, 0, bump(cell)).unwrap()).collect();
        ids.into_iter().for_each(|id| outbox.failed(at(0), id));
        let id = proposed(&mut outbox, 100, Entry::Blank).expect("the first pause is over");
        outbox.failed(at(100), id);
        assert_eq!(proposed(&mut outbox, 299, Entry::Blank), None, "the second is longer");
        assert!(proposed(&mut outbox, 300, Entry::Blank).is_some());
    }
}
