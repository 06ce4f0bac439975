//! A log of memberships for tests of copies: it keeps the rules of a control log, and every node
//! applies it in its own time.

use lockring_ring::{AttachId, BootId, CellId, Epoch, Member, Membership, NodeId, RingVersion};
use std::collections::BTreeMap;
use std::time::Duration;

/// What the log has of the cluster.
pub(super) struct Log {
    pub(super) entries: Vec<(CellId, Membership)>,
    pub(super) cells: BTreeMap<CellId, Membership>,
    pub(super) version: u64,
    pub(super) attachments: u64,
}

impl Log {
    pub(super) fn commit(&mut self, cell: CellId, membership: Membership) {
        self.entries.push((cell, membership.clone()));
        self.cells.insert(cell, membership);
    }

    /// The cell has another owner, or the same one anew. The one before may stay as a copy.
    pub(super) fn next_epoch(&mut self, cell: CellId, owner: Member, keeps_owner: bool) {
        let mut next = self.cells[&cell].clone();
        self.version += 1;
        next.epoch = Epoch(next.epoch.0 + 1);
        next.since = RingVersion(self.version);
        next.backups.retain(|member| *member != owner);
        if keeps_owner && next.owner != owner && next.backups.len() < 2 {
            next.backups.push(next.owner);
        }
        (next.owner, next.learner) = (owner, None);
        self.commit(cell, next);
    }

    pub(super) fn attach(&mut self, cell: CellId, node: u32, boot: u64) {
        let mut next = self.cells[&cell].clone();
        let is_there = next.copies().chain([&next.owner]).any(|it| it.node == NodeId(node));
        if next.learner.is_none() && !is_there && next.backups.len() < 2 {
            self.attachments += 1;
            let attach = AttachId(self.attachments);
            next.learner = Some(Member { node: NodeId(node), boot: BootId(boot), attach });
            self.commit(cell, next);
        }
    }

    pub(super) fn synced(&mut self, cell: CellId, epoch: Epoch, attach: AttachId) -> bool {
        let mut next = self.cells[&cell].clone();
        let learner = next.learner.filter(|it| it.attach == attach && next.epoch == epoch);
        let Some(learner) = learner else { return false };
        next.learner = None;
        next.backups.push(learner);
        self.commit(cell, next);
        true
    }

    /// Whether a node can be lost without the loss of a cell.
    pub(super) fn can_lose(&self, node: u32) -> bool {
        let owned = |it: &&Membership| it.owner.node == NodeId(node);
        self.cells.values().filter(owned).all(|it| !it.backups.is_empty())
    }

    /// A process is dead: copies become owners, and what nobody has a copy of is taken over. Says
    /// which cells these are.
    pub(super) fn down(
        &mut self,
        node: u32,
        next_owner: (u32, u64),
        grace: Duration,
    ) -> Vec<CellId> {
        let mut lost = Vec::new();
        for cell in self.cells.keys().copied().collect::<Vec<_>>() {
            let mut next = self.cells[&cell].clone();
            let is_it = |member: &Member| member.node == NodeId(node);
            if next.owner.node == NodeId(node) {
                match next.backups.first() {
                    Some(&owner) => self.next_epoch(cell, owner, false),
                    None => {
                        self.take_over(cell, next_owner, grace);
                        lost.push(cell);
                    }
                }
            } else if next.copies().any(is_it) {
                next.backups.retain(|member| !is_it(member));
                next.learner = next.learner.filter(|member| !is_it(member));
                self.commit(cell, next);
            }
        }
        lost
    }

    fn take_over(&mut self, cell: CellId, (node, boot): (u32, u64), grace: Duration) {
        self.version += 1;
        self.attachments += 1;
        let attach = AttachId(self.attachments);
        let next = Membership {
            epoch: Epoch(self.cells[&cell].epoch.0 + 1),
            since: RingVersion(self.version),
            owner: Member { node: NodeId(node), boot: BootId(boot), attach },
            backups: Vec::new(),
            learner: None,
            grace: Some(grace),
        };
        self.commit(cell, next);
    }

    /// The grace of a cell is over.
    pub(super) fn recovered(&mut self, cell: CellId, epoch: Epoch) -> bool {
        let mut next = self.cells[&cell].clone();
        let is_new = next.epoch == epoch && next.grace.take().is_some();
        if is_new {
            self.commit(cell, next);
        }
        is_new
    }
}
