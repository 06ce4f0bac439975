//! One cell as the log has it, and how steps change it.

use super::entry::Index;
use super::mutant::Mutant;
use lockring_ring::{BootId, Epoch, Member, Membership, NodeId, RingVersion};
use std::time::Duration;

/// Most backups of a cell: two, while it moves.
pub(super) const BACKUPS_MAX: usize = 2;

/// Why a cell has nobody who could serve it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loss {
    /// Its owner, the only copy, is taken for dead, and may run on until its lease ends.
    Down,
    /// Its owner's process is known to be over: its node has started another in the same data
    /// directory, which only one process can have.
    Over,
    /// The log began anew: whoever served it may run on.
    Unknown,
    /// Its owner's process has ended with nothing held: nobody believes in anything.
    Empty,
}

/// Who holds a cell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cell {
    /// The last entry that changed anything of it.
    pub revision: Index,
    /// The generation of its ownership.
    pub epoch: Epoch,
    /// The ring version at which the epoch began.
    pub since: RingVersion,
    /// The last epoch that began without a copy.
    pub takeover: Epoch,
    /// Who grants; of a lost cell, who did last.
    pub owner: Member,
    /// Who has a synchronous copy; the first is the next owner, and the one that clients know.
    pub backups: Vec<Member>,
    /// Who is being brought up to date.
    pub learner: Option<Member>,
    /// How long after its takeover only claims of earlier holds count; until the log has it that
    /// this is over.
    pub grace: Option<Duration>,
    /// Nobody can serve it until it is taken over.
    pub loss: Option<Loss>,
}

/// A step that does not fit the cell, which is unchanged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Refused;

/// Whether a member is this process.
pub(super) fn is_life(member: &Member, node: NodeId, boot: BootId) -> bool {
    member.node == node && member.boot == boot
}

impl Cell {
    /// Everybody with a part in it.
    pub fn members(&self) -> impl Iterator<Item = &Member> {
        std::iter::once(&self.owner).chain(&self.backups).chain(&self.learner)
    }

    /// What a process is told of it, if it has a part in it. An owner that is taken for dead is
    /// told nothing new: it serves on while its lease runs, and for good if it was not dead.
    pub fn membership(&self, node: NodeId, boot: BootId) -> Option<Membership> {
        self.members().any(|member| is_life(member, node, boot)).then(|| Membership {
            epoch: self.epoch,
            since: self.since,
            owner: self.owner,
            backups: self.backups.clone(),
            learner: self.learner,
            grace: self.grace,
        })
    }

    /// What clients see of it.
    pub(super) fn face(&self) -> (NodeId, Option<NodeId>, Epoch) {
        (self.owner.node, self.backups.first().map(|backup| backup.node), self.epoch)
    }

    /// A new epoch, which no learner of the old one survives.
    fn renew(&mut self, owner: Member, mutant: Option<Mutant>) -> Result<(), Refused> {
        let next = Epoch(self.epoch.0 + 1);
        if next >= Epoch::LAST {
            return Err(Refused);
        }
        (self.epoch, self.owner) = (next, owner);
        if mutant != Some(Mutant::LearnerSurvives) {
            self.learner = None;
        }
        Ok(())
    }

    pub(super) fn attach(&mut self, learner: Member) -> Result<(), Refused> {
        let is_in = self.members().any(|member| member.node == learner.node);
        let is_full = self.learner.is_some() || self.backups.len() >= BACKUPS_MAX;
        if is_in || is_full || self.loss.is_some() {
            return Err(Refused);
        }
        self.learner = Some(learner);
        Ok(())
    }

    pub(super) fn synced(&mut self) -> Result<(), Refused> {
        self.backups.push(self.learner.take().ok_or(Refused)?);
        Ok(())
    }

    /// The owner before stays as the last of the backups: it has everything, and without it a cell
    /// of two would have one copy until another is attached.
    pub(super) fn switch(&mut self, to: NodeId, mutant: Option<Mutant>) -> Result<(), Refused> {
        let place = self.backups.iter().position(|backup| backup.node == to).ok_or(Refused)?;
        let before = self.owner;
        self.renew(self.backups[place], mutant)?;
        self.backups.remove(place);
        self.backups.push(before);
        Ok(())
    }

    pub(super) fn drop_backup(&mut self, node: NodeId) -> Result<(), Refused> {
        let place = self.backups.iter().position(|backup| backup.node == node).ok_or(Refused)?;
        self.backups.remove(place);
        Ok(())
    }

    pub(super) fn detach(&mut self) -> Result<(), Refused> {
        self.learner.take().map(|_| ()).ok_or(Refused)
    }

    pub(super) fn take_over(&mut self, owner: Member, grace: Duration) -> Result<(), Refused> {
        if self.loss.is_none() {
            return Err(Refused);
        }
        self.renew(owner, None)?;
        let grace = (self.loss != Some(Loss::Empty)).then_some(grace);
        (self.loss, self.grace, self.takeover) = (None, grace, self.epoch);
        Ok(())
    }

    pub(super) fn recovered(&mut self) -> Result<(), Refused> {
        if self.loss.is_some() {
            return Err(Refused);
        }
        self.grace.take().map(|_| ()).ok_or(Refused)
    }

    pub(super) fn bump(&mut self, mutant: Option<Mutant>) -> Result<(), Refused> {
        if self.loss.is_some() {
            return Err(Refused);
        }
        self.renew(self.owner, mutant)
    }

    /// A process is gone, with what it had.
    pub(super) fn lose(&mut self, node: NodeId, boot: BootId, loss: Loss, mutant: Option<Mutant>) {
        self.backups.retain(|backup| !is_life(backup, node, boot));
        self.learner = self.learner.filter(|learner| !is_life(learner, node, boot));
        if is_life(&self.owner, node, boot) && self.loss.is_none() {
            self.succeed(loss, mutant);
        }
        // Of a process that was taken for dead it may be known later.
        if is_life(&self.owner, node, boot) && self.loss == Some(Loss::Down) {
            self.loss = Some(loss);
        }
    }

    /// The owner is gone: the first backup follows it, if there is one. A grace that was running
    /// begins anew with the new owner, who may not know when it began.
    fn succeed(&mut self, loss: Loss, mutant: Option<Mutant>) {
        if mutant == Some(Mutant::LearnerPromoted) {
            self.backups.extend(self.learner);
        }
        match self.backups.first().copied().map(|next| self.renew(next, mutant)) {
            Some(Ok(())) => drop(self.backups.remove(0)),
            None | Some(Err(Refused)) => {
                self.backups.clear();
                (self.learner, self.loss) = (None, Some(loss));
            }
        }
    }

    /// A process that was taken for dead is not: what nobody has taken over is still its own.
    pub(super) fn regain(&mut self, node: NodeId, boot: BootId) {
        if self.loss == Some(Loss::Down) && is_life(&self.owner, node, boot) {
            self.loss = None;
        }
    }
}
