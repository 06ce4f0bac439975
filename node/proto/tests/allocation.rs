//! What decoding allocates, counted by the allocator: hostile lengths buy no memory beyond the
//! limit, and honest messages little more than their bytes.

#[path = "fuzz_body.rs"]
mod fuzz_body;

use lockring_proto::Request;
use lockring_proto::codec::decode_frame;
use lockring_proto::limits::{DECODE_BYTES_MAX, FRAME_BYTES_MAX};
use peak_alloc::PeakAlloc;

#[global_allocator]
static ALLOCATOR: PeakAlloc = PeakAlloc;

/// A limit's worth of rows, then a limit's worth of bytes in one of them, and the error's text.
const MOST: usize = 2 * DECODE_BYTES_MAX + 1024;

/// The highest use of memory while `work` runs, above that before it.
fn peak(work: impl FnOnce()) -> usize {
    ALLOCATOR.reset_peak_usage();
    let before = ALLOCATOR.current_usage();
    work();
    ALLOCATOR.peak_usage() - before
}

/// Heads of messages up to a length: a compare, a cursor, a refusal, lost holds, nodes, their
/// addresses, nodes that are gone, runs, holders, rows and a row's key, of requests, replies and
/// pushes alike.
const HEADS: [&[u8]; 12] = [
    &[2, 1, 2, 9, 0, 0],
    &[4, 1, 3],
    &[8, 1, 0],
    &[10, 1, 2],
    &[11, 1, 2, 0, 14, 0],
    &[11, 1, 2, 0, 14, 0, 1, 4],
    &[11, 1, 2, 0, 14, 0, 0],
    &[11, 1, 2, 0, 14, 0, 0, 0],
    &[12, 1, 2, 4, 3, 1],
    &[13, 1],
    &[13, 1, 1],
    &[0, 1],
];

/// One test, as the count is of the whole process.
#[test]
fn memory_is_bounded() {
    for head in HEADS {
        for shift in 0..64 {
            let len = u64::MAX >> shift;
            let body = [head, &[253], len.to_le_bytes().as_slice(), &[0; 64]].concat();
            let peak = peak(|| fuzz_body::decode(&body));
            assert!(peak <= MOST, "{peak} bytes for {body:?}");
        }
    }
    // As many rows as the limit lets through, each of four bytes, and a bomb of a key at the end
    // of what the frame has.
    for rows in (1_000..16_000_u16).step_by(250) {
        let mut body = vec![13, 1, 251];
        body.extend_from_slice(&rows.to_le_bytes());
        body.resize(5 + 4 * usize::from(rows) - 8, 0);
        body.extend_from_slice(&[252, 0, 0, 7, 0]);
        let body = fuzz_body::framed(&body);
        let peak = peak(|| fuzz_body::decode(&body));
        assert!(peak <= MOST, "{peak} bytes for {rows} rows");
    }
    // A full frame of the shortest holds: the worst ratio of an honest message.
    let holds = (FRAME_BYTES_MAX - 8) / 2;
    let mut body = vec![2, 1, 2, 9, 0, 0, 251];
    body.extend_from_slice(&(holds as u16).to_le_bytes());
    body.resize(body.len() + 2 * holds, 1);
    fuzz_body::differential(&body);
    let peak = peak(|| assert!(decode_frame::<Request<'_>>(&body).is_ok()));
    assert!(peak <= 8 * FRAME_BYTES_MAX, "{peak} bytes for {holds} holds");
}
