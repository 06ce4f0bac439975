//! The seeded simulator: clusters of one to five nodes and several clients, the real machines of
//! `lockring-core` against the real sessions of this package, over a network that breaks and is cut
//! one way, clocks that run wrong, pauses and kills. One recorder hears everything and checks every
//! promise online; the parts it is made of are in `lockring_core::testing`.
//!
//! ```text
//! cargo test -p lockring-client --test sim                               all of it
//! cargo test -p lockring-client --test sim -- --nocapture mutants        seeds to kill, as a table
//! SIM_SEEDS=100000 cargo test -p lockring-client --test sim clean        a long clean run
//! SIM_SEED=7 SIM_SEEDS=1 SIM_TRACE=1 cargo test ... --nocapture clean    what a seed does
//! SIM_MUTANT=TwoLinks SIM_SEED=7 SIM_SEEDS=1 ... --nocapture mutants     the same with a bug
//! ```

#![allow(clippy::print_stdout, reason = "what a test prints is captured")]

mod agenda;
mod client;
mod cluster;
mod hub;
mod keys;
mod mutants;
mod node;
mod ring;
mod run;
mod stage;
mod way;
mod workload;

use run::{Bug, Report};
use std::collections::BTreeMap;
use std::time::Instant;

/// Seeds of the clean run: two minutes on one core.
const CLEAN_SEEDS: u64 = 700;

/// Every bug must be noticed within so many seeds.
const MUTANT_SEEDS: u64 = 2000;

/// What a set of runs must have reached: a promise that was never at stake was not kept.
const MUST_REACH: [&str; 93] = [
    "answers held by a cut",
    "broken connections",
    "busy",
    "cancelled waiters",
    "cancels",
    "claims at another worker",
    "claims refused for now",
    "claims under their own ids",
    "clean stops",
    "client crashes",
    "client pauses",
    "clients at several nodes at once",
    "clients cut off from a node one way",
    "compares of several frames",
    "compares under load",
    "compares",
    "connections given up as silent",
    "dead holds freed by a claim",
    "dead waiters",
    "dials where a way is cut",
    "drains",
    "epoch raises",
    "expired holds",
    "expired links",
    "forced releases",
    "frames held up by a break",
    "gave up after its own deadline",
    "goodbyes in mid-run",
    "grants from the line",
    "grants that raced a cancel",
    "grants while another node is down",
    "hellos to a node that stops",
    "hellos without an incarnation",
    "holds found lost",
    "holds lapsed",
    "holds lost by force",
    "holds taken up too late",
    "holds taken up",
    "holds that have arrived with their cells",
    "holds that went with their cells",
    "holds",
    "ids past 32 bits",
    "late writes",
    "jeopardies",
    "links that are over",
    "longest TTL lowered",
    "longest TTL raises",
    "losses found by a compare",
    "moved by a worker without the cell",
    "moved",
    "news of the ring held up",
    "news of the ring that was known",
    "news of the ring",
    "node pauses",
    "node restarts",
    "nodes cut off from a client one way",
    "nodes cut off from a node one way",
    "orphans",
    "over a quota",
    "pages of listings",
    "partial partitions",
    "partitions",
    "reclaims",
    "refused",
    "requests held by a cut",
    "restarts with other workers among several nodes",
    "restarts with other workers",
    "resumed links",
    "retries",
    "rings told as what has changed",
    "runs of one node",
    "runs of several nodes",
    "sessions taken up",
    "slow networks",
    "stale frames",
    "stalls",
    "stops in grace with nothing held",
    "stops that were not clean",
    "timeouts",
    "tokens shown",
    "told busy",
    "told refused",
    "told timed out",
    "told unreachable",
    "TTLs of ten seconds and more",
    "turns that were over early",
    "used-up counters",
    "waits in grace",
    "wall clock jumps",
    "welcomes said fresh again",
    "whole listings",
    "writes refused by the fence",
    "writes that failed",
];

fn number(name: &str, default: u64) -> u64 {
    match std::env::var(name) {
        Ok(text) => text.parse().unwrap_or_else(|_| panic!("{name}={text} is not a number")),
        Err(_) => default,
    }
}

fn verbose() -> bool {
    std::env::var_os("SIM_TRACE").is_some()
}

/// The one command that runs a seed again.
fn replay(seed: u64, test: &str, bug: Option<&str>) -> String {
    let bug = bug.map_or_else(String::new, |bug| format!("SIM_MUTANT={bug} "));
    format!(
        "{bug}SIM_SEED={seed} SIM_SEEDS=1 SIM_TRACE=1 cargo test -p lockring-client --test sim -- \
         --nocapture {test}"
    )
}

#[test]
fn clean_runs_keep_every_promise() {
    let (first, count) = (number("SIM_SEED", 0), number("SIM_SEEDS", CLEAN_SEEDS));
    let start = Instant::now();
    let mut reached: BTreeMap<&str, u64> = BTreeMap::new();
    for seed in first..first + count {
        let report = run::run(seed, None, verbose());
        for (what, n) in report.reached {
            *reached.entry(what).or_default() += n;
        }
        if let Some(violation) = report.violation {
            panic!("seed {seed} broke {violation}\nreplay: {}", replay(seed, "clean", None));
        }
    }
    println!(
        "{count} seeds from {first} in {:.1?} kept every promise and reached",
        start.elapsed()
    );
    for (what, n) in &reached {
        println!("{n:>12} {what}");
    }
    if count >= CLEAN_SEEDS {
        let missed: Vec<_> =
            MUST_REACH.iter().filter(|what| !reached.contains_key(*what)).collect();
        assert!(missed.is_empty(), "never reached: {missed:?}");
    }
}

#[test]
fn equal_seeds_make_equal_traces() {
    for seed in 0..20 {
        let (one, two) = (run::run(seed, None, false), run::run(seed, None, false));
        assert_eq!(one.trace, two.trace, "seed {seed} ran in two ways");
        assert_eq!(one.reached, two.reached, "seed {seed} ran in two ways");
        assert_ne!(one.trace, run::run(seed + 1, None, false).trace);
    }
}

/// Runs seeds until a promise is broken: the seed and the promise.
fn kill(bug: Bug, first: u64, count: u64) -> Option<(u64, String)> {
    (first..first + count).find_map(|seed| {
        let Report { violation, .. } = run::run(seed, Some(bug), verbose());
        violation.map(|violation| (seed, violation.to_string()))
    })
}

#[test]
fn mutants_are_killed_by_a_promise() {
    let only = std::env::var("SIM_MUTANT").ok();
    let (first, count) = (number("SIM_SEED", 0), number("SIM_SEEDS", MUTANT_SEEDS));
    let mut survivors = Vec::new();
    println!("{:>3} {:26} {:>5}  killed by", "", "mutant", "seeds");
    for (letter, name, bug) in mutants::ALL {
        if only.as_ref().is_some_and(|only| only != name) {
            continue;
        }
        match kill(bug, first, count) {
            Some((seed, why)) => {
                let seeds = seed - first + 1;
                println!("{letter:>3} {name:26} {seeds:>5}  {}", &why[..why.len().min(150)]);
            }
            None => survivors.push(replay(first, "mutants", Some(name))),
        }
    }
    assert!(survivors.is_empty(), "alive after {count} seeds:\n{}", survivors.join("\n"));
}
