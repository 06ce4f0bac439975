//! Connections between workers.

use super::Cluster;
use super::process::{Heard, Process};
use super::turns::At;
use crate::agenda::{NodeEvent, PeerWay};
use crate::hub::{Event, Hub};
use crate::ring::node_of;
use lockring_control::cluster::Life;
use lockring_core::testing::{Arrival, End, Stream};
use lockring_core::{PeerWorker, Time};
use lockring_ring::NodeId;
use std::time::Duration;

fn end(peer: PeerWorker) -> End {
    End::Node(node_of(peer.node))
}

fn at_of(peer: PeerWorker) -> At {
    (Life { node: peer.node, boot: peer.boot }, peer.worker)
}

fn workers(process: &Process) -> impl Iterator<Item = PeerWorker> + use<> {
    let Life { node, boot } = process.life;
    (0..process.workers.len() as u16).map(move |worker| PeerWorker { node, boot, worker })
}

impl Cluster {
    /// Dials whom each worker has to talk to, and gives connections up that carry nothing.
    pub(super) fn connect(&mut self, hub: &mut Hub) {
        if !self.is_calm && !self.wires.is_empty() && hub.rng.percent(4) {
            let ways: Vec<PeerWay> = self.wires.values().copied().collect();
            let way = *hub.rng.pick(&ways);
            self.break_wire(hub, way);
        }
        let up: Vec<&Process> = self.hosts.values().filter_map(|it| it.process.as_ref()).collect();
        let all: Vec<Vec<PeerWorker>> =
            up.iter().map(|process| workers(process).collect()).collect();
        for (place, one) in all.iter().enumerate() {
            for other in &all[place + 1..] {
                let common = one.len().min(other.len()) as u16;
                for &from in one {
                    let talks = |to: &&PeerWorker| to.worker % common == from.worker % common;
                    other.iter().filter(talks).for_each(|&to| self.dial(hub, from, to));
                }
            }
        }
    }

    fn dial(&mut self, hub: &mut Hub, from: PeerWorker, to: PeerWorker) {
        let known = self.wires.get(&(from, to)).copied();
        if let Some(way) = known.filter(|way| !hub.net.is_broken(way.conn)) {
            // One that is cut for long is given up, as QUIC does.
            if !hub.net.is_reachable(hub.now, end(from), end(to)) && hub.rng.percent(3) {
                self.break_wire(hub, way);
            }
            return;
        }
        let running = |it: PeerWorker| self.hosts[&it.node].is_running(hub.now);
        let open = hub.net.is_reachable(hub.now, end(from), end(to));
        if open && running(from) && running(to) && hub.rng.percent(60) {
            let (conn, at) = hub.net.connect(hub.now, end(from), end(to));
            let way = PeerWay { conn, from, to };
            self.wires.insert((from, to), way);
            hub.plan(at, Event::Node(NodeEvent::PeerStands { way }));
        }
    }

    /// The connection between two workers breaks.
    pub fn break_wire(&mut self, hub: &mut Hub, way: PeerWay) {
        if hub.net.is_broken(way.conn) {
            return;
        }
        hub.reach("broken connections of peers");
        hub.net.cut(hub.now, way.conn);
        for stream in [Stream::Requests, Stream::Replies] {
            let notices = Duration::from_micros(hub.rng.range(0, 400_000));
            hub.soon(notices, Event::Node(NodeEvent::PeerNotices { way, stream }));
        }
    }

    /// All connections of a node to peers break.
    pub fn break_wires_of(&mut self, hub: &mut Hub, node: NodeId) {
        let its = |way: &&PeerWay| way.from.node == node || way.to.node == node;
        let ways: Vec<PeerWay> = self.wires.values().filter(its).copied().collect();
        for way in ways {
            self.break_wire(hub, way);
        }
    }

    pub(super) fn stands(&mut self, hub: &mut Hub, way: PeerWay) {
        if !hub.net.is_broken(way.conn) && self.wires.get(&(way.from, way.to)) == Some(&way) {
            hub.reach("connections of peers");
            self.heard(hub, way.from, Heard::Connected(way.to));
            self.heard(hub, way.to, Heard::Connected(way.from));
        }
    }

    /// An end notices that a connection is gone, unless it has another by now.
    pub(super) fn wire_is_gone(&mut self, hub: &mut Hub, way: PeerWay, stream: Stream) {
        let (whose, peer) = way.ends(stream);
        if self.wires.get(&(way.from, way.to)) == Some(&way) {
            self.heard(hub, whose, Heard::Lost(peer));
        } else {
            hub.reach("connections of peers replaced before they were missed");
        }
    }

    fn heard(&mut self, hub: &mut Hub, whose: PeerWorker, what: Heard) {
        let at = at_of(whose);
        if let Some(worker) = self.worker(at) {
            worker.heard.push_back(what);
            self.arm(hub, at);
        }
    }

    pub(super) fn say_to_peer(
        &mut self,
        hub: &mut Hub,
        at: At,
        peer: PeerWorker,
        bytes: &[u8],
        when: Time,
    ) {
        let me = PeerWorker { node: at.0.node, boot: at.0.boot, worker: at.1 };
        let dialled = self.wires.get(&(me, peer)).map(|way| (*way, Stream::Requests));
        let known =
            dialled.or_else(|| self.wires.get(&(peer, me)).map(|way| (*way, Stream::Replies)));
        if let Some((way, stream)) = known
            && let Some(due) = hub.net.send(when, way.conn, stream)
        {
            let bytes = bytes.to_vec();
            let frame = NodeEvent::PeerFrame { way, stream, bytes, held: false };
            hub.plan(due, Event::Node(frame));
        }
    }

    pub(super) fn frame_is_due(
        &mut self,
        hub: &mut Hub,
        (way, stream): (PeerWay, Stream),
        bytes: Vec<u8>,
        held: bool,
    ) {
        let (at, held) = match hub.net.arrives(hub.now, way.conn, stream, held) {
            Arrival::Now => {
                let (from, to) = way.ends(stream);
                if self.wires.get(&(way.from, way.to)) != Some(&way) {
                    hub.reach("messages of peers on an earlier connection");
                }
                return self.heard(hub, to, Heard::Said(from, bytes));
            }
            Arrival::Never => return hub.reach("messages of peers lost"),
            Arrival::Held(at) => (at, held),
            Arrival::Later(at) => (at, true),
        };
        let frame = NodeEvent::PeerFrame { way, stream, bytes, held };
        hub.plan(at, Event::Node(frame));
    }
}
