//! What operators and clients want.

use super::checks::Session;
use super::host::spec;
use super::world::{CELL_BITS, World};
use crate::cluster::*;
use lockring_proto::Time;
use lockring_ring::{CellId, NodeId};
use std::time::Duration;

impl World {
    /// Whoever wants something asks for it until it is so.
    pub fn operators(&mut self) {
        if !self.rng.percent(30) {
            return;
        }
        let state = self.checks.rules.state().clone();
        self.wishes.retain(|wish| is_open(&state, wish));
        let mut wishes = self.wishes.clone();
        wishes.extend(self.joining.iter().map(|&boot| Entry::Join(spec(boot))));
        let running = self.hosts.values().filter(|host| host.is_running(self.now));
        let running: Vec<NodeId> = running.map(|host| host.id).collect();
        if running.is_empty() {
            return;
        }
        for wish in wishes {
            let &node = self.rng.pick(&running);
            self.give(node, Event::Asked(wish));
        }
    }

    /// A new session asks for a TTL, which the worker confirms or has raised first.
    pub fn session(&mut self, ttl: Duration, ends: Time) {
        let cell = CellId(self.rng.range(0, 1 << CELL_BITS) as u16);
        let serving = self.hosts.values().filter(|host| host.is_running(self.now));
        let owner = serving.filter_map(|host| {
            let process = host.process.as_ref()?;
            let epoch = process.serves(cell)?;
            process.has_lease(host.shown(self.now)).then_some((epoch, process.life))
        });
        let Some((epoch, life)) = owner.max() else { return };
        let process = self.hosts[&life.node].process.as_ref().expect("it serves");
        let number = usize::from(cell.0) % process.workers.len();
        if ttl > process.workers[number].ceiling {
            let asked = WorkerEvent::TtlAsked { ttl, by: String::new() };
            return self.give(life.node, Event::worker(number, asked));
        }
        let is_cut_off = self.rng.percent(30);
        let (until, next) = (self.now.after(ttl - Duration::from_millis(50)), self.now);
        self.checks.sessions.push(Session { cell, ttl, until, epoch, ends, next, is_cut_off });
        self.checks.count("session");
    }
}

/// Whether a wish is not fulfilled yet, and can be.
fn is_open(state: &State, wish: &Entry) -> bool {
    match wish {
        Entry::Leave(node) => state.nodes().get(node).is_some_and(|node| !node.leaving),
        Entry::Weight { node, revision, .. } => {
            state.nodes().get(node).is_some_and(|node| node.revision == *revision)
        }
        Entry::Policy { revision, .. } => state.replicas().1 == *revision,
        _ => false,
    }
}
