//! What workers of different nodes say to each other, as bytes.
//!
//! An owner sends frames: records of links and cells, and the ops between them. A copy answers each
//! frame, and says by itself when it can take a cell that it refused. Numbers are LEB128, tags and
//! ids have a fixed width; nothing is aligned. Only durations are sent, never instants. All nodes
//! of a cluster that talk to each other are of one version.

use crate::config::Config;
use crate::event::PeerWorker;
use crate::locks::{Change, Death, Ending, Leaving, Source};
use lockring_proto::{Claim, Fence, Mode, SessionId, limits};
use lockring_ring::{AttachId, BootId, CellId, Epoch};
use std::time::Duration;

/// Bytes that no node of this cluster sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Malformed;

/// A link, told where it is first named.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct LinkNews<'a> {
    pub(crate) number: u64,
    pub(crate) session: SessionId,
    pub(crate) ttl: Duration,
    pub(crate) namespace: &'a str,
    /// The name in its certificate.
    pub(crate) name: &'a str,
    pub(crate) label: &'a str,
    pub(crate) process: Process,
}

/// The process of a session, as a worker has heard of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Process {
    /// From where on it numbers its requests. What is under other ids is of a process before it,
    /// also what comes along from another owner.
    pub(crate) ids_after: u64,
    /// It, or one before it, has taken the session up from another. From then on whoever comes back
    /// may be any of them: one before, whose hello was under way, numbers its connections too.
    pub(crate) taken_up: bool,
}

impl Process {
    /// Of whom nothing was heard.
    pub(crate) const UNHEARD: Self = Self { ids_after: u64::MAX, taken_up: false };

    pub(crate) fn is_heard(self) -> bool {
        self.ids_after != Self::UNHEARD.ids_after
    }

    /// What is known once another owner has said whom it has heard.
    #[must_use]
    pub(crate) fn and(self, other: Self) -> Self {
        let taken_up = self.taken_up || other.taken_up;
        if !other.is_heard() || other.ids_after == self.ids_after {
            return Self { taken_up, ..self };
        }
        let ids_after = match (self.is_heard(), self.taken_up, other.taken_up) {
            (false, ..) | (true, false, true) => other.ids_after,
            (true, _, false) => self.ids_after,
            // Who came last, the next hello says.
            (true, true, true) => Self::UNHEARD.ids_after,
        };
        Self { ids_after, taken_up: taken_up || self.is_heard() }
    }
}

/// The name of a link that no other ever has: ops name these, never sessions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct LinkOrigin {
    /// Where it began.
    pub(crate) by: WorkerLife,
    pub(crate) number: u64,
}

/// A worker in one life of its process: each numbers links for itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct WorkerLife {
    pub(crate) boot: BootId,
    pub(crate) worker: u16,
}

impl From<&Config> for WorkerLife {
    fn from(config: &Config) -> Self {
        Self { boot: BootId(config.boot), worker: config.worker }
    }
}

impl From<PeerWorker> for WorkerLife {
    fn from(PeerWorker { boot, worker, .. }: PeerWorker) -> Self {
        Self { boot, worker }
    }
}

/// What follows of a cell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CellPart {
    /// Ops, or none: then answers show what there is.
    Ops,
    /// The beginning of an epoch: a copy that has the same last op keeps what it has.
    Offer,
    /// All of it.
    Whole,
}

/// A cell, told where it is first named in a frame. Ops name it by its position among those.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct CellNews {
    pub(crate) cell: CellId,
    pub(crate) epoch: Epoch,
    /// The attachment of the copy that it is sent to.
    pub(crate) attach: AttachId,
    /// The last op before those in the frame.
    pub(crate) last: Fence,
    pub(crate) part: CellPart,
}

/// A record of a frame. Links in ops go by their numbers.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Item<'a> {
    /// The way begins anew: of the links that were told before, those that are not told again will
    /// not be named.
    Anew,
    Link(LinkNews<'a>),
    /// A link is dead: what it has will be freed, op by op.
    Dead {
        number: u64,
        death: Death,
    },
    /// Nothing will name a link any more.
    Gone {
        number: u64,
    },
    Cell(CellNews),
    /// In an offer: what a link was called before its cell had this owner.
    Was {
        name: LinkOrigin,
        number: u64,
    },
    /// A change of the cell at a position, of a key with this tag at the owner. Its number is the
    /// next of the cell, but for what a whole cell has: that of a hold is its fence.
    Op {
        position: usize,
        tag: u32,
        fence: Option<Fence>,
        change: NamedChange<'a>,
    },
    /// The cell at a position is whole.
    End {
        position: usize,
    },
}

/// A change whose link is named by its number, and whose time is an age.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NamedChange<'a> {
    Granted {
        link: u64,
        request: u64,
        source: NamedSource<'a>,
        age: Duration,
    },
    Ended {
        fence: Fence,
        cause: Ending,
    },
    Queued {
        link: u64,
        request: u64,
        key: &'a [u8],
        claim: Claim,
        age: Duration,
        patience: Option<Duration>,
    },
    Left {
        link: u64,
        request: u64,
        cause: Leaving,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NamedSource<'a> {
    Asked { key: &'a [u8], claim: Claim },
    Queue,
    Reclaimed { key: &'a [u8], claim: Claim, fence: Fence },
}

const LINK: u8 = 1;
const DEAD: u8 = 2;
const GONE: u8 = 3;
const CELL: u8 = 4;
const WAS: u8 = 5;
const END: u8 = 6;
/// A grant at this moment of an exclusive claim that did not wait: most ops are one of these, or
/// the end of what came of it.
const GRANTED_PLAIN: u8 = 7;
const GRANTED: u8 = 8;
const GRANTED_QUEUE: u8 = 9;
const HELD: u8 = 10;
const ENDED: u8 = 11;
const QUEUED: u8 = 12;
const LEFT: u8 = 13;
const ANEW: u8 = 14;
const RECLAIMED: u8 = 15;

pub(super) fn put(out: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        out.push(number as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    put(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

fn put_span(out: &mut Vec<u8>, span: Duration) {
    put(out, u64::try_from(span.as_micros()).unwrap_or(u64::MAX));
}

fn put_claim(out: &mut Vec<u8>, claim: Claim) {
    match claim {
        Claim::Mode(mode) => out.push(mode as u8),
        Claim::Permits { permits, capacity } => {
            out.push(0xff);
            put(out, u64::from(permits));
            put(out, u64::from(capacity));
        }
    }
}

/// Appends that the way begins anew.
pub(crate) fn put_anew(out: &mut Vec<u8>) {
    out.push(ANEW);
}

/// Appends what is told of a link.
pub(crate) fn put_link(out: &mut Vec<u8>, link: &LinkNews<'_>) {
    out.push(LINK);
    put(out, link.number);
    out.extend_from_slice(&link.session.0);
    put_span(out, link.ttl);
    for text in [link.namespace, link.name, link.label] {
        put_bytes(out, text.as_bytes());
    }
    put(out, link.process.ids_after.wrapping_add(1));
    out.push(u8::from(link.process.taken_up));
}

pub(crate) fn put_dead(out: &mut Vec<u8>, number: u64, death: Death) {
    out.push(DEAD);
    put(out, number);
    out.push(u8::from(death == Death::Left));
}

pub(crate) fn put_gone(out: &mut Vec<u8>, number: u64) {
    out.push(GONE);
    put(out, number);
}

pub(crate) fn put_cell(out: &mut Vec<u8>, news: &CellNews) {
    out.push(CELL);
    out.extend_from_slice(&news.cell.0.to_le_bytes());
    put(out, u64::from(news.epoch.0));
    put(out, news.attach.0);
    out.extend_from_slice(&news.last.0.to_le_bytes());
    out.push(news.part as u8);
}

pub(crate) fn put_was(out: &mut Vec<u8>, name: LinkOrigin, number: u64) {
    out.push(WAS);
    out.extend_from_slice(&name.by.boot.0.to_le_bytes());
    put(out, u64::from(name.by.worker));
    put(out, name.number);
    put(out, number);
}

pub(crate) fn put_end(out: &mut Vec<u8>, position: usize) {
    out.push(END);
    put(out, position as u64);
}

/// What an op says beside its change.
#[derive(Clone, Copy)]
pub(crate) struct OpHead {
    /// Of its cell in the frame.
    pub(crate) position: usize,
    /// Of its key, at the owner.
    pub(crate) tag: u32,
    /// The number of the link that it names.
    pub(crate) link: u64,
    /// The time at the owner.
    pub(crate) now: Duration,
}

impl OpHead {
    #[inline]
    fn put(&self, out: &mut Vec<u8>, kind: u8) {
        out.push(kind);
        put(out, self.position as u64);
        out.extend_from_slice(&self.tag.to_le_bytes());
    }

    fn age(&self, since: Duration) -> Duration {
        self.now.saturating_sub(since)
    }
}

/// Appends an op. `held`: it is a hold of a whole cell, under this fence.
pub(crate) fn put_op(out: &mut Vec<u8>, head: &OpHead, change: &Change<'_>, held: Option<Fence>) {
    match *change {
        Change::Granted { request, source: Source::Asked { key, claim }, since, .. } => {
            let plain = held.is_none() && claim == Claim::EXCLUSIVE && since == head.now;
            let kind = if plain { GRANTED_PLAIN } else { GRANTED };
            head.put(out, if held.is_some() { HELD } else { kind });
            put(out, head.link);
            put(out, request);
            put_bytes(out, key);
            if plain {
                return;
            }
            if let Some(fence) = held {
                out.extend_from_slice(&fence.0.to_le_bytes());
            }
            put_claim(out, claim);
            put_span(out, head.age(since));
        }
        Change::Granted {
            request, source: Source::Reclaimed { key, claim, fence }, since, ..
        } => {
            head.put(out, RECLAIMED);
            put(out, head.link);
            put(out, request);
            put_bytes(out, key);
            out.extend_from_slice(&fence.0.to_le_bytes());
            put_claim(out, claim);
            put_span(out, head.age(since));
        }
        Change::Granted { request, source: Source::Queue, since, .. } => {
            head.put(out, GRANTED_QUEUE);
            put(out, head.link);
            put(out, request);
            put_span(out, head.age(since));
        }
        Change::Ended { fence, cause } => {
            head.put(out, ENDED);
            put(out, u64::from(fence.epoch().0));
            put(out, fence.counter());
            out.push(cause as u8);
        }
        Change::Queued { request, key, claim, since, patience, .. } => {
            head.put(out, QUEUED);
            put(out, head.link);
            put(out, request);
            put_bytes(out, key);
            put_claim(out, claim);
            put_span(out, head.age(since));
            match patience {
                None => out.push(0),
                Some(patience) => {
                    out.push(1);
                    put_span(out, patience);
                }
            }
        }
        Change::Left { request, cause, .. } => {
            head.put(out, LEFT);
            put(out, head.link);
            put(out, request);
            out.push(cause as u8);
        }
    }
}

/// What is left of a message.
#[derive(Debug)]
pub(crate) struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn byte(&mut self) -> Result<u8, Malformed> {
        let (&first, rest) = self.0.split_first().ok_or(Malformed)?;
        self.0 = rest;
        Ok(first)
    }

    fn take(&mut self, len: usize) -> Result<&'a [u8], Malformed> {
        let (taken, rest) = self.0.split_at_checked(len).ok_or(Malformed)?;
        self.0 = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        self.take(N)?.try_into().map_err(|_| Malformed)
    }

    #[inline]
    pub(crate) fn number(&mut self) -> Result<u64, Malformed> {
        let mut number = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            if shift == 63 && byte > 1 {
                return Err(Malformed);
            }
            number |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(number);
            }
        }
        Err(Malformed)
    }

    fn bytes(&mut self, most: usize) -> Result<&'a [u8], Malformed> {
        let len = usize::try_from(self.number()?).map_err(|_| Malformed)?;
        if len > most { Err(Malformed) } else { self.take(len) }
    }

    fn text(&mut self, most: usize) -> Result<&'a str, Malformed> {
        std::str::from_utf8(self.bytes(most)?).map_err(|_| Malformed)
    }

    fn span(&mut self) -> Result<Duration, Malformed> {
        self.number().map(Duration::from_micros)
    }

    pub(super) fn epoch(&mut self) -> Result<Epoch, Malformed> {
        let epoch = u32::try_from(self.number()?).map_err(|_| Malformed)?;
        (epoch < Epoch::LAST.0).then_some(Epoch(epoch)).ok_or(Malformed)
    }

    pub(crate) fn cell(&mut self) -> Result<CellId, Malformed> {
        Ok(CellId(u16::from_le_bytes(self.array()?)))
    }

    fn position(&mut self) -> Result<usize, Malformed> {
        usize::try_from(self.number()?).map_err(|_| Malformed)
    }

    fn key(&mut self) -> Result<&'a [u8], Malformed> {
        let key = self.bytes(limits::KEY_BYTES_MAX)?;
        if key.is_empty() { Err(Malformed) } else { Ok(key) }
    }

    fn request(&mut self) -> Result<u64, Malformed> {
        let request = self.number()?;
        (request <= limits::REQUEST_ID_MAX).then_some(request).ok_or(Malformed)
    }

    fn claim(&mut self) -> Result<Claim, Malformed> {
        match self.byte()? {
            0xff => {
                let mut small = || u32::try_from(self.number()?).map_err(|_| Malformed);
                let (permits, capacity) = (small()?, small()?);
                let claim = Claim::Permits { permits, capacity };
                claim.is_lawful().then_some(claim).ok_or(Malformed)
            }
            code => {
                let mode = Mode::all().find(|&mode| mode as u8 == code);
                mode.map(Claim::Mode).ok_or(Malformed)
            }
        }
    }

    fn fence(&mut self) -> Result<Fence, Malformed> {
        let fence = Fence(u64::from_le_bytes(self.array()?));
        (fence.0 >> 63 == 0).then_some(fence).ok_or(Malformed)
    }

    /// The next record of a frame.
    pub(crate) fn item(&mut self) -> Result<Item<'a>, Malformed> {
        Ok(match self.byte()? {
            ANEW => Item::Anew,
            LINK => Item::Link(LinkNews {
                number: self.number()?,
                session: SessionId(self.array()?),
                ttl: self.span()?,
                namespace: self.text(limits::NAMESPACE_BYTES_MAX)?,
                name: self.text(usize::MAX)?,
                label: self.text(limits::LABEL_BYTES_MAX)?,
                process: Process {
                    ids_after: self.number()?.wrapping_sub(1),
                    taken_up: self.byte()? != 0,
                },
            }),
            DEAD => {
                let number = self.number()?;
                let death = if self.byte()? == 0 { Death::Expired } else { Death::Left };
                Item::Dead { number, death }
            }
            GONE => Item::Gone { number: self.number()? },
            CELL => Item::Cell(CellNews {
                cell: self.cell()?,
                epoch: self.epoch()?,
                attach: AttachId(self.number()?),
                last: self.fence()?,
                part: match self.byte()? {
                    0 => CellPart::Ops,
                    1 => CellPart::Offer,
                    2 => CellPart::Whole,
                    _ => return Err(Malformed),
                },
            }),
            WAS => {
                let boot = BootId(u64::from_le_bytes(self.array()?));
                let worker = u16::try_from(self.number()?).map_err(|_| Malformed)?;
                let by = WorkerLife { boot, worker };
                let name = LinkOrigin { by, number: self.number()? };
                Item::Was { name, number: self.number()? }
            }
            END => Item::End { position: self.position()? },
            kind => self.op(kind)?,
        })
    }

    #[inline]
    fn op(&mut self, kind: u8) -> Result<Item<'a>, Malformed> {
        let position = self.position()?;
        let tag = u32::from_le_bytes(self.array()?);
        let mut fence = None;
        let change = match kind {
            GRANTED_PLAIN => {
                let (link, request) = (self.number()?, self.request()?);
                let source = NamedSource::Asked { key: self.key()?, claim: Claim::EXCLUSIVE };
                NamedChange::Granted { link, request, source, age: Duration::ZERO }
            }
            GRANTED | HELD => {
                let (link, request, key) = (self.number()?, self.request()?, self.key()?);
                if kind == HELD {
                    fence = Some(self.fence()?);
                }
                let source = NamedSource::Asked { key, claim: self.claim()? };
                NamedChange::Granted { link, request, source, age: self.span()? }
            }
            RECLAIMED => {
                let (link, request, key) = (self.number()?, self.request()?, self.key()?);
                let (fence, claim) = (self.fence()?, self.claim()?);
                let source = NamedSource::Reclaimed { key, claim, fence };
                NamedChange::Granted { link, request, source, age: self.span()? }
            }
            GRANTED_QUEUE => {
                let (link, request) = (self.number()?, self.request()?);
                let source = NamedSource::Queue;
                NamedChange::Granted { link, request, source, age: self.span()? }
            }
            ENDED => {
                let (epoch, counter) = (self.epoch()?, self.number()?);
                if counter > Fence::COUNTER_LAST {
                    return Err(Malformed);
                }
                let fence = Fence::new(epoch, counter);
                NamedChange::Ended { fence, cause: Ending::of_code(self.byte()?).ok_or(Malformed)? }
            }
            QUEUED => NamedChange::Queued {
                link: self.number()?,
                request: self.request()?,
                key: self.key()?,
                claim: self.claim()?,
                age: self.span()?,
                patience: if self.byte()? == 0 { None } else { Some(self.span()?) },
            },
            LEFT => {
                let (link, request) = (self.number()?, self.request()?);
                let cause = Leaving::of_code(self.byte()?).ok_or(Malformed)?;
                NamedChange::Left { link, request, cause }
            }
            _ => return Err(Malformed),
        };
        Ok(Item::Op { position, tag, fence, change })
    }
}
