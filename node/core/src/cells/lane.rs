//! The way to one worker of another node: frames that gather what a turn of this worker has for it,
//! and those that it has not acknowledged yet, with the answers that wait for that.

use super::frame::{self, CellNews};
use super::message::{self, FrameId};
use super::seen::Seen;
use crate::event::{ConnId, LinkIndex, PeerWorker};
use crate::locks::CellIndex;
use lockring_proto::{Push, Reply, Time};
use lockring_ring::AttachId;
use std::collections::{BTreeSet, VecDeque};
use std::fmt;
use std::sync::Arc;

/// While a peer has this much before it, nothing new is taken on.
const UNACKNOWLEDGED_BYTES: usize = 8 << 20;
const UNACKNOWLEDGED_FRAMES: usize = 1024;

/// A lane of this worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct LaneIndex(pub(super) usize);

/// What a client is told.
#[derive(Clone, Debug)]
pub(crate) enum Telling {
    Reply(Reply),
    /// That something has ended: a client that hears of it before its copies do may hear of it in
    /// vain, and before it has heard of the grant.
    Push(Push),
}

/// An answer that is not to leave yet.
#[derive(Clone, Debug)]
pub(crate) struct Withheld {
    pub(crate) conn: ConnId,
    /// What it shows; none: of all cells.
    pub(super) cell: Option<CellIndex>,
    pub(crate) telling: Telling,
    /// Frames of other lanes for which it waits after this one.
    pub(super) rest: Vec<(LaneIndex, u64)>,
    /// Its place among all answers.
    pub(super) order: u64,
}

/// Answers that wait for the same. Some come from elsewhere, where they waited for longer: all are
/// put in their order when they go on, as an end is not to be told before the grant.
#[derive(Clone, Default)]
pub(super) struct Answers(Vec<Withheld>);

impl Answers {
    #[inline]
    pub(super) fn push(&mut self, answer: Withheld) {
        self.0.push(answer);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    #[cfg(any(test, feature = "testing"))]
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    /// All of them, in their order.
    pub(super) fn into_order(mut self) -> Vec<Withheld> {
        self.0.sort_by_key(|answer| answer.order);
        self.0
    }

    /// Takes out those that `is_it`, in no order.
    fn extract(&mut self, is_it: impl Fn(&Withheld) -> bool, out: &mut Vec<Withheld>) {
        out.extend(self.0.extract_if(.., |answer| is_it(answer)));
    }
}

/// As what they are together, however they have come.
impl fmt::Debug for Answers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.clone().into_order()).finish()
    }
}

impl Withheld {
    /// The cell that it shows.
    pub(crate) fn cell(&self) -> Option<CellIndex> {
        self.cell
    }
}

/// A frame that is not acknowledged, and what waits for it.
#[derive(Clone, Debug)]
pub(super) struct SentFrame {
    pub(super) number: u64,
    /// The cells that it names.
    pub(super) cells: Vec<CellIndex>,
    pub(super) answers: Answers,
    records: Vec<u8>,
}

/// Links by whether they were told on a lane.
#[derive(Clone, Debug, Default)]
struct LinkSet(Vec<u64>);

impl LinkSet {
    #[inline]
    fn has(&self, link: LinkIndex) -> bool {
        let word = self.0.get(link.0 as usize / 64);
        word.is_some_and(|word| word >> (link.0 % 64) & 1 == 1)
    }

    fn insert(&mut self, link: LinkIndex) {
        let word = link.0 as usize / 64;
        self.0.resize(self.0.len().max(word + 1), 0);
        self.0[word] |= 1 << (link.0 % 64);
    }

    /// Says whether it was in it.
    fn remove(&mut self, link: LinkIndex) -> bool {
        let was = self.has(link);
        if was {
            self.0[link.0 as usize / 64] &= !(1 << (link.0 % 64));
        }
        was
    }
}

/// Cells whose copy lacks something, though answers wait for it.
#[derive(Clone, Debug, Default)]
pub(super) struct Astray {
    /// Those whose copy does not follow.
    pub(super) cells: BTreeSet<CellIndex>,
    /// The last frame by which one of them was sent anew.
    pub(super) sent: u64,
}

#[derive(Clone, Debug)]
pub(super) struct Lane {
    pub(super) peer: PeerWorker,
    /// There is a connection.
    up: bool,
    /// The number of the connection, or of the last that there was: later ones have higher ones,
    /// also those of a later lane to the same peer.
    connection: u64,
    /// Of the frame that is being filled.
    number: u64,
    bytes: Vec<u8>,
    cells: Vec<CellIndex>,
    answers: Answers,
    /// Cells that answers show, some of which may not be named in the frame yet.
    shown: Vec<CellIndex>,
    sent: VecDeque<SentFrame>,
    sent_bytes: usize,
    told: LinkSet,
    /// Cells that a copy is to be given anew.
    pub(super) todo: BTreeSet<CellIndex>,
    pub(super) astray: Astray,
    /// Learners that have acknowledged a snapshot, by the frame with which they have all that was
    /// executed before. Acknowledgements of one attachment mean nothing to the next.
    pub(super) covering: BTreeSet<(u64, CellIndex, AttachId)>,
    /// What waited at the last look for silence.
    seen: Seen,
}

impl Lane {
    pub(super) fn new(peer: PeerWorker, connection: u64, up: bool) -> Self {
        let mut bytes = Vec::new();
        frame::put_anew(&mut bytes);
        Self {
            peer,
            up,
            connection,
            number: 1,
            bytes,
            cells: Vec::new(),
            answers: Answers::default(),
            shown: Vec::new(),
            sent: VecDeque::new(),
            sent_bytes: 0,
            told: LinkSet::default(),
            todo: BTreeSet::new(),
            astray: Astray::default(),
            covering: BTreeSet::new(),
            seen: Seen::default(),
        }
    }

    /// The number of the frame that is being filled.
    #[inline]
    pub(super) fn number(&self) -> u64 {
        self.number
    }

    pub(super) fn connection(&self) -> u64 {
        self.connection
    }

    /// Nothing is being filled.
    pub(super) fn is_blank(&self) -> bool {
        self.bytes.is_empty() && self.answers.is_empty() && self.shown.is_empty()
    }

    pub(super) fn is_full(&self) -> bool {
        self.sent_bytes > UNACKNOWLEDGED_BYTES || self.sent.len() > UNACKNOWLEDGED_FRAMES
    }

    /// The last frame that has something in it, if it is not acknowledged.
    pub(super) fn newest(&self) -> Option<u64> {
        if !self.is_blank() {
            return Some(self.number);
        }
        self.sent.back().map(|round| round.number)
    }

    /// The first frame that is not acknowledged, be it under construction.
    pub(super) fn oldest(&self) -> u64 {
        self.sent.front().map_or(self.number, |round| round.number)
    }

    /// Whether something waits for the peer.
    pub(super) fn is_awaited(&self) -> bool {
        !self.sent.is_empty() || !self.astray.cells.is_empty()
    }

    /// The cells of which the peer has acknowledged nothing for long, as far as it shows.
    pub(super) fn look(&mut self, now: Time) -> BTreeSet<CellIndex> {
        let first = self.sent.front().map(|round| round.number);
        let mut silent = BTreeSet::from_iter(self.seen.long_astray(now, &self.astray.cells));
        if self.seen.is_frame_old(now, first) {
            silent.extend(self.sent.iter().flat_map(|round| round.cells.iter().copied()));
        }
        silent
    }

    /// What is being filled.
    #[inline]
    pub(super) fn bytes(&mut self) -> &mut Vec<u8> {
        &mut self.bytes
    }

    /// Names a cell in the frame that is being filled, and says where it is among its cells.
    pub(super) fn enter(&mut self, cell: CellIndex, news: &CellNews) -> u16 {
        frame::put_cell(&mut self.bytes, news);
        self.cells.push(cell);
        (self.cells.len() - 1) as u16
    }

    /// Whether a frame has room for another cell.
    pub(super) fn has_room(&self) -> bool {
        self.cells.len() < usize::from(u16::MAX)
    }

    #[inline]
    pub(super) fn is_told(&self, link: LinkIndex) -> bool {
        self.told.has(link)
    }

    pub(super) fn tell(&mut self, link: LinkIndex) {
        self.told.insert(link);
    }

    /// A link is not to be named any more; whether it ever was.
    pub(super) fn untell(&mut self, link: LinkIndex) -> bool {
        self.told.remove(link)
    }

    /// An answer waits for the frame that is being filled.
    pub(super) fn wait(&mut self, answer: Withheld) {
        if let Some(cell) = answer.cell {
            self.show(cell);
        }
        self.answers.push(answer);
    }

    /// An answer shows a cell: the copy is to say by the frame that is being filled that it is
    /// this owner's.
    pub(super) fn show(&mut self, cell: CellIndex) {
        if self.shown.last() != Some(&cell) {
            self.shown.push(cell);
        }
    }

    /// The cells that waiting answers show.
    pub(super) fn take_shown(&mut self) -> Vec<CellIndex> {
        std::mem::take(&mut self.shown)
    }

    /// Has an answer wait for a frame, if that is not acknowledged yet; else gives it back.
    pub(super) fn wait_for(&mut self, number: u64, answer: Withheld) -> Option<Withheld> {
        if number == self.number {
            self.wait(answer);
            return None;
        }
        match self.sent.binary_search_by_key(&number, |round| round.number) {
            Ok(at) => {
                self.sent[at].answers.push(answer);
                None
            }
            Err(_) => Some(answer),
        }
    }

    /// Ends the frame that is being filled: what is to be sent of it, if there is a connection.
    pub(super) fn close(&mut self) -> Option<Arc<Vec<u8>>> {
        if self.is_blank() {
            return None;
        }
        let round = SentFrame {
            number: self.number,
            cells: std::mem::take(&mut self.cells),
            answers: std::mem::take(&mut self.answers),
            records: std::mem::take(&mut self.bytes),
        };
        let id = FrameId { connection: self.connection, number: self.number };
        let bytes = self.up.then(|| Arc::new(message::frame(id, &round.records)));
        self.sent_bytes += round.records.len();
        self.sent.push_back(round);
        self.number += 1;
        bytes
    }

    /// A connection stands, and none of what was sent on the one before is known to have come.
    pub(super) fn connected(&mut self) -> impl Iterator<Item = Arc<Vec<u8>>> + '_ {
        self.up = true;
        self.connection += 1;
        let connection = self.connection;
        self.sent.iter().map(move |round| {
            Arc::new(message::frame(FrameId { connection, number: round.number }, &round.records))
        })
    }

    pub(super) fn disconnected(&mut self) {
        self.up = false;
    }

    /// A frame is acknowledged. `None`: it was before, or was sent again since.
    pub(super) fn acknowledged(&mut self, id: FrameId) -> Option<SentFrame> {
        if id.connection != self.connection {
            return None;
        }
        let at = self.sent.binary_search_by_key(&id.number, |round| round.number).ok()?;
        let round = self.sent.remove(at)?;
        self.sent_bytes -= round.records.len();
        Some(round)
    }

    /// Takes out what waits here and `is_it`, in no order.
    pub(super) fn take_answers(
        &mut self,
        is_it: impl Fn(&Withheld) -> bool,
        out: &mut Vec<Withheld>,
    ) {
        for round in &mut self.sent {
            round.answers.extract(&is_it, out);
        }
        self.answers.extract(&is_it, out);
    }
}
