//! A stop in order: no new claims, then the end, which is clean if nothing can be held or believed.

use super::{Node, Worker};
use crate::agenda::NodeEvent;
use crate::hub::{Event, Hub};
use crate::keys::Keys;
use lockring_control::alone::{Event as Control, WorkerEnd};
use lockring_core::Event as Input;
use lockring_ring::BootId;
use std::time::Duration;

/// How long holders may give back what they hold.
const DRAIN: Duration = Duration::from_millis(600);

impl Node {
    /// The node is told to stop.
    pub fn stop(&mut self, hub: &mut Hub, keys: &Keys, down: Duration) {
        if !self.up {
            return;
        }
        hub.reach("drains");
        for worker in 0..self.workers() {
            self.turn(hub, keys, worker, Input::Drain, 0);
        }
        let boot = self.plane.log().boot;
        hub.soon(DRAIN, Event::Node(NodeEvent::Stopped { node: self.index, boot, down }));
    }

    /// It has stopped, if it was not killed meanwhile.
    pub fn stopped(&mut self, hub: &mut Hub, boot: BootId, down: Duration) {
        if boot != self.plane.log().boot || !self.up {
            return;
        }
        let local = self.clock.shows(hub.now);
        let in_grace = self.opens_at.is_some_and(|at| local < at) && !self.clean_in_grace;
        let held = |worker: &Worker| worker.machine.stats().holds;
        let end = |worker| Some(WorkerEnd { held: held(worker), in_grace });
        let ends: Vec<_> = self.workers.iter().map(end).collect();
        let held: u64 = self.workers.iter().map(held).sum();
        let clean = self.ends(hub, Control::Stopped(ends));
        hub.reach(if clean { "clean stops" } else { "stops that were not clean" });
        if held == 0 && in_grace {
            hub.reach("stops in grace with nothing held");
        }
        self.crash(hub);
        hub.soon(down, Event::Node(NodeEvent::Boot { node: self.index }));
    }
}
