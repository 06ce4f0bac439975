//! The seeded simulator of whole clusters: control planes over the model of a log, workers with
//! copies of each other's cells, and the real sessions of clients, over a network that breaks and
//! is cut, clocks that run wrong, pauses and kills. Clients, keys and network are those of
//! `client/tests/sim`.
//!
//! ```text
//! cargo test -p lockring-client --test cluster                              all of it
//! SIM_SEEDS=50000 cargo test -p lockring-client --test cluster clean        a long clean run
//! SIM_SEED=7 SIM_SEEDS=1 SIM_TRACE=1 cargo test ... --nocapture clean       what a seed does
//! ```

#![allow(clippy::print_stdout, reason = "what a test prints is captured")]

mod agenda;
#[path = "../sim/client/mod.rs"]
mod client;
mod cluster;
mod faults;
#[path = "../sim/hub.rs"]
mod hub;
#[path = "../sim/keys.rs"]
mod keys;
mod ring;
mod run;
#[path = "../sim/stage.rs"]
mod stage;
#[path = "../sim/way.rs"]
mod way;
#[path = "../sim/workload.rs"]
mod workload;

use run::Bug;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

const CLEAN_SEEDS: u64 = 30;

fn number(name: &str, default: u64) -> u64 {
    match std::env::var(name) {
        Ok(text) => text.parse().unwrap_or_else(|_| panic!("{name}={text} is not a number")),
        Err(_) => default,
    }
}

#[test]
fn clean_runs_keep_every_promise() {
    let (first, count) = (number("SIM_SEED", 0), number("SIM_SEEDS", CLEAN_SEEDS));
    let verbose = std::env::var_os("SIM_TRACE").is_some();
    let start = Instant::now();
    let mut reached: BTreeMap<&str, u64> = BTreeMap::new();
    let mut time = Duration::ZERO;
    for seed in first..first + count {
        let report = run::run(seed, Bug::default(), verbose);
        for (what, n) in report.reached {
            *reached.entry(what).or_default() += n;
        }
        time += report.time.since(lockring_core::Time(0));
        if let Some(violation) = report.violation {
            panic!(
                "seed {seed} broke {violation}\nreplay: SIM_SEED={seed} SIM_SEEDS=1 SIM_TRACE=1 \
                 cargo test -p lockring-client --test cluster -- --nocapture clean"
            );
        }
    }
    let spent = start.elapsed();
    println!("{count} seeds from {first} in {spent:.1?}, {time:.0?} of simulated time, reached");
    for (what, n) in &reached {
        println!("{n:>12} {what}");
    }
}

#[test]
fn equal_seeds_make_equal_traces() {
    for seed in 0..3 {
        let one = run::run(seed, Bug::default(), false);
        let two = run::run(seed, Bug::default(), false);
        assert_eq!((one.trace, one.reached), (two.trace, two.reached), "seed {seed}");
    }
}
