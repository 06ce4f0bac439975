//! The seeded simulator of whole clusters: control planes over the model of a log, workers with
//! copies of each other's cells, and the real sessions of clients, over a network that breaks and
//! is cut, clocks that run wrong, pauses and kills. Clients, keys and network are those of
//! `client/tests/sim`.
//!
//! ```text
//! cargo test -p lockring-client --test cluster                              all of it
//! SIM_SEEDS=500 cargo test -p lockring-client --test cluster clean          a longer clean run
//! SIM_SEED=7 SIM_SEEDS=1 SIM_TRACE=1 cargo test ... --nocapture clean       what a seed does
//! SIM_SHRINK=7 cargo test ... --nocapture shrunk                            the least that fails
//! SIM_REPORTS=target/seeds SIM_SEEDS=50000 cargo test ... --nocapture clean in slices
//! ```
//!
//! With `SIM_REPORTS` the report of each slice of 100 seeds is kept in that folder. Slices that
//! have one are not run again: what was stopped goes on, processes with other `SIM_SEED`s can share
//! the folder, and each prints what its seeds came to, whoever has run them. `SIM_FAULTS=3,7`,
//! `SIM_CLIENTS` and `SIM_NODES` leave things out of a seed, as the least that fails is printed.

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
mod scenes;
mod shrink;
mod slices;
#[path = "../sim/stage.rs"]
mod stage;
#[path = "../sim/way.rs"]
mod way;
#[path = "../sim/workload.rs"]
mod workload;

use run::{Bug, Excerpt};
use slices::{Reports, SLICE, Tally};
use std::path::Path;
use std::time::Instant;

/// Seeds of the clean run.
const CLEAN_SEEDS: u64 = 100;

/// So many must reach everything.
const WHOLE: u64 = 100;

/// What a set of runs must have reached beside the cases: a promise that was never at stake was not
/// kept.
const MUST_REACH: [&str; 119] = [
    "all connections of a node to peers broken",
    "answers held by a cut",
    "answers to what has ended meanwhile",
    "answers to what was undone",
    "attached",
    "broken connections",
    "broken connections of peers",
    "cancels",
    "cells lost whose holders have bad connections",
    "cells switched to workers that do by nothing new",
    "cells switched while owner and holder are apart",
    "cells taken over",
    "claims at another worker",
    "client crashes",
    "client pauses",
    "clients alone with a node that nobody hears",
    "clients alone with an owner that only its copies hear",
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
    "entries taken in slices",
    "entry: blank",
    "entry: boot",
    "entry: cells",
    "entry: down",
    "entry: join",
    "entry: leave",
    "entry: policy",
    "entry: remove",
    "entry: stopped",
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
    "holders cut off from cells that are lost",
    "holders that hear late of a switch",
    "cells switched to workers that are paused",
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
    "logs lost",
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
    "stops that the log has heard of",
    "stops that the log has not heard of",
    "stops with nothing held",
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
    "wall clock jumps",
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

/// What of a seed is to be run.
fn excerpt(seed: u64) -> Excerpt {
    let whole = Excerpt::whole(seed);
    let faults = std::env::var("SIM_FAULTS").ok().map(|text| {
        let number = |text: &str| text.parse().expect("SIM_FAULTS is numbers between commas");
        text.split(',').filter(|text| !text.is_empty()).map(number).collect()
    });
    Excerpt {
        faults: faults.unwrap_or(whole.faults),
        clients: number("SIM_CLIENTS", whole.clients as u64) as usize,
        nodes: number("SIM_NODES", whole.nodes as u64) as usize,
    }
}

/// Runs these seeds, to their end or to the first that breaks a promise.
fn run_all(first: u64, count: u64, stops: bool) -> Tally {
    let verbose = std::env::var_os("SIM_TRACE").is_some();
    let start = Instant::now();
    let mut tally = Tally::default();
    for seed in first..first + count {
        let report = run::run_excerpt(seed, Bug::default(), &excerpt(seed), verbose);
        tally.seeds += 1;
        tally.time += report.time.since(lockring_core::Time(0));
        for (what, n) in report.reached {
            *tally.reached.entry(what.to_owned()).or_default() += n;
        }
        if let Some(violation) = report.violation {
            tally.broken.insert(seed, violation.to_string());
            if stops {
                break;
            }
        }
    }
    tally.spent = start.elapsed();
    tally
}

/// Runs these seeds, but for slices whose reports are there.
fn run_slices(reports: &Reports, first: u64, count: u64) -> Tally {
    assert!(first % SLICE + count % SLICE == 0, "slices have {SLICE} seeds");
    let mut all = Tally::default();
    for first in (first..first + count).step_by(SLICE as usize) {
        let tally = reports.get(first).unwrap_or_else(|| {
            let tally = run_all(first, SLICE, false);
            reports.put(first, &tally);
            tally
        });
        // At once: a long set of runs may be looked at, or ended, before its end.
        tell(&tally);
        all.add(tally);
    }
    all
}

/// Says which promises were broken, and how to look at that.
fn tell(tally: &Tally) {
    let of_tests = "cargo test -p lockring-client --test cluster -- --nocapture";
    for (seed, what) in &tally.broken {
        println!("seed {seed} broke {what}");
        println!("  replay: SIM_SEED={seed} SIM_SEEDS=1 SIM_TRACE=1 {of_tests} clean");
        println!("  shrink: SIM_SHRINK={seed} {of_tests} shrunk");
    }
}

#[test]
fn clean_runs_keep_every_promise() {
    let (first, count) = (number("SIM_SEED", 0), number("SIM_SEEDS", CLEAN_SEEDS));
    let tally = match std::env::var_os("SIM_REPORTS") {
        Some(folder) => run_slices(&Reports::new(Path::new(&folder)), first, count),
        None => run_all(first, count, true),
    };
    println!("{tally}");
    tell(&tally);
    assert!(tally.broken.is_empty(), "promises were broken");
    if count >= WHOLE {
        let must = MUST_REACH.iter().chain(&cluster::CASES);
        let missed: Vec<_> = must.filter(|what| !tally.reached.contains_key(**what)).collect();
        assert!(missed.is_empty(), "never reached: {missed:?}");
    }
}

/// Which bug is shrunk if none is named.
const USUAL: &str = "DeposedForgets";

/// `SIM_SHRINK=7` shrinks that seed, `SIM_MUTANT=OpTwice` beside it one with a bug.
#[test]
fn a_failing_seed_is_shrunk() {
    let seed = std::env::var_os("SIM_SHRINK").map(|_| number("SIM_SHRINK", 0));
    let only = std::env::var("SIM_MUTANT").ok();
    let of_name = |name: &str| mutants::ALL.iter().find(|(its, ..)| *its == name);
    let bug = match (seed, &only) {
        (Some(_), None) => Bug::default(),
        (_, name) => {
            let name = name.as_deref().unwrap_or(USUAL);
            of_name(name).unwrap_or_else(|| panic!("no bug is called {name}")).1
        }
    };
    let seed = seed.unwrap_or_else(|| of_name(USUAL).and_then(|it| it.2).expect("a seed"));
    let whole = Excerpt::whole(seed);
    let Some((least, broken, runs)) = shrink::shrink(seed, bug) else {
        panic!("seed {seed} breaks nothing");
    };
    let Excerpt { faults, clients, nodes } = &least;
    let listed: Vec<String> = faults.iter().map(u64::to_string).collect();
    println!(
        "{} after {runs} runs\nSIM_SEED={seed} SIM_SEEDS=1 SIM_FAULTS={} SIM_CLIENTS={clients} \
         SIM_NODES={nodes}",
        broken.what,
        listed.join(",")
    );
    assert!(faults.len() < whole.faults.len() / 2 && *clients <= whole.clients);
    assert!(*nodes <= whole.nodes);
}

#[test]
fn equal_seeds_make_equal_traces() {
    for seed in 0..3 {
        let one = run::run(seed, Bug::default(), false);
        let two = run::run(seed, Bug::default(), false);
        assert_eq!((one.trace, one.reached), (two.trace, two.reached), "seed {seed}");
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
        match seeds
            .into_iter()
            .find_map(|seed| Some((seed, shrink::breaks(seed, bug, &Excerpt::whole(seed))?)))
        {
            Some((seed, broken)) => {
                println!(
                    "{name:26} {seed:>5} {}",
                    broken.what.chars().take(120).collect::<String>()
                );
            }
            None => {
                println!("{name:26} alive, {:.0?}", begun.elapsed());
                alive.push(name);
            }
        }
    }
    assert!(alive.is_empty(), "not noticed: {alive:?}");
}
