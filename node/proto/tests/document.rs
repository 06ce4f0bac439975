//! The document of the wire, held to the code: a variant, field, limit, close code or golden frame
//! that is in the one and not in the other fails here.

use crate::any::Any;
use crate::golden::{self, golden};
use bincode::config::standard;
use bincode::error::{AllowedEnumVariants, DecodeError};
use bincode::{BorrowDecode, Encode};
use lockring_proto::*;
use std::collections::BTreeMap;
use std::fmt::Debug;
use std::path::Path;

const DOCUMENT: &str = include_str!("../src/wire.md");

/// Cells of the rows of the tables under a heading, without the tables' own two first rows.
fn rows(heading: &str) -> Vec<Vec<&'static str>> {
    let mut lines = DOCUMENT.lines().skip_while(|line| *line != heading);
    assert!(lines.next().is_some(), "the document has no {heading}");
    lines
        .take_while(|line| !line.starts_with('#'))
        .filter(|line| line.starts_with('|'))
        .skip(2)
        .map(|line| line.trim_matches('|').split('|').map(str::trim).collect())
        .collect()
}

/// The words between backticks.
fn names(cell: &str) -> Vec<String> {
    cell.split('`').skip(1).step_by(2).map(str::to_owned).collect()
}

/// Name and fields of a value, by its derived print, which keeps the order of the declaration.
fn printed(value: &impl Debug) -> (String, Vec<String>) {
    let print = format!("{value:#?}");
    let name = print.split([' ', '(']).next().unwrap().to_owned();
    let field = |line: &str| {
        let line = line.strip_prefix("    ").filter(|line| !line.starts_with(' '))?;
        line.split_once(": ").map(|(field, _)| field.to_owned())
    };
    (name, print.lines().filter_map(field).collect())
}

/// Holds the table of an enum to its variants: all that there are, by the codec's own count.
fn check_enum<T>(heading: &str, samples: &[T])
where
    T: Encode + Debug + BorrowDecode<'static, ()>,
{
    let mut code = BTreeMap::new();
    for sample in samples {
        let tag = bincode::encode_to_vec(sample, standard()).unwrap()[0];
        let (name, fields) = printed(sample);
        code.insert(tag, (name, fields));
    }
    let no_such = bincode::borrow_decode_from_slice::<T, _>(&[250], standard());
    let Err(DecodeError::UnexpectedVariant {
        allowed: AllowedEnumVariants::Range { max, .. }, ..
    }) = no_such
    else {
        panic!("{heading}: 250 is no tag that is unknown");
    };
    let samples: Vec<u32> = code.keys().copied().map(u32::from).collect();
    assert_eq!(samples, (0..=*max).collect::<Vec<_>>(), "{heading}: a golden frame for each");
    let document: BTreeMap<u8, (String, Vec<String>)> = rows(heading)
        .iter()
        .map(|row| (row[0].parse().unwrap(), (names(row[1]).concat(), names(row[2]))))
        .collect();
    assert_eq!(document, code, "{heading}");
}

/// Holds the table of a struct to its fields.
fn check_struct(sample: &impl Debug) {
    let (name, fields) = printed(sample);
    let rows = rows(&format!("### `{name}`"));
    let document: Vec<String> = rows.iter().flat_map(|row| names(row[0])).collect();
    assert_eq!(document, fields, "{name}");
}

/// The golden messages for which `pick` finds something.
fn picked<T>(pick: impl Fn(Any) -> Option<T>) -> Vec<T> {
    golden().into_iter().filter_map(|row| pick(row.message)).collect()
}

fn requests() -> Vec<Request<'static>> {
    picked(|any| if let Any::Request(request) = any { Some(request) } else { None })
}

fn replies() -> Vec<Reply> {
    picked(|any| if let Any::Reply(reply) = any { Some(reply) } else { None })
}

#[test]
fn tags_are_those_of_the_code() {
    let hello_replies =
        picked(|any| if let Any::HelloReply(reply) = any { Some(reply) } else { None });
    let pushes = picked(|any| if let Any::Push(push) = any { Some(push) } else { None });
    let (mut claims, mut waits, mut operations) = (Vec::new(), Vec::new(), Vec::new());
    for request in requests() {
        if let Request::Keyed { operation, .. } = request {
            operations.push(operation);
        }
        if let Request::Keyed { operation: Operation::Acquire { claim, wait }, .. } = request {
            claims.push(claim);
            waits.push(wait);
        }
    }
    let (mut reasons, mut kinds) = (Vec::new(), Vec::new());
    for reply in replies() {
        match reply {
            Reply::Busy { reason, .. } => reasons.push(reason),
            Reply::Refused { refusal, .. } => kinds.push(refusal.kind),
            _ => {}
        }
    }
    let lost =
        |push: &Push| if let Push::Lost { reason, .. } = push { Some(*reason) } else { None };
    check_enum("### `LostReason`", &pushes.iter().filter_map(lost).collect::<Vec<_>>());
    check_enum("### `HelloReply`", &hello_replies);
    check_enum("### `Request`", &requests());
    check_enum("### `Operation`", &operations);
    check_enum("### `Reply`", &replies());
    check_enum("### `Push`", &pushes);
    let mode = |claim: &Claim| if let Claim::Mode(mode) = claim { Some(*mode) } else { None };
    check_enum("### `Mode`", &claims.iter().filter_map(mode).collect::<Vec<_>>());
    check_enum("### `Claim`", &claims);
    check_enum("### `Wait`", &waits);
    check_enum("### `BlockedReason`", &reasons);
    check_enum("### `RefusalKind`", &kinds);
}

#[test]
fn fields_are_those_of_the_code() {
    for row in golden() {
        match row.message {
            Any::Hello(hello) => check_struct(&hello),
            Any::HelloReply(HelloReply::Welcome(welcome)) => check_struct(&welcome),
            Any::HelloReply(HelloReply::Refused(refusal)) => check_struct(&refusal),
            _ => {}
        }
    }
    check_struct(&HoldId { cell: 0, fence: Fence(0) });
    check_struct(&Digest::default());
    check_struct(&ListCursor::default());
    check_struct(&golden::ring_chunk());
    check_struct(&golden::ring_chunk().nodes[0]);
    check_struct(&golden::ring_chunk().nodes[0].addresses[0]);
    check_struct(&golden::ring_chunk().runs[0]);
    check_struct(&golden::inspection());
    check_struct(&golden::inspection().waiters[0]);
    check_struct(&golden::holder());
    check_struct(&golden::listing());
    check_struct(&golden::listing().rows[0]);
}

/// Every message type there is has its heading: one that is added must be looked at here.
#[test]
fn every_type_has_its_table() {
    let sources = [
        include_str!("../src/hello.rs"),
        include_str!("../src/request.rs"),
        include_str!("../src/reply.rs"),
        include_str!("../src/ring.rs"),
    ];
    for line in sources.iter().flat_map(|source| source.lines()) {
        let item = line.strip_prefix("pub struct ").or_else(|| line.strip_prefix("pub enum "));
        let Some(item) = item else { continue };
        let name: String = item.chars().take_while(char::is_ascii_alphanumeric).collect();
        assert!(!rows(&format!("### `{name}`")).is_empty(), "{name}");
    }
}

#[test]
fn limits_are_those_of_the_code() {
    use limits::*;
    let code = [
        ("FRAME_BYTES_MAX", FRAME_BYTES_MAX as u64),
        ("DECODE_BYTES_MAX", DECODE_BYTES_MAX as u64),
        ("KEY_BYTES_MAX", KEY_BYTES_MAX as u64),
        ("NAMESPACE_BYTES_MAX", NAMESPACE_BYTES_MAX as u64),
        ("LABEL_BYTES_MAX", LABEL_BYTES_MAX as u64),
        ("REQUEST_ID_MAX", REQUEST_ID_MAX),
        ("FIRST_PROCESS_IDS", FIRST_PROCESS_IDS),
        ("IDS_PER_PROCESS", IDS_PER_PROCESS),
        ("INCARNATION_MAX", INCARNATION_MAX),
        ("CAPACITY_MAX", u64::from(CAPACITY_MAX)),
        ("HOLDS_PER_FRAME", HOLDS_PER_FRAME as u64),
        ("LIST_ROWS_MAX", u64::from(LIST_ROWS_MAX)),
        ("WORKERS_MAX", u64::from(WORKERS_MAX)),
        ("HOSTS_BYTES_MAX", HOSTS_BYTES_MAX as u64),
        ("TTL_MIN", TTL_MIN.as_millis() as u64),
        ("TTL_MAX", TTL_MAX.as_millis() as u64),
        ("TTL_DEFAULT", TTL_DEFAULT.as_millis() as u64),
        ("DRIFT_DIVISOR", u64::from(DRIFT_DIVISOR)),
        ("BELIEF_MARGIN", BELIEF_MARGIN.as_millis() as u64),
        ("NODE_LEASE", NODE_LEASE.as_millis() as u64),
    ];
    let declared: Vec<&str> = include_str!("../src/limits.rs")
        .lines()
        .filter_map(|line| line.strip_prefix("pub const ")?.split(':').next())
        .collect();
    assert_eq!(declared, code.map(|(name, _)| name));
    let document: Vec<(String, u64)> = rows("## Limits")
        .iter()
        .map(|row| (names(row[0]).concat(), row[1].parse().unwrap()))
        .collect();
    assert_eq!(document, code.map(|(name, value)| (name.to_owned(), value)));
    assert!(DOCUMENT.contains(&format!("A length above {FRAME_BYTES_MAX} is refused")));
    assert!(DOCUMENT.contains(&format!("ALPN `{}`", str::from_utf8(ALPN).unwrap())));
    assert!(DOCUMENT.contains(&format!("as `protocol` {PROTOCOL}.")));
    assert!(DOCUMENT.contains(&format!("server name `{SERVER_NAME}`")));
}

/// All Rust sources below a folder, as one text.
fn sources(folder: &Path) -> String {
    let mut text = String::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            text += &sources(&path);
        } else if path.extension().is_some_and(|ending| ending == "rs") {
            text += &std::fs::read_to_string(&path).unwrap();
        }
    }
    text
}

/// The codes are the node's, which this crate does not know: they are read from its source.
#[test]
fn close_codes_are_those_of_the_node() {
    let node = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let mut code: BTreeMap<u32, String> = BTreeMap::new();
    for line in sources(&node.join("src")).lines() {
        if let Some((name, value)) = line
            .trim_end_matches(';')
            .split_once("const CODE_")
            .and_then(|it| it.1.split_once(": u32 = "))
        {
            code.insert(value.parse().unwrap(), format!("CODE_{name}"));
        }
    }
    let core = sources(&node.join("core/src"));
    let (_, reasons) = core.split_once("pub enum CloseReason {").unwrap();
    for line in reasons.split_once('}').unwrap().0.lines() {
        if let Some((name, value)) = line.trim().trim_end_matches(',').split_once(" = ") {
            code.insert(value.parse().unwrap(), name.to_owned());
        }
    }
    assert!(code.len() > 7, "the codes were not found where they used to be");
    let document: BTreeMap<u32, String> = rows("## Close codes")
        .iter()
        .map(|row| (row[0].parse().unwrap(), names(row[1]).concat()))
        .filter(|(_, name)| !name.is_empty())
        .collect();
    assert_eq!(document, code);
}

#[test]
fn golden_frames_are_in_the_document() {
    let mut block = String::new();
    for row in golden() {
        block += row.name;
        block += "\n";
        for line in row.hex.as_bytes().chunks(64) {
            block += &format!("    {}\n", str::from_utf8(line).unwrap());
        }
    }
    let (_, last) = DOCUMENT.rsplit_once("```text\n").unwrap();
    let document = last.strip_suffix("```\n").unwrap();
    assert!(document == block, "the last block of the document should be:\n{block}");
    let taken_apart: Vec<String> = DOCUMENT
        .split("```text\n")
        .skip(1)
        .take(2)
        .map(|block| {
            let lines = block.lines().take_while(|line| *line != "```");
            lines.flat_map(|line| line.split("  ").next()).collect::<String>().replace(' ', "")
        })
        .collect();
    let of = |name| golden().into_iter().find(|row| row.name == name).unwrap().hex;
    assert_eq!(taken_apart, [of("acquire"), of("granted")]);
}

/// Both sides add up their holds by the formula of the document.
#[test]
fn digests_mix_as_documented() {
    let mut digest = Digest::default();
    let mut xor = 0;
    for (cell, fence) in [(0, 1), (300, 1 << 40 | 5), (u16::MAX, u64::MAX >> 1)] {
        digest.add(HoldId { cell, fence: Fence(fence) });
        let spread = u64::from(cell).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let mix = (fence ^ spread).wrapping_mul(0xff51_afd7_ed55_8ccd);
        xor ^= mix ^ (mix >> 32);
    }
    assert_eq!(digest, Digest { count: 3, xor });
    for constant in ["0x9e3779b97f4a7c15", "0xff51afd7ed558ccd", "m ^ (m >> 32)"] {
        assert!(DOCUMENT.contains(constant));
    }
}
