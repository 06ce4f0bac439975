//! What a lock and its release cost a client's session: routing, frames, leases and outcomes, with
//! a worker's answers made beforehand. `cargo bench -p lockring-client`; for instructions instead
//! of time: callgrind with `--toggle-collect='*Bench*round*'` over the program with `--test`.

#![allow(clippy::print_stdout, reason = "a benchmark of its own program prints its figures")]

use lockring_client::proto::{
    BootId, Claim, Fence, HelloReply, NodeAddress, NodeId, NodeInfo, Reply, RingChunk, SessionId,
    Time, Welcome, codec,
};
use lockring_client::ring::{CellBits, Epoch, RingTable, RingVersion};
use lockring_client::session::{
    Ask, ClaimRef, LinkId, Outcome, RequestIds, Session, SessionConfig,
};
use std::time::{Duration, Instant};

/// Claims that are asked for at once.
const BATCH: usize = 64;
const LINK: LinkId = LinkId::FIRST;
const NOW: Time = Time(1_000);

struct Bench {
    session: Session,
    /// The last request.
    id: u64,
    fence: u64,
    bytes: Vec<u8>,
    held: Vec<ClaimRef>,
}

impl Bench {
    fn new() -> Self {
        let config = SessionConfig {
            session: SessionId([7; 16]),
            ids: RequestIds::default(),
            taken_up: false,
            label: "bench".to_owned(),
            ttl: Duration::from_secs(10),
            unreachable_after: Duration::from_secs(30),
        };
        let session = Session::new(config, NOW, 4);
        let (bytes, held) = (Vec::new(), Vec::new());
        let mut bench = Self { session, id: 1, fence: 0, bytes, held };
        bench.greet();
        bench
    }

    fn greet(&mut self) {
        self.session.next_dial(NOW).expect("a first dial");
        self.session.connected(NOW, LINK);
        let welcome = Welcome {
            protocol: 1,
            fresh: true,
            incarnation: 1,
            ttl_ms: 10_000,
            ring_version: 1,
            node: 1,
            boot: 1,
            worker: 0,
            namespace: "default".to_owned(),
        };
        codec::encode_frame(&HelloReply::Welcome(welcome), &mut self.bytes);
        let addresses = vec![NodeAddress { host: String::new(), port: 7420 }];
        let node = NodeInfo { id: NodeId(1), addresses, workers: 1, boot: BootId(1) };
        let bits = CellBits::DEFAULT;
        let table = RingTable::founded(RingVersion(1), bits, node, Epoch(1)).expect("a ring");
        for chunk in RingChunk::whole(&table) {
            codec::encode_frame(&Reply::Ring { id: 1, chunk: Box::new(chunk) }, &mut self.bytes);
        }
        self.hear();
        assert!(self.session.ring().is_some(), "the ring is whole");
    }

    /// The worker's answers come, and what was sent is gone.
    fn hear(&mut self) {
        self.session.outgoing(LINK).clear();
        let taken = self.session.receive(NOW, LINK, &self.bytes).expect("frames");
        assert_eq!(taken, self.bytes.len(), "nothing is left over");
        self.bytes.clear();
    }

    /// Locks and releases a batch of keys.
    #[inline(never)]
    fn round(&mut self, first: u64) {
        for token in first..first + BATCH as u64 {
            let key = token.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes();
            let ask = Ask { token, key: &key, wanted: Claim::EXCLUSIVE, wait: None };
            self.held.push(self.session.acquire(NOW, &ask));
            self.id += 1;
            self.fence += 1;
            let fence = Fence::new(Epoch(1), self.fence);
            codec::encode_frame(
                &Reply::Granted { id: self.id, version: 1, fence },
                &mut self.bytes,
            );
        }
        self.hear();
        let outcomes = self.session.outcomes().drain(..);
        let granted = outcomes.filter(|outcome| matches!(outcome, Outcome::Granted { .. })).count();
        assert_eq!(granted, BATCH, "all are granted");
        for (token, claim) in (first..).zip(self.held.drain(..)) {
            assert!(self.session.release(NOW, claim, token), "it was held");
            self.id += 1;
            codec::encode_frame(&Reply::Released { id: self.id, version: 1 }, &mut self.bytes);
        }
        self.hear();
        self.session.outcomes().clear();
    }
}

fn main() {
    let quick = std::env::args().any(|argument| argument == "--test");
    let (rounds, batches) = if quick { (1, 5000) } else { (15, 20_000) };
    let mut bench = Bench::new();
    bench.session.outcomes().clear();
    let mut first = 0;
    let mut times: Vec<f64> = (0..rounds)
        .map(|_| {
            let begun = Instant::now();
            for _ in 0..batches {
                bench.round(first);
                first += BATCH as u64;
            }
            begun.elapsed().as_nanos() as f64 / (batches * BATCH) as f64
        })
        .collect();
    times.sort_by(f64::total_cmp);
    println!(
        "a lock and its release in a session, batches of {BATCH}: {:.1} ns",
        times[rounds / 2]
    );
}
