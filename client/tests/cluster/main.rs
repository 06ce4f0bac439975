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
mod mutants;
mod quiet;
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

/// Seeds of the clean run.
const CLEAN_SEEDS: u64 = 100;

/// So many must reach everything.
const WHOLE: u64 = 100;

/// What a set of runs must have reached beside the cases: a promise that was never at stake was not
/// kept.
const MUST_REACH: [&str; 104] = [
    "all connections of a node to peers broken",
    "answers held by a cut",
    "answers to what has ended meanwhile",
    "answers to what was undone",
    "attached",
    "broken connections",
    "broken connections of peers",
    "cancels",
    "cells taken over",
    "claims at another worker",
    "client crashes",
    "client pauses",
    "clients at several nodes at once",
    "clients cut off from a node",
    "clients cut off from all nodes",
    "compares",
    "compares under load",
    "connections given up as silent",
    "connections of peers",
    "connections of peers replaced before they were missed",
    "control messages that came twice",
    "control planes isolated",
    "copies compared at rest",
    "copies synced",
    "counters near their end",
    "dials where a way is cut",
    "dropped",
    "elections",
    "entry: blank",
    "entry: boot",
    "entry: cells",
    "entry: down",
    "entry: join",
    "entry: leave",
    "entry: policy",
    "entry: remove",
    "entry: up",
    "entry: weight",
    "false suspicions",
    "frames held up by a break",
    "gave up after its own deadline",
    "goodbyes in mid-run",
    "graces that are over",
    "grants that came too late",
    "grants while another node is down",
    "hellos refused",
    "hellos to a node without contact",
    "hellos without an incarnation",
    "holds",
    "holds lapsed",
    "holds lost by force",
    "holds taken up",
    "holds that have arrived with their cells",
    "ids past 32 bits",
    "jeopardies",
    "late commits after a failure report",
    "late writes",
    "learner of an old epoch cleared",
    "leases that grew",
    "links that are over",
    "logs that lag",
    "lost cell",
    "messages of peers lost",
    "new ring version",
    "node crashes",
    "node restarts",
    "nodes gone for good",
    "nodes that have left",
    "nodes that joined",
    "owner and backup apart",
    "pages of listings",
    "promotion",
    "proposals lost",
    "proposals repeated",
    "recovered",
    "refused change",
    "regained",
    "requests held by a cut",
    "requests that had to wait",
    "sessions taken up",
    "slow networks",
    "snapshots of the log",
    "splits",
    "storage errors",
    "suspected",
    "switched",
    "synced",
    "tokens shown",
    "told busy",
    "told of the end",
    "told refused",
    "told that nobody serves it",
    "told timed out",
    "told unreachable",
    "TTLs of ten seconds and more",
    "unseen by clients",
    "void entry",
    "vouched",
    "ways between client and node cut",
    "whole listings",
    "worker pauses",
    "workers isolated",
    "workers that do by nothing new",
    "writes refused by the fence",
];

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
    if count >= WHOLE {
        let must = MUST_REACH.iter().chain(&cluster::CASES);
        let missed: Vec<_> = must.filter(|what| !reached.contains_key(*what)).collect();
        assert!(missed.is_empty(), "never reached: {missed:?}");
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

/// Runs a seed with a bug: how it was noticed, be it that a promise broke or an invariant of the
/// program's own.
fn noticed(bug: Bug, seed: u64) -> Option<String> {
    let run = std::panic::catch_unwind(|| run::run(seed, bug, false).violation);
    match run {
        Ok(violation) => violation.map(|violation| violation.to_string()),
        Err(_) => Some("it panicked".to_owned()),
    }
}

/// `SIM_SEEDS=2000` looks for the first seed of each, `SIM_MUTANT=OpTwice` for that of one.
#[test]
fn seeded_bugs_are_noticed() {
    let only = std::env::var("SIM_MUTANT").ok();
    let (first, count) = (number("SIM_SEED", 0), number("SIM_SEEDS", 0));
    let mut alive = Vec::new();
    for (name, bug, known) in mutants::ALL {
        if only.as_ref().is_some_and(|only| only != name) {
            continue;
        }
        let seeds = match known {
            _ if count > 0 => first..first + count,
            Some(known) => known..known + 1,
            None => continue,
        };
        let begun = Instant::now();
        match seeds.into_iter().find_map(|seed| Some((seed, noticed(bug, seed)?))) {
            Some((seed, why)) => {
                println!("{name:26} {seed:>5} {}", why.chars().take(120).collect::<String>());
            }
            None => {
                println!("{name:26} alive, {:.0?}", begun.elapsed());
                alive.push(name);
            }
        }
    }
    assert!(alive.is_empty(), "not noticed: {alive:?}");
}
