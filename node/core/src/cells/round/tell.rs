//! What copies are told: ops as they are executed, and cells anew.

use super::Rounds;
use super::copied::{Copied, Phase};
use crate::cells::frame::{self, CellPart, LinkNews, LinkOrigin, OpHead};
use crate::cells::lane::{Lane, LaneIndex};
use crate::event::{Action, LinkIndex, PeerWorker};
use crate::links::Links;
use crate::locks::{CellIndex, Change, Death, Locks, Op};
use crate::mutant::mutant;
use lockring_proto::{Fence, Time};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

/// Whole cells that are put into one frame: more keep a lane from what clients wait for.
const WHOLE_SLICE: usize = 8;

/// A message to a peer.
pub(super) fn to(peer: PeerWorker, bytes: Arc<Vec<u8>>) -> Action {
    Action::Peer { peer, bytes }
}

impl Rounds {
    /// Tells the copies of a cell of an op that is about to be carried out.
    #[inline(never)]
    pub(crate) fn tell(
        &mut self,
        (links, locks): (&Links, &Locks),
        now: Duration,
        (cell, tag): (CellIndex, u32),
        op: &Op<'_>,
    ) {
        let Some(copied) = self.cells.get_mut(cell.0 as usize).and_then(Option::as_deref_mut)
        else {
            return;
        };
        let last = locks.last(cell);
        for at in 0..copied.copies.len() {
            if !copied.copies[at].follows() {
                continue;
            }
            let index = copied.copies[at].lane;
            let lane = self.lanes[index.0].as_mut().expect("a copy has a lane");
            if op.number <= last || !lane.has_room() {
                // The epoch is used up: it does not tell this op from the one before.
                let copy = &mut copied.copies[at];
                (copy.phase, copy.refused) = (Phase::Wanted, lane.number());
                lane.todo.insert(cell);
                if copy.waited {
                    lane.astray.cells.insert(cell);
                }
                continue;
            }
            let position = enter(lane, copied, at, cell, last);
            let link = match op.change {
                Change::Granted { link, .. }
                | Change::Queued { link, .. }
                | Change::Left { link, .. } => name_link(lane, links, locks, link),
                Change::Ended { .. } => 0,
            };
            let head = OpHead { position: usize::from(position), tag, link, now };
            frame::put_op(lane.bytes(), &head, &op.change, None);
        }
    }

    /// A link is another process's: who knows it is told anew.
    pub(crate) fn link_is_anothers(&mut self, links: &Links, locks: &Locks, link: LinkIndex) {
        for lane in self.lanes.iter_mut().flatten().filter(|lane| lane.is_told(link)) {
            tell_link(lane, links, locks, link);
        }
    }

    /// A link is dead.
    pub(crate) fn link_died(&mut self, link: LinkIndex, number: u64, death: Death) {
        for lane in self.lanes.iter_mut().flatten().filter(|lane| lane.is_told(link)) {
            frame::put_dead(lane.bytes(), number, death);
        }
    }

    /// A link is not to be named any more.
    pub(crate) fn link_gone(&mut self, link: LinkIndex, number: u64) {
        for lane in self.lanes.iter_mut().flatten() {
            if lane.untell(link) {
                frame::put_gone(lane.bytes(), number);
            }
        }
    }

    /// What a turn has gathered is sent.
    pub(crate) fn flush(&mut self, links: &Links, locks: &Locks, now: Time, out: &mut Vec<Action>) {
        for at in (0..self.lanes.len()).map(LaneIndex) {
            self.give_anew(links, locks, now, at);
            let Some(lane) = self.lanes[at.0].as_mut() else { continue };
            for cell in lane.take_shown() {
                let copied = self.cells.get_mut(cell.0 as usize).and_then(Option::as_deref_mut);
                let Some(copied) = copied else { continue };
                let copy = copied.copies.iter().position(|copy| copy.lane == at);
                if let Some(copy) = copy.filter(|_| !mutant!(self, RoundWithoutCells)) {
                    enter(lane, copied, copy, cell, locks.last(cell));
                }
            }
            if let Some(bytes) = lane.close() {
                out.push(to(lane.peer, bytes));
            }
        }
        self.look_later(now);
    }

    /// Whether something is to be sent that the next flush has room for.
    pub(crate) fn are_due(&self) -> bool {
        self.lanes
            .iter()
            .flatten()
            .any(|lane| !lane.is_blank() || !lane.todo.is_empty() && !lane.is_full())
    }

    /// Sends cells anew to copies that cannot go on otherwise.
    fn give_anew(&mut self, links: &Links, locks: &Locks, now: Time, at: LaneIndex) {
        let mut wholes = 0;
        while wholes < WHOLE_SLICE
            && let Some(lane) = self.lane(at).filter(|lane| !lane.is_full() && lane.has_room())
            && let Some(cell) = lane.todo.pop_first()
        {
            let Some(copied) = self.copied(cell) else { continue };
            let Some(copy) = copied.copies.iter().position(|copy| copy.lane == at) else {
                continue;
            };
            match copied.copies[copy].phase {
                Phase::Idle => self.offer(links, locks, cell, copy),
                Phase::Wanted => {
                    wholes += 1;
                    self.give_whole(links, locks, now, cell, copy);
                }
                Phase::Sent | Phase::InSync => {}
            }
        }
    }

    /// The beginning of an epoch: a copy that has the same last op keeps what it has.
    pub(super) fn offer(&mut self, links: &Links, locks: &Locks, cell: CellIndex, at: usize) {
        let copied = self.cells[cell.0 as usize].as_deref_mut().expect("a cell with copies");
        let lane = self.lanes[copied.copies[at].lane.0].as_mut().expect("a copy has a lane");
        let news = copied.news(at, locks.last(cell), CellPart::Offer);
        let position = lane.enter(cell, &news);
        let mut here = BTreeSet::new();
        locks.rebuild(cell, Time(0), |_, op| here.extend(link_of(&op.change)));
        for link in here {
            let number = name_link(lane, links, locks, link);
            let own = [LinkOrigin { by: self.me, number }];
            let was = copied.was.get(&link).map_or(&own[..], Vec::as_slice);
            for &name in was {
                frame::put_was(lane.bytes(), name, number);
            }
        }
        frame::put_end(lane.bytes(), usize::from(position));
        self.parked -= sent(copied, at, lane, (cell, position));
    }

    /// All of a cell.
    fn give_whole(&mut self, links: &Links, locks: &Locks, now: Time, cell: CellIndex, at: usize) {
        let copied = self.cells[cell.0 as usize].as_deref_mut().expect("a cell with copies");
        let lane = self.lanes[copied.copies[at].lane.0].as_mut().expect("a copy has a lane");
        let mut here = BTreeSet::new();
        locks.rebuild(cell, now, |_, op| here.extend(link_of(&op.change)));
        for link in here {
            // Told before or not: the copy may have forgotten links while it had no cell from here.
            tell_link(lane, links, locks, link);
        }
        let position = lane.enter(cell, &copied.news(at, locks.last(cell), CellPart::Whole));
        let told = now.since(Time(0));
        locks.rebuild(cell, now, |tag, op| {
            let link = link_of(&op.change).map_or(0, |link| locks.number_of(link));
            let head = OpHead { position: usize::from(position), tag, link, now: told };
            frame::put_op(lane.bytes(), &head, &op.change, Some(op.number));
        });
        frame::put_end(lane.bytes(), usize::from(position));
        self.parked -= sent(copied, at, lane, (cell, position));
    }
}

/// Names a cell in the frame under construction, if that does not; says where it is.
fn enter(lane: &mut Lane, copied: &mut Copied, at: usize, cell: CellIndex, last: Fence) -> u16 {
    let (number, position) = copied.copies[at].entered;
    if number == lane.number() {
        return position;
    }
    let position = lane.enter(cell, &copied.news(at, last, CellPart::Ops));
    copied.copies[at].entered = (lane.number(), position);
    position
}

/// The number of a link, told on a lane with its definition.
#[inline]
fn name_link(lane: &mut Lane, links: &Links, locks: &Locks, link: LinkIndex) -> u64 {
    if !lane.is_told(link) {
        tell_link(lane, links, locks, link);
    }
    locks.number_of(link)
}

fn tell_link(lane: &mut Lane, links: &Links, locks: &Locks, link: LinkIndex) {
    let number = locks.number_of(link);
    let news: LinkNews<'_> = links.news(link, number);
    frame::put_link(lane.bytes(), &news);
    if locks.is_dead(link) {
        frame::put_dead(lane.bytes(), number, Death::Expired);
    }
    lane.tell(link);
}

/// A copy was sent what makes it equal. Says how many answers have waited for that.
fn sent(
    copied: &mut Copied,
    at: usize,
    lane: &mut Lane,
    (cell, position): (CellIndex, u16),
) -> usize {
    let number = lane.number();
    lane.astray.cells.remove(&cell);
    let copy = &mut copied.copies[at];
    if copy.waited {
        lane.astray.sent = number;
    }
    (copy.phase, copy.since, copy.entered) = (Phase::Sent, number, (number, position));
    let parked = std::mem::take(&mut copy.parked).into_order();
    let count = parked.len();
    for answer in parked {
        lane.wait(answer);
    }
    count
}

fn link_of(change: &Change<'_>) -> Option<LinkIndex> {
    match *change {
        Change::Granted { link, .. } | Change::Queued { link, .. } | Change::Left { link, .. } => {
            Some(link)
        }
        Change::Ended { .. } => None,
    }
}
