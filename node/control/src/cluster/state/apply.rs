//! What each entry does.

use super::{Intent, Life, NodeState, State, Status};
use crate::cluster::cell::{Cell, Loss, Refused, is_life};
use crate::cluster::entry::{
    BATCH_CELLS_MAX, Before, CellChange, Entry, Floors, Index, NodeSpec, Process, Step,
};
use crate::cluster::mutant::Mutant;
use lockring_proto::limits::{TTL_MAX, WORKERS_MAX};
use lockring_ring::{
    AttachId, BootId, CellId, Epoch, MAX_NODES, Member, Membership, NodeId, RingVersion,
};
use std::collections::BTreeMap;

/// What an entry did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Applied {
    /// The cells that it changed, as they were before.
    pub before: BTreeMap<CellId, Cell>,
    /// Changes of cells that were void, as they were decided on something that is no longer so.
    pub refused: usize,
    /// It changed nothing at all, and was no blank.
    pub void: bool,
    /// There were no cells before.
    pub founded: bool,
    /// An address of a node is another.
    addresses: bool,
}

impl Applied {
    /// What has changed for a process, by this state after the entry: `None` is a cell in which it
    /// has no part any more.
    pub fn memberships(&self, state: &State, life: Life) -> Vec<(CellId, Option<Membership>)> {
        if self.founded {
            let all = state.memberships(life).into_iter();
            return all.map(|(id, membership)| (id, Some(membership))).collect();
        }
        let of = |(&id, before): (&CellId, &Cell)| {
            let before = before.membership(life.node, life.boot);
            let after = state.cell(id)?.membership(life.node, life.boot);
            (before != after).then_some((id, after))
        };
        self.before.iter().filter_map(of).collect()
    }
}

/// Whether a process can be a node's.
pub(super) fn is_sound(process: &Process) -> bool {
    let workers = process.workers;
    process.boot != BootId(0) && workers.is_power_of_two() && workers <= WORKERS_MAX
}

/// Whether a cluster can begin above these, and count on. Of epochs an operator may leave few.
fn leave_room(floors: &Floors) -> bool {
    floors.epoch < Epoch::LAST
        && floors.version.0 < u64::MAX / 2
        && floors.attach.0 < u64::MAX / 2
        && floors.node.0 < u32::MAX / 2
}

impl State {
    /// Takes the next entry in.
    ///
    /// # Panics
    /// When the entry is not later than those before it: the log is broken.
    pub fn apply(&mut self, index: Index, entry: &Entry) -> Applied {
        assert!(index > self.applied, "{index:?} after {:?}", self.applied);
        self.applied = index;
        let mut applied = Applied::default();
        let done = match entry {
            Entry::Blank => true,
            Entry::Join(spec) => self.join(index, spec, &mut applied),
            Entry::Recover(spec, floors) => self.recover(index, spec, floors, &mut applied),
            Entry::Boot { node, before, process, is_over } => {
                let loss = match *is_over || self.mutant == Some(Mutant::BootIsAnEnd) {
                    true => Loss::Over,
                    false => Loss::Down,
                };
                self.boot(index, (*node, *before), process, loss, &mut applied)
            }
            Entry::Down(node, boot) => self.down(index, (*node, *boot), &mut applied),
            Entry::Up(node, boot) => self.up(index, (*node, *boot), &mut applied),
            Entry::Stopped { node, boot, ring } => {
                self.stopped(index, (*node, *boot), *ring, &mut applied)
            }
            Entry::Leave(node) => self.leave(index, *node),
            Entry::Remove(node) => self.remove(index, *node, &mut applied),
            Entry::Weight { node, revision, weight } => {
                self.weigh(index, *node, *revision, *weight)
            }
            Entry::Cells(changes) => self.change_cells(index, changes, &mut applied),
            Entry::RaiseLongestTtl { .. }
            | Entry::IntendLongestTtl(_)
            | Entry::LowerLongestTtl { .. } => self.set_longest(index, entry),
            Entry::Policy { replicas, revision } => {
                let stands = *revision == self.replicas.1 && *replicas != self.replicas.0;
                if stands {
                    self.replicas = (*replicas, index);
                    self.planned = index;
                }
                stands
            }
        };
        applied.void = !done;
        self.finish(index, &mut applied);
        applied
    }

    fn join(&mut self, index: Index, spec: &NodeSpec, applied: &mut Applied) -> bool {
        let boot = spec.process.boot;
        let is_known = self.nodes.values().any(|node| node.joined == boot);
        let is_full = self.nodes.len() >= MAX_NODES;
        if is_known || is_full || self.retired.contains(&boot) || !is_sound(&spec.process) {
            return false;
        }
        let id = self.add(index, spec);
        applied.addresses = true;
        applied.founded = self.cells.is_empty();
        if applied.founded {
            self.found(index, Life { node: id, boot }, Epoch(1), None);
        } else {
            self.alone = false;
        }
        true
    }

    fn recover(
        &mut self,
        index: Index,
        spec: &NodeSpec,
        floors: &Floors,
        applied: &mut Applied,
    ) -> bool {
        if !self.cells.is_empty() || !is_sound(&spec.process) || !leave_room(floors) {
            return false;
        }
        (self.next_node, self.next_attach) = (floors.node, floors.attach);
        if self.mutant != Some(Mutant::RecoverRepeatsVersions) {
            self.version = floors.version;
        }
        if floors.longest_ttl > self.longest.ttl {
            self.longest.ttl = floors.longest_ttl.min(TTL_MAX);
            self.longest.by.clone_from(&floors.longest_by);
        }
        let loss = match floors.before {
            Before::Unknown => Loss::Unknown,
            Before::One => Loss::Over,
            Before::Nothing => Loss::Empty,
        };
        self.alone = floors.before != Before::Unknown;
        let node = self.add(index, spec);
        // No process: whoever served these cells is not known.
        let nobody = Life { node, boot: BootId(0) };
        self.found(index, nobody, floors.epoch, Some(loss));
        (applied.addresses, applied.founded) = (true, true);
        true
    }

    /// A new node, under an id that no other ever had.
    fn add(&mut self, index: Index, spec: &NodeSpec) -> NodeId {
        let id = self.next_node;
        self.next_node = NodeId(id.0 + 1);
        self.planned = index;
        let node = NodeState {
            spec: spec.clone(),
            joined: spec.process.boot,
            status: Status::Up,
            leaving: false,
            revision: index,
            taken: Index(0),
        };
        self.nodes.insert(id, node);
        id
    }

    /// Every cell is one process's.
    fn found(&mut self, index: Index, life: Life, epoch: Epoch, loss: Option<Loss>) {
        let since = RingVersion(self.version.0 + 1);
        self.cells = (0..self.bits.cells())
            .map(|_| Cell {
                revision: index,
                epoch,
                since,
                takeover: epoch,
                owner: self.attachment(life.node, life.boot),
                backups: Vec::new(),
                learner: None,
                grace: None,
                loss,
            })
            .collect();
    }

    fn attachment(&mut self, node: NodeId, boot: BootId) -> Member {
        let attach = self.next_attach;
        self.next_attach = AttachId(attach.0 + 1);
        Member { node, boot, attach }
    }

    fn boot(
        &mut self,
        index: Index,
        (id, before): (NodeId, BootId),
        process: &Process,
        loss: Loss,
        applied: &mut Applied,
    ) -> bool {
        let stands = |node: &&mut NodeState| node.spec.process.boot == before;
        let Some(node) = self.nodes.get_mut(&id).filter(stands) else { return false };
        if !is_sound(process) || process.boot == before {
            return false;
        }
        node.spec.process = process.clone();
        (node.status, node.revision, self.planned) = (Status::Up, index, index);
        applied.addresses = true;
        if self.mutant != Some(Mutant::BootIgnored) {
            self.lose(id, before, loss, applied);
        }
        true
    }

    fn down(&mut self, index: Index, (id, boot): (NodeId, BootId), applied: &mut Applied) -> bool {
        let Some(node) = self.nodes.get_mut(&id).filter(|node| node.is_up(boot)) else {
            return false;
        };
        (node.status, node.revision, node.taken) = (Status::Down, index, index);
        self.planned = index;
        self.lose(id, boot, Loss::Down, applied);
        true
    }

    /// Derives every promotion, drop and lost cell from the end of a process.
    fn lose(&mut self, node: NodeId, boot: BootId, loss: Loss, applied: &mut Applied) {
        let mutant = self.mutant;
        let is_in = |cell: &Cell| cell.members().any(|member| member.node == node);
        self.edit_all(applied, is_in, |cell| cell.lose(node, boot, loss, mutant));
    }

    fn up(&mut self, index: Index, (id, boot): (NodeId, BootId), applied: &mut Applied) -> bool {
        let stands =
            |node: &&mut NodeState| node.status == Status::Down && node.spec.process.boot == boot;
        let Some(node) = self.nodes.get_mut(&id).filter(stands) else { return false };
        (node.status, node.revision, self.planned) = (Status::Up, index, index);
        let is_its = |cell: &Cell| is_life(&cell.owner, id, boot);
        self.edit_all(applied, is_its, |cell| cell.regain(id, boot));
        true
    }

    fn stopped(
        &mut self,
        index: Index,
        (id, boot): (NodeId, BootId),
        ring: RingVersion,
        applied: &mut Applied,
    ) -> bool {
        let stands = |node: &&mut NodeState| node.spec.process.boot == boot;
        let Some(node) = self.nodes.get_mut(&id).filter(stands) else { return false };
        let was_up = node.status == Status::Up;
        if was_up {
            (node.status, node.revision, node.taken) = (Status::Down, index, index);
            self.planned = index;
        }
        let mutant = self.mutant;
        let is_in = |cell: &Cell| cell.members().any(|member| member.node == id);
        self.edit_all(applied, is_in, |cell| {
            let owes = cell.grace.is_some() && mutant != Some(Mutant::StopForgetsGrace);
            let owes = owes || cell.since > ring;
            let loss = if owes { Loss::Over } else { Loss::Empty };
            cell.lose(id, boot, loss, mutant);
        });
        was_up || !applied.before.is_empty()
    }

    /// Changes every cell of a kind, and keeps what was before.
    fn edit_all(
        &mut self,
        applied: &mut Applied,
        which: impl Fn(&Cell) -> bool,
        edit: impl Fn(&mut Cell),
    ) {
        for (id, cell) in self.cells.iter_mut().enumerate().filter(|(_, cell)| which(cell)) {
            let before = cell.clone();
            edit(cell);
            if *cell != before {
                applied.before.insert(CellId(id as u16), before);
            }
        }
    }

    fn leave(&mut self, index: Index, id: NodeId) -> bool {
        let stays = |node: &&mut NodeState| !node.leaving;
        let Some(node) = self.nodes.get_mut(&id).filter(stays) else { return false };
        (node.leaving, node.revision, self.planned) = (true, index, index);
        true
    }

    fn remove(&mut self, index: Index, id: NodeId, applied: &mut Applied) -> bool {
        let leaves = self.nodes.get(&id).is_some_and(|node| node.leaving);
        if !leaves || self.is_in_use(id) {
            return false;
        }
        if let Some(node) = self.nodes.remove(&id) {
            self.retired.insert(node.joined);
        }
        self.planned = index;
        applied.addresses = true;
        true
    }

    fn weigh(&mut self, index: Index, id: NodeId, revision: Index, weight: u32) -> bool {
        let stands =
            |node: &&mut NodeState| node.revision == revision && node.spec.weight != weight;
        let Some(node) = self.nodes.get_mut(&id).filter(stands) else { return false };
        (node.spec.weight, node.revision, self.planned) = (weight, index, index);
        true
    }

    fn change_cells(
        &mut self,
        index: Index,
        changes: &[CellChange],
        applied: &mut Applied,
    ) -> bool {
        if changes.len() > BATCH_CELLS_MAX {
            return false;
        }
        for change in changes {
            if self.change_cell(index, change, applied).is_err() {
                applied.refused += 1;
            }
        }
        applied.refused < changes.len()
    }

    /// One cell's compare and swap.
    fn change_cell(
        &mut self,
        index: Index,
        change: &CellChange,
        applied: &mut Applied,
    ) -> Result<(), Refused> {
        let newcomer = match change.step {
            Step::Attach(node, boot) | Step::Takeover(node, boot) => {
                if !self.is_up(Life { node, boot }) {
                    return Err(Refused);
                }
                Some(self.attachment(node, boot))
            }
            _ => None,
        };
        let (grace, mutant) = (self.grace(), self.mutant);
        let cell = self.cells.get_mut(usize::from(change.cell.0)).ok_or(Refused)?;
        if cell.revision != change.revision && mutant != Some(Mutant::CompareIgnored) {
            return Err(Refused);
        }
        let before = cell.clone();
        match (change.step, newcomer) {
            (Step::Attach(..), Some(learner)) => cell.attach(learner)?,
            (Step::Takeover(..), Some(owner)) => cell.take_over(owner, grace)?,
            (Step::Attach(..) | Step::Takeover(..), None) => return Err(Refused),
            (Step::Synced, _) => cell.synced()?,
            (Step::Switch(to), _) => cell.switch(to, mutant)?,
            (Step::Drop(node), _) => cell.drop_backup(node)?,
            (Step::Detach, _) => cell.detach()?,
            (Step::Recovered, _) => cell.recovered()?,
            (Step::Bump, _) => cell.bump(mutant)?,
        }
        // At once: a second change of the cell in this entry was decided on what is gone.
        cell.revision = index;
        applied.before.entry(change.cell).or_insert(before);
        Ok(())
    }

    fn set_longest(&mut self, index: Index, entry: &Entry) -> bool {
        let longest = &mut self.longest;
        match entry {
            Entry::RaiseLongestTtl { ttl, by } => {
                let ttl = (*ttl).min(TTL_MAX);
                let changes = longest.intent.take().is_some();
                if ttl > longest.ttl {
                    (longest.ttl, longest.by) = (ttl, by.clone());
                    return true;
                }
                changes
            }
            Entry::IntendLongestTtl(ttl) => {
                let falls = *ttl < longest.ttl;
                if falls && self.mutant == Some(Mutant::LoweredInOneEntry) {
                    longest.ttl = *ttl;
                } else if falls {
                    longest.intent = Some(Intent { ttl: *ttl, at: index });
                }
                falls
            }
            Entry::LowerLongestTtl { intent, by } => {
                let Some(stands) = longest.intent.filter(|it| it.at == *intent) else {
                    return false;
                };
                (longest.ttl, longest.by, longest.intent) = (stands.ttl, by.clone(), None);
                true
            }
            _ => false,
        }
    }

    /// What follows from the changes of cells alone: their revision, the version of the ring, and
    /// to what leases are bound.
    fn finish(&mut self, index: Index, applied: &mut Applied) {
        let mut visible = applied.addresses;
        for (id, before) in &applied.before {
            visible |= self.cells[usize::from(id.0)].face() != before.face();
        }
        self.version.0 += u64::from(visible);
        for (id, before) in &applied.before {
            let cell = &mut self.cells[usize::from(id.0)];
            cell.revision = index;
            if cell.epoch != before.epoch {
                cell.since = self.version;
            }
            for member in taken(before, cell) {
                if let Some(node) = self.nodes.get_mut(&member.node) {
                    node.taken = index;
                }
            }
        }
    }
}

/// Who has less of a cell than before.
fn taken(before: &Cell, after: &Cell) -> Vec<Member> {
    let standing = |cell: &Cell, member: &Member| match member {
        member if cell.owner == *member => 3,
        member if cell.backups.contains(member) => 2,
        member if cell.learner.as_ref() == Some(member) => 1,
        _ => 0,
    };
    let has_less = |member: &&Member| standing(after, member) < standing(before, member);
    before.members().filter(has_less).copied().collect()
}
