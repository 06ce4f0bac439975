//! Bytes that no peer of ours sends, case by case: each has one answer, and it is an error.

use crate::golden::golden;
use bincode::BorrowDecode;
use lockring_proto::codec::{FrameError, decode_frame, decode_frames, encode_frame, split_frame};
use lockring_proto::limits::FRAME_BYTES_MAX;
use lockring_proto::*;

/// Lengths that a hostile peer would claim, as varints.
fn bombs() -> Vec<Vec<u8>> {
    let mut bombs: Vec<Vec<u8>> =
        [u64::MAX, u64::MAX / 2, 1 << 60, 1 << 40, 1 << 32, 1 << 24, 1 << 20, 64]
            .map(|len: u64| [&[253], len.to_le_bytes().as_slice()].concat())
            .into();
    // The form of 128 bits and the one that is not in use, which no length takes.
    bombs.push([&[254], u128::MAX.to_le_bytes().as_slice()].concat());
    bombs.push(vec![255; 17]);
    bombs
}

fn refuses<T: for<'a> BorrowDecode<'a, ()>>(body: &[u8]) {
    assert!(matches!(decode_frame::<T>(body), Err(FrameError::Malformed { .. })), "{body:?}");
}

fn refuses_request(body: &[u8]) {
    let result = decode_frame::<Request<'_>>(body);
    assert!(matches!(result, Err(FrameError::Malformed { .. })), "{body:?}");
    let mut given = 0;
    let frame = crate::fuzz_body::framed(body);
    let result = decode_frames(&frame, |_: Request<'_>| given += 1);
    assert!(matches!(result, Err(FrameError::Malformed { .. })), "{body:?}");
    assert_eq!(given, 0);
}

/// The bodies stop where a length belongs: every length in the wire is in the list.
#[test]
fn length_bombs_are_refused() {
    let filler = [7; 16];
    for bomb in bombs() {
        let bytes = |head: &[u8]| [head, &bomb, &filler].concat();
        // The keys of acquire, release, cancel, inspect, force, confirm and reclaim, the
        // namespaces of inspect, force and a listing, the holds of a compare, a prefix.
        refuses_request(&bytes(&[0, 1, 2, 0, 0, 0, 0]));
        refuses_request(&bytes(&[0, 1, 2, 1, 5]));
        refuses_request(&bytes(&[0, 1, 2, 2, 5]));
        refuses_request(&bytes(&[0, 1, 2, 3, 0]));
        refuses_request(&bytes(&[0, 1, 2, 4, 0]));
        refuses_request(&bytes(&[0, 1, 2, 5, 5]));
        refuses_request(&bytes(&[0, 1, 2, 3]));
        refuses_request(&bytes(&[0, 1, 2, 4]));
        refuses_request(&bytes(&[0, 1, 2, 6, 5, 1, 0, 0]));
        refuses_request(&bytes(&[2, 1, 2, 9, 0, 0]));
        refuses_request(&bytes(&[4, 1]));
        refuses_request(&bytes(&[4, 1, 0, 3, 50]));
        // A label.
        let hello = bytes(&[&[1], [7; 16].as_slice(), &[1; 4]].concat());
        let result = decode_frame::<Hello<'_>>(&hello);
        assert!(matches!(result, Err(FrameError::Malformed { .. })));
        // A namespace, a refusal's message.
        refuses::<HelloReply>(&bytes(&[0, 1, 0, 1, 1, 1, 1, 1, 1]));
        refuses::<HelloReply>(&bytes(&[1, 0]));
        // A refusal's message, lost holds, nodes, a host, runs.
        refuses::<Reply>(&bytes(&[8, 1, 0]));
        refuses::<Reply>(&bytes(&[10, 1, 2]));
        refuses::<Reply>(&bytes(&[11, 1, 2, 14]));
        refuses::<Reply>(&bytes(&[11, 1, 2, 14, 1, 4]));
        refuses::<Reply>(&bytes(&[11, 1, 2, 14, 0, 0]));
        // Holders, a holder's label, waiters, rows, a row's key, lost holds.
        refuses::<Reply>(&bytes(&[12, 1, 2, 4, 3, 1]));
        refuses::<Reply>(&bytes(&[12, 1, 2, 4, 3, 1, 1, 5, 0, 1, 1]));
        refuses::<Reply>(&bytes(&[12, 1, 2, 4, 3, 1, 0, 0]));
        refuses::<Reply>(&bytes(&[13, 1]));
        refuses::<Reply>(&bytes(&[13, 1, 1]));
        refuses::<Push>(&bytes(&[0, 1]));
    }
}

/// Without a limit these made the codec library ask for a terabyte and abort the process.
#[test]
fn sixteen_hostile_bytes_are_an_error() {
    for lead in 0..=u8::MAX {
        for tail in [0, 7, 0x7f, 0xfd, 0xff] {
            let mut body = [tail; 16];
            body[0] = lead;
            crate::fuzz_body::decode(&body);
            crate::fuzz_body::differential(&body);
        }
    }
    let mut compare = vec![2, 1, 2, 9, 0, 0, 253];
    compare.extend_from_slice(&(1_u64 << 36).to_le_bytes());
    compare.extend_from_slice(&[0]);
    assert_eq!(compare.len(), 16);
    refuses_request(&compare);
}

#[test]
fn unknown_tags_are_an_error() {
    for tag in 0..=u8::MAX {
        if tag >= 6 {
            refuses_request(&[[tag].as_slice(), &[9; 40]].concat());
        }
        if tag >= 7 {
            // An operation.
            refuses_request(&[[0, 1, 2, tag].as_slice(), &[9; 40]].concat());
        }
        if tag >= 18 {
            refuses::<Reply>(&[[tag].as_slice(), &[9; 40]].concat());
        }
        if tag >= 3 {
            refuses::<Push>(&[[tag].as_slice(), &[9; 40]].concat());
            refuses::<Push>(&[[0, tag].as_slice(), &[9; 40]].concat());
            refuses_request(&[[0, 1, 2, 0, tag].as_slice(), &[9; 40]].concat());
            refuses_request(&[[0, 1, 2, 0, 0, tag].as_slice(), &[9; 40]].concat());
            refuses_request(&[[0, 1, 2, 0, 0, 0, tag].as_slice(), &[9; 40]].concat());
            refuses::<Reply>(&[[3, 1, 2, tag].as_slice(), &[9; 40]].concat());
        }
        if tag >= 2 {
            refuses::<HelloReply>(&[[tag].as_slice(), &[9; 40]].concat());
            // An option and a boolean.
            refuses_request(&[[2, 1, 2, 9, tag].as_slice(), &[9; 40]].concat());
            refuses::<HelloReply>(&[[0, 1, tag].as_slice(), &[9; 40]].concat());
        }
        if tag >= 9 {
            refuses::<HelloReply>(&[1, tag, 0]);
        }
    }
}

#[test]
fn integers_too_wide_for_their_field_are_an_error() {
    // A cell of 16 bits in 32, and in 64; rows of 32 bits in 64.
    refuses_request(&[4, 1, 252, 1, 0, 0, 0, 0, 50, 0]);
    refuses_request(&[4, 1, 253, 1, 0, 0, 0, 0, 0, 0, 0, 0, 50, 0]);
    refuses_request(&[4, 1, 1, 0, 253, 1, 0, 0, 0, 0, 0, 0, 0, 0]);
}

#[test]
fn text_that_is_not_utf8_is_an_error() {
    let hello = [&[1], [7; 16].as_slice(), &[1, 1, 1, 2, 0xc3, 0x28]].concat();
    assert!(matches!(decode_frame::<Hello<'_>>(&hello), Err(FrameError::Malformed { .. })));
    refuses::<HelloReply>(&[1, 0, 1, 0xff]);
}

/// The length alone decides, before a byte of the body is there.
#[test]
fn oversize_lengths_are_refused_at_once() {
    for len in [FRAME_BYTES_MAX as u32 + 1, 1 << 24, u32::MAX] {
        let bytes = [&[252], len.to_le_bytes().as_slice()].concat();
        assert_eq!(split_frame(&bytes), Err(FrameError::TooLong(u64::from(len))));
    }
    for first in [253, 254, 255] {
        assert_eq!(split_frame(&[first]), Err(FrameError::BadLength(first)));
    }
    let cap = [&[252], (FRAME_BYTES_MAX as u32).to_le_bytes().as_slice()].concat();
    assert_eq!(split_frame(&cap), Ok(None));
}

#[test]
fn trailing_bytes_are_an_error() {
    for row in golden() {
        for extra in 1..4 {
            let mut body = row.message.body();
            body.extend_from_slice(&[0, 9, 255][..extra]);
            let expected = Err(FrameError::Trailing { len: body.len(), extra });
            assert_eq!(row.message.is(&body), expected, "{}", row.name);
            let frame = crate::fuzz_body::framed(&body);
            assert_eq!(row.message.is_all_of(&frame), expected, "{}", row.name);
        }
    }
}

/// What a peer may ask us to build stays within the cap, with every field at its longest.
#[test]
fn the_longest_messages_fit_a_frame() {
    let label = "x".repeat(limits::LABEL_BYTES_MAX);
    let fence = Fence(u64::MAX >> 1);
    let permits = limits::CAPACITY_MAX;
    let claim = Claim::Permits { permits, capacity: permits };
    let holder =
        Holder { fence, claim, held_ms: u64::MAX, lease_left_ms: u64::MAX, label: label.clone() };
    let cursor = ListCursor { from: u32::MAX };
    let key = vec![7; limits::KEY_BYTES_MAX];
    let row =
        ListedLock { key, holder: Some(holder.clone()), holders: u32::MAX, waiters: u32::MAX };
    let rows = vec![row; limits::LIST_ROWS_MAX as usize];
    let listing = Box::new(Listing { rows, next: Some(cursor) });
    let mut inspection = crate::golden::inspection();
    inspection.holders = vec![holder; 16];
    inspection.waiters = vec![WaiterInfo { claim, waited_ms: u64::MAX, label }; 16];
    let hold = HoldId { cell: u16::MAX, fence };
    let holds = vec![hold; limits::HOLDS_PER_FRAME];
    let (id, version) = (u64::MAX, u64::MAX);
    let (after, through) = (Some(hold), Some(hold));
    let mut out = Vec::new();
    let lost = holds.clone();
    let push = Push::Lost { reason: LostReason::Expired, holds: holds.clone() };
    encode_frame(&Reply::Listed { id, listing }, &mut out);
    encode_frame(&Reply::Inspected { id, inspection: Box::new(inspection) }, &mut out);
    encode_frame(&Reply::Compared { id, version, lost }, &mut out);
    let replies = decode_frames(&out, |_: Reply| ()).map(<[u8]>::len);
    assert_eq!(replies, Ok(0), "and the peer's limit lets them through");
    out.clear();
    let prefix = &[7; limits::KEY_BYTES_MAX];
    let namespace = &"n".repeat(limits::NAMESPACE_BYTES_MAX);
    encode_frame(&Request::Compare { id, version, upto: id, after, through, holds }, &mut out);
    encode_frame(&Request::List { id, namespace, cursor, rows: u32::MAX, prefix }, &mut out);
    assert_eq!(decode_frames(&out, |_: Request<'_>| ()).map(<[u8]>::len), Ok(0));
    out.clear();
    encode_frame(&push, &mut out);
    assert_eq!(decode_frames(&out, |_: Push| ()).map(<[u8]>::len), Ok(0));
}
