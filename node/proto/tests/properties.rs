//! Properties over arbitrary messages and arbitrary damage.

use crate::any::Any;
use crate::fuzz_body;
use lockring_proto::codec::{FrameError, encode_frame, split_frame};
use lockring_proto::*;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::{option, sample};

/// Integers of all widths alike, and those at the borders of the varint forms.
fn int() -> impl Strategy<Value = u64> {
    let borders = vec![0, 250, 251, 0xffff, 0x1_0000, 0xffff_ffff, 0x1_0000_0000, u64::MAX];
    prop_oneof![
        (any::<u64>(), 0_u32..64).prop_map(|(bits, shift)| bits >> shift),
        sample::select(borders),
    ]
}

fn int32() -> impl Strategy<Value = u32> {
    int().prop_map(|wide| wide as u32)
}

fn int16() -> impl Strategy<Value = u16> {
    int().prop_map(|wide| wide as u16)
}

/// Keys live as long as the test: a request borrows its key.
fn key() -> impl Strategy<Value = &'static [u8]> {
    prop_oneof![vec(any::<u8>(), 0..40), vec(any::<u8>(), 200..600)]
        .prop_map(|key| &*Box::leak(key.into_boxed_slice()))
}

fn text() -> impl Strategy<Value = String> {
    vec(any::<char>(), 0..40).prop_map(|chars| chars.into_iter().collect())
}

fn claim() -> impl Strategy<Value = Claim> {
    prop_oneof![
        Just(Claim::EXCLUSIVE),
        Just(Claim::SHARED),
        (int32(), int32()).prop_map(|(permits, capacity)| Claim::Permits { permits, capacity }),
    ]
}

fn wait() -> impl Strategy<Value = Wait> {
    prop_oneof![Just(Wait::No), Just(Wait::Forever), int().prop_map(Wait::Millis)]
}

fn fence() -> impl Strategy<Value = Fence> {
    int().prop_map(Fence)
}

fn hold() -> impl Strategy<Value = HoldId> {
    (int16(), fence()).prop_map(|(cell, fence)| HoldId { cell, fence })
}

fn cursor() -> impl Strategy<Value = ListCursor> {
    int32().prop_map(|from| ListCursor { from })
}

fn refusal() -> impl Strategy<Value = Refusal> {
    use RefusalKind::*;
    let kinds = vec![
        Protocol,
        Malformed,
        ForeignSession,
        Superseded,
        KindConflict,
        Quota,
        Draining,
        Unavailable,
        Denied,
    ];
    (sample::select(kinds), text()).prop_map(|(kind, message)| Refusal { kind, message })
}

fn hello() -> impl Strategy<Value = Hello<'static>> {
    (int16(), any::<[u8; 16]>(), (int(), int(), int()), int(), text()).prop_map(
        |(protocol, session, (incarnation, ttl_ms, ring_version), ids_after, label)| Hello {
            protocol,
            session: SessionId(session),
            incarnation,
            ttl_ms,
            ring_version,
            ids_after,
            label: label.leak(),
        },
    )
}

fn hello_reply() -> impl Strategy<Value = HelloReply> {
    let ints = (int(), int(), int(), int());
    let welcome = (int16(), any::<bool>(), ints, int32(), int16(), text()).prop_map(
        |(protocol, fresh, (incarnation, ttl_ms, ring_version, boot), node, worker, namespace)| {
            HelloReply::Welcome(Welcome {
                protocol,
                fresh,
                incarnation,
                ttl_ms,
                ring_version,
                node,
                boot,
                worker,
                namespace,
            })
        },
    );
    prop_oneof![welcome, refusal().prop_map(HelloReply::Refused)]
}

fn request() -> impl Strategy<Value = Request<'static>> {
    let head = || (int(), int());
    prop_oneof![
        (head(), claim(), wait(), key()).prop_map(|((id, version), claim, wait, key)| {
            Request::Keyed { id, version, operation: Operation::Acquire { claim, wait }, key }
        }),
        (head(), fence(), key()).prop_map(|((id, version), fence, key)| Request::Keyed {
            id,
            version,
            operation: Operation::Release { fence },
            key
        }),
        (head(), int(), key()).prop_map(|((id, version), target, key)| Request::Keyed {
            id,
            version,
            operation: Operation::Cancel { target },
            key
        }),
        int().prop_map(|id| Request::Renew { id }),
        ((head(), int()), option::of(hold()), option::of(hold()), vec(hold(), 0..40)).prop_map(
            |(((id, version), upto), after, through, holds)| Request::Compare {
                id,
                version,
                upto,
                after,
                through,
                holds
            }
        ),
        head().prop_map(|(id, known)| Request::GetRing { id, known }),
        (head(), text(), key()).prop_map(|((id, version), namespace, key)| Request::Keyed {
            id,
            version,
            operation: Operation::Inspect { namespace: namespace.leak() },
            key
        }),
        (int(), text(), cursor(), int32(), key()).prop_map(
            |(id, namespace, cursor, rows, prefix)| Request::List {
                id,
                namespace: namespace.leak(),
                cursor,
                rows,
                prefix
            }
        ),
        (head(), text(), key()).prop_map(|((id, version), namespace, key)| Request::Keyed {
            id,
            version,
            operation: Operation::Force { namespace: namespace.leak() },
            key
        }),
        int().prop_map(|id| Request::Goodbye { id }),
        (head(), fence(), key()).prop_map(|((id, version), fence, key)| Request::Keyed {
            id,
            version,
            operation: Operation::Confirm { fence },
            key
        }),
        ((head(), int()), fence(), claim(), key()).prop_map(
            |(((id, version), request), fence, claim, key)| Request::Keyed {
                id,
                version,
                operation: Operation::Reclaim { fence, request, claim },
                key
            }
        ),
    ]
}

fn blocked() -> impl Strategy<Value = BlockedReason> {
    prop_oneof![
        (fence(), int32()).prop_map(|(fence, waiters)| BlockedReason::Held { fence, waiters }),
        int32().prop_map(|waiters| BlockedReason::Queue { waiters }),
        int().prop_map(|left_ms| BlockedReason::Grace { left_ms }),
    ]
}

fn short_reply() -> impl Strategy<Value = Reply> {
    let head = || (int(), int());
    prop_oneof![
        (head(), fence()).prop_map(|((id, version), fence)| Reply::Granted { id, version, fence }),
        head().prop_map(|(id, version)| Reply::Released { id, version }),
        (head(), int32()).prop_map(|((id, version), ahead)| Reply::Queued { id, version, ahead }),
        (head(), blocked()).prop_map(|((id, version), reason)| Reply::Busy { id, version, reason }),
        (head(), blocked()).prop_map(|((id, version), reason)| Reply::TimedOut {
            id,
            version,
            reason
        }),
        head().prop_map(|(id, version)| Reply::Cancelled { id, version }),
        head().prop_map(|(id, version)| Reply::NotHeld { id, version }),
        head().prop_map(|(id, version)| Reply::Moved { id, version }),
        (head(), int(), head()).prop_map(|((id, version), settled, (count, xor))| {
            Reply::Renewed { id, version, settled, digest: Digest { count, xor } }
        }),
        head().prop_map(|(id, version)| Reply::NoNewerRing { id, version }),
        (head(), int32()).prop_map(|((id, version), ended)| Reply::Forced { id, version, ended }),
        int().prop_map(|id| Reply::Goodbye { id }),
        (head(), claim()).prop_map(|((id, version), claim)| Reply::Confirmed {
            id,
            version,
            claim
        }),
    ]
}

pub fn ring_chunk() -> impl Strategy<Value = RingChunk> {
    let address = (text(), int16()).prop_map(|(host, port)| NodeAddress { host, port });
    let node =
        (int32(), vec(address, 0..3), int16(), int()).prop_map(|(id, addresses, workers, boot)| {
            NodeInfo { id: NodeId(id), addresses, workers, boot: BootId(boot) }
        });
    let epochs = (int32(), int(), int32());
    let run = (int32(), int32(), int32(), option::of(int32()), epochs).prop_map(
        |(skip, cells, owner, backup, (epoch, since, takeover))| RingRun {
            skip,
            cells,
            owner,
            backup,
            epoch,
            since,
            takeover,
        },
    );
    let head = (int(), option::of(int()), any::<u8>(), int32());
    (head, vec(node, 0..4), vec(int32(), 0..4), vec(run, 0..20), any::<bool>()).prop_map(
        |((version, base, cell_bits, part), nodes, gone, runs, last)| RingChunk {
            version,
            base,
            cell_bits,
            part,
            nodes,
            gone,
            runs,
            last,
        },
    )
}

fn holder() -> impl Strategy<Value = Holder> {
    (fence(), claim(), int(), int(), text()).prop_map(
        |(fence, claim, held_ms, lease_left_ms, label)| Holder {
            fence,
            claim,
            held_ms,
            lease_left_ms,
            label,
        },
    )
}

fn inspection() -> impl Strategy<Value = Inspection> {
    let waiter = (claim(), int(), text()).prop_map(|(claim, waited_ms, label)| WaiterInfo {
        claim,
        waited_ms,
        label,
    });
    let place = (int(), int32(), int16(), int32());
    let counts = (int32(), int32(), option::of(int32()), int());
    (place, vec(holder(), 0..4), vec(waiter, 0..4), counts).prop_map(
        |((version, node, cell, epoch), holders, waiters, counts)| Inspection {
            version,
            node,
            cell,
            epoch,
            holders,
            holder_count: counts.0,
            waiters,
            waiter_count: counts.1,
            capacity: counts.2,
            grace_left_ms: counts.3,
            grace_for: "team/web".to_owned(),
        },
    )
}

fn listing() -> impl Strategy<Value = Listing> {
    let row = (vec(any::<u8>(), 0..40), option::of(holder()), int32(), int32())
        .prop_map(|(key, holder, holders, waiters)| ListedLock { key, holder, holders, waiters });
    (vec(row, 0..6), option::of(cursor())).prop_map(|(rows, next)| Listing { rows, next })
}

fn reply() -> impl Strategy<Value = Reply> {
    let head = || (int(), int());
    prop_oneof![
        8 => short_reply(),
        1 => (int(), refusal())
            .prop_map(|(id, refusal)| Reply::Refused { id, refusal: Box::new(refusal) }),
        1 => (head(), vec(hold(), 0..40))
            .prop_map(|((id, version), lost)| Reply::Compared { id, version, lost }),
        1 => (int(), ring_chunk())
            .prop_map(|(id, chunk)| Reply::Ring { id, chunk: Box::new(chunk) }),
        1 => (int(), inspection()).prop_map(|(id, seen)| Reply::Inspected {
            id,
            inspection: Box::new(seen)
        }),
        1 => (int(), listing())
            .prop_map(|(id, listing)| Reply::Listed { id, listing: Box::new(listing) }),
    ]
}

fn push() -> impl Strategy<Value = Push> {
    let reason =
        sample::select(vec![LostReason::Forced, LostReason::Expired, LostReason::Outranked]);
    prop_oneof![
        (reason, vec(hold(), 0..40)).prop_map(|(reason, holds)| Push::Lost { reason, holds }),
        int().prop_map(|version| Push::RingChanged { version }),
        Just(Push::Draining),
    ]
}

fn message() -> impl Strategy<Value = Any> {
    prop_oneof![
        1 => hello().prop_map(Any::Hello),
        1 => hello_reply().prop_map(Any::HelloReply),
        4 => request().prop_map(Any::Request),
        4 => reply().prop_map(Any::Reply),
        1 => push().prop_map(Any::Push),
    ]
}

/// Gathers frames from a stream that comes in pieces, keeping the tail as a shell does.
fn bodies_of(stream: &[u8], cuts: &[sample::Index]) -> Result<Vec<Vec<u8>>, FrameError> {
    let mut ends: Vec<usize> = cuts.iter().map(|cut| cut.index(stream.len() + 1)).collect();
    ends.push(stream.len());
    ends.sort_unstable();
    let (mut carry, mut bodies, mut start) = (Vec::new(), Vec::new(), 0);
    for end in ends {
        carry.extend_from_slice(&stream[start..end]);
        start = end;
        let mut rest = carry.as_slice();
        while let Some((body, after)) = split_frame(rest)? {
            bodies.push(body.to_vec());
            rest = after;
        }
        carry = rest.to_vec();
    }
    assert!(carry.is_empty());
    Ok(bodies)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1024))]

    #[test]
    fn messages_come_back(message in message()) {
        let (frame, body) = (message.frame(), message.body());
        prop_assert_eq!(&frame, &fuzz_body::framed(&body));
        prop_assert_eq!(&body, &message.derived_body());
        prop_assert_eq!(message.is(&body), Ok(true));
        prop_assert_eq!(message.is_all_of(&frame), Ok(true));
    }

    #[test]
    fn a_frame_cut_short_is_not_one(message in message()) {
        let frame = message.frame();
        let body = message.body();
        for end in 0..frame.len() {
            prop_assert_eq!(split_frame(&frame[..end]), Ok(None));
            // The hot path waits for the rest as well.
            prop_assert_eq!(message.is_all_of(&frame[..end]), Ok(false));
        }
        for end in 0..body.len() {
            let malformed = matches!(message.is(&body[..end]), Err(FrameError::Malformed { .. }));
            prop_assert!(malformed, "{} bytes of {}", end, body.len());
        }
    }

    #[test]
    fn flipped_bits_keep_the_rules(
        message in message(),
        flips in vec((any::<sample::Index>(), 0_u32..8), 1..8),
    ) {
        let mut frame = message.frame();
        for (at, bit) in flips {
            let at = at.index(frame.len());
            frame[at] ^= 1 << bit;
        }
        fuzz_body::decode(&frame);
        fuzz_body::differential(&frame[1..]);
    }

    #[test]
    fn arbitrary_bytes_keep_the_rules(bytes in vec(any::<u8>(), 0..300)) {
        fuzz_body::decode(&bytes);
        fuzz_body::differential(&bytes);
    }

    #[test]
    fn a_length_bomb_anywhere_keeps_the_rules(
        message in message(),
        at in any::<sample::Index>(),
        len in int(),
    ) {
        let mut body = message.body();
        let at = at.index(body.len());
        body.splice(at..=at, [&[253], len.to_le_bytes().as_slice()].concat());
        fuzz_body::decode(&body);
        fuzz_body::differential(&body);
    }

    #[test]
    fn frames_split_alike_however_they_are_cut(
        messages in vec(message(), 1..12),
        cuts in vec(any::<sample::Index>(), 0..20),
    ) {
        let stream: Vec<u8> = messages.iter().flat_map(Any::frame).collect();
        let bodies: Vec<Vec<u8>> = messages.iter().map(Any::body).collect();
        prop_assert_eq!(bodies_of(&stream, &cuts), Ok(bodies));
    }

    #[test]
    fn long_bodies_come_back(len in prop_oneof![200_usize..600, 65_000_usize..65_520]) {
        let key = vec![7; len];
        let operation = Operation::Inspect { namespace: "" };
        let request = Request::Keyed { id: 1, version: 2, operation, key: &key };
        let mut frame = Vec::new();
        encode_frame(&request, &mut frame);
        let body = split_frame(&frame).unwrap().unwrap().0;
        prop_assert_eq!(&frame, &fuzz_body::framed(body));
        fuzz_body::differential(body);
    }
}
