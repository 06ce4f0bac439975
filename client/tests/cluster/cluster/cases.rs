//! Which of the ways to lose a lock or to grant it twice a run has come by: the numbers are those
//! of the list in the design notes. A change of the number of cells (21) is none of a run's.

use super::Cluster;
use super::process::Process;
use crate::hub::Hub;
use lockring_control::cluster::Cell;
use lockring_core::Time;
use lockring_proto::limits::NODE_LEASE;
use lockring_ring::{CellId, NodeId};
use std::time::Duration;

/// A crash this soon after an answer comes before anything else does.
const AT_ONCE: Duration = Duration::from_millis(20);

impl Cluster {
    /// A process is about to be killed.
    pub fn count_crash(&self, hub: &mut Hub, node: NodeId) {
        let Some(process) = self.hosts.get(&node).and_then(|host| host.process.as_ref()) else {
            return;
        };
        let boot = process.life.boot;
        let is_its = |member: &lockring_ring::Member| (member.node, member.boot) == (node, boot);
        let has = |which: &dyn Fn(CellId, &Cell) -> bool| {
            self.rules.state().cells().any(|(id, cell)| which(id, cell))
        };
        let owns = |cell: &Cell| is_its(&cell.owner) && cell.loss.is_none();
        let knows = |id: CellId, cell: &Cell| {
            let told = process.worker_of(id).cells.get(&id);
            told.is_some_and(|(is, _)| is.epoch == cell.epoch)
        };
        if has(&|_, cell| owns(cell) && cell.learner.is_some()) {
            hub.reach("case 1: an owner crashes before its learner is synced");
        }
        if has(&|_, cell| owns(cell) && cell.backups.len() > 1) {
            hub.reach("case 2: an owner crashes between synced and switch");
        }
        if has(&|_, cell| cell.learner.as_ref().is_some_and(is_its)) {
            hub.reach("case 3: a learner crashes");
        }
        if has(&|id, cell| owns(cell) && !knows(id, cell)) {
            hub.reach("case 4: an owner crashes before it knows that it is one");
        }
        if self.log.leader() == Some(node) && has(&|_, cell| cell.learner.is_some()) {
            hub.reach("case 5: a leader crashes in the middle of a move");
        }
        if self.watch.last_release.is_some_and(|(of, at)| of == node && is_soon(hub, at)) {
            hub.reach("case 16: a crash after a release was answered");
        }
    }

    /// What can be seen of some others at any time.
    pub(super) fn count_states(&self, hub: &mut Hub) {
        let leaderless = hub.now.since(self.leaderless_since);
        if leaderless > NODE_LEASE && self.hosts.values().any(|host| host.process.is_some()) {
            hub.reach("case 6: no quorum for longer than a lease");
        }
    }

    /// A worker answers a renewal.
    pub(super) fn count_renewal(&self, hub: &mut Hub, process: &Process, worker: u16) {
        let owned = process.workers[usize::from(worker)].cells.iter();
        let mut owned = owned.filter(|(_, (is, _))| process.is_me(&is.owner));
        let is_deposed = owned.any(|(&id, (is, _))| {
            self.rules.state().cell(id).is_some_and(|cell| cell.epoch > is.epoch)
        });
        if is_deposed {
            hub.reach("case 9: a deposed owner answers a renewal");
        }
    }
}

fn is_soon(hub: &Hub, at: Time) -> bool {
    hub.now.since(at) < AT_ONCE
}

/// What runs must have come by of each case, under the name that it is counted by.
pub const CASES: [&str; 21] = [
    "case 1: an owner crashes before its learner is synced",
    "case 2: an owner crashes between synced and switch",
    "case 3: a learner crashes",
    "case 4: an owner crashes before it knows that it is one",
    "case 5: a leader crashes in the middle of a move",
    "case 6: no quorum for longer than a lease",
    // 7: an owner is alone in a minority.
    "nodes isolated",
    // 8: an owner and its backup are.
    "owner and backup alone together",
    "case 9: a deposed owner answers a renewal",
    // 10: clocks and pauses.
    "node pauses",
    // 11: a process starts with an empty memory while its node is taken for alive.
    "case 11: a node boots before it was taken for dead",
    "case 12: a worker is told of many entries at once",
    // 13: what is under way from before comes later.
    "messages of peers on an earlier connection",
    // 14: a retry of what another owner has, and of what was given up.
    "claims under their own ids",
    // 15: a release that comes late.
    "releases nobody confirmed",
    "case 16: a crash after a release was answered",
    // 17: all copies are lost.
    "taken over",
    // 18: a client finds the next owner of what it holds.
    "holds that went with their cells",
    // 19: numbers come to their end.
    "epochs wanted",
    // 20: everything starts anew.
    "all down",
    // 22: a control plane does not get to run.
    "late loops",
];
