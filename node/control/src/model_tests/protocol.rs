//! The model: what may happen in a state, and what comes of it.

use super::logs::{Change, Kind, LogId, Logs};
use super::machines::{Effect, Machines, Outcome, Stimulus};
use super::names::{Answer, Ask, CELL, CLIENTS, NODES, Process, Told, Wish};
use super::reached::{Reached, STEPS, Step};
use super::world::{Broken, Client, Fate, Left, Open, Seat, World};
use crate::cluster;
use lockring_proto::Fence;
use stateright::{Model, Property};
use std::collections::{BTreeMap, BTreeSet};

/// How much may happen.
#[derive(Clone, Debug)]
pub struct Bounds {
    /// The entries that the log may go on with, and how many of them.
    pub kinds: Vec<Kind>,
    pub changes: u8,
    /// They come in the order in which the kinds are listed.
    pub in_order: bool,
    pub crashes: u8,
    pub breaks: u8,
    pub leases: u8,
    /// Requests, and turns of a node with its answers, that take their time: all others come before
    /// anything else happens.
    pub delays: u8,
    /// Messages between nodes that are under way at one time.
    pub flight: usize,
    /// How often each client acquires, and how often it releases.
    pub acquires: [u8; CLIENTS as usize],
    pub releases: [u8; CLIENTS as usize],
    /// Nodes that have the cell at the beginning: S, then B, then T.
    pub members: u8,
}

/// A bug to switch on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bug {
    None,
    Core(lockring_core::Mutant),
    Log(cluster::Mutant),
    /// A client takes a late answer for one to what it asks now.
    IdIgnored,
}

/// Something that may happen, and whether what it has for clients takes its time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Act {
    pub deed: Deed,
    pub slow: bool,
}

/// Something that may happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Deed {
    /// A client asks for the first time, or again, by this ring; the last: that takes its time.
    Ask(u8, LogId, bool),
    /// A request comes to a node.
    Hear(u8, u8),
    /// An answer comes to a client.
    Tell(Process, u8),
    /// A message comes to a node; the last: one of an earlier connection.
    Deliver(Process, u8, bool),
    Break(u8, u8),
    Mend(u8, u8),
    Commit(Change, LogId),
    Apply(u8),
    Lease(u8, bool),
    Crash(u8),
}

/// The protocol within bounds.
pub struct Protocol {
    bounds: Bounds,
    bug: Bug,
    logs: Logs,
    pub machines: Machines,
    pub reached: Reached,
    first: World,
    /// Entries that the log begins with.
    base: u8,
}

impl Protocol {
    pub fn new(bounds: Bounds, bug: Bug) -> Self {
        let core = if let Bug::Core(mutant) = bug { Some(mutant) } else { None };
        let log = if let Bug::Log(mutant) = bug { Some(mutant) } else { None };
        let (logs, machines) = (Logs::new(&bounds.kinds, log), Machines::new(core));
        let all: Vec<Process> = (0..NODES).map(|node| Process { node, life: 0 }).collect();
        let seats = all.iter().map(|&me| {
            let others: Vec<Process> = all.iter().copied().filter(|it| *it != me).collect();
            let machine = machines.begin(me, &others, LogId(0), &logs);
            Seat { life: 0, machine, applied: 0, leased: true }
        });
        let seats: Vec<Seat> = seats.collect();
        let client = |at: usize| Client {
            ring: LogId(0),
            acquires: bounds.acquires[at],
            releases: bounds.releases[at],
            ids: 0,
            held: None,
            open: None,
        };
        let first = World {
            log: LogId(0),
            seats: seats.try_into().expect("three nodes"),
            clients: [0, 1].map(client),
            ways: BTreeMap::new(),
            asks: BTreeMap::new(),
            answers: BTreeMap::new(),
            grants: Vec::new(),
            said: BTreeSet::new(),
            cut: BTreeSet::new(),
            left: Left {
                crashes: bounds.crashes,
                breaks: bounds.breaks,
                leases: bounds.leases,
                delays: bounds.delays,
            },
            broken: None,
        };
        let reached = Reached::default();
        let mut it = Self { bounds, bug, logs, machines, reached, first, base: 0 };
        for node in 1..it.bounds.members {
            it.join(node);
        }
        it.base = it.logs.get(it.first.log).path.len() as u8;
        it
    }

    /// The log has a node get a copy, and all is at rest again.
    fn join(&mut self, node: u8) {
        use super::logs::Move;
        let mut world = self.first.clone();
        for its in [Move::Attach(world.process(node)), Move::Synced] {
            let revision = self.logs.get(world.log).revision();
            let change = Change::Cell(revision, its);
            world.log = self.logs.after(world.log, change).expect("it can");
            loop {
                let mut acts = Vec::new();
                self.deliveries(&world, &mut acts);
                self.applications(&world, &mut acts);
                let Some(&deed) = acts.first() else { break };
                world = self.next(&world, Act { deed, slow: false }).expect("it happens");
            }
        }
        let ring = self.logs.get(world.log).ring;
        world.clients.iter_mut().for_each(|client| client.ring = ring);
        world.said.clear();
        self.first = world;
    }

    fn deliveries(&self, world: &World, acts: &mut Vec<Deed>) {
        for (&(from, to), way) in &world.ways {
            if !way.sent.is_empty() {
                acts.push(Deed::Deliver(from, to, false));
            }
            if !way.late.is_empty() {
                acts.push(Deed::Deliver(from, to, true));
            }
        }
    }

    /// Entries that do not concern a node are applied at once.
    fn apply_unconcerned(&self, world: &mut World) -> Option<()> {
        let log = self.logs.get(world.log);
        for node in 0..NODES {
            while let Some(&next) = log.path.get(self.applied(world, node) + 1) {
                let next = self.logs.get(next);
                let life = world.process(node).life();
                let ours = next.applied.memberships(&next.state, life);
                let is_boot = next.change.is_some_and(|change| change.kind() == Kind::Boot);
                if is_boot || ours.iter().any(|(cell, _)| *cell == CELL) {
                    break;
                }
                self.apply(world, node)?;
            }
        }
        Some(())
    }

    fn applications(&self, world: &World, acts: &mut Vec<Deed>) {
        let last = self.logs.get(world.log).path.len() as u8 - 1;
        let behind = |&node: &u8| world.seats[usize::from(node)].applied < last;
        acts.extend((0..NODES).filter(behind).map(Deed::Apply));
    }

    /// What the clients may do, and what may come of what they did.
    fn clients(&self, world: &World, acts: &mut Vec<Deed>) {
        let newest = self.logs.get(world.log).ring;
        for (at, client) in (0..).zip(&world.clients) {
            let mut rings = vec![client.ring];
            if newest != client.ring {
                rings.push(newest);
            }
            for ring in rings {
                let can = match client.open {
                    None if client.held.is_some() => client.releases > 0,
                    None => client.acquires > 0,
                    // What was not answered is sent again by a newer ring, or to another process.
                    Some(open) => {
                        let is_dead = open.at.is_some_and(|it| !world.runs(it));
                        is_dead || self.logs.get(ring).since() > open.version
                    }
                };
                if can {
                    acts.push(Deed::Ask(at, ring, false));
                    if world.left.delays > 0 {
                        acts.push(Deed::Ask(at, ring, true));
                    }
                }
            }
        }
        acts.extend(world.asks.keys().map(|&(client, node)| Deed::Hear(client, node)));
        acts.extend(world.answers.keys().map(|&(from, client)| Deed::Tell(from, client)));
    }

    fn faults(&self, world: &World, acts: &mut Vec<Deed>) {
        let Left { crashes, breaks, leases, .. } = world.left;
        for node in 0..NODES {
            if crashes > 0 {
                acts.push(Deed::Crash(node));
            }
            match world.seats[usize::from(node)].leased {
                true if leases == 0 => {}
                runs => acts.push(Deed::Lease(node, !runs)),
            }
            for other in node + 1..NODES {
                if world.is_cut(node, other) {
                    acts.push(Deed::Mend(node, other));
                } else if breaks > 0 {
                    acts.push(Deed::Break(node, other));
                }
            }
        }
    }

    fn entries(&self, world: &World, acts: &mut Vec<Deed>) {
        let log = self.logs.get(world.log);
        let boots = log.path.iter().filter_map(|&id| self.logs.get(id).change);
        let boots = boots.filter(|change| change.kind() == Kind::Boot).count() as u8;
        for (&id, node) in log.state.nodes() {
            let known = Process::of(id, node.spec.process.boot);
            let runs = world.process(known.node);
            if runs != known {
                let change = Change::Boot(runs);
                let next = self.logs.after(world.log, change);
                acts.extend(next.map(|next| Deed::Commit(change, next)));
            }
        }
        let changes = log.path.len() as u8 - self.base - boots;
        if changes >= self.bounds.changes {
            return;
        }
        let kind = self.bounds.kinds.get(usize::from(changes)).filter(|_| self.bounds.in_order);
        for next in self.logs.next(world.log).iter() {
            if kind.is_some_and(|kind| *kind != next.change.kind()) {
                continue;
            }
            let is_said = next.needs.is_none_or(|said| {
                // Who says so proposes it by the state that all its workers do by.
                let Change::Cell(revision, _) = next.change else { return false };
                let (owner, _) = said;
                let applied = self.logs.get(log.path[self.applied(world, owner.node)]);
                let knows = applied.state.applied().0 >= revision;
                world.said.contains(&said) && knows && world.runs(owner)
            });
            if is_said {
                acts.push(Deed::Commit(next.change, next.log));
            }
        }
    }

    fn applied(&self, world: &World, node: u8) -> usize {
        usize::from(world.seats[usize::from(node)].applied)
    }

    /// Something happens to a node.
    fn stimulate(&self, world: &mut World, node: u8, what: Stimulus) -> Option<()> {
        let (me, at) = (world.process(node), world.seats[usize::from(node)].machine);
        let (next, effects) = match self.machines.step(at, me, what, &self.logs) {
            Outcome::Next(next, effects) => (next, effects),
            Outcome::NotTaken => return None,
            Outcome::Unsound => {
                world.broken = Some(Broken::Unsound);
                return Some(());
            }
        };
        world.seats[usize::from(node)].machine = next;
        for effect in effects {
            match effect {
                Effect::Send(to, message) => {
                    self.reached.message(&self.machines.bytes(message));
                    world.send(me, to, message);
                }
                Effect::Synced(attach) => drop(world.said.insert((me, attach))),
                Effect::Answer(client, answer) => self.answered(world, me, client, answer),
            }
        }
        Some(())
    }

    fn answered(&self, world: &mut World, from: Process, client: u8, answer: Answer) {
        match answer.told {
            Told::Granted(fence) => {
                let again = world.granted(client, answer.id, fence);
                self.reached.granted(again, self.is_of_earlier_epoch(world, from, fence));
            }
            Told::Ended => world.ended(client, answer.id),
            Told::Moved => self.reached.step(Step::Moved),
        }
        if world.is_awaited(client, from, answer) || self.bug == Bug::IdIgnored {
            world.answers.entry((from, client)).or_default().push_back(answer);
        }
    }

    /// Whether a node grants what an owner of an earlier epoch has carried out.
    fn is_of_earlier_epoch(&self, world: &World, from: Process, fence: Fence) -> bool {
        let log = self.logs.get(world.log);
        let at = log.path[self.applied(world, from.node)];
        let cell = self.logs.get(at).state.cell(CELL).map(|cell| cell.epoch);
        cell > Some(fence.epoch())
    }

    fn ask(&self, world: &mut World, at: u8, ring: LogId, late: bool) {
        let log = self.logs.get(ring);
        let owner = log.owner();
        let node = Process::of(owner.node, owner.boot).node;
        let to = world.process(node);
        let client = &mut world.clients[usize::from(at)];
        client.ring = ring;
        let (id, wish) = match (client.open, client.held.take()) {
            (Some(open), held) => {
                client.held = held;
                (open.id, open.wish)
            }
            (None, Some(fence)) => {
                client.releases -= 1;
                (client.ids + 1, Wish::Release(fence))
            }
            (None, None) => {
                client.acquires -= 1;
                (client.ids + 1, Wish::Acquire)
            }
        };
        client.ids = id.max(client.ids);
        let version = log.version();
        client.open = Some(Open { id, wish, at: Some(to), version });
        if let Wish::Release(fence) = wish {
            let its = |grant: &&mut super::world::Grant| grant.fence == fence;
            if let Some(grant) = world.grants.iter_mut().find(its)
                && grant.fate == Fate::Given
            {
                grant.fate = Fate::Released;
            }
        }
        let asks = world.asks.entry((at, node)).or_default();
        asks.push_back(Ask { id, version, wish });
        let is_first = asks.len() == 1;
        if late {
            world.left.delays -= 1;
        } else if is_first {
            let mut heard = world.clone();
            if self.hear(&mut heard, at, node).is_some() {
                *world = heard;
            }
        }
    }

    fn hear(&self, world: &mut World, client: u8, node: u8) -> Option<()> {
        let asks = world.asks.get_mut(&(client, node))?;
        let ask = asks.pop_front()?;
        if asks.is_empty() {
            world.asks.remove(&(client, node));
        }
        // Whoever is behind the client's ring lets it wait, and all that comes after it.
        let knows = self.machines.node(world.seats[usize::from(node)].machine).version;
        if ask.version > knows {
            return None;
        }
        self.stimulate(world, node, Stimulus::Asked(client, ask))
    }

    fn apply(&self, world: &mut World, node: u8) -> Option<()> {
        let seat = &mut world.seats[usize::from(node)];
        seat.applied += 1;
        let at = self.logs.get(world.log).path[usize::from(seat.applied)];
        let log = self.logs.get(at);
        let me = world.process(node);
        if Process::of(log.owner().node, log.owner().boot) == me {
            self.reached.owned(log.change.map(Change::kind));
        }
        self.stimulate(world, node, Stimulus::Applied(at))
    }

    fn commit(&self, world: &mut World, change: Change, next: LogId) {
        world.log = next;
        self.reached.committed(change.kind());
        let log = self.logs.get(next);
        // Without bugs what was said of an attachment that is over is never looked at.
        if self.bug == Bug::None {
            let learner = log.state.cell(CELL).and_then(|cell| cell.learner);
            world.said.retain(|(_, said)| learner.is_some_and(|it| it.attach == *said));
        }
    }

    fn crash(&self, world: &mut World, node: u8) -> Option<()> {
        world.left.crashes -= 1;
        self.reached.step(Step::Crash);
        let dead = world.process(node);
        let peers: Vec<u8> = (0..NODES).filter(|&it| it != node).collect();
        for &peer in &peers {
            world.break_ways(dead, world.process(peer));
        }
        world.ways.retain(|&(_, to), _| to != node);
        world.asks.retain(|&(_, to), _| to != node);
        world.said.retain(|&(by, _)| by != dead);
        world.cut.retain(|&(one, other)| one != node && other != node);
        let others: Vec<Process> = peers.iter().map(|&it| world.process(it)).collect();
        let at = self.logs.get(world.log).path[self.applied(world, node)];
        let me = Process { node, life: dead.life + 1 };
        let machine = self.machines.begin(me, &others, at, &self.logs);
        let seat = &mut world.seats[usize::from(node)];
        (seat.life, seat.machine, seat.leased) = (me.life, machine, true);
        for peer in peers {
            self.stimulate(world, peer, Stimulus::Lost(dead))?;
            self.stimulate(world, peer, Stimulus::Connected(me))?;
        }
        Some(())
    }

    fn connect(&self, world: &mut World, one: u8, other: u8, stands: bool) -> Option<()> {
        let (a, b) = (world.process(one), world.process(other));
        let what = if stands { Stimulus::Connected } else { Stimulus::Lost };
        if stands {
            world.cut.remove(&(one, other));
        } else {
            world.left.breaks -= 1;
            world.cut.insert((one, other));
            world.break_ways(a, b);
            self.reached.step(Step::Break);
        }
        self.stimulate(world, one, what(b))?;
        self.stimulate(world, other, what(a))
    }

    fn next(&self, world: &World, act: Act) -> Option<World> {
        let mut next = world.clone();
        self.happen(&mut next, act.deed)?;
        self.apply_unconcerned(&mut next)?;
        if act.slow {
            let is_told = next.answers.iter().any(|(way, answers)| {
                world.answers.get(way).map_or(0, std::collections::VecDeque::len) < answers.len()
            });
            next.left.delays = next.left.delays.checked_sub(1).filter(|_| is_told)?;
        } else {
            let new: Vec<_> = next.answers.keys().copied().collect();
            for way in new.into_iter().filter(|way| !world.answers.contains_key(way)) {
                while next.tell(way).is_some() {}
            }
        }
        if self.bug != Bug::IdIgnored {
            next.forget_answers();
        }
        Some(next)
    }

    fn happen(&self, it: &mut World, deed: Deed) -> Option<()> {
        match deed {
            Deed::Ask(client, ring, late) => self.ask(it, client, ring, late),
            Deed::Hear(client, node) => self.hear(it, client, node)?,
            Deed::Tell(from, client) => {
                it.tell((from, client))?;
            }
            Deed::Deliver(from, to, late) => {
                let message = it.take(from, to, late)?;
                self.stimulate(it, to, Stimulus::Heard(from, message))?;
            }
            Deed::Break(one, other) => self.connect(it, one, other, false)?,
            Deed::Mend(one, other) => self.connect(it, one, other, true)?,
            Deed::Commit(change, log) => self.commit(it, change, log),
            Deed::Apply(node) => self.apply(it, node)?,
            Deed::Lease(node, runs) => {
                it.left.leases -= u8::from(!runs);
                it.seats[usize::from(node)].leased = runs;
                self.reached.step(Step::LeaseEnds);
                self.stimulate(it, node, Stimulus::Lease(runs))?;
            }
            Deed::Crash(node) => self.crash(it, node)?,
        }
        Some(())
    }

    /// The fences that members which run have not, of `which` grants; `has`: that they have.
    fn members_have(&self, world: &World, fate: Fate, has: bool) -> bool {
        let log = self.logs.get(world.log);
        let cell = log.state.cell(CELL).expect("the log has cells");
        let members = std::iter::once(&cell.owner).chain(&cell.backups);
        let members = members.map(|member| Process::of(member.node, member.boot));
        members.filter(|&it| world.runs(it)).all(|it| {
            let node = self.machines.node(world.seats[usize::from(it.node)].machine);
            let grants = world.grants.iter().filter(|grant| grant.fate == fate);
            grants.into_iter().all(|grant| node.holds.contains(&grant.fence) == has)
        })
    }

    /// No two nodes own the cell in one epoch.
    fn one_owner(&self, world: &World) -> bool {
        let owns = |seat: &Seat| self.machines.node(seat.machine).since;
        let owners: Vec<u64> = world.seats.iter().filter_map(owns).collect();
        owners.iter().collect::<BTreeSet<_>>().len() == owners.len()
    }
}

impl Model for Protocol {
    type State = World;
    type Action = Act;

    fn init_states(&self) -> Vec<World> {
        vec![self.first.clone()]
    }

    fn actions(&self, world: &World, acts: &mut Vec<Act>) {
        if world.broken.is_some() {
            return;
        }
        let mut deeds = Vec::new();
        self.deliveries(world, &mut deeds);
        self.clients(world, &mut deeds);
        self.applications(world, &mut deeds);
        self.entries(world, &mut deeds);
        self.faults(world, &mut deeds);
        acts.extend(deeds.iter().map(|&deed| Act { deed, slow: false }));
        if world.left.delays > 0 {
            let speaks = |deed: &&Deed| !matches!(deed, Deed::Tell(..) | Deed::Commit(..));
            let slow = deeds.iter().filter(speaks);
            acts.extend(slow.map(|&deed| Act { deed, slow: true }));
        }
    }

    fn next_state(&self, world: &World, act: Act) -> Option<World> {
        self.next(world, act)
    }

    fn within_boundary(&self, world: &World) -> bool {
        let under_way = world.ways.values().map(|way| way.sent.len() + way.late.len());
        under_way.sum::<usize>() <= self.bounds.flight
    }

    fn properties(&self) -> Vec<Property<Self>> {
        let mut all = vec![
            Property::always("no key is held twice", |_, world: &World| {
                world.broken != Some(Broken::HeldTwice)
            }),
            Property::always("fences grow", |_, world: &World| {
                !matches!(world.broken, Some(Broken::FenceFell | Broken::TokenBack))
            }),
            Property::always("nobody is granted what nobody asks for", |_, world: &World| {
                world.broken != Some(Broken::Unasked)
            }),
            Property::always("machines are sound", |_, world: &World| {
                world.broken != Some(Broken::Unsound)
            }),
            Property::always("the log keeps its rules", |model: &Self, world: &World| {
                model.logs.get(world.log).is_lawful
            }),
            Property::always("members have what was granted", |model: &Self, world: &World| {
                model.members_have(world, Fate::Given, true)
            }),
            Property::always("members have not what was released", |model: &Self, world| {
                model.members_have(world, Fate::Gone, false)
            }),
            Property::always("one owner of an epoch", Self::one_owner),
        ];
        all.extend(sometimes());
        all
    }
}

fn has<const STEP: usize>(model: &Protocol, _: &World) -> bool {
    model.reached.has(STEPS[STEP].0)
}

/// What a run is to reach, each looked up where the steps of all states are kept.
fn sometimes() -> impl Iterator<Item = Property<Protocol>> {
    let all: [fn(&Protocol, &World) -> bool; STEPS.len()] = [
        has::<0>, has::<1>, has::<2>, has::<3>, has::<4>, has::<5>, has::<6>, has::<7>, has::<8>,
        has::<9>, has::<10>, has::<11>, has::<12>, has::<13>, has::<14>,
    ];
    STEPS.iter().zip(all).map(|((_, name), has)| Property::sometimes(name, has))
}
