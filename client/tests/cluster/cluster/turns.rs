//! The turns of workers: what comes in, and what the machine asks of the world.

use super::Cluster;
use super::process::{Came, Client, Heard, Order, Process, Worker};
use crate::agenda::NodeEvent;
use crate::hub::{Event, Hub};
use crate::keys::Keys;
use crate::ring::{id_of, node_of};
use crate::way::{Way, number_of, parts_of};
use lockring_control::cluster::{Event as Control, Life, WorkerEvent};
use lockring_core::testing::{Fact, Stream};
use lockring_core::{Action, CloseReason, ClusterEvent, ConnId, Event as Input, Identity, Time};
use lockring_proto::{Hello, Push, Reply, Request, SessionId, codec};
use lockring_ring::{CellId, Membership};
use std::time::Duration;

/// Simulated cost of an event, and of each request in it.
const EVENT: Duration = Duration::from_micros(5);
const REQUEST: Duration = Duration::from_micros(10);

/// A worker of a process.
pub type At = (Life, u16);

impl Cluster {
    pub(super) fn worker(&mut self, (life, worker): At) -> Option<&mut Worker> {
        let process = self.process(life)?;
        process.workers.get_mut(usize::from(worker))
    }

    /// A connection of a client stands. `false`: nobody is there.
    pub fn accept(&mut self, way: Way, identity: Identity) -> bool {
        let Some(host) = self.hosts.get_mut(&id_of(way.node)) else { return false };
        let works = |process: &&mut Process| process.works();
        let Some(process) = host.process.as_mut().filter(works) else { return false };
        let Some(worker) = process.workers.get_mut(usize::from(way.worker)) else { return false };
        worker
            .clients
            .insert(way.conn, Client { way, identity, session: None, link: None, paused: false });
        true
    }

    /// Something comes on a connection, if it is of the present process.
    pub fn comes(&mut self, hub: &mut Hub, way: Way, came: Came) {
        let host = self.hosts.get_mut(&id_of(way.node));
        let Some(process) = host.and_then(|host| host.process.as_mut()) else { return };
        let life = process.life;
        if let Some(worker) = process.workers.get_mut(usize::from(way.worker))
            && worker.clients.contains_key(&way.conn)
        {
            worker.inbox.push_back((way.conn, came));
            self.arm(hub, (life, way.worker));
        }
    }

    /// Tells a worker something, after a while.
    pub(super) fn tell(&mut self, hub: &mut Hub, at: At, order: Order, after: Duration) {
        let due = hub.now.after(after);
        let Some(worker) = self.worker(at) else { return };
        let due = worker.orders.back().map_or(due, |&(last, _)| last.max(due));
        worker.orders.push_back((due, order));
        self.arm(hub, at);
    }

    /// Plans the next turn of a worker.
    pub(super) fn arm(&mut self, hub: &mut Hub, at: At) {
        let Some(host) = self.hosts.get_mut(&at.0.node) else { return };
        let clock = host.clock;
        let Some(process) = host.process.as_mut().filter(|its| its.life == at.0) else { return };
        let (paused, stuck) = (process.paused_until, process.stuck_until);
        let worker = &mut process.workers[usize::from(at.1)];
        let free = worker.busy_until.max(worker.paused_until).max(paused).max(hub.now);
        let ordered = worker.orders.front().map_or(Time::NEVER, |&(due, _)| due.max(stuck));
        let is_told = worker.readable().is_some() || !worker.heard.is_empty() || worker.unsent;
        let due = if is_told {
            free
        } else {
            let deadline = worker.machine.next_deadline().unwrap_or(Time::NEVER);
            clock.real(deadline).min(ordered).max(free)
        };
        if due < worker.armed {
            worker.armed = due;
            let event = NodeEvent::Work { life: at.0, worker: at.1 };
            hub.plan(due, Event::Node(event));
        }
    }

    /// A turn of a worker: one thing, if it is free to do it.
    pub(super) fn work(&mut self, hub: &mut Hub, keys: &Keys, at: At) {
        let Some(host) = self.hosts.get_mut(&at.0.node) else { return };
        let local = host.clock.shows(hub.now);
        let Some(process) = host.process.as_mut().filter(|its| its.life == at.0) else { return };
        if !process.works() {
            return;
        }
        let (paused, stuck) = (process.paused_until, process.stuck_until);
        let worker = &mut process.workers[usize::from(at.1)];
        if worker.armed != hub.now {
            return;
        }
        worker.armed = Time::NEVER;
        if hub.now >= worker.busy_until.max(worker.paused_until).max(paused) {
            let due = worker.machine.next_deadline().is_some_and(|at| at <= local);
            let is_ordered = hub.now >= stuck
                && worker.orders.front().is_some_and(|&(ordered, _)| ordered <= hub.now);
            let first = std::mem::take(&mut worker.tick_first);
            if due && first {
                self.turn(hub, keys, at, Input::Tick, 0);
            } else if is_ordered {
                let order = self.worker(at).and_then(|worker| worker.orders.pop_front());
                self.ordered(hub, keys, at, order.expect("it was looked at").1);
            } else if let Some(heard) = worker.heard.pop_front() {
                self.hears(hub, keys, at, &heard);
            } else if worker.readable().is_some() {
                self.read(hub, keys, at);
            } else if due {
                self.turn(hub, keys, at, Input::Tick, 0);
            }
            self.flush(hub, keys, at);
        }
        self.arm(hub, at);
    }

    /// What the worker has for its peers is sent when nothing else waits, or before.
    fn flush(&mut self, hub: &mut Hub, keys: &Keys, at: At) {
        let early = hub.rng.percent(40);
        let Some(worker) = self.worker(at).filter(|worker| worker.unsent) else { return };
        if early || worker.readable().is_none() && worker.heard.is_empty() {
            self.turn(hub, keys, at, Input::Cluster(ClusterEvent::Flush), 0);
            if let Some(worker) = self.worker(at) {
                worker.unsent = false;
            }
        }
    }

    fn ordered(&mut self, hub: &mut Hub, keys: &Keys, at: At, order: Order) {
        match order {
            Order::Nodes(nodes) => {
                for (node, boot, workers) in nodes {
                    let known = ClusterEvent::Node { node, boot, workers };
                    self.turn(hub, keys, at, Input::Cluster(known), 0);
                }
            }
            Order::Memberships { index, whole, mut cells, version } => {
                let Some(worker) = self.worker(at) else { return };
                if whole {
                    let named = |cell| cells.iter().any(|&(its, _)| its == cell);
                    let gone = worker.cells.keys().filter(|&&cell| !named(cell));
                    let gone: Vec<_> = gone.map(|&cell| (cell, None)).collect();
                    cells.extend(gone);
                }
                let before: Vec<_> =
                    cells.iter().map(|(cell, _)| worker.cells.get(cell).cloned()).collect();
                self.does_by(hub, at, whole, &cells);
                let changed = ClusterEvent::Memberships { changed: &cells, version };
                let taken = self.take(hub, keys, at, Input::Cluster(changed), 0);
                let rest = cells.split_off(taken);
                if rest.is_empty() {
                    let applied = WorkerEvent::Applied(index);
                    return self.control(hub, at.0.node, Control::worker(at.1.into(), applied));
                }
                hub.reach("entries taken in slices");
                let after = if hub.rng.percent(70) { 0 } else { hub.rng.range(0, 40_000) };
                let due = hub.now.after(Duration::from_micros(after));
                if let Some(worker) = self.worker(at) {
                    for ((cell, _), was) in rest.iter().zip(before.into_iter().skip(taken)) {
                        worker.cells.remove(cell);
                        worker.cells.extend(was.map(|was| (*cell, was)));
                    }
                    // Nothing of the control plane comes between.
                    let rest = Order::Memberships { index, whole: false, cells: rest, version };
                    worker.orders.push_front((due, rest));
                }
            }
            Order::Lease(until) => {
                if let Some(worker) = self.worker(at) {
                    worker.lease = until;
                }
                self.turn(hub, keys, at, Input::Cluster(ClusterEvent::Lease(until)), 0);
            }
            Order::LongestTtl(ttl) => self.turn(hub, keys, at, Input::LongestTtl(ttl), 0),
            Order::TtlFailed(why) => self.turn(hub, keys, at, Input::TtlFailed(&why), 0),
            Order::State { round, window } => self.states(hub, at, (round, window)),
            Order::Ring(version) => self.tell_clients(hub, at, version.0),
        }
    }

    /// A worker does by these entries from now on.
    fn does_by(
        &mut self,
        hub: &mut Hub,
        at: At,
        whole: bool,
        cells: &[(CellId, Option<Membership>)],
    ) {
        let now = hub.now;
        let Some(worker) = self.worker(at) else { return };
        for (cell, is) in cells {
            let before = worker.cells.remove(cell);
            if let (Some((was, _)), Some(is)) = (&before, is)
                && (whole && is.epoch > was.epoch || is.epoch.0 > was.epoch.0 + 1)
            {
                hub.reach("case 12: a worker is told of many entries at once");
            }
            if let Some(is) = is {
                let same = before.filter(|(was, _)| was.epoch == is.epoch);
                let since = same.map_or(now, |(_, since)| since);
                worker.cells.insert(*cell, (is.clone(), since));
            }
        }
    }

    fn states(&mut self, hub: &mut Hub, at: At, (round, window): (u64, Duration)) {
        let now = hub.now;
        let Some(worker) = self.worker(at) else { return };
        worker.ttls.retain(|_, last| now.since(*last) <= window + window / 50);
        let longest = worker.ttls.keys().max().copied().unwrap_or_default();
        let longest = Some(longest.max(worker.machine.longest_ttl_in_use()));
        let stated = WorkerEvent::TtlStated { round, longest, by: String::new() };
        self.control(hub, at.0.node, Control::worker(at.1.into(), stated));
    }

    /// Clients hear that there is a newer ring; some do not.
    fn tell_clients(&mut self, hub: &mut Hub, at: At, version: u64) {
        let Some(worker) = self.worker(at) else { return };
        let ways: Vec<Way> = worker.clients.values().map(|client| client.way).collect();
        for way in ways {
            if hub.rng.percent(70) {
                let mut bytes = Vec::new();
                codec::encode_frame(&Push::RingChanged { version }, &mut bytes);
                hub.send(way, Stream::Pushes, &bytes, hub.now);
            }
        }
    }

    fn hears(&mut self, hub: &mut Hub, keys: &Keys, at: At, heard: &Heard) {
        let event = match heard {
            &Heard::Connected(peer) => ClusterEvent::PeerConnected(peer),
            &Heard::Lost(peer) => ClusterEvent::PeerLost(peer),
            Heard::Said(peer, bytes) => ClusterEvent::Peer { peer: *peer, bytes },
        };
        let before = self.worker(at).map(|worker| worker.machine.copied()).unwrap_or_default();
        self.turn(hub, keys, at, Input::Cluster(event), 0);
        if let &Heard::Said(peer, _) = heard {
            self.check_taken(hub, at, peer, &before);
        }
    }

    /// Reads all that has come on the connection that came first, as the real worker does.
    fn read(&mut self, hub: &mut Hub, keys: &Keys, at: At) {
        let worker = self.worker(at).expect("it was looked at");
        let Some(conn) = worker.readable() else { return };
        let (mut bytes, mut closed) = (Vec::new(), false);
        worker.inbox.retain_mut(|(of, what)| {
            if *of == conn {
                match what {
                    Came::Bytes(more) if !closed => bytes.append(more),
                    Came::Bytes(_) => {}
                    Came::Closed => closed = true,
                }
            }
            *of != conn
        });
        let rest = self.serve(hub, keys, at, conn, &bytes);
        let Some(worker) = self.worker(at) else { return };
        if !closed && !rest.is_empty() {
            hub.reach("requests that had to wait");
            worker.inbox.push_back((conn, Came::Bytes(rest)));
        }
        if closed && let Some(link) = worker.clients.remove(&conn).and_then(|client| client.link) {
            self.turn(hub, keys, at, Input::Closed { conn, link }, 0);
        }
    }

    /// Runs what has come on a connection; what is left of it has to wait.
    fn serve(&mut self, hub: &mut Hub, keys: &Keys, at: At, conn: ConnId, bytes: &[u8]) -> Vec<u8> {
        let mut rest = bytes;
        let client = self.worker(at).and_then(|worker| worker.clients.get_mut(&conn));
        let client = client.expect("looked up before");
        if client.session.is_none()
            && let Ok(Some((body, after))) = codec::split_frame(rest)
        {
            rest = after;
            let hello: Hello<'_> = codec::decode_frame(body).expect("a hello comes first");
            client.session = Some(hello.session);
            let identity = client.identity.clone();
            self.turn(hub, keys, at, Input::Opened { conn, identity: &identity, hello }, 1);
        }
        let mut requests: Vec<Request<'_>> = Vec::new();
        let mut starts = vec![rest];
        while let Ok(Some((body, after))) = codec::split_frame(rest) {
            requests.push(codec::decode_frame(body).expect("a request"));
            starts.push(after);
            rest = after;
        }
        let Some(worker) = self.worker(at) else { return Vec::new() };
        let Some(client) = worker.clients.get(&conn) else { return Vec::new() };
        if let (Some(link), Some(session)) = (client.link, client.session)
            && !requests.is_empty()
        {
            let namespace = client.identity.namespace.as_str().to_owned();
            self.watch.asks(keys, (session, &namespace), (hub.now, at), &requests);
            let cost = requests.len() as u32;
            let event = Input::Requests { conn, link, requests: &requests };
            let taken = self.take(hub, keys, at, event, cost);
            return starts[taken].to_vec();
        }
        Vec::new()
    }

    pub(super) fn turn(
        &mut self,
        hub: &mut Hub,
        keys: &Keys,
        at: At,
        event: Input<'_>,
        requests: u32,
    ) {
        self.take(hub, keys, at, event, requests);
    }

    /// Runs the machine on one event and does what comes of it.
    fn take(
        &mut self,
        hub: &mut Hub,
        keys: &Keys,
        at: At,
        event: Input<'_>,
        requests: u32,
    ) -> usize {
        let Some(host) = self.hosts.get_mut(&at.0.node) else { return 0 };
        let local = host.clock.shows(hub.now);
        let Some(process) = host.process.as_mut().filter(|its| its.life == at.0) else { return 0 };
        let workers = process.workers.len() as u16;
        let worker = &mut process.workers[usize::from(at.1)];
        let mut actions = Vec::new();
        hub.show(|| format!("{at:?} takes in {event:?}"));
        let taken = worker.machine.handle(local, event, &mut actions);
        hub.show(|| format!("{at:?} asks for {actions:?}"));
        let done = hub.now.after(EVENT + REQUEST * requests);
        worker.busy_until = done;
        worker.unsent |= !matches!(event, Input::Cluster(ClusterEvent::Flush));
        worker.turns += 1;
        worker.ttls.insert(worker.machine.longest_ttl_in_use(), hub.now);
        let notes = worker.machine.take_notes();
        let looked_at = worker.turns.is_multiple_of(256);
        self.check_expired(hub, at, workers, &notes);
        self.watch.notes(hub, at, workers, &notes);
        if looked_at {
            self.look_inside(hub, at);
        }
        let number = number_of(node_of(at.0.node), at.1);
        hub.fact(&Fact::Turn { worker: number, grace: true, unserved: Vec::new() });
        for action in actions {
            self.act(hub, keys, at, action, done);
        }
        taken
    }

    /// Does what a machine asks of the world.
    fn act(&mut self, hub: &mut Hub, keys: &Keys, at: At, action: Action, when: Time) {
        let mut bytes = Vec::new();
        let worker = self.worker(at).expect("it has just run");
        match action {
            Action::Welcome { conn, link, reply } => {
                let Some(client) = worker.clients.get_mut(&conn) else { return };
                client.link = Some(link);
                codec::encode_frame(&*reply, &mut bytes);
                hub.send(client.way, Stream::Replies, &bytes, when);
            }
            Action::Refuse { conn, reply } => {
                hub.reach("hellos refused");
                let Some(client) = worker.clients.get(&conn) else { return };
                codec::encode_frame(&*reply, &mut bytes);
                hub.send(client.way, Stream::Replies, &bytes, when);
                self.hang_up(hub, at, conn, false);
            }
            Action::Reply { conn, reply } => self.answer(hub, keys, at, (conn, &reply), when),
            Action::Push { conn, push } => {
                let Some(client) = worker.clients.get(&conn) else { return };
                codec::encode_frame(&push, &mut bytes);
                hub.send(client.way, Stream::Pushes, &bytes, when);
            }
            Action::Close { conn, reason } => {
                self.hang_up(hub, at, conn, reason == CloseReason::Superseded);
            }
            Action::SendRing { conn, id, known } => {
                let process = self.process(at.0).expect("it has just run");
                let answers = process.history.as_ref().map(|history| history.answers(id, known));
                for reply in answers.unwrap_or_default() {
                    self.answer(hub, keys, at, (conn, &reply), when);
                }
            }
            Action::RaiseLongestTtl(ttl) => {
                hub.reach("longest TTL raises");
                let asked = WorkerEvent::TtlAsked { ttl, by: String::new() };
                self.says(hub, Duration::ZERO, at, asked);
            }
            Action::WantEpoch(cell) => {
                hub.reach("epochs wanted");
                if let Some((is, _)) = worker.cells.get(&cell) {
                    let asked = WorkerEvent::EpochAsked(cell, is.epoch);
                    self.says(hub, Duration::ZERO, at, asked);
                }
            }
            Action::Synced { cell, attach, .. } => {
                hub.reach("copies synced");
                self.says(hub, Duration::ZERO, at, WorkerEvent::Synced(cell, attach));
            }
            Action::Pause(conn) => {
                hub.reach("requests that wait for a newer ring");
                worker.pause(conn, true);
            }
            Action::Resume(conn) => worker.pause(conn, false),
            Action::Silent { cell, node } => {
                hub.reach("copies said to be silent");
                self.says(hub, Duration::ZERO, at, WorkerEvent::Silent(cell, node));
            }
            Action::Recovered { cell, epoch } => {
                hub.reach("graces that are over");
                self.says(hub, Duration::ZERO, at, WorkerEvent::Recovered(cell, epoch));
            }
            Action::Peer { peer, bytes } => self.say_to_peer(hub, at, peer, &bytes, when),
            Action::PeerBroken(peer) => {
                hub.accuse("peers speak the wire", format!("{peer:?} at {at:?}"));
            }
        }
    }

    fn answer(
        &mut self,
        hub: &mut Hub,
        keys: &Keys,
        at: At,
        (conn, reply): (ConnId, &Reply),
        when: Time,
    ) {
        let worker = self.worker(at).expect("it has just run");
        let Some(client) = worker.clients.get(&conn) else { return };
        let (way, session) = (client.way, client.session);
        if let Some(session) = session {
            self.check_answer(hub, keys, at, session, reply);
        }
        let mut bytes = Vec::new();
        codec::encode_frame(reply, &mut bytes);
        hub.send(way, Stream::Replies, &bytes, when);
    }

    /// The worker ends a connection. The client stays known until its end is noticed, so that what
    /// it still sends reaches the machine.
    fn hang_up(&mut self, hub: &mut Hub, at: At, conn: ConnId, superseded: bool) {
        let client = self.worker(at).and_then(|worker| worker.clients.get(&conn));
        if let Some(client) = client {
            hub.hang_up(client.way, superseded);
        }
    }

    /// A worker has something to say to its control plane, after a while.
    pub(super) fn says(&mut self, hub: &mut Hub, after: Duration, at: At, event: WorkerEvent) {
        let delay = Duration::from_micros(hub.rng.range(50, 3000));
        let says = NodeEvent::Says { life: at.0, worker: at.1, event };
        hub.soon(after + delay, Event::Node(says));
    }

    /// Until when a worker honours the holds of a session, on the recorder's clock.
    pub fn honours_until(&self, number: u16, session: SessionId) -> Option<Time> {
        let (node, worker) = parts_of(number);
        let host = self.hosts.get(&id_of(node))?;
        let worker = host.process.as_ref()?.workers.get(usize::from(worker))?;
        worker.machine.honours_until(session).map(|local| host.clock.real(local))
    }
}
