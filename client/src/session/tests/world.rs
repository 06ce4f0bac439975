//! A session in a cluster whose ring is written by hand, and what it says to each node.

use super::{at, config, hears};
use crate::link::{Link, Loss, Outcome};
use crate::router::{Ring, WorkerId};
use crate::session::{Ask, ClaimRef, ClientMutant, Dial, LinkId, ReceiveError, Session};
use lockring_proto::{
    BootId, Claim, Fence, HoldId, NodeAddress, NodeInfo, Operation, Push, Reply, Request, Time,
    Welcome, codec, limits,
};
use lockring_ring::{
    CellBits, Epoch, NamespaceSeed, NodeId, Placement, RingTable, RingVersion, Run,
};
use std::sync::Arc;
use std::time::Duration;

pub(super) const CELLS: u8 = 4;

/// A request, as a node has got it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Heard {
    Acquire { id: u64, version: u64 },
    Release { id: u64, fence: Fence },
    Cancel { id: u64, target: u64 },
    Reclaim { id: u64, fence: Fence, request: u64, claim: Claim },
    Renew { id: u64 },
    Compare { id: u64, version: u64, holds: Vec<HoldId> },
    GetRing { id: u64, known: u64 },
    Force { id: u64 },
    Goodbye { id: u64 },
    Other,
}

pub(super) fn heard(request: &Request<'_>) -> Heard {
    match *request {
        Request::Keyed { id, version, operation, .. } => match operation {
            Operation::Acquire { .. } => Heard::Acquire { id, version },
            Operation::Release { fence } => Heard::Release { id, fence },
            Operation::Cancel { target } => Heard::Cancel { id, target },
            Operation::Force { .. } => Heard::Force { id },
            Operation::Reclaim { fence, request, claim } => {
                Heard::Reclaim { id, fence, request, claim }
            }
            _ => Heard::Other,
        },
        Request::Renew { id } => Heard::Renew { id },
        Request::Compare { id, version, ref holds, .. } => {
            Heard::Compare { id, version, holds: holds.clone() }
        }
        Request::GetRing { id, known } => Heard::GetRing { id, known },
        Request::Goodbye { id } => Heard::Goodbye { id },
        _ => Heard::Other,
    }
}

/// The ring, as its log has it: every node has one worker.
pub(super) struct Log {
    pub(super) version: u64,
    pub(super) boots: Vec<u64>,
    pub(super) cells: Vec<Run>,
}

impl Log {
    pub(super) fn node(&self, id: u32) -> NodeInfo {
        let addresses = vec![NodeAddress { host: String::new(), port: 7420 }];
        let boot = BootId(self.boots[id as usize - 1]);
        NodeInfo { id: NodeId(id), addresses, workers: 1, boot }
    }

    pub(super) fn table(&self) -> RingTable<NodeInfo> {
        let nodes = (1..=self.boots.len() as u32).map(|id| self.node(id)).collect();
        let bits = CellBits::new(CELLS).unwrap();
        RingTable::from_runs(RingVersion(self.version), bits, nodes, &self.cells).unwrap()
    }

    pub(super) fn ring(&self) -> Arc<Ring> {
        Arc::new(Ring::new(self.table()).unwrap())
    }

    /// A cell has another owner, with all that is in it.
    pub(super) fn moves(&mut self, cell: u16, to: u32) {
        self.version += 1;
        let run = &mut self.cells[usize::from(cell)];
        (run.epoch, run.since) = (Epoch(run.epoch.0 + 1), RingVersion(self.version));
        run.placement = Placement { owner: NodeId(to), backup: None };
    }

    /// The owner of a cell raises its epoch.
    pub(super) fn raises(&mut self, cell: u16) {
        let owner = self.cells[usize::from(cell)].placement.owner;
        self.moves(cell, owner.0);
    }

    /// A cell begins anew without a copy.
    pub(super) fn is_taken_over(&mut self, cell: u16, by: u32) {
        self.moves(cell, by);
        let run = &mut self.cells[usize::from(cell)];
        run.takeover = run.epoch;
    }
}

/// A session, the ring and the time.
pub(super) struct World {
    pub(super) session: Session,
    pub(super) log: Log,
    pub(super) now: Time,
}

pub(super) const KEY: &[u8] = b"k";

impl World {
    /// Nodes of which the first has every cell, and the second the copies. The session knows the
    /// ring and is connected.
    pub(super) fn of(nodes: u32, ttl: u64) -> Self {
        let backup = (nodes > 1).then_some(NodeId(2));
        let placement = Placement { owner: NodeId(1), backup };
        let (epoch, since) = (Epoch(1), RingVersion(1));
        let run = Run { cells: 1, placement, epoch, since, takeover: epoch };
        let boots = (1..=u64::from(nodes)).map(|id| id * 100).collect();
        let log = Log { version: 1, boots, cells: vec![run; 1 << CELLS] };
        let mut session = Session::new(config(ttl, 30_000), at(0), 1);
        let first = Some(WorkerId { node: NodeId(1), worker: 0 });
        session.contacts[0].link = Link::new(LinkId::FIRST, first, &session.shared.config, at(0));
        session.seed = Some(NamespaceSeed::of("default"));
        session.ring_is(at(0), log.ring());
        let mut world = Self { session, log, now: at(0) };
        world.connect(true);
        world
    }

    pub(super) fn cell(&self, key: &[u8]) -> u16 {
        self.session.ring().unwrap().route(NamespaceSeed::of("default"), key).cell.0
    }

    /// A key of another cell than the first's.
    pub(super) fn other(&self) -> &'static [u8] {
        let keys: [&[u8]; 6] = [b"a", b"b", b"c", b"d", b"e", b"f"];
        keys.into_iter().find(|key| self.cell(key) != self.cell(KEY)).unwrap()
    }

    /// The same with a seeded bug.
    pub(super) fn with(mut self, mutant: Option<ClientMutant>) -> Self {
        self.session.shared.mutant = mutant;
        self
    }

    /// The link to a node.
    pub(super) fn at(&self, node: u32) -> LinkId {
        let is_it = |&link: &LinkId| {
            let worker = self.session.worker(link);
            !self.session.contacts[link.index()].is_over()
                && worker.is_some_and(|worker| worker.node == NodeId(node))
        };
        self.session.links().find(is_it).unwrap()
    }

    pub(super) fn welcome(&self, link: LinkId, fresh: bool) -> Welcome {
        let node = self.session.worker(link).unwrap().node.0;
        Welcome {
            protocol: 1,
            fresh,
            incarnation: 1,
            ttl_ms: self.session.shared.config.ttl.as_millis() as u64,
            ring_version: self.log.version,
            node,
            boot: self.log.boots[node as usize - 1],
            worker: 0,
            namespace: "default".to_owned(),
        }
    }

    /// Everybody who is to be dialled welcomes the session. Hellos are not looked at.
    pub(super) fn connect(&mut self, fresh: bool) {
        while let Some(Dial { link, .. }) = self.session.next_dial(self.now) {
            self.session.connected(self.now, link);
            self.session.outgoing(link).clear();
            let welcome = self.welcome(link, fresh);
            hears(&mut self.session, self.now, link, welcome);
        }
    }

    pub(super) fn after(&mut self, millis: u64) {
        self.now = self.now.after(Duration::from_millis(millis));
    }

    pub(super) fn tick(&mut self, millis: u64) {
        self.after(millis);
        self.session.tick(self.now);
    }

    pub(super) fn takes_ring(&mut self) {
        assert!(self.session.ring_is(self.now, self.log.ring()));
    }

    pub(super) fn got(&mut self, node: u32) -> Vec<Heard> {
        let bytes = std::mem::take(self.session.outgoing(self.at(node)));
        let mut got = Vec::new();
        codec::decode_frames(&bytes, |request: Request<'_>| got.push(heard(&request))).unwrap();
        got
    }

    /// A node says that there is a newer ring.
    pub(super) fn pushes_ring(&mut self, node: u32, version: u64) {
        let mut bytes = Vec::new();
        codec::encode_frame(&Push::RingChanged { version }, &mut bytes);
        self.session.receive_pushes(self.now, self.at(node), &bytes).unwrap();
    }

    pub(super) fn hears(&mut self, node: u32, reply: &Reply) -> Result<usize, ReceiveError> {
        let mut bytes = Vec::new();
        codec::encode_frame(reply, &mut bytes);
        self.session.receive(self.now, self.at(node), &bytes)
    }

    pub(super) fn says(&mut self, node: u32, reply: &Reply) {
        self.hears(node, reply).unwrap();
    }

    pub(super) fn told(&mut self) -> Vec<Outcome> {
        std::mem::take(self.session.outcomes())
    }

    pub(super) fn asks(&mut self, token: u64, key: &[u8]) -> ClaimRef {
        let ask = Ask { token, key, wanted: Claim::EXCLUSIVE, wait: None };
        self.session.acquire(self.now, &ask)
    }

    /// Node 1 grants a key.
    pub(super) fn holds(&mut self, key: &[u8]) -> (ClaimRef, Fence, u64) {
        let claim = self.asks(1, key);
        let id = self.acquired(1);
        let (version, fence) = (self.log.version, Fence::new(Epoch(1), id));
        self.says(1, &Reply::Granted { id, version, fence });
        assert!(self.session.is_held(claim));
        self.told();
        (claim, fence, id)
    }

    /// The last acquire that has come to a node.
    pub(super) fn acquired(&mut self, node: u32) -> u64 {
        let is_it = |heard: &Heard| match *heard {
            Heard::Acquire { id, .. } => Some(id),
            _ => None,
        };
        self.got(node).iter().filter_map(is_it).next_back().expect("an acquire")
    }

    pub(super) fn renewal(&mut self, node: u32) -> u64 {
        let is_it = |heard: &Heard| match *heard {
            Heard::Renew { id } => Some(id),
            _ => None,
        };
        self.got(node).iter().find_map(is_it).expect("a renewal")
    }

    pub(super) fn renews(&mut self, node: u32, id: u64, (version, settled): (u64, u64)) {
        let digest = self.session.digest(self.at(node));
        self.says(node, &Reply::Renewed { id, version, settled, digest });
    }

    pub(super) fn believed(&self, claim: ClaimRef) -> Time {
        self.session.believed(claim).expect("it is held")
    }
}

/// Until when what was sent at `sent` is believed, at a TTL of ten seconds.
pub(super) fn until(sent: Time) -> Time {
    sent.after(limits::believed(Duration::from_secs(10)))
}

pub(super) fn is_lost(told: &[Outcome], of: ClaimRef, why: Loss) -> bool {
    told.iter().any(|told| {
        matches!(told, Outcome::Lost { claim, reason, .. } if *claim == of && *reason == why)
    })
}
