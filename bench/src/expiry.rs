//! `bench expiry`: one session dies without a goodbye, holding many locks, while others work.
//!
//! - *The dying one* takes its locks over a link of its own with a TTL of two seconds, keeps it
//!   alive while the others are measured undisturbed, and is then gone from one moment to the next:
//!   no goodbye, no closed connection.
//! - *The working one* acquires and releases other keys in an open loop; a third does nothing but
//!   renew itself. Their latencies just before the death are compared with those of the time in
//!   which the locks are freed: from the end of the lease until the last of them is gone.
//! - *The observer* has queued claims for a sample of the locks, and lists the rest: all is free
//!   when every claim is granted and no lock is listed any more. A claim that is granted while the
//!   dying one may still believe in its lease is a double grant.

use crate::board::{Board, Phase};
use crate::caller_group::{CallerGroup, Work};
use crate::choices::{Driver, KeyDist, Output};
use crate::drive::{GroupError, GroupSetting, lock};
use crate::error::BenchError;
use crate::keys::KeySpace;
use crate::lockring::{self, ClusterAccess, LockringProtocol};
use crate::options::ExpiryOptions;
use crate::process::Spawned;
use crate::progress::Progress;
use crate::report::Outcome;
use crate::report_expiry::{BeforeDuring, ExpiryReport, print_expiry};
use crate::rounds::one_by_one;
use crate::safety::{Guarantees, SafetyCheck, SafetyReport};
use crate::target::{Target, TargetKind};
use crate::target_run::{Job, Measurement, Reading, TargetRun, Workload, not_filled, refused};
use crate::time::{Clock, Time};
use lockring_client::admin::{Cursor, Ring, Worker};
use lockring_client::proto::limits;
use lockring_client::{Client, Error};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::{oneshot, watch};
use tokio::task::JoinSet;

/// TTL of the session that dies: short, so that a run is too.
const TTL: Duration = Duration::from_secs(2);
/// After the end of the lease, the locks are to be free within this.
const GRACE: Duration = Duration::from_secs(2);
/// How long after that a run gives up.
const PATIENCE: Duration = Duration::from_secs(60);
/// Acquires in flight while the locks are taken.
const FILLERS: u32 = 512;
/// Locks with a queued claim, spread over all of them.
const SAMPLES: u32 = 256;
/// Number of the observer in the safety check: past every other caller.
const OBSERVER: u32 = FILLERS;
/// Pairs per second of the session that works: a part of what a worker can do.
const PAIRS_PER_S: f64 = 10_000.0;
/// Keys of the session that works.
const WORK_KEYS: u32 = 100_000;
/// Pairs of renewals per second.
const RENEWALS_PER_S: f64 = 3000.0;
/// Callers of each of these two.
const WORKERS: u32 = 64;
/// The undisturbed time that is measured.
const BEFORE: Duration = Duration::from_secs(2);
/// How long the others have worked when it begins.
const RAMP: Duration = Duration::from_millis(500);
/// How often it is looked what is left.
const LOOK: Duration = Duration::from_millis(5);

/// The locks of the session that dies, apart from the keys of the one that works.
const SPACE: KeySpace = KeySpace(1);

/// Measures the death of a session and prints the figures.
///
/// # Errors
/// When there are no figures to print; the message says what to do.
///
/// # Panics
/// When called from within an async runtime: it runs its own.
pub fn run_expiry(options: &ExpiryOptions, output: Output) -> Result<Outcome, BenchError> {
    let reports = measure_expiry(options)?;
    print_expiry(&reports, output)?;
    Ok(Outcome::of(reports.iter().map(|report| &report.safety)))
}

/// Measures the death of a session: one report per target, in the order given.
///
/// # Errors
/// As [`run_expiry`].
///
/// # Panics
/// As [`run_expiry`].
pub fn measure_expiry(options: &ExpiryOptions) -> Result<Vec<ExpiryReport>, BenchError> {
    options.check()?;
    one_by_one(&options.targets, refuse_unfit, &async |target: &Target, progress: &Progress| {
        measure(target, options.locks, progress).await
    })
}

fn refuse_unfit(target: &Target) -> Result<(), BenchError> {
    let why = match target.kind() {
        TargetKind::Lockring { .. } | TargetKind::LockringSpawn { .. } => return Ok(()),
        TargetKind::EchoSpawn => "an echo holds no locks: use lockring+spawn: or lockring://",
        TargetKind::Redis { .. } | TargetKind::RedisSpawn => {
            "Redis has no sessions that could die, each of its locks expires by itself: use \
             lockring+spawn: or lockring://"
        }
    };
    Err(BenchError::Unsupported { target: target.to_string(), why })
}

async fn reach(target: &Target) -> Result<(Option<Spawned>, ClusterAccess), BenchError> {
    let given = target.to_string();
    match target.kind() {
        TargetKind::Lockring { url } => Ok((None, lockring::reach(&given, url).await?)),
        TargetKind::LockringSpawn { path, workers } => {
            let (server, access) = lockring::spawn_node(&given, path.as_deref(), *workers).await?;
            Ok((Some(server), access))
        }
        TargetKind::Redis { .. } | TargetKind::RedisSpawn | TargetKind::EchoSpawn => {
            unreachable!("refused before")
        }
    }
}

async fn measure(
    target: &Target,
    locks: u32,
    progress: &Progress,
) -> Result<ExpiryReport, BenchError> {
    progress.say(&format!("starting {target}"));
    let clock = Clock::start();
    let (server, access) = reach(target).await?;
    let mut others = Others::start(target, server, &access, clock).await?;
    let doomed = Doomed::start(target, &access, locks, clock).await?;
    doomed.fill(&mut others, locks, progress).await?;
    let mut observer = Observer::start(target, &access, locks, &doomed).await?;
    progress.say(&format!("{target}: measuring before the death"));
    others.work();
    observer.watch(&mut others, clock.now() + RAMP).await?;
    let begun = others.begin()?;
    observer.watch(&mut others, clock.now() + BEFORE).await?;
    let before = others.end(&begun)?;

    let board = Arc::clone(&doomed.board);
    let lapses_at = doomed.die(target)?;
    progress.say(&format!("{target}: the session is dead, its lease runs"));
    observer.watch(&mut others, lapses_at).await?;
    lock(&board).safety.lapse();
    let last_contact = Time(lapses_at.0 - crate::time::nanos(limits::believed(TTL)));
    observer.watch(&mut others, last_contact + limits::honoured(TTL)).await?;
    progress.say(&format!("{target}: the locks are being freed"));
    let begun = others.begin()?;
    let limit = limits::honoured(TTL) + GRACE;
    let freed_at = observer.await_free(&mut others, last_contact + limit + PATIENCE).await?;
    let during = others.end(&begun)?;

    let freed_s = freed_at.nanos_since(last_contact) as f64 / 1e9;
    let (errors, first_error) = others.working.errors();
    let keepalive_p99_us = BeforeDuring::of(before.renewals, during.renewals);
    let acquire_p99_us = BeforeDuring::of(before.pairs, during.pairs);
    let observed = SafetyReport::of(&mut lock(&board).safety);
    Ok(ExpiryReport {
        target: target.to_string(),
        locks,
        freed_s,
        keepalive_p99_us,
        acquire_p99_us,
        ttl_s: TTL.as_secs_f64(),
        limit_s: limit.as_secs_f64(),
        freed_in_time: freed_s <= limit.as_secs_f64(),
        undisturbed: keepalive_p99_us.is_steady() && acquire_p99_us.is_steady(),
        freeing_s: during.pairs.seconds,
        samples: observer.samples,
        pairs: [before.pairs.pairs, during.pairs.pairs],
        errors,
        first_error,
        safety: observed.and(others.working.safety()),
    })
}

/// The session that dies. It lives in a thread and a runtime of its own: those end from one moment
/// to the next, with nobody left to close its connections, as when a process is killed.
struct Doomed {
    clock: Clock,
    board: Arc<Mutex<Board>>,
    phase: watch::Sender<Phase>,
    thread: std::thread::JoinHandle<Result<CallerGroup<LockringProtocol>, GroupError>>,
}

/// Runs the session that dies until its phase is gone.
fn live(
    access: &ClusterAccess,
    locks: u32,
    setting: GroupSetting,
    connected: oneshot::Sender<Result<(), String>>,
) -> Result<CallerGroup<LockringProtocol>, GroupError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let end = match access.anew() {
            Ok(access) => LockringProtocol::connect(&access, FILLERS, TTL).await,
            Err(why) => Err(why),
        };
        let _gone_if_interrupted = connected.send(end.as_ref().map(drop).map_err(Clone::clone));
        let Ok((protocol, wires)) = end else { return Err(GroupError::Closed) };
        let work = Work::Fill { next: 0, end: locks };
        let group = CallerGroup::new(protocol, work, 0, FILLERS).in_space(SPACE);
        lockring::drive(group, wires, setting).await
    })
}

impl Doomed {
    async fn start(
        target: &Target,
        access: &ClusterAccess,
        locks: u32,
        clock: Clock,
    ) -> Result<Self, BenchError> {
        let safety = SafetyCheck::new(Guarantees::FENCED, locks);
        let board = Arc::new(Mutex::new(Board::new(safety)));
        let (phase, listener) = watch::channel(Phase::Paused);
        let setting = GroupSetting { clock, board: Arc::clone(&board), phase: listener };
        let (connected, is_connected) = oneshot::channel();
        let access = access.clone();
        let thread = std::thread::Builder::new()
            .name("doomed".to_owned())
            .spawn(move || live(&access, locks, setting, connected))
            .map_err(BenchError::system("starting a thread"))?;
        let told = is_connected.await.unwrap_or_else(|_| Err("its thread ended".to_owned()));
        told.map_err(|why| refused(&target.to_string(), why))?;
        Ok(Self { clock, board, phase, thread })
    }

    /// Takes its locks.
    async fn fill(
        &self,
        others: &mut Others,
        locks: u32,
        progress: &Progress,
    ) -> Result<(), BenchError> {
        self.phase.send_replace(Phase::Running);
        let (mut last, mut moved_at) = (0, self.clock.now());
        loop {
            others.sleep(LOOK).await?;
            let board = lock(&self.board);
            if board.grants == u64::from(locks) {
                return Ok(());
            }
            if board.grants > last {
                (last, moved_at) = (board.grants, self.clock.now());
            }
            let stuck = self.clock.now() > moved_at + PATIENCE;
            if board.errors > 0 || stuck || self.thread.is_finished() {
                return Err(not_filled(others.working.target(), locks, &board));
            }
            progress.say(&format!("{} of {locks} locks held", board.grants));
        }
    }

    /// Dies: nothing more is sent, nor said to the server. Says until when it may believe in its
    /// lease, had it lived.
    fn die(self, target: &Target) -> Result<Time, BenchError> {
        drop(self.phase);
        let mut group = match self.thread.join() {
            Ok(ended) => ended.map_err(|source| BenchError::CallerGroup {
                target: target.to_string(),
                source,
                obituary: String::new(),
            })?,
            Err(panic) => std::panic::resume_unwind(panic),
        };
        Ok(group.protocol_mut().lapses_at())
    }
}

/// The sessions that live.
struct Others {
    working: TargetRun,
    renewing: TargetRun,
}

/// What was measured of them.
struct Measured {
    pairs: Measurement,
    renewals: Measurement,
}

impl Others {
    async fn start(
        target: &Target,
        server: Option<Spawned>,
        access: &ClusterAccess,
        clock: Clock,
    ) -> Result<Self, BenchError> {
        let workload = |rate| Workload {
            callers: WORKERS,
            connections: 1,
            keys: WORK_KEYS,
            lease: limits::TTL_DEFAULT,
            driver: Driver::Lean,
            job: Job::Pairs { dist: KeyDist::Uniform, hold: Duration::ZERO, rate: Some(rate) },
        };
        let name = || target.to_string();
        let (pairs, renewals) = (workload(PAIRS_PER_S), workload(RENEWALS_PER_S));
        let working = TargetRun::launch_own(name(), server, access, &pairs, clock).await?;
        let renewing = TargetRun::launch_keepalives(name(), access, &renewals, clock).await?;
        Ok(Self { working, renewing })
    }

    fn work(&self) {
        self.working.work();
        self.renewing.work();
    }

    /// Sleeps, unless one of them fails meanwhile.
    async fn sleep(&mut self, length: Duration) -> Result<(), BenchError> {
        tokio::try_join!(self.working.sleep(length), self.renewing.sleep(length)).map(drop)
    }

    fn begin(&self) -> Result<[Reading; 2], BenchError> {
        Ok([self.working.begin_round()?, self.renewing.begin_round()?])
    }

    fn end(&self, [working, renewing]: &[Reading; 2]) -> Result<Measured, BenchError> {
        let (pairs, renewals) =
            (self.working.end_round(working)?, self.renewing.end_round(renewing)?);
        Ok(Measured { pairs, renewals })
    }

    /// Whether a round of both has something to show.
    fn have_samples(&self) -> bool {
        self.working.has_samples() && self.renewing.has_samples()
    }
}

/// The observer, which watches from outside.
struct Observer {
    target: String,
    clock: Clock,
    client: Client,
    /// Queued claims, with the moment of each grant.
    claims: JoinSet<Result<Time, Error>>,
    samples: u32,
    last_grant: Time,
    /// Workers that may still have locks of the dead, the last one listed up to the cursor.
    workers: Vec<Worker>,
    cursor: Cursor,
}

impl Observer {
    async fn start(
        target: &Target,
        access: &ClusterAccess,
        locks: u32,
        doomed: &Doomed,
    ) -> Result<Self, BenchError> {
        let target = target.to_string();
        let client = access.client().await;
        let client = client.map_err(|error| refused(&target, error.to_string()))?;
        let mut claims = JoinSet::new();
        let samples = SAMPLES.min(locks);
        for sample in 0..samples {
            // The first and the last are among them: wherever the server begins, it ends there.
            let spread = u64::from(sample) * u64::from(locks - 1) / u64::from(samples.max(2) - 1);
            let (client, board) = (client.clone(), Arc::clone(&doomed.board));
            claims.spawn(claim(client, spread as u32, board, doomed.clock));
        }
        let workers = client.admin().ring().iter().flat_map(Ring::workers).collect();
        Ok(Self {
            target,
            clock: doomed.clock,
            client,
            claims,
            samples,
            last_grant: Time(0),
            workers,
            cursor: Cursor::default(),
        })
    }

    /// Watches until a moment, as often as when it matters: watching has a cost too.
    async fn watch(&mut self, others: &mut Others, until: Time) -> Result<(), BenchError> {
        while self.clock.now() < until {
            let left = Duration::from_nanos(until.nanos_since(self.clock.now()));
            others.sleep(LOOK.min(left)).await?;
            self.look().await?;
        }
        Ok(())
    }

    /// Waits until all is free, and both others have been measured meanwhile.
    async fn await_free(
        &mut self,
        others: &mut Others,
        give_up_at: Time,
    ) -> Result<Time, BenchError> {
        let mut freed_at = None;
        while freed_at.is_none() || !others.have_samples() {
            if freed_at.is_none() && self.look().await? {
                freed_at = Some(self.clock.now().max(self.last_grant));
            }
            if self.clock.now() > give_up_at {
                let seconds = PATIENCE.as_secs();
                return Err(BenchError::NotFreed { target: self.target.clone(), seconds });
            }
            others.sleep(LOOK).await?;
        }
        Ok(freed_at.unwrap_or(give_up_at))
    }

    /// Whether all is free.
    async fn look(&mut self) -> Result<bool, BenchError> {
        self.look_as_client().await.map_err(|error| BenchError::CallerGroup {
            target: self.target.clone(),
            source: error.into(),
            obituary: String::new(),
        })
    }

    async fn look_as_client(&mut self) -> Result<bool, Error> {
        while let Some(ended) = self.claims.try_join_next() {
            match ended {
                Ok(granted) => self.last_grant = self.last_grant.max(granted?),
                Err(panic) => std::panic::resume_unwind(panic.into_panic()),
            }
        }
        Ok(!self.any_listed().await? && self.claims.is_empty())
    }

    /// Whether a lock of the dead is left. They only go, so that each look begins where the last
    /// one found something.
    async fn any_listed(&mut self) -> Result<bool, Error> {
        while let Some(&worker) = self.workers.last() {
            let page = self.client.admin().list(worker, &SPACE.prefix(), self.cursor, 1).await?;
            if !page.locks.is_empty() {
                return Ok(true);
            }
            match page.next {
                Some(next) => self.cursor = next,
                None => {
                    self.workers.pop();
                    self.cursor = Cursor::default();
                }
            }
        }
        Ok(false)
    }
}

/// Waits in the queue for a lock and says when it was granted.
async fn claim(
    client: Client,
    number: u32,
    board: Arc<Mutex<Board>>,
    clock: Clock,
) -> Result<Time, Error> {
    let guard = client.lock(SPACE.key(number)).await?;
    let granted = clock.now();
    lock(&board).safety.granted(number, OBSERVER, Some(guard.fence()));
    guard.release().await?;
    Ok(granted)
}
