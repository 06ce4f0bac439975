//! Whom an answer waits for.
//!
//! What this worker executes in a cell with copies is told to these in frames, a lane for each
//! worker that has some, and an answer that shows the cell leaves when all of them have
//! acknowledged a frame that was begun no earlier than its execution. Frames name cells by epoch
//! and attachment, and a copy refuses those that it does not have so: their answers stay, and the
//! cell begins anew on the lane.
//!
//! ```text
//! Idle -- offered --> Sent -- acknowledged --> InSync
//!                      |                        |
//! Idle <-- refused: later, stale ----------------
//! Wanted <-- refused: needs the whole cell ------   Wanted -- whole cell --> Sent
//! ```

mod arrival;
mod copied;
mod silent;
mod tell;

use super::frame::{LinkOrigin, WorkerLife};
use super::lane::{Answers, Lane, LaneIndex, Telling, Withheld};
use super::message::{FrameId, Refusal};
use crate::event::{Action, CloseReason, ConnId, LinkIndex, PeerWorker};
use crate::links::Links;
use crate::locks::{CellIndex, Locks};
use crate::mutant::mutant;
use arrival::Newest;
use copied::{Copied, CopyAt, Phase};
use lockring_proto::{Reply, Time};
use lockring_ring::{AttachId, Epoch, Member, RingVersion};
use silent::Silence;
use std::collections::{BTreeMap, BTreeSet};
use tell::to;

/// What an answer lets its reader conclude, and so what a copy has to have before it leaves.
#[derive(Clone, Copy)]
pub(crate) enum Shows {
    /// The state of a cell.
    Cell(CellIndex),
    /// The state of all cells in which the link has something.
    Link,
    /// That the node may answer at all.
    Lease,
    /// Nothing of any cell that is more than a hint.
    Nothing,
}

/// Answers that may wait for copies which do not follow, about.
const PARKED_MAX: usize = 1 << 16;

/// Who has a copy of a cell, and by which lane it is reached.
pub(crate) struct CopyOf {
    pub(crate) member: Member,
    pub(crate) peer: PeerWorker,
    pub(crate) learner: bool,
}

/// The answers of a worker, and its lanes.
#[derive(Clone, Debug)]
pub(crate) struct Rounds {
    me: WorkerLife,
    /// By cell; empty while none has copies.
    cells: Vec<Option<Box<Copied>>>,
    lanes: Vec<Option<Lane>>,
    by_peer: BTreeMap<PeerWorker, LaneIndex>,
    /// Those to whom there is a connection, with a lane or without.
    connected: BTreeSet<PeerWorker>,
    /// No lane that went has had a connection of this number or above: what is late of it, on
    /// either side, means nothing to the next.
    next_connection: u64,
    /// The node may answer until then.
    lease: Time,
    /// Cells whose members are not equal yet in the epoch of now, each by the ring version in which
    /// that began.
    syncing: BTreeSet<(RingVersion, CellIndex)>,
    /// Answers that were to leave past it.
    overdue: Vec<Withheld>,
    /// How many answers there were, each with its place.
    answered: u64,
    /// How many of them wait for copies that do not follow.
    parked: usize,
    silence: Silence,
    newest: Newest,
    #[cfg(any(test, feature = "testing"))]
    pub(crate) mutant: Option<crate::Mutant>,
}

impl Rounds {
    pub(crate) fn new(me: WorkerLife, version: RingVersion) -> Self {
        Self {
            me,
            cells: Vec::new(),
            lanes: Vec::new(),
            by_peer: BTreeMap::new(),
            connected: BTreeSet::new(),
            next_connection: 0,
            lease: Time::NEVER,
            syncing: BTreeSet::new(),
            overdue: Vec::new(),
            answered: 0,
            parked: 0,
            silence: Silence::default(),
            newest: Newest::new(version),
            #[cfg(any(test, feature = "testing"))]
            mutant: None,
        }
    }

    /// Whether an answer may have to wait at this time.
    #[inline(always)]
    pub(crate) fn withhold(&self, now: Time) -> bool {
        !self.lanes.is_empty() || now >= self.lease
    }

    #[inline]
    fn copied(&mut self, cell: CellIndex) -> Option<&mut Copied> {
        self.cells.get_mut(cell.0 as usize)?.as_deref_mut()
    }

    fn lane(&mut self, lane: LaneIndex) -> Option<&mut Lane> {
        self.lanes.get_mut(lane.0)?.as_mut()
    }

    /// Whether nothing new is to be taken on: a peer has much before it, or many answers wait for
    /// copies that do not follow.
    pub(crate) fn are_full(&self) -> bool {
        self.parked > PARKED_MAX || self.lanes.iter().flatten().any(Lane::is_full)
    }

    /// Until when the node may answer.
    pub(crate) fn lease(&self) -> Time {
        self.lease
    }

    /// The node may answer until then; what was withheld for want of that leaves.
    pub(crate) fn set_lease(&mut self, now: Time, lease: Time, out: &mut Vec<Action>) {
        self.lease = lease;
        for answer in std::mem::take(&mut self.overdue) {
            self.leave(now, answer, out);
        }
    }

    /// An answer: it leaves, or waits for copies.
    #[inline(never)]
    pub(crate) fn answer(
        &mut self,
        now: Time,
        (conn, shows): (ConnId, Shows),
        telling: Telling,
        out: &mut Vec<Action>,
    ) {
        let unsafely = mutant!(self, AnswerBeforeRound);
        self.answered += 1;
        let order = self.answered;
        let (cell, rest) = match shows {
            Shows::Nothing => return say(conn, telling, out),
            Shows::Cell(cell) if !unsafely => {
                // Most cells have one copy that follows.
                let copied = self.cells.get(cell.0 as usize).and_then(Option::as_deref);
                if let Some([copy]) = copied.map(|copied| &copied.copies[..])
                    && copy.follows()
                    && self.is_waited(copy)
                    && let Some(lane) = self.lanes[copy.lane.0].as_mut()
                {
                    let rest = Vec::new();
                    return lane.wait(Withheld { conn, cell: Some(cell), telling, rest, order });
                }
                let rest = self.waits_of(cell);
                // It comes to the other lanes when these frames have left.
                for &(at, _) in &rest {
                    self.lane(at).expect("a copy has a lane").show(cell);
                }
                (Some(cell), rest)
            }
            Shows::Link if !unsafely => (None, self.waits_of_all()),
            Shows::Cell(_) | Shows::Link | Shows::Lease => {
                let rest = Vec::new();
                let answer = Withheld { conn, cell: None, telling, rest, order };
                return self.leave(now, answer, out);
            }
        };
        self.advance(now, Withheld { conn, cell, telling, rest, order }, out);
    }

    /// What an answer that shows all cells waits for.
    fn waits_of_all(&self) -> Vec<(LaneIndex, u64)> {
        let waits =
            |(at, lane): (usize, &Option<Lane>)| Some((LaneIndex(at), lane.as_ref()?.newest()?));
        self.lanes.iter().enumerate().filter_map(waits).collect()
    }

    /// Reads what telling the copies of these cells will need, so that its misses overlap.
    pub(crate) fn touch(&self, cells: impl Iterator<Item = CellIndex>) {
        let copied = |cell: CellIndex| self.cells.get(cell.0 as usize)?.as_deref();
        let entered = |copied: &Copied| copied.copies.first().map_or(0, |copy| copy.entered.0);
        let sum: u64 = cells.filter_map(copied).map(entered).sum();
        std::hint::black_box(sum);
    }

    /// Whether answers wait for a copy.
    #[inline]
    fn is_waited(&self, copy: &CopyAt) -> bool {
        copy.waited && !(mutant!(self, NoSyncRound) && copy.phase != Phase::InSync)
    }

    /// What an answer that shows a cell waits for.
    fn waits_of(&self, cell: CellIndex) -> Vec<(LaneIndex, u64)> {
        let Some(Some(copied)) = self.cells.get(cell.0 as usize) else { return Vec::new() };
        let waited = copied.copies.iter().filter(|copy| self.is_waited(copy));
        let number = |copy: &CopyAt| Some((copy.lane, self.lanes[copy.lane.0].as_ref()?.number()));
        let most = if mutant!(self, OneOfTwoCopies) { 1 } else { usize::MAX };
        waited.filter_map(number).take(most).collect()
    }

    /// Has an answer wait for the next of what it waits for, or lets it leave.
    fn advance(&mut self, now: Time, mut answer: Withheld, out: &mut Vec<Action>) {
        while let Some((lane, number)) = answer.rest.pop() {
            match self.wait_for(lane, number, answer) {
                Some(goes_on) => answer = goes_on,
                None => return,
            }
        }
        if answer.cell.is_some() {
            return self.leave(now, answer, out);
        }
        // What shows all cells waits for copies that were sent a cell anew since, and for those
        // that do not follow, too.
        for lane in self.lanes.iter_mut().flatten() {
            match lane.wait_for(lane.astray.sent, answer) {
                Some(goes_on) => answer = goes_on,
                None => return,
            }
        }
        if let Some((at, cell)) = self.first_astray() {
            let copied = self.copied(cell).expect("a cell with copies");
            let copy = copied.copies.iter_mut().find(|copy| copy.lane == at);
            copy.expect("it is astray").parked.push(answer);
            self.parked += 1;
            return;
        }
        self.leave(now, answer, out);
    }

    fn first_astray(&self) -> Option<(LaneIndex, CellIndex)> {
        let astray = |(at, lane): (usize, &Option<Lane>)| {
            Some((LaneIndex(at), *lane.as_ref()?.astray.cells.first()?))
        };
        self.lanes.iter().enumerate().find_map(astray)
    }

    /// Gives an answer back that need not wait for a frame of a lane, as that was acknowledged.
    fn wait_for(&mut self, at: LaneIndex, number: u64, answer: Withheld) -> Option<Withheld> {
        let copy = answer.cell.and_then(|cell| {
            let copied = self.cells.get_mut(cell.0 as usize)?.as_deref_mut()?;
            copied.copies.iter_mut().find(|copy| copy.lane == at)
        });
        let Some(lane) = self.lanes.get_mut(at.0).and_then(Option::as_mut) else {
            return Some(answer);
        };
        let Some(copy) = copy else { return lane.wait_for(number, answer) };
        if !copy.follows() {
            copy.parked.push(answer);
            self.parked += 1;
            return None;
        }
        // It may have been sent the cell anew since, with all that was executed by then.
        lane.wait_for(number.max(copy.since), answer)
    }

    /// An answer leaves, if the node may still answer.
    fn leave(&mut self, now: Time, answer: Withheld, out: &mut Vec<Action>) {
        if now < self.lease || mutant!(self, AnswerPastLease) {
            say(answer.conn, answer.telling, out);
        } else {
            self.overdue.push(answer);
        }
    }

    /// A peer has acknowledged a frame, but for the cells at these positions.
    pub(crate) fn acknowledged(
        &mut self,
        now: Time,
        (peer, id): (PeerWorker, FrameId),
        refused: &[(u16, Refusal)],
        out: &mut Vec<Action>,
    ) {
        let Some(&at) = self.by_peer.get(&peer) else { return };
        let Some(round) = self.lane(at).and_then(|lane| lane.acknowledged(id)) else { return };
        let number = round.number;
        self.touch(round.cells.iter().copied());
        let refused: BTreeMap<u16, Refusal> = refused.iter().copied().collect();
        // A cell that began anew within the frame is in it twice: the last time counts.
        let mut last: BTreeMap<CellIndex, u16> = BTreeMap::new();
        if !refused.is_empty() {
            last.extend(round.cells.iter().copied().zip(0..));
        }
        for (position, &cell) in (0..).zip(&round.cells) {
            match refused.get(&position) {
                _ if last.get(&cell).is_some_and(|&last| last > position) => {}
                Some(&why) => self.is_refused(cell, at, number, why),
                None => self.is_accepted(cell, at, number),
            }
        }
        for answer in round.answers.into_order() {
            // Those of cells that were refused wait for what these are sent anew.
            if let Some(answer) = self.wait_for_again(at, number, answer) {
                self.advance(now, answer, out);
            }
        }
        self.cover(at, out);
    }

    /// An answer whose frame is acknowledged: `None` if its cell was refused in it or before. The
    /// frame may say nothing of the cell, as the answer came to it from another lane.
    fn wait_for_again(&mut self, at: LaneIndex, number: u64, answer: Withheld) -> Option<Withheld> {
        let copied = answer.cell.and_then(|cell| self.copied(cell));
        let copy = copied.and_then(|copied| copied.copies.iter().find(|copy| copy.lane == at));
        if copy.is_none_or(|copy| copy.follows() && copy.since <= number && copy.refused < number) {
            return Some(answer);
        }
        self.wait_for(at, number, answer)
    }

    fn is_accepted(&mut self, cell: CellIndex, at: LaneIndex, number: u64) {
        let unwaited = mutant!(self, LearnerNotWaited);
        let Some(copied) = self.cells.get_mut(cell.0 as usize).and_then(Option::as_deref_mut)
        else {
            return;
        };
        let Some(copy) = copied.copies.iter_mut().find(|copy| copy.lane == at) else { return };
        if copy.phase != Phase::Sent || copy.since != number {
            return;
        }
        copy.phase = Phase::InSync;
        if copy.learner {
            copy.waited = !unwaited;
            let lane = self.lanes[at.0].as_mut().expect("a copy has a lane");
            let early = mutant!(self, SyncedEarly);
            let until = lane.newest().filter(|_| !early).unwrap_or(0);
            lane.covering.insert((until, cell, copy.member.attach));
        }
        if copied.copies.iter().all(|copy| copy.phase == Phase::InSync) {
            copied.was.clear();
        }
        if !self.syncing.is_empty() && copied.members_are_equal() {
            self.syncing.remove(&(copied.since, cell));
        }
    }

    fn is_refused(&mut self, cell: CellIndex, at: LaneIndex, number: u64, why: Refusal) {
        let Some(copied) = self.copied(cell) else { return };
        let Some(copy) = copied.copies.iter_mut().find(|copy| copy.lane == at) else { return };
        copy.refused = copy.refused.max(number);
        if !copy.follows() || number < copy.since {
            return;
        }
        copy.phase = if why == Refusal::NeedsWhole { Phase::Wanted } else { Phase::Idle };
        let waited = copy.waited;
        let lane = self.lane(at).expect("a copy has a lane");
        if waited {
            lane.astray.cells.insert(cell);
        }
        lane.covering.retain(|&(_, its, _)| its != cell);
        if why == Refusal::NeedsWhole {
            lane.todo.insert(cell);
        }
    }

    /// Learners that have all that was executed before they were waited for can be members.
    fn cover(&mut self, at: LaneIndex, out: &mut Vec<Action>) {
        while let Some(lane) = self.lane(at)
            && let Some(&(until, cell, attach)) = lane.covering.first()
            && until < lane.oldest()
        {
            lane.covering.pop_first();
            let Some(copied) = self.copied(cell) else { continue };
            let Some(copy) = copied.copies.iter().find(|copy| copy.lane == at) else { continue };
            if copy.learner && copy.member.attach == attach {
                let (cell, epoch) = (copied.id, copied.epoch);
                out.push(Action::Synced { cell, epoch, attach });
            }
        }
    }

    /// A copy can take a cell now that it refused before.
    pub(crate) fn ready(
        &mut self,
        peer: PeerWorker,
        cell: CellIndex,
        epoch: Epoch,
        attach: AttachId,
    ) {
        let Some(&at) = self.by_peer.get(&peer) else { return };
        let Some(copied) = self.copied(cell).filter(|copied| copied.epoch == epoch) else { return };
        let its = |copy: &&mut CopyAt| copy.lane == at && copy.member.attach == attach;
        let Some(copy) = copied.copies.iter_mut().find(its) else { return };
        if copy.phase == Phase::Idle {
            self.lane(at).expect("a copy has a lane").todo.insert(cell);
        }
    }

    /// A connection to a peer stands: what it has not acknowledged is sent again, and cells that it
    /// has refused are offered anew, as it may have said in vain that it can take them.
    pub(crate) fn connected(&mut self, peer: PeerWorker, out: &mut Vec<Action>) {
        self.connected.insert(peer);
        let Some(&at) = self.by_peer.get(&peer) else { return };
        let astray = |(cell, copied): (usize, &Option<Box<Copied>>)| {
            let copy = copied.as_ref()?.copies.iter().find(|copy| copy.lane == at)?;
            (!copy.follows()).then_some(CellIndex(cell as u32))
        };
        let astray: Vec<CellIndex> = self.cells.iter().enumerate().filter_map(astray).collect();
        let lane = self.lane(at).expect("a peer has a lane");
        lane.todo.extend(astray);
        out.extend(lane.connected().map(|bytes| to(peer, bytes)));
    }

    pub(crate) fn disconnected(&mut self, peer: PeerWorker) {
        self.connected.remove(&peer);
        if let Some(&at) = self.by_peer.get(&peer) {
            if mutant!(self, DropsCopyAlone) {
                let its = |copy: &mut CopyAt| copy.lane != at;
                self.cells.iter_mut().flatten().for_each(|copied| copied.copies.retain(its));
            }
            self.lane(at).expect("a peer has a lane").disconnected();
        }
    }

    /// From now on a cell has these copies, under this epoch: answers that waited for others wait
    /// for these, from the beginning. `was`: what links were called before this worker owned it.
    pub(crate) fn own(
        &mut self,
        (links, locks): (&Links, &Locks),
        cell: CellIndex,
        (epoch, since): (Epoch, RingVersion),
        copies: &[CopyOf],
        was: Option<BTreeMap<LinkIndex, Vec<LinkOrigin>>>,
    ) {
        let was_syncing = self.syncing.contains(&(since, cell));
        let before = self.forget_cell(cell);
        if copies.is_empty() {
            return;
        }
        let goes_on = before.as_ref().is_some_and(|before| before.epoch == epoch);
        let was = was.or_else(|| before.as_ref().map(|before| before.was.clone()));
        let known = before.filter(|_| goes_on).map(|before| before.copies).unwrap_or_default();
        let next = copies.iter().map(|copy| self.copy_at(copy, &known)).collect();
        let (id, was) = (locks.cell_id(cell), was.unwrap_or_default());
        if self.cells.is_empty() {
            self.cells.resize_with(locks.layout().cells() as usize, || None);
        }
        let copied = Copied { id, epoch, since, copies: next, was };
        // A copy that becomes a member later was equal before that.
        if (!goes_on || was_syncing) && !copied.members_are_equal() {
            self.syncing.insert((since, cell));
        }
        self.cells[cell.0 as usize] = Some(Box::new(copied));
        for at in 0..copies.len() {
            let &CopyAt { lane, phase, waited, .. } =
                &self.copied(cell).expect("it was made").copies[at];
            let lane = self.lane(lane).expect("it was made");
            match phase {
                Phase::Idle if lane.has_room() => self.offer(links, locks, cell, at),
                Phase::Idle | Phase::Wanted => {
                    lane.todo.insert(cell);
                    if waited {
                        lane.astray.cells.insert(cell);
                    }
                }
                Phase::Sent | Phase::InSync => {}
            }
        }
    }

    fn copy_at(&mut self, copy: &CopyOf, known: &[CopyAt]) -> CopyAt {
        let &CopyOf { member, peer, learner } = copy;
        if let Some(before) = known.iter().find(|before| before.member == member) {
            let waited = before.waited || !learner;
            return CopyAt { learner, waited, parked: Answers::default(), ..before.clone() };
        }
        let lane = self.lane_to(peer);
        CopyAt {
            member,
            lane,
            learner,
            waited: !learner,
            phase: Phase::Idle,
            since: 0,
            refused: 0,
            entered: (0, 0),
            parked: Answers::default(),
        }
    }

    fn lane_to(&mut self, peer: PeerWorker) -> LaneIndex {
        if let Some(&lane) = self.by_peer.get(&peer) {
            return lane;
        }
        let free = self.lanes.iter().position(Option::is_none);
        let at = free.unwrap_or_else(|| {
            self.lanes.push(None);
            self.lanes.len() - 1
        });
        let up = self.connected.contains(&peer);
        self.lanes[at] = Some(Lane::new(peer, self.next_connection, up));
        self.by_peer.insert(peer, LaneIndex(at));
        LaneIndex(at)
    }

    fn forget_cell(&mut self, cell: CellIndex) -> Option<Box<Copied>> {
        let before = self.cells.get_mut(cell.0 as usize)?.take()?;
        for lane in self.lanes.iter_mut().flatten() {
            lane.todo.remove(&cell);
            lane.astray.cells.remove(&cell);
        }
        self.syncing.remove(&(before.since, cell));
        assert!(
            before.copies.iter().all(|copy| copy.parked.is_empty()),
            "answers of {cell:?} are forgotten: {before:?}"
        );
        Some(before)
    }

    /// A cell is not owned any more.
    pub(crate) fn disown(&mut self, cell: CellIndex) {
        self.forget_cell(cell);
    }

    /// Takes out all answers that show one of these cells, in their order.
    pub(crate) fn take_answers(&mut self, cells: &BTreeSet<CellIndex>) -> Vec<Withheld> {
        let is_it = |answer: &Withheld| answer.cell.is_some_and(|cell| cells.contains(&cell));
        let mut taken = Vec::new();
        for &cell in cells {
            for copy in self.copied(cell).into_iter().flat_map(|copied| &mut copied.copies) {
                taken.append(&mut std::mem::take(&mut copy.parked).into_order());
            }
        }
        self.parked -= taken.len();
        for lane in self.lanes.iter_mut().flatten() {
            lane.take_answers(is_it, &mut taken);
        }
        taken.extend(self.overdue.extract_if(.., |answer| is_it(answer)));
        taken.sort_by_key(|answer| answer.order);
        taken
    }

    /// Lets an answer that was taken out wait for whomever it has to by now.
    pub(crate) fn again(&mut self, now: Time, answer: Withheld, out: &mut Vec<Action>) {
        let Withheld { conn, cell, telling, .. } = answer;
        let shows = cell.map_or(Shows::Link, Shows::Cell);
        self.answer(now, (conn, shows), telling, out);
    }

    /// A peer will never acknowledge anything: its lane goes, once no cell has a copy there.
    pub(crate) fn drop_lane(&mut self, now: Time, peer: PeerWorker, out: &mut Vec<Action>) {
        let Some(at) = self.by_peer.remove(&peer) else { return };
        let mut lane = self.lanes[at.0].take().expect("a peer has a lane");
        self.next_connection = self.next_connection.max(lane.connection() + 1);
        let mut left = Vec::new();
        lane.take_answers(|_| true, &mut left);
        left.sort_by_key(|answer| answer.order);
        for answer in left {
            self.advance(now, answer, out);
        }
        if self.by_peer.is_empty() {
            self.lanes.clear();
        }
    }

    /// Peers that have no copy of any cell of this worker.
    pub(crate) fn unused_peers(&self) -> Vec<PeerWorker> {
        let used: BTreeSet<LaneIndex> = self
            .cells
            .iter()
            .flatten()
            .flat_map(|copied| copied.copies.iter().map(|copy| copy.lane))
            .collect();
        let unused = self.by_peer.iter().filter(|(_, lane)| !used.contains(lane));
        unused.map(|(&peer, _)| peer).collect()
    }
}

/// Tells a client.
fn say(conn: ConnId, telling: Telling, out: &mut Vec<Action>) {
    match telling {
        Telling::Push(push) => out.push(Action::Push { conn, push }),
        Telling::Reply(reply) => {
            let is_last = matches!(reply, Reply::Goodbye { .. });
            out.push(Action::Reply { conn, reply });
            if is_last {
                out.push(Action::Close { conn, reason: CloseReason::Goodbye });
            }
        }
    }
}
