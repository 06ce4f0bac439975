//! `bench memory`: the resident size of a server that holds many locks and is at rest.

use crate::choices::{Driver, Output};
use crate::error::BenchError;
use crate::options::MemoryOptions;
use crate::process::{CpuTime, ResidentBytes, Spawned};
use crate::progress::Progress;
use crate::report::{MemoryReport, Outcome, print_memory};
use crate::rounds::one_by_one;
use crate::target::{Target, TargetKind};
use crate::target_run::{Job, TargetRun, Workload};
use crate::time::{Clock, Time};
use std::time::Duration;

/// Longer than any run: locks must not expire while they are counted.
const LEASE: Duration = Duration::from_secs(24 * 3600);
/// Acquires in flight.
const CALLERS: u32 = 512;
const CONNECTIONS: u32 = 4;
/// How often a server that comes to rest is looked at.
const LOOK: Duration = Duration::from_secs(1);
/// How many looks in a row must find it at rest.
const LOOKS: u32 = 2;
/// A server that is still at work after this is measured nevertheless, and the report says so.
const REST_WITHIN: Duration = Duration::from_secs(180);
/// An idle Redis takes 0.2 % of a core; one that still grows its table, 1 %.
const IDLE_SHARE: f64 = 0.006;

/// Measures memory and prints the figures.
///
/// # Errors
/// When there are no figures to print; the message says what to do.
///
/// # Panics
/// When called from within an async runtime: it runs its own.
pub fn run_memory(options: &MemoryOptions, output: Output) -> Result<Outcome, BenchError> {
    let reports = measure_memory(options)?;
    print_memory(&reports, output)?;
    Ok(Outcome::of(reports.iter().map(|report| &report.safety)))
}

/// Measures memory: one report per target, in the order given, one server at a time.
///
/// # Errors
/// As [`run_memory`].
///
/// # Panics
/// As [`run_memory`].
pub fn measure_memory(options: &MemoryOptions) -> Result<Vec<MemoryReport>, BenchError> {
    options.check()?;
    one_by_one(&options.targets, refuse_unfit, &async |target: &Target, progress: &Progress| {
        measure(target, options.locks, progress).await
    })
}

fn refuse_unfit(target: &Target) -> Result<(), BenchError> {
    let why = match target.kind() {
        TargetKind::LockringSpawn { .. } | TargetKind::RedisSpawn => return Ok(()),
        TargetKind::EchoSpawn => "an echo holds no locks: use lockring+spawn: or redis+spawn:",
        TargetKind::Lockring { .. } | TargetKind::Redis { .. } => {
            "the memory of a server that was not started here cannot be read: use \
             lockring+spawn: or redis+spawn:"
        }
    };
    Err(BenchError::Unsupported { target: target.to_string(), why })
}

async fn measure(
    target: &Target,
    locks: u32,
    progress: &Progress,
) -> Result<MemoryReport, BenchError> {
    let callers = CALLERS.min(locks);
    let connections = CONNECTIONS.min(callers);
    let (driver, job) = (Driver::Lean, Job::Fill);
    let workload = Workload { callers, connections, keys: locks, lease: LEASE, driver, job };
    let clock = Clock::start();
    progress.say(&format!("starting {target}"));
    let mut run = TargetRun::start(target, &workload, clock).await?;
    let mut idle = Look::take(&run, clock)?;
    run.sleep(LOOK).await?;
    let empty = Look::take(&run, clock)?;
    let idle_share = IDLE_SHARE.max(1.5 * empty.share_since(&idle));
    let say = |held| progress.say(&format!("{target}: {held} of {locks} locks held"));
    run.fill(locks, say).await?;
    progress.say(&format!("{target}: waiting until the server is at rest"));
    let filled_at = clock.now();
    let (mut in_a_row, mut at_rest) = (0, false);
    idle = Look::take(&run, clock)?;
    while !at_rest && clock.now() < filled_at + REST_WITHIN {
        run.sleep(LOOK).await?;
        let look = Look::take(&run, clock)?;
        let rests = look.share_since(&idle) <= idle_share && look.same_size_as(&idle);
        in_a_row = if rests { in_a_row + 1 } else { 0 };
        at_rest = in_a_row == LOOKS;
        idle = look;
    }
    Ok(MemoryReport {
        target: target.to_string(),
        locks,
        bytes_per_lock: idle.resident.0 as f64 / f64::from(locks),
        rss_bytes: idle.resident.0,
        empty_rss_bytes: empty.resident.0,
        at_rest,
        rest_s: clock.now().nanos_since(filled_at) as f64 / 1e9,
        safety: run.safety(),
    })
}

/// A server at one moment.
struct Look {
    at: Time,
    cpu: CpuTime,
    resident: ResidentBytes,
}

impl Look {
    fn take(run: &TargetRun, clock: Clock) -> Result<Self, BenchError> {
        let pid = run.server().map(Spawned::pid);
        let Some(pid) = pid else {
            unreachable!("targets without a server of their own are refused");
        };
        let reading = || Ok((CpuTime::of(pid)?, ResidentBytes::of(pid)?));
        let (cpu, resident) =
            reading().map_err(BenchError::system::<std::io::Error>("reading the server's size"))?;
        Ok(Self { at: clock.now(), cpu, resident })
    }

    /// Cores used since `earlier`.
    fn share_since(&self, earlier: &Self) -> f64 {
        self.cpu.nanos_since(earlier.cpu) as f64 / self.at.nanos_since(earlier.at).max(1) as f64
    }

    /// Whether the size is the same to a thousandth.
    fn same_size_as(&self, other: &Self) -> bool {
        self.resident.0.abs_diff(other.resident.0) <= other.resident.0 / 1000
    }
}
