//! Copies that say nothing while something waits for them.

use super::Rounds;
use crate::cells::lane::{Lane, LaneIndex};
use crate::event::Action;
use lockring_proto::Time;
use lockring_ring::{CellId, NodeId};
use std::collections::BTreeSet;
use std::time::Duration;

/// How often lanes are looked at while something waits.
const LOOK: Duration = Duration::from_millis(100);

/// Who is to be said to be silent, and when that is looked for.
#[derive(Clone, Debug, Default)]
pub(super) struct Silence {
    look_at: Option<Time>,
    unsaid: BTreeSet<(CellId, NodeId)>,
}

impl Rounds {
    /// Has lanes looked at in a while, if something waits.
    pub(super) fn look_later(&mut self, now: Time) {
        let mut lanes = self.lanes.iter().flatten();
        if self.silence.look_at.is_none() && lanes.any(Lane::is_awaited) {
            self.silence.look_at = Some(now.after(LOOK));
        }
    }

    /// When lanes are to be looked at, or something is left to be said.
    pub(crate) fn looks_at(&self, last_seen: Time) -> Option<Time> {
        if self.silence.unsaid.is_empty() { self.silence.look_at } else { Some(last_seen) }
    }

    /// Says of up to so many copies that they are silent.
    pub(crate) fn look(&mut self, now: Time, most: u32, out: &mut Vec<Action>) {
        if self.silence.look_at.is_some_and(|at| at <= now) {
            self.silence.look_at = None;
            for at in (0..self.lanes.len()).map(LaneIndex) {
                self.look_at(now, at);
            }
            self.look_later(now);
        }
        for _ in 0..most {
            let Some((cell, node)) = self.silence.unsaid.pop_first() else { return };
            out.push(Action::Silent { cell, node });
        }
    }

    fn look_at(&mut self, now: Time, at: LaneIndex) {
        let Some(lane) = self.lane(at) else { return };
        let node = lane.peer.node;
        for cell in lane.look(now) {
            // The copy may have left the lane since the frame was sent.
            if let Some(copied) = self.copied(cell)
                && copied.copies.iter().any(|copy| copy.lane == at)
            {
                let id = copied.id;
                self.silence.unsaid.insert((id, node));
            }
        }
    }
}
