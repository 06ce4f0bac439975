//! What is looked at as answers leave, and all the time: the protocol's own invariants, of which
//! clients see only what follows from them.
//!
//! - P2: whatever an answer shows is in the memory of every member that is there.
//! - P3: a copy takes in ops of the owner alone, by the entries that it does by, and within its
//!   node's lease.
//! - P5: nobody answers in an epoch before every member that is there has taken it in, and nobody
//!   what came when somebody had answered in a later one.
//! - P7: what a client believes to hold is in the memory of every member.
//! - I4: no owner, by the log and within its lease, lets a hold expire that its client believes in.
//!
//! P1, P4 and P6 are looked at as entries are committed. P8, that nobody is granted what somebody
//! believes in, and P9, that fences grow, are I1 and I3 of what clients see.

use super::Cluster;
use super::process::bits;
use super::turns::At;
use crate::hub::Hub;
use crate::keys::Keys;
use lockring_control::cluster::{Cell, NodeState, Replicas, Status};
use lockring_core::testing::{Ending, Fact, Hold, KeyId, Note, Noted, NotedSource};
use lockring_core::{PeerWorker, Time};
use lockring_proto::{Claim, Fence, Operation, Reply, Request, SessionId};
use lockring_ring::{CellId, Epoch, Member, Membership, NamespaceSeed, NodeId, hash_key};
use std::collections::{BTreeMap, BTreeSet};

/// What has to be remembered for it.
#[derive(Default)]
pub struct Watch {
    /// What each request asks for.
    asked: BTreeMap<(SessionId, u64), Asking>,
    /// Grants that were answered, by cell and fence.
    told: BTreeMap<(CellId, Fence), (SessionId, KeyId)>,
    freed: BTreeSet<(CellId, Fence)>,
    /// Requests that some worker was told to undo. An owner that is deposed and does not know it
    /// may still answer them.
    undone: BTreeSet<(SessionId, u64)>,
    /// Holds ended by force, as some worker executed it.
    forced: BTreeSet<(CellId, Fence)>,
    /// Holds that ended with their links' leases, by the node where they did.
    expired: BTreeSet<(NodeId, CellId, Fence)>,
    /// Who answered a release last, and when.
    pub(super) last_release: Option<(NodeId, Time)>,
    /// When a grant of each cell was answered last.
    granted: BTreeMap<CellId, Time>,
    /// When requests came to a worker, the first time, and of which cell they are.
    came: BTreeMap<(SessionId, u64, At), (CellId, Time)>,
    /// The last epoch of each cell in which anything was answered, and since when.
    epochs: BTreeMap<CellId, (Epoch, Time)>,
}

#[derive(Clone, Copy)]
enum Asking {
    Acquires(KeyId, Claim),
    Releases(KeyId, Fence),
}

/// The cell of a key.
pub fn cell_of(keys: &Keys, key: KeyId) -> CellId {
    let seed = NamespaceSeed::of(keys.space_name(key));
    bits().cell(hash_key(seed, keys.bytes(key)).position)
}

impl Watch {
    /// A session's requests are at a worker.
    pub fn asks(
        &mut self,
        keys: &Keys,
        (session, namespace): (SessionId, &str),
        (now, at): (Time, At),
        requests: &[Request<'_>],
    ) {
        for request in requests {
            let Request::Keyed { id, operation, key, .. } = request else { continue };
            // An operator names the namespace, if it is another.
            let space = Some(operation.namespace()).filter(|its| !its.is_empty());
            let cell = cell_of(keys, keys.id_named(space.unwrap_or(namespace), key));
            self.came.entry((session, *id, at)).or_insert((cell, now));
            let asking = match *operation {
                Operation::Acquire { claim, .. } => {
                    Asking::Acquires(keys.id_named(namespace, key), claim)
                }
                Operation::Release { fence } => {
                    Asking::Releases(keys.id_named(namespace, key), fence)
                }
                Operation::Cancel { target } => {
                    self.undone.insert((session, target));
                    continue;
                }
                _ => continue,
            };
            self.asked.insert((session, *id), asking);
        }
    }

    /// What a machine did. An operator's order that an owner carries out in vain, as it is one no
    /// more, is taken for done: nobody is blamed for such a hold then.
    pub fn notes(&mut self, hub: &mut Hub, (life, worker): At, workers: u16, notes: &[Note]) {
        for note in notes {
            hub.show(|| format!("{note:?}"));
            let Note::Op { cell, number, change, .. } = note else { continue };
            let cell = CellId(*cell as u16 * workers + worker);
            if let Noted::Granted { source, .. } = change {
                let fence = match source {
                    NotedSource::Reclaimed { fence, .. } => fence,
                    NotedSource::Asked { .. } | NotedSource::Queue => number,
                };
                // It has come back with the cell to where it had ended in vain.
                self.expired.remove(&(life.node, cell, *fence));
            }
            let &Noted::Ended { fence, cause } = change else { continue };
            let hold = (cell, fence);
            let told = self.told.get(&hold).copied();
            match cause {
                Ending::Forced => {
                    self.forced.insert(hold);
                    if let Some((session, key)) = told {
                        hub.fact(&Fact::Freed { session, key, fence, forced: true });
                    }
                }
                Ending::Expired => {
                    self.expired.insert((life.node, hold.0, fence));
                    if let Some((_, key)) = told {
                        hub.fact(&Fact::Expired { key, fence });
                    }
                }
                _ => {}
            }
        }
    }
}

impl Cluster {
    /// An answer leaves a worker.
    pub(super) fn check_answer(
        &mut self,
        hub: &mut Hub,
        keys: &Keys,
        at: At,
        session: SessionId,
        reply: &Reply,
    ) {
        if matches!(reply, Reply::Renewed { .. })
            && let Some(process) = self.hosts[&at.0.node].process.as_ref()
        {
            self.count_renewal(hub, process, at.1);
        }
        if !matches!(reply, Reply::Moved { .. } | Reply::Refused { .. } | Reply::Inspected { .. }) {
            self.check_epoch(hub, at, session, reply.id());
        }
        let asking = self.watch.asked.get(&(session, reply.id())).copied();
        match (reply, asking) {
            (&Reply::Granted { id, fence, .. }, Some(Asking::Acquires(key, claim))) => {
                let cell = cell_of(keys, key);
                self.check_members(hub, at, cell, fence);
                self.watch.granted.insert(cell, hub.now);
                let hold = (cell, fence);
                if self.watch.undone.contains(&(session, id)) {
                    return hub.reach("answers to what was undone");
                }
                if self.watch.expired.contains(&(at.0.node, cell, fence)) {
                    return hub.reach("answers to what has ended meanwhile");
                }
                if self.watch.told.insert(hold, (session, key)).is_none() {
                    let (request, alive) = (id, true);
                    hub.fact(&Fact::Granted { session, request, key, claim, fence, alive });
                    if self.watch.forced.contains(&hold) {
                        hub.fact(&Fact::Freed { session, key, fence, forced: true });
                    }
                }
            }
            (Reply::Released { .. }, Some(Asking::Releases(key, fence))) => {
                let cell = cell_of(keys, key);
                self.check_members(hub, at, cell, fence);
                self.watch.last_release = Some((at.0.node, hub.now));
                if self.watch.freed.insert((cell, fence)) {
                    hub.fact(&Fact::Freed { session, key, fence, forced: false });
                }
            }
            _ => {}
        }
    }

    /// I4 where it begins: whoever wants what has expired may be granted it, if anybody does.
    pub(super) fn check_expired(&self, hub: &mut Hub, at: At, workers: u16, notes: &[Note]) {
        let Some(host) = self.hosts.get(&at.0.node) else { return };
        let Some(process) = &host.process else { return };
        if host.clock.shows(hub.now) >= process.workers[usize::from(at.1)].lease {
            return;
        }
        for note in notes {
            let Note::Op { cell, change: Noted::Ended { fence, cause }, .. } = *note else {
                continue;
            };
            let cell = CellId(cell as u16 * workers + at.1);
            let owns = self.rules.state().cell(cell).is_some_and(|it| process.is_me(&it.owner));
            let told = self.watch.told.get(&(cell, fence));
            let (Ending::Expired, true, Some(&(_, key))) = (cause, owns, told) else { continue };
            let (now, book) = (hub.now, hub.recorder.book());
            let believes = |hold: &&Hold| hold.fence == fence && book.acts(now, hold);
            let found = book.believers(key).find(believes);
            let what = found.map(|hold| format!("{at:?}: {hold:?}, until {}", book.until(hold)));
            if let Some(what) = what {
                return hub.accuse("I4 nothing expires that is believed", what);
            }
        }
    }

    /// P5 for any answer that shows a cell.
    fn check_epoch(&mut self, hub: &mut Hub, at: At, session: SessionId, id: u64) {
        let Some(&(cell, came)) = self.watch.came.get(&(session, id, at)) else { return };
        let process = self.hosts.get(&at.0.node).and_then(|host| host.process.as_ref());
        let Some((is, _)) = process.and_then(|its| its.worker_of(cell).cells.get(&cell)) else {
            return;
        };
        let epoch = is.epoch;
        let last = self.watch.epochs.entry(cell).or_insert((epoch, hub.now));
        if epoch > last.0 {
            *last = (epoch, hub.now);
        } else if epoch < last.0 && last.1 < came {
            let what = format!(
                "{at:?} answers {id} of {session:?}, come at {came}, by {epoch:?} of {cell}, of \
                 which {:?} was answered at {}",
                last.0, last.1
            );
            hub.accuse("P5 nobody answers for a cell that another answers for", what);
        }
    }

    /// P2 and P5 for an answer that shows an op of a cell.
    fn check_members(&self, hub: &mut Hub, at: At, cell: CellId, fence: Fence) {
        let Some(process) = self.hosts.get(&at.0.node).and_then(|host| host.process.as_ref())
        else {
            return;
        };
        let Some((is, _)) = process.worker_of(cell).cells.get(&cell) else {
            return hub.accuse("P2 only an owner answers", format!("{at:?} has not {cell}"));
        };
        if !process.is_me(&is.owner) {
            return hub.accuse("P2 only an owner answers", format!("{at:?} of {cell}: {is:?}"));
        }
        let shown = self.hosts[&at.0.node].clock.shows(hub.now);
        let lease = process.workers[usize::from(at.1)].lease;
        if shown >= lease {
            let what = format!("{at:?} answers at {shown} of {cell}, its lease ended {lease}");
            return hub.accuse("P2 answered within the node's lease", what);
        }
        for member in &is.backups {
            let Some(has) = self.copy_of(cell, member) else { continue };
            if has.0 < fence {
                let what = format!("{member:?} has {has:?} of {cell} as {fence} is answered");
                hub.accuse("P2 answered is copied", what);
            }
        }
    }

    /// P3: what a worker has copied after a message, and had before.
    pub(super) fn check_taken(&self, hub: &mut Hub, at: At, peer: PeerWorker, before: &Copied) {
        let Some(host) = self.hosts.get(&at.0.node) else { return };
        let Some(process) = &host.process else { return };
        let worker = &process.workers[usize::from(at.1)];
        for (cell, last) in worker.machine.copied() {
            if before.contains(&(cell, last)) {
                continue;
            }
            let is = worker.cells.get(&cell).map(|(is, _)| is);
            let of_owner = |its: &&Membership| {
                (its.owner.node, its.owner.boot) == (peer.node, peer.boot)
                    && its.epoch >= last.epoch()
                    && its.copies().any(|copy| process.is_me(copy))
            };
            if is.filter(of_owner).is_none() || host.clock.shows(hub.now) >= worker.lease {
                let what = format!("{at:?} takes {last} of {cell} from {peer:?}: {is:?}");
                hub.accuse("P3 copies take in what owners send", what);
            }
        }
    }

    /// What a member's copy has, if its process is there and it is a copy by what it knows.
    fn copy_of(&self, cell: CellId, member: &Member) -> Option<(Fence, Holders)> {
        let process = self.hosts.get(&member.node)?.process.as_ref()?;
        if process.life.boot != member.boot {
            return None;
        }
        let worker = process.worker_of(cell);
        let (is, _) = worker.cells.get(&cell)?;
        let is_copy = is.copies().any(|copy| copy == member);
        let is_owner = is.owner == *member;
        (is_copy || is_owner).then(|| {
            let (last, contents) = worker.machine.contents(cell, is_copy);
            let holders = contents.into_values().flat_map(|(holders, _)| holders);
            (last, holders.collect())
        })
    }

    /// Every cell has whom it shall have, and nobody waits for anything.
    pub fn is_at_rest(&self, hub: &Hub) -> Result<(), String> {
        let state = self.rules.state();
        let open = state.nodes().values().filter(|node| node.is_open()).count();
        let backups = usize::from(state.replicas().0 == Replicas::One && open > 1);
        for (id, cell) in state.cells() {
            let rests = cell.loss.is_none() && cell.grace.is_none() && cell.learner.is_none();
            if !rests || cell.backups.len() != backups {
                return Err(format!("{id} is {cell:?}"));
            }
        }
        let is_away = |node: &&NodeState| node.status != Status::Up || node.leaving;
        if let Some(node) = state.nodes().values().find(is_away) {
            return Err(format!("a node is {node:?}"));
        }
        for id in state.nodes().keys() {
            let host = self.hosts.get(id).ok_or("a node without a host")?;
            let process = host.process.as_ref().ok_or("a node without a process")?;
            if process.control.state() != state || process.told() != state.memberships(process.life)
            {
                return Err(format!("{id} is behind at {}", hub.now));
            }
        }
        Ok(())
    }

    /// A hold that an owner keeps for a session that is over. Each promotion prolongs it by the TTL
    /// and a node's lease, as nobody knows when the session was heard last.
    pub fn hold_of_the_dead(&self, living: &BTreeSet<SessionId>) -> Option<String> {
        let of_cell = |(id, cell): (CellId, &Cell)| {
            let (_, holders) = self.copy_of(id, &cell.owner)?;
            let (session, fence) = holders.into_iter().find(|hold| !living.contains(&hold.0))?;
            Some(format!("{session:?} is over, and has {fence} of {id}"))
        };
        self.rules.state().cells().find_map(of_cell)
    }

    /// At rest every copy has what its owner has.
    pub fn check_copies(&self, hub: &mut Hub) {
        for (id, cell) in self.rules.state().cells() {
            let Some(owner) = self.copy_of(id, &cell.owner) else { continue };
            for member in &cell.backups {
                let copy = self.copy_of(id, member);
                hub.reach("copies compared at rest");
                if copy.as_ref() != Some(&owner) {
                    let what = format!("{id} at {member:?}: {copy:?}, its owner has {owner:?}");
                    hub.accuse("at rest copies equal their owners", what);
                }
            }
        }
    }

    /// When a grant of a cell was answered last.
    pub fn granted_at(&self, cell: CellId) -> Option<Time> {
        self.watch.granted.get(&cell).copied()
    }

    /// P7: what clients act on is in the memory of every member, by the log.
    pub fn check_holds(&self, hub: &mut Hub, keys: &Keys) {
        let mut by_cell: BTreeMap<CellId, Vec<(SessionId, Fence)>> = BTreeMap::new();
        let book = hub.recorder.book();
        for hold in book.holds.values().filter(|hold| book.acts(hub.now, hold)) {
            by_cell.entry(cell_of(keys, hold.key)).or_default().push((hold.session, hold.fence));
        }
        for (cell, holds) in by_cell {
            let Some(its) = self.rules.state().cell(cell) else { continue };
            if its.loss.is_some() || its.grace.is_some() {
                continue;
            }
            for member in std::iter::once(&its.owner).chain(&its.backups) {
                let Some((last, has)) = self.copy_of(cell, member) else { continue };
                if let Some(hold) = holds.iter().find(|hold| !has.contains(hold)) {
                    let what = format!(
                        "{member:?} has not {hold:?} of {cell}, but {has:?} at {last:?}: {its:?}"
                    );
                    return hub.accuse("P7 what is held is with every member", what);
                }
            }
        }
    }
}

/// The last op of each cell of which a worker has a copy.
pub(super) type Copied = Vec<(CellId, Fence)>;

type Holders = BTreeSet<(SessionId, Fence)>;
