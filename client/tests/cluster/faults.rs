//! What goes wrong in a run.

use crate::agenda::NodeEvent;
use crate::cluster::Cluster;
use crate::hub::{Event, Hub};
use crate::ring::node_of;
use crate::run::Run;
use crate::stage::Stage;
use lockring_control::cluster::{Entry, Replicas};
use lockring_core::Time;
use lockring_core::testing::End;
use lockring_ring::NodeId;
use std::time::Duration;

/// Something goes wrong.
pub fn strike(run: &mut Run) {
    match run.stage.hub.rng.range(0, 100) {
        0..40 => strike_clients(&mut run.stage),
        40..90 => strike_nodes(&mut run.stage),
        _ => strike_log(&mut run.stage),
    }
}

fn millis(hub: &mut Hub, low: u64, high: u64) -> Duration {
    Duration::from_millis(hub.rng.range(low, high))
}

fn strike_clients(stage: &mut Stage) {
    let count = stage.clients.len() as u64;
    let whom = stage.hub.rng.range(0, count) as usize;
    let node = stage.hub.ring.any_node(&mut stage.hub.rng);
    let span = millis(&mut stage.hub, 50, 6000);
    match stage.hub.rng.range(0, 20) {
        0..4 => stage.clients[whom].cut(&mut stage.hub),
        4 => stage.cut_all(),
        5..8 => {
            stage.hub.reach("clients cut off from a node");
            stage.clients[whom].cut_off(&mut stage.hub, node..node + 1, span);
        }
        8 => {
            stage.hub.reach("clients cut off from all nodes");
            stage.clients[whom].cut_off(&mut stage.hub, 0..node_of(NodeId(40)), span);
        }
        9 | 10 => {
            stage.hub.reach("ways between client and node cut");
            let (client, node) = (End::Client(whom), End::Node(node));
            let (from, to) =
                if stage.hub.rng.percent(50) { (client, node) } else { (node, client) };
            stage.hub.cut_way(from, to, span);
        }
        11..13 => {
            stage.hub.reach("client pauses");
            let span = millis(&mut stage.hub, 10, 4000);
            stage.clients[whom].pause(&stage.hub, span);
        }
        13 | 14 => {
            let down = millis(&mut stage.hub, 0, 1000);
            stage.kill(whom, down);
        }
        15 => stage.leave(whom),
        _ => stage.force_one(),
    }
}

fn any_host(stage: &mut Stage) -> NodeId {
    let all: Vec<NodeId> = stage.cluster.hosts.keys().copied().collect();
    *stage.hub.rng.pick(&all)
}

fn soon(hub: &mut Hub, low: u64, high: u64) -> Time {
    hub.now.after(millis(hub, low, high))
}

fn strike_nodes(stage: &mut Stage) {
    let node = any_host(stage);
    let Stage { hub, cluster, .. } = stage;
    match hub.rng.range(0, 28) {
        27 if hub.rng.percent(40) => cluster.log_is_lost(hub),
        0..4 => {
            hub.reach("node crashes");
            cluster.ends(hub, node);
            let most = if hub.rng.percent(50) { 300 } else { 6000 };
            let down = millis(hub, 20, most);
            hub.soon(down, Event::Node(NodeEvent::Restart { node }));
        }
        4..8 => {
            let span = millis(hub, 50, 5000);
            let worker = hub.rng.percent(40).then(|| hub.rng.range(0, 4) as usize);
            hub.reach(if worker.is_some() { "worker pauses" } else { "node pauses" });
            cluster.pause(hub, node, worker, span);
        }
        8..10 => isolate(hub, cluster, node),
        10 => split(hub, cluster),
        11..13 => cut_pair(stage),
        13 | 14 => {
            hub.reach("all connections of a node to peers broken");
            cluster.break_wires_of(hub, node);
        }
        15..19 => wish(hub, cluster, node),
        19 => alone_with(stage, node),
        20 | 21 => {
            let until = soon(hub, 300, 6000);
            hub.reach("workers that do by nothing new");
            let host = cluster.hosts.get_mut(&node);
            if let Some(process) = host.and_then(|host| host.process.as_mut()) {
                process.stuck_until = until;
            }
        }
        24 | 25 => cluster.is_gone_for_good(hub, node),
        26 => {
            hub.reach("wall clock jumps");
            let by = millis(hub, 100, 20_000);
            cluster.wall_clock_jumps(node, by);
        }
        22 if hub.rng.percent(30) => {
            let down = millis(hub, 50, 3000);
            restart_all(stage, down);
        }
        23 => {
            hub.reach("slow networks");
            let (until, by) = (soon(hub, 50, 1500), millis(hub, 1, 200));
            hub.net.slow_down(until, by);
        }
        _ => cluster.wind_any_counter(hub),
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
fn wish(hub: &mut Hub, cluster: &mut Cluster, node: NodeId) {
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
fn alone_with(stage: &mut Stage, node: NodeId) {
    let Stage { hub, cluster, clients, .. } = stage;
    hub.reach("clients alone with a node that nobody hears");
    let until = soon(hub, 2000, 9000);
    let of = hub.rng.range(0, 2);
    let others: Vec<NodeId> = cluster.hosts.keys().copied().filter(|&it| it != node).collect();
    for &other in &others {
        cut(hub, cluster, (other, node), until, of);
        cut(hub, cluster, (node, other), until, of);
    }
    let whom = hub.rng.range(0, clients.len() as u64) as usize;
    let span = until.since(hub.now);
    for other in others {
        let other = node_of(other);
        clients[whom].cut_off(hub, other..other + 1, span);
    }
}

/// Nobody hears a node, or it hears nobody, or both: its control plane, its workers, or both.
fn isolate(hub: &mut Hub, cluster: &mut Cluster, node: NodeId) {
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
fn split(hub: &mut Hub, cluster: &mut Cluster) {
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

fn strike_log(stage: &mut Stage) {
    let node = any_host(stage);
    let Stage { hub, cluster, .. } = stage;
    match hub.rng.range(0, 12) {
        0..4 => cluster.elect_any(hub),
        4 | 5 => {
            hub.reach("storage errors");
            cluster.log.break_store(node);
            cluster.news(hub, node);
            let span = millis(hub, 100, 3000);
            hub.soon(span, Event::Node(NodeEvent::Mended { node }));
        }
        6 | 7 => {
            cluster.log.take_snapshot();
        }
        8 => cluster.slow_until = soon(hub, 100, 3000),
        _ => {
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
    }
}
