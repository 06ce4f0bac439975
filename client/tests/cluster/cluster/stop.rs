//! Stops in order: no new claims, and the end once nothing is held, which the log is told of.

use super::Cluster;
use super::process::Stop;
use crate::agenda::{NodeEvent, PeerWay};
use crate::hub::{Event, Hub};
use crate::keys::Keys;
use lockring_control::cluster::{Event as Control, Life};
use lockring_core::Event as Input;
use lockring_ring::NodeId;
use std::time::Duration;

impl Cluster {
    /// A node is told to stop. If it cannot in time, it ends all the same.
    pub(super) fn stops(&mut self, hub: &mut Hub, keys: &Keys, node: NodeId) {
        let now = hub.now;
        let running = self.hosts.get_mut(&node).filter(|host| host.is_running(now));
        let Some(process) = running.and_then(|host| host.process.as_mut()) else { return };
        let is_paused = process.workers.iter().any(|worker| worker.paused_until > now);
        if is_paused || process.stop.is_some() {
            return;
        }
        hub.reach("stops begun");
        process.stop = Some(Stop::Draining);
        let (life, count) = (process.life, process.workers.len() as u16);
        for worker in 0..count {
            self.turn(hub, keys, (life, worker), Input::Drain, 0);
            self.arm(hub, (life, worker));
        }
        let patience = Duration::from_millis(hub.rng.range(50, 3000));
        hub.soon(patience, Event::Node(NodeEvent::StopEnds { life }));
        let back = patience + Duration::from_millis(hub.rng.range(10, 2000));
        hub.soon(back, Event::Node(NodeEvent::Restart { node }));
    }

    /// It has had enough time.
    pub(super) fn stop_ends(&mut self, hub: &mut Hub, life: Life) {
        if self.process(life).is_some() {
            hub.reach("stops that the log has not heard of");
            self.ends(hub, life.node);
        }
    }

    /// Of those that stop, whoever has nothing held any more ends its workers.
    pub(super) fn end_idle(&mut self, hub: &mut Hub) {
        let now = hub.now;
        let is_idle = |process: &super::Process| {
            let idle = |worker: &super::process::Worker| {
                worker.machine.stats().holds == 0 && worker.paused_until <= now
            };
            process.stop == Some(Stop::Draining) && process.workers.iter().all(idle)
        };
        let running = self.hosts.values().filter(|host| host.is_running(now));
        let idle = running.filter_map(|host| host.process.as_ref()).filter(|it| is_idle(it));
        for life in idle.map(|process| process.life).collect::<Vec<_>>() {
            hub.reach("stops with nothing held");
            if let Some(process) = self.process(life) {
                process.stop = Some(Stop::Ended);
            }
            self.cut_all_of(hub, life);
            self.control(hub, life.node, Control::Ended);
        }
    }

    /// Everything that is connected to a process is cut off.
    pub(super) fn cut_all_of(&mut self, hub: &mut Hub, life: Life) {
        let Some(process) = self.process(life) else { return };
        let clients = process.workers.iter().flat_map(|worker| worker.clients.values());
        for way in clients.map(|client| client.way).collect::<Vec<_>>() {
            let notices = Duration::from_micros(hub.rng.range(0, 500_000));
            hub.cut(way, notices);
        }
        let its = |way: &&PeerWay| {
            [way.from, way.to].iter().any(|end| (end.node, end.boot) == (life.node, life.boot))
        };
        let ways: Vec<_> = self.wires.values().filter(its).copied().collect();
        for way in ways {
            self.break_wire(hub, way);
            self.wires.remove(&(way.from, way.to));
        }
    }

    /// Nothing stops any more: what is about to has ended.
    pub(super) fn hurry_stops(&mut self, hub: &mut Hub) {
        let stopping = self.hosts.values().filter_map(|host| host.process.as_ref());
        let stopping = stopping.filter(|process| process.stop.is_some());
        for life in stopping.map(|process| process.life).collect::<Vec<_>>() {
            self.ends(hub, life.node);
        }
    }
}

impl super::Process {
    /// Whether its workers run.
    pub fn works(&self) -> bool {
        self.stop != Some(Stop::Ended)
    }
}
