//! What a node's workers know and the log does not yet: it is asked for until the state has it.

use super::cell::Cell;
use super::entry::{BATCH_CELLS_MAX, CellChange, Entry, Index, Process, Step};
use super::event::WorkerEvent;
use super::state::{Life, State, Status};
use lockring_proto::Time;
use lockring_ring::{AttachId, CellId, Epoch, NodeId};
use std::collections::BTreeMap;
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
    silent: BTreeMap<NodeId, Vec<CellId>>,
}

impl Facts {
    /// A worker said something. What is not about a cell is none of this.
    pub fn said(&mut self, event: &WorkerEvent) {
        let (cell, said) = match *event {
            WorkerEvent::Synced(cell, attach) => (cell, Said::Synced(attach)),
            WorkerEvent::Recovered(cell, epoch) => (cell, Said::Recovered(epoch)),
            WorkerEvent::EpochAsked(cell, epoch) => (cell, Said::EpochAsked(epoch)),
            WorkerEvent::Silent(cell, node) => {
                return self.silent.entry(node).or_default().push(cell);
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
            let own = state.cell(*id).filter(|cell| is_served(cell, me));
            let Some(step) = own.and_then(|cell| step(cell, *said)) else { return false };
            let is_due = asked.is_none_or(|asked| now.since(asked) >= AGAIN);
            let revision = own.map_or(Index(0), |cell| cell.revision);
            if is_due && revision <= applied {
                *asked = Some(now);
                changes.push(CellChange { cell: *id, revision, step });
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
        process: &Process,
        me: NodeId,
    ) -> Option<Entry> {
        let known = state.nodes().get(&me)?;
        let before = known.spec.process.boot;
        let entry = match known.status {
            _ if before != process.boot => {
                Entry::Boot { node: me, before, process: process.clone() }
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
        let reports = std::mem::take(&mut self.silent).into_iter().map(|(copy, cells)| {
            let own = |id: CellId| {
                let cell = state.cell(id).filter(|cell| is_served(cell, me))?;
                Some((id, cell.revision))
            };
            (copy, cells.into_iter().filter_map(own).take(BATCH_CELLS_MAX).collect())
        });
        reports.filter(|(_, cells): &(_, Vec<_>)| !cells.is_empty()).collect()
    }
}

fn is_served(cell: &Cell, me: Life) -> bool {
    cell.owner.node == me.node && cell.owner.boot == me.boot && cell.loss.is_none()
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
