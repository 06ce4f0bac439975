//! One turn of the worker: its time, what it may cost, and what comes of it. Nobody is served for
//! longer than a slice before everybody else had a turn: requests are charged by what they make the
//! worker do, in units of about what an acquire or a release costs.

use crate::cells::{Rounds, Shows, Telling};
use crate::config::Limits;
use crate::event::{Action, CloseReason, ConnId, LinkIndex, push_reply};
use crate::links::Links;
use crate::locks::{CellIndex, Death, Locks, Op, Spot};
use lockring_proto::{HoldId, LostReason, Push, Reply, Request, Time, limits};
use lockring_ring::RingVersion;
use std::time::Duration;

/// Whether a request is done, or goes on with the next turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Progress {
    Done,
    More,
    /// Nothing is run after it.
    Last,
}

/// A turn has room for what any request costs before it is looked at, so that each turn goes
/// further with one that takes several.
pub(crate) const TURN_PRICE_MIN: u32 = 40;
const _: () = assert!(TURN_PRICE_MIN as usize > 1 + limits::HOLDS_PER_FRAME / KEY_BYTES);

/// Bytes of a key, and of an answer, that cost as much as an operation.
const KEY_BYTES: usize = 128;
pub(crate) const ANSWER_BYTES: usize = 64;

/// A hold that is gathered for a compare: its record lies anywhere, and it is sorted among others.
pub(crate) const PER_GATHERED: u32 = 2;
pub(crate) const PER_ORPHAN: u32 = 2;
/// A hold that is ended by force, and its holder told.
pub(crate) const PER_FORCED: u32 = 2;
/// A holder or waiter that is told: its entry and its link lie anywhere.
pub(crate) const PER_TOLD: u32 = 2;
/// A key of a cell that comes or goes.
pub(crate) const PER_MOVED: u32 = 2;
/// Slots of memory that a listing looks at.
pub(crate) const LOOKS_PER_PRICE: usize = 4;
/// The ring has up to some hundred kilobytes: more than a turn, so it is the last of one.
const RING: u32 = 512;

/// What a look at a key costs.
#[inline(always)]
pub(crate) fn keyed_price(key: &[u8]) -> u32 {
    1 + (key.len() / KEY_BYTES) as u32
}

/// What a request costs at least. What it costs beyond, for the holds, waiters and keys that it
/// turns out to touch, is charged where they are touched.
pub(crate) fn price(request: &Request<'_>) -> u32 {
    match *request {
        Request::Keyed { key, .. } => keyed_price(key),
        Request::Renew { .. } | Request::Goodbye { .. } => 1,
        // Each frame again, as it may be given many times until all is gathered.
        Request::Compare { ref holds, .. } => 1 + (holds.len() / KEY_BYTES) as u32,
        Request::GetRing { .. } => RING,
        Request::List { .. } => 1,
    }
}

/// One turn.
pub(crate) struct Turn<'a> {
    pub(crate) now: Time,
    /// The same, as ops tell it.
    pub(crate) at: Duration,
    /// The ring version that answers name.
    pub(crate) version: u64,
    spent: u32,
    /// What the requests of a connection may cost, and what a part of a tick may.
    turn_price: u32,
    slice: u32,
    /// Answers may have to wait.
    withholds: bool,
    rounds: &'a mut Rounds,
    out: &'a mut Vec<Action>,
}

impl<'a> Turn<'a> {
    pub(crate) fn new(
        now: Time,
        version: RingVersion,
        limits: &Limits,
        rounds: &'a mut Rounds,
        out: &'a mut Vec<Action>,
    ) -> Self {
        let Limits { turn_price, expiry_slice: slice, .. } = *limits;
        let (at, version) = (now.since(Time(0)), version.0);
        let withholds = rounds.withhold(now);
        Self { now, at, version, spent: 0, turn_price, slice, withholds, rounds, out }
    }

    /// Whether the node may not answer.
    #[inline(always)]
    pub(crate) fn lease_is_over(&self) -> bool {
        self.withholds && self.now >= self.rounds.lease()
    }

    /// Whether nothing new is taken on, as what is answered would have to wait for long.
    #[inline(always)]
    pub(crate) fn takes_nothing_on(&self) -> bool {
        self.lease_is_over() || self.withholds && self.rounds.are_full()
    }

    /// Up to which ring version all cells of this worker have arrived.
    pub(crate) fn settled(&self) -> u64 {
        self.rounds.settled(self.version)
    }

    /// The newest ring that this worker has heard of: not all that it changes may be taken yet.
    pub(crate) fn newest(&self) -> u64 {
        self.version.max(self.rounds.newest().0)
    }

    /// Whether an entry that has changed cells is taken in part.
    #[inline]
    pub(crate) fn is_in_part(&self) -> bool {
        self.rounds.is_in_part()
    }

    /// What answers wait for, and the actions. Whoever changes it has answers look at it anew.
    pub(crate) fn rounds(&mut self) -> (&mut Rounds, &mut Vec<Action>) {
        self.withholds = true;
        (self.rounds, self.out)
    }

    /// Adds to what the turn has cost.
    #[inline(always)]
    pub(crate) fn charge(&mut self, price: u32) {
        self.spent += price;
    }

    #[inline(always)]
    pub(crate) fn is_over(&self) -> bool {
        self.spent >= self.turn_price
    }

    /// Another part of a tick begins.
    pub(crate) fn begin_slice(&mut self) {
        self.spent = 0;
    }

    /// Whether a part of a tick has cost what it may.
    pub(crate) fn slice_is_over(&self) -> bool {
        self.spent >= self.slice
    }

    /// What is left of the slice.
    pub(crate) fn slice_left(&self) -> u32 {
        self.slice.saturating_sub(self.spent)
    }

    /// How much one queue, or list of links, is worked off in one go.
    pub(crate) fn slice(&self) -> u32 {
        self.slice
    }

    /// Answers a request. Every answer leaves here.
    #[inline(always)]
    pub(crate) fn answer(&mut self, conn: ConnId, shows: Shows, reply: impl FnOnce() -> Reply) {
        if self.withholds {
            self.withhold(conn, shows, reply());
        } else {
            push_reply(self.out, conn, reply);
        }
    }

    /// The last answer of a connection, which is closed behind it: at once, or by whoever lets the
    /// answer leave.
    pub(crate) fn answer_goodbye(&mut self, conn: ConnId, id: u64) {
        let withholds = self.withholds;
        self.answer(conn, Shows::Link, || Reply::Goodbye { id });
        if !withholds {
            self.close(conn, CloseReason::Goodbye);
        }
    }

    #[cold]
    #[inline(never)]
    fn withhold(&mut self, conn: ConnId, shows: Shows, reply: Reply) {
        self.rounds.answer(self.now, (conn, shows), Telling::Reply(reply), self.out);
    }

    /// Tells copies of an op that is about to be carried out.
    #[inline(always)]
    pub(crate) fn tell(&mut self, links: &Links, locks: &Locks, spot: Spot, op: Op<'_>) {
        if self.withholds {
            self.tell_copies(links, locks, spot, op);
        }
    }

    /// Apart and by value, so that an op without copies stays in registers.
    #[cold]
    #[inline(never)]
    fn tell_copies(&mut self, links: &Links, locks: &Locks, spot: Spot, op: Op<'_>) {
        self.rounds.tell((links, locks), self.at, (spot.cell(), spot.tag()), &op);
    }

    /// Says which copies are silent, a slice of them.
    pub(crate) fn look_for_silence(&mut self) {
        self.rounds.look(self.now, self.slice, self.out);
    }

    /// Reads ahead what telling copies will need.
    #[inline]
    pub(crate) fn touch_copies(&self, cells: impl Iterator<Item = CellIndex>) {
        if self.withholds {
            self.rounds.touch(cells);
        }
    }

    /// Tells copies that a link is another process's, if they know it.
    pub(crate) fn link_is_anothers(&mut self, links: &Links, locks: &Locks, link: LinkIndex) {
        self.rounds.link_is_anothers(links, locks, link);
    }

    /// Tells copies that a link is dead, if they know it.
    pub(crate) fn link_died(&mut self, link: LinkIndex, number: u64, death: Death) {
        self.rounds.link_died(link, number, death);
    }

    /// Tells copies that a link will not be named again.
    pub(crate) fn link_gone(&mut self, link: LinkIndex, number: u64) {
        self.rounds.link_gone(link, number);
    }

    /// Tells a client something unasked.
    pub(crate) fn push(&mut self, conn: ConnId, push: Push) {
        self.out.push(Action::Push { conn, push });
    }

    /// Tells a holder that a hold of a cell is over, once copies know. One that loses many is told
    /// of them together, as it looks through all that it holds for each push.
    pub(crate) fn push_lost(
        &mut self,
        (conn, cell): (ConnId, CellIndex),
        why: LostReason,
        hold: HoldId,
    ) {
        let push = Push::Lost { reason: why, holds: vec![hold] };
        if self.withholds {
            let shows = Shows::Cell(cell);
            self.rounds.answer(self.now, (conn, shows), Telling::Push(push), self.out);
            return;
        }
        match self.out.last_mut() {
            Some(Action::Push { conn: last, push: Push::Lost { reason, holds } })
                if (*last, *reason) == (conn, why) && holds.len() < limits::HOLDS_PER_FRAME =>
            {
                holds.push(hold);
            }
            _ => self.push(conn, push),
        }
    }

    pub(crate) fn close(&mut self, conn: ConnId, reason: CloseReason) {
        self.out.push(Action::Close { conn, reason });
    }

    /// Asks something of the world.
    pub(crate) fn act(&mut self, action: Action) {
        self.out.push(action);
    }
}
