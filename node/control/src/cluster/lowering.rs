//! How the leader lowers the longest TTL, so that one patient session does not make every later
//! recovery wait for longer than it was there. In two entries, as no node may confirm in between
//! what the second one rules out:
//!
//! 1. every node states the longest TTL of anything that it had for as long as a lease can be
//!    believed in (one that was always alone: that it has); if that is less than the log says,
//!    [`Entry::IntendLongestTtl`];
//! 2. every node that has applied the intent, so that its workers confirm no more unasked, states
//!    once more, all within one second; then [`Entry::LowerLongestTtl`].
//!
//! Who comes with more in the meantime raises it, which ends the intent. While a cell is lost, or
//! takes claims of earlier holds, nobody can say what is believed in, and nothing is lowered.

use super::entry::{Entry, Index};
use super::message::Message;
use super::mutant::Mutant;
use super::state::{Life, NodeState, State};
use super::ttl::Statement;
use lockring_proto::Time;
use lockring_proto::limits::{TTL_DEFAULT, inherited};
use lockring_ring::NodeId;
use std::collections::BTreeMap;
use std::time::Duration;

/// Statements of one round are at most so far apart.
const TOGETHER: Duration = Duration::from_secs(1);

/// Who has not answered is asked again after this.
const AGAIN: Duration = Duration::from_millis(200);

/// Between two rounds, so that a client which comes back every moment does not cost an entry each
/// time.
const SETTLE: Duration = Duration::from_secs(3);

/// A question to all nodes.
#[derive(Clone, Debug)]
struct StatementRound {
    begun: Time,
    asked: Time,
    /// The intent that it is about, if it is not the first.
    intent: Option<Index>,
    stated: BTreeMap<NodeId, (Option<Duration>, String)>,
}

/// What the lowering wants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Want {
    Send(NodeId, Message),
    Propose(Entry),
}

/// The lowering of one term.
#[derive(Clone, Debug)]
pub(super) struct Lowering {
    number: u64,
    round: Option<StatementRound>,
    rests_until: Time,
}

impl Lowering {
    /// Numbers of rounds begin with `above`, which no earlier term had.
    pub fn new(now: Time, above: u64) -> Self {
        Self { number: above, round: None, rests_until: now.after(SETTLE) }
    }

    /// A node has stated.
    pub fn stated(&mut self, node: NodeId, statement: Statement) {
        if let Some(round) = self.round.as_mut().filter(|_| statement.round == self.number) {
            round.stated.insert(node, (statement.longest, statement.by));
        }
    }

    /// Goes on. `ended` says since when a process has no node lease.
    pub fn look(&mut self, now: Time, state: &State, ended: impl Fn(Life) -> Time) -> Vec<Want> {
        let longest = state.longest();
        let window = window(state);
        let intent = longest.intent.map(|intent| intent.at);
        if let Some(intent) = intent.filter(|_| state.mutant == Some(Mutant::LoweredUnasked)) {
            return vec![Want::Propose(Entry::LowerLongestTtl { intent, by: String::new() })];
        }
        let Some(round) = &mut self.round else {
            return self.begin(now, state, window);
        };
        if now.since(round.begun) > TOGETHER || round.intent != intent {
            return self.give_up(now, state);
        }
        let is_over = |life: Life| now.since(ended(life)) >= window;
        let owes = |(&node, known): (&NodeId, &NodeState)| {
            let life = Life { node, boot: known.spec.process.boot };
            let is_quiet = !known.is_up(life.boot) && is_over(life);
            (!round.stated.contains_key(&node) && !is_quiet).then_some(node)
        };
        let owing: Vec<NodeId> = state.nodes().iter().filter_map(owes).collect();
        if owing.is_empty() {
            return self.decide(now, state);
        }
        if now.since(round.asked) < AGAIN {
            return Vec::new();
        }
        round.asked = now;
        self.ask(owing, window)
    }

    fn ask(&self, nodes: Vec<NodeId>, window: Duration) -> Vec<Want> {
        let Some(round) = &self.round else { return Vec::new() };
        let after = round.intent.unwrap_or_default();
        let question = Message::AskTtl { round: self.number, window, after };
        nodes.into_iter().map(|node| Want::Send(node, question.clone())).collect()
    }

    fn begin(&mut self, now: Time, state: &State, window: Duration) -> Vec<Want> {
        let longest = state.longest();
        let is_due = now >= self.rests_until || longest.intent.is_some();
        // In this order: the last walks over all cells, and this is asked on each event.
        if !is_due || longest.ttl <= TTL_DEFAULT || !can_be_said(state) {
            return Vec::new();
        }
        self.number += 1;
        let intent = longest.intent.map(|intent| intent.at);
        self.round =
            Some(StatementRound { begun: now, asked: now, intent, stated: BTreeMap::new() });
        self.ask(state.nodes().keys().copied().collect(), window)
    }

    /// Not everybody has stated in time: an intent is taken back.
    fn give_up(&mut self, now: Time, state: &State) -> Vec<Want> {
        self.round = None;
        self.rests_until = now.after(SETTLE);
        let longest = state.longest();
        let raise = Entry::RaiseLongestTtl { ttl: longest.ttl, by: longest.by.clone() };
        longest.intent.map(|_| Want::Propose(raise)).into_iter().collect()
    }

    /// Everybody has stated.
    fn decide(&mut self, now: Time, state: &State) -> Vec<Want> {
        let Some(round) = self.round.take() else { return Vec::new() };
        self.rests_until = now.after(SETTLE);
        let nothing = (Some(TTL_DEFAULT), String::new());
        let stated = round.stated.into_values().chain([nothing]);
        let all: Option<Vec<_>> = stated.map(|(ttl, by)| Some((ttl?, by))).collect();
        let most = all.and_then(|all| all.into_iter().max_by_key(|(ttl, _)| *ttl));
        match (most, state.longest().intent) {
            (Some((ttl, by)), Some(intent)) if ttl <= intent.ttl && can_be_said(state) => {
                vec![Want::Propose(Entry::LowerLongestTtl { intent: intent.at, by })]
            }
            (_, Some(_)) => self.give_up(now, state),
            (Some((ttl, _)), None) if ttl < state.longest().ttl => {
                vec![Want::Propose(Entry::IntendLongestTtl(ttl))]
            }
            (_, None) => Vec::new(),
        }
    }
}

/// How far back nodes look. Between their statements a cell may have moved from one to the other;
/// a node that was always alone has now whatever anybody believes in.
fn window(state: &State) -> Duration {
    if state.is_alone() { Duration::ZERO } else { inherited(state.longest().ttl) }
}

/// Whether whatever is believed in is some node's. What is left of a lost owner's is not.
fn can_be_said(state: &State) -> bool {
    state.cells().all(|(_, cell)| cell.loss.is_none() && cell.grace.is_none())
}

#[cfg(test)]
mod tests;
