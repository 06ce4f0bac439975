//! The claims of a session, over all of its links: one slab, so that a claim keeps its name and its
//! id wherever its cell goes, and beside it a column of their cells, by which those of some cells
//! are found.
//!
//! A list for each cell would find them without a look at others, but to enter it and to leave it
//! touches the neighbours: a cache miss or two for each claim of a session that holds many. To walk
//! over the column, two bytes a claim, takes a fraction of a millisecond at a million claims, once
//! for each newer ring.

mod ids;
mod key;

pub use ids::RequestIds;
pub(crate) use key::Key;

use lockring_proto::{Claim, Fence, HoldId, Time, Wait};
use lockring_ring::{CellId, Epoch};
use std::collections::BTreeSet;
use std::ops::{Index, IndexMut};

/// Names a claim of a session. A stale one is harmless: it names nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ClaimRef {
    slot: u32,
    generation: u32,
}

impl ClaimRef {
    /// Its place among the claims of its session, which another takes when it is over.
    pub(crate) fn slot(self) -> usize {
        self.slot as usize
    }
}

/// A link of a session, by its number there: a worker has the same one for as long as the session
/// lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LinkId(u16);

impl LinkId {
    /// The first link of a session, which whoever answers is at the other end of.
    pub const FIRST: Self = Self(0);

    /// The link of this number.
    pub fn nth(number: usize) -> Self {
        Self(u16::try_from(number).expect("a session has fewer links than there are cells"))
    }

    /// Its number.
    pub fn index(self) -> usize {
        usize::from(self.0)
    }
}

/// How far a claim is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    Free,
    /// Asked for.
    Acquiring,
    /// Left by an earlier process of the session; the worker is asked whether it is still held.
    Confirming {
        fence: Fence,
    },
    Held {
        fence: Fence,
    },
    /// Being given back.
    Releasing {
        fence: Fence,
        resent: bool,
        told: bool,
    },
    /// Being undone: request `target` may have been granted or not.
    Cancelling {
        target: u64,
        told: bool,
    },
}

/// How a hold stands with the process that has it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Tenure {
    /// Believed until then by itself; [`Time::NEVER`]: for as long as the lease of its link runs.
    pub(crate) until: Time,
    /// The process that has it, by its boot id.
    pub(crate) process: u64,
    /// It is known to be held in this epoch of its cell.
    pub(crate) epoch: Epoch,
    /// The request by which it is being reclaimed; 0: none.
    pub(crate) reclaim: u64,
}

/// By what way a claim has come to its link.
#[derive(Clone, Debug, Default)]
pub(crate) struct Way {
    /// The ring version that the last copy of its request was routed by.
    pub(crate) routed: u64,
    /// It has come from another link since the last connection of its own.
    pub(crate) moved_in: bool,
    /// It has been away from its link: what is answered there may be the copy of before.
    pub(crate) twice: bool,
    /// Ids that it had at processes which have forgotten them: another process may know them still.
    pub(crate) formers: Vec<Former>,
}

/// An id that a claim has given up, as this process has said that it knows nothing of it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Former {
    pub(crate) id: u64,
    pub(crate) process: u64,
}

/// One claim, from its request until the worker has confirmed its end.
pub(crate) struct ClaimRecord {
    pub(crate) key: Key,
    pub(crate) cell: u16,
    /// To the worker that grants for its cell, as far as is known.
    pub(crate) link: LinkId,
    pub(crate) wanted: Claim,
    pub(crate) token: u64,
    generation: u32,
    pub(crate) state: State,
    /// The request that is unanswered, or that made the hold.
    pub(crate) id: u64,
    /// When the first copy of that request was sent, on whichever link: what is answered may be
    /// that one, also while a later copy is still on its way.
    pub(crate) sent: Option<Time>,
    pub(crate) way: Way,
    /// Of what is held.
    pub(crate) tenure: Tenure,
    pub(crate) waits: bool,
    pub(crate) deadline: Time,
    /// When the caller asked for what is unanswered.
    pub(crate) asked: Time,
}

impl ClaimRecord {
    /// A claim that is asked for, on no link yet.
    pub(crate) fn new(key: Key, cell: u16, wanted: Claim, token: u64) -> Self {
        Self {
            key,
            cell,
            link: LinkId::FIRST,
            wanted,
            token,
            generation: 0,
            state: State::Acquiring,
            id: 0,
            sent: None,
            way: Way::default(),
            tenure: Tenure { until: Time::NEVER, process: 0, epoch: Epoch(0), reclaim: 0 },
            waits: false,
            deadline: Time::NEVER,
            asked: Time(0),
        }
    }

    pub(crate) fn hold_id(&self) -> Option<HoldId> {
        match self.state {
            State::Held { fence } => Some(HoldId { cell: self.cell, fence }),
            _ => None,
        }
    }

    /// The hold as the worker may have it: held, being asked for or reclaimed, or its release
    /// unanswered. The worker may have a hold again before that is known here.
    pub(crate) fn listed_id(&self) -> Option<HoldId> {
        match self.state {
            State::Held { fence }
            | State::Confirming { fence }
            | State::Releasing { fence, .. } => Some(HoldId { cell: self.cell, fence }),
            State::Free | State::Acquiring | State::Cancelling { .. } => None,
        }
    }

    /// The request of which it is not known here what the worker has by it: an unanswered acquire,
    /// also while it is being undone, or one whose hold is being reclaimed.
    pub(crate) fn unsettled(&self) -> Option<u64> {
        match self.state {
            State::Acquiring => Some(self.id),
            State::Cancelling { target, .. } => Some(target),
            State::Free
            | State::Confirming { .. }
            | State::Held { .. }
            | State::Releasing { .. } => None,
        }
    }

    /// Whether its caller waits for an answer without a deadline of its own.
    pub(crate) fn is_asking(&self) -> bool {
        matches!(self.state, State::Acquiring | State::Confirming { .. })
            && self.deadline == Time::NEVER
    }

    pub(crate) fn is_held(&self) -> bool {
        matches!(self.state, State::Held { .. })
    }

    /// The wait that is left.
    pub(crate) fn wait(&self, now: Time) -> Wait {
        if !self.waits {
            Wait::No
        } else if self.deadline == Time::NEVER {
            Wait::Forever
        } else {
            Wait::Millis(self.deadline.since(now).as_millis() as u64)
        }
    }
}

/// All claims of a session.
#[derive(Default)]
pub(crate) struct Claims {
    slots: Vec<ClaimRecord>,
    free: Vec<u32>,
    /// By slot: the cell of the claim that it has, or had.
    cells: Vec<u16>,
}

impl Index<u32> for Claims {
    type Output = ClaimRecord;

    #[inline]
    fn index(&self, slot: u32) -> &ClaimRecord {
        &self.slots[slot as usize]
    }
}

impl IndexMut<u32> for Claims {
    #[inline]
    fn index_mut(&mut self, slot: u32) -> &mut ClaimRecord {
        &mut self.slots[slot as usize]
    }
}

impl Claims {
    pub(crate) fn insert(&mut self, mut claim: ClaimRecord) -> u32 {
        let Some(slot) = self.free.pop() else {
            self.cells.push(claim.cell);
            self.slots.push(claim);
            return (self.slots.len() - 1) as u32;
        };
        claim.generation = self[slot].generation;
        self.cells[slot as usize] = claim.cell;
        self[slot] = claim;
        slot
    }

    pub(crate) fn free(&mut self, slot: u32) {
        let claim = &mut self[slot];
        assert!(claim.state != State::Free, "claim {slot} freed twice");
        claim.state = State::Free;
        claim.generation = claim.generation.wrapping_add(1);
        self.free.push(slot);
    }

    /// The claims of these cells.
    pub(crate) fn of_cells(&self, cells: &BTreeSet<CellId>) -> impl Iterator<Item = u32> {
        let last = cells.last().map_or(0, |&last| usize::from(last.0) + 1);
        let mut wanted = vec![false; last];
        for &cell in cells {
            wanted[usize::from(cell.0)] = true;
        }
        let slots = self.cells.iter().enumerate();
        let found = slots.filter(move |&(_, &cell)| wanted.get(usize::from(cell)) == Some(&true));
        found.map(|(slot, _)| slot as u32).filter(|&slot| self[slot].state != State::Free)
    }

    /// How many slots have been used: the most there ever were at once.
    pub(crate) fn slots(&self) -> u32 {
        self.slots.len() as u32
    }

    /// Whether a slot has a claim of this link.
    pub(crate) fn is_of(&self, slot: u32, link: LinkId) -> bool {
        let claim = &self[slot];
        claim.link == link && claim.state != State::Free
    }

    /// The claims of a link.
    pub(crate) fn of_link(&self, link: LinkId) -> impl Iterator<Item = &ClaimRecord> {
        self.slots.iter().filter(move |claim| claim.link == link && claim.state != State::Free)
    }

    /// Names what a slot has.
    pub(crate) fn name(&self, slot: u32) -> ClaimRef {
        ClaimRef { slot, generation: self[slot].generation }
    }

    pub(crate) fn slot_of(&self, claim: ClaimRef) -> Option<u32> {
        let known = self.slots.get(claim.slot as usize)?;
        (known.generation == claim.generation && known.state != State::Free).then_some(claim.slot)
    }

    pub(crate) fn is_held(&self, claim: ClaimRef) -> bool {
        self.slot_of(claim).is_some_and(|slot| self[slot].is_held())
    }

    /// The hold of this name.
    pub(crate) fn find_hold(&self, hold: HoldId) -> Option<u32> {
        self.of_cells(&BTreeSet::from([CellId(hold.cell)]))
            .find(|&slot| self[slot].hold_id() == Some(hold))
    }
}
