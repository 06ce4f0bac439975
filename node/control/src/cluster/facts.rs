//! What a node's workers know and the log does not yet: it is asked for until the state has it.

use super::cell::{Cell, is_life};
use super::entry::{BATCH_CELLS_MAX, CellChange, Entry, Index, Process, Step};
use super::event::WorkerEvent;
use super::state::{Life, State, Status};
use lockring_proto::Time;
use lockring_ring::{AttachId, BootId, CellId, Epoch, NodeId, RingVersion};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// Who asked and sees no effect asks again after this.
const AGAIN: Duration = Duration::from_millis(200);

/// Something that a worker said of a cell, of a state of it that may be over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Said {
    Synced(AttachId),
    Recovered(Epoch),
    EpochAsked(Epoch),
}

/// All of it.
#[derive(Clone, Debug, Default)]
pub(super) struct Facts {
    /// And when it was last asked for.
    said: BTreeMap<(CellId, Said), Option<Time>>,
    /// When the entry about the node itself was last asked for.
    own: Option<Time>,
    /// Copies that are silent, by their node.
    silent: BTreeMap<NodeId, BTreeSet<CellId>>,
}

impl Facts {
    /// A worker said something. What is not about a cell is none of this.
    pub fn said(&mut self, event: &WorkerEvent) {
        let (cell, said) = match *event {
            WorkerEvent::Synced(cell, attach) => (cell, Said::Synced(attach)),
            WorkerEvent::Recovered(cell, epoch) => (cell, Said::Recovered(epoch)),
            WorkerEvent::EpochAsked(cell, epoch) => (cell, Said::EpochAsked(epoch)),
            WorkerEvent::Silent(cell, node) => {
                self.silent.entry(node).or_default().insert(cell);
                return;
            }
            WorkerEvent::Applied(_)
            | WorkerEvent::TtlAsked { .. }
            | WorkerEvent::TtlStated { .. } => return,
        };
        self.said.entry((cell, said)).or_default();
    }

    /// What is to be proposed now. `applied` is the last entry that every worker does by: what a
    /// worker said of a cell is about no later state of it.
    pub fn entries(&mut self, now: Time, state: &State, me: Life, applied: Index) -> Vec<Entry> {
        let mut changes = Vec::new();
        self.said.retain(|(id, said), asked| {
            let Some(cell) = state.cell(*id).filter(|cell| is_owned(cell, me)) else {
                return false;
            };
            let Some(step) = step(cell, *said) else { return false };
            let is_due = asked.is_none_or(|asked| now.since(asked) >= AGAIN);
            // What is said of a cell that is taken for lost is kept: it may be regained.
            if is_due && cell.revision <= applied && cell.loss.is_none() {
                *asked = Some(now);
                changes.push(CellChange { cell: *id, revision: cell.revision, step });
            }
            true
        });
        let batches = changes.chunks(BATCH_CELLS_MAX);
        batches.map(|batch| Entry::Cells(batch.to_vec())).collect()
    }

    /// What the log is to say of this process, if it has it wrong and that is to be asked now.
    pub fn own(
        &mut self,
        now: Time,
        state: &State,
        (process, after): (&Process, Option<BootId>),
        (me, ended): (NodeId, Option<RingVersion>),
    ) -> Option<Entry> {
        let known = state.nodes().get(&me)?;
        let before = known.spec.process.boot;
        let entry = match known.status {
            _ if before == process.boot && ended.is_some() => {
                Entry::Stopped { node: me, boot: before, ring: ended? }
            }
            _ if before != process.boot => {
                let is_over = after == Some(before);
                Entry::Boot { node: me, before, process: process.clone(), is_over }
            }
            Status::Down => Entry::Up(me, process.boot),
            Status::Up => return None,
        };
        let is_due = self.own.is_none_or(|asked| now.since(asked) >= AGAIN);
        is_due.then(|| {
            self.own = Some(now);
            entry
        })
    }

    /// Silent copies to report, each once: whoever is still silent is said to be so again.
    pub fn silent(&mut self, state: &State, me: Life) -> Vec<(NodeId, Vec<(CellId, Index)>)> {
        let mut reports = Vec::new();
        for (copy, cells) in std::mem::take(&mut self.silent) {
            let own = |id: CellId| {
                let cell = state.cell(id).filter(|cell| is_owned(cell, me))?;
                Some((id, cell.revision))
            };
            let cells: Vec<_> = cells.into_iter().filter_map(own).collect();
            let batches = cells.chunks(BATCH_CELLS_MAX);
            reports.extend(batches.map(|batch| (copy, batch.to_vec())));
        }
        reports
    }
}

fn is_owned(cell: &Cell, me: Life) -> bool {
    is_life(&cell.owner, me.node, me.boot)
}

/// What a cell needs as its worker said so; nothing if that is done or over.
fn step(cell: &Cell, said: Said) -> Option<Step> {
    match said {
        Said::Synced(attach) => {
            cell.learner.is_some_and(|learner| learner.attach == attach).then_some(Step::Synced)
        }
        Said::Recovered(epoch) => {
            (cell.epoch == epoch && cell.grace.is_some()).then_some(Step::Recovered)
        }
        Said::EpochAsked(epoch) => (cell.epoch == epoch).then_some(Step::Bump),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::{NodeSpec, Process};
    use lockring_ring::CellBits;

    const ME: Life = Life { node: NodeId(1), boot: BootId(1) };
    const OTHER: Life = Life { node: NodeId(2), boot: BootId(2) };
    const CELL: CellId = CellId(0);

    fn process(boot: u64) -> Process {
        Process { boot: BootId(boot), workers: 1, addresses: Vec::new() }
    }

    /// A state with two nodes, of which the first has every cell.
    fn two() -> State {
        let mut state = State::new(CellBits::new(1).unwrap());
        for boot in 1..=2 {
            let host = boot.to_string();
            let spec = NodeSpec { weight: 1, zone: None, host, process: process(boot) };
            state.apply(Index(boot), &Entry::Join(spec));
        }
        state
    }

    fn put(state: &mut State, entry: &Entry) {
        state.apply(Index(state.applied().0 + 1), entry);
    }

    fn step(state: &mut State, step: Step) {
        let revision = state.cell(CELL).unwrap().revision;
        put(state, &Entry::Cells(vec![CellChange { cell: CELL, revision, step }]));
    }

    #[test]
    fn what_a_worker_said_is_asked_for_until_the_state_has_it() {
        let (mut state, mut facts) = (two(), Facts::default());
        step(&mut state, Step::Attach(OTHER.node, OTHER.boot));
        let cell = state.cell(CELL).unwrap().clone();
        let synced = WorkerEvent::Synced(CELL, cell.learner.unwrap().attach);
        facts.said(&synced);
        let wanted = CellChange { cell: CELL, revision: cell.revision, step: Step::Synced };
        let wanted = [Entry::Cells(vec![wanted])];
        assert_eq!(facts.entries(Time(0), &state, ME, Index(2)), [], "of an earlier state");
        assert_eq!(facts.entries(Time(0), &state, ME, cell.revision), wanted);
        assert_eq!(facts.entries(Time(1), &state, ME, cell.revision), [], "not at once again");
        assert_eq!(facts.entries(Time(200_000), &state, ME, cell.revision), wanted);
        put(&mut state, &wanted[0]);
        assert_eq!(facts.entries(Time(400_000), &state, ME, state.applied()), []);
        assert!(facts.said.is_empty());
        // Of another attachment it says nothing.
        facts.said(&WorkerEvent::Synced(CELL, AttachId(99)));
        assert_eq!(facts.entries(Time(600_000), &state, ME, state.applied()), []);
    }

    #[test]
    fn the_end_of_a_grace_is_kept_while_its_owner_is_taken_for_dead() {
        let (mut state, mut facts) = (two(), Facts::default());
        put(&mut state, &Entry::Down(ME.node, ME.boot));
        step(&mut state, Step::Takeover(OTHER.node, OTHER.boot));
        let epoch = state.cell(CELL).unwrap().epoch;
        put(&mut state, &Entry::Down(OTHER.node, OTHER.boot));
        facts.said(&WorkerEvent::Recovered(CELL, epoch));
        assert_eq!(facts.entries(Time(0), &state, OTHER, state.applied()), []);
        put(&mut state, &Entry::Up(OTHER.node, OTHER.boot));
        assert_eq!(facts.entries(Time(0), &state, OTHER, state.applied()).len(), 1);
    }

    #[test]
    fn a_process_that_the_log_has_wrong_says_so() {
        let (mut state, mut facts) = (two(), Facts::default());
        let own = |facts: &mut Facts, state: &State, ms: u64, boot| {
            let process = (&process(boot), Some(ME.boot));
            facts.own(Time(ms * 1000), state, process, (ME.node, None))
        };
        assert_eq!(own(&mut facts, &state, 0, 1), None);
        let boot = |is_over| {
            let (node, before, process) = (ME.node, BootId(1), process(9));
            Entry::Boot { node, before, process, is_over }
        };
        let of_a_copy =
            Facts::default().own(Time(0), &state, (&process(9), Some(BootId(7))), (ME.node, None));
        assert_eq!(of_a_copy, Some(boot(false)), "that one may run on");
        let boot = boot(true);
        assert_eq!(own(&mut facts, &state, 0, 9), Some(boot.clone()));
        assert_eq!(own(&mut facts, &state, 199, 9), None, "not at once again");
        put(&mut state, &boot);
        put(&mut state, &Entry::Down(ME.node, BootId(9)));
        assert_eq!(own(&mut facts, &state, 400, 9), Some(Entry::Up(ME.node, BootId(9))));
    }
}
