//! A node of a run, and the process that it is at a time: a control plane, and workers, each a
//! machine with a socket and time of its own.

use crate::way::Way;
use lockring_control::cluster::{
    Control, Entry, Event as ControlEvent, Floors, Index, Life, NodeSpec, Process as ProcessSpec,
    State,
};
use lockring_core::testing::{RateClock, Rng};
use lockring_core::{
    ClusterEvent, Config, ConnId, Event, Identity, Limits, LinkIndex, Machine, Mutant, PeerWorker,
    Time,
};
use lockring_proto::{NodeAddress, RingHistory, SessionId};
use lockring_ring::{BootId, CellBits, CellId, Epoch, Member, Membership, NodeId, RingVersion};
use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

/// Cells of every cluster of a run.
pub fn bits() -> CellBits {
    CellBits::new(4).expect("few enough")
}

/// What a worker is told by its node.
#[derive(Clone, Debug)]
pub enum Order {
    /// These processes there are, with so many workers.
    Nodes(Vec<(NodeId, BootId, u16)>),
    /// An entry has changed these cells; `whole`: those that are not named are not this node's.
    Memberships {
        index: Index,
        whole: bool,
        cells: Vec<(CellId, Option<Membership>)>,
        version: RingVersion,
    },
    /// Until then it may answer.
    Lease(Time),
    /// Sessions up to this TTL may be confirmed.
    LongestTtl(Duration),
    /// A longer TTL cannot be had for now.
    TtlFailed(String),
    /// It shall state its longest TTL.
    State { round: u64, window: Duration },
    /// Clients are told of the ring of this version.
    Ring(RingVersion),
}

/// What happens on connections to other workers.
#[derive(Clone, Debug)]
pub enum Heard {
    Connected(PeerWorker),
    Lost(PeerWorker),
    Said(PeerWorker, Vec<u8>),
}

/// What came for a worker from a client.
#[derive(Debug)]
pub enum Came {
    Bytes(Vec<u8>),
    Closed,
}

/// A client at a worker.
pub struct Client {
    pub way: Way,
    pub identity: Identity,
    pub session: Option<SessionId>,
    pub link: Option<LinkIndex>,
    /// Nothing of it is read: its next request waits for what the worker is to be told.
    pub paused: bool,
}

/// A worker of a process.
pub struct Worker {
    pub machine: Machine,
    pub inbox: VecDeque<(ConnId, Came)>,
    pub heard: VecDeque<Heard>,
    /// What it is told, each not before its time, and in order.
    pub orders: VecDeque<(Time, Order)>,
    pub clients: BTreeMap<ConnId, Client>,
    pub busy_until: Time,
    pub paused_until: Time,
    /// After a pause: time first, then the socket.
    pub tick_first: bool,
    pub armed: Time,
    /// What it does by, and when by that epoch.
    pub cells: BTreeMap<CellId, (Membership, Time)>,
    /// It may answer until then, by its clock.
    pub lease: Time,
    /// The longest TTLs that it had of late, by when it had each last.
    pub ttls: BTreeMap<Duration, Time>,
    /// It has something for its peers.
    pub unsent: bool,
    pub turns: u64,
}

impl Worker {
    /// Whether a connection is read.
    pub fn pause(&mut self, conn: ConnId, paused: bool) {
        if let Some(client) = self.clients.get_mut(&conn) {
            client.paused = paused;
        }
    }

    /// The connection that is read next. While the machine takes nothing on, who has a link waits.
    pub fn readable(&self) -> Option<ConnId> {
        let waits = self.machine.takes_nothing_on();
        let is_read = |(conn, came): &&(ConnId, Came)| {
            let client = self.clients.get(conn);
            let linked = client.is_some_and(|client| client.link.is_some());
            let paused = client.is_some_and(|client| client.paused);
            !(waits && linked || paused) || matches!(came, Came::Closed)
        };
        self.inbox.iter().find(is_read).map(|&(conn, _)| conn)
    }
}

/// How far a process is that was told to stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// Its workers take no new claims.
    Draining,
    /// They have ended, with nothing held, and the log is to have that.
    Ended,
}

/// A process.
pub struct Process {
    pub life: Life,
    pub control: Control,
    pub workers: Vec<Worker>,
    pub history: Option<RingHistory>,
    /// When its control plane wants to know the time.
    pub tick_at: Time,
    /// What waits while it is stopped.
    pub waiting: VecDeque<ControlEvent>,
    pub paused_until: Time,
    /// Its workers do by nothing new until then.
    pub stuck_until: Time,
    pub stop: Option<Stop>,
    /// Which processes its workers have been told of.
    pub nodes: Vec<(NodeId, BootId, u16)>,
}

impl Process {
    /// The worker that has a cell.
    pub fn worker_of(&self, cell: CellId) -> &Worker {
        &self.workers[usize::from(cell.0) % self.workers.len()]
    }

    pub fn is_me(&self, member: &Member) -> bool {
        (member.node, member.boot) == (self.life.node, self.life.boot)
    }

    /// What its workers do by.
    pub fn told(&self) -> Vec<(CellId, Membership)> {
        let all = self.workers.iter().flat_map(|worker| &worker.cells);
        let all: BTreeMap<CellId, Membership> =
            all.map(|(&cell, (is, _))| (cell, is.clone())).collect();
        all.into_iter().collect()
    }
}

/// A node, whose processes come and go.
pub struct Host {
    pub id: NodeId,
    pub clock: RateClock,
    pub limits: Limits,
    /// What it begins a log with, of a cluster that has lost one.
    pub founding: Option<Floors>,
    pub process: Option<Process>,
    /// The last process of its data directory.
    pub last: Option<BootId>,
}

impl Host {
    pub fn new(rng: &mut Rng, id: NodeId) -> Self {
        let ppm = *rng.pick(&[-10_000, -3_000, 0, 0, 5_000, 10_000]);
        let clock = RateClock::new(rng.range(1, 1_000_000_000), ppm);
        let limits = Limits { expiry_slice: 8, turn_price: 40, ..Limits::default() };
        Self { id, clock, limits, founding: None, process: None, last: None }
    }

    pub fn is_running(&self, now: Time) -> bool {
        self.process.as_ref().is_some_and(|process| process.paused_until <= now)
    }

    /// A process begins.
    pub fn start(&mut self, now: Time, spec: NodeSpec, state: State, mutant: Option<Mutant>) {
        let shown = self.clock.shows(now);
        let after = self.last.replace(spec.process.boot);
        let (boot, count) = (spec.process.boot, spec.process.workers);
        let life = Life { node: self.id, boot };
        let founding = match &self.founding {
            Some(floors) => Entry::Recover(spec.clone(), floors.clone()),
            None => Entry::Join(spec.clone()),
        };
        let initial = (bits(), state.longest().ttl);
        let worker = |index| self.worker(shown, (index, count), boot, initial, mutant);
        let workers = (0..count).map(worker).collect();
        self.process = Some(Process {
            life,
            control: Control::new(shown, self.id, (spec, after), founding, state),
            workers,
            history: None,
            tick_at: Time::NEVER,
            waiting: VecDeque::new(),
            paused_until: now,
            stuck_until: now,
            stop: None,
            nodes: Vec::new(),
        });
    }

    fn worker(
        &self,
        shown: Time,
        (worker, workers): (u16, u16),
        boot: BootId,
        (bits, longest_ttl): (CellBits, Duration),
        mutant: Option<Mutant>,
    ) -> Worker {
        let config = Config {
            cell_bits: bits,
            worker,
            workers,
            node: self.id.0,
            boot: boot.0,
            others: (0..bits.cells() as u16).map(CellId).collect(),
            epoch: Epoch(0),
            ring_version: RingVersion(1),
            longest_ttl,
            opens_at: None,
            grace_for: String::new(),
            tag_secret: [1, 2, 3, 4],
            limits: self.limits,
        };
        let mut machine = Machine::new(config, shown).with_mutant(mutant).with_notes();
        // A process answers nothing before it has heard from its cluster.
        machine.handle(shown, Event::Cluster(ClusterEvent::Lease(Time(0))), &mut Vec::new());
        Worker {
            machine,
            inbox: VecDeque::new(),
            heard: VecDeque::new(),
            orders: VecDeque::new(),
            clients: BTreeMap::new(),
            busy_until: Time(0),
            paused_until: Time(0),
            tick_first: false,
            armed: Time::NEVER,
            cells: BTreeMap::new(),
            lease: Time(0),
            ttls: BTreeMap::new(),
            unsent: false,
            turns: 0,
        }
    }
}

/// What a process says of itself.
pub fn spec(boot: BootId) -> NodeSpec {
    let workers = [1, 2, 2, 4][(boot.0 >> 1 & 3) as usize];
    let host = format!("h{}", boot.0);
    let addresses = vec![NodeAddress { host: host.clone(), port: 7400 }];
    let process = ProcessSpec { boot, workers, addresses };
    NodeSpec { weight: 1, zone: None, host, process }
}
