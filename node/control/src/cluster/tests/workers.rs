//! What workers find out by themselves: whether a learner has everything, whether a copy is
//! silent.

use super::world::{Due, World};
use crate::cluster::*;
use lockring_proto::Time;
use lockring_ring::{CellId, Membership, NodeId};

impl World {
    pub fn workers(&mut self) {
        let running = self.hosts.values().filter(|host| host.is_running(self.now));
        let mut serving: Vec<(Life, usize, CellId, Membership)> = Vec::new();
        for process in running.filter_map(|host| host.process.as_ref()) {
            let count = process.workers.len();
            serving.extend(process.served().map(|(cell, is, _)| {
                (process.life, usize::from(cell.0) % count, cell, is.clone())
            }));
        }
        for (life, worker, cell, is) in serving {
            self.learner(life, worker, cell, &is);
            if self.now.0 % 500_000 < 100_000 {
                self.copies(life, worker, cell, &is);
            }
            if !self.is_calm && self.rng.range(0, 4000) == 0 {
                let asked = WorkerEvent::EpochAsked(cell, is.epoch);
                self.after(1000, Due::Says(life, worker, asked));
            }
        }
    }

    /// A learner that is told of its part, and hears and is heard, has it all sooner or later; but
    /// for a few that never have, for whatever reason.
    fn learner(&mut self, life: Life, worker: usize, cell: CellId, is: &Membership) {
        let Some(learner) = is.learner else { return };
        let host = self.hosts.get(&learner.node).filter(|host| host.is_running(self.now));
        let knows = host.and_then(|host| host.process.as_ref()).is_some_and(|process| {
            process.is_me(&learner)
                && process.cell(cell).is_some_and(|(its, _)| its.learner == Some(learner))
        });
        let hears = self.net.hear_each_other(self.now, life.node, learner.node);
        if knows && hears && learner.attach.0 % 97 != 0 && self.rng.percent(50) {
            self.checks.synced.insert((cell, learner.attach));
            let synced = WorkerEvent::Synced(cell, learner.attach);
            self.after(1000, Due::Says(life, worker, synced));
        }
    }

    /// Copies that do not answer are reported.
    fn copies(&mut self, life: Life, worker: usize, cell: CellId, is: &Membership) {
        let silent = |node: NodeId| {
            let runs = self.hosts.get(&node).is_some_and(|host| host.is_running(self.now));
            !runs || !self.net.hear_each_other(self.now, life.node, node)
        };
        let silent: Vec<NodeId> =
            is.copies().map(|copy| copy.node).filter(|&node| silent(node)).collect();
        for node in silent {
            let said = WorkerEvent::Silent(cell, node);
            self.after(1000, Due::Says(life, worker, said));
        }
    }

    /// A node is stopped for a while, and goes on as if nothing had happened.
    pub fn stop(&mut self, node: NodeId, until: Time) {
        if let Some(process) = self.hosts.get_mut(&node).and_then(|host| host.process.as_mut()) {
            process.stopped_until = until;
            self.at(until, Due::Tick(node));
        }
    }
}
