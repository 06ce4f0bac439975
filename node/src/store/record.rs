//! The bytes of the record and of its mark: fixed, little-endian, each with a checksum.

use crate::endpoint::EndpointKeys;
use lockring_control::cluster::{Before, Floors};
use lockring_ring::{AttachId, Epoch, NodeId, RingVersion};
use std::time::Duration;
use xxhash_rust::xxh3::xxh3_64;

const MAGIC: &[u8; 8] = b"lockring";
const FORMAT: u8 = 3;
/// The formats before: of a node that kept no log, but all that had to be durable here. The first
/// of them did not say whose the longest TTL is.
const WITHOUT_LOG: [u8; 2] = [1, 2];

/// How much of whose TTL it is is kept.
const BY_BYTES_MAX: usize = 255;

/// The id of a cluster's first node.
const FIRST_NODE: u32 = 1;

/// Who a node is, and how its log begins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Record {
    /// Counts the writes of this record.
    pub(crate) revision: u64,
    pub(crate) cluster: [u8; 16],
    pub(crate) node: u32,
    pub(crate) keys: EndpointKeys,
    /// The last process that had the directory; 0: none had.
    pub(crate) boot: u64,
    /// The file system and the file that its lock was: those of a copied directory are others.
    pub(crate) place: (u64, u64),
    /// The file of the log was made: if it is gone, it was lost.
    pub(crate) is_logged: bool,
    /// The revision of the log when a process began last.
    pub(crate) log: u64,
    /// What was before the log, if something was.
    pub(crate) floors: Option<Floors>,
}

impl Record {
    /// That of a new cluster's first node, which has not started yet.
    pub(crate) fn new() -> Result<Self, getrandom::Error> {
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
            place: (0, 0),
            is_logged: false,
            log: 0,
            floors: None,
        })
    }

    pub(super) fn encode(&self) -> Vec<u8> {
        let Self { revision, cluster, node, keys, boot, place, is_logged, log, floors } = self;
        let mut bytes = Vec::new();
        bytes.extend_from_slice(MAGIC);
        bytes.push(FORMAT);
        bytes.extend_from_slice(&revision.to_le_bytes());
        bytes.extend_from_slice(cluster);
        bytes.extend_from_slice(&node.to_le_bytes());
        bytes.extend_from_slice(&keys.reset);
        bytes.extend_from_slice(&keys.cid.to_le_bytes());
        bytes.extend_from_slice(&boot.to_le_bytes());
        bytes.extend_from_slice(&place.0.to_le_bytes());
        bytes.extend_from_slice(&place.1.to_le_bytes());
        bytes.push(u8::from(*is_logged));
        bytes.extend_from_slice(&log.to_le_bytes());
        bytes.push(u8::from(floors.is_some()));
        if let Some(Floors { epoch, version, attach, longest_ttl, longest_by, before, .. }) = floors
        {
            bytes.push(match before {
                Before::Unknown => 0,
                Before::One => 1,
                Before::Nothing => 2,
            });
            bytes.extend_from_slice(&epoch.0.to_le_bytes());
            bytes.extend_from_slice(&version.0.to_le_bytes());
            bytes.extend_from_slice(&attach.0.to_le_bytes());
            bytes.extend_from_slice(&whole_millis(*longest_ttl).to_le_bytes());
            let by = &longest_by[..longest_by.floor_char_boundary(BY_BYTES_MAX)];
            bytes.push(by.len() as u8);
            bytes.extend_from_slice(by.as_bytes());
        }
        sealed(bytes)
    }

    pub(super) fn decode(bytes: &[u8]) -> Result<Self, &'static str> {
        let body = unsealed(bytes).ok_or("the checksum of its record does not fit")?;
        let mut rest = body.strip_prefix(MAGIC).ok_or("its record is of another program")?;
        let short = "its record is cut short";
        let [format] = take(&mut rest).ok_or(short)?;
        let record = match format {
            FORMAT => take_fields(&mut rest),
            format if WITHOUT_LOG.contains(&format) => take_without_log(&mut rest, format),
            _ => return Err("its record was written by another version of lockring"),
        };
        let record = record.ok_or(short)?;
        match (rest, &record.floors) {
            ([], Some(floors)) if floors.epoch > Epoch::LAST => {
                Err("its epoch floor is past the last epoch")
            }
            ([], _) => Ok(record),
            _ => Err("its record is too long"),
        }
    }
}

/// Rounded up: a TTL noted must never be shorter than the one meant.
fn whole_millis(ttl: Duration) -> u64 {
    u64::try_from(ttl.as_nanos().div_ceil(1_000_000)).unwrap_or(u64::MAX)
}

/// What all formats begin with. What follows says the rest.
fn take_identity(rest: &mut &[u8]) -> Option<Record> {
    Some(Record {
        revision: u64::from_le_bytes(take(rest)?),
        cluster: take(rest)?,
        node: u32::from_le_bytes(take(rest)?),
        keys: EndpointKeys { reset: take(rest)?, cid: u64::from_le_bytes(take(rest)?) },
        boot: u64::from_le_bytes(take(rest)?),
        place: (0, 0),
        is_logged: false,
        log: 0,
        floors: None,
    })
}

fn take_fields(rest: &mut &[u8]) -> Option<Record> {
    let identity = take_identity(rest)?;
    let place = (u64::from_le_bytes(take(rest)?), u64::from_le_bytes(take(rest)?));
    let is_logged = take(rest)? == [1];
    let log = u64::from_le_bytes(take(rest)?);
    let floors = match take(rest)? {
        [0] => None,
        _ => Some(take_floors(rest, identity.node)?),
    };
    Some(Record { place, is_logged, log, floors, ..identity })
}

fn take_floors(rest: &mut &[u8], node: u32) -> Option<Floors> {
    let before = match take(rest)? {
        [1] => Before::One,
        [2] => Before::Nothing,
        _ => Before::Unknown,
    };
    Some(Floors {
        before,
        node: NodeId(node),
        epoch: Epoch(u32::from_le_bytes(take(rest)?)),
        version: RingVersion(u64::from_le_bytes(take(rest)?)),
        attach: AttachId(u64::from_le_bytes(take(rest)?)),
        longest_ttl: Duration::from_millis(u64::from_le_bytes(take(rest)?)),
        longest_by: take_text(rest)?,
    })
}

/// A node that kept no log counted its starts, each of which had the next epoch, which was the
/// version of the ring too. Its log begins above that.
fn take_without_log(rest: &mut &[u8], format: u8) -> Option<Record> {
    let identity = take_identity(rest)?;
    let epoch = Epoch(u32::from_le_bytes(take(rest)?));
    let longest_ttl = Duration::from_millis(u64::from_le_bytes(take(rest)?));
    let was_clean = take(rest)? == [1];
    let longest_by = if format == 1 { String::new() } else { take_text(rest)? };
    let floors = Floors {
        epoch,
        version: RingVersion(u64::from(epoch.0)),
        node: NodeId(identity.node),
        attach: AttachId(1),
        longest_ttl,
        longest_by,
        before: if was_clean { Before::Nothing } else { Before::One },
    };
    let has_started = identity.boot != 0;
    Some(Record { boot: 0, floors: has_started.then_some(floors), ..identity })
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
        let floors = Floors {
            epoch: Epoch(5),
            version: RingVersion(6),
            node: NodeId(1),
            attach: AttachId(7),
            longest_ttl: Duration::from_secs(10),
            longest_by: "team/web (a label)".to_owned(),
            before: Before::One,
        };
        let base = Record::new().unwrap();
        let (place, floors) = ((8, 9), Some(floors));
        Record { revision: 9, boot: 3, place, is_logged: true, log: 4, floors, ..base }
    }

    fn with_floors(change: impl FnOnce(&mut Floors)) -> Record {
        let mut record = record();
        change(record.floors.as_mut().unwrap());
        record
    }

    #[test]
    fn what_is_encoded_is_decoded() {
        let of = |before| with_floors(|floors| floors.before = before);
        let kinds = [Before::Unknown, Before::One, Before::Nothing].map(of);
        let first = Record { floors: None, is_logged: false, log: 0, ..record() };
        for record in kinds.into_iter().chain([first]) {
            assert_eq!(Record::decode(&record.encode()), Ok(record));
        }
        assert_eq!(decode_mark(&encode_mark(7)), Some(7));
    }

    /// What all formats have in common, of a record with these keys.
    fn pinned(format: u8) -> Vec<u8> {
        let mut bytes = b"lockring".to_vec();
        bytes.push(format);
        bytes.extend(b"\x09\0\0\0\0\0\0\0");
        bytes.extend([0xcc; 16]);
        bytes.extend(b"\x01\0\0\0");
        bytes.extend([0xaa; 64]);
        bytes.extend(b"\x08\x07\x06\x05\x04\x03\x02\x01\x03\0\0\0\0\0\0\0");
        bytes
    }

    fn of_these_keys() -> Record {
        let keys = EndpointKeys { reset: [0xaa; 64], cid: 0x0102_0304_0506_0708 };
        Record { cluster: [0xcc; 16], keys, ..record() }
    }

    #[test]
    fn the_bytes_are_pinned() {
        let mut expected = pinned(3);
        expected.extend(b"\x08\0\0\0\0\0\0\0\x09\0\0\0\0\0\0\0");
        expected.extend(
            b"\x01\x04\0\0\0\0\0\0\0\x01\x01\x05\0\0\0\x06\0\0\0\0\0\0\0\x07\0\0\0\0\0\0\0",
        );
        expected.extend(b"\x10\x27\0\0\0\0\0\0\x12team/web (a label)");
        let bytes = of_these_keys().encode();
        assert_eq!(bytes[..expected.len()], expected);
        assert_eq!(bytes.len(), expected.len() + 8);
    }

    /// Directories of nodes that kept no log.
    #[test]
    fn the_formats_before_are_read_too() {
        for (format, was_clean) in [(1, true), (2, true), (2, false)] {
            let mut bytes = pinned(format);
            bytes.extend(b"\x05\0\0\0\x10\x27\0\0\0\0\0\0");
            bytes.push(u8::from(was_clean));
            let mut expected =
                Record { boot: 0, place: (0, 0), is_logged: false, log: 0, ..of_these_keys() };
            let floors = expected.floors.as_mut().unwrap();
            (floors.version, floors.attach) = (RingVersion(5), AttachId(1));
            floors.before = if was_clean { Before::Nothing } else { Before::One };
            if format == 1 {
                floors.longest_by.clear();
            } else {
                bytes.extend(b"\x12team/web (a label)");
            }
            assert_eq!(Record::decode(&sealed(bytes)), Ok(expected));
        }
        // One that had never started has nothing behind it.
        let mut bytes = pinned(2);
        let boot = bytes.len() - 8;
        bytes[boot] = 0;
        bytes.extend(b"\0\0\0\0\x10\x27\0\0\0\0\0\0\0\0");
        assert_eq!(Record::decode(&sealed(bytes)).unwrap().floors, None);
    }

    #[test]
    fn whose_ttl_it_is_is_cut_between_characters() {
        let record = with_floors(|floors| floors.longest_by = "\u{e9}".repeat(200));
        let read = Record::decode(&record.encode()).unwrap();
        assert_eq!(read.floors.unwrap().longest_by, "\u{e9}".repeat(127));
    }

    #[test]
    fn a_ttl_is_never_kept_shorter_than_it_is() {
        let kept = |ttl| {
            let record = with_floors(|floors| floors.longest_ttl = ttl);
            Record::decode(&record.encode()).unwrap().floors.unwrap().longest_ttl
        };
        assert_eq!(kept(Duration::from_nanos(20_000_000_001)), Duration::from_millis(20_001));
        assert_eq!(kept(Duration::MAX), Duration::from_millis(u64::MAX));
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
        other[8] = 4;
        assert!(error(other).contains("another version"));
        assert!(error(b"lockrung".to_vec()).contains("another program"));
        assert!(error(body()[..20].to_vec()).contains("cut short"));
        assert!(error([body(), vec![0]].concat()).contains("too long"));
        let past = with_floors(|floors| floors.epoch = Epoch(Epoch::LAST.0 + 1));
        assert!(Record::decode(&past.encode()).unwrap_err().contains("past the last epoch"));
    }
}
