//! A node's lease on the right to answer, on either side: what the node believes, and what the
//! leader knows.
//!
//! The node counts T (1 - r) from the *send* of a renewal, the leader T (1 + r) + d from its
//! *receipt*, so that the leader's end is never the earlier one. The leader acknowledges a renewal
//! only after a round of the quorum that began after it had arrived: a leader that was deposed
//! gets no such round, so that whatever it acknowledged had arrived before its successor's
//! election, from which that one counts.

use super::entry::Index;
use super::event::RoundId;
use super::state::Life;
use super::timing::{lease_believed, lease_over};
use lockring_proto::Time;
use lockring_proto::limits::NODE_LEASE;
use std::collections::BTreeMap;
use std::time::Duration;

/// A round for all nodes so often.
const ROUND: Duration = Duration::from_millis(100);

/// Most rounds under way. The oldest make room: those without a majority never end.
const ROUNDS_MAX: usize = 32;

/// What a node believes of its own lease.
#[derive(Clone, Debug, Default)]
pub(super) struct OwnLease {
    last: u64,
    /// When each renewal was sent that is not answered yet.
    sent: BTreeMap<u64, Time>,
    until: Time,
}

impl OwnLease {
    /// The number of a renewal that is sent now.
    pub fn renewal(&mut self, now: Time) -> u64 {
        self.sent.retain(|_, sent| now.since(*sent) < NODE_LEASE);
        self.last += 1;
        self.sent.insert(self.last, now);
        self.last
    }

    /// A renewal is acknowledged, and every worker does by all that the lease is bound to: until
    /// when it runs, if that is longer than before.
    pub fn acknowledged(&mut self, renewal: u64) -> Option<Time> {
        let until = self.sent.remove(&renewal)?.after(lease_believed());
        let grows = until > self.until;
        self.until = self.until.max(until);
        grows.then_some(until)
    }
}

/// A renewal that has arrived at the leader.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Renewal {
    pub life: Life,
    pub number: u64,
    pub received: Time,
}

/// Renewals that arrived before a round began.
#[derive(Clone, Debug)]
struct LeaseRound {
    renewals: Vec<Renewal>,
    /// Once it is done: what the leader has to have applied before it acknowledges. What was
    /// agreed before the round may have been acted on elsewhere.
    committed: Option<Index>,
}

/// What a leader knows of all leases.
#[derive(Clone, Debug)]
pub(super) struct Leases {
    elected: Time,
    waiting: BTreeMap<Life, Renewal>,
    rounds: BTreeMap<RoundId, LeaseRound>,
    next: u64,
    due: Time,
    /// When the last acknowledged renewal of each had arrived.
    renewed: BTreeMap<Life, Time>,
}

impl Leases {
    /// Those of a leader that is elected now. Numbers of rounds begin with `above`, which no
    /// earlier term had: what was asked for in one confirms nothing of another.
    pub fn new(now: Time, above: u64) -> Self {
        Self {
            elected: now,
            waiting: BTreeMap::new(),
            rounds: BTreeMap::new(),
            next: above,
            due: now,
            renewed: BTreeMap::new(),
        }
    }

    /// A renewal has arrived.
    pub fn received(&mut self, renewal: Renewal) {
        let known = self.waiting.entry(renewal.life).or_insert(renewal);
        if renewal.number >= known.number {
            *known = renewal;
        }
    }

    /// Begins the next round, if that is due and somebody waits for it.
    pub fn begin(&mut self, now: Time) -> Option<RoundId> {
        if now < self.due || self.waiting.is_empty() {
            return None;
        }
        self.due = now.after(ROUND);
        if self.rounds.len() >= ROUNDS_MAX {
            self.rounds.pop_first();
        }
        self.next += 1;
        let renewals = std::mem::take(&mut self.waiting).into_values().collect();
        self.rounds.insert(RoundId(self.next), LeaseRound { renewals, committed: None });
        Some(RoundId(self.next))
    }

    /// A round is done, and so is whatever began before it.
    pub fn done(&mut self, round: RoundId, committed: Index) {
        for (_, earlier) in self.rounds.range_mut(..=round) {
            earlier.committed.get_or_insert(committed);
        }
    }

    /// What may be acknowledged by a leader that has applied so much.
    pub fn acknowledgeable(&mut self, applied: Index) -> Vec<Renewal> {
        let mut all = Vec::new();
        self.rounds.retain(|_, round| {
            let waits = round.committed.is_none_or(|committed| committed > applied);
            if !waits {
                all.append(&mut round.renewals);
            }
            waits
        });
        all
    }

    /// A renewal is being acknowledged.
    pub fn acknowledged(&mut self, renewal: &Renewal) {
        let known = self.renewed.entry(renewal.life).or_default();
        *known = renewal.received.max(*known);
    }

    /// When the lease of a process has surely ended. What earlier leaders acknowledged had arrived
    /// before the election.
    pub fn end(&self, life: Life) -> Time {
        let renewed = self.renewed.get(&life).copied().unwrap_or_default();
        renewed.max(self.elected).after(lease_over())
    }

    /// When every lease that began before the election has surely ended.
    pub fn earlier_end(&self) -> Time {
        self.elected.after(lease_over())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lockring_ring::{BootId, NodeId};

    const LIFE: Life = Life { node: NodeId(2), boot: BootId(20) };

    fn at(ms: u64) -> Time {
        Time(ms * 1000)
    }

    fn renewal(number: u64, ms: u64) -> Renewal {
        Renewal { life: LIFE, number, received: at(ms) }
    }

    #[test]
    fn the_node_counts_from_the_send_of_what_was_acknowledged() {
        let mut lease = OwnLease::default();
        let (first, second) = (lease.renewal(at(0)), lease.renewal(at(50)));
        assert_eq!(lease.acknowledged(second), Some(at(50 + 2970)));
        assert_eq!(lease.acknowledged(first), None, "it is over before");
        assert_eq!(lease.acknowledged(second), None, "and not twice");
        assert_eq!(lease.acknowledged(9), None);
    }

    #[test]
    fn a_round_acknowledges_what_had_arrived_before_it_began() {
        let mut leases = Leases::new(at(0), 0);
        assert_eq!(leases.begin(at(0)), None, "nobody waits");
        leases.received(renewal(1, 10));
        let first = leases.begin(at(10)).unwrap();
        leases.received(renewal(3, 30));
        leases.received(renewal(2, 35));
        assert_eq!(leases.begin(at(109)), None, "one each 100 ms");
        let second = leases.begin(at(110)).unwrap();
        leases.done(first, Index(5));
        assert_eq!(leases.acknowledgeable(Index(4)), [], "5 may be acted on already");
        assert_eq!(leases.acknowledgeable(Index(5)), [renewal(1, 10)]);
        leases.done(second, Index(5));
        assert_eq!(leases.acknowledgeable(Index(5)), [renewal(3, 30)]);
    }

    #[test]
    fn a_round_stands_for_those_before_it() {
        let mut leases = Leases::new(at(0), 0);
        for (number, ms) in [(1, 0), (2, 100), (3, 200)] {
            leases.received(renewal(number, ms));
            leases.begin(at(ms)).unwrap();
        }
        leases.done(RoundId(2), Index(0));
        assert_eq!(leases.acknowledgeable(Index(0)), [renewal(1, 0), renewal(2, 100)]);
    }

    #[test]
    fn rounds_that_never_end_keep_nobody_from_later_ones() {
        let mut leases = Leases::new(at(0), 0);
        let rounds = (0..50).map(|number| {
            leases.received(renewal(number, number * 100));
            leases.begin(at(number * 100)).expect("one is due")
        });
        let last = rounds.last().expect("there are 50");
        leases.done(last, Index(0));
        assert_eq!(leases.acknowledgeable(Index(0)).last(), Some(&renewal(49, 4900)));
    }

    #[test]
    fn the_leader_counts_from_the_receipt_and_at_least_from_its_election() {
        let mut leases = Leases::new(at(1000), 0);
        assert_eq!(leases.end(LIFE), at(1000 + 3080));
        leases.acknowledged(&renewal(1, 1500));
        leases.acknowledged(&renewal(2, 1400));
        assert_eq!(leases.end(LIFE), at(1500 + 3080));
        assert_eq!(leases.earlier_end(), at(1000 + 3080));
    }
}
