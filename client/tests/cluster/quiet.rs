//! Runs in which one thing goes wrong and nothing else: what the design says of a crash, a restart
//! and a move, measured in simulated time.

use crate::faults::restart_all;
use crate::run::{Bug, Run};
use lockring_core::Time;
use lockring_ring::{CellId, NodeId};
use std::time::Duration;

const MILLI: Duration = Duration::from_millis(1);

/// What is counted of holds that somebody has lost.
const LOST: [&str; 3] = ["holds lapsed", "holds found lost", "holds lost with the session"];

/// Three nodes at rest and clients at work, whose sessions have these TTLs.
fn at_work(seed: u64, ttls: &'static [u64]) -> Run {
    let clients = 3 + seed as usize % 4;
    let mut run = Run::of(seed, Bug::default(), (3, clients, Some(ttls)), false);
    run.stage.cluster.heal(&mut run.stage.hub);
    // The lowest TTL has run out often, and every cell has its copy.
    run.stage.for_span(Duration::from_secs(8));
    run.is_sound();
    let unsettled = run.stage.cluster.is_at_rest(&run.stage.hub);
    assert_eq!(unsettled, Ok(()), "seed {seed}");
    run
}

fn lost(run: &Run) -> u64 {
    LOST.iter().filter_map(|what| run.stage.hub.reached.get(what)).sum()
}

/// A node that leads the log, or one that does not.
fn victim(run: &Run, leads: bool) -> NodeId {
    let leader = run.stage.cluster.log.leader().expect("somebody leads");
    let mut nodes = run.stage.cluster.hosts.keys();
    *nodes.find(|&&node| (node == leader) == leads).expect("there are three")
}

fn cells_of(run: &Run, node: NodeId) -> Vec<CellId> {
    let cells = run.stage.cluster.rules.state().cells();
    let has = |cell: &lockring_control::cluster::Cell| {
        cell.owner.node == node || cell.backups.iter().any(|backup| backup.node == node)
    };
    cells.filter(|(_, cell)| has(cell)).map(|(id, _)| id).collect()
}

/// How long after a time each cell had its next grant, of those that had one soon.
fn pauses(run: &mut Run, cells: &[CellId], from: Time) -> Vec<Duration> {
    let mut first: Vec<Option<Duration>> = vec![None; cells.len()];
    for _ in 0..3000 {
        run.stage.for_span(MILLI);
        for (&cell, first) in cells.iter().zip(&mut first) {
            let granted = run.stage.cluster.granted_at(cell).filter(|&at| at > from);
            *first = first.or(granted.map(|at| at.since(from)));
        }
    }
    first.into_iter().flatten().collect()
}

/// What the next grants of a node's cells took before it crashed and after, and how many holds were
/// lost.
fn crash(seed: u64, leads: bool, ttls: &'static [u64]) -> ([Vec<Duration>; 2], u64) {
    let mut run = at_work(seed, ttls);
    let (node, before) = (victim(&run, leads), lost(&run));
    let cells = cells_of(&run, node);
    let from = run.stage.hub.now;
    let without = pauses(&mut run, &cells, from);
    let from = run.stage.hub.now;
    run.stage.cluster.ends(&mut run.stage.hub, node);
    let with = pauses(&mut run, &cells, from);
    run.stage.for_span(Duration::from_secs(10));
    run.is_sound();
    ([without, with], lost(&run) - before)
}

/// DESIGN 8: after a crash the first grant on the dead node's cells comes within 0.5 s (median), or
/// 1.5 s if it led the log too, beside what the next grant takes anyway as somebody has to ask.
#[test]
fn a_crash_takes_little_time() {
    for leads in [false, true] {
        let (mut without, mut with) = (Vec::new(), Vec::new());
        for seed in 0..8 {
            let ([before, after], _) = crash(seed, leads, &[2000, 3000]);
            without.extend(before);
            with.extend(after);
        }
        let [(median, all), (median_before, _)] = [with, without].map(|mut pauses| {
            pauses.sort();
            (pauses[pauses.len() / 2], pauses.len())
        });
        println!(
            "leads: {leads}: {median:.0?} in {all} cells, without a crash {median_before:.0?}"
        );
        let allowed = Duration::from_millis(if leads { 1500 } else { 500 });
        assert!(median <= allowed + median_before, "{median:?}, {median_before:?} before");
    }
}

/// DESIGN 8: no hold is lost whose session has a TTL of 2 s or more, 5 s if the node led the log.
#[test]
fn a_crash_loses_no_hold() {
    for seed in 0..8 {
        assert_eq!(crash(seed, false, &[2000, 3000]).1, 0, "seed {seed}: holds were lost");
        assert_eq!(crash(seed, true, &[5000, 10_000]).1, 0, "seed {seed}: holds were lost");
    }
}

/// DESIGN 8: after a restart of everything at once, what live clients hold comes back by them.
#[test]
fn holds_survive_a_restart_of_everything() {
    for seed in 0..8 {
        let mut run = at_work(seed, &[10_000, 20_000]);
        let before = lost(&run);
        restart_all(&mut run.stage, Duration::from_millis(300));
        run.stage.for_span(Duration::from_secs(40));
        run.is_sound();
        assert_eq!(lost(&run), before, "seed {seed}: holds were lost");
        let reclaimed: u64 =
            run.stage.cluster.machines().map(|(_, machine)| machine.stats().reclaimed).sum();
        assert!(reclaimed > 0, "seed {seed}: nothing was reclaimed");
    }
}

/// DESIGN 8: clients see no error of joins and leaves, and no hold is lost.
#[test]
fn nodes_come_and_go_and_nobody_loses_a_hold() {
    for seed in 0..8 {
        let mut run = at_work(seed, &[2000, 3000]);
        let before = lost(&run);
        let switched = run.stage.cluster.rules.seen.get("switched").copied().unwrap_or(0);
        run.stage.cluster.wants_to_join(&mut run.stage.hub);
        run.stage.for_span(Duration::from_secs(10));
        let leaver = victim(&run, false);
        run.stage.cluster.leaves(leaver);
        run.stage.for_span(Duration::from_secs(15));
        run.is_sound();
        assert_eq!(lost(&run), before, "seed {seed}: holds were lost");
        let now = run.stage.cluster.rules.seen.get("switched").copied().unwrap_or(0);
        assert!(now > switched, "seed {seed}: no cell was given away");
    }
}
