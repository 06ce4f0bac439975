//! What a key in use costs: a 48-byte record, and a side record for anything but one exclusive
//! holder of a short key.

use super::slab::{Chain, Index, List, NIL, SlabValue, index};
use crate::event::{ConnId, LinkIndex};
use lockring_proto::Time;
use lockring_proto::{Claim, Fence, Mode, limits};
use std::time::Duration;

/// Longest key that lives in the record itself.
pub(crate) const INLINE_KEY: usize = 24;

const RICH: u8 = 0x80;
const LEN_MASK: u8 = 0x1f;
/// Length of a key that lives in the side record.
const LONG: u8 = 0x1f;

/// What a thin record names its link and its position in: the bits above are those of its request.
const LINK_BITS: u32 = 23;
const POSITION_BITS: u32 = 27;
const LINK_MASK: u32 = (1 << LINK_BITS) - 1;
const POSITION_MASK: u32 = (1 << POSITION_BITS) - 1;
const REQUEST_SHAPE: u8 = 0x60;
const REQUEST_SHAPE_SHIFT: u32 = 5;

/// How many links, and thin holds of a link, a record can tell apart.
pub(crate) const LINKS_MAX: u32 = 1 << LINK_BITS;
pub(crate) const THIN_MAX: u32 = 1 << POSITION_BITS;

const _: () = assert!(
    limits::REQUEST_ID_MAX == (1 << (32 + (32 - LINK_BITS) + (32 - POSITION_BITS) + 2)) - 1,
    "a thin record has room for the highest request id, and for no bit more"
);

index!(
    /// A key in use.
    RecordIndex
);
index!(
    /// What a key in use has beside its record.
    RichIndex
);
index!(
    /// A hold or a waiter of a rich key.
    EntryIndex
);

/// What a record says of its key.
#[derive(Clone, Copy)]
pub(crate) enum Shape {
    Thin(Thin),
    Rich(RichIndex),
}

/// One exclusive holder, and nobody queued.
#[derive(Clone, Copy)]
pub(crate) struct Thin {
    pub(crate) link: LinkIndex,
    pub(crate) request: u64,
    pub(crate) fence: Fence,
}

/// A key in use. Thin: one exclusive holder, everything here. Rich: `link` is the index of the
/// [`Rich`] record and only the key is used here.
///
/// The namespace of a thin record is that of its link, so it is not stored again; that, and
/// length and shape sharing a byte, make room for `since`. The bits that link, position and shape
/// leave over are those of the request id above its low half, so that it is stored whole. The order
/// of the fields is part of the design: `link` is in the first 16 bytes and `shape` in the last, so
/// that whoever reads both has touched every cache line of the record.
#[derive(Clone, Default)]
#[repr(C)]
pub(crate) struct Record {
    fence: Fence,
    /// Thin: the link, and above it a part of the request id. Rich: the side record.
    link: u32,
    /// Thin: where it stands among the thin holds of its link, and above it another part.
    position: u32,
    /// Low half of the request id.
    request: u32,
    key: [u8; INLINE_KEY],
    shape: u8,
    /// Whole seconds of core time at the grant; wraps after 194 days, for people only.
    since: [u8; 3],
}

const _: () = assert!(size_of::<Record>() == 48);

impl Record {
    /// Fills a new record: a key that is held by nobody yet.
    #[inline]
    pub(crate) fn set_key(&mut self, key: &[u8]) {
        self.shape = LONG;
        if key.len() <= INLINE_KEY {
            self.key[..key.len()].copy_from_slice(key);
            self.shape = key.len() as u8;
        }
    }

    /// Makes it thin, as its key must be short.
    #[inline]
    pub(crate) fn make_thin(&mut self, thin: Thin, since: Duration) {
        let Thin { link, request, fence } = thin;
        assert!(self.shape & LEN_MASK != LONG, "a long key cannot be thin");
        self.shape &= LEN_MASK;
        self.link = link.0;
        self.position = 0;
        self.fence = fence;
        self.request = request as u32;
        if request > u64::from(u32::MAX) {
            self.set_high_request(request);
        }
        let [a, b, c, ..] = since.as_secs().to_le_bytes();
        self.since = [a, b, c];
    }

    /// Keeps what of a request id is above its low half.
    #[cold]
    fn set_high_request(&mut self, request: u64) {
        assert!(request <= limits::REQUEST_ID_MAX, "request id {request} was let in");
        let high = (request >> 32) as u32;
        self.link |= high << LINK_BITS;
        let high = high >> (32 - LINK_BITS);
        self.position |= high << POSITION_BITS;
        let high = (high >> (32 - POSITION_BITS)) as u8;
        self.shape |= high << REQUEST_SHAPE_SHIFT;
    }

    /// Makes it rich.
    pub(crate) fn make_rich(&mut self, rich: RichIndex) {
        self.shape = self.shape & LEN_MASK | RICH;
        self.link = rich.0;
        self.fence = Fence(0);
        self.request = 0;
        self.since = [0; 3];
    }

    /// What it says.
    #[inline(always)]
    pub(crate) fn shape(&self) -> Shape {
        if self.shape & RICH != 0 {
            return Shape::Rich(RichIndex(self.link));
        }
        let link = LinkIndex(self.link & LINK_MASK);
        Shape::Thin(Thin { link, request: self.request(), fence: self.fence })
    }

    /// The request that made a thin record.
    #[inline(always)]
    fn request(&self) -> u64 {
        let shape = u32::from((self.shape & REQUEST_SHAPE) >> REQUEST_SHAPE_SHIFT);
        let high = shape << (32 - POSITION_BITS) | self.position >> POSITION_BITS;
        let high = high << (32 - LINK_BITS) | self.link >> LINK_BITS;
        u64::from(high) << 32 | u64::from(self.request)
    }

    /// Its position, and that of thin ones alone, among the holds of its link.
    #[inline]
    pub(crate) fn position(&self) -> u32 {
        self.position & POSITION_MASK
    }

    #[inline]
    pub(crate) fn set_position(&mut self, position: u32) {
        self.position = self.position & !POSITION_MASK | position;
    }

    /// The key, if it is short.
    #[inline]
    pub(crate) fn inline_key(&self) -> Option<&[u8]> {
        let len = self.shape & LEN_MASK;
        (len != LONG).then(|| &self.key[..len as usize])
    }

    /// Whether it is free. What it held is still in it.
    pub(crate) fn is_free(&self) -> bool {
        self.inline_key().is_some_and(<[u8]>::is_empty)
    }

    /// A thin hold goes on as that of another link.
    pub(crate) fn make_others(&mut self, thin: Thin) {
        let since = self.since;
        self.make_thin(thin, Duration::ZERO);
        self.since = since;
    }

    /// When a thin hold began, to the second, seen from `now`.
    pub(crate) fn since(&self, now: Time) -> Time {
        const WRAP: u64 = 1 << 24;
        let [a, b, c] = self.since;
        let began = u64::from(u32::from_le_bytes([a, b, c, 0]));
        let now_s = now.0 / 1_000_000;
        let age = (now_s % WRAP + WRAP - began) % WRAP;
        Time(now_s.saturating_sub(age) * 1_000_000)
    }
}

impl SlabValue for Record {
    type Index = RecordIndex;
    /// A free record is thin and its key empty, which no key in use is.
    #[inline]
    fn set_free(&mut self, next: u32) {
        self.shape = 0;
        self.position = next;
    }
    #[inline]
    fn next_free(&self) -> u32 {
        self.position
    }
}

/// What a key in use is used as.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Kind {
    Modes,
    Permits { capacity: u32 },
}

impl Kind {
    pub(crate) fn of(claim: Claim) -> Self {
        match claim {
            Claim::Mode(_) => Self::Modes,
            Claim::Permits { capacity, .. } => Self::Permits { capacity },
        }
    }
}

/// What is held of a key: modes and permits never meet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Held {
    /// How many hold it in each mode.
    Modes([u32; Mode::COUNT]),
    Permits {
        capacity: u32,
        used: u32,
    },
}

impl Held {
    /// Nothing yet, of a key that is first claimed as this.
    fn none(claim: Claim) -> Self {
        match claim {
            Claim::Mode(_) => Self::Modes([0; Mode::COUNT]),
            Claim::Permits { capacity, .. } => Self::Permits { capacity, used: 0 },
        }
    }

    fn kind(&self) -> Kind {
        match *self {
            Self::Modes(_) => Kind::Modes,
            Self::Permits { capacity, .. } => Kind::Permits { capacity },
        }
    }

    /// Whether the claim fits beside the holders. Its kind is that of the key.
    fn fits(&self, claim: Claim) -> bool {
        match (self, claim) {
            (Self::Modes(held), Claim::Mode(mode)) => {
                Mode::all().all(|other| held[other as usize] == 0 || mode.fits_beside(other))
            }
            (Self::Permits { capacity, used }, Claim::Permits { permits, .. }) => {
                used + permits <= *capacity
            }
            (held, claim) => panic!("claim {claim:?} queued on a key of which {held:?} is held"),
        }
    }

    /// What of it a claim takes.
    fn of(&mut self, claim: Claim) -> (&mut u32, u32) {
        match (self, claim) {
            (Self::Modes(held), Claim::Mode(mode)) => (&mut held[mode as usize], 1),
            (Self::Permits { used, .. }, Claim::Permits { permits, .. }) => (used, permits),
            (held, claim) => panic!("claim {claim:?} granted on a key of which {held:?} is held"),
        }
    }
}

/// The side record.
#[derive(Clone)]
pub(crate) struct Rich {
    pub(crate) held: Held,
    /// Index in the worker's table of namespaces.
    pub(crate) namespace: u16,
    /// Keys above [`INLINE_KEY`] bytes.
    pub(crate) long_key: Option<Box<[u8]>>,
    pub(crate) holders: List<EntryIndex>,
    pub(crate) waiters: List<EntryIndex>,
    next_free: u32,
}

impl Rich {
    /// Of a key that is first claimed as this.
    pub(crate) fn new(key: &[u8], namespace: u16, claim: Claim) -> Self {
        Self {
            held: Held::none(claim),
            namespace,
            long_key: (key.len() > INLINE_KEY).then(|| key.into()),
            holders: List::default(),
            waiters: List::default(),
            next_free: NIL,
        }
    }

    pub(crate) fn kind(&self) -> Kind {
        self.held.kind()
    }

    /// The permits that there are; 0 of a lock.
    pub(crate) fn capacity(&self) -> u32 {
        if let Kind::Permits { capacity } = self.kind() { capacity } else { 0 }
    }

    /// Whether the claim fits beside the holders. Its kind is that of the key.
    pub(crate) fn fits(&self, claim: Claim) -> bool {
        self.held.fits(claim)
    }

    /// Whether it says no more than a thin record could, if nobody is queued.
    pub(crate) fn is_simple(&self) -> bool {
        let exclusive = Mode::Exclusive as usize;
        self.long_key.is_none() && matches!(self.held, Held::Modes(held) if held[exclusive] > 0)
    }

    pub(crate) fn take(&mut self, claim: Claim) {
        let (held, more) = self.held.of(claim);
        *held += more;
    }

    pub(crate) fn give(&mut self, claim: Claim) {
        let (held, less) = self.held.of(claim);
        assert!(*held >= less, "given back twice: {less} of {held}");
        *held -= less;
    }
}

impl SlabValue for Rich {
    type Index = RichIndex;
    fn set_free(&mut self, next: u32) {
        self.long_key = None;
        self.next_free = next;
    }
    fn next_free(&self) -> u32 {
        self.next_free
    }
}

/// A hold or a waiter of a rich key.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub(crate) record: RecordIndex,
    pub(crate) link: LinkIndex,
    pub(crate) request: u64,
    /// The connection that the request, or its last copy, came on: answered there and nowhere else.
    /// A client asks again on each new connection; an answer that crossed that copy would leave the
    /// copy to run for nobody, if the hold was ended or the wait over by then.
    pub(crate) asked_on: ConnId,
    pub(crate) claim: Claim,
    /// A hold's fence; a waiter has none yet.
    pub(crate) fence: Option<Fence>,
    /// When it was granted, or queued.
    pub(crate) since: Time,
    /// How long a waiter waits, in microseconds; as many as there are: for ever.
    pub(crate) patience: u64,
    pub(crate) queue_prev: EntryIndex,
    pub(crate) queue_next: EntryIndex,
    pub(crate) link_prev: EntryIndex,
    pub(crate) link_next: EntryIndex,
}

impl SlabValue for Entry {
    type Index = EntryIndex;
    fn set_free(&mut self, next: u32) {
        self.record = RecordIndex::NIL;
        self.queue_next = EntryIndex(next);
    }
    fn next_free(&self) -> u32 {
        self.queue_next.0
    }
}

/// The holders or the waiters of a key.
pub(crate) struct QueueChain;

impl Chain<Entry> for QueueChain {
    fn prev(value: &mut Entry) -> &mut EntryIndex {
        &mut value.queue_prev
    }
    fn next(value: &mut Entry) -> &mut EntryIndex {
        &mut value.queue_next
    }
}

/// The rich holds and the waiters of a link.
pub(crate) struct LinkChain;

impl Chain<Entry> for LinkChain {
    fn prev(value: &mut Entry) -> &mut EntryIndex {
        &mut value.link_prev
    }
    fn next(value: &mut Entry) -> &mut EntryIndex {
        &mut value.link_next
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thin_record_keeps_its_numbers_whole() {
        let ends = |max: u64| [0, 1, max / 2, max / 2 + 1, max - 1, max];
        let near_the_low_half = [u64::from(u32::MAX) - 1, u64::from(u32::MAX), 1 << 32];
        for request in ends(limits::REQUEST_ID_MAX).into_iter().chain(near_the_low_half) {
            for link in ends(u64::from(LINKS_MAX) - 1).map(|end| end as u32) {
                for position in ends(u64::from(THIN_MAX) - 1).map(|end| end as u32) {
                    let mut record = Record::default();
                    record.set_key(&[7; INLINE_KEY]);
                    let rich = RichIndex(u32::MAX - 1);
                    record.make_rich(rich);
                    assert!(matches!(record.shape(), Shape::Rich(kept) if kept == rich));
                    let thin = Thin { link: LinkIndex(link), request, fence: Fence(9) };
                    record.make_thin(thin, Duration::ZERO);
                    record.set_position(position);
                    let Shape::Thin(kept) = record.shape() else { panic!("it is thin") };
                    let kept = (kept.link.0, record.position(), kept.request, kept.fence);
                    assert_eq!(kept, (link, position, request, Fence(9)));
                    assert_eq!(record.inline_key(), Some([7; INLINE_KEY].as_slice()));
                }
            }
        }
    }
}
