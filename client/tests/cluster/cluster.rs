//! The nodes of a run: control planes over one log, workers, and what connects them.

mod cases;
mod council;
mod peers;
mod process;
mod stop;
mod turns;
mod watch;

use crate::agenda::NodeEvent;
use crate::hub::{Event, Hub};
use crate::keys::Keys;
use crate::ring::{id_of, node_of};
use crate::way::{Way, parts_of};
pub use cases::CASES;
use lockring_control::cluster::{Entry, Event as Control, Life, Mutant as ControlMutant, State};
use lockring_control::testing::{LogModel, Rules, floors_above};
use lockring_core::testing::{End, Fact, KeyId};
use lockring_core::{Machine, Mutant, PeerWorker, Time};
use lockring_proto::Fence;
use lockring_ring::{BootId, CellId, Membership, NodeId};
use process::{Came, Host, Process, bits, spec};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;
use watch::Watch;
pub use watch::cell_of;

const BEAT: Duration = Duration::from_millis(50);

/// The bugs that nodes are run with.
#[derive(Clone, Copy, Debug, Default)]
pub struct Bugs {
    pub core: Option<Mutant>,
    pub control: Option<ControlMutant>,
}

/// The nodes, and all that is between them.
pub struct Cluster {
    pub hosts: BTreeMap<NodeId, Host>,
    pub log: LogModel,
    pub rules: Rules,
    bugs: Bugs,
    watch: Watch,
    /// The newest connection of each two workers.
    wires: BTreeMap<(PeerWorker, PeerWorker), crate::agenda::PeerWay>,
    /// Ways that control planes do not hear each other by.
    pub cuts: BTreeMap<(NodeId, NodeId), Time>,
    /// Nodes that the log reaches only then.
    pub lags: BTreeMap<NodeId, Time>,
    pub slow_until: Time,
    /// How many of a hundred messages of control planes are lost.
    pub loss: u64,
    /// Nodes that do not come back. An operator has them removed.
    gone: BTreeSet<NodeId>,
    /// A node of a log that is lost: no control plane hears it any more.
    lost: Option<NodeId>,
    /// Processes that want to join.
    pub joining: BTreeSet<BootId>,
    /// What an operator wants.
    pub wishes: Vec<Entry>,
    leaderless_since: Time,
    /// Nothing goes wrong any more.
    pub is_calm: bool,
    /// Every key, by its cell.
    cells: BTreeMap<CellId, BTreeSet<KeyId>>,
}

impl Cluster {
    /// A founder, and others that want to join.
    pub fn new(hub: &mut Hub, keys: &Keys, nodes: usize, bugs: Bugs) -> Self {
        let state = State::new(bits()).with_mutant(bugs.control);
        let founder = id_of(0);
        let mut cells: BTreeMap<CellId, BTreeSet<KeyId>> = BTreeMap::new();
        for key in keys.of_cells(bits(), |_| true) {
            cells.entry(cell_of(keys, key)).or_default().insert(key);
        }
        let mut cluster = Self {
            hosts: BTreeMap::new(),
            log: LogModel::new(state.clone(), &BTreeSet::from([founder]), bugs.control),
            rules: Rules::new(state),
            bugs,
            watch: Watch::default(),
            wires: BTreeMap::new(),
            cuts: BTreeMap::new(),
            lags: BTreeMap::new(),
            slow_until: Time(0),
            loss: hub.rng.range(0, 4),
            gone: BTreeSet::new(),
            lost: None,
            joining: BTreeSet::new(),
            wishes: Vec::new(),
            leaderless_since: Time(0),
            is_calm: false,
            cells,
        };
        hub.ring.knows(founder, true);
        cluster.add_host(hub, founder, None);
        (1..nodes).for_each(|_| cluster.wants_to_join(hub));
        hub.plan(hub.now, Event::Node(NodeEvent::Beat));
        cluster
    }

    pub fn wants_to_join(&mut self, hub: &mut Hub) {
        self.joining.insert(BootId(hub.rng.draw() | 1));
    }

    fn add_host(&mut self, hub: &mut Hub, id: NodeId, boot: Option<BootId>) {
        let boot = boot.unwrap_or_else(|| BootId(hub.rng.draw() | 1));
        let host = Host::new(&mut hub.rng, id);
        self.hosts.insert(id, host);
        if id != id_of(0) && !self.log.votes(id) {
            self.log.add_learner(id);
        }
        self.start(hub, id, boot);
    }

    /// A process of a node begins.
    fn start(&mut self, hub: &mut Hub, id: NodeId, boot: BootId) {
        let state = State::new(bits()).with_mutant(self.bugs.control);
        let host = self.hosts.get_mut(&id).expect("a host");
        host.start(hub.now, spec(boot), state, self.bugs.core);
        let life = Life { node: id, boot };
        hub.plan(hub.now, Event::Node(NodeEvent::Tick { life }));
        hub.plan(hub.now, Event::Node(NodeEvent::Deliver { node: id }));
    }

    /// The counter of a cell without copies is nearly used up.
    pub fn wind_any_counter(&mut self, hub: &mut Hub) {
        let cell = CellId(hub.rng.range(0, u64::from(bits().cells())) as u16);
        let Some(owner) = self.rules.state().cell(cell).map(|cell| cell.owner) else { return };
        let life = Life { node: owner.node, boot: owner.boot };
        let Some(process) = self.process(life) else { return };
        let worker = usize::from(cell.0) % process.workers.len();
        let worker = &mut process.workers[worker];
        let is_alone = |is: &Membership| is.owner == owner && is.copies().next().is_none();
        let serves = worker.cells.get(&cell).is_some_and(|(is, _)| is_alone(is));
        let last = worker.machine.contents(cell, false).0;
        if serves && last.counter() < Fence::COUNTER_BUMP / 2 {
            hub.reach("counters near their end");
            worker.machine.skip_ops(cell, Fence::COUNTER_BUMP - hub.rng.range(1, 40));
        }
    }

    /// An operator wants a node to leave.
    pub fn leaves(&mut self, node: NodeId) {
        self.wishes.push(Entry::Leave(node));
    }

    /// A node is gone for good, with its disk: another joins in its place.
    pub fn is_gone_for_good(&mut self, hub: &mut Hub, node: NodeId) {
        let known = self.rules.state().nodes();
        let staying = known.values().filter(|node| !node.leaving).count();
        if staying > 2 && !self.log.votes(node) && known.contains_key(&node) {
            hub.reach("nodes gone for good");
            self.ends(hub, node);
            self.gone.insert(node);
            self.wants_to_join(hub);
        }
    }

    /// The stores of all nodes are lost, and somebody begins a new log. A process of the old one
    /// may run on, cut off, until its lease ends.
    pub fn log_is_lost(&mut self, hub: &mut Hub) {
        let state = self.rules.state().clone();
        let Some((&last, _)) = state.nodes().last_key_value() else { return };
        hub.reach("logs lost");
        let of_log: Vec<NodeId> = state.nodes().keys().copied().collect();
        let survivor = Some(*hub.rng.pick(&of_log)).filter(|node| self.hosts.contains_key(node));
        let nodes: Vec<NodeId> = self.hosts.keys().copied().collect();
        for node in nodes.into_iter().filter(|&node| Some(node) != survivor) {
            self.ends(hub, node);
            self.hosts.remove(&node);
            hub.ring.knows(node, false);
        }
        let founder = NodeId(last.0 + 10);
        let floors = floors_above(&state, founder);
        self.log = self.log.recovered(founder);
        self.lost = survivor;
        if let Some(survivor) = survivor {
            self.log.add_learner(survivor);
            self.log.crash(survivor);
        }
        let seen = std::mem::take(&mut self.rules.seen);
        self.rules = Rules::new(State::new(bits()).with_mutant(self.bugs.control));
        self.rules.seen = seen;
        self.wishes.clear();
        // What was held comes back by its clients, or not at all.
        hub.fact(&Fact::Booted { keys: self.keys_of(|_| true) });
        hub.ring.knows(founder, true);
        let host = Host { founding: Some(floors), ..Host::new(&mut hub.rng, founder) };
        self.hosts.insert(founder, host);
        let boot = BootId(hub.rng.draw() | 1);
        self.start(hub, founder, boot);
        (0..hub.rng.range(1, 4)).for_each(|_| self.wants_to_join(hub));
    }

    /// The process of this life, if it is there.
    fn process(&mut self, life: Life) -> Option<&mut Process> {
        let host = self.hosts.get_mut(&life.node)?;
        host.process.as_mut().filter(|process| process.life == life)
    }

    /// A process ends, and what it had in its memory is gone.
    pub fn ends(&mut self, hub: &mut Hub, node: NodeId) {
        self.count_crash(hub, node);
        let process = self.hosts.get(&node).and_then(|host| host.process.as_ref());
        let Some(life) = process.map(|process| process.life) else { return };
        self.cut_all_of(hub, life);
        self.log.crash(node);
        if let Some(host) = self.hosts.get_mut(&node) {
            host.process = None;
        }
    }

    fn restart(&mut self, hub: &mut Hub, node: NodeId) {
        let boot = BootId(hub.rng.draw() | 1);
        let is_down = |host: &&Host| host.process.is_none() && !self.gone.contains(&node);
        if self.hosts.get(&node).filter(is_down).is_none() {
            return;
        }
        let known = self.rules.state().nodes();
        // A founder that was killed at once still has to found the log.
        if known.is_empty() || known.contains_key(&node) {
            hub.reach("node restarts");
            let known = self.rules.state().nodes().get(&node);
            if known.is_some_and(|known| known.is_up(known.spec.process.boot)) {
                hub.reach("case 11: a node boots before it was taken for dead");
            }
            self.log.restart(node);
            self.start(hub, node, boot);
        }
    }

    /// A node, or one of its workers, stands still for a while, and goes on as if nothing had
    /// happened.
    pub fn pause(&mut self, hub: &mut Hub, node: NodeId, worker: Option<usize>, span: Duration) {
        let until = hub.now.after(span);
        let first = hub.rng.percent(50);
        let Some(process) = self.hosts.get_mut(&node).and_then(|host| host.process.as_mut()) else {
            return;
        };
        let life = process.life;
        match worker {
            Some(worker) => {
                let worker = worker % process.workers.len();
                let paused = &mut process.workers[worker];
                paused.paused_until = paused.paused_until.max(until);
                paused.tick_first = first;
            }
            None => {
                process.paused_until = process.paused_until.max(until);
                process.workers.iter_mut().for_each(|worker| worker.tick_first = first);
                hub.plan(until, Event::Node(NodeEvent::Tick { life }));
            }
        }
    }

    /// The workers of a node do by no new entry until then.
    pub fn is_stuck(&mut self, node: NodeId, until: Time) {
        let process = self.hosts.get_mut(&node).and_then(|host| host.process.as_mut());
        if let Some(process) = process {
            process.stuck_until = until;
        }
    }

    /// The wall clock of a node's host jumps forward. No decision may depend on it.
    pub fn wall_clock_jumps(&mut self, node: NodeId, by: Duration) {
        let process = self.hosts.get_mut(&node).and_then(|host| host.process.as_mut());
        for worker in process.into_iter().flat_map(|process| &mut process.workers) {
            worker.machine.wall_clock_jumps(by);
        }
    }

    /// Everything works again, and stays so.
    pub fn heal(&mut self, hub: &mut Hub) {
        if let Some(lost) = self.lost.take() {
            self.ends(hub, lost);
            self.hosts.remove(&lost);
            hub.ring.knows(lost, false);
        }
        self.cuts.clear();
        self.lags.clear();
        (self.slow_until, self.loss) = (Time(0), 0);
        self.wishes.clear();
        self.hurry_stops(hub);
        self.is_calm = true;
        let now = hub.now;
        let mut lives = Vec::new();
        for (&node, host) in &mut self.hosts {
            let soon = Duration::from_millis(hub.rng.range(10, 500));
            hub.soon(soon, Event::Node(NodeEvent::Restart { node }));
            self.log.mend_store(node);
            let Some(process) = &mut host.process else { continue };
            process.paused_until = process.paused_until.min(now);
            process.stuck_until = process.stuck_until.min(now);
            for (index, worker) in process.workers.iter_mut().enumerate() {
                worker.paused_until = worker.paused_until.min(now);
                lives.push((process.life, index as u16));
            }
        }
        for at in lives {
            hub.plan(now, Event::Node(NodeEvent::Tick { life: at.0 }));
            self.arm(hub, at);
        }
    }

    /// All machines, by the numbers of their workers.
    pub fn machines(&self) -> impl Iterator<Item = (u16, &Machine)> {
        self.hosts.values().filter_map(|host| host.process.as_ref()).flat_map(|process| {
            let number = |worker| crate::way::number_of(node_of(process.life.node), worker);
            (0..).map(number).zip(process.workers.iter().map(|worker| &worker.machine))
        })
    }

    /// The machine of the worker of this number.
    pub fn machine(&self, number: u16) -> Option<&Machine> {
        let (node, worker) = parts_of(number);
        let process = self.hosts.get(&id_of(node))?.process.as_ref()?;
        process.workers.get(usize::from(worker)).map(|worker| &worker.machine)
    }

    /// How many workers a node has.
    pub fn workers_of(&self, node: usize) -> u16 {
        let process = self.hosts.get(&id_of(node)).and_then(|host| host.process.as_ref());
        process.map_or(0, |process| process.workers.len() as u16)
    }

    /// Whether another node than this is down.
    pub fn is_another_down(&self, node: usize) -> bool {
        self.hosts.values().any(|host| node_of(host.id) != node && host.process.is_none())
    }

    /// Every key of these cells.
    fn keys_of(&self, has: impl Fn(CellId) -> bool) -> BTreeSet<KeyId> {
        self.cells
            .iter()
            .filter(|&(&cell, _)| has(cell))
            .flat_map(|(_, keys)| keys)
            .copied()
            .collect()
    }

    /// Looks at the inner invariants of a machine.
    fn look_inside(&self, hub: &mut Hub, (life, worker): turns::At) {
        let machine = self.machine(crate::way::number_of(node_of(life.node), worker));
        if let Some(Err(what)) = machine.map(Machine::audit) {
            hub.accuse("the machine's own invariants", what);
        }
    }

    /// Looks at those of all machines.
    pub fn audit(&self, hub: &mut Hub) {
        for (_, machine) in self.machines() {
            if let Err(what) = machine.audit() {
                hub.accuse("the machine's own invariants", what);
            }
        }
    }

    /// Something happens to a node.
    pub fn happens(&mut self, hub: &mut Hub, keys: &Keys, event: NodeEvent) {
        match event {
            NodeEvent::Notices { way } => self.comes(hub, way, Came::Closed),
            NodeEvent::Work { life, worker } => self.work(hub, keys, (life, worker)),
            NodeEvent::Tick { life } => self.tick(hub, life),
            NodeEvent::Says { life, worker, event } => {
                if self.process(life).is_some() {
                    self.control(hub, life.node, Control::worker(worker.into(), event));
                }
            }
            NodeEvent::Message { from, to, message } => self.message(hub, (from, to), message),
            NodeEvent::Commit => self.commit(hub),
            NodeEvent::Deliver { node } => self.deliver(hub, node),
            NodeEvent::RoundEnds { node, round } => self.round_ends(hub, node, round),
            NodeEvent::Mended { node } => {
                if self.hosts.contains_key(&node) {
                    self.log.mend_store(node);
                    self.deliver(hub, node);
                }
            }
            NodeEvent::Snapshot => self.log.take_snapshot(),
            NodeEvent::Restart { node } => self.restart(hub, node),
            NodeEvent::Ends { node } => {
                hub.reach("node crashes");
                self.ends(hub, node);
            }
            NodeEvent::Stops { node } => self.stops(hub, keys, node),
            NodeEvent::StopEnds { life } => self.stop_ends(hub, life),
            NodeEvent::Asked { entry } => {
                if let Some(leader) = self.log.leader() {
                    self.control(hub, leader, Control::Asked(entry));
                }
            }
            NodeEvent::CutOff { client, until } => {
                let span = until.since(hub.now);
                for node in hub.ring.all() {
                    hub.cut_way(End::Client(client), End::Node(node), span);
                    hub.cut_way(End::Node(node), End::Client(client), span);
                }
            }
            NodeEvent::PeerStands { way } => self.stands(hub, way),
            NodeEvent::PeerFrame { way, stream, bytes, held } => {
                self.frame_is_due(hub, (way, stream), bytes, held);
            }
            NodeEvent::PeerNotices { way, stream } => self.wire_is_gone(hub, way, stream),
            NodeEvent::Beat => self.beat(hub, keys),
        }
    }

    /// A frame of a client is here.
    pub fn frame(&mut self, hub: &mut Hub, way: Way, bytes: Vec<u8>) {
        self.comes(hub, way, Came::Bytes(bytes));
    }

    fn beat(&mut self, hub: &mut Hub, keys: &Keys) {
        hub.soon(BEAT, Event::Node(NodeEvent::Beat));
        self.elections(hub);
        self.votes(hub);
        self.operators(hub);
        self.connect(hub);
        hub.plan(hub.now, Event::Node(NodeEvent::Commit));
        let nodes: Vec<NodeId> = self.hosts.keys().copied().collect();
        for node in nodes {
            hub.soon(Duration::from_millis(1), Event::Node(NodeEvent::Deliver { node }));
        }
        self.end_idle(hub);
        self.check_holds(hub, keys);
        self.count_states(hub);
    }
}
