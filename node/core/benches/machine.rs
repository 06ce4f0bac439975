//! What an operation costs the core: acquires and releases in batches of 64, beside many held
//! locks. Only the machine is timed, not the making of requests nor the look at the answers.
//! `cargo bench -p lockring-core`.

#![allow(clippy::print_stdout, reason = "a benchmark of its own program prints its figures")]
#![expect(clippy::disallowed_types, clippy::disallowed_methods, reason = "it measures time")]

use lockring_core::{Access, Action, Config, ConnId, Event, Identity, Limits, LinkIndex, Machine};
use lockring_proto::{
    Claim, Fence, Hello, Namespace, Operation, PROTOCOL, Reply, Request, SessionId, Time, Wait,
    limits,
};
use lockring_ring::{CellBits, Epoch, RingVersion};
use std::time::{Duration, Instant};

const BATCH: usize = 64;
const KEY_BYTES: usize = 17;
/// The budget at ten million locks.
const BUDGET_NS: f64 = 150.0;

struct Bench {
    machine: Machine,
    link: LinkIndex,
    actions: Vec<Action>,
    id: u64,
    random: u64,
}

fn key(number: u64) -> [u8; KEY_BYTES] {
    let mut key = *b"k0000000000000000";
    let mut left = number;
    for digit in key[1..].iter_mut().rev() {
        *digit = b'0' + (left % 10) as u8;
        left /= 10;
    }
    key
}

impl Bench {
    fn new() -> Self {
        let config = Config {
            cell_bits: CellBits::DEFAULT,
            worker: 0,
            workers: 1,
            node: 1,
            boot: 1,
            others: std::collections::BTreeSet::new(),
            epoch: Epoch(1),
            ring_version: RingVersion(1),
            longest_ttl: limits::TTL_DEFAULT,
            opens_at: None,
            tag_secret: [1, 2, 3, 4],
            grace_for: String::new(),
            limits: Limits::default(),
        };
        let now = Time(1_000_000);
        let mut machine = Machine::new(config, now);
        let identity = Identity {
            namespace: Namespace::default(),
            name: "bench".to_owned(),
            access: Access::User,
            ttl_max: limits::TTL_MAX,
        };
        let hello = Hello {
            protocol: PROTOCOL,
            session: SessionId([1; 16]),
            incarnation: 1,
            ttl_ms: 10_000,
            ring_version: 1,
            ids_after: 0,
            label: "bench",
        };
        let mut actions = Vec::new();
        machine.handle(
            now,
            Event::Opened { conn: ConnId(1), identity: &identity, hello },
            &mut actions,
        );
        let Some(&Action::Welcome { link, .. }) = actions.first() else {
            panic!("not welcomed: {actions:?}")
        };
        Self { machine, link, actions: Vec::new(), id: 0, random: 0x9e37_79b9_7f4a_7c15 }
    }

    fn run(&mut self, requests: &[Request<'_>]) -> Duration {
        self.actions.clear();
        let event = Event::Requests { conn: ConnId(1), link: self.link, requests };
        let begun = Instant::now();
        self.machine.handle(Time(1_000_000), event, &mut self.actions);
        begun.elapsed()
    }

    /// Acquires these keys as one batch, adds their fences, and says how long the machine took.
    fn acquire(&mut self, keys: &[[u8; KEY_BYTES]], fences: &mut Vec<Fence>) -> Duration {
        let requests: Vec<Request<'_>> = keys
            .iter()
            .map(|key| {
                self.id += 1;
                let (claim, wait) = (Claim::EXCLUSIVE, Wait::Forever);
                Request::Keyed {
                    id: self.id,
                    version: 1,
                    operation: Operation::Acquire { claim, wait },
                    key,
                }
            })
            .collect();
        let took = self.run(&requests);
        for action in &self.actions {
            match action {
                Action::Reply { reply: Reply::Granted { fence, .. }, .. } => fences.push(*fence),
                other => panic!("not granted: {other:?}"),
            }
        }
        took
    }

    fn release(&mut self, keys: &[[u8; KEY_BYTES]], fences: &[Fence]) -> Duration {
        let requests: Vec<Request<'_>> = keys
            .iter()
            .zip(fences)
            .map(|(key, &fence)| {
                self.id += 1;
                Request::Keyed {
                    id: self.id,
                    version: 1,
                    operation: Operation::Release { fence },
                    key,
                }
            })
            .collect();
        let took = self.run(&requests);
        let released =
            |action: &Action| matches!(action, Action::Reply { reply: Reply::Released { .. }, .. });
        assert!(self.actions.iter().all(released), "not released: {:?}", self.actions);
        took
    }

    fn random(&mut self, below: u64) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random % below
    }

    /// Holds keys 0..count.
    fn fill(&mut self, count: u64) -> Vec<Fence> {
        let mut fences = Vec::with_capacity(count as usize);
        let mut at = 0;
        while at < count {
            let end = (at + BATCH as u64).min(count);
            let keys: Vec<_> = (at..end).map(key).collect();
            self.acquire(&keys, &mut fences);
            at = end;
        }
        fences
    }

    /// Releases and re-acquires random held keys for a number of batches; ns per operation.
    fn churn(&mut self, fences: &mut [Fence], batches: usize) -> f64 {
        let held = fences.len() as u64;
        let mut spent = Duration::ZERO;
        let mut granted = Vec::with_capacity(BATCH);
        for _ in 0..batches {
            // A batch names each key once: random starts, one stride.
            let start = self.random(held);
            let stride = 1 + self.random(held / BATCH as u64 - 1);
            let chosen: Vec<u64> = (0..BATCH as u64).map(|i| (start + i * stride) % held).collect();
            let keys: Vec<_> = chosen.iter().map(|&number| key(number)).collect();
            let old: Vec<Fence> = chosen.iter().map(|&number| fences[number as usize]).collect();
            granted.clear();
            spent += self.release(&keys, &old);
            spent += self.acquire(&keys, &mut granted);
            for (&number, &fence) in chosen.iter().zip(&granted) {
                fences[number as usize] = fence;
            }
        }
        spent.as_nanos() as f64 / (2 * BATCH * batches) as f64
    }
}

fn main() {
    let quick = std::env::args().any(|argument| argument == "--test");
    println!("acquire and release of random held keys of {KEY_BYTES} bytes, batches of {BATCH}");
    println!("{:>12}  {:>9}  {:>9}", "locks held", "ns/op", "spread");
    let sizes: &[u64] = if quick { &[1000] } else { &[1000, 100_000, 10_000_000] };
    for &held in sizes {
        let mut bench = Bench::new();
        let mut fences = bench.fill(held);
        let batches = if quick { 10 } else { 4000 };
        // Until as many are churned as are held: then neighbours in memory are no neighbours in
        // time any more, as in a service that runs for long.
        bench.churn(&mut fences, batches.max(2 * held as usize / BATCH));
        let mut rounds: Vec<f64> = (0..7).map(|_| bench.churn(&mut fences, batches)).collect();
        rounds.sort_by(f64::total_cmp);
        println!("{held:>12}  {:>9.1}  {:.1} to {:.1}", rounds[3], rounds[0], rounds[6]);
    }
    println!("budget: {BUDGET_NS} ns an operation at 10000000");
}
