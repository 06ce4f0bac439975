//! One run: participants, faults, and how it must end.

use crate::client::{Client, State};
use crate::cluster::{Bugs, Cluster};
use crate::faults::Temper;
use crate::hub::Hub;
use crate::keys::Keys;
use crate::ring::ClusterRing;
use crate::stage::Stage;
use crate::workload::{KEEPER, Part, Workload};
use lockring_client::session::ClientMutant;
use lockring_core::Time;
use lockring_core::testing::{Rng, Violation, checks};
use lockring_proto::limits::inherited;
use std::collections::{BTreeMap, BTreeSet};
use std::hash::Hasher;
use std::time::Duration;

/// The fewest acquisitions and faults of a run.
const HOLDS_MIN: u64 = 1000;
const FAULTS_MIN: u64 = 5;

/// Work must get on in the end, too.
const FAULTS_MAX: u64 = 60;

/// The bugs of a run.
#[derive(Clone, Copy, Debug, Default)]
pub struct Bug {
    pub nodes: Bugs,
    pub client: Option<ClientMutant>,
}

/// What is run of a seed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Excerpt {
    /// The faults that strike, by their numbers.
    pub faults: BTreeSet<u64>,
    /// How many there are to begin with.
    pub clients: usize,
    pub nodes: usize,
}

impl Excerpt {
    /// All of it.
    pub fn whole(seed: u64) -> Self {
        let mut rng = Rng::new(seed);
        let nodes = *rng.pick(&[1, 2, 3, 3, 3, 4, 5, 7]);
        let clients = rng.range(3, 7) as usize;
        Self { faults: (0..FAULTS_MAX).collect(), clients, nodes }
    }
}

/// What came of a run.
pub struct Report {
    pub violation: Option<Violation>,
    pub trace: u64,
    pub reached: BTreeMap<&'static str, u64>,
    pub time: Time,
}

/// A run.
pub struct Run {
    pub stage: Stage,
}

/// Runs a seed to its end.
pub fn run(seed: u64, bug: Bug, verbose: bool) -> Report {
    run_excerpt(seed, bug, &Excerpt::whole(seed), verbose)
}

/// Runs what is left of a seed to its end.
pub fn run_excerpt(seed: u64, bug: Bug, excerpt: &Excerpt, verbose: bool) -> Report {
    let mut run = Run::of(seed, bug, (excerpt.nodes, excerpt.clients, None), verbose);
    run.chaos(seed, &excerpt.faults);
    run.settle();
    run.rest();
    run.last_look();
    let Hub { recorder, trace, mut reached, now, .. } = run.stage.hub;
    for (&what, n) in &run.stage.cluster.rules.seen {
        *reached.entry(what).or_default() += n;
    }
    let violation = recorder.violation().cloned();
    Report { violation, trace: trace.finish(), reached, time: now }
}

impl Run {
    /// A run of so many nodes and clients, whose sessions ask for these TTLs, in milliseconds,
    /// unless it is left to chance.
    pub fn of(
        seed: u64,
        bug: Bug,
        (nodes, count, ttls): (usize, usize, Option<&'static [u64]>),
        verbose: bool,
    ) -> Self {
        let mut hub =
            Hub::new(Rng::new(seed), ClusterRing::default(), checks::of_clusters(), verbose);
        let keys = Keys::new(count, 0);
        let cluster = Cluster::new(&mut hub, &keys, nodes, bug.nodes);
        let long_holds = *hub.rng.pick(&[2, 2, 4, 8]);
        let needless_compares = hub.rng.percent(20);
        let clients = (0..count)
            .map(|index| {
                let part = if index == 0 { Part::Operator } else { Part::Worker };
                let mut rng = hub.rng.fork();
                let mut workload = Workload::new(part, &mut rng);
                (workload.ttls, workload.long_holds) = (ttls, long_holds);
                workload.needless_compares = needless_compares;
                workload.longest = Duration::from_secs(20);
                Client::new(index, rng, workload, bug.client, false)
            })
            .collect();
        let mut run = Self { stage: Stage { hub, keys, cluster, clients } };
        run.stage.for_span(Duration::from_secs(1));
        for client in &mut run.stage.clients {
            client.start(&mut run.stage.hub);
        }
        run
    }

    /// Nothing was found wrong so far.
    pub fn is_sound(&self) {
        if let Some(violation) = self.stage.hub.recorder.violation() {
            panic!("{violation}");
        }
    }

    /// Faults, one after the other, and on until there was enough of both. When they strike, and
    /// what they are, does not depend on those that are left out.
    fn chaos(&mut self, seed: u64, strikes: &BTreeSet<u64>) {
        let mut rng = Rng::new(!seed);
        let (temper, mean) = (Temper::new(&mut rng), rng.range(100, 2500));
        let (begun, mut faults) = (self.stage.hub.now, 0);
        let least = Duration::from_millis(rng.range(6_000, 15_000));
        loop {
            let pause = rng.tailed(mean).min(mean * 10) + 1;
            self.stage.for_span(Duration::from_millis(pause));
            if self.stage.failed() {
                return;
            }
            let holds = self.stage.hub.reached.get("holds").copied().unwrap_or(0);
            let lasted = self.stage.hub.now.since(begun);
            if faults >= FAULTS_MIN && holds >= HOLDS_MIN && lasted >= least {
                return;
            }
            if lasted > Duration::from_secs(600) {
                return self.stage.hub.accuse("work goes on", format!("only {holds} holds"));
            }
            if faults < FAULTS_MAX {
                let mut its = rng.fork();
                if strikes.contains(&faults) {
                    std::mem::swap(&mut self.stage.hub.rng, &mut its);
                    temper.strike(&mut self.stage);
                    std::mem::swap(&mut self.stage.hub.rng, &mut its);
                }
                faults += 1;
            }
        }
    }

    /// All faults end. What was asked for must be settled, whatever happened before; only keepers
    /// go on holding.
    fn settle(&mut self) {
        self.stage.cluster.heal(&mut self.stage.hub);
        for client in &mut self.stage.clients {
            client.workload.closing = true;
            client.resume(&mut self.stage.hub);
        }
        let longest = self.stage.cluster.rules.state().longest().ttl;
        let patience = inherited(longest) * 3 + Duration::from_secs(30);
        let lapsed = self.stage.clients.iter().filter_map(Client::last_lease).max();
        let healed = self.stage.hub.net.heals_at();
        let begun = self.stage.hub.now.max(healed).max(lapsed.unwrap_or_default());
        let deadline = begun.after(patience);
        while self.stage.hub.now < deadline && !self.stage.failed() && self.is_unsettled().is_some()
        {
            self.stage.for_span(Duration::from_millis(200));
        }
        if let Some(what) = self.is_unsettled() {
            self.stage.hub.accuse("I10 all is settled after the last fault", what);
        }
    }

    /// What is not settled yet.
    fn is_unsettled(&self) -> Option<String> {
        if self.stage.hub.now < self.stage.hub.net.heals_at() {
            return Some("a way is cut".to_owned());
        }
        for client in &self.stage.clients {
            if client.down || !client.is_linked() || client.has_leases_left(&self.stage.hub) {
                return Some(format!("{:?} is down or not linked", client.session));
            }
            let is_kept = |state: State, slot| matches!(state, State::Holding(_)) && slot == KEEPER;
            let left = client.claims.values().find(|claim| !is_kept(claim.state, claim.slot));
            if let Some(left) = left {
                return Some(format!("{:?} still has {left:?}", client.session));
            }
        }
        let living = self.stage.clients.iter().map(|client| client.session).collect();
        let left = || self.stage.cluster.hold_of_the_dead(&living);
        self.stage.cluster.is_at_rest(&self.stage.hub).err().or_else(left)
    }

    /// Everybody holds something and is at rest, for long enough that both sides compare; then
    /// they must agree.
    fn rest(&mut self) {
        if self.stage.failed() {
            return;
        }
        self.stage.everybody_holds();
        self.stage.cluster.check_copies(&mut self.stage.hub);
    }

    /// Everything is given back. Nothing may be left of any key, by the machines and by the wire.
    fn last_look(&mut self) {
        if self.stage.failed() {
            return;
        }
        self.stage.everybody_gives_back();
        self.stage.cluster.check_copies(&mut self.stage.hub);
        self.stage.inspect_all();
        self.stage.everybody_leaves();
    }
}
