//! Faults that belong together: each makes a moment frequent that single ones rarely make, around a
//! hold that somebody else waits for, if there is one.

use crate::agenda::NodeEvent;
use crate::cluster::cell_of;
use crate::faults::{ALL_NODES, crashes, isolate_both_ways, millis, soon};
use crate::hub::Event;
use crate::ring::node_of;
use crate::stage::Stage;
use lockring_client::session::{Place, Query};
use lockring_control::cluster::{CellChange, Entry, Step};
use lockring_core::testing::{End, Hold};
use lockring_ring::{CellId, NodeId};
use std::time::Duration;

/// A client that holds something, and who has its cell.
struct Scene {
    client: usize,
    hold: Hold,
    cell: CellId,
    owner: NodeId,
    backup: NodeId,
}

impl Scene {
    /// Of a cell that has a backup, in no grace.
    fn any(stage: &mut Stage) -> Option<Self> {
        let Stage { hub, keys, cluster, clients } = stage;
        let state = cluster.rules.state();
        let of_hold = |hold: &Hold| {
            let its = |client: &crate::client::Client| client.session == hold.session;
            let client = clients.iter().position(its)?;
            let cell = cell_of(keys, hold.key);
            let known = state.cell(cell).filter(|known| known.grace.is_none())?;
            let backup = known.backups.first()?.node;
            Some(Self { client, hold: *hold, cell, owner: known.owner.node, backup })
        };
        let holds = hub.recorder.book().holds.values().filter(|hold| !hold.giving);
        let scenes: Vec<Self> = holds.filter_map(of_hold).collect();
        // What nobody else asks for is at nobody's risk.
        let is_wanted = |scene: &Self| {
            let others = clients.iter().filter(|client| client.session != scene.hold.session);
            let mut claims = others.flat_map(|client| client.claims.values());
            claims.any(|claim| claim.key == scene.hold.key)
        };
        let (wanted, others): (Vec<Self>, Vec<Self>) = scenes.into_iter().partition(is_wanted);
        let mut all = if wanted.is_empty() { others } else { wanted };
        (!all.is_empty()).then(|| {
            let at = hub.rng.range(0, all.len() as u64) as usize;
            all.swap_remove(at)
        })
    }

    /// The backup is to be the owner.
    fn switch(&self, stage: &mut Stage) {
        let known = stage.cluster.rules.state().cell(self.cell);
        let revision = known.expect("it was looked up").revision;
        let step = Step::Switch(self.backup);
        let entry = Entry::Cells(vec![CellChange { cell: self.cell, revision, step }]);
        stage.hub.soon(Duration::ZERO, Event::Node(NodeEvent::Asked { entry }));
    }

    /// The client and the owner do not hear each other.
    fn cut_from_owner(&self, stage: &mut Stage, span: Duration) {
        let node = node_of(self.owner);
        stage.clients[self.client].cut_off(&mut stage.hub, node..node + 1, span);
    }

    fn ttl(&self, stage: &Stage) -> u64 {
        stage.clients[self.client].ttl.as_millis() as u64
    }
}

/// Nobody has a cell any more whose holder is cut off and may come back in time. Somebody may have
/// ended the hold before, which its holder has not heard.
pub fn memory_is_lost(stage: &mut Stage) {
    let Some(scene) = Scene::any(stage) else { return };
    stage.hub.reach("holders cut off from cells that are lost");
    let most = (scene.ttl(stage) * 5 / 4).min(12_000);
    let span = millis(&mut stage.hub, most / 10, most);
    stage.clients[scene.client].cut_off(&mut stage.hub, ALL_NODES, span);
    let lasts = millis(&mut stage.hub, 0, most / 4 + 1);
    if stage.hub.rng.percent(50) && scene.client != 0 {
        let key = scene.hold.key;
        let namespace = stage.keys.space_name(key).to_owned();
        let place = Place { namespace, key: stage.keys.bytes(key).to_vec() };
        let operator = &mut stage.clients[0];
        if !operator.down && !operator.is_paused(&stage.hub) {
            operator.query(&mut stage.hub, &stage.cluster, Query::Force(place));
        }
    }
    for node in [scene.owner, scene.backup] {
        let down = lasts + millis(&mut stage.hub, 20, 300);
        stage.hub.soon(lasts, Event::Node(NodeEvent::Ends { node }));
        stage.hub.soon(down, Event::Node(NodeEvent::Restart { node }));
    }
}

/// The owner of a cell has lost it to its backup and does not know, neither does it hear from a
/// holder whose time is up soon. Then the new owner ends.
pub fn switched_in_the_dark(stage: &mut Stage) {
    let Some(scene) = Scene::any(stage) else { return };
    stage.hub.reach("cells switched while owner and holder are apart");
    let ttl = scene.ttl(stage).min(8000);
    let span = Duration::from_millis(ttl * 2);
    scene.cut_from_owner(stage, span);
    let until = soon(&mut stage.hub, ttl / 2, ttl * 3 / 2);
    stage.cluster.lags.insert(scene.owner, until);
    scene.switch(stage);
    let node = scene.backup;
    let lasts = millis(&mut stage.hub, ttl / 2, ttl * 7 / 4);
    stage.hub.soon(lasts, Event::Node(NodeEvent::Ends { node }));
    let down = lasts + millis(&mut stage.hub, 100, 6000);
    stage.hub.soon(down, Event::Node(NodeEvent::Restart { node }));
}

/// The log does not hear an owner and gives its cells to others, of which it and somebody else do
/// not hear; its copies do hear it.
pub fn left_behind(stage: &mut Stage) {
    let Some(scene) = Scene::any(stage) else { return };
    stage.hub.reach("clients alone with an owner that only its copies hear");
    let until = soon(&mut stage.hub, 1500, 4000);
    isolate_both_ways(&mut stage.hub, &mut stage.cluster, scene.owner, until, 1);
    let (owner, span) = (node_of(scene.owner), until.since(stage.hub.now));
    let is_deaf = stage.hub.rng.percent(50);
    for node in stage.hub.ring.all().into_iter().filter(|&node| node != owner) {
        if is_deaf {
            // The others hear what it cannot know that they have heard.
            let span = span + Duration::from_millis(scene.ttl(stage).min(12_000));
            stage.hub.cut_way(End::Node(node), End::Client(scene.client), span);
        } else {
            stage.clients[scene.client].cut_off(&mut stage.hub, node..node + 1, span);
        }
    }
}

/// A client hears of a switch long after it, and only that there is a newer ring.
pub fn hears_late(stage: &mut Stage) {
    let Some(scene) = Scene::any(stage) else { return };
    stage.hub.reach("holders that hear late of a switch");
    let ttl = scene.ttl(stage).min(12_000);
    let out = millis(&mut stage.hub, ttl / 3, ttl);
    let back = out + Duration::from_micros(stage.hub.rng.range(500, 12_000));
    let most = back + Duration::from_millis(ttl + 4000);
    let until = stage.hub.now.after(most);
    let (client, owner) = (scene.client, node_of(scene.owner));
    for node in stage.hub.ring.all() {
        let span = if node == owner { out } else { most };
        stage.hub.cut_way(End::Client(client), End::Node(node), span);
        stage.hub.cut_way(End::Node(node), End::Client(client), span);
    }
    scene.switch(stage);
    stage.hub.soon(back, Event::Node(NodeEvent::CutOff { client, until }));
}

/// A cell is given to a node one of whose workers does not take it for a while, to which its holder
/// has to connect anew.
pub fn switched_to_one_that_lags(stage: &mut Stage) {
    let Some(scene) = Scene::any(stage) else { return };
    stage.hub.reach("cells switched to workers that do by nothing new");
    let until = soon(&mut stage.hub, 50, 3000);
    stage.cluster.is_stuck(scene.backup, until);
    let node = node_of(scene.backup);
    let ttl = scene.ttl(stage);
    let span = millis(&mut stage.hub, 10, ttl.min(4000));
    stage.clients[scene.client].cut_off(&mut stage.hub, node..node + 1, span);
    scene.switch(stage);
}

/// A cell is given to a worker that is paused. What its clients have said meanwhile it looks at
/// when it has heard of that.
pub fn switched_to_one_that_is_paused(stage: &mut Stage) {
    let Some(scene) = Scene::any(stage) else { return };
    stage.hub.reach("cells switched to workers that are paused");
    let span = millis(&mut stage.hub, 20, 2500);
    let Stage { hub, cluster, .. } = stage;
    cluster.pause(hub, scene.backup, Some(scene.cell.0.into()), span);
    scene.switch(stage);
}

/// A cell is lost, and its holder has a bad connection while it can take its hold up again.
pub fn changes_in_a_grace(stage: &mut Stage) {
    let Some(scene) = Scene::any(stage) else { return };
    stage.hub.reach("cells lost whose holders have bad connections");
    for node in [scene.owner, scene.backup] {
        let down = millis(&mut stage.hub, 20, 200);
        crashes(stage, node, down);
    }
    if stage.hub.rng.percent(60) {
        // What is answered to all of a link overtakes what waits for copies.
        let (until, by) = (soon(&mut stage.hub, 3000, 9000), millis(&mut stage.hub, 20, 300));
        stage.hub.net.slow_down(until, by);
    }
    if stage.hub.rng.percent(30) {
        // A stop within it leaves the rest of it to the next process.
        let (begins, node) = (millis(&mut stage.hub, 500, 5000), scene.owner);
        stage.hub.soon(begins, Event::Node(NodeEvent::Stops { node }));
    }
    let client = scene.client;
    for _ in 0..stage.hub.rng.range(0, 5) {
        let begins = millis(&mut stage.hub, 0, 6000);
        let until = stage.hub.now.after(begins + millis(&mut stage.hub, 5, 400));
        stage.hub.soon(begins, Event::Node(NodeEvent::CutOff { client, until }));
    }
    if stage.hub.rng.percent(30) {
        let span = millis(&mut stage.hub, 50, 2000);
        let node = End::Node(node_of(scene.owner));
        stage.hub.cut_way(node, End::Client(client), span);
    }
}
