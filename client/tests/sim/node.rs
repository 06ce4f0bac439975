//! A node of a run: its workers, each a machine with a socket and time of its own, and the
//! control plane as far as it matters to them.

mod control;
mod facts;
mod reading;
mod stop;

use crate::agenda::{NodeEvent, Order};
use crate::hub::{Event, Hub};
use crate::keys::Keys;
use crate::ring::{Copy, id_of};
use crate::way::{Way, number_of};
use control::{Plane, tell_ring};
pub use facts::audit;
use facts::{Asked, Reader, account, freed, says_fresh, tell_answers};
use lockring_control::alone::Event as Control;
use lockring_core::testing::{Fact, KeyId, RateClock, Stream};
use lockring_core::{
    Action, CloseReason, Config, ConnId, Event as Input, Identity, Limits, Machine, Mutant, Time,
};
use lockring_proto::{Hello, RefusalKind, Reply, Request, RingHistory, SessionId, codec};
use lockring_ring::{CellId, RingTable};
use reading::{Came, Peer};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

/// Simulated cost of an event, of each request in it, and of each hold or waiter that it frees of
/// itself. The last is far dearer than in life, so that a few hundred do what a million do there.
const EVENT: Duration = Duration::from_micros(5);
const REQUEST: Duration = Duration::from_micros(10);
const FREED: Duration = Duration::from_micros(300);

struct Worker {
    machine: Machine,
    reader: Reader,
    inbox: VecDeque<(Time, ConnId, Came)>,
    orders: VecDeque<Order>,
    peers: BTreeMap<ConnId, Peer>,
    busy_until: Time,
    paused_until: Time,
    /// After a pause: time first, then the socket.
    tick_first: bool,
    armed: Time,
    /// When the lease of a session ends, as of its last frame.
    leases: BTreeMap<SessionId, Time>,
    turns: u64,
}

/// A node.
pub struct Node {
    index: usize,
    /// All keys of its cells.
    keys: BTreeSet<KeyId>,
    clock: RateClock,
    mutant: Option<Mutant>,
    workers: Vec<Worker>,
    plane: Plane,
    /// As far as it knows.
    ring: Copy,
    history: RingHistory,
    opens_at: Option<Time>,
    up: bool,
    limits: Limits,
    /// The seeded bug of that name.
    pub clean_in_grace: bool,
}

impl Node {
    pub fn new(hub: &mut Hub, keys: &Keys, index: usize, mutant: Option<Mutant>) -> Self {
        let ppm = *hub.rng.pick(&[-10_000, 0, 10_000]);
        let mut limits = Limits { expiry_slice: 8, turn_price: 40, ..Limits::default() };
        if hub.rng.percent(20) {
            (limits.waiters_per_link, limits.holds_per_link) = (2, 60);
        }
        let clock = RateClock::new(hub.rng.range(1, 1_000_000_000), ppm);
        let plane = Plane::new(clock.shows(hub.now));
        let mut node = Self {
            index,
            keys: keys.of_cells(hub.ring.newest().bits(), |cell| hub.ring.owner(cell) == index),
            clock,
            mutant,
            workers: Vec::new(),
            ring: Copy::clone(hub.ring.newest()),
            history: RingHistory::new(RingTable::clone(hub.ring.newest())),
            plane,
            opens_at: None,
            up: false,
            limits,
            clean_in_grace: false,
        };
        let workers = node.ring.nodes()[index].workers;
        node.start(hub, workers);
        node
    }

    fn start(&mut self, hub: &mut Hub, workers: u16) {
        self.up = true;
        let local = self.clock.shows(hub.now);
        let grace = self.plane.begin_life(local, workers);
        self.opens_at = grace.map(|grace| local.after(grace.span));
        let log = self.plane.log();
        let (life, epoch) = ((workers, log.boot), log.epoch_floor);
        hub.ring.booted(self.index, life, epoch, log.ring_version());
        tell_ring(hub, self.index);
        self.ring = Copy::clone(hub.ring.newest());
        self.history = RingHistory::new(RingTable::clone(&self.ring));
        self.workers = (0..workers).map(|index| self.worker(hub, index, workers)).collect();
        for worker in 0..workers {
            self.arm(hub, worker);
        }
        self.arm_control(hub);
    }

    fn worker(&self, hub: &mut Hub, index: u16, workers: u16) -> Worker {
        let others = hub.ring.others(self.index);
        let config = Config {
            cell_bits: self.ring.bits(),
            worker: index,
            workers,
            node: id_of(self.index).0,
            boot: self.plane.log().boot.0,
            others: others.clone(),
            epoch: self.plane.log().epoch_floor,
            ring_version: self.ring.version(),
            longest_ttl: self.plane.log().longest_ttl,
            opens_at: self.opens_at,
            grace_for: String::new(),
            tag_secret: [1, 2, 3, 4],
            limits: self.limits,
        };
        let machine = Machine::new(config, self.clock.shows(hub.now));
        let mut machine = machine.with_mutant(self.mutant).with_notes();
        // Some cells are about to want their next epoch.
        let is_own = |cell: &CellId| cell.0 % workers == index && !others.contains(cell);
        for cell in self.ring.cells().filter(is_own) {
            if hub.rng.percent(20) {
                let left = hub.rng.range(1, 60);
                // A few are used up before that is answered.
                let end = if hub.rng.percent(20) {
                    lockring_proto::Fence::COUNTER_LAST
                } else {
                    lockring_proto::Fence::COUNTER_BUMP
                };
                machine.wind_counter(cell, end - left);
            }
        }
        Worker {
            reader: Reader::new(number_of(self.index, index), &machine),
            machine,
            inbox: VecDeque::new(),
            orders: VecDeque::new(),
            peers: BTreeMap::new(),
            busy_until: hub.now,
            paused_until: hub.now,
            tick_first: false,
            armed: Time::NEVER,
            leases: BTreeMap::new(),
            turns: 0,
        }
    }

    pub fn is_up(&self) -> bool {
        self.up
    }

    pub fn workers(&self) -> u16 {
        self.workers.len() as u16
    }

    /// Its machines, by the numbers of their workers in the run.
    pub fn machines(&self) -> impl Iterator<Item = (u16, &Machine)> {
        let numbers = (0..).map(|worker| number_of(self.index, worker));
        numbers.zip(self.workers.iter().map(|worker| &worker.machine))
    }

    pub fn machine(&self, worker: u16) -> Option<&Machine> {
        self.workers.get(worker as usize).map(|worker| &worker.machine)
    }

    pub fn index(&self) -> usize {
        self.index
    }

    /// The longest lease in use, as the control plane knows it.
    pub fn longest(&self) -> Duration {
        self.plane.log().longest_ttl
    }

    /// Until when a worker honours the holds of a session, on the recorder's clock.
    pub fn honours_until(&self, worker: u16, session: SessionId) -> Option<Time> {
        let machine = &self.workers.get(worker as usize)?.machine;
        machine.honours_until(session).filter(|_| self.up).map(|local| self.clock.real(local))
    }

    /// The process is killed.
    pub fn crash(&mut self, hub: &mut Hub) {
        self.up = false;
        hub.fact(&Fact::Died { keys: self.keys.clone() });
        self.plane.dies(hub);
        for worker in &mut self.workers {
            for peer in std::mem::take(&mut worker.peers).into_values() {
                let notices = Duration::from_micros(hub.rng.range(0, 500_000));
                hub.cut(peer.way, notices);
            }
            worker.inbox.clear();
            account(hub, &worker.machine.stats());
        }
    }

    /// It starts again: no memory, the next epoch, and grants wait until old leases have ended.
    pub fn boot(&mut self, hub: &mut Hub) {
        hub.fact(&Fact::Booted { keys: self.keys.clone() });
        hub.reach("node restarts");
        let before = self.workers();
        let workers = if hub.rng.percent(30) { *hub.rng.pick(&[1, 2, 4]) } else { before };
        if workers != before {
            hub.reach("restarts with other workers");
            if hub.ring.nodes() > 1 {
                hub.reach("restarts with other workers among several nodes");
            }
        }
        self.start(hub, workers);
    }

    /// The last numbers of a machine.
    pub fn settle_accounts(&self, hub: &mut Hub) {
        for worker in &self.workers {
            account(hub, &worker.machine.stats());
        }
    }

    /// A worker, or all of them, stand still.
    pub fn pause_any(&mut self, hub: &mut Hub, span: Duration) {
        let worker = hub.rng.range(0, u64::from(self.workers()) + 1) as u16;
        let worker = (worker < self.workers()).then_some(worker);
        let until = hub.now.after(span);
        hub.fact(&Fact::Stalled { span });
        for (index, paused) in self.workers.iter_mut().enumerate() {
            if worker.is_none_or(|worker| worker as usize == index) {
                paused.paused_until = paused.paused_until.max(until);
                paused.tick_first = hub.rng.percent(50);
            }
        }
    }

    /// Nobody stands still any more, and no write fails.
    pub fn resume(&mut self, hub: &mut Hub) {
        self.plane.is_sound();
        for worker in 0..self.workers() {
            let paused = &mut self.workers[worker as usize];
            paused.paused_until = paused.paused_until.min(hub.now);
            self.arm(hub, worker);
        }
    }

    pub fn wall_clock_jumps(&mut self, by: Duration) {
        for worker in &mut self.workers {
            worker.machine.wall_clock_jumps(by);
        }
    }

    /// A connection stands. `false`: nobody is there.
    pub fn accept(&mut self, way: Way, identity: Identity) -> bool {
        let Some(worker) = self.workers.get_mut(way.worker as usize).filter(|_| self.up) else {
            return false;
        };
        let peer = Peer::new(way, identity);
        worker.peers.insert(way.conn, peer);
        true
    }

    /// A frame has come.
    pub fn frame(&mut self, hub: &mut Hub, way: Way, bytes: Vec<u8>) {
        self.comes(hub, way, Came::Bytes(bytes));
    }

    /// The end of a connection has come.
    pub fn notices(&mut self, hub: &mut Hub, way: Way) {
        self.comes(hub, way, Came::Closed);
    }

    /// Something comes on a connection, if it is of this life.
    fn comes(&mut self, hub: &mut Hub, way: Way, came: Came) {
        let worker = self.workers.get_mut(way.worker as usize);
        if let Some(worker) = worker.filter(|worker| worker.peers.contains_key(&way.conn)) {
            worker.inbox.push_back((hub.now, way.conn, came));
            self.arm(hub, way.worker);
        }
    }

    /// Plans the next turn of a worker.
    fn arm(&mut self, hub: &mut Hub, index: u16) {
        let worker = &mut self.workers[index as usize];
        let free = worker.busy_until.max(worker.paused_until).max(hub.now);
        let at = if worker.readable().is_none() && worker.orders.is_empty() {
            let deadline = worker.machine.next_deadline().unwrap_or(Time::NEVER);
            self.clock.real(deadline).max(free)
        } else {
            free
        };
        if at < worker.armed {
            worker.armed = at;
            hub.plan(at, Event::Node(NodeEvent::Work { node: self.index, worker: index }));
        }
    }

    /// A turn of a worker: one thing, if it is free to do it.
    pub fn work(&mut self, hub: &mut Hub, keys: &Keys, index: u16) {
        let Some(worker) = self.workers.get_mut(index as usize) else { return };
        if worker.armed != hub.now || !self.up {
            return;
        }
        worker.armed = Time::NEVER;
        if hub.now >= worker.busy_until.max(worker.paused_until) {
            let local = self.clock.shows(hub.now);
            let due = worker.machine.next_deadline().is_some_and(|at| at <= local);
            if due && worker.tick_first {
                self.turn(hub, keys, index, Input::Tick, 0);
            } else if let Some(order) = worker.orders.pop_front() {
                self.order(hub, keys, index, &order);
            } else if worker.readable().is_some() {
                self.read(hub, keys, index);
            } else if due {
                self.turn(hub, keys, index, Input::Tick, 0);
            }
            self.workers[index as usize].tick_first = false;
        }
        self.arm(hub, index);
    }

    fn order(&mut self, hub: &mut Hub, keys: &Keys, index: u16, order: &Order) {
        let event = match order {
            Order::LongestTtl(ttl) => Input::LongestTtl(*ttl),
            Order::TtlFailed(why) => Input::TtlFailed(why),
            &Order::Epoch(cell, epoch, version) => Input::EpochRaised { cell, epoch, version },
            &Order::State { round } => return self.states(hub, index, round),
        };
        self.turn(hub, keys, index, event, 0);
    }

    /// Reads all that has come on the connection that came first, as the real worker does.
    fn read(&mut self, hub: &mut Hub, keys: &Keys, index: u16) {
        let worker = &mut self.workers[index as usize];
        let Some((arrived, conn)) = worker.readable() else { return };
        let waited = hub.now.since(arrived.max(worker.paused_until));
        hub.fact(&Fact::Read { waited });
        let mut came = Vec::new();
        worker.inbox.retain_mut(|(_, of, what)| {
            if *of == conn {
                came.push(std::mem::replace(what, Came::Closed));
            }
            *of != conn
        });
        let (mut bytes, mut closed) = (Vec::new(), false);
        for what in came {
            match what {
                Came::Bytes(more) if !closed => bytes.extend_from_slice(&more),
                Came::Bytes(_) => {}
                Came::Closed => closed = true,
            }
        }
        let rest = self.serve(hub, keys, index, conn, &bytes);
        let worker = &mut self.workers[index as usize];
        if !closed && !rest.is_empty() {
            // It has its next turn after everybody else.
            hub.reach("turns that were over early");
            worker.inbox.push_back((hub.now, conn, Came::Bytes(rest)));
        }
        let peers = &mut worker.peers;
        if closed && let Some(link) = peers.remove(&conn).and_then(|peer| peer.link) {
            self.turn(hub, keys, index, Input::Closed { conn, link }, 0);
        }
    }

    /// Runs what has come on a connection; what is left of it has to wait.
    fn serve(
        &mut self,
        hub: &mut Hub,
        keys: &Keys,
        index: u16,
        conn: ConnId,
        bytes: &[u8],
    ) -> Vec<u8> {
        let mut rest = bytes;
        let peer = self.workers[index as usize].peers.get_mut(&conn).expect("looked up before");
        if peer.session.is_none()
            && let Ok(Some((body, after))) = codec::split_frame(rest)
        {
            rest = after;
            let hello: Hello<'_> = codec::decode_frame(body).expect("a hello comes first");
            peer.session = Some(hello.session);
            let identity = peer.identity.clone();
            self.turn(hub, keys, index, Input::Opened { conn, identity: &identity, hello }, 1);
        }
        let mut requests: Vec<Request<'_>> = Vec::new();
        let mut starts = vec![rest];
        while let Ok(Some((body, after))) = codec::split_frame(rest) {
            requests.push(codec::decode_frame(body).expect("a request"));
            starts.push(after);
            rest = after;
        }
        let peer = &self.workers[index as usize].peers[&conn];
        if let (Some(link), false) = (peer.link, requests.is_empty()) {
            let cost = requests.len() as u32;
            let event = Input::Requests { conn, link, requests: &requests };
            let taken = self.turn(hub, keys, index, event, cost);
            return starts[taken].to_vec();
        }
        Vec::new()
    }

    /// Runs the machine on one event and sorts out what came of it.
    fn turn(
        &mut self,
        hub: &mut Hub,
        keys: &Keys,
        index: u16,
        event: Input<'_>,
        requests: u32,
    ) -> usize {
        let local = self.clock.shows(hub.now);
        let worker = &mut self.workers[index as usize];
        let before = worker.machine.stats();
        let (conn, asked) = match event {
            Input::Requests { conn, requests, .. } => (Some(conn), requests),
            _ => (None, [].as_slice()),
        };
        let peer = conn.and_then(|conn| worker.peers.get(&conn));
        let space = peer.map_or("", |peer| peer.identity.namespace.as_str()).to_owned();
        let asked: Vec<Asked> =
            asked.iter().map(|request| Asked::of(request, &worker.machine, keys, &space)).collect();
        let mut actions = Vec::new();
        let taken = worker.machine.handle(local, event, &mut actions);
        let after = worker.machine.stats();
        let freed = (freed(&after) - freed(&before)) as u32;
        // A claim frees the one dead hold in its way, which costs no more than a release.
        let in_the_way = freed.min(requests);
        let (asked_for, of_itself) = (requests + in_the_way, freed - in_the_way);
        let done = hub.now.after(EVENT + REQUEST * asked_for + FREED * of_itself);
        if in_the_way > 0 {
            hub.reach("dead holds freed by a claim");
        }
        worker.busy_until = done;
        let grace = self.opens_at.is_some_and(|at| local < at);
        self.tell_notes(hub, keys, index, local);
        let from = conn.and_then(|conn| self.session(index, conn).map(|session| (conn, session)));
        if let Some(from) = from {
            tell_answers(hub, &asked, &actions, from);
        }
        if grace && after.enqueued > before.enqueued {
            hub.reach("waits in grace");
        }
        if after.resumed_links > before.resumed_links && says_fresh(&actions) {
            hub.reach("welcomes said fresh again");
        }
        if let Some(conn) = conn.filter(|_| after.stale > before.stale) {
            hub.fact(&Fact::Ignored { conn });
        }
        if let Some((_, session)) = from
            && let Some(end) = self.honours_until(index, session)
        {
            self.workers[index as usize].leases.insert(session, end);
        }
        let machine = &self.workers[index as usize].machine;
        let used_up = machine.has_used_up_cell();
        if used_up {
            hub.reach("used-up counters");
        }
        let unserved = machine.unserved().map(|(space, key)| keys.id_named(space, key)).collect();
        let worker = number_of(self.index, index);
        hub.fact(&Fact::Turn { worker, grace: grace || used_up, unserved });
        for action in actions {
            self.act(hub, index, action, done);
        }
        self.look_inside(hub, index);
        taken
    }

    fn session(&self, index: u16, conn: ConnId) -> Option<SessionId> {
        self.workers[index as usize].peers.get(&conn).and_then(|peer| peer.session)
    }

    /// Now and then the machine's inner invariants are looked at.
    fn look_inside(&mut self, hub: &mut Hub, index: u16) {
        let worker = &mut self.workers[index as usize];
        worker.turns += 1;
        if worker.turns.is_multiple_of(128) {
            audit(hub, &worker.machine);
        }
    }

    fn tell_notes(&mut self, hub: &mut Hub, keys: &Keys, index: u16, now: Time) {
        let worker = &mut self.workers[index as usize];
        let notes = worker.machine.take_notes();
        for fact in worker.reader.tell(&notes, &worker.machine, now, keys) {
            if let Fact::Dead { session, expired: true, .. } = fact
                && let Some(lease_end) = worker.leases.remove(&session)
            {
                let unread = worker.inbox.iter().find(|(_, conn, _)| {
                    worker.peers.get(conn).is_some_and(|peer| peer.session == Some(session))
                });
                if let Some(&(unread, ..)) = unread {
                    hub.fact(&Fact::Overlooked { unread, lease_end });
                }
            }
            if let Fact::Granted { session, request, .. } = fact
                && hub.undoing.contains(&(session, request))
            {
                hub.reach("grants that raced a cancel");
            }
            hub.fact(&fact);
        }
        if let Err(what) = worker.reader.check(&notes, &worker.machine) {
            hub.accuse("the ops alone make the same locks", what);
        }
    }

    /// Does what the machine asks of the world.
    fn act(&mut self, hub: &mut Hub, index: u16, action: Action, at: Time) {
        let worker = &mut self.workers[index as usize];
        let mut bytes = Vec::new();
        match action {
            Action::Welcome { conn, link, reply } => {
                let Some(peer) = worker.peers.get_mut(&conn) else { return };
                peer.link = Some(link);
                codec::encode_frame(&*reply, &mut bytes);
                hub.send(peer.way, Stream::Replies, &bytes, at);
            }
            Action::Refuse { conn, reply } => {
                let Some(peer) = worker.peers.get(&conn) else { return };
                codec::encode_frame(&*reply, &mut bytes);
                hub.send(peer.way, Stream::Replies, &bytes, at);
                self.hang_up(hub, index, conn, false);
            }
            Action::Reply { conn, reply } => self.send(hub, index, conn, &reply, at),
            Action::Push { conn, push } => {
                let Some(peer) = worker.peers.get(&conn) else { return };
                codec::encode_frame(&push, &mut bytes);
                hub.send(peer.way, Stream::Pushes, &bytes, at);
            }
            Action::Close { conn, reason } => {
                self.hang_up(hub, index, conn, reason == CloseReason::Superseded);
            }
            Action::SendRing { conn, id, known } => {
                for reply in self.history.answers(id, known) {
                    if matches!(&reply, Reply::Ring { chunk, .. } if chunk.base.is_some()) {
                        hub.reach("rings told as what has changed");
                    }
                    self.send(hub, index, conn, &reply, at);
                }
            }
            Action::RaiseLongestTtl(ttl) => {
                hub.reach("longest TTL raises");
                let (worker, by) = (usize::from(index), String::new());
                self.control(hub, Control::TtlAsked { worker, ttl, by });
            }
            Action::WantEpoch(cell) => self.control(hub, Control::EpochAsked(cell)),
            Action::Pause(conn) => {
                hub.reach("requests of a newer ring");
                worker.read_from(conn, Time::NEVER);
            }
            Action::Resume(conn) => worker.read_from(conn, hub.now),
            other => unreachable!("for nodes that know each other: {other:?}"),
        }
    }

    fn send(&self, hub: &mut Hub, index: u16, conn: ConnId, reply: &Reply, at: Time) {
        if let Reply::Refused { refusal, .. } = reply
            && matches!(refusal.kind, RefusalKind::Draining | RefusalKind::Unavailable)
        {
            hub.reach("claims refused for now");
        }
        if let Some(peer) = self.workers[index as usize].peers.get(&conn) {
            let mut bytes = Vec::new();
            codec::encode_frame(reply, &mut bytes);
            hub.send(peer.way, Stream::Replies, &bytes, at);
        }
    }

    /// The worker ends a connection. The peer stays known until its end is noticed, so that what it
    /// still sends reaches the machine.
    fn hang_up(&mut self, hub: &mut Hub, index: u16, conn: ConnId, superseded: bool) {
        if let Some(peer) = self.workers[index as usize].peers.get(&conn) {
            hub.hang_up(peer.way, superseded);
        }
    }
}
