//! One run: participants, faults, and how it must end.

use crate::agenda::NodeEvent;
use crate::client::{Client, State};
use crate::cluster::Cluster;
use crate::hub::{Event, Hub};
use crate::keys::Keys;
use crate::ring::ClusterRing;
use crate::stage::Stage;
use crate::workload::{KEEPER, Part, Workload};
use lockring_client::session::ClientMutant;
use lockring_core::Mutant;
use lockring_core::testing::{End, Fault, FaultPlan, LinkName, Rng, Violation, checks};
use lockring_proto::limits;
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
    stage: Stage,
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
    let Hub { recorder, trace, reached, .. } = run.stage.hub;
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
        let stage = Stage { hub, keys, cluster, clients };
        let mut run = Self { stage, plan, faults: 0, killed: 0 };
        for client in &mut run.stage.clients {
            client.start(&mut run.stage.hub);
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

    /// Faults, one after the other, and on until there was enough of both.
    fn chaos(&mut self) {
        while let Some((at, fault)) = self.plan.next() {
            self.stage.until(at);
            if self.stage.failed() {
                return;
            }
            self.strike(fault);
        }
        let (begun, mut patience) = (self.stage.hub.now, Duration::ZERO);
        while self.stage.hub.reached.get("holds").copied().unwrap_or(0) < HOLDS_MIN {
            // A minute, and what a restart and sessions that died with the longest lease take,
            // which may have begun meanwhile.
            let lease = limits::honoured(self.stage.cluster.longest());
            patience = patience.max(Duration::from_secs(60) + lease * 3);
            if self.stage.failed() || self.stage.hub.now.since(begun) > patience {
                let holds = self.stage.hub.reached.get("holds");
                self.stage.hub.accuse("work goes on", format!("only {holds:?}"));
                break;
            }
            self.stage.for_span(Duration::from_millis(200));
        }
        while self.faults < FAULTS_MIN {
            self.strike(Fault::Cut);
            self.stage.for_span(Duration::from_millis(200));
        }
    }

    /// All faults end. What was asked for must be settled, whatever happened before; only keepers
    /// go on holding.
    fn settle(&mut self) {
        for client in &mut self.stage.clients {
            client.workload.closing = true;
            client.resume(&mut self.stage.hub);
        }
        self.stage.cluster.resume(&mut self.stage.hub);
        let grace = limits::honoured(self.stage.cluster.longest());
        let patience = grace * 3 + Duration::from_secs(12);
        let lapsed = self.stage.clients.iter().filter_map(Client::last_lease).max();
        let deadline = self
            .stage
            .hub
            .now
            .max(self.stage.hub.net.heals_at())
            .max(lapsed.unwrap_or_default())
            .after(patience);
        while self.stage.hub.now < deadline && !self.stage.failed() && !self.is_settled() {
            self.stage.for_span(Duration::from_millis(100));
        }
        if !self.is_settled() {
            let left: Vec<_> = self
                .stage
                .clients
                .iter()
                .flat_map(|client| client.claims.values().map(|claim| (client.index, claim)))
                .filter(|(_, claim)| !matches!(claim.state, State::Holding(_)))
                .collect();
            self.stage.hub.accuse("I10 all is settled after the last fault", format!("{left:?}"));
        }
    }

    fn is_settled(&self) -> bool {
        let keeps = |client: &Client| {
            client.claims.values().all(|claim| {
                matches!(claim.state, State::Holding(_))
                    && (claim.slot == KEEPER || client.workload.part == Part::Hoarder)
            })
        };
        let is_cut = self.stage.hub.now < self.stage.hub.net.heals_at();
        if is_cut || self.stage.clients.iter().any(|client| client.has_leases_left(&self.stage.hub))
        {
            return false;
        }
        let all_up = self.stage.clients.iter().all(|client| !client.down && client.is_linked());
        self.stage.cluster.all_up() && all_up && self.stage.clients.iter().all(keeps)
    }

    /// Everybody holds something and is at rest, for long enough that both sides compare; then
    /// they must agree.
    fn rest(&mut self) {
        if self.stage.failed() {
            return;
        }
        self.stage.everybody_holds();
        for machine in self.stage.cluster.machines().map(|(_, machine)| machine) {
            let view = machine.view();
            let known =
                |name: &LinkName| self.stage.clients.iter().any(|client| client.session == name.0);
            if let Some(name) = view.links.keys().find(|name| !known(name)) {
                self.stage
                    .hub
                    .accuse("I13 no immortal hold", format!("a link of nobody: {name:?}"));
            }
        }
    }

    /// Everything is given back. Nothing may be left of any key, by the machines and by the wire.
    fn last_look(&mut self) {
        if self.stage.failed() {
            return;
        }
        self.stage.everybody_gives_back();
        self.stop_with_nothing_held();
        self.stage.inspect_all();
        self.stage.everybody_leaves();
        self.stage.cluster.settle_accounts(&mut self.stage.hub);
    }

    /// With nothing held a node stops clean, and the next start grants at once.
    fn stop_with_nothing_held(&mut self) {
        if self.stage.failed() || !self.stage.hub.rng.percent(30) {
            return;
        }
        let clean = self.stage.hub.reached.get("clean stops").copied();
        let node = self.stage.cluster.any(&mut self.stage.hub);
        node.stop(&mut self.stage.hub, &self.stage.keys, Duration::from_millis(100));
        self.stage.for_span(Duration::from_secs(4));
        if self.stage.hub.reached.get("clean stops").copied() == clean
            || !self.stage.cluster.all_up()
        {
            self.stage.hub.accuse("a stop with nothing held is clean", "it was not".to_owned());
        }
    }

    fn strike(&mut self, fault: Fault) {
        self.faults += 1;
        let count = self.stage.clients.len() as u64;
        let whom = self.stage.hub.rng.range(0, count) as usize;
        match fault {
            Fault::Cut => self.stage.clients[whom].cut(&mut self.stage.hub),
            Fault::CutAll => self.stage.cut_all(),
            Fault::Partition(span) => {
                self.stage.hub.reach("partitions");
                let all = 0..self.stage.hub.ring.nodes();
                self.stage.clients[whom].cut_off(&mut self.stage.hub, all, span);
            }
            Fault::Part(span) => {
                if self.stage.hub.ring.nodes() > 1 {
                    self.stage.hub.reach("partial partitions");
                }
                let node = self.any_node();
                self.stage.clients[whom].cut_off(&mut self.stage.hub, node..node + 1, span);
            }
            Fault::CutWay(span) => self.cut_way(whom, span),
            Fault::CutNodes(span) => self.stage.cluster.cut_any(&mut self.stage.hub, span),
            Fault::Leave => self.stage.leave(whom),
            Fault::StopNode { down } => {
                let node = self.stage.cluster.node_mut(self.killed);
                node.stop(&mut self.stage.hub, &self.stage.keys, down);
            }
            Fault::Slow { span, by } => {
                self.stage.hub.reach("slow networks");
                self.stage.hub.net.slow_down(self.stage.hub.now.after(span), by);
            }
            Fault::PauseClient(span) => {
                self.stage.hub.reach("client pauses");
                self.stage.clients[whom].pause(&self.stage.hub, span);
            }
            Fault::PauseNode(span) => {
                self.stage.hub.reach("node pauses");
                self.stage.cluster.any(&mut self.stage.hub).pause_any(&mut self.stage.hub, span);
            }
            Fault::CrashClient { down } => self.stage.kill(whom, down),
            Fault::CrashNode { down } => {
                let node = self.stage.cluster.any(&mut self.stage.hub);
                self.killed = node.index();
                if node.is_up() {
                    node.crash(&mut self.stage.hub);
                    self.stage.hub.soon(down, Event::Node(NodeEvent::Boot { node: node.index() }));
                }
            }
            Fault::RaiseEpoch => self.stage.cluster.raise_any_epoch(&mut self.stage.hub),
            Fault::Force => self.stage.force_one(),
            Fault::WallJump(span) => {
                self.stage.hub.reach("wall clock jumps");
                self.stage.cluster.any(&mut self.stage.hub).wall_clock_jumps(span);
            }
            Fault::Storm => {
                for client in &mut self.stage.clients[1..] {
                    client.cut(&mut self.stage.hub);
                }
                for _ in 0..6 {
                    self.stage.force_one();
                }
            }
        }
    }

    fn any_node(&mut self) -> usize {
        self.stage.hub.ring.any_node(&mut self.stage.hub.rng)
    }

    /// Nothing comes from a client to a node, or nothing comes back.
    fn cut_way(&mut self, client: usize, span: Duration) {
        let (client, node) = (End::Client(client), End::Node(self.any_node()));
        if self.stage.hub.rng.percent(50) {
            self.stage.hub.reach("clients cut off from a node one way");
            self.stage.hub.cut_way(client, node, span);
        } else {
            self.stage.hub.reach("nodes cut off from a client one way");
            self.stage.hub.cut_way(node, client, span);
        }
    }
}
