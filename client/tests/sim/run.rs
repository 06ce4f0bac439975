//! One run: participants, faults, and how it must end.

use crate::agenda::NodeEvent;
use crate::client::{Client, State};
use crate::cluster::Cluster;
use crate::hub::{Event, Hub, Step};
use crate::keys::Keys;
use crate::ring::ClusterRing;
use crate::way::Way;
use crate::workload::{KEEPER, Part, Workload};
use lockring_client::session::{ClientMutant, Place, Query};
use lockring_core::testing::{
    End, Fact, Fault, FaultPlan, KeyId, LinkName, Rng, Stream, Violation, checks,
};
use lockring_core::{Mutant, Time};
use lockring_proto::{Claim, Reply, limits};
use std::collections::BTreeMap;
use std::hash::Hasher;
use std::time::Duration;

/// The fewest acquisitions and faults of a run.
const HOLDS_MIN: u64 = 500;
const FAULTS_MIN: u64 = 3;

/// A bug of either side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bug {
    Node(Mutant),
    Client(ClientMutant),
    /// Clients' clocks run slow by more than the drift that is allowed for.
    SlowClocks,
    /// A stop with nothing held is taken for clean, though the grace of the start still ran.
    CleanInGrace,
}

/// What came of a run.
pub struct Report {
    pub violation: Option<Violation>,
    pub trace: u64,
    pub reached: BTreeMap<&'static str, u64>,
}

/// A run.
pub struct Run {
    hub: Hub,
    keys: Keys,
    cluster: Cluster,
    clients: Vec<Client>,
    plan: FaultPlan,
    faults: u64,
    /// The node that was killed last: those that are told to stop soon after are in grace.
    killed: usize,
}

/// Runs a seed to its end.
pub fn run(seed: u64, bug: Option<Bug>, verbose: bool) -> Report {
    let mut run = Run::new(seed, bug, verbose);
    run.chaos();
    run.settle();
    run.rest();
    run.last_look();
    let Hub { recorder, trace, reached, .. } = run.hub;
    Report { violation: recorder.violation().cloned(), trace: trace.finish(), reached }
}

impl Run {
    fn new(seed: u64, bug: Option<Bug>, verbose: bool) -> Self {
        let (on_node, on_client) = match bug {
            Some(Bug::Node(mutant)) => (Some(mutant), None),
            Some(Bug::Client(mutant)) => (None, Some(mutant)),
            Some(Bug::SlowClocks | Bug::CleanInGrace) | None => (None, None),
        };
        let slow = bug == Some(Bug::SlowClocks);
        let mut rng = Rng::new(seed);
        let ring = Self::draw_ring(&mut rng);
        let mut hub = Hub::new(rng, ring, checks::all(), verbose);
        hub.reach(if hub.ring.nodes() > 1 { "runs of several nodes" } else { "runs of one node" });
        let span = Duration::from_millis(hub.rng.range(8_000, 14_000));
        let plan = FaultPlan::draw(&mut hub.rng.fork(), span);
        let count = hub.rng.range(5, 9) as usize;
        let hoarder = hub.rng.percent(50);
        let keys = Keys::new(count, if hoarder { 400 } else { 0 });
        let in_grace = bug == Some(Bug::CleanInGrace);
        let cluster = Cluster::new(&mut hub, &keys, on_node, in_grace);
        let clients = (0..count)
            .map(|index| {
                let part = match index {
                    0 => Part::Operator,
                    1 if hoarder => Part::Hoarder,
                    _ => Part::Worker,
                };
                let mut rng = hub.rng.fork();
                let workload = Workload::new(part, &mut rng);
                Client::new(index, rng, workload, on_client, slow)
            })
            .collect();
        let mut run = Self { hub, keys, cluster, clients, plan, faults: 0, killed: 0 };
        for client in &mut run.clients {
            client.start(&mut run.hub);
        }
        run
    }

    /// A third of the runs has one node, with one or two workers.
    fn draw_ring(rng: &mut Rng) -> ClusterRing {
        let (nodes, most): (u64, &[u16]) =
            if rng.percent(35) { (1, &[1, 2]) } else { (rng.range(2, 6), &[1, 1, 2, 4]) };
        let workers: Vec<u16> = (0..nodes).map(|_| *rng.pick(most)).collect();
        ClusterRing::drawn(rng, &workers)
    }

    fn failed(&self) -> bool {
        self.hub.recorder.violation().is_some()
    }

    /// Lets everything happen that is due until then.
    fn until(&mut self, until: Time) {
        while !self.failed()
            && let Some(event) = self.hub.next(until)
        {
            self.happens(event);
        }
        if !self.failed() {
            self.hub.now = self.hub.now.max(until);
        }
    }

    fn for_span(&mut self, span: Duration) {
        self.until(self.hub.now.after(span));
    }

    /// Faults, one after the other, and on until there was enough of both.
    fn chaos(&mut self) {
        while let Some((at, fault)) = self.plan.next() {
            self.until(at);
            if self.failed() {
                return;
            }
            self.strike(fault);
        }
        let (begun, mut patience) = (self.hub.now, Duration::ZERO);
        while self.hub.reached.get("holds").copied().unwrap_or(0) < HOLDS_MIN {
            // A minute, and what a restart and sessions that died with the longest lease take,
            // which may have begun meanwhile.
            let lease = limits::honoured(self.cluster.longest());
            patience = patience.max(Duration::from_secs(60) + lease * 3);
            if self.failed() || self.hub.now.since(begun) > patience {
                let holds = self.hub.reached.get("holds");
                self.hub.accuse("work goes on", format!("only {holds:?}"));
                break;
            }
            self.for_span(Duration::from_millis(200));
        }
        while self.faults < FAULTS_MIN {
            self.strike(Fault::Cut);
            self.for_span(Duration::from_millis(200));
        }
    }

    /// All faults end. What was asked for must be settled, whatever happened before; only keepers
    /// go on holding.
    fn settle(&mut self) {
        for client in &mut self.clients {
            client.workload.closing = true;
            client.resume(&mut self.hub);
        }
        self.cluster.resume(&mut self.hub);
        let grace = limits::honoured(self.cluster.longest());
        let patience = grace * 3 + Duration::from_secs(12);
        let lapsed = self.clients.iter().filter_map(Client::last_lease).max();
        let deadline = self
            .hub
            .now
            .max(self.hub.net.heals_at())
            .max(lapsed.unwrap_or_default())
            .after(patience);
        while self.hub.now < deadline && !self.failed() && !self.is_settled() {
            self.for_span(Duration::from_millis(100));
        }
        if !self.is_settled() {
            let left: Vec<_> = self
                .clients
                .iter()
                .flat_map(|client| client.claims.values().map(|claim| (client.index, claim)))
                .filter(|(_, claim)| !matches!(claim.state, State::Holding(_)))
                .collect();
            self.hub.accuse("I10 all is settled after the last fault", format!("{left:?}"));
        }
    }

    fn is_settled(&self) -> bool {
        let keeps = |client: &Client| {
            client.claims.values().all(|claim| {
                matches!(claim.state, State::Holding(_))
                    && (claim.slot == KEEPER || client.workload.part == Part::Hoarder)
            })
        };
        let is_cut = self.hub.now < self.hub.net.heals_at();
        if is_cut || self.clients.iter().any(|client| client.has_leases_left(&self.hub)) {
            return false;
        }
        let all_up = self.clients.iter().all(|client| !client.down && client.is_linked());
        self.cluster.all_up() && all_up && self.clients.iter().all(keeps)
    }

    /// Everybody holds something and is at rest, for long enough that both sides compare; then
    /// they must agree.
    fn rest(&mut self) {
        if self.failed() {
            return;
        }
        for at in 0..self.clients.len() {
            let mut rng = self.clients[at].rng.fork();
            let own = self.keys.own(at, &mut rng);
            for (key, claim) in [(own, Claim::EXCLUSIVE), (self.keys.read(), Claim::SHARED)] {
                let client = &mut self.clients[at];
                let wanted = (key, claim, Some(Duration::ZERO));
                client.ask(&mut self.hub, &self.keys, &self.cluster, KEEPER, wanted);
            }
        }
        self.for_span(Duration::from_secs(8).max(self.longest_ttl() * 3));
        for client in &self.clients {
            for (worker, digest) in client.digests() {
                let machine = self.cluster.machine(worker);
                let node = machine.and_then(|machine| machine.digest_of(client.session));
                let (session, client) = (client.session, digest);
                self.hub.fact(&Fact::Rest { session, worker, client, node });
            }
        }
        for machine in self.cluster.machines().map(|(_, machine)| machine) {
            let view = machine.view();
            let known =
                |name: &LinkName| self.clients.iter().any(|client| client.session == name.0);
            if let Some(name) = view.links.keys().find(|name| !known(name)) {
                self.hub.accuse("I13 no immortal hold", format!("a link of nobody: {name:?}"));
            }
        }
    }

    /// Both sides compare once a third of the TTL.
    fn longest_ttl(&self) -> Duration {
        self.clients.iter().map(|client| client.ttl).max().unwrap_or_default()
    }

    /// Everything is given back. Nothing may be left of any key, by the machines and by the wire.
    fn last_look(&mut self) {
        if self.failed() {
            return;
        }
        for client in &mut self.clients {
            let tokens: Vec<u64> = client.claims.keys().copied().collect();
            for token in tokens {
                client.release(&mut self.hub, &self.cluster, token, false);
            }
        }
        // Long enough that what only the node knows of is given back too.
        self.for_span(Duration::from_secs(6).max(self.longest_ttl() * 3));
        self.cluster.audit(&mut self.hub);
        for (worker, machine) in self.cluster.machines() {
            let stats = machine.stats();
            let (keys, waiters) = (stats.keys, stats.waiters);
            self.hub.fact(&Fact::Empty { worker, keys, waiters });
        }
        self.stop_with_nothing_held();
        self.inspect_all();
        for client in &mut self.clients {
            client.say_goodbye(&mut self.hub, &self.cluster);
        }
        self.for_span(Duration::from_millis(500));
        let links: u64 = self.cluster.machines().map(|(_, machine)| machine.stats().links).sum();
        if links > 0 && !self.failed() {
            self.hub.accuse("nobody is left after goodbye", format!("{links} links"));
        }
        self.cluster.settle_accounts(&mut self.hub);
    }

    /// With nothing held a node stops clean, and the next start grants at once.
    fn stop_with_nothing_held(&mut self) {
        if self.failed() || !self.hub.rng.percent(30) {
            return;
        }
        let clean = self.hub.reached.get("clean stops").copied();
        let node = self.cluster.any(&mut self.hub);
        node.stop(&mut self.hub, &self.keys, Duration::from_millis(100));
        self.for_span(Duration::from_secs(4));
        if self.hub.reached.get("clean stops").copied() == clean || !self.cluster.all_up() {
            self.hub.accuse("a stop with nothing held is clean", "it was not".to_owned());
        }
    }

    fn inspect_all(&mut self) {
        let mut asked = Vec::new();
        for id in 0..self.keys.count() as u32 {
            let key = self.keys.bytes(KeyId(id)).to_vec();
            let query = Query::Inspect(key.into());
            asked.extend(self.clients[0].query(&mut self.hub, &self.cluster, query));
        }
        self.for_span(Duration::from_secs(2));
        if asked.len() != self.keys.count() {
            self.hub.accuse("the last look", "the operator knows no ring".to_owned());
        }
        for token in asked {
            match self.clients[0].answer(token) {
                Some(Reply::Inspected { inspection, .. })
                    if inspection.holder_count + inspection.waiter_count == 0 => {}
                other => self.hub.accuse("the last look", format!("{other:?}")),
            }
        }
    }

    fn happens(&mut self, event: Event) {
        let Self { hub, keys, cluster, clients, .. } = self;
        match event {
            Event::Frame { way, stream, bytes, held } => {
                if hub.arrives(way, stream, &bytes, held) {
                    self.frame(way, stream, bytes);
                }
            }
            Event::ClientNotices { way } => {
                let client = &mut clients[way.client];
                if client.life == way.life && client.is_paused(hub) {
                    hub.plan(client.paused_until(), Event::ClientNotices { way });
                } else if client.life == way.life && !client.down {
                    client.loses(hub, cluster, way);
                }
            }
            Event::Stands { way } => {
                let client = &mut clients[way.client];
                if client.life == way.life && client.is_paused(hub) {
                    hub.plan(client.paused_until(), Event::Stands { way });
                } else if client.life == way.life && !client.down {
                    client.stands(hub, cluster, way);
                }
            }
            Event::Unwelcome { way } => {
                let client = &mut clients[way.client];
                if client.life == way.life && !client.down && !client.is_paused(hub) {
                    client.unwelcome(hub, cluster, way);
                }
            }
            Event::Wake { client, life } => {
                if clients[client].life == life && !clients[client].down {
                    clients[client].wake(hub, cluster);
                }
            }
            Event::Step { client, life, step } => self.step(client, life, step),
            Event::Return { client } => clients[client].start(hub),
            Event::Node(event) => cluster.happens(hub, keys, event),
        }
    }

    /// A frame is here.
    fn frame(&mut self, way: Way, stream: Stream, bytes: Vec<u8>) {
        let Self { hub, cluster, clients, .. } = self;
        if stream == Stream::Requests {
            return cluster.node_mut(way.node).frame(hub, way, bytes);
        }
        let client = &mut clients[way.client];
        if client.life == way.life && !client.down {
            client.frame(hub, cluster, way, (stream, bytes));
        }
    }

    /// A client does what it had planned.
    fn step(&mut self, at: usize, life: u32, step: Step) {
        let Self { hub, keys, cluster, clients, .. } = self;
        let client = &mut clients[at];
        if client.life != life || client.down {
            return;
        }
        if client.is_paused(hub) {
            return hub.plan(client.paused_until(), Event::Step { client: at, life, step });
        }
        match step {
            // Its task carries nothing out any more.
            Step::Claim(_) | Step::Release(_) | Step::GiveUp(_) if client.is_leaving() => {}
            Step::Claim(slot) => {
                let mut rng = client.rng.fork();
                let Some(wanted) = client.workload.wants(&mut rng, keys, at, slot) else { return };
                match client.ask(hub, keys, cluster, slot, wanted) {
                    None => client.plan(hub, Duration::from_millis(20), Step::Claim(slot)),
                    Some(token) => {
                        if let Some(after) = client.workload.gives_up(&mut rng, slot) {
                            client.plan(hub, after, Step::GiveUp(token));
                        }
                        if client.workload.part == Part::Hoarder {
                            client.plan(hub, Duration::from_micros(300), Step::Claim(slot));
                        }
                    }
                }
            }
            Step::Release(token) => {
                let keeper = client.claims.get(&token).is_some_and(|claim| claim.slot == KEEPER);
                if keeper && client.workload.closing {
                    return;
                }
                let quietly = client.rng.percent(15);
                client.release(hub, cluster, token, quietly);
            }
            Step::GiveUp(token) => client.give_up(hub, cluster, token),
            Step::WriteLate(key, fence) => {
                hub.reach("late writes");
                hub.used(key, fence, true);
            }
            Step::List => client.list_on(hub, keys, cluster),
            Step::Die => {
                if !client.workload.closing || client.is_leaving() {
                    self.kill(at, Duration::from_millis(300));
                }
            }
        }
    }

    fn kill(&mut self, at: usize, down: Duration) {
        if !self.clients[at].down {
            self.clients[at].crash(&mut self.hub);
            self.hub.soon(down, Event::Return { client: at });
        }
    }

    fn strike(&mut self, fault: Fault) {
        self.faults += 1;
        let count = self.clients.len() as u64;
        let whom = self.hub.rng.range(0, count) as usize;
        match fault {
            Fault::Cut => self.clients[whom].cut(&mut self.hub),
            Fault::CutAll => self.cut_all(),
            Fault::Partition(span) => {
                self.hub.reach("partitions");
                let all = 0..self.hub.ring.nodes();
                self.clients[whom].cut_off(&mut self.hub, all, span);
            }
            Fault::Part(span) => {
                if self.hub.ring.nodes() > 1 {
                    self.hub.reach("partial partitions");
                }
                let node = self.any_node();
                self.clients[whom].cut_off(&mut self.hub, node..node + 1, span);
            }
            Fault::CutWay(span) => self.cut_way(whom, span),
            Fault::CutNodes(span) => self.cluster.cut_any(&mut self.hub, span),
            Fault::Leave => self.leave(whom),
            Fault::StopNode { down } => {
                let node = self.cluster.node_mut(self.killed);
                node.stop(&mut self.hub, &self.keys, down);
            }
            Fault::Slow { span, by } => {
                self.hub.reach("slow networks");
                self.hub.net.slow_down(self.hub.now.after(span), by);
            }
            Fault::PauseClient(span) => {
                self.hub.reach("client pauses");
                self.clients[whom].pause(&self.hub, span);
            }
            Fault::PauseNode(span) => {
                self.hub.reach("node pauses");
                self.cluster.any(&mut self.hub).pause_any(&mut self.hub, span);
            }
            Fault::CrashClient { down } => self.kill(whom, down),
            Fault::CrashNode { down } => {
                let node = self.cluster.any(&mut self.hub);
                self.killed = node.index();
                if node.is_up() {
                    node.crash(&mut self.hub);
                    self.hub.soon(down, Event::Node(NodeEvent::Boot { node: node.index() }));
                }
            }
            Fault::RaiseEpoch => self.cluster.raise_any_epoch(&mut self.hub),
            Fault::Force => self.force_one(),
            Fault::WallJump(span) => {
                self.hub.reach("wall clock jumps");
                self.cluster.any(&mut self.hub).wall_clock_jumps(span);
            }
            Fault::Storm => {
                for client in &mut self.clients[1..] {
                    client.cut(&mut self.hub);
                }
                for _ in 0..6 {
                    self.force_one();
                }
            }
        }
    }

    /// A client ends its session in order. What it does next, it does with another.
    fn leave(&mut self, whom: usize) {
        let Self { hub, cluster, clients, .. } = self;
        let client = &mut clients[whom];
        if !client.down && !client.is_paused(hub) && client.workload.part == Part::Worker {
            hub.reach("goodbyes in mid-run");
            client.say_goodbye(hub, cluster);
            client.plan(hub, Duration::from_millis(400), Step::Die);
        }
    }

    fn any_node(&mut self) -> usize {
        self.hub.ring.any_node(&mut self.hub.rng)
    }

    /// Nothing comes from a client to a node, or nothing comes back.
    fn cut_way(&mut self, client: usize, span: Duration) {
        let (client, node) = (End::Client(client), End::Node(self.any_node()));
        if self.hub.rng.percent(50) {
            self.hub.reach("clients cut off from a node one way");
            self.hub.cut_way(client, node, span);
        } else {
            self.hub.reach("nodes cut off from a client one way");
            self.hub.cut_way(node, client, span);
        }
    }

    fn cut_all(&mut self) {
        for client in &mut self.clients {
            client.cut(&mut self.hub);
        }
    }

    /// The operator, if it is there, forces a key that somebody holds.
    fn force_one(&mut self) {
        let held: Vec<_> = self.hub.recorder.book().holds.values().map(|hold| hold.key).collect();
        let key = if held.is_empty() || self.hub.rng.percent(20) {
            self.keys.any_shared(&mut self.hub.rng)
        } else {
            *self.hub.rng.pick(&held)
        };
        let operator = &mut self.clients[0];
        if !operator.down && !operator.is_paused(&self.hub) {
            let namespace = self.keys.space_name(key).to_owned();
            let key = self.keys.bytes(key).to_vec();
            let query = Query::Force(Place { namespace, key });
            operator.query(&mut self.hub, &self.cluster, query);
        }
    }
}
