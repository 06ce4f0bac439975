//! Whole clusters of control planes, over the log model and a network that loses, delays, doubles
//! and reorders, with clocks that run wrong: seeded, and looked at while they run.
//!
//! `SIM_SEED=7` runs one seed alone, `SIM_SEEDS=2000` that many.

mod checks;
mod faults;
mod host;
mod users;
mod workers;
mod world;

use super::{Mutant, Status};
use crate::testing::Seen;
use std::time::Duration;
use world::{Setup, World};

/// Seeds of a run of the tests.
const SEEDS: u64 = 32;

/// How many seeds have to do for each seeded bug.
const SEEDS_TO_KILL: u64 = 100;

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|number| number.parse().expect("a number"))
}

#[test]
fn clean_runs_keep_every_rule_and_reach_everything() {
    let seeds = match number("SIM_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("SIM_SEEDS").unwrap_or(SEEDS),
    };
    let is_whole = seeds.end - seeds.start >= SEEDS;
    let mut seen = Seen::new();
    for seed in seeds {
        let run = faults::run(seed, None).unwrap_or_else(|broken| {
            panic!("{broken}\nagain: SIM_SEED={seed} cargo test -p lockring-control clean_runs")
        });
        run.into_iter().for_each(|(what, times)| *seen.entry(what).or_default() += times);
    }
    let missing: Vec<_> = REACHED.iter().filter(|what| !seen.contains_key(*what)).collect();
    assert!(!is_whole || missing.is_empty(), "never reached: {missing:?} of {seen:#?}");
}

#[test]
fn equal_seeds_make_equal_runs() {
    for seed in [2, 5] {
        assert_eq!(faults::run(seed, None), faults::run(seed, None));
    }
}

#[test]
fn seeded_bugs_are_noticed() {
    for mutant in [
        Mutant::CompareIgnored,
        Mutant::LearnerSurvives,
        Mutant::LearnerPromoted,
        Mutant::BootIgnored,
        Mutant::BootIsAnEnd,
        Mutant::GraceWithoutLease,
        Mutant::RecoverRepeatsVersions,
        Mutant::LoweredInOneEntry,
        Mutant::LeaseWithoutRound,
        Mutant::LeaseBeforeApplied,
        Mutant::LeaseBeforeOwnTerm,
        Mutant::TakeoverInLease,
        Mutant::HalfIsQuorum,
    ] {
        let kills = (0..SEEDS_TO_KILL).any(|seed| faults::run(seed, Some(mutant)).is_err());
        assert!(kills, "{mutant:?} lives");
    }
}

/// DESIGN 8: the cells of a node that crashed have another owner within half a second, or within
/// 1.5 s if it led the log, which then has to elect first.
#[test]
fn a_crash_is_answered_in_time() {
    for (seed, of_leader) in (0..16).zip([false, true].into_iter().cycle()) {
        let mut world = World::new(seed, Setup { nodes: 3, mutant: None });
        let run = |world: &mut World, ms| {
            let until = world.now.after(Duration::from_millis(ms));
            world.run_until(until).unwrap_or_else(|broken| panic!("seed {seed}: {broken}"));
        };
        run(&mut world, 10_000);
        let leader = world.log.leader().expect("somebody leads");
        let other = *world.hosts.keys().find(|&&node| node != leader).expect("there are three");
        let victim = if of_leader { leader } else { other };
        world.ends(victim);
        run(&mut world, if of_leader { 1500 } else { 500 });
        let state = world.log.state();
        let known = state.nodes()[&victim].status;
        assert_eq!(known, Status::Down, "seed {seed}");
        assert!(state.cells().all(|(_, cell)| cell.owner.node != victim && cell.loss.is_none()));
    }
}

/// What a set of runs has to have reached, lest it proves nothing.
const REACHED: [&str; 54] = [
    "TTL refused",
    "all down",
    "attached",
    "bumped",
    "cloned",
    "crash",
    "dropped",
    "election",
    "entry: blank",
    "entry: boot",
    "entry: cells",
    "entry: down",
    "entry: intend TTL",
    "entry: join",
    "entry: leave",
    "entry: lower TTL",
    "entry: policy",
    "entry: raise TTL",
    "entry: recover",
    "entry: remove",
    "entry: up",
    "entry: weight",
    "false suspicion",
    "isolated",
    "late commit after a failure report",
    "late loop",
    "learner of an old epoch cleared",
    "lease grew",
    "log lags",
    "log lost",
    "longest TTL lowered",
    "lost cell",
    "new ring version",
    "promotion",
    "proposal lost",
    "proposal repeated",
    "recovered",
    "refused change",
    "regained",
    "restart",
    "session",
    "silent copy",
    "snapshot",
    "split",
    "stale owner",
    "stop",
    "storage error",
    "stuck learner",
    "suspected",
    "switched",
    "synced",
    "taken over",
    "vouched",
    "workers stuck",
];
