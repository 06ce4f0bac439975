//! The simulated cluster: time, network, log and nodes, all of it from one seed.

use super::checks::Checks;
use super::host::{Clock, Host, Told, spec};
use crate::cluster::*;
use crate::testing::LogModel;
use lockring_core::testing::Rng;
use lockring_proto::Time;
use lockring_ring::{BootId, CellBits, CellId, NodeId};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

pub const CELL_BITS: u8 = 4;

/// Something that is due.
#[derive(Clone, Debug)]
pub enum Due {
    Tick(NodeId),
    Message(NodeId, NodeId, Message),
    /// A worker does by what it was told, of this life.
    Applies(Life, usize),
    /// A worker has something to say, of this life.
    Says(Life, usize, WorkerEvent),
    Commit,
    Deliver(NodeId),
    RoundEnds(NodeId, RoundId),
    Restart(NodeId),
    Mended(NodeId),
    /// Every 100 ms.
    Beat,
}

/// What a run is made of.
#[derive(Clone, Copy, Debug)]
pub struct Setup {
    pub nodes: usize,
    pub mutant: Option<Mutant>,
}

/// Ways that are cut, and how bad the others are.
#[derive(Debug, Default)]
pub struct Net {
    pub cuts: BTreeMap<(NodeId, NodeId), Time>,
    /// Nodes that the log reaches only then.
    pub lags: BTreeMap<NodeId, Time>,
    pub slow_until: Time,
    pub loss: u64,
    /// A node of a log that is lost: nobody hears it any more.
    pub lost: Option<NodeId>,
}

impl Net {
    pub fn passes(&self, now: Time, from: NodeId, to: NodeId) -> bool {
        let is_lost = [from, to].map(Some).contains(&self.lost);
        let is_cut = self.cuts.get(&(from, to)).is_some_and(|until| now < *until);
        from == to || !(is_cut || is_lost)
    }

    pub fn hear_each_other(&self, now: Time, one: NodeId, other: NodeId) -> bool {
        self.passes(now, one, other) && self.passes(now, other, one)
    }
}

pub struct World {
    pub rng: Rng,
    pub now: Time,
    pub setup: Setup,
    queue: BTreeMap<(Time, u64), Due>,
    numbered: u64,
    pub log: LogModel,
    pub checks: Checks,
    pub hosts: BTreeMap<NodeId, Host>,
    pub net: Net,
    /// Processes that want to join.
    pub joining: BTreeSet<BootId>,
    /// What an operator wants.
    pub wishes: Vec<Entry>,
    leaderless_since: Time,
    /// Nobody asks for anything any more.
    pub is_calm: bool,
}

impl World {
    pub fn new(seed: u64, setup: Setup) -> Self {
        let mut rng = Rng::new(seed);
        let state = initial(setup.mutant);
        let founder = NodeId(1);
        let voters = BTreeSet::from([founder]);
        let mut world = Self {
            now: Time(1_000_000),
            setup,
            queue: BTreeMap::new(),
            numbered: 0,
            log: LogModel::new(state.clone(), &voters, setup.mutant),
            checks: Checks::new(state),
            hosts: BTreeMap::new(),
            net: Net::default(),
            joining: BTreeSet::new(),
            wishes: Vec::new(),
            leaderless_since: Time(0),
            is_calm: false,
            rng: rng.fork(),
        };
        world.add_host(founder, None);
        (1..setup.nodes).for_each(|_| world.wants_to_join());
        world.at(world.now, Due::Beat);
        world
    }

    pub fn fresh_boot(&mut self) -> BootId {
        BootId(self.rng.draw() | 1)
    }

    pub fn wants_to_join(&mut self) {
        let boot = self.fresh_boot();
        self.joining.insert(boot);
    }

    fn add_host(&mut self, id: NodeId, boot: Option<BootId>) {
        let boot = boot.unwrap_or_else(|| self.fresh_boot());
        let clock = Clock::any(&mut self.rng);

        self.hosts.insert(id, Host::new(id, clock, None));
        if id != NodeId(1) && !self.log.votes(id) {
            self.log.add_learner(id);
        }
        self.start(id, boot, None);
    }

    /// A process of a node begins.
    pub fn start(&mut self, id: NodeId, boot: BootId, founding: Option<Entry>) {
        let state = initial(self.setup.mutant);
        let (now, host) = (self.now, self.hosts.get_mut(&id).expect("a host"));
        host.start(now, boot, founding, state);
        self.at(self.now, Due::Tick(id));
        self.at(self.now, Due::Deliver(id));
    }

    pub fn at(&mut self, time: Time, due: Due) {
        self.numbered += 1;
        self.queue.insert((time.max(self.now), self.numbered), due);
    }

    pub fn after(&mut self, mean: u64, due: Due) {
        let delay = 100 + self.rng.tailed(mean).min(mean * 20);
        self.at(self.now.after(Duration::from_micros(delay)), due);
    }

    /// Runs until then, or until something is wrong.
    pub fn run_until(&mut self, until: Time) -> Result<(), String> {
        while let Some((&key, _)) = self.queue.first_key_value().filter(|(key, _)| key.0 <= until) {
            let due = self.queue.remove(&key).expect("it is there");
            assert!(self.numbered < 20_000_000, "time stands still at {}", self.now);
            self.now = key.0;
            self.happens(due);
            if let Some(what) = self.checks.broken() {
                return Err(what);
            }
        }
        self.now = until;
        Ok(())
    }

    fn happens(&mut self, due: Due) {
        match due {
            Due::Tick(node) => self.tick(node),
            Due::Message(from, to, message) => {
                if self.net.passes(self.now, from, to) {
                    self.give(to, Event::Received(from, message));
                }
            }
            Due::Applies(life, worker) => self.applies(life, worker),
            Due::Says(life, worker, event) => {
                if let Some(host) = self.hosts.get(&life.node)
                    && host.process.as_ref().is_some_and(|process| process.life == life)
                {
                    self.give(life.node, Event::worker(worker, event));
                }
            }
            Due::Commit => self.commit(),
            Due::Deliver(node) => self.deliver(node),
            Due::RoundEnds(node, round) => {
                if self.hosts.contains_key(&node) {
                    let reach = self.reach(node);
                    self.log.end_round(node, round, &reach);
                    self.news(node);
                }
            }
            Due::Restart(node) => self.restart(node),
            Due::Mended(node) => {
                if self.hosts.contains_key(&node) {
                    self.log.mend_store(node);
                    self.at(self.now, Due::Deliver(node));
                }
            }
            Due::Beat => self.beat(),
        }
    }

    /// Nodes whose log hears one node's and is heard by it.
    pub fn reach(&self, from: NodeId) -> impl Fn(NodeId) -> bool + use<> {
        let hears = |to: &NodeId| {
            let running = self.hosts[to].is_running(self.now);
            running && self.net.hear_each_other(self.now, from, *to)
        };
        let set: BTreeSet<NodeId> = self.hosts.keys().copied().filter(hears).collect();
        move |to| set.contains(&to)
    }

    fn tick(&mut self, node: NodeId) {
        let Some(host) = self.hosts.get_mut(&node) else { return };
        let shown = host.clock.show(self.now);
        let Some(process) = &mut host.process else { return };
        if process.stopped_until > self.now {
            let until = process.stopped_until;
            return self.at(until, Due::Tick(node));
        }
        if process.tick_at != Time::NEVER && shown < process.tick_at {
            return;
        }
        process.tick_at = Time::NEVER;
        for event in std::mem::take(&mut process.inbox) {
            self.give(node, event);
        }
        self.give(node, Event::Tick);
    }

    /// Something happens to a process.
    pub fn give(&mut self, node: NodeId, event: Event) {
        let Some(host) = self.hosts.get_mut(&node) else { return };
        let shown = host.clock.show(self.now);
        let Some(process) = &mut host.process else { return };
        if process.stopped_until > self.now {
            return process.inbox.push_back(event);
        }
        let mut actions = Vec::new();
        process.control.handle(shown, event, &mut actions);
        let deadline = process.control.next_deadline();
        if deadline < process.tick_at {
            process.tick_at = deadline;
            let when = host.clock.when(deadline);
            self.at(when, Due::Tick(node));
        }
        for action in actions {
            self.act(node, action);
        }
    }

    fn act(&mut self, node: NodeId, action: Action) {
        match action {
            Action::Propose(id, entry) => self.propose(node, id, entry),
            Action::Confirm(round) => {
                self.log.begin_round(node, round);
                self.after(3000, Due::RoundEnds(node, round));
            }
            Action::Send(to, message) => self.send(node, to, message),
            Action::Removed | Action::Stopped => self.ends(node),
            other => self.local(node, other),
        }
    }

    /// What stays within the process.
    fn local(&mut self, node: NodeId, action: Action) {
        let Some(host) = self.hosts.get_mut(&node) else { return };
        let shown = host.clock.show(self.now);
        let Some(process) = &mut host.process else { return };
        let life = process.life;
        match action {
            Action::Memberships { index, whole, cells } => {
                let count = process.workers.len();
                for (number, worker) in process.workers.iter_mut().enumerate() {
                    let own = |(cell, _): &(CellId, _)| usize::from(cell.0) % count == number;
                    let cells = cells.iter().filter(|it| own(it)).cloned().collect();
                    worker.told.push_back(Told { index, whole, cells });
                }
                for number in 0..count {
                    let mean = if self.rng.percent(2) { 150_000 } else { 1000 };
                    self.after(mean, Due::Applies(life, number));
                }
            }
            Action::Lease(until) => {
                process.lease = until;
                self.checks.count("lease grew");
            }
            Action::ConfirmTtl(worker, ttl) => process.workers[worker].ceiling = ttl,
            Action::RefuseTtl(..) => self.checks.count("TTL refused"),
            Action::AskTtl { round, window } => {
                let longest = process.longest(shown, window);
                for (number, longest) in longest.into_iter().enumerate() {
                    let (longest, by) = (Some(longest), String::new());
                    let stated = WorkerEvent::TtlStated { round, longest, by };
                    self.after(2000, Due::Says(life, number, stated));
                }
            }
            Action::Count(fact) => self.checks.count(match fact {
                Fact::Suspected => "suspected",
                Fact::Vouched => "vouched",
                Fact::FalseSuspicion => "false suspicion",
                Fact::LateLoop => "late loop",
                Fact::SilentCopy => "silent copy",
                Fact::StuckLearner => "stuck learner",
            }),
            Action::Propose(..)
            | Action::Confirm(_)
            | Action::Send(..)
            | Action::Removed
            | Action::Stopped => {}
        }
    }

    fn propose(&mut self, node: NodeId, id: ProposalId, entry: Entry) {
        if self.rng.percent(1) {
            return self.checks.count("proposal lost");
        }
        let early = self.rng.percent(10);
        self.log.propose(node, id, entry.clone(), early);
        if self.rng.percent(3) {
            self.log.propose(node, id, entry, false);
            self.checks.count("proposal repeated");
        }
        if self.rng.percent(2) {
            self.log.fail(node, id);
            self.checks.count("late commit after a failure report");
        }
        self.news(node);
        self.after(3000, Due::Commit);
    }

    fn send(&mut self, from: NodeId, to: NodeId, message: Message) {
        if from == to {
            return self.at(self.now, Due::Message(from, to, message));
        }
        if !self.net.passes(self.now, from, to) || self.rng.percent(self.net.loss) {
            return;
        }
        let mean = if self.now < self.net.slow_until { 60_000 } else { 800 };
        if self.rng.percent(1) {
            self.after(mean * 20, Due::Message(from, to, message.clone()));
        }
        self.after(mean, Due::Message(from, to, message));
    }

    fn commit(&mut self) {
        let Some(leader) = self.log.leader() else { return };
        let Some(host) = self.hosts.get(&leader).filter(|host| host.is_running(self.now)) else {
            return;
        };
        let reach = self.reach(host.id);
        let before = self.log.last();
        if !self.log.commit(&reach) {
            return;
        }
        for index in before.0 + 1..=self.log.last().0 {
            let entry = self.log.entry(Index(index)).expect("it is committed").clone();
            self.checks.committed(self.now, Index(index), &entry, &self.hosts);
        }
        let nodes: Vec<NodeId> = self.hosts.keys().copied().collect();
        for node in nodes {
            let mean = if self.rng.percent(3) { 100_000 } else { 1500 };
            self.after(mean, Due::Deliver(node));
        }
        self.admit();
    }

    /// Processes that are nodes by now begin as such.
    fn admit(&mut self) {
        let state = self.checks.rules.state();
        let is_new = |(id, _): &(&NodeId, &NodeState)| !self.hosts.contains_key(*id);
        let new = state.nodes().iter().filter(is_new);
        let new: Vec<(NodeId, BootId)> =
            new.map(|(&id, node)| (id, node.spec.process.boot)).collect();
        for (id, boot) in new {
            // One that was removed before it heard so is not begun again.
            if self.joining.remove(&boot) {
                self.add_host(id, Some(boot));
            }
        }
    }

    /// What a node's log has for it, if that reaches it.
    fn deliver(&mut self, node: NodeId) {
        if !self.hosts.get(&node).is_some_and(|host| host.is_running(self.now)) {
            return;
        }
        let leader = self.log.leader().unwrap_or(node);
        let lags = self.net.lags.get(&node).is_some_and(|until| self.now < *until);
        if lags || !self.net.passes(self.now, leader, node) {
            return self.news(node);
        }
        while let Some(event) = self.log.deliver(node) {
            if matches!(event, LogEvent::Restored { .. }) {
                self.checks.count("snapshot");
            }
            self.give(node, Event::Log(event));
            self.agrees(node);
            // The rest is late now and then.
            if self.rng.percent(5) {
                return self.after(20_000, Due::Deliver(node));
            }
        }
    }

    /// A node that has applied as much as all that is committed has an equal state.
    fn agrees(&mut self, node: NodeId) {
        let Some(process) = self.hosts.get(&node).and_then(|host| host.process.as_ref()) else {
            return;
        };
        let state = process.control.state();
        let truth = self.checks.rules.state();
        let equal = state.applied() != truth.applied() || state == truth;
        self.checks.ensure(equal, || format!("{node} has another state"));
    }

    /// What a node's log has to say at once.
    pub fn news(&mut self, node: NodeId) {
        if !self.hosts.get(&node).is_some_and(|host| host.is_running(self.now)) {
            return;
        }
        while let Some(event) = self.log.news(node) {
            self.give(node, Event::Log(event));
        }
    }

    fn applies(&mut self, life: Life, number: usize) {
        let Some(host) = self.hosts.get_mut(&life.node) else { return };
        let (shown, clock) = (host.clock.show(self.now), host.clock);
        let Some(process) = host.process.as_mut().filter(|process| process.life == life) else {
            return;
        };
        let until = process.stopped_until.max(process.workers_stuck_until);
        if until > self.now {
            return self.at(until, Due::Applies(life, number));
        }
        let Some(index) = process.workers[number].apply(shown) else { return };
        let mut says = Vec::new();
        for (cell, is, since) in process.served() {
            if usize::from(cell.0) % process.workers.len() == number
                && let Some(grace) = is.grace
            {
                says.push((clock.when(since.after(grace)), cell, is.epoch));
            }
        }
        for (when, cell, epoch) in says {
            self.at(when, Due::Says(life, number, WorkerEvent::Recovered(cell, epoch)));
        }
        self.give(life.node, Event::worker(number, WorkerEvent::Applied(index)));
    }

    fn beat(&mut self) {
        self.at(self.now.after(Duration::from_millis(100)), Due::Beat);
        self.elections();
        self.votes();
        self.operators();
        self.workers();
        self.at(self.now, Due::Commit);
        let nodes: Vec<NodeId> = self.hosts.keys().copied().collect();
        for node in nodes {
            self.after(5000, Due::Deliver(node));
        }
        self.checks.stale_owners(self.now, &self.hosts);
        self.checks.sessions(self.now, &mut self.hosts);
    }

    /// A voter is elected when nobody leads whom a majority hears.
    fn elections(&mut self) {
        let leader = self.log.leader().filter(|leader| {
            self.hosts.get(leader).is_some_and(|host| host.is_running(self.now)) && {
                let reach = self.reach(*leader);
                let voters = self.hosts.keys().filter(|node| self.log.votes(**node));
                let all = voters.clone().count();
                voters.filter(|node| reach(**node)).count() > all / 2
            }
        });
        if leader.is_some() {
            self.leaderless_since = self.now;
        } else if self.now.since(self.leaderless_since) >= Duration::from_millis(400)
            && self.rng.percent(40)
        {
            self.elect_any();
        }
        let stale: Vec<NodeId> = self.hosts.keys().copied().collect();
        for node in stale {
            let hears = self.log.leader().is_some_and(|leader| self.reach(node)(leader));
            if hears && self.rng.percent(50) {
                self.log.notice(node);
                self.news(node);
            }
        }
    }

    /// Of three nodes or more, three vote.
    fn votes(&mut self) {
        let Some(leader) = self.log.leader().filter(|_| self.setup.nodes > 2) else { return };
        let reach = self.reach(leader);
        let state = self.checks.rules.state();
        let of_log = state.nodes().keys().filter(|node| self.hosts.contains_key(node));
        let three: BTreeSet<NodeId> = of_log.copied().take(3).collect();
        let voting = three.iter().filter(|&&node| self.log.votes(node)).count();
        if three.len() == 3 && voting == 1 && three.iter().all(|&node| reach(node)) {
            self.log.set_voters(&three);
        }
    }

    /// A log begins anew, at a node that is the first of it.
    pub fn begin_anew(&mut self, founder: NodeId, floors: Floors) {
        let boot = self.fresh_boot();
        let clock = Clock::any(&mut self.rng);
        let founding = Some(floors.clone());
        self.hosts.insert(founder, Host::new(founder, clock, founding));
        self.start(founder, boot, Some(Entry::Recover(spec(boot), floors)));
        for _ in 0..self.rng.range(1, 4) {
            self.wants_to_join();
        }
    }

    /// Somebody stands for election.
    pub fn elect_any(&mut self) {
        let can = |host: &&Host| host.is_running(self.now) && self.log.votes(host.id);
        let voters: Vec<NodeId> = self.hosts.values().filter(can).map(|host| host.id).collect();
        if voters.is_empty() {
            return;
        }
        let &node = self.rng.pick(&voters);
        let keep = self.rng.range(0, 4) as usize;
        let reach = self.reach(node);
        if self.log.elect(node, keep, &reach) {
            self.checks.count("election");
            self.news(node);
            self.after(8000, Due::Commit);
        }
    }

    /// A process ends, and what it had in its memory is gone.
    pub fn ends(&mut self, node: NodeId) {
        if let Some(host) = self.hosts.get_mut(&node)
            && host.process.take().is_some()
        {
            self.log.crash(node);
        }
    }

    /// A process begins in a copy of a node's data directory, and has its address. The one before
    /// runs on, cut off.
    pub fn is_cloned(&mut self, node: NodeId) {
        let boot = self.fresh_boot();
        let is_there = self.checks.rules.state().nodes().contains_key(&node);
        let host = self.hosts.get_mut(&node).filter(|host| host.founding.is_none() && is_there);
        let Some(host) = host.filter(|host| host.process.is_some()) else { return };
        (host.former, host.last) = (host.process.take(), None);
        self.log.crash(node);
        self.log.restart(node);
        self.start(node, boot, None);
        self.checks.count("cloned");
    }

    fn restart(&mut self, node: NodeId) {
        let boot = self.fresh_boot();
        let is_down = |host: &&Host| host.process.is_none();
        let Some(host) = self.hosts.get(&node).filter(is_down) else { return };
        // A founder whose log is empty still has to found it.
        let founding = host.founding.clone().map(|floors| Entry::Recover(spec(boot), floors));
        if founding.is_some() || self.checks.rules.state().nodes().contains_key(&node) {
            self.checks.count("restart");
            self.log.restart(node);
            self.start(node, boot, founding);
        }
    }
}

/// Before the first entry.
pub fn initial(mutant: Option<Mutant>) -> State {
    let bits = CellBits::new(CELL_BITS).expect("few enough");
    State::new(bits).with_mutant(mutant)
}
