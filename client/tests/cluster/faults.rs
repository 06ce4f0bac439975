//! What goes wrong in a run.

use crate::agenda::NodeEvent;
use crate::cluster::Cluster;
use crate::hub::{Event, Hub};
use crate::ring::node_of;
use crate::scenes;
use crate::stage::Stage;
use lockring_control::cluster::{Entry, Replicas};
use lockring_core::Time;
use lockring_core::testing::{End, Rng};
use lockring_ring::NodeId;
use std::ops::Range;
use std::time::Duration;

/// By their numbers, those that may join included.
pub const ALL_NODES: Range<usize> = 0..40;

/// A kind of fault: how many of a thousand are of it, and what happens.
type Kind = (u64, fn(&mut Stage));

const KINDS: [Kind; 30] = [
    (70, |stage| {
        let whom = any_client(stage);
        stage.clients[whom].cut(&mut stage.hub);
    }),
    (15, Stage::cut_all),
    (50, cut_off_from_one),
    (15, cut_off_from_all),
    (35, cut_a_way),
    (35, pause_client),
    (35, kill_client),
    (15, |stage| {
        let whom = any_client(stage);
        stage.leave(whom);
    }),
    (70, Stage::force_one),
    (65, crash),
    (65, pause),
    (35, isolate),
    (18, split),
    (35, cut_pair),
    (35, |stage| {
        stage.hub.reach("all connections of a node to peers broken");
        let node = any_host(stage);
        stage.cluster.break_wires_of(&mut stage.hub, node);
    }),
    (70, wish),
    (18, alone_with),
    (35, do_by_nothing_new),
    (5, |stage| {
        let down = millis(&mut stage.hub, 50, 3000);
        restart_all(stage, down);
    }),
    (18, |stage| {
        stage.hub.reach("slow networks");
        let (until, by) = (soon(&mut stage.hub, 50, 1500), millis(&mut stage.hub, 1, 200));
        stage.hub.net.slow_down(until, by);
    }),
    (35, |stage| {
        let node = any_host(stage);
        stage.cluster.is_gone_for_good(&mut stage.hub, node);
    }),
    (18, |stage| {
        stage.hub.reach("wall clock jumps");
        let (node, by) = (any_host(stage), millis(&mut stage.hub, 100, 20_000));
        stage.cluster.wall_clock_jumps(node, by);
    }),
    (7, |stage| stage.cluster.log_is_lost(&mut stage.hub)),
    (25, |stage| stage.cluster.wind_any_counter(&mut stage.hub)),
    (33, |stage| stage.cluster.elect_any(&mut stage.hub)),
    (16, break_store),
    (16, |stage| {
        stage.cluster.log.take_snapshot();
    }),
    (8, |stage| stage.cluster.slow_until = soon(&mut stage.hub, 100, 3000)),
    (25, lag),
    (30, |stage| {
        let node = any_host(stage);
        stage.hub.plan(stage.hub.now, Event::Node(NodeEvent::Stops { node }));
    }),
];

/// The same, of several that belong together.
const SCENES: [Kind; 7] = [
    (8, scenes::memory_is_lost),
    (8, scenes::switched_in_the_dark),
    (8, scenes::left_behind),
    (8, scenes::hears_late),
    (8, scenes::switched_to_one_that_lags),
    (8, scenes::switched_to_one_that_is_paused),
    (8, scenes::changes_in_a_grace),
];

/// How many faults of a run are of which kind.
pub struct Temper(Vec<Kind>);

impl Temper {
    /// Two runs of three have favourites, one in most of them. What takes several faults of a kind
    /// in a short time is rare where all kinds are equally frequent (swarm testing: Groce and
    /// others, 2012).
    pub fn new(rng: &mut Rng) -> Self {
        let mut kinds = [&KINDS[..], &SCENES].concat();
        let favourites = *rng.pick(&[0, 0, 1, 1, 1, 2, 4]);
        for _ in 0..favourites {
            let first = if rng.percent(50) { 0 } else { KINDS.len() as u64 };
            let kind = rng.range(first, kinds.len() as u64) as usize;
            kinds[kind].0 = 2500 / favourites;
        }
        Self(kinds)
    }

    /// Something goes wrong.
    pub fn strike(&self, stage: &mut Stage) {
        let mut at = stage.hub.rng.range(0, self.0.iter().map(|(part, _)| part).sum());
        for &(part, strike) in &self.0 {
            if at < part {
                return strike(stage);
            }
            at -= part;
        }
    }
}

pub fn millis(hub: &mut Hub, low: u64, high: u64) -> Duration {
    Duration::from_millis(hub.rng.range(low, high))
}

pub fn soon(hub: &mut Hub, low: u64, high: u64) -> Time {
    hub.now.after(millis(hub, low, high))
}

fn any_host(stage: &mut Stage) -> NodeId {
    let all: Vec<NodeId> = stage.cluster.hosts.keys().copied().collect();
    *stage.hub.rng.pick(&all)
}

fn any_client(stage: &mut Stage) -> usize {
    stage.hub.rng.range(0, stage.clients.len() as u64) as usize
}

fn cut_off_from_one(stage: &mut Stage) {
    stage.hub.reach("clients cut off from a node");
    let (whom, span) = (any_client(stage), millis(&mut stage.hub, 50, 6000));
    let node = stage.hub.ring.any_node(&mut stage.hub.rng);
    stage.clients[whom].cut_off(&mut stage.hub, node..node + 1, span);
}

fn cut_off_from_all(stage: &mut Stage) {
    stage.hub.reach("clients cut off from all nodes");
    let (whom, span) = (any_client(stage), millis(&mut stage.hub, 50, 6000));
    stage.clients[whom].cut_off(&mut stage.hub, ALL_NODES, span);
}

fn cut_a_way(stage: &mut Stage) {
    stage.hub.reach("ways between client and node cut");
    let (whom, span) = (any_client(stage), millis(&mut stage.hub, 50, 6000));
    let node = stage.hub.ring.any_node(&mut stage.hub.rng);
    let (client, node) = (End::Client(whom), End::Node(node));
    let (from, to) = if stage.hub.rng.percent(50) { (client, node) } else { (node, client) };
    stage.hub.cut_way(from, to, span);
}

fn pause_client(stage: &mut Stage) {
    stage.hub.reach("client pauses");
    let (whom, span) = (any_client(stage), millis(&mut stage.hub, 10, 4000));
    stage.clients[whom].pause(&stage.hub, span);
}

fn kill_client(stage: &mut Stage) {
    let (whom, down) = (any_client(stage), millis(&mut stage.hub, 0, 1000));
    stage.kill(whom, down);
}

fn crash(stage: &mut Stage) {
    let node = any_host(stage);
    let most = if stage.hub.rng.percent(50) { 300 } else { 6000 };
    let down = millis(&mut stage.hub, 20, most);
    crashes(stage, node, down);
}

/// A process ends, and another begins after a while.
pub fn crashes(stage: &mut Stage, node: NodeId, down: Duration) {
    let Stage { hub, cluster, .. } = stage;
    hub.reach("node crashes");
    cluster.ends(hub, node);
    hub.soon(down, Event::Node(NodeEvent::Restart { node }));
}

fn pause(stage: &mut Stage) {
    let (node, span) = (any_host(stage), millis(&mut stage.hub, 50, 5000));
    let Stage { hub, cluster, .. } = stage;
    let worker = hub.rng.percent(40).then(|| hub.rng.range(0, 4) as usize);
    hub.reach(if worker.is_some() { "worker pauses" } else { "node pauses" });
    cluster.pause(hub, node, worker, span);
}

fn do_by_nothing_new(stage: &mut Stage) {
    let (node, until) = (any_host(stage), soon(&mut stage.hub, 300, 6000));
    stage.hub.reach("workers that do by nothing new");
    stage.cluster.is_stuck(node, until);
}

fn break_store(stage: &mut Stage) {
    let node = any_host(stage);
    let Stage { hub, cluster, .. } = stage;
    hub.reach("storage errors");
    cluster.log.break_store(node);
    cluster.news(hub, node);
    let span = millis(hub, 100, 3000);
    hub.soon(span, Event::Node(NodeEvent::Mended { node }));
}

fn lag(stage: &mut Stage) {
    let Stage { hub, cluster, .. } = stage;
    hub.reach("logs that lag");
    let nodes: Vec<NodeId> = cluster.hosts.keys().copied().collect();
    for node in nodes {
        if hub.rng.percent(50) {
            let until = soon(hub, 300, 6000);
            cluster.lags.insert(node, until);
            if hub.rng.percent(50) {
                // What it has missed it is told at once.
                hub.plan(until, Event::Node(NodeEvent::Snapshot));
            }
        }
    }
}

/// Every process ends, and begins anew after a while.
pub fn restart_all(stage: &mut Stage, down: Duration) {
    let Stage { hub, cluster, .. } = stage;
    hub.reach("all down");
    let all: Vec<NodeId> = cluster.hosts.keys().copied().collect();
    for node in all {
        cluster.ends(hub, node);
        let down = down + millis(hub, 0, 100);
        hub.soon(down, Event::Node(NodeEvent::Restart { node }));
    }
}

/// An operator wants the cluster changed.
fn wish(stage: &mut Stage) {
    let node = any_host(stage);
    let Stage { hub, cluster, .. } = stage;
    match hub.rng.range(0, 5) {
        0 if cluster.hosts.len() < 7 => cluster.wants_to_join(hub),
        0..3 => {
            let state = cluster.rules.state();
            let staying = state.nodes().values().filter(|node| !node.leaving).count();
            if staying > 2 && !cluster.log.votes(node) {
                cluster.wishes.push(Entry::Leave(node));
            }
        }
        3 => {
            let weight = hub.rng.range(1, 4) as u32;
            if let Some(known) = cluster.rules.state().nodes().get(&node) {
                let revision = known.revision;
                cluster.wishes.push(Entry::Weight { node, revision, weight });
            }
        }
        _ => {
            let (now, revision) = cluster.rules.state().replicas();
            let replicas = match now {
                Replicas::None => Replicas::One,
                Replicas::One => Replicas::None,
            };
            cluster.wishes.push(Entry::Policy { replicas, revision });
        }
    }
}

/// A client hears one node alone, which may be deposed meanwhile: neither hears of that.
fn alone_with(stage: &mut Stage) {
    let node = any_host(stage);
    let Stage { hub, cluster, clients, .. } = stage;
    hub.reach("clients alone with a node that nobody hears");
    let until = soon(hub, 2000, 9000);
    let of = hub.rng.range(0, 2);
    isolate_both_ways(hub, cluster, node, until, of);
    let whom = hub.rng.range(0, clients.len() as u64) as usize;
    let span = until.since(hub.now);
    for other in hub.ring.all().into_iter().filter(|&other| other != node_of(node)) {
        clients[whom].cut_off(hub, other..other + 1, span);
    }
}

/// Nobody hears a node, or it hears nobody, or both: its control plane, its workers, or both.
fn isolate(stage: &mut Stage) {
    let node = any_host(stage);
    let Stage { hub, cluster, .. } = stage;
    let until = soon(hub, 200, 7000);
    let (deaf, mute) = *hub.rng.pick(&[(true, true), (true, true), (true, false), (false, true)]);
    let of = hub.rng.range(0, 3);
    hub.reach(["nodes isolated", "control planes isolated", "workers isolated"][of as usize]);
    let others: Vec<NodeId> = cluster.hosts.keys().copied().filter(|&it| it != node).collect();
    for other in others {
        if deaf {
            cut(hub, cluster, (other, node), until, of);
        }
        if mute {
            cut(hub, cluster, (node, other), until, of);
        }
    }
}

/// A node and all others do not hear each other: control planes (1), workers (2), or both (0).
pub fn isolate_both_ways(hub: &mut Hub, cluster: &mut Cluster, node: NodeId, until: Time, of: u64) {
    let others: Vec<NodeId> = cluster.hosts.keys().copied().filter(|&it| it != node).collect();
    for other in others {
        cut(hub, cluster, (other, node), until, of);
        cut(hub, cluster, (node, other), until, of);
    }
}

/// Cuts a way of control planes (1), of workers (2), or both (0).
fn cut(hub: &mut Hub, cluster: &mut Cluster, (from, to): (NodeId, NodeId), until: Time, of: u64) {
    if of != 2 {
        cluster.cuts.insert((from, to), until);
    }
    if of != 1 {
        let span = until.since(hub.now);
        hub.cut_way(End::Node(node_of(from)), End::Node(node_of(to)), span);
    }
}

/// Two sides do not hear each other.
fn split(stage: &mut Stage) {
    let Stage { hub, cluster, .. } = stage;
    hub.reach("splits");
    let until = soon(hub, 500, 7000);
    let of = hub.rng.range(0, 3);
    let nodes: Vec<NodeId> = cluster.hosts.keys().copied().collect();
    let left: Vec<bool> = nodes.iter().map(|_| hub.rng.percent(50)).collect();
    for (&one, is_left) in nodes.iter().zip(&left) {
        for (&other, other_is_left) in nodes.iter().zip(&left) {
            if is_left != other_is_left {
                cut(hub, cluster, (one, other), until, of);
            }
        }
    }
}

/// The owner and the backup of a cell do not hear each other, or nobody else hears them.
fn cut_pair(stage: &mut Stage) {
    let Stage { hub, cluster, .. } = stage;
    let pairs: Vec<(NodeId, NodeId)> = cluster
        .rules
        .state()
        .cells()
        .filter_map(|(_, cell)| Some((cell.owner.node, cell.backups.first()?.node)))
        .collect();
    if pairs.is_empty() {
        return;
    }
    let (owner, backup) = *hub.rng.pick(&pairs);
    let until = soon(hub, 200, 7000);
    let of = hub.rng.range(0, 3);
    if hub.rng.percent(50) {
        hub.reach("owner and backup apart");
        cut(hub, cluster, (owner, backup), until, of);
        cut(hub, cluster, (backup, owner), until, of);
        return;
    }
    hub.reach("owner and backup alone together");
    let others: Vec<NodeId> =
        cluster.hosts.keys().copied().filter(|it| ![owner, backup].contains(it)).collect();
    for other in others {
        for one in [owner, backup] {
            cut(hub, cluster, (one, other), until, of);
            cut(hub, cluster, (other, one), until, of);
        }
    }
}
