//! A stop in order: no new claims, then the end, which is clean if nothing can be held or believed.

use super::Node;
use crate::hub::{Event, Hub};
use crate::keys::Keys;
use lockring_core::Event as Input;
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
        hub.soon(DRAIN, Event::Stopped { boot: self.boot, down });
    }

    /// It has stopped, if it was not killed meanwhile.
    pub fn stopped(&mut self, hub: &mut Hub, boot: u64, down: Duration) {
        if boot != self.boot || !self.up {
            return;
        }
        let local = self.clock.shows(hub.now);
        let in_grace = self.opens_at.is_some_and(|at| local < at) && !self.clean_in_grace;
        let holds: u64 = self.workers.iter().map(|worker| worker.machine.stats().holds).sum();
        self.was_clean = holds == 0 && !in_grace;
        hub.reach(if self.was_clean { "clean stops" } else { "stops with something held" });
        if holds == 0 && in_grace {
            hub.reach("stops in grace with nothing held");
        }
        self.crash(hub);
        hub.soon(down, Event::Boot);
    }
}
