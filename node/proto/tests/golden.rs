//! The exact bytes of every variant. They may never change under one protocol version: peers of
//! other builds, on other machines, speak them.

use crate::any::Any;
use lockring_proto::*;

/// A message and the frame that it is.
pub struct Golden {
    pub name: &'static str,
    pub message: Any,
    pub hex: String,
}

/// Every frame of the table: spaces in the hex are for the eye.
pub fn golden() -> Vec<Golden> {
    let mut all = hellos();
    all.extend(requests());
    all.extend(claims_and_waits());
    all.extend(short_replies());
    all.extend(blocked());
    all.extend(refusals());
    all.extend(long_replies());
    all.extend(pushes());
    all
}

fn row(name: &'static str, message: Any, hex: &str) -> Golden {
    Golden { name, message, hex: hex.replace(' ', "") }
}

fn hellos() -> Vec<Golden> {
    let session = SessionId(*b"0123456789abcdef");
    vec![
        row(
            "hello",
            Any::Hello(Hello {
                protocol: 1,
                session,
                incarnation: 2,
                ttl_ms: 10_000,
                ring_version: 300,
                ids_after: 7,
                label: "web-1",
            }),
            "1f013031323334353637383961626364656602fb1027fb2c0107057765622d31",
        ),
        row(
            "welcome",
            Any::HelloReply(HelloReply::Welcome(Welcome {
                protocol: 1,
                fresh: true,
                incarnation: 2,
                ttl_ms: 10_000,
                ring_version: 300,
                node: 4,
                boot: 70_000,
                worker: 1,
                namespace: "default".to_owned(),
            })),
            "1900010102fb1027fb2c0104fc70110100010764656661756c74",
        ),
        row(
            "hello refused",
            Any::HelloReply(HelloReply::Refused(Refusal {
                kind: RefusalKind::Protocol,
                message: "no".to_owned(),
            })),
            "050100026e6f",
        ),
    ]
}

fn requests() -> Vec<Golden> {
    let (id, version, key) = (1, 2, b"key".as_slice());
    let hold = |cell, fence| HoldId { cell, fence: Fence(fence) };
    let cursor = ListCursor { from: 300 };
    let keyed = |operation| Request::Keyed { id, version, operation, key };
    let compare = Request::Compare {
        id,
        version,
        upto: 9,
        after: None,
        through: Some(hold(250, 1 << 40 | 7)),
        holds: vec![hold(3, 1 << 40 | 5), hold(250, 1 << 40 | 7)],
    };
    [
        (
            "acquire",
            keyed(Operation::Acquire { claim: Claim::EXCLUSIVE, wait: Wait::No }),
            "0b00010200000000036b6579",
        ),
        (
            "release",
            keyed(Operation::Release { fence: Fence(1 << 40 | 5) }),
            "1100010201fd0500000000010000036b6579",
        ),
        (
            "cancel",
            keyed(Operation::Cancel { target: 0xffff_ffff }),
            "0d00010202fcffffffff036b6579",
        ),
        ("renew", Request::Renew { id }, "020101"),
        (
            "compare",
            compare,
            "25020102090001fafd07000000000100000203fd0500000000010000fafd0700 \
             000000010000",
        ),
        ("get ring", Request::GetRing { id, known: 251 }, "050301fbfb00"),
        ("inspect", keyed(Operation::Inspect { namespace: "" }), "090001020300036b6579"),
        (
            "list",
            Request::List { id, namespace: "ns", cursor, rows: 50, prefix: b"pre" },
            "0d0401026e73fb2c013203707265",
        ),
        ("force", keyed(Operation::Force { namespace: "ns" }), "0b00010204026e73036b6579"),
        ("goodbye", Request::Goodbye { id }, "020501"),
        (
            "confirm",
            keyed(Operation::Confirm { fence: Fence(1 << 40 | 5) }),
            "1100010205fd0500000000010000036b6579",
        ),
        (
            "reclaim",
            keyed(Operation::Reclaim {
                fence: Fence(1 << 40 | 5),
                request: 251,
                claim: Claim::SHARED,
            }),
            "1600010206fd0500000000010000fbfb000001036b6579",
        ),
    ]
    .map(|(name, request, hex)| row(name, Any::Request(request), hex))
    .into()
}

/// Every claim and wait, and integers at the borders of their forms.
fn claims_and_waits() -> Vec<Golden> {
    let key = b"\x00\xff".as_slice();
    let permits = |permits, capacity| Claim::Permits { permits, capacity };
    [
        (
            "acquire, shared, 250 ms",
            250,
            Claim::SHARED,
            Wait::Millis(250),
            "0b00fa0200000102fa0200ff",
        ),
        (
            "acquire, 3 permits of 251",
            251,
            permits(3, 251),
            Wait::Forever,
            "0f00fbfb0002000103fbfb00010200ff",
        ),
        (
            "acquire, id of 16 bits",
            0xffff,
            Claim::EXCLUSIVE,
            Wait::Millis(251),
            "0f00fbffff0200000002fbfb000200ff",
        ),
        (
            "acquire, id of 17 bits",
            0x1_0000,
            Claim::EXCLUSIVE,
            Wait::Millis(65_536),
            "1300fc000001000200000002fc000001000200ff",
        ),
        (
            "acquire, id of 33 bits",
            1 << 32,
            Claim::SHARED,
            Wait::No,
            "1200fd000000000100000002000001000200ff",
        ),
        (
            "acquire, last id",
            u64::MAX,
            Claim::EXCLUSIVE,
            Wait::Millis(u64::MAX),
            "1b00fdffffffffffffffff0200000002fdffffffffffffffff0200ff",
        ),
    ]
    .map(|(name, id, claim, wait, hex)| {
        row(
            name,
            Any::Request(Request::Keyed {
                id,
                version: 2,
                operation: Operation::Acquire { claim, wait },
                key,
            }),
            hex,
        )
    })
    .into()
}

fn short_replies() -> Vec<Golden> {
    let (id, version) = (1, 300);
    let digest = Digest { count: 2, xor: 0x0123_4567_89ab_cdef };
    [
        (
            "granted",
            Reply::Granted { id, version, fence: Fence(1 << 40 | 5) },
            "0e0001fb2c01fd0500000000010000",
        ),
        ("released", Reply::Released { id, version }, "050101fb2c01"),
        ("queued", Reply::Queued { id, version, ahead: 3 }, "060201fb2c0103"),
        ("cancelled", Reply::Cancelled { id, version }, "050501fb2c01"),
        ("not held", Reply::NotHeld { id, version }, "050601fb2c01"),
        ("moved", Reply::Moved { id, version }, "050701fb2c01"),
        (
            "renewed",
            Reply::Renewed { id, version, settled: 250, digest },
            "100901fb2c01fa02fdefcdab8967452301",
        ),
        ("forced", Reply::Forced { id, version, ended: 2 }, "060e01fb2c0102"),
        ("goodbye, answered", Reply::Goodbye { id }, "020f01"),
        ("confirmed", Reply::Confirmed { id, version, claim: Claim::SHARED }, "071001fb2c010001"),
        ("no newer ring", Reply::NoNewerRing { id, version }, "051101fb2c01"),
    ]
    .map(|(name, reply, hex)| row(name, Any::Reply(reply), hex))
    .into()
}

fn blocked() -> Vec<Golden> {
    let (id, version) = (1, 2);
    let held = BlockedReason::Held { fence: Fence(1 << 40 | 5), waiters: 251 };
    let queue = BlockedReason::Queue { waiters: 4 };
    let grace = BlockedReason::Grace { left_ms: 9_999 };
    [
        (
            "busy, held",
            Reply::Busy { id, version, reason: held },
            "1003010200fd0500000000010000fbfb00",
        ),
        ("busy, queue", Reply::Busy { id, version, reason: queue }, "050301020104"),
        ("busy, grace", Reply::Busy { id, version, reason: grace }, "0703010202fb0f27"),
        (
            "timed out",
            Reply::TimedOut { id, version, reason: held },
            "1004010200fd0500000000010000fbfb00",
        ),
    ]
    .map(|(name, reply, hex)| row(name, Any::Reply(reply), hex))
    .into()
}

fn refusals() -> Vec<Golden> {
    [
        ("refused, protocol", RefusalKind::Protocol, "0708070003776879"),
        ("refused, malformed", RefusalKind::Malformed, "0708070103776879"),
        ("refused, foreign session", RefusalKind::ForeignSession, "0708070203776879"),
        ("refused, superseded", RefusalKind::Superseded, "0708070303776879"),
        ("refused, kind conflict", RefusalKind::KindConflict, "0708070403776879"),
        ("refused, quota", RefusalKind::Quota, "0708070503776879"),
        ("refused, draining", RefusalKind::Draining, "0708070603776879"),
        ("refused, unavailable", RefusalKind::Unavailable, "0708070703776879"),
        ("refused, denied", RefusalKind::Denied, "0708070803776879"),
    ]
    .map(|(name, kind, hex)| {
        let refusal = Box::new(Refusal { kind, message: "why".to_owned() });
        row(name, Any::Reply(Reply::Refused { id: 7, refusal }), hex)
    })
    .into()
}

fn long_replies() -> Vec<Golden> {
    let id = 1;
    let lost = vec![HoldId { cell: 3, fence: Fence(1 << 40 | 5) }];
    [
        ("compared", Reply::Compared { id, version: 2, lost }, "0e0a01020103fd0500000000010000"),
        (
            "ring",
            Reply::Ring { id, chunk: Box::new(ring_chunk()) },
            "390b01fb2c0101fb2b010e00010402026e34fbe81c026e34fb8c2302fc701101 \
             0001060200fbff1f040001090101fb002004010502fb2c010001",
        ),
        (
            "inspected",
            Reply::Inspected { id, inspection: Box::new(inspection()) },
            "320c010204fb2c010101fd05000000000100000000fbe803fb1c25057765622d \
             310101010101fbdc0501620101020003612f62",
        ),
        (
            "listed",
            Reply::Listed { id, listing: Box::new(listing()) },
            "280d0102016b01fd05000000000100000000fbe803fb1c25057765622d310100 \
             016c00000201fb2c01",
        ),
    ]
    .map(|(name, reply, hex)| row(name, Any::Reply(reply), hex))
    .into()
}

pub fn ring_chunk() -> RingChunk {
    let address = |port| NodeAddress { host: "n4".to_owned(), port };
    let addresses = vec![address(7400), address(9100)];
    let node = NodeInfo { id: NodeId(4), addresses, workers: 2, boot: BootId(70_000) };
    RingChunk {
        version: 300,
        base: Some(299),
        cell_bits: 14,
        part: 0,
        nodes: vec![node],
        gone: vec![6],
        runs: vec![
            RingRun {
                skip: 0,
                cells: 8191,
                owner: 4,
                backup: None,
                epoch: 1,
                since: 9,
                takeover: 1,
            },
            RingRun {
                skip: 1,
                cells: 8192,
                owner: 4,
                backup: Some(5),
                epoch: 2,
                since: 300,
                takeover: 0,
            },
        ],
        last: true,
    }
}

pub fn inspection() -> Inspection {
    let claim = Claim::Permits { permits: 1, capacity: 1 };
    Inspection {
        version: 2,
        node: 4,
        cell: 300,
        epoch: 1,
        holders: vec![holder()],
        holder_count: 1,
        waiters: vec![WaiterInfo { claim, waited_ms: 1_500, label: "b".to_owned() }],
        waiter_count: 1,
        capacity: Some(2),
        grace_left_ms: 0,
        grace_for: "a/b".to_owned(),
    }
}

pub fn listing() -> Listing {
    let held = ListedLock { key: b"k".to_vec(), holder: Some(holder()), holders: 1, waiters: 0 };
    let awaited = ListedLock { key: b"l".to_vec(), holder: None, holders: 0, waiters: 2 };
    Listing { rows: vec![held, awaited], next: Some(ListCursor { from: 300 }) }
}

pub fn holder() -> Holder {
    Holder {
        fence: Fence(1 << 40 | 5),
        claim: Claim::EXCLUSIVE,
        held_ms: 1_000,
        lease_left_ms: 9_500,
        label: "web-1".to_owned(),
    }
}

fn pushes() -> Vec<Golden> {
    let holds = vec![HoldId { cell: 300, fence: Fence(1 << 40 | 5) }];
    [
        (
            "lost, forced",
            Push::Lost { reason: LostReason::Forced, holds },
            "0f000001fb2c01fd0500000000010000",
        ),
        (
            "lost, expired",
            Push::Lost { reason: LostReason::Expired, holds: Vec::new() },
            "03000100",
        ),
        (
            "lost, outranked",
            Push::Lost { reason: LostReason::Outranked, holds: Vec::new() },
            "03000200",
        ),
        ("ring changed", Push::RingChanged { version: 301 }, "0401fb2d01"),
        ("draining", Push::Draining, "0102"),
    ]
    .map(|(name, push, hex)| row(name, Any::Push(push), hex))
    .into()
}

/// Hexadecimal digits, without spaces.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex(hex: &str) -> Vec<u8> {
    let digits = hex.as_bytes().chunks(2);
    digits.map(|two| u8::from_str_radix(str::from_utf8(two).unwrap(), 16).unwrap()).collect()
}

#[test]
fn every_message_is_its_golden_frame() {
    for Golden { name, message, hex: golden } in golden() {
        assert_eq!(hex(&message.frame()), golden, "{name}: {message:?}");
    }
}

#[test]
fn every_golden_frame_is_its_message() {
    for Golden { name, message, hex } in golden() {
        let frame = unhex(&hex);
        let (body, rest) = codec::split_frame(&frame).unwrap().unwrap();
        assert!(rest.is_empty(), "{name}");
        assert_eq!(message.is(body), Ok(true), "{name}");
        assert_eq!(message.is_all_of(&frame), Ok(true), "{name}");
    }
}

#[test]
fn derived_code_makes_the_same_bodies() {
    for Golden { name, message, .. } in golden() {
        assert_eq!(message.body(), message.derived_body(), "{name}");
    }
}
