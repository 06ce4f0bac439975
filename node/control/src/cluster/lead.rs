//! What the node does beside its own work while it leads the log: leases, judgement, plans and the
//! longest TTL of all nodes.

use super::entry::{BATCH_CELLS_MAX, CellChange, Entry, Index, Step};
use super::event::{Action, Fact, RoundId, Term};
use super::judge::{Judge, Verdict};
use super::lease::{Leases, Renewal};
use super::lowering::{Lowering, Want};
use super::message::Message;
use super::mutant::Mutant;
use super::outbox::Outbox;
use super::runner::Runner;
use super::state::{Life, State};
use super::ttl::Statement;
use lockring_proto::Time;
use lockring_ring::{CellId, NodeId};
use std::time::Duration;

/// Without news, what is to be moved is looked at so often: it costs a walk over all cells.
const RUN: Duration = Duration::from_millis(100);

/// One time in office.
#[derive(Debug)]
pub(super) struct Lead {
    me: NodeId,
    term: Term,
    /// An entry of the term is applied, and so is all that was agreed before.
    is_ready: bool,
    /// Who led before.
    before: Option<NodeId>,
    leases: Leases,
    judge: Judge,
    runner: Runner,
    lowering: Lowering,
    /// When the runner looks next.
    run_at: Time,
}

impl Lead {
    /// Begins.
    pub fn new(
        now: Time,
        state: &State,
        (me, term): (NodeId, Term),
        before: Option<NodeId>,
    ) -> Self {
        let above = term.0 << 32;
        Self {
            me,
            term,
            is_ready: false,
            leases: Leases::new(now, above),
            judge: Judge::new(now, state, None),
            before: before.filter(|&before| before != me),
            runner: Runner::default(),
            lowering: Lowering::new(now, above),
            run_at: now,
        }
    }

    /// When it wants to look next.
    pub fn look_at(&self) -> Time {
        if self.is_ready { self.judge.look_at() } else { Time::NEVER }
    }

    /// Whether it has applied all that was agreed before its term.
    pub fn is_ready(&self) -> bool {
        self.is_ready
    }

    /// An entry was applied, before the rest of the leader looks at what it made.
    pub fn applied(&mut self, now: Time, term: Term, state: &State) {
        if term == self.term && !self.is_ready {
            self.is_ready = true;
            // Who was silent before there was anything to judge by was not.
            self.judge = Judge::new(now, state, self.before);
        }
        self.run_at = now;
    }

    /// A process is alive, and asks for its lease to be renewed.
    pub fn heartbeat(&mut self, state: &State, renewal: Renewal, out: &mut Vec<Action>) {
        self.judge.heard(renewal.received, renewal.life);
        self.leases.received(renewal);
        if state.mutant == Some(Mutant::LeaseWithoutRound) {
            self.acknowledge(state, &renewal, out);
        }
    }

    pub fn round_done(&mut self, round: RoundId, committed: Index) {
        self.leases.done(round, committed);
    }

    /// Only a process that the log has for alive is told that its lease goes on. It is bound to
    /// the last entry that took a cell from the node, or made the node what it is: what it does
    /// by an older state is not covered.
    fn acknowledge(&mut self, state: &State, renewal: &Renewal, out: &mut Vec<Action>) {
        let life = renewal.life;
        let Some(node) = state.nodes().get(&life.node).filter(|node| node.is_up(life.boot)) else {
            return;
        };
        self.leases.acknowledged(renewal);
        let mut bound = node.taken.max(node.revision);
        if state.mutant == Some(Mutant::BoundByTakenAlone) {
            bound = node.taken;
        }
        let renewed = Message::Renewed { boot: life.boot, renewal: renewal.number, bound };
        out.push(Action::Send(life.node, renewed));
    }

    /// Another node has heard of a process that was silent here.
    pub fn vouched(&mut self, now: Time, life: Life, number: u64, out: &mut Vec<Action>) {
        if self.judge.vouched(now, life, number) {
            out.push(Action::Count(Fact::Vouched));
        }
    }

    pub fn ttl_stated(&mut self, node: NodeId, statement: Statement) {
        self.lowering.stated(node, statement);
    }

    /// An owner reports that a copy of its cells is silent. If the leader does not hear that node
    /// either, it is suspected; if it does, the copy is dropped from these cells.
    pub fn silent(
        &mut self,
        now: Time,
        state: &State,
        (owner, copy): (NodeId, NodeId),
        cells: &[(CellId, Index)],
    ) -> Option<Entry> {
        if !self.judge.is_audible(now, copy) {
            self.judge.hurry(now, copy);
            return None;
        }
        let of = |&(id, revision): &(CellId, Index)| {
            let cell = state.cell(id).filter(|cell| cell.owner.node == owner)?;
            let is_learner = cell.learner.is_some_and(|learner| learner.node == copy);
            let step = if is_learner { Step::Detach } else { Step::Drop(copy) };
            Some(CellChange { cell: id, revision, step })
        };
        let changes: Vec<CellChange> = cells.iter().take(BATCH_CELLS_MAX).filter_map(of).collect();
        if changes.is_empty() {
            return None;
        }
        self.runner.shun(now, owner, copy);
        Some(Entry::Cells(changes))
    }

    /// Does whatever is due.
    pub fn look(&mut self, now: Time, state: &State, outbox: &mut Outbox, out: &mut Vec<Action>) {
        if let Some(round) = self.leases.begin(now) {
            out.push(Action::Confirm(round));
        }
        if !self.is_ready && state.mutant != Some(Mutant::LeaseBeforeOwnTerm) {
            return;
        }
        let seen = match state.mutant {
            Some(Mutant::LeaseBeforeOwnTerm) => Index(u64::MAX),
            _ => state.applied(),
        };
        for renewal in self.leases.acknowledgeable(seen) {
            self.acknowledge(state, &renewal, out);
        }
        if !self.is_ready {
            return;
        }
        self.pass_judgement(now, state, outbox, out);
        self.run(now, state, outbox, out);
        for want in self.lowering.look(now, state, |life| self.leases.end(life)) {
            match want {
                Want::Send(to, message) => out.push(Action::Send(to, message)),
                Want::Propose(entry) => outbox.propose(now, entry, out),
            }
        }
    }

    fn pass_judgement(
        &mut self,
        now: Time,
        state: &State,
        outbox: &mut Outbox,
        out: &mut Vec<Action>,
    ) {
        for verdict in self.judge.look(now, state, self.me) {
            match verdict {
                Verdict::Ask { by, about, number } => {
                    out.push(Action::Count(Fact::Suspected));
                    out.push(Action::Send(by, Message::Probe(about, number)));
                }
                Verdict::Dead(life) => {
                    outbox.propose(now, Entry::Down(life.node, life.boot), out);
                }
                Verdict::Late => out.push(Action::Count(Fact::LateLoop)),
            }
        }
    }

    fn run(&mut self, now: Time, state: &State, outbox: &mut Outbox, out: &mut Vec<Action>) {
        if now < self.run_at {
            return;
        }
        self.run_at = now.after(RUN);
        let leases = &self.leases;
        let is_over = |life: Option<Life>| {
            let end = life.map_or(leases.earlier_end(), |life| leases.end(life));
            now >= end || state.mutant == Some(Mutant::TakeoverInLease)
        };
        let stuck = self.runner.stuck;
        for entry in self.runner.look(now, state, &outbox.changes(now), is_over) {
            outbox.propose(now, entry, out);
        }
        let given_up = self.runner.stuck - stuck;
        out.extend((0..given_up).map(|_| Action::Count(Fact::StuckLearner)));
    }
}
