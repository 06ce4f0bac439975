//! Every state that a node's machine comes to, once: what an event makes of one is computed once,
//! however many states of the whole have it. The machines are those of production.

use super::logs::{LogId, Logs};
use super::names::{Answer, Ask, CELL, CLIENTS, KEY, Message, NOW, Process, Told, Wish};
use lockring_core::{
    Access, Action, ClusterEvent, Config, ConnId, Event, Identity, Limits, LinkIndex, Machine,
    Mutant,
};
use lockring_proto::{
    Claim, Fence, Hello, Namespace, Operation, PROTOCOL, Reply, Request, SessionId, Time, Wait,
    limits,
};
use lockring_ring::{AttachId, BootId, CellBits, CellId, Epoch, NamespaceSeed, RingVersion};
use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex};

/// A state of a node's machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct MachineId(pub u32);

/// What happens to a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Stimulus {
    Asked(u8, Ask),
    Heard(Process, Message),
    Connected(Process),
    Lost(Process),
    /// The node's lease goes on, or is over.
    Lease(bool),
    /// It applies the last entry of this log.
    Applied(LogId),
}

/// What a node does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    Send(Process, Message),
    Answer(u8, Answer),
    Synced(AttachId),
}

/// What comes of an event.
#[derive(Clone, Debug)]
pub enum Outcome {
    Next(MachineId, Vec<Effect>),
    /// The request is to be given again.
    NotTaken,
    /// It panics, or what it has does not add up.
    Unsound,
}

/// A machine, and what the model looks at.
pub struct Node {
    /// Its state is never changed, but looking things up counts.
    machine: Mutex<Machine>,
    links: [LinkIndex; CLIENTS as usize],
    pub version: u64,
    /// The ring version that made the epoch in which it owns the cell.
    pub since: Option<u64>,
    /// Fences that are held, as it owns the cell or as its copy.
    pub holds: Vec<Fence>,
}

#[derive(Default)]
struct Tables {
    nodes: Vec<Arc<Node>>,
    by_view: BTreeMap<(u64, u64), MachineId>,
    steps: BTreeMap<(MachineId, Stimulus), Outcome>,
    messages: Vec<Arc<Vec<u8>>>,
    by_bytes: BTreeMap<Arc<Vec<u8>>, Message>,
}

/// All states so far.
pub struct Machines {
    tables: Mutex<Tables>,
    mutant: Option<Mutant>,
}

impl Machines {
    pub fn new(mutant: Option<Mutant>) -> Self {
        Self { tables: Mutex::default(), mutant }
    }

    pub fn node(&self, id: MachineId) -> Arc<Node> {
        Arc::clone(&self.tables.lock().expect("nobody panics here").nodes[id.0 as usize])
    }

    pub fn bytes(&self, message: Message) -> Arc<Vec<u8>> {
        Arc::clone(&self.tables.lock().expect("as above").messages[message.0 as usize])
    }

    /// A process begins, with an empty memory and its clients' links, by the log that its node had
    /// applied before.
    pub fn begin(&self, me: Process, others: &[Process], log: LogId, logs: &Logs) -> MachineId {
        let config = Config {
            cell_bits: CellBits::new(1).expect("two cells"),
            worker: 0,
            workers: 1,
            node: me.id().0,
            boot: me.boot().0,
            others: [CellId(0), CellId(1)].into(),
            epoch: Epoch(1),
            ring_version: RingVersion(1),
            longest_ttl: limits::TTL_MAX,
            opens_at: None,
            tag_secret: [1, 2, 3, 4],
            grace_for: String::new(),
            limits: Limits::default(),
        };
        let machine = Machine::new(config, NOW).with_mutant(self.mutant);
        let links = [LinkIndex(0); CLIENTS as usize];
        let machine = Mutex::new(machine);
        let mut node = Node { machine, links, version: 0, since: None, holds: Vec::new() };
        let mut out = Vec::new();
        let log = logs.get(log);
        for (&id, its) in log.state.nodes() {
            node.knows(id, its.spec.process.boot, &mut out);
        }
        for other in others {
            node.cluster(ClusterEvent::PeerConnected(other.peer()), &mut out);
        }
        for client in 0..CLIENTS {
            node.hello(client, &mut out);
        }
        let all = log.state.memberships(me.life()).into_iter();
        let ours = all.filter(|(cell, _)| *cell == CELL).map(|(cell, is)| (cell, Some(is)));
        let changed: Vec<_> = ours.collect();
        let version = log.state.version();
        node.cluster(ClusterEvent::Memberships { changed: &changed, version }, &mut out);
        node.rest(&mut out);
        self.intern(node)
    }

    /// What comes of an event.
    pub fn step(&self, at: MachineId, me: Process, what: Stimulus, logs: &Logs) -> Outcome {
        if let Some(known) = self.tables.lock().expect("as above").steps.get(&(at, what)) {
            return known.clone();
        }
        let before = self.node(at);
        let done = catch_unwind(AssertUnwindSafe(|| self.run(&before, me, what, logs)));
        let outcome = match done {
            Ok(Some((mut node, out))) => match node.machine().audit() {
                Ok(()) => {
                    let effects = out.into_iter().filter_map(|it| self.effect(it)).collect();
                    Outcome::Next(self.intern(node), effects)
                }
                Err(_) => Outcome::Unsound,
            },
            Ok(None) => Outcome::NotTaken,
            Err(_) => Outcome::Unsound,
        };
        let mut tables = self.tables.lock().expect("as above");
        tables.steps.entry((at, what)).or_insert(outcome).clone()
    }

    fn run(
        &self,
        before: &Node,
        me: Process,
        what: Stimulus,
        logs: &Logs,
    ) -> Option<(Node, Vec<Action>)> {
        let machine = Mutex::new(before.machine.lock().expect("nobody panics here").clone());
        let mut node = Node { machine, holds: Vec::new(), ..*before };
        let out = &mut Vec::new();
        match what {
            Stimulus::Asked(client, ask) => node.ask(client, ask, out).then_some(())?,
            Stimulus::Heard(from, message) => {
                let bytes = self.bytes(message);
                node.cluster(ClusterEvent::Peer { peer: from.peer(), bytes: &bytes }, out);
            }
            Stimulus::Connected(peer) => {
                node.cluster(ClusterEvent::PeerConnected(peer.peer()), out);
            }
            Stimulus::Lost(peer) => node.cluster(ClusterEvent::PeerLost(peer.peer()), out),
            Stimulus::Lease(runs) => {
                node.cluster(ClusterEvent::Lease(if runs { Time::NEVER } else { NOW }), out);
            }
            Stimulus::Applied(log) => {
                let log = logs.get(log);
                for (&id, its) in log.state.nodes() {
                    node.knows(id, its.spec.process.boot, out);
                }
                let mut changed = log.applied.memberships(&log.state, me.life());
                changed.retain(|(cell, _)| *cell == CELL);
                let version = log.state.version();
                node.cluster(ClusterEvent::Memberships { changed: &changed, version }, out);
            }
        }
        node.rest(out);
        Some((node, std::mem::take(out)))
    }

    fn intern(&self, mut node: Node) -> MachineId {
        node.look();
        let view = node.machine().cluster_view();
        let hash = |salt: u8| {
            let mut hasher = DefaultHasher::new();
            (salt, &view).hash(&mut hasher);
            hasher.finish()
        };
        let key = (hash(0), hash(1));
        let mut tables = self.tables.lock().expect("as above");
        let next = MachineId(tables.nodes.len() as u32);
        let id = *tables.by_view.entry(key).or_insert(next);
        if id == next {
            tables.nodes.push(Arc::new(node));
        }
        id
    }

    fn effect(&self, action: Action) -> Option<Effect> {
        match action {
            Action::Peer { peer, bytes } => {
                let mut tables = self.tables.lock().expect("as above");
                let next = Message(tables.messages.len() as u32);
                let message = *tables.by_bytes.entry(Arc::clone(&bytes)).or_insert(next);
                if message == next {
                    tables.messages.push(bytes);
                }
                Some(Effect::Send(Process::of(peer.node, peer.boot), message))
            }
            Action::Reply { conn, reply } => {
                let told = match reply {
                    Reply::Granted { fence, .. } => Told::Granted(fence),
                    Reply::Released { .. } | Reply::NotHeld { .. } => Told::Ended,
                    Reply::Moved { .. } => Told::Moved,
                    // Nothing follows from it for its client.
                    Reply::Queued { .. } => return None,
                    other => panic!("{other:?}"),
                };
                Some(Effect::Answer(conn.0 as u8 - 1, Answer { id: reply.id(), told }))
            }
            Action::Synced { attach, .. } => Some(Effect::Synced(attach)),
            other => panic!("{other:?}"),
        }
    }
}

impl Node {
    fn machine(&mut self) -> &mut Machine {
        self.machine.get_mut().expect("nobody panics here")
    }

    fn cluster(&mut self, event: ClusterEvent<'_>, out: &mut Vec<Action>) {
        self.machine().handle(NOW, Event::Cluster(event), out);
    }

    fn knows(&mut self, node: lockring_ring::NodeId, boot: BootId, out: &mut Vec<Action>) {
        self.cluster(ClusterEvent::Node { node, boot, workers: 1 }, out);
    }

    fn hello(&mut self, client: u8, out: &mut Vec<Action>) {
        let identity = Identity {
            namespace: Namespace::default(),
            name: "client".to_owned(),
            access: Access::User,
            ttl_max: limits::TTL_MAX,
        };
        let hello = Hello {
            protocol: PROTOCOL,
            session: SessionId([client + 1; 16]),
            incarnation: 1,
            ttl_ms: 3_600_000,
            ring_version: 1,
            ids_after: 0,
            label: "",
        };
        let conn = ConnId(u64::from(client) + 1);
        self.machine().handle(NOW, Event::Opened { conn, identity: &identity, hello }, out);
        match out.pop() {
            Some(Action::Welcome { link, .. }) => self.links[usize::from(client)] = link,
            other => panic!("{other:?}"),
        }
    }

    fn ask(&mut self, client: u8, ask: Ask, out: &mut Vec<Action>) -> bool {
        let wait = Wait::Forever;
        let operation = match ask.wish {
            Wish::Acquire => Operation::Acquire { claim: Claim::EXCLUSIVE, wait },
            Wish::Release(fence) => Operation::Release { fence },
        };
        let requests = [Request::Keyed { id: ask.id, version: ask.version, operation, key: KEY }];
        let conn = ConnId(u64::from(client) + 1);
        let link = self.links[usize::from(client)];
        self.machine().handle(NOW, Event::Requests { conn, link, requests: &requests }, out) == 1
    }

    /// The turn ends: what is due is done, and what was gathered for peers is sent.
    fn rest(&mut self, out: &mut Vec<Action>) {
        for _ in 0..100 {
            self.cluster(ClusterEvent::Flush, out);
            if self.machine().next_deadline().is_none_or(|due| due > NOW) {
                return;
            }
            self.machine().handle(NOW, Event::Tick, out);
        }
        panic!("a turn does not end");
    }

    fn look(&mut self) {
        self.version = self.machine().version().0;
        let seed = NamespaceSeed::of(Namespace::default().as_str());
        self.since = self.machine().owned_since(seed, KEY);
        let is_copy = self.since.is_none();
        let (_, contents) = self.machine().contents(CELL, is_copy);
        let holders = contents.into_values().flat_map(|(holders, _)| holders);
        self.holds = holders.map(|(_, fence)| fence).collect();
    }
}
