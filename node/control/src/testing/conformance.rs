//! What a log has to do for the control plane, as a script that any log can be put through: the
//! model that the simulations run over, and the real one.

use crate::cluster::{Entry, Index, LogEvent, NodeSpec, Process, ProposalId, RoundId, State, Term};
use lockring_ring::{BootId, NodeId};
use std::collections::BTreeMap;
use std::time::Duration;

/// A log of three voters, with the ids 1 to 3, that can be disturbed on purpose.
pub trait TestLog {
    /// A node proposes an entry.
    fn propose(&mut self, node: NodeId, id: ProposalId, entry: Entry);
    /// A node asks a majority whether it still leads.
    fn confirm(&mut self, node: NodeId, round: RoundId);
    /// A node is made the leader, if it reaches a majority.
    fn elect(&mut self, node: NodeId);
    /// A node reaches nobody any more.
    fn cut(&mut self, node: NodeId);
    /// It does again.
    fn heal(&mut self, node: NodeId);
    /// The process of a node ends, and the next one begins over the same store.
    fn restart(&mut self, node: NodeId);
    /// All entries so far are replaced by what they make.
    fn snapshot(&mut self);
    /// The next write of a node fails, once.
    fn storage_error(&mut self, node: NodeId);
    /// Waits until nothing happens any more; everything that nodes were told since the last time.
    fn settle(&mut self) -> Vec<(NodeId, LogEvent)>;
}

const ONE: NodeId = NodeId(1);
const TWO: NodeId = NodeId(2);
const THREE: NodeId = NodeId(3);
const NODES: [NodeId; 3] = [ONE, TWO, THREE];

/// What every node was told so far.
struct Told<'a> {
    log: &'a mut dyn TestLog,
    initial: State,
    states: BTreeMap<NodeId, State>,
    /// Who leads, and since which term.
    leads: BTreeMap<NodeId, Term>,
    highest: Term,
    snapshots: usize,
    proposed: u64,
}

fn raise(seconds: u64) -> Entry {
    Entry::RaiseLongestTtl { ttl: Duration::from_secs(seconds), by: seconds.to_string() }
}

impl<'a> Told<'a> {
    fn new(log: &'a mut dyn TestLog, initial: State) -> Self {
        let states = NODES.map(|node| (node, initial.clone())).into();
        let (leads, highest) = (BTreeMap::new(), Term(0));
        Self { log, initial, states, leads, highest, snapshots: 0, proposed: 0 }
    }

    /// Takes in what nodes are told; the proposals that failed and the rounds that are done.
    fn settle(&mut self) -> (Vec<ProposalId>, Vec<RoundId>) {
        let (mut failed, mut done) = (Vec::new(), Vec::new());
        for (node, event) in self.log.settle() {
            let state = self.states.get_mut(&node).expect("there are three");
            match event {
                LogEvent::Elected { term, .. } => {
                    assert!(term > self.highest, "terms grow");
                    self.highest = term;
                    self.leads.insert(node, term);
                }
                LogEvent::Deposed => drop(self.leads.remove(&node).expect("it led")),
                LogEvent::Follows(leader) => assert_ne!(leader, node),
                LogEvent::Committed { index, entry, .. } => {
                    assert_eq!(index, Index(state.applied().0 + 1), "no entry is left out");
                    state.apply(index, &entry);
                }
                LogEvent::Restored { state: restored, .. } => {
                    assert!(restored.applied() > state.applied(), "a snapshot leads forward");
                    self.snapshots += 1;
                    *state = *restored;
                }
                LogEvent::Failed(id) => failed.push(id),
                LogEvent::RoundDone { round, committed } => {
                    let newest = self.states.values().map(State::applied).max();
                    assert!(Some(committed) <= newest, "nothing later than what is committed");
                    done.push(round);
                }
            }
        }
        (failed, done)
    }

    fn propose(&mut self, node: NodeId, entry: Entry) -> ProposalId {
        self.proposed += 1;
        self.log.propose(node, ProposalId(self.proposed), entry);
        ProposalId(self.proposed)
    }

    fn longest(&self, node: NodeId) -> u64 {
        self.states[&node].longest().ttl.as_secs()
    }

    fn assert_equal(&self) {
        let [one, two, three] = NODES.map(|node| &self.states[&node]);
        assert!(one == two && two == three, "{one:?}\n{two:?}\n{three:?}");
    }

    fn leader(&self) -> NodeId {
        let newest = self.leads.iter().max_by_key(|(_, term)| **term);
        newest.map(|(&node, _)| node).expect("somebody leads")
    }

    fn restart(&mut self, node: NodeId) {
        self.log.restart(node);
        self.leads.remove(&node);
        self.states.insert(node, self.initial.clone());
    }
}

/// Puts a log without entries, over this initial state, through the script.
///
/// # Panics
/// When it does something else than it has to.
pub fn conforms(log: &mut dyn TestLog, initial: State) {
    let mut told = Told::new(log, initial);
    proposals_are_committed_in_one_order(&mut told);
    a_leader_that_was_cut_off_gets_nothing_through(&mut told);
    a_restart_has_it_all_again(&mut told);
    a_snapshot_stands_for_what_was_missed(&mut told);
    a_storage_error_ends_a_leadership_at_most(&mut told);
}

fn proposals_are_committed_in_one_order(told: &mut Told<'_>) {
    told.log.elect(ONE);
    told.settle();
    assert_eq!(told.leads.keys().collect::<Vec<_>>(), [&ONE]);
    let process = Process { boot: BootId(1), workers: 1, addresses: Vec::new() };
    let spec = NodeSpec { weight: 1, zone: None, host: String::new(), process };
    told.propose(ONE, Entry::Join(spec));
    for seconds in 20..30 {
        told.propose(ONE, raise(seconds));
    }
    let (failed, _) = told.settle();
    assert!(failed.is_empty());
    told.assert_equal();
    assert_eq!((told.longest(TWO), told.states[&TWO].nodes().len()), (29, 1));
    let by_follower = told.propose(TWO, raise(31));
    assert_eq!(told.settle().0, [by_follower], "who follows cannot propose");
    assert_eq!(told.longest(ONE), 29);
    told.log.confirm(ONE, RoundId(1));
    assert_eq!(told.settle().1, [RoundId(1)]);
}

fn a_leader_that_was_cut_off_gets_nothing_through(told: &mut Told<'_>) {
    told.log.cut(ONE);
    let lost = told.propose(ONE, raise(40));
    told.log.elect(TWO);
    told.log.confirm(ONE, RoundId(2));
    let (_, done) = told.settle();
    assert_eq!((told.leader(), done), (TWO, vec![]), "no majority is one's own alone");
    told.propose(TWO, raise(50));
    told.log.confirm(TWO, RoundId(3));
    assert_eq!(told.settle().1, [RoundId(3)]);
    assert_eq!((told.longest(TWO), told.longest(THREE)), (50, 50));
    assert_eq!(told.longest(ONE), 29);
    told.log.heal(ONE);
    let (failed, done) = told.settle();
    assert!(!told.leads.contains_key(&ONE) && done.is_empty(), "it was told");
    assert!(failed.is_empty() || failed == [lost]);
    told.assert_equal();
    assert_eq!(told.longest(ONE), 50);
}

fn a_restart_has_it_all_again(told: &mut Told<'_>) {
    told.restart(THREE);
    told.settle();
    told.assert_equal();
    told.restart(TWO);
    told.settle();
    told.log.elect(THREE);
    told.settle();
    told.propose(THREE, raise(60));
    told.settle();
    told.assert_equal();
    assert_eq!((told.leader(), told.longest(TWO)), (THREE, 60));
}

fn a_snapshot_stands_for_what_was_missed(told: &mut Told<'_>) {
    told.log.cut(ONE);
    told.propose(THREE, raise(70));
    told.settle();
    told.log.snapshot();
    told.propose(THREE, raise(80));
    told.settle();
    assert_eq!((told.longest(ONE), told.snapshots), (60, 0));
    told.log.heal(ONE);
    told.settle();
    assert_eq!(told.snapshots, 1, "the entries are gone");
    told.assert_equal();
    told.restart(ONE);
    told.settle();
    told.assert_equal();
}

fn a_storage_error_ends_a_leadership_at_most(told: &mut Told<'_>) {
    told.log.storage_error(THREE);
    let id = told.propose(THREE, raise(90));
    let (failed, _) = told.settle();
    assert!(failed.is_empty() || failed == [id]);
    if told.leads.contains_key(&THREE) {
        // It writes until it succeeds, so that nobody notices.
        assert!(failed.is_empty());
        told.assert_equal();
        assert_eq!(told.longest(THREE), 90);
        return;
    }
    told.log.elect(ONE);
    told.settle();
    told.propose(ONE, raise(100));
    let (failed, _) = told.settle();
    assert!(failed.is_empty());
    told.assert_equal();
    assert_eq!((told.leader(), told.longest(THREE)), (ONE, 100));
}

#[cfg(test)]
mod tests {
    use super::super::ModelCluster;
    use super::*;
    use lockring_ring::CellBits;

    #[test]
    fn the_model_does_what_a_log_has_to() {
        let initial = State::new(CellBits::new(2).unwrap());
        conforms(&mut ModelCluster::new(initial.clone(), &NODES.into()), initial);
    }
}
