//! Nanoseconds per frame of the hot path: `cargo bench -p lockring-proto`.
//!
//! Frames are made and taken apart in batches, as the two shells do it; the last two rows take the
//! way of the uncommon frames. The best of many rounds is printed: what disturbs a round on a
//! shared machine only ever adds.

#![allow(clippy::print_stdout, reason = "a benchmark of its own program prints its figures")]

use lockring_proto::codec::{decode_frames, encode_frame};
use lockring_proto::{Claim, Fence, Message, Operation, Reply, Request, Wait};
use std::hint::black_box;
use std::time::{Duration, Instant};

/// Frames of one batch: about what one packet's worth of callers sends.
const BATCH: u64 = 64;
const BATCHES_PER_ROUND: u32 = 2000;
const ROUNDS: u32 = 40;

const KEY: &[u8] = b"key:0000000012345";

fn main() {
    println!("frame      bytes  encode ns  decode ns");
    row("acquire", |id| Request::Keyed {
        id,
        version: 57,
        operation: Operation::Acquire { claim: Claim::EXCLUSIVE, wait: Wait::Forever },
        key: KEY,
    });
    row("release", |id| Request::Keyed {
        id,
        version: 57,
        operation: Operation::Release { fence: fence(id) },
        key: KEY,
    });
    row("granted", |id| Reply::Granted { id, version: 57, fence: fence(id) });
    row("released", |id| Reply::Released { id, version: 57 });
    row("renew", |id| Request::Renew { id });
    row("moved", |id| Reply::Moved { id, version: 70_000 });
}

fn fence(id: u64) -> Fence {
    Fence(3 << 40 | id)
}

/// Measures one kind of frame and prints its line.
fn row<T: Message<'static>>(name: &str, message: impl Fn(u64) -> T) {
    // Ids of a session that has made some millions of requests: five bytes each.
    let messages: Vec<T> = (0..BATCH).map(|i| message(5_000_000 + i)).collect();
    let mut out = Vec::with_capacity(1 << 16);
    let encode = best(|| {
        out.clear();
        for message in black_box(&messages) {
            encode_frame(message, &mut out);
        }
        black_box(&out);
    });
    let frames: &'static [u8] = out.clone().leak();
    let mut decoded: Vec<T> = Vec::with_capacity(BATCH as usize);
    let decode = best(|| {
        decoded.clear();
        decode_frames(black_box(frames), |message| decoded.push(message)).expect("our own frames");
        black_box(&decoded);
    });
    let bytes = frames.len() / BATCH as usize;
    println!("{name:<10} {bytes:>5} {encode:>10.1} {decode:>10.1}");
}

/// Nanoseconds per frame in the best of the rounds.
fn best(mut batch: impl FnMut()) -> f64 {
    let round = |_| {
        let start = Instant::now();
        for _ in 0..BATCHES_PER_ROUND {
            batch();
        }
        start.elapsed()
    };
    let best = (0..ROUNDS).map(round).min().unwrap_or(Duration::MAX);
    best.as_nanos() as f64 / f64::from(BATCHES_PER_ROUND) / BATCH as f64
}
