//! The copies of a cell that this worker owns.

use crate::cells::frame::{CellNews, CellPart, LinkOrigin};
use crate::cells::lane::{Answers, LaneIndex};
use crate::event::LinkIndex;
use crate::locks::CellIndex;
use lockring_proto::Fence;
use lockring_ring::{CellId, Epoch, Member, RingVersion};
use smallvec::SmallVec;
use std::collections::BTreeMap;

/// How far a copy is with a cell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// It was told nothing, or has refused it.
    Idle,
    /// It is to be sent the whole cell.
    Wanted,
    /// It was sent what makes it equal.
    Sent,
    /// It has acknowledged that.
    InSync,
}

/// A copy of a cell.
#[derive(Clone, Debug)]
pub(super) struct CopyAt {
    pub(super) member: Member,
    pub(super) lane: LaneIndex,
    pub(super) learner: bool,
    /// Answers wait for it. A learner is waited for from its first acknowledgement on, whatever
    /// becomes of it, as it may be a member by the time.
    pub(super) waited: bool,
    pub(super) phase: Phase,
    /// The frame with which the phase began, if it was by one.
    pub(super) since: u64,
    /// The last frame in which it has refused the cell.
    pub(super) refused: u64,
    /// The last frame that names the cell, and where in it.
    pub(super) entered: (u64, u16),
    /// Answers that wait until it is sent the cell anew.
    pub(super) parked: Answers,
}

impl CopyAt {
    /// Whether ops are told to it.
    #[inline]
    pub(super) fn follows(&self) -> bool {
        matches!(self.phase, Phase::Sent | Phase::InSync)
    }
}

/// A cell of this worker that has copies.
#[derive(Clone, Debug)]
pub(super) struct Copied {
    pub(super) id: CellId,
    pub(super) epoch: Epoch,
    /// The ring version in which that began.
    pub(super) since: RingVersion,
    pub(super) copies: SmallVec<[CopyAt; 1]>,
    /// What links were called before this worker owned the cell.
    pub(super) was: BTreeMap<LinkIndex, Vec<LinkOrigin>>,
}

impl super::Rounds {
    /// Whether what waits for copies that do not follow is as much as is counted.
    #[cfg(any(test, feature = "testing"))]
    pub(crate) fn audit(&self) -> Result<(), String> {
        let copies = self.cells.iter().flatten().flat_map(|copied| &copied.copies);
        let parked: usize = copies.map(|copy| copy.parked.len()).sum();
        let same = parked == self.parked;
        same.then_some(()).ok_or_else(|| format!("{parked} wait, and {} are counted", self.parked))
    }

    /// Whether the owner of a cell, under this epoch, has nothing to tell these copies anew.
    pub(crate) fn follow<'a>(
        &self,
        cell: CellIndex,
        epoch: Epoch,
        mut members: impl Iterator<Item = &'a Member>,
    ) -> bool {
        let Some(copied) = self.cells.get(cell.0 as usize).and_then(Option::as_deref) else {
            return members.next().is_none();
        };
        let follows =
            |its: &Member| copied.copies.iter().any(|copy| copy.member == *its && copy.follows());
        copied.epoch == epoch && members.all(follows)
    }
}

impl Copied {
    /// Whether every member has acknowledged what makes it equal.
    pub(super) fn members_are_equal(&self) -> bool {
        let mut members = self.copies.iter().filter(|copy| !copy.learner);
        members.all(|copy| copy.phase == Phase::InSync)
    }

    pub(super) fn news(&self, copy: usize, last: Fence, part: CellPart) -> CellNews {
        let attach = self.copies[copy].member.attach;
        CellNews { cell: self.id, epoch: self.epoch, attach, last, part }
    }
}
