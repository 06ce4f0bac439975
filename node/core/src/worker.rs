//! The parts of a worker, and what connects them: an op is numbered, counted, applied, and heard of
//! by whoever keeps something about what it changes.

use crate::cells::queues::Queues;
use crate::cells::{Cells, Copies};
use crate::config::Config;
use crate::event::{CloseReason, LinkIndex};
use crate::links::{Awaiting, Links};
use crate::locks::{Death, LinkRecord, Locks, Op, Spot};
use crate::mutant::mutant;
use crate::stats::Stats;
use crate::turn::Turn;
use lockring_proto::{Fence, Time};
use lockring_ring::{BootId, NodeId, RingVersion};
use std::collections::BTreeMap;
use std::time::Duration;

/// What a machine is made of. Each part keeps its fields to itself; requests decide by what they
/// show, and change them by what they offer.
#[derive(Clone)]
pub(crate) struct Worker {
    pub(crate) config: Config,
    /// The ring version this worker knows.
    pub(crate) version: RingVersion,
    /// No new claims are let in.
    pub(crate) draining: bool,
    pub(crate) locks: Locks,
    pub(crate) links: Links,
    /// Connections that wait for a newer ring.
    pub(crate) awaiting: Awaiting,
    pub(crate) cells: Cells,
    pub(crate) copies: Copies,
    /// Workers of each node of the cluster, by life.
    pub(crate) peers: BTreeMap<(NodeId, BootId), u16>,
    pub(crate) queues: Queues,
    pub(crate) stats: Stats,
    #[cfg(any(test, feature = "testing"))]
    pub(crate) mutant: Option<crate::Mutant>,
}

impl Worker {
    /// Carries out a decision about a cell, under its next number: everything that changes with it
    /// does so here.
    #[inline(always)]
    pub(crate) fn emit(&mut self, turn: &mut Turn<'_>, spot: Spot, op: Op<'_>) {
        if op.number.counter() >= Fence::COUNTER_BUMP {
            self.want_epoch(spot, op.number);
        }
        self.stats.count(&op.change);
        turn.tell(&self.links, &self.locks, spot, op);
        if let Some(turned) = self.locks.apply(spot, &op) {
            self.links.gather_turned(self.locks.hold_id(spot.cell(), turned.fence), &turned);
        }
    }

    /// The same, where it is not worth a copy of the code.
    #[inline(never)]
    pub(crate) fn emit_rare(&mut self, turn: &mut Turn<'_>, spot: Spot, op: Op<'_>) {
        self.emit(turn, spot, op);
    }

    /// An epoch is half used up. What is numbered past its end is none of it.
    #[cold]
    fn want_epoch(&mut self, spot: Spot, number: Fence) {
        if number > self.locks.number(spot.cell()) {
            self.cells.want(spot.cell(), self.locks.cell_id(spot.cell()));
        }
    }

    /// When a grace is over that begins now.
    pub(crate) fn grace_ends(&self, now: Time, grace: Duration) -> Time {
        now.after(if mutant!(self, GraceCutShort) { grace / 2 } else { grace })
    }

    /// Whether a grant to this link can still be believed.
    pub(crate) fn is_alive(&self, turn: &Turn<'_>, link: LinkIndex) -> bool {
        !self.locks.is_dead(link) && self.links.is_in_lease(turn.now, link)
    }

    /// A link is unknown from now on, and its holds and waiters will be freed.
    pub(crate) fn end_link(&mut self, turn: &mut Turn<'_>, link: LinkIndex, death: Death) {
        self.stats.expired_links += u64::from(death == Death::Expired);
        self.locks.apply_link(link, LinkRecord::Dead(death));
        turn.link_died(link, self.locks.number_of(link), death);
        self.links.begin_dying(link);
    }

    /// Ends a link whose lease has ended.
    pub(crate) fn expire_link(&mut self, turn: &mut Turn<'_>, link: LinkIndex) {
        if self.locks.is_dead(link) {
            return;
        }
        if mutant!(self, DeathNotTold) {
            self.links.take_conn(link);
        }
        self.hang_up(turn, link, CloseReason::Expired);
        self.end_link(turn, link, Death::Expired);
    }

    /// Closes the connection of a link, if it has one.
    pub(crate) fn hang_up(&mut self, turn: &mut Turn<'_>, link: LinkIndex, reason: CloseReason) {
        if let Some(conn) = self.links.take_conn(link) {
            turn.close(conn, reason);
        }
    }

    /// Brings the accounts of whoever has more or less than before up to date.
    #[inline]
    pub(crate) fn settle_accounts(&mut self) {
        while let Some(link) = self.locks.next_changed() {
            self.links.settle_account(link, self.locks.used_by(link));
        }
    }
}
