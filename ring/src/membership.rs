//! Who holds a cell, as the control log has it and the workers are told: more than clients see.

use crate::cell::{Epoch, RingVersion};
use crate::node::{BootId, NodeId};
use std::time::Duration;

/// One attachment of a copy to a cell; no other has the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AttachId(pub u64);

/// A node's part in a cell, bound to one life of its process: another has an empty memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Member {
    /// The node.
    pub node: NodeId,
    /// Its life.
    pub boot: BootId,
    /// By which it came to the cell.
    pub attach: AttachId,
}

/// Who owns a cell and who has copies of it, since the last entry that changed any of that.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Membership {
    /// The generation of its ownership.
    pub epoch: Epoch,
    /// The ring version at which the epoch began.
    pub since: RingVersion,
    /// Who grants.
    pub owner: Member,
    /// Who has a synchronous copy; the first is the next owner when this one is lost. Two at most,
    /// and that while the cell moves.
    pub backups: Vec<Member>,
    /// Who is being brought up to date, and cannot become the owner yet.
    pub learner: Option<Member>,
    /// No copy survived the owner before: for so long from the entry on the owner takes claims of
    /// earlier holds, and grants nothing new.
    pub grace: Option<Duration>,
}

impl Membership {
    /// Who must have what the owner answers, beside the owner itself.
    pub fn copies(&self) -> impl Iterator<Item = &Member> {
        self.backups.iter().chain(&self.learner)
    }
}
