//! The control plane of one node: everything that happens to it, and what follows.

use super::entry::{Entry, Index, NodeSpec};
use super::event::{Action, Event, Fact, LogEvent, Term, WorkerEvent};
use super::facts::Facts;
use super::lead::Lead;
use super::lease::{OwnLease, Renewal};
use super::message::Message;
use super::mutant::Mutant;
use super::outbox::Outbox;
use super::state::{Life, State};
use super::ttl::{NodeTtl, Statement};
use lockring_proto::Time;
use lockring_ring::{BootId, CellId, NodeId, RingVersion};
use std::collections::BTreeMap;
use std::time::Duration;

/// A heartbeat, which is a renewal of the lease too, so often.
const HEARTBEAT: Duration = Duration::from_millis(50);

/// What each worker does by.
#[derive(Debug)]
struct Workers {
    /// The last entry of which they were told.
    told: Index,
    applied: Vec<Index>,
    /// The ring with each entry that not all of them do by, and with the last that all do by.
    rings: BTreeMap<Index, RingVersion>,
}

impl Workers {
    /// The last entry that every one of them does by, of a state with so many.
    fn least(&self, state: Index) -> Index {
        let least = self.applied.iter().copied().min().unwrap_or(state);
        if least >= self.told { state } else { least }
    }

    fn told(&mut self, index: Index, ring: RingVersion) {
        self.told = index;
        self.rings.insert(index, ring);
    }

    fn applied(&mut self, worker: usize, index: Index) {
        let known = &mut self.applied[worker];
        *known = index.max(*known);
        let least = self.least(index);
        while self.rings.range(..=least).nth(1).is_some() {
            self.rings.pop_first();
        }
    }

    /// The ring by which every one of them does.
    fn ring(&self) -> RingVersion {
        let least = self.applied.iter().copied().min().unwrap_or_default();
        let last = self.rings.range(..=least).next_back();
        last.map_or(RingVersion(0), |(_, ring)| *ring)
    }
}

/// The control plane of one life of a node.
#[derive(Debug)]
pub struct Control {
    me: Life,
    spec: NodeSpec,
    /// The process that is over as this one has its data directory.
    after: Option<BootId>,
    /// The node is no more, or another process is it: nothing is done any more.
    is_over: bool,
    /// The workers have ended with nothing held, having done by this ring.
    ended: Option<RingVersion>,
    /// What begins the log, if this node finds it empty.
    founding: Entry,
    state: State,
    workers: Workers,
    lease: OwnLease,
    leader: Option<NodeId>,
    lead: Option<Lead>,
    outbox: Outbox,
    facts: Facts,
    ttl: NodeTtl,
    heartbeat_at: Time,
}

impl Control {
    /// That of a process which begins now: of this node, over a log with this initial state. If
    /// it leads a log without entries, it begins that with `founding`. `after` is the last process
    /// that had this very data directory, whose lock shows that it is over; nobody's, if the
    /// directory may be a copy.
    pub fn new(
        now: Time,
        node: NodeId,
        (spec, after): (NodeSpec, Option<BootId>),
        founding: Entry,
        state: State,
    ) -> Self {
        let workers = usize::from(spec.process.workers);
        Self {
            me: Life { node, boot: spec.process.boot },
            spec,
            after,
            is_over: false,
            ended: None,
            founding,
            state,
            workers: Workers {
                told: Index(0),
                applied: vec![Index(0); workers],
                rings: BTreeMap::new(),
            },
            lease: OwnLease::default(),
            leader: None,
            lead: None,
            outbox: Outbox::default(),
            facts: Facts::default(),
            ttl: NodeTtl::new(now, workers),
            heartbeat_at: now,
        }
    }

    /// The state as of the last entry applied here.
    pub fn state(&self) -> &State {
        &self.state
    }

    /// Whether this node leads, as far as it knows.
    pub fn leads(&self) -> bool {
        self.lead.is_some()
    }

    /// Whether every worker does by all that it was told.
    pub fn is_done_by(&self) -> bool {
        let applied = self.state.applied();
        self.workers.least(applied) >= applied
    }

    /// Takes in what has happened.
    pub fn handle(&mut self, now: Time, event: Event, out: &mut Vec<Action>) {
        if self.is_over {
            return;
        }
        match event {
            Event::Log(event) => self.log(now, event, out),
            Event::Received(from, message) => self.received(now, from, message, out),
            Event::Asked(entry) => self.ask(now, entry, out),
            Event::Ended => self.ended = Some(self.workers.ring()),
            Event::Workers(said) => {
                for (worker, event) in said {
                    self.worker(now, worker, event, out);
                }
            }
            Event::Tick => {}
        }
        if !self.is_over {
            self.look(now, out);
        }
    }

    /// When [`Event::Tick`] is due.
    pub fn next_deadline(&self) -> Time {
        if self.is_over {
            return Time::NEVER;
        }
        let lead = self.lead.as_ref().map_or(Time::NEVER, Lead::look_at);
        self.heartbeat_at.min(lead)
    }

    fn log(&mut self, now: Time, event: LogEvent, out: &mut Vec<Action>) {
        match event {
            LogEvent::Elected { term, before } => {
                self.outbox.clear();
                self.leader = Some(self.me.node);
                self.lead = Some(Lead::new(now, &self.state, (self.me.node, term), before));
            }
            LogEvent::Deposed => {
                self.outbox.clear();
                (self.lead, self.leader) = (None, None);
            }
            LogEvent::Follows(node) => self.leader = Some(node),
            LogEvent::Committed { index, term, entry } => {
                self.committed(now, (index, term), &entry, out);
            }
            LogEvent::Restored { term, state } => self.restored(now, term, *state, out),
            LogEvent::Failed(proposal) => self.outbox.failed(now, proposal),
            LogEvent::RoundDone { round, committed } => {
                if let Some(lead) = &mut self.lead {
                    lead.round_done(round, committed);
                }
            }
        }
    }

    fn committed(
        &mut self,
        now: Time,
        (index, term): (Index, Term),
        entry: &Entry,
        out: &mut Vec<Action>,
    ) {
        if index <= self.state.applied() {
            return;
        }
        let was = self.standing();
        let version = self.state.version();
        let applied = self.state.apply(index, entry);
        self.outbox.committed(entry);
        let cells = applied.memberships(&self.state, self.me);
        // Workers answer by the version: one that is behind its clients' is not believed.
        if !cells.is_empty() || self.state.version() > version {
            self.workers.told(index, self.state.version());
            out.push(Action::Memberships { index, whole: false, cells });
        }
        self.ttl.applied(self.state.longest(), out);
        if let Some(lead) = &mut self.lead {
            lead.applied(now, term, &self.state);
            if matches!(entry, Entry::Up(..)) && !applied.void {
                out.push(Action::Count(Fact::FalseSuspicion));
            }
        }
        if applied.void {
            return;
        }
        let Life { node: me, boot: mine } = self.me;
        if matches!(entry, &Entry::Stopped { node, boot, .. } if (node, boot) == (me, mine)) {
            self.is_over = true;
            return out.push(Action::Stopped);
        }
        self.ends(was, out);
    }

    /// A snapshot stands for many entries: whatever they did in between, workers are told what is.
    fn restored(&mut self, now: Time, term: Term, mut state: State, out: &mut Vec<Action>) {
        if state.applied() <= self.state.applied() {
            return;
        }
        state.mutant = self.state.mutant;
        let was = self.standing();
        self.state = state;
        let index = self.state.applied();
        self.workers.told(index, self.state.version());
        let all = self.state.memberships(self.me);
        let cells = all.into_iter().map(|(cell, is)| (cell, Some(is))).collect();
        out.push(Action::Memberships { index, whole: true, cells });
        self.ttl.applied(self.state.longest(), out);
        if let Some(lead) = &mut self.lead {
            lead.applied(now, term, &self.state);
        }
        self.ends(was, out);
    }

    /// Whether the node is there, and whether this process is it.
    fn standing(&self) -> (bool, bool) {
        let node = self.state.nodes().get(&self.me.node);
        (node.is_some(), node.is_some_and(|node| node.spec.process.boot == self.me.boot))
    }

    /// Says so when the node has been removed, or another process has begun as it. If this one
    /// began anew as well, they would take the node from each other for ever.
    fn ends(&mut self, (was_there, was_it): (bool, bool), out: &mut Vec<Action>) {
        let (is_there, is_it) = self.standing();
        if (was_there && !is_there) || (was_it && !is_it) {
            self.is_over = true;
            out.push(Action::Removed);
        }
    }

    fn received(&mut self, now: Time, from: NodeId, message: Message, out: &mut Vec<Action>) {
        match message {
            Message::Heartbeat { boot, renewal } => {
                let life = Life { node: from, boot };
                let renewal = Renewal { life, number: renewal, received: now };
                if let Some(lead) = &mut self.lead {
                    lead.heartbeat(&self.state, renewal, out);
                }
            }
            Message::Renewed { boot, renewal, bound } if boot == self.me.boot => {
                self.renewed(renewal, bound, out);
            }
            Message::Renewed { .. } => {}
            Message::Propose(entry) => {
                if self.lead.is_some() {
                    self.ask(now, entry, out);
                }
            }
            Message::Silent { copy, cells } => self.silent(now, (from, copy), &cells, out),
            Message::Probe(about, number) => {
                out.push(Action::Send(about.node, Message::Ping(from, number)));
            }
            Message::Ping(leader, number) => {
                let pong = Message::Pong(leader, number, self.me.boot);
                out.push(Action::Send(from, pong));
            }
            Message::Pong(leader, number, boot) => {
                let alive = Message::Alive(Life { node: from, boot }, number);
                out.push(Action::Send(leader, alive));
            }
            Message::Alive(life, number) => {
                if let Some(lead) = &mut self.lead {
                    lead.vouched(now, life, number, out);
                }
            }
            Message::AskTtl { round, window, after } => {
                let capped = self.workers.least(self.state.applied()) >= after;
                if capped && let Some(it) = self.ttl.question(now, round, window, out) {
                    self.state_ttl(it, out);
                }
            }
            Message::TtlStated { round, longest, by } => {
                if let Some(lead) = &mut self.lead {
                    lead.ttl_stated(from, Statement { round, longest, by });
                }
            }
        }
    }

    fn renewed(&mut self, renewal: u64, bound: Index, out: &mut Vec<Action>) {
        let covers = self.workers.least(self.state.applied()) >= bound;
        if (covers || self.state.mutant == Some(Mutant::LeaseBeforeApplied))
            && let Some(until) = self.lease.acknowledged(renewal)
        {
            out.push(Action::Lease(until));
        }
    }

    fn silent(
        &mut self,
        now: Time,
        (owner, copy): (NodeId, NodeId),
        cells: &[(CellId, Index)],
        out: &mut Vec<Action>,
    ) {
        let Some(lead) = &mut self.lead else { return };
        if let Some(entry) = lead.silent(now, &self.state, (owner, copy), cells) {
            out.push(Action::Count(Fact::SilentCopy));
            self.outbox.propose(now, entry, out);
        }
    }

    fn worker(&mut self, now: Time, worker: usize, event: WorkerEvent, out: &mut Vec<Action>) {
        match event {
            WorkerEvent::Applied(index) => self.workers.applied(worker, index),
            WorkerEvent::TtlAsked { ttl, by } => self.ttl.asked(now, worker, (ttl, by), out),
            WorkerEvent::TtlStated { round, longest, by } => {
                if let Some(it) = self.ttl.stated(worker, round, (longest, by)) {
                    self.state_ttl(it, out);
                }
            }
            WorkerEvent::Synced(..)
            | WorkerEvent::Silent(..)
            | WorkerEvent::Recovered(..)
            | WorkerEvent::EpochAsked(..) => self.facts.said(&event),
        }
    }

    fn state_ttl(&self, statement: Statement, out: &mut Vec<Action>) {
        if let Some(leader) = self.leader {
            let Statement { round, longest, by } = statement;
            out.push(Action::Send(leader, Message::TtlStated { round, longest, by }));
        }
    }

    /// Has an entry proposed by whoever leads.
    fn ask(&mut self, now: Time, entry: Entry, out: &mut Vec<Action>) {
        // Nobody joins before the founder has, whose id is known before.
        let is_first = entry == self.founding || self.state.cells().next().is_some();
        match self.leader {
            Some(_) if self.lead.is_some() && !is_first => {}
            Some(_) if self.lead.is_some() => self.outbox.propose(now, entry, out),
            Some(leader) => out.push(Action::Send(leader, Message::Propose(entry))),
            None => {}
        }
    }

    /// Does whatever is due.
    fn look(&mut self, now: Time, out: &mut Vec<Action>) {
        if now >= self.heartbeat_at {
            self.heartbeat_at = now.after(HEARTBEAT);
            if let Some(leader) = self.leader {
                let (boot, renewal) = (self.me.boot, self.lease.renewal(now));
                out.push(Action::Send(leader, Message::Heartbeat { boot, renewal }));
            }
            self.report_silent(now, out);
        }
        self.ttl.give_up(now, out);
        if self.leader.is_some() {
            self.ask_for_all(now, out);
        }
        if let Some(lead) = &mut self.lead {
            lead.look(now, &self.state, &mut self.outbox, out);
        }
    }

    /// Asks for whatever this node wants the log to have.
    fn ask_for_all(&mut self, now: Time, out: &mut Vec<Action>) {
        let applied = self.workers.least(self.state.applied());
        let mut entries = self.facts.entries(now, &self.state, self.me, applied);
        let process = (&self.spec.process, self.after);
        entries.extend(self.facts.own(now, &self.state, process, (self.me.node, self.ended)));
        entries.extend(self.ttl.entry(now));
        // One that has not applied all there is knows nothing of who founded it.
        if self.lead.as_ref().is_some_and(Lead::is_ready) && self.state.cells().next().is_none() {
            entries.push(self.founding.clone());
        }
        for entry in entries {
            self.ask(now, entry, out);
        }
    }

    /// Tells the leader, if there is one, which copies are silent: workers say so of one cell after
    /// the other, and what can be dropped together is one entry.
    fn report_silent(&mut self, now: Time, out: &mut Vec<Action>) {
        for (copy, cells) in self.facts.silent(&self.state, self.me) {
            match self.leader {
                Some(leader) if leader != self.me.node => {
                    out.push(Action::Send(leader, Message::Silent { copy, cells }));
                }
                Some(_) => self.silent(now, (self.me.node, copy), &cells, out),
                None => {}
            }
        }
    }
}

#[cfg(test)]
mod tests;
