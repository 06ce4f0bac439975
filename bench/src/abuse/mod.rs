//! `bench abuse`: one bad peer beside a well-behaved one.
//!
//! For each attack and round a node of its own is started. A *victim* acquires and releases keys in
//! an open loop, first beside honest peers that load the worker as much as they can, then beside
//! the attacker. The attack fails if the victim's p99 stays within twice that beside honest peers,
//! none of its operations fails, and the node's memory stays within a bound. The attacker holds a
//! valid certificate of the cluster, as a tenant does.

mod attacks;
mod chain;
mod peer;
mod report;

pub use report::AbuseReport;

use crate::choices::{Driver, KeyDist, Output};
use crate::error::BenchError;
use crate::lockring::{self, ClusterAccess};
use crate::options::AbuseOptions;
use crate::process::{ResidentBytes, Spawned};
use crate::progress::Progress;
use crate::report::Outcome;
use crate::rounds::block_on;
use crate::target_run::{Job, Measurement, TargetRun, Workload, refused};
use crate::time::Clock;
use attacks::{Attack, on_thread_of_its_own};
use lockring_client::proto::limits;
use report::{Verdict, print_abuse};
use std::io;
use std::time::Duration;
use tokio::sync::oneshot;

/// Pairs per second of the victim: a small part of what a worker can do.
const PAIRS_PER_S: f64 = 2000.0;
/// Its callers.
const CALLERS: u32 = 16;
/// Its keys.
const KEYS: u32 = 10_000;
/// Callers of the honest load, which start the next pair as soon as one is done.
const HONEST_CALLERS: u32 = 256;
/// How long the victim works before a round is measured.
const RAMP: Duration = Duration::from_millis(300);
/// How often the node's memory is sampled.
const LOOK: Duration = Duration::from_millis(20);

/// Runs every attack and prints the table.
///
/// # Errors
/// When there are no figures to print; the message says what to do.
///
/// # Panics
/// When called from within an async runtime: it runs its own.
pub fn run_abuse(options: &AbuseOptions, output: Output) -> Result<Outcome, BenchError> {
    let reports = measure_abuse(options)?;
    print_abuse(&reports, output)?;
    Ok(Outcome::of(reports.iter().map(|report| &report.safety)))
}

/// Runs the attacks that were asked for, or all: one report each.
///
/// # Errors
/// As [`run_abuse`].
///
/// # Panics
/// As [`run_abuse`].
pub fn measure_abuse(options: &AbuseOptions) -> Result<Vec<AbuseReport>, BenchError> {
    options.check()?;
    let chosen = Attack::chosen(&options.attacks)?;
    block_on(async {
        let progress = Progress::new();
        let mut reports = Vec::new();
        for attack in chosen {
            let mut rounds = Vec::new();
            for round in 1..=options.rounds {
                let (name, does, all) = (attack.name(), attack.does(), options.rounds);
                progress.say(&format!("{name}: {does} ({round} of {all})"));
                rounds.push(measure(options, attack).await?);
            }
            reports.extend(AbuseReport::of_rounds(rounds, options.memory_bound));
        }
        Ok(reports)
    })
}

/// A node, and the victim at work on it.
struct Scene {
    access: ClusterAccess,
    pid: u32,
    victim: TargetRun,
    clock: Clock,
}

impl Scene {
    async fn start(options: &AbuseOptions) -> Result<Self, BenchError> {
        let given = "lockring+spawn:".to_owned();
        let (server, access): (Spawned, ClusterAccess) =
            lockring::spawn_node(&given, options.binary.as_deref(), 1).await?;
        let (pid, clock) = (server.pid(), Clock::start());
        let workload = workload(CALLERS, Some(PAIRS_PER_S));
        let victim = TargetRun::launch_own(given, Some(server), &access, &workload, clock).await?;
        Ok(Self { access, pid, victim, clock })
    }

    fn resident(&self) -> Result<u64, BenchError> {
        let read = ResidentBytes::of(self.pid);
        read.map(|bytes| bytes.0).map_err(BenchError::system("reading the node's memory"))
    }

    /// A round of the victim's, and the most memory that the node had in it.
    async fn round(&mut self, length: Duration) -> Result<(Measurement, u64), BenchError> {
        self.victim.work();
        self.victim.sleep(RAMP).await?;
        let begun = self.victim.begin_round()?;
        let end = self.clock.now() + length;
        let mut peak = 0;
        while self.clock.now() < end {
            self.victim.sleep(LOOK).await?;
            peak = peak.max(self.resident()?);
        }
        Ok((self.victim.end_round(&begun)?, peak))
    }

    /// The same beside honest peers.
    async fn honest_round(&mut self, length: Duration) -> Result<Measurement, BenchError> {
        let (access, given, clock) =
            (self.access.clone(), self.victim.target().to_owned(), self.clock);
        let (rested, at_rest) = oneshot::channel();
        let thread = on_thread_of_its_own(move || async move {
            let _ended_by_ctrl_c =
                rested.send(honest_load(&access, given, clock, RAMP + length).await);
        })?;
        let (round, _) = self.round(length).await?;
        // What they hold would stand in the victim's way until their lease ends.
        let ended = at_rest.await.map_err(io::Error::other);
        ended.map_err(BenchError::system("loading the node"))??;
        drop(thread);
        Ok(round)
    }
}

/// Honest peers at work, for this long.
async fn honest_load(
    access: &ClusterAccess,
    given: String,
    clock: Clock,
    length: Duration,
) -> Result<(), BenchError> {
    let access = access.anew().map_err(|problem| refused(&given, problem))?;
    let workload = workload(HONEST_CALLERS, None);
    let mut peers = TargetRun::launch_own(given, None, &access, &workload, clock).await?;
    peers.work();
    peers.sleep(length).await?;
    peers.rest().await
}

fn workload(callers: u32, rate: Option<f64>) -> Workload {
    Workload {
        callers,
        connections: 1,
        keys: KEYS,
        lease: limits::TTL_DEFAULT,
        driver: Driver::Lean,
        job: Job::Pairs { dist: KeyDist::Uniform, hold: Duration::ZERO, rate },
    }
}

async fn measure(options: &AbuseOptions, attack: Attack) -> Result<AbuseReport, BenchError> {
    let mut scene = Scene::start(options).await?;
    let honest = scene.honest_round(options.duration).await?;
    let (idle, before) = scene.round(options.duration / 4).await?;
    let assault = attack.begin(&scene.access, options.duration)?;
    let (during, peak) = scene.round(options.duration).await?;
    let done = assault.end();
    let (errors, first_error) = scene.victim.errors();
    let p99 = |round: Measurement| round.acquire.map_or(0.0, |acquire| acquire.p99_us);
    let p99_ratio = p99(during) / p99(honest).max(1.0);
    let verdict = Verdict {
        p99_ratio,
        p99_ratio_worst: p99_ratio,
        grown_bytes: peak.saturating_sub(before),
        errors,
    };
    Ok(AbuseReport {
        attack: attack.name().to_owned(),
        done,
        idle_p99_us: p99(idle),
        honest_p99_us: p99(honest),
        during_p99_us: p99(during),
        pairs: during.pairs,
        withstood: verdict.is_withstood(options.memory_bound),
        verdict,
        first_error,
        safety: scene.victim.safety(),
    })
}
