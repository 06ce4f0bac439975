//! Control planes and the log that they agree by: the real ones, over the model of a log.

use super::Cluster;
use super::process::{Host, Order, spec};
use super::turns::At;
use crate::agenda::NodeEvent;
use crate::hub::{Event, Hub};
use crate::ring::node_of;
use lockring_control::cluster::{
    Action, Entry, Event as Control, Fact as Counted, Index, Life, LogEvent, Message, NodeState,
    ProposalId, RoundId, State,
};
use lockring_core::Time;
use lockring_core::testing::{End, Fact};
use lockring_proto::RingHistory;
use lockring_ring::{BootId, CellId, Membership, NodeId};
use std::collections::BTreeSet;
use std::time::Duration;

impl Cluster {
    /// Whether what one control plane says comes to another.
    pub fn passes(&self, hub: &Hub, from: NodeId, to: NodeId) -> bool {
        let is_cut = self.cuts.get(&(from, to)).is_some_and(|&until| hub.now < until);
        let (one, other) = (End::Node(node_of(from)), End::Node(node_of(to)));
        let is_cut = is_cut || hub.net.cut_until(hub.now, one, other).is_some();
        let is_lost = [from, to].map(Some).contains(&self.lost);
        from == to || !(is_cut || is_lost)
    }

    fn hear_each_other(&self, hub: &Hub, one: NodeId, other: NodeId) -> bool {
        self.passes(hub, one, other) && self.passes(hub, other, one)
    }

    /// Nodes whose log hears one node's and is heard by it.
    pub fn reach(&self, hub: &Hub, from: NodeId) -> impl Fn(NodeId) -> bool + use<> {
        let hears = |to: &NodeId| {
            self.hosts[to].is_running(hub.now) && self.hear_each_other(hub, from, *to)
        };
        let set: BTreeSet<NodeId> = self.hosts.keys().copied().filter(hears).collect();
        move |to| set.contains(&to)
    }

    fn after(&self, hub: &mut Hub, mean: u64, event: NodeEvent) {
        let delay = 50 + hub.rng.tailed(mean).min(mean * 20);
        hub.soon(Duration::from_micros(delay), Event::Node(event));
    }

    pub(super) fn tick(&mut self, hub: &mut Hub, life: Life) {
        let Some(host) = self.hosts.get_mut(&life.node) else { return };
        let shown = host.clock.shows(hub.now);
        let Some(process) = host.process.as_mut().filter(|its| its.life == life) else { return };
        if process.paused_until > hub.now {
            let until = process.paused_until;
            return hub.plan(until, Event::Node(NodeEvent::Tick { life }));
        }
        if process.tick_at != Time::NEVER && shown < process.tick_at {
            return;
        }
        process.tick_at = Time::NEVER;
        for event in std::mem::take(&mut process.waiting) {
            self.control(hub, life.node, event);
        }
        self.control(hub, life.node, Control::Tick);
    }

    /// Something happens to the control plane of a node.
    pub fn control(&mut self, hub: &mut Hub, node: NodeId, event: Control) {
        let Some(host) = self.hosts.get_mut(&node) else { return };
        let (shown, clock) = (host.clock.shows(hub.now), host.clock);
        let Some(process) = &mut host.process else { return };
        if process.paused_until > hub.now {
            return process.waiting.push_back(event);
        }
        let before = process.control.state().applied();
        let mut actions = Vec::new();
        process.control.handle(shown, event, &mut actions);
        let deadline = process.control.next_deadline();
        if deadline < process.tick_at {
            process.tick_at = deadline;
            let tick = NodeEvent::Tick { life: process.life };
            hub.plan(clock.real(deadline), Event::Node(tick));
        }
        let (life, applied) = (process.life, process.control.state().applied());
        if applied != before {
            self.learns(hub, life);
        }
        for action in actions {
            self.carry_out(hub, life, action);
        }
    }

    /// A control plane has applied entries: what workers and clients are told of the ring.
    fn learns(&mut self, hub: &mut Hub, life: Life) {
        let Some(process) = self.process(life) else { return };
        let state = process.control.state();
        let known = |(&id, node): (&NodeId, &NodeState)| {
            (id, node.spec.process.boot, node.spec.process.workers)
        };
        let nodes: Vec<_> = state.nodes().iter().map(known).collect();
        let version = state.version();
        let news = state.ring().filter(|_| {
            let newest = process.history.as_ref().map(|history| history.newest().version());
            newest.is_none_or(|newest| version > newest)
        });
        let count = process.workers.len() as u16;
        let others = (nodes != process.nodes).then(|| nodes.clone());
        process.nodes = nodes;
        let is_newer = news.is_some();
        if let Some(ring) = news {
            match &mut process.history {
                Some(history) => assert!(history.learns(ring), "a ring of another cluster"),
                none => *none = Some(RingHistory::new(ring)),
            }
        }
        for worker in 0..count {
            if let Some(nodes) = others.clone() {
                self.tell(hub, (life, worker), Order::Nodes(nodes), Duration::ZERO);
            }
            if is_newer {
                self.tell(hub, (life, worker), Order::Ring(version), Duration::ZERO);
            }
        }
    }

    fn carry_out(&mut self, hub: &mut Hub, life: Life, action: Action) {
        let node = life.node;
        match action {
            Action::Propose(id, entry) => self.propose(hub, node, id, entry),
            Action::Confirm(round) => {
                self.log.begin_round(node, round);
                self.after(hub, 2000, NodeEvent::RoundEnds { node, round });
            }
            Action::Send(to, message) => self.send(hub, node, to, message),
            Action::Removed => {
                hub.reach("nodes that have left");
                self.ends(hub, node);
            }
            Action::Stopped => {
                hub.reach("stops that the log has heard of");
                self.ends(hub, node);
            }
            Action::Memberships { index, whole, cells } => {
                self.memberships(hub, life, (index, whole), &cells);
            }
            Action::Lease(until) => {
                hub.reach("leases that grew");
                self.tell_all(hub, life, &Order::Lease(until));
            }
            Action::ConfirmTtl(worker, ttl) => {
                self.tell(hub, (life, worker as u16), Order::LongestTtl(ttl), Duration::ZERO);
            }
            Action::RefuseTtl(worker, why) => {
                self.tell(hub, (life, worker as u16), Order::TtlFailed(why), Duration::ZERO);
            }
            Action::AskTtl { round, window } => {
                self.tell_all(hub, life, &Order::State { round, window });
            }
            Action::Count(fact) => hub.reach(match fact {
                Counted::Suspected => "suspected",
                Counted::Vouched => "vouched",
                Counted::FalseSuspicion => "false suspicions",
                Counted::LateLoop => "late loops",
                Counted::SilentCopy => "silent copies",
                Counted::StuckLearner => "stuck learners",
            }),
        }
    }

    fn tell_all(&mut self, hub: &mut Hub, life: Life, order: &Order) {
        let Some(process) = self.process(life) else { return };
        for worker in 0..process.workers.len() as u16 {
            self.tell(hub, (life, worker), order.clone(), Duration::ZERO);
        }
    }

    /// Each worker is told of its cells, in its own time.
    fn memberships(
        &mut self,
        hub: &mut Hub,
        life: Life,
        (index, whole): (Index, bool),
        cells: &[(CellId, Option<Membership>)],
    ) {
        let Some(process) = self.process(life) else { return };
        let (count, version) = (process.workers.len(), process.control.state().version());
        for number in 0..count {
            let own = |(cell, _): &&(CellId, _)| usize::from(cell.0) % count == number;
            let cells = cells.iter().filter(own).cloned().collect();
            let mean = if hub.rng.percent(2) { 100_000 } else { 300 };
            let after = Duration::from_micros(hub.rng.tailed(mean).min(mean * 10));
            let order = Order::Memberships { index, whole, cells, version };
            let at: At = (life, number as u16);
            self.tell(hub, at, order, after);
        }
    }

    fn propose(&mut self, hub: &mut Hub, node: NodeId, id: ProposalId, entry: Entry) {
        if !self.is_calm && hub.rng.percent(1) {
            return hub.reach("proposals lost");
        }
        let early = hub.rng.percent(10);
        self.log.propose(node, id, entry.clone(), early);
        if !self.is_calm && hub.rng.percent(3) {
            self.log.propose(node, id, entry, false);
            hub.reach("proposals repeated");
        }
        if !self.is_calm && hub.rng.percent(2) {
            self.log.fail(node, id);
            hub.reach("late commits after a failure report");
        }
        self.news(hub, node);
        self.after(hub, 2000, NodeEvent::Commit);
    }

    fn send(&mut self, hub: &mut Hub, from: NodeId, to: NodeId, message: Message) {
        let event = NodeEvent::Message { from, to, message };
        if from == to {
            return hub.plan(hub.now, Event::Node(event));
        }
        let lost = !self.is_calm && hub.rng.percent(self.loss);
        if !self.passes(hub, from, to) || lost {
            return;
        }
        let mean = if hub.now < self.slow_until { 60_000 } else { 500 };
        if hub.rng.percent(1) {
            hub.reach("control messages that came twice");
            self.after(hub, mean * 20, event.clone());
        }
        self.after(hub, mean, event);
    }

    pub(super) fn message(&mut self, hub: &mut Hub, (from, to): (NodeId, NodeId), what: Message) {
        if self.passes(hub, from, to) {
            self.control(hub, to, Control::Received(from, what));
        }
    }

    pub(super) fn commit(&mut self, hub: &mut Hub) {
        let Some(leader) = self.log.leader() else { return };
        if !self.hosts.get(&leader).is_some_and(|host| host.is_running(hub.now)) {
            return;
        }
        let reach = self.reach(hub, leader);
        let before = self.log.last();
        if !self.log.commit(&reach) {
            return;
        }
        for index in before.0 + 1..=self.log.last().0 {
            let entry = self.log.entry(Index(index)).expect("it is committed").clone();
            self.committed(hub, Index(index), &entry);
        }
        let nodes: Vec<NodeId> = self.hosts.keys().copied().collect();
        for node in nodes {
            let mean = if hub.rng.percent(3) { 80_000 } else { 1000 };
            self.after(hub, mean, NodeEvent::Deliver { node });
        }
        self.admit(hub);
    }

    /// An entry is in the log for good.
    fn committed(&mut self, hub: &mut Hub, index: Index, entry: &Entry) {
        let before = self.rules.state().clone();
        if let Err(what) = self.rules.apply(index, entry) {
            hub.accuse("P1, P4, P6: entries keep the rules", what);
        }
        let state = self.rules.state();
        let began_anew = |cell: CellId| {
            let takeover = |state: &State| state.cell(cell).map(|cell| cell.takeover);
            takeover(&before).is_some() && takeover(&before) != takeover(state)
        };
        let keys = self.keys_of(began_anew);
        if !keys.is_empty() {
            hub.reach("cells taken over");
            hub.fact(&Fact::Booted { keys });
        }
        for id in before.nodes().keys().chain(self.rules.state().nodes().keys()) {
            hub.ring.knows(*id, self.rules.state().nodes().contains_key(id));
        }
    }

    /// Processes that are nodes by now begin as such.
    fn admit(&mut self, hub: &mut Hub) {
        let is_new = |(id, _): &(&NodeId, &NodeState)| !self.hosts.contains_key(*id);
        let new = self.rules.state().nodes().iter().filter(is_new);
        let new: Vec<(NodeId, BootId)> =
            new.map(|(&id, node)| (id, node.spec.process.boot)).collect();
        for (id, boot) in new {
            // One that was removed before it heard so is not begun again.
            if self.joining.remove(&boot) {
                hub.reach("nodes that joined");
                self.add_host(hub, id, Some(boot));
            }
        }
    }

    /// What a node's log has for it, if that reaches it.
    pub(super) fn deliver(&mut self, hub: &mut Hub, node: NodeId) {
        if !self.hosts.get(&node).is_some_and(|host| host.is_running(hub.now)) {
            return;
        }
        let leader = self.log.leader().unwrap_or(node);
        let lags = self.lags.get(&node).is_some_and(|&until| hub.now < until);
        if lags || !self.passes(hub, leader, node) {
            return self.news(hub, node);
        }
        while let Some(event) = self.log.deliver(node) {
            if matches!(event, LogEvent::Restored { .. }) {
                hub.reach("snapshots of the log");
            }
            self.control(hub, node, Control::Log(event));
            self.agrees(hub, node);
            // The rest is late now and then.
            if hub.rng.percent(5) {
                return self.after(hub, 20_000, NodeEvent::Deliver { node });
            }
        }
    }

    /// A node that has applied as much as all that is committed has an equal state.
    fn agrees(&self, hub: &mut Hub, node: NodeId) {
        let process = self.hosts.get(&node).and_then(|host| host.process.as_ref());
        let Some(state) = process.map(|process| process.control.state()) else { return };
        let truth = self.rules.state();
        if state.applied() == truth.applied() && state != truth {
            hub.accuse("control planes agree", format!("{node} has another state"));
        }
    }

    /// What a node's log has to say at once.
    pub fn news(&mut self, hub: &mut Hub, node: NodeId) {
        if !self.hosts.get(&node).is_some_and(|host| host.is_running(hub.now)) {
            return;
        }
        while let Some(event) = self.log.news(node) {
            self.control(hub, node, Control::Log(event));
        }
    }

    pub(super) fn round_ends(&mut self, hub: &mut Hub, node: NodeId, round: RoundId) {
        if self.hosts.contains_key(&node) {
            let reach = self.reach(hub, node);
            self.log.end_round(node, round, &reach);
            self.news(hub, node);
        }
    }

    /// A voter is elected when nobody leads whom a majority hears.
    pub(super) fn elections(&mut self, hub: &mut Hub) {
        let leader = self.log.leader().filter(|leader| {
            self.hosts.get(leader).is_some_and(|host| host.is_running(hub.now)) && {
                let reach = self.reach(hub, *leader);
                let voters = self.hosts.keys().filter(|node| self.log.votes(**node));
                let all = voters.clone().count();
                voters.filter(|node| reach(**node)).count() > all / 2
            }
        });
        if leader.is_some() {
            self.leaderless_since = hub.now;
        } else if hub.now.since(self.leaderless_since) >= Duration::from_millis(300)
            && hub.rng.percent(30)
        {
            self.elect_any(hub);
        }
        let stale: Vec<NodeId> = self.hosts.keys().copied().collect();
        for node in stale {
            let hears = self.log.leader().is_some_and(|leader| self.reach(hub, node)(leader));
            if hears && hub.rng.percent(30) {
                self.log.notice(node);
                self.news(hub, node);
            }
        }
    }

    /// Somebody stands for election.
    pub fn elect_any(&mut self, hub: &mut Hub) {
        let can = |host: &&Host| host.is_running(hub.now) && self.log.votes(host.id);
        let voters: Vec<NodeId> = self.hosts.values().filter(can).map(|host| host.id).collect();
        if voters.is_empty() {
            return;
        }
        let node = *hub.rng.pick(&voters);
        let keep = hub.rng.range(0, 4) as usize;
        let reach = self.reach(hub, node);
        if self.log.elect(node, keep, &reach) {
            hub.reach("elections");
            self.news(hub, node);
            self.after(hub, 4000, NodeEvent::Commit);
        }
    }

    /// Of three nodes or more, three vote.
    pub(super) fn votes(&mut self, hub: &Hub) {
        let Some(leader) = self.log.leader() else { return };
        let reach = self.reach(hub, leader);
        let state = self.rules.state();
        let of_log = state.nodes().keys().filter(|node| self.hosts.contains_key(node));
        let three: BTreeSet<NodeId> = of_log.copied().take(3).collect();
        let voting = three.iter().filter(|&&node| self.log.votes(node)).count();
        if three.len() == 3 && voting == 1 && three.iter().all(|&node| reach(node)) {
            self.log.set_voters(&three);
        }
    }

    /// Whoever wants something asks for it until it is so.
    pub(super) fn operators(&mut self, hub: &mut Hub) {
        if !hub.rng.percent(20) {
            return;
        }
        let state = self.rules.state();
        self.wishes.retain(|wish| is_open(state, wish));
        let mut wishes = self.wishes.clone();
        let known = state.nodes();
        let gone = self.gone.iter().filter(|node| known.get(node).is_some_and(|it| !it.leaving));
        wishes.extend(gone.map(|&node| Entry::Leave(node)));
        wishes.extend(self.joining.iter().map(|&boot| Entry::Join(spec(boot))));
        let running = self.hosts.values().filter(|host| host.is_running(hub.now));
        let running: Vec<NodeId> = running.map(|host| host.id).collect();
        if running.is_empty() {
            return;
        }
        for wish in wishes {
            let &node = hub.rng.pick(&running);
            self.control(hub, node, Control::Asked(wish));
        }
    }
}

/// Whether a wish is not fulfilled yet, and can be.
fn is_open(state: &State, wish: &Entry) -> bool {
    match wish {
        Entry::Leave(node) => state.nodes().get(node).is_some_and(|node| !node.leaving),
        Entry::Weight { node, revision, .. } => {
            state.nodes().get(node).is_some_and(|node| node.revision == *revision)
        }
        Entry::Policy { revision, .. } => state.replicas().1 == *revision,
        _ => false,
    }
}
