//! What goes wrong in a run, what operators and clients do, and how it ends.

use super::world::{Due, Setup, World, initial};
use crate::cluster::*;
use crate::testing::{Seen, floors_above};
use lockring_proto::Time;
use lockring_ring::{NodeId, plan};
use std::time::Duration;

const SECOND: Duration = Duration::from_secs(1);

/// How long a run is disturbed, and how long it then has to come to rest: the longest grace, and
/// the lowering of the longest TTL.
const DISTURBED: Duration = Duration::from_secs(40);
const AT_REST: Duration = Duration::from_secs(100);

/// One run; what was seen in it.
pub fn run(seed: u64, mutant: Option<Mutant>) -> Result<Seen, String> {
    let nodes = [1, 2, 3, 3, 4, 5, 5, 7][seed as usize % 8];
    let replicas = if seed % 5 == 4 { Replicas::None } else { Replicas::One };
    let mut world = World::new(seed, Setup { nodes, mutant });
    world.net.loss = world.rng.range(0, 4);
    world.run_until(world.now.after(3 * SECOND))?;
    if replicas == Replicas::None {
        let revision = world.checks.rules.state().replicas().1;
        world.wishes.push(Entry::Policy { replicas, revision });
    }
    let end = world.now.after(DISTURBED);
    while world.now < end {
        let pause = world.rng.range(100, 3000);
        world.run_until(world.now.after(Duration::from_millis(pause)))?;
        world.client();
        world.fault();
    }
    world.heal();
    world.run_until(world.now.after(AT_REST))?;
    world.is_at_rest().map_err(|what| format!("{what} at the end"))?;
    Ok(std::mem::take(world.checks.seen()))
}

impl World {
    fn client(&mut self) {
        for _ in 0..3 {
            let longest = self.rng.percent(25);
            let ttl = if longest { self.rng.range(11, 21) } else { self.rng.range(1, 11) };
            let ends = self.now.after(self.rng.range(1, 20) as u32 * SECOND);
            self.session(ttl as u32 * SECOND, ends);
        }
    }

    fn any_host(&mut self) -> NodeId {
        let all: Vec<NodeId> = self.hosts.keys().copied().collect();
        *self.rng.pick(&all)
    }

    fn soon(&mut self, least: u64, most: u64) -> Time {
        self.now.after(Duration::from_millis(self.rng.range(least, most)))
    }

    fn fault(&mut self) {
        let node = self.any_host();
        match self.rng.range(0, 29) {
            0..3 => {
                self.ends(node);
                self.checks.count("crash");
                let again = if self.rng.percent(50) { 300 } else { 8000 };
                let when = self.soon(20, again);
                self.at(when, Due::Restart(node));
            }
            3..6 => {
                let until = self.soon(100, 6000);
                self.stop(node, until);
                self.checks.count("stop");
            }
            6..8 => self.isolate(node),
            8 => self.cut_some(),
            9 => self.split(),
            10..13 => self.elect_any(),
            13 => {
                self.log.break_store(node);
                self.news(node);
                self.checks.count("storage error");
                let when = self.soon(100, 3000);
                self.at(when, Due::Mended(node));
            }
            14..17 => self.log.take_snapshot(),
            17 => self.net.slow_until = self.soon(100, 3000),
            18 if self.hosts.len() < 7 => self.wants_to_join(),
            19 => self.leaves(node),
            20 => self.weighs(node),
            21 if self.rng.percent(20) => self.all_down(),
            22 if self.rng.percent(20) => self.log_is_lost(),
            23 | 24 => self.workers_are_stuck(node),
            25..28 => self.log_lags(),
            28 => self.is_cloned(node),
            _ => {}
        }
    }

    fn workers_are_stuck(&mut self, node: NodeId) {
        let until = self.soon(500, 8000);
        let host = self.hosts.get_mut(&node);
        if let Some(process) = host.and_then(|host| host.process.as_mut()) {
            process.workers_stuck_until = until;
            self.checks.count("workers stuck");
        }
    }

    /// Some nodes hear each other, and of the log nothing new.
    fn log_lags(&mut self) {
        let nodes: Vec<NodeId> = self.hosts.keys().copied().collect();
        for node in nodes {
            if self.rng.percent(50) {
                let until = self.soon(300, 8000);
                self.net.lags.insert(node, until);
            }
        }
        self.checks.count("log lags");
        if self.rng.percent(50) {
            self.elect_any();
        }
    }

    /// Nobody hears a node, or it hears nobody, or both.
    fn isolate(&mut self, node: NodeId) {
        let until = self.soon(200, 8000);
        let (deaf, mute) =
            *self.rng.pick(&[(true, true), (true, true), (true, false), (false, true)]);
        let others: Vec<NodeId> = self.hosts.keys().copied().filter(|&it| it != node).collect();
        for other in others {
            if deaf {
                self.net.cuts.insert((other, node), until);
            }
            if mute {
                self.net.cuts.insert((node, other), until);
            }
        }
        self.checks.count("isolated");
    }

    /// Some ways are cut, each for itself.
    fn cut_some(&mut self) {
        for _ in 0..self.rng.range(1, 6) {
            let (one, other, until) = (self.any_host(), self.any_host(), self.soon(200, 8000));
            self.net.cuts.insert((one, other), until);
        }
        self.checks.count("ways cut");
    }

    /// Two sides do not hear each other.
    fn split(&mut self) {
        let until = self.soon(500, 8000);
        let nodes: Vec<NodeId> = self.hosts.keys().copied().collect();
        let side: Vec<bool> = nodes.iter().map(|_| self.rng.percent(50)).collect();
        for (one, left) in nodes.iter().zip(&side) {
            for (other, right) in nodes.iter().zip(&side) {
                if left != right {
                    self.net.cuts.insert((*one, *other), until);
                }
            }
        }
        self.checks.count("split");
    }

    fn leaves(&mut self, node: NodeId) {
        let staying = self.checks.rules.state().nodes().values().filter(|node| !node.leaving);
        if staying.count() > 2 && !self.log.votes(node) {
            self.wishes.push(Entry::Leave(node));
        }
    }

    fn weighs(&mut self, node: NodeId) {
        let weight = self.rng.range(1, 4) as u32;
        if let Some(known) = self.checks.rules.state().nodes().get(&node) {
            self.wishes.push(Entry::Weight { node, revision: known.revision, weight });
        }
    }

    fn all_down(&mut self) {
        let nodes: Vec<NodeId> = self.hosts.keys().copied().collect();
        for node in nodes {
            self.ends(node);
            let when = self.soon(100, 3000);
            self.at(when, Due::Restart(node));
        }
        self.checks.count("all down");
    }

    /// The stores of all nodes are lost, and somebody begins a new log. A process of the old one
    /// may run on, cut off, until its lease ends.
    fn log_is_lost(&mut self) {
        let state = self.checks.rules.state().clone();
        let Some((&last, _)) = state.nodes().last_key_value() else { return };
        let survivor = self.any_host();
        let nodes: Vec<NodeId> = self.hosts.keys().copied().collect();
        for node in nodes.into_iter().filter(|&node| node != survivor) {
            self.ends(node);
            self.hosts.remove(&node);
        }
        let founder = NodeId(last.0 + 10);
        self.net.lost = Some(survivor);
        let floors = floors_above(&state, founder);
        self.log = self.log.recovered(founder);
        self.log.add_learner(survivor);
        self.log.crash(survivor);
        self.checks.log_begins_anew(initial(self.setup.mutant));
        self.begin_anew(founder, floors);
        self.checks.count("log lost");
    }
}

impl World {
    /// Everything works again, and stays so.
    fn heal(&mut self) {
        self.net.cuts.clear();
        self.net.lags.clear();
        (self.net.slow_until, self.net.loss) = (Time(0), 0);
        self.wishes.clear();
        self.is_calm = true;
        let nodes: Vec<NodeId> = self.hosts.keys().copied().collect();
        for node in nodes {
            let when = self.soon(10, 500);
            self.at(when, Due::Restart(node));
        }
    }

    /// Every cell has whom it shall have, nobody waits for anything, and no TTL is remembered
    /// that nobody has.
    fn is_at_rest(&mut self) -> Result<(), String> {
        let state = self.checks.rules.state();
        let backups =
            match (state.replicas().0, state.nodes().values().filter(|n| n.is_open()).count()) {
                (Replicas::One, 2..) => 1,
                _ => 0,
            };
        for (id, cell) in state.cells() {
            let rests = cell.loss.is_none() && cell.grace.is_none() && cell.learner.is_none();
            if !rests || cell.backups.len() != backups {
                return Err(format!("{id} is {cell:?}"));
            }
        }
        if let Some((node, known)) =
            state.nodes().iter().find(|(_, n)| n.status != Status::Up || n.leaving)
        {
            return Err(format!("{node} is {known:?}"));
        }
        let layout = state.layout().ok_or("there is no ring")?;
        let moves = plan(&layout, &[]).map_err(|error| error.to_string())?.moves;
        let owner_moves = |it: &&lockring_ring::Move| it.from.owner != it.to.owner || backups == 1;
        if let Some(left) = moves.iter().find(owner_moves) {
            return Err(format!("{left:?} is left to do"));
        }
        if state.longest().ttl > 10 * SECOND {
            return Err(format!("{:?} is remembered", state.longest()));
        }
        for id in state.nodes().keys() {
            let host = self.hosts.get(id).ok_or("a node without a host")?;
            let process = host.process.as_ref().ok_or("a node without a process")?;
            if !process.has_lease(host.shown(self.now)) || process.control.state() != state {
                return Err(format!("{id} has no lease, or is behind"));
            }
            if process.told() != state.memberships(process.life) {
                return Err(format!("the workers of {id} do by something else"));
            }
        }
        Ok(())
    }
}
