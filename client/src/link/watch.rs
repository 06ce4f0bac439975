//! Whether the worker is silent about something for so long that its backup may know why.

use super::pending::Pending;
use super::{Link, Phase, Shared};
use lockring_proto::Time;
use std::time::Duration;

/// An answer takes no longer, unless the path is slow or the worker in trouble.
const SILENT_AFTER: Duration = Duration::from_millis(200);

/// What is looked at next.
#[derive(Clone, Copy)]
pub(super) struct Watch {
    at: Time,
    /// What was asked under these ids, up to this one, is to be answered by then.
    upto: u64,
}

/// What the worker does not answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stuck {
    /// Something about a cell.
    Cell(u16),
    /// Something else.
    Any,
}

impl Link {
    fn patience(&self) -> Duration {
        SILENT_AFTER.max(self.times.round_trip * 2)
    }

    /// Something was sent.
    #[inline]
    pub(super) fn watches(&mut self, shared: &Shared, now: Time) {
        if self.watch.is_none() {
            let at = now.after(self.patience());
            self.watch = Some(Watch { at, upto: shared.ids.last() });
        }
    }

    /// When it is to be looked whether everything was answered.
    pub(super) fn looks_at(&self) -> Option<Time> {
        self.watch.filter(|_| self.phase == Phase::Up).map(|watch| watch.at)
    }

    /// Looks whether what was asked some time ago is unanswered.
    pub(super) fn look(&mut self, shared: &mut Shared, now: Time) {
        let Some(Watch { at, upto }) = self.watch.filter(|_| self.phase == Phase::Up) else {
            return;
        };
        if now < at {
            return;
        }
        self.watch = None;
        if !self.pending.is_owed_any() {
            return;
        }
        self.watches(shared, now);
        let ring_is_overdue = shared.fetch.is_overdue(now, self.id, self.patience());
        let is_asked = |id, pending: &Pending| match pending {
            // It comes in parts.
            Pending::GetRing { .. } => ring_is_overdue,
            // What waits for a ring, or is asked again now and then, was answered.
            _ => !self.parked.contains(id) && !self.put_off.contains(id),
        };
        self.stuck = self.pending.first_owed(upto, is_asked).map(|id| match self.pending.get(id) {
            Some(&(Pending::Claim(slot) | Pending::Reclaim { slot, .. })) => {
                Stuck::Cell(shared.claims[slot].cell)
            }
            Some(Pending::Query(query)) => query.cell().map_or(Stuck::Any, Stuck::Cell),
            _ => Stuck::Any,
        });
    }

    /// What the worker does not answer, told once.
    pub(crate) fn take_stuck(&mut self) -> Option<Stuck> {
        self.stuck.take()
    }
}
