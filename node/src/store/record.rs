//! The bytes of the record and of its mark: fixed, little-endian, each with a checksum.

use crate::endpoint::EndpointKeys;
use lockring_control::State;
use lockring_proto::limits::TTL_DEFAULT;
use lockring_ring::{BootId, Epoch};
use std::time::Duration;
use xxhash_rust::xxh3::xxh3_64;

const MAGIC: &[u8; 8] = b"lockring";
const FORMAT: u8 = 2;
/// The format before: it did not say whose the longest TTL is.
const FORMAT_BEFORE: u8 = 1;

/// How much of whose TTL it is is kept.
const BY_BYTES_MAX: usize = 255;

/// The id of a cluster's first node.
const FIRST_NODE: u32 = 1;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Record {
    /// Counts the writes of this record.
    pub(super) revision: u64,
    pub(super) cluster: [u8; 16],
    pub(super) node: u32,
    pub(super) keys: EndpointKeys,
    pub(super) boot: u64,
    pub(super) epoch_floor: u32,
    pub(super) longest_ttl_ms: u64,
    pub(super) clean: bool,
    /// Whose session the longest TTL is, for people; empty if nobody's in particular.
    pub(super) longest_by: String,
}

impl Record {
    /// That of a new cluster's first node, which has not started yet.
    pub(super) fn new() -> Result<Self, getrandom::Error> {
        let (mut cluster, mut reset, mut cid) = ([0; 16], [0; 64], [0; 8]);
        getrandom::fill(&mut cluster)?;
        getrandom::fill(&mut reset)?;
        getrandom::fill(&mut cid)?;
        Ok(Self {
            revision: 1,
            cluster,
            node: FIRST_NODE,
            keys: EndpointKeys { reset, cid: u64::from_le_bytes(cid) },
            boot: 0,
            epoch_floor: 0,
            longest_ttl_ms: TTL_DEFAULT.as_millis() as u64,
            clean: false,
            longest_by: String::new(),
        })
    }

    /// What the control plane has of it, with what it has beside it.
    pub(super) fn state(&self, intent: Option<Duration>) -> State {
        State {
            boot: BootId(self.boot),
            epoch_floor: Epoch(self.epoch_floor),
            longest_ttl: Duration::from_millis(self.longest_ttl_ms),
            longest_by: self.longest_by.clone(),
            intent,
            clean: self.clean,
        }
    }

    /// The next one, if the state is another: as far as it must be durable.
    pub(super) fn with(self, state: &State) -> Self {
        let by = &state.longest_by;
        let next = Self {
            boot: state.boot.0,
            epoch_floor: state.epoch_floor.0,
            longest_ttl_ms: whole_millis(state.longest_ttl),
            longest_by: by[..by.floor_char_boundary(BY_BYTES_MAX)].to_owned(),
            clean: state.clean,
            ..self.clone()
        };
        if next == self { self } else { Self { revision: self.revision + 1, ..next } }
    }

    /// That of a node whose record may be lost, from what is left of it. Each life raises the
    /// floor, so that the count of lives was never above it; the next life is not the first.
    pub(super) fn recovered(self, epoch_floor: u32, longest_ttl: Duration) -> Self {
        let epoch_floor = epoch_floor.max(self.epoch_floor);
        Self {
            revision: self.revision + 1,
            boot: self.boot.max(u64::from(epoch_floor)).max(1),
            epoch_floor,
            longest_ttl_ms: whole_millis(longest_ttl),
            longest_by: String::new(),
            clean: false,
            ..self
        }
    }

    pub(super) fn encode(&self) -> Vec<u8> {
        let Self { revision, cluster, node, keys, boot, epoch_floor, .. } = self;
        let Self { longest_ttl_ms, clean, longest_by, .. } = self;
        let mut bytes = Vec::new();
        bytes.extend_from_slice(MAGIC);
        bytes.push(FORMAT);
        bytes.extend_from_slice(&revision.to_le_bytes());
        bytes.extend_from_slice(cluster);
        bytes.extend_from_slice(&node.to_le_bytes());
        bytes.extend_from_slice(&keys.reset);
        bytes.extend_from_slice(&keys.cid.to_le_bytes());
        bytes.extend_from_slice(&boot.to_le_bytes());
        bytes.extend_from_slice(&epoch_floor.to_le_bytes());
        bytes.extend_from_slice(&longest_ttl_ms.to_le_bytes());
        bytes.push(u8::from(*clean));
        bytes.push(longest_by.len() as u8);
        bytes.extend_from_slice(longest_by.as_bytes());
        sealed(bytes)
    }

    pub(super) fn decode(bytes: &[u8]) -> Result<Self, &'static str> {
        let body = unsealed(bytes).ok_or("the checksum of its record does not fit")?;
        let mut rest = body.strip_prefix(MAGIC).ok_or("its record is of another program")?;
        let short = "its record is cut short";
        let format = take(&mut rest).ok_or(short)?;
        if format != [FORMAT] && format != [FORMAT_BEFORE] {
            return Err("its record was written by another version of lockring");
        }
        let mut record = take_fields(&mut rest).ok_or(short)?;
        if format == [FORMAT] {
            record.longest_by = take_text(&mut rest).ok_or(short)?;
        }
        match rest {
            [] if record.epoch_floor <= Epoch::LAST.0 => Ok(record),
            [] => Err("its epoch floor is past the last epoch"),
            _ => Err("its record is too long"),
        }
    }
}

/// Rounded up: a TTL noted must never be shorter than the one meant.
fn whole_millis(ttl: Duration) -> u64 {
    u64::try_from(ttl.as_nanos().div_ceil(1_000_000)).unwrap_or(u64::MAX)
}

fn take_fields(rest: &mut &[u8]) -> Option<Record> {
    Some(Record {
        revision: u64::from_le_bytes(take(rest)?),
        cluster: take(rest)?,
        node: u32::from_le_bytes(take(rest)?),
        keys: EndpointKeys { reset: take(rest)?, cid: u64::from_le_bytes(take(rest)?) },
        boot: u64::from_le_bytes(take(rest)?),
        epoch_floor: u32::from_le_bytes(take(rest)?),
        longest_ttl_ms: u64::from_le_bytes(take(rest)?),
        clean: take(rest)? == [1],
        longest_by: String::new(),
    })
}

fn take_text(rest: &mut &[u8]) -> Option<String> {
    let [len] = take(rest)?;
    let (text, after) = rest.split_at_checked(usize::from(len))?;
    *rest = after;
    String::from_utf8(text.to_vec()).ok()
}

/// The mark of a revision.
pub(super) fn encode_mark(revision: u64) -> Vec<u8> {
    sealed(revision.to_le_bytes().to_vec())
}

/// The revision of a mark. One that is missing or damaged says nothing: it is only the witness.
pub(super) fn decode_mark(bytes: &[u8]) -> Option<u64> {
    Some(u64::from_le_bytes(unsealed(bytes)?.try_into().ok()?))
}

/// Bytes with their checksum behind them.
pub(crate) fn sealed(mut bytes: Vec<u8>) -> Vec<u8> {
    let checksum = xxh3_64(&bytes);
    bytes.extend_from_slice(&checksum.to_le_bytes());
    bytes
}

/// The bytes, if the checksum is theirs.
pub(crate) fn unsealed(bytes: &[u8]) -> Option<&[u8]> {
    let (body, checksum) = bytes.split_last_chunk()?;
    (xxh3_64(body) == u64::from_le_bytes(*checksum)).then_some(body)
}

fn take<const N: usize>(rest: &mut &[u8]) -> Option<[u8; N]> {
    let (taken, after) = rest.split_first_chunk()?;
    *rest = after;
    Some(*taken)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record() -> Record {
        let longest_by = "team/web (a label)".to_owned();
        let base = Record::new().unwrap();
        Record { revision: 9, boot: 3, epoch_floor: 5, clean: true, longest_by, ..base }
    }

    #[test]
    fn what_is_encoded_is_decoded() {
        for record in [record(), Record { clean: false, ..record() }] {
            assert_eq!(Record::decode(&record.encode()), Ok(record));
        }
        assert_eq!(decode_mark(&encode_mark(7)), Some(7));
    }

    #[test]
    fn the_bytes_are_pinned() {
        let keys = EndpointKeys { reset: [0xaa; 64], cid: 0x0102_0304_0506_0708 };
        let record = Record { cluster: [0xcc; 16], keys, ..record() };
        let mut expected = b"lockring\x02\x09\0\0\0\0\0\0\0".to_vec();
        expected.extend([0xcc; 16]);
        expected.extend(b"\x01\0\0\0");
        expected.extend([0xaa; 64]);
        expected.extend(b"\x08\x07\x06\x05\x04\x03\x02\x01");
        expected.extend(b"\x03\0\0\0\0\0\0\0\x05\0\0\0\x10\x27\0\0\0\0\0\0\x01");
        expected.extend(b"\x12team/web (a label)");
        let bytes = record.encode();
        assert_eq!(bytes[..expected.len()], expected);
        assert_eq!(bytes.len(), expected.len() + 8);
    }

    #[test]
    fn the_format_before_is_read_too() {
        let now = record();
        let mut body = unsealed(&now.encode()).unwrap().to_vec();
        body.truncate(body.len() - now.longest_by.len() - 1);
        body[8] = FORMAT_BEFORE;
        let before = Record { longest_by: String::new(), ..now };
        assert_eq!(Record::decode(&sealed(body)), Ok(before));
    }

    #[test]
    fn whose_ttl_it_is_is_cut_between_characters() {
        let base = record();
        let longest_by = "\u{e9}".repeat(200);
        let record = base.clone().with(&State { longest_by, ..base.state(None) });
        assert_eq!(record.longest_by, "\u{e9}".repeat(127));
        assert_eq!(Record::decode(&record.encode()), Ok(record));
    }

    #[test]
    fn every_cut_and_every_flip_is_an_error() {
        let (whole, mark) = (record().encode(), encode_mark(7));
        for length in 0..whole.len() {
            assert!(Record::decode(&whole[..length]).is_err(), "{length}");
        }
        for bit in 0..whole.len() * 8 {
            let mut flipped = whole.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(Record::decode(&flipped).is_err(), "{bit}");
        }
        for bit in 0..mark.len() * 8 {
            let mut flipped = mark.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(decode_mark(&flipped), None, "{bit}");
        }
    }

    #[test]
    fn bytes_with_a_good_checksum_are_still_checked() {
        let body = || unsealed(&record().encode()).unwrap().to_vec();
        let error = |body: Vec<u8>| Record::decode(&sealed(body)).unwrap_err();
        let mut other = body();
        other[8] = 3;
        assert!(error(other).contains("another version"));
        assert!(error(b"lockrung".to_vec()).contains("another program"));
        assert!(error(body()[..20].to_vec()).contains("cut short"));
        assert!(error([body(), vec![0]].concat()).contains("too long"));
        let past = Record { epoch_floor: Epoch::LAST.0 + 1, ..record() };
        assert!(Record::decode(&past.encode()).unwrap_err().contains("past the last epoch"));
    }
}
