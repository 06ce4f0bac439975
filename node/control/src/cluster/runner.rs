//! What the leader does about where cells are: plans with the ring's planner, and leads every cell
//! to its target one step after the other.
//!
//! Nothing but the targets is remembered of a plan. The next step of a cell follows from what it
//! is and what it shall be, so that it does not matter which steps were lost, done twice, or made
//! void by the loss of a node.

use super::cell::{Cell, Loss};
use super::entry::{BATCH_CELLS_MAX, CellChange, Entry, Index, NodeSpec, Replicas, Step};
use super::state::{Life, NodeState, State, Status};
use lockring_proto::Time;
use lockring_ring::{AttachId, CellId, Change, NodeId, Placement, RingVersion, plan};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// Most cells of which a node is being given a copy, and most that it is giving one of: two
/// batches each.
const UNDER_WAY_MAX: usize = 2 * BATCH_CELLS_MAX;

/// A learner that is not synced by then is given up.
const STUCK: Duration = Duration::from_secs(30);

/// How long two nodes of which one did not hear the other are not tried again.
const SHUNNED: Duration = Duration::from_secs(10);

/// Cells for its weight are compared in parts of so many.
const SHARE: u64 = 1 << 20;

/// Which cells come first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Urgency {
    /// It has one copy and shall have two.
    Bare,
    /// Its owner leaves.
    Leaving,
    /// It gets a backup elsewhere.
    Backup,
    /// It gets another owner.
    Owner,
}

/// How many cells are under way to and from each node.
#[derive(Debug, Default)]
struct Traffic {
    to: BTreeMap<NodeId, usize>,
    from: BTreeMap<NodeId, usize>,
}

impl Traffic {
    /// Of the learners there are, and of those that are proposed.
    fn of(state: &State, under_way: &[CellChange]) -> Self {
        let mut traffic = Self::default();
        for (_, cell) in state.cells() {
            if let Some(learner) = cell.learner {
                traffic.count(cell.owner.node, learner.node);
            }
        }
        for &CellChange { cell, revision, step } in under_way {
            let stands = |cell: &&Cell| cell.revision == revision;
            if let (Step::Attach(to, _), Some(cell)) = (step, state.cell(cell).filter(stands)) {
                traffic.count(cell.owner.node, to);
            }
        }
        traffic
    }

    fn count(&mut self, from: NodeId, to: NodeId) {
        *self.from.entry(from).or_default() += 1;
        *self.to.entry(to).or_default() += 1;
    }

    /// Whether there is room for one more, which is then counted.
    fn admits(&mut self, from: NodeId, to: NodeId) -> bool {
        let below = |count: Option<&usize>| count.is_none_or(|&count| count < UNDER_WAY_MAX);
        let admits = below(self.from.get(&from)) && below(self.to.get(&to));
        if admits {
            self.count(from, to);
        }
        admits
    }
}

/// Carries plans out.
#[derive(Clone, Debug, Default)]
pub(super) struct Runner {
    /// For what nodes and policy the targets were made.
    planned: Option<Index>,
    /// Where each cell shall be.
    targets: Vec<Placement>,
    /// Since when each learner has been one, as far as this leader saw.
    learners: BTreeMap<CellId, (AttachId, Time)>,
    /// Owners and copies that do not hear each other, and until when they are not tried.
    shunned: BTreeMap<(NodeId, NodeId), Time>,
    /// Learners that were given up.
    pub stuck: u64,
}

impl Runner {
    /// A copy of a cell does not acknowledge to its owner.
    pub fn shun(&mut self, now: Time, owner: NodeId, copy: NodeId) {
        self.shunned.insert((owner, copy), now.after(SHUNNED));
    }

    /// The entries that are due, but for cells of which a change is under way: proposed, and not in
    /// the state yet. `is_over` says whether the lease of a process, or with `None` of any earlier
    /// one, has surely ended.
    pub fn look(
        &mut self,
        now: Time,
        state: &State,
        under_way: &[CellChange],
        is_over: impl Fn(Option<Life>) -> bool,
    ) -> Vec<Entry> {
        self.plan(state);
        self.shunned.retain(|_, until| now < *until);
        let cells: BTreeSet<CellId> = under_way.iter().map(|change| change.cell).collect();
        let rests = |(id, _): &(CellId, &Cell)| !cells.contains(id);
        let mut changes = self.takeovers(state, rests, is_over);
        changes.extend(self.stuck(now, state, rests));
        changes.extend(self.steps(state, rests, Traffic::of(state, under_way)));
        let mut entries: Vec<Entry> =
            changes.chunks(BATCH_CELLS_MAX).map(|batch| Entry::Cells(batch.to_vec())).collect();
        entries.extend(gone(state).map(Entry::Remove));
        entries
    }

    /// Makes the targets anew when nodes or policy have changed.
    fn plan(&mut self, state: &State) {
        if self.planned == Some(state.planned()) {
            return;
        }
        self.planned = Some(state.planned());
        self.targets = targets(state);
    }

    /// Lost cells whose last owner answers nothing any more are begun anew.
    fn takeovers(
        &self,
        state: &State,
        rests: impl Fn(&(CellId, &Cell)) -> bool,
        is_over: impl Fn(Option<Life>) -> bool,
    ) -> Vec<CellChange> {
        let due = |(_, cell): &(CellId, &Cell)| {
            let owner = Life { node: cell.owner.node, boot: cell.owner.boot };
            match cell.loss {
                None => false,
                Some(Loss::Over | Loss::Empty) => true,
                Some(Loss::Down) => is_over(Some(owner)),
                Some(Loss::Unknown) => is_over(None),
            }
        };
        let take_over = |(id, cell): (CellId, &Cell)| {
            let to = self.successor(state, id, cell)?;
            let boot = state.nodes()[&to].spec.process.boot;
            Some(change(id, cell, Step::Takeover(to, boot)))
        };
        state.cells().filter(rests).filter(due).filter_map(take_over).collect()
    }

    /// Who takes a lost cell over: the node that had it, if it is back, else whom the plan gives
    /// it to, else anybody.
    fn successor(&self, state: &State, id: CellId, cell: &Cell) -> Option<NodeId> {
        let is_open = |node: &NodeId| state.nodes().get(node).is_some_and(NodeState::is_open);
        let planned = self.targets.get(usize::from(id.0)).map(|target| target.owner);
        let known = [Some(cell.owner.node), planned].into_iter().flatten().find(is_open);
        let up = || state.nodes().iter().find(|(_, node)| node.status == Status::Up);
        known
            .or_else(|| state.nodes().keys().copied().find(is_open))
            .or_else(|| up().map(|(&node, _)| node))
    }

    /// Learners that take too long.
    fn stuck(
        &mut self,
        now: Time,
        state: &State,
        rests: impl Fn(&(CellId, &Cell)) -> bool,
    ) -> Vec<CellChange> {
        let mut known = BTreeMap::new();
        let mut stuck = Vec::new();
        for (id, cell) in state.cells() {
            let Some(learner) = cell.learner else { continue };
            let before = self.learners.get(&id).filter(|(attach, _)| *attach == learner.attach);
            let since = before.map_or(now, |(_, since)| *since);
            known.insert(id, (learner.attach, since));
            if now.since(since) >= STUCK && rests(&(id, cell)) {
                self.stuck += 1;
                self.shunned.insert((cell.owner.node, learner.node), now.after(SHUNNED));
                stuck.push(change(id, cell, Step::Detach));
            }
        }
        self.learners = known;
        stuck
    }

    /// The next step of every cell that is not where it shall be, the most urgent first.
    fn steps(
        &self,
        state: &State,
        rests: impl Fn(&(CellId, &Cell)) -> bool,
        mut traffic: Traffic,
    ) -> Vec<CellChange> {
        let is_open = |node: NodeId| state.nodes().get(&node).is_some_and(NodeState::is_open);
        let may_attach = |from, to| self.may_attach(state, from, to);
        let of = |(id, cell): (CellId, &'_ Cell)| {
            let target = *self.targets.get(usize::from(id.0))?;
            let step = next_step(cell, target, is_open, may_attach)?;
            Some((urgency(state, cell, target), id, step))
        };
        let mut steps: Vec<(Urgency, CellId, Aim)> =
            state.cells().filter(rests).filter_map(of).collect();
        steps.sort_by_key(|(urgency, id, _)| (*urgency, *id));
        let mut loads = None;
        let admitted = steps.into_iter().filter_map(|(_, id, aim)| {
            let cell = state.cell(id)?;
            let to = match aim {
                Aim::Step(step) => return Some(change(id, cell, step)),
                Aim::Copy(to) => traffic.admits(cell.owner.node, to).then_some(to)?,
                Aim::StandIn => {
                    let loads = loads.get_or_insert_with(|| loads_of(state));
                    let to = self.stand_in(state, cell, loads, &mut traffic)?;
                    *loads.entry(to).or_default() += 1;
                    to
                }
            };
            let boot = state.nodes()[&to].spec.process.boot;
            Some(change(id, cell, Step::Attach(to, boot)))
        });
        admitted.collect()
    }

    /// Who gets a copy in place of a target that cannot: of the nodes that can, one that does not
    /// fail with the owner if there is such a one, and of these the one with the fewest cells for
    /// its weight.
    fn stand_in(
        &self,
        state: &State,
        cell: &Cell,
        loads: &BTreeMap<NodeId, u64>,
        traffic: &mut Traffic,
    ) -> Option<NodeId> {
        let owner = cell.owner.node;
        let near = state.nodes().get(&owner)?;
        let is_in = |node| cell.members().any(|member| member.node == node);
        let can = |(node, known): &(&NodeId, &NodeState)| {
            known.is_open() && !is_in(**node) && self.may_attach(state, owner, **node)
        };
        let rank = |(&node, known): (&NodeId, &NodeState)| {
            let load = loads.get(&node).copied().unwrap_or_default();
            let share = load * SHARE / u64::from(known.spec.weight);
            let (spec, beside) = (&known.spec, &near.spec);
            (domain(spec) == domain(beside), spec.host == beside.host, share, node)
        };
        let mut ranks: Vec<_> = state.nodes().iter().filter(can).map(rank).collect();
        ranks.sort_unstable();
        ranks.into_iter().map(|(.., node)| node).find(|&node| traffic.admits(owner, node))
    }

    fn may_attach(&self, state: &State, from: NodeId, to: NodeId) -> bool {
        let is_up = |node| state.nodes().get(&node).is_some_and(|it| it.status == Status::Up);
        is_up(from) && is_up(to) && !self.shunned.contains_key(&(from, to))
    }
}

fn change(cell: CellId, state: &Cell, step: Step) -> CellChange {
    CellChange { cell, revision: state.revision, step }
}

/// What a node fails with: its zone, and the nodes of its host where no zone is known.
fn domain(spec: &NodeSpec) -> (bool, &str) {
    (spec.zone.is_some(), spec.zone.as_ref().unwrap_or(&spec.host))
}

/// How many cells each node has a part in.
fn loads_of(state: &State) -> BTreeMap<NodeId, u64> {
    let mut loads = BTreeMap::new();
    for member in state.cells().flat_map(|(_, cell)| cell.members()) {
        *loads.entry(member.node).or_default() += 1;
    }
    loads
}

/// What a cell needs next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Aim {
    /// A copy at this node.
    Copy(NodeId),
    /// A copy anywhere: where it shall be, it cannot be now.
    StandIn,
    /// This.
    Step(Step),
}

/// What leads a cell towards its target: first who is missing becomes a backup, then the owner is
/// changed, at last who is not wanted any more is dropped.
///
/// A target that cannot be attached, as the owner and it do not hear each other, is waited for with
/// whatever copy there is, and nobody moves to and fro meanwhile: a cell without one gets one
/// elsewhere, which stays until the target has its own, and an owner that has to go hands over to
/// the copy it has.
fn next_step(
    cell: &Cell,
    target: Placement,
    is_open: impl Fn(NodeId) -> bool,
    may_attach: impl Fn(NodeId, NodeId) -> bool,
) -> Option<Aim> {
    if cell.loss.is_some() {
        return None;
    }
    let owner = cell.owner.node;
    let backups = || cell.backups.iter().map(|backup| backup.node);
    let wanted = |node: NodeId| node == target.owner || Some(node) == target.backup;
    let (must_go, lasting) = (!is_open(owner), backups().find(|&node| is_open(node)));
    let is_bare = lasting.is_none() && (target.backup.is_some() || must_go);
    if let Some(learner) = cell.learner.map(|learner| learner.node) {
        let helps = wanted(learner) || (is_bare && is_open(learner));
        return (!helps).then_some(Aim::Step(Step::Detach));
    }
    let is_in = |node: NodeId| owner == node || backups().any(|backup| backup == node);
    // Who does not stay anyhow goes first.
    let extra = backups().filter(|&node| !wanted(node)).min_by_key(|&node| is_open(node));
    let drop_extra = || extra.map(|node| Aim::Step(Step::Drop(node)));
    let switch = |to: NodeId| cell.grace.is_none().then_some(Aim::Step(Step::Switch(to)));
    let missing = || [target.backup, Some(target.owner)].into_iter().flatten();
    let missing = || missing().filter(|&node| !is_in(node));
    match missing().find(|&node| may_attach(owner, node)) {
        // Two backups are the most: the one that is not wanted makes room.
        _ if missing().next().is_some() && cell.backups.len() > 1 => drop_extra(),
        Some(node) => Some(Aim::Copy(node)),
        None if owner != target.owner && is_in(target.owner) => switch(target.owner),
        None if missing().next().is_none() => drop_extra(),
        None if is_bare => Some(Aim::StandIn),
        None if must_go => lasting.and_then(switch),
        None if target.backup.is_none() => drop_extra(),
        None => None,
    }
}

fn urgency(state: &State, cell: &Cell, target: Placement) -> Urgency {
    let leaves = state.nodes().get(&cell.owner.node).is_some_and(|node| node.leaving);
    match (cell.backups.is_empty() && target.backup.is_some(), leaves) {
        (true, _) => Urgency::Bare,
        (false, true) => Urgency::Leaving,
        (false, false) if cell.owner.node == target.owner => Urgency::Backup,
        (false, false) => Urgency::Owner,
    }
}

/// Where each cell shall be, once all nodes that leave have left. Without a node that may have
/// cells: where it is.
fn targets(state: &State) -> Vec<Placement> {
    let Some(table) = state.layout() else { return Vec::new() };
    let out = |(&node, known): (&NodeId, &NodeState)| match known.status {
        Status::Down => Some(Change::Crash(node)),
        Status::Up if known.leaving => Some(Change::Leave(node)),
        Status::Up => None,
    };
    let changes: Vec<Change> = state.nodes().iter().filter_map(out).collect();
    let next = RingVersion(table.version().0 + 1);
    let planned = plan(&table, &changes).ok().and_then(|plan| plan.apply(&table, next).ok());
    let target = planned.unwrap_or(table);
    let wanted = |cell| {
        let at = target.placement(cell);
        match state.replicas().0 {
            Replicas::One => at,
            Replicas::None => Placement { backup: None, ..at },
        }
    };
    target.cells().map(wanted).collect()
}

/// Nodes that leave and have nothing any more.
fn gone(state: &State) -> impl Iterator<Item = NodeId> {
    let leaving = state.nodes().iter().filter(|(_, node)| node.leaving).map(|(&node, _)| node);
    leaving.filter(|&node| !state.is_in_use(node))
}

#[cfg(test)]
mod tests;
