//! The runner of `bench pairs` and `bench latency`: targets take turns, round by round.

use crate::choices::Output;
use crate::error::BenchError;
use crate::options::{LatencyOptions, PairsOptions};
use crate::print;
use crate::progress::Progress;
use crate::report::{Outcome, PairsReport, print_pairs};
use crate::signals;
use crate::target::Target;
use crate::target_run::{Job, Measurement, TargetRun, Workload, after_semicolon};
use crate::time::Clock;
use lockring_client::proto::Shown;
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinSet;

/// Lease of a lock on a server where each has one. Nobody renews it, so holds are much shorter.
const LEASE: Duration = Duration::from_secs(10);
/// Each round begins with so much unmeasured work, or a tenth of it if that is less.
const RAMP_MAX: Duration = Duration::from_millis(100);

/// Measures acquire and release pairs and prints the figures.
///
/// # Errors
/// When there are no figures to print; the message says what to do.
///
/// # Panics
/// When called from within an async runtime: it runs its own.
pub fn run_pairs(options: &PairsOptions, output: Output) -> Result<Outcome, BenchError> {
    let reports = measure_pairs(options)?;
    for report in &reports {
        if report.driver != options.driver.to_string() {
            let PairsReport { target, driver, .. } = report;
            let target = Shown(target);
            print::remark(&format!("{target} has no public client of ours: driven {driver}\n"));
        }
    }
    print_pairs(&reports, output)?;
    Ok(Outcome::of(reports.iter().map(|report| &report.safety)))
}

/// Measures one caller on one connection and prints the figures.
///
/// # Errors
/// As [`run_pairs`].
///
/// # Panics
/// As [`run_pairs`].
pub fn run_latency(options: &LatencyOptions, output: Output) -> Result<Outcome, BenchError> {
    run_pairs(&options.clone().into(), output)
}

/// Measures acquire and release pairs: one report per target, in the order given.
///
/// # Errors
/// As [`run_pairs`].
///
/// # Panics
/// As [`run_pairs`].
pub fn measure_pairs(options: &PairsOptions) -> Result<Vec<PairsReport>, BenchError> {
    options.check()?;
    block_on(measure(options))
}

/// Signals that end a run. Others leave no time to stop its servers.
const ENDING: [SignalKind; 7] = [
    SignalKind::interrupt(),
    SignalKind::terminate(),
    SignalKind::hangup(),
    SignalKind::quit(),
    SignalKind::alarm(),
    SignalKind::user_defined1(),
    SignalKind::user_defined2(),
];

/// Runs on this thread alone, until a signal asks to stop: what was started here is then dropped in
/// good order, so that no server outlives the run.
pub(crate) fn block_on<T>(
    run: impl Future<Output = Result<T, BenchError>>,
) -> Result<T, BenchError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(BenchError::system("starting a runtime"))?;
    runtime.block_on(async {
        let mut ending = JoinSet::new();
        for kind in ENDING.into_iter().filter(|&kind| !signals::is_ignored(kind)) {
            let mut caught = signal(kind).map_err(BenchError::system("catching signals"))?;
            ending.spawn(async move { caught.recv().await });
        }
        tokio::select! {
            result = run => result,
            Some(_) = ending.join_next() => Err(BenchError::Interrupted),
        }
    })
}

/// Measures targets one after the other, one report each, once every one is known to be fit.
pub(crate) fn one_by_one<R>(
    targets: &[Target],
    refuse_unfit: impl Fn(&Target) -> Result<(), BenchError>,
    measure: &impl AsyncFn(&Target, &Progress) -> Result<R, BenchError>,
) -> Result<Vec<R>, BenchError> {
    targets.iter().try_for_each(refuse_unfit)?;
    block_on(async {
        let progress = Progress::new();
        let mut reports = Vec::new();
        for target in targets {
            reports.push(measure(target, &progress).await?);
        }
        Ok(reports)
    })
}

async fn measure(options: &PairsOptions) -> Result<Vec<PairsReport>, BenchError> {
    let (count, length) = options.rounds();
    let ramp = RAMP_MAX.min(length / 10);
    let progress = Progress::new();
    let mut runs = start_all(options, &progress).await?;
    let mut rounds: Vec<Vec<Measurement>> = vec![Vec::new(); runs.len()];
    for number in 0..=count {
        for (run, measured) in runs.iter_mut().zip(&mut rounds) {
            progress.say(&format!("round {number} of {count}: {}", run.target()));
            let round = run.round(ramp, length).await?;
            // The first is for warming up.
            if number > 0 {
                measured.push(round);
            }
        }
    }
    report_all(options, &runs, &rounds)
}

async fn start_all(
    options: &PairsOptions,
    progress: &Progress,
) -> Result<Vec<TargetRun>, BenchError> {
    let &PairsOptions { callers, connections, keys, dist, hold, rate, driver, .. } = options;
    let job = Job::Pairs { dist, hold, rate };
    let workload = Workload { callers, connections, keys, lease: LEASE, driver, job };
    let clock = Clock::start();
    let mut runs = Vec::new();
    for target in &options.targets {
        progress.say(&format!("starting {target}"));
        runs.push(TargetRun::start(target, &workload, clock).await?);
    }
    Ok(runs)
}

fn report_all(
    options: &PairsOptions,
    runs: &[TargetRun],
    rounds: &[Vec<Measurement>],
) -> Result<Vec<PairsReport>, BenchError> {
    let mut reports = Vec::new();
    for (number, (run, own)) in runs.iter().zip(rounds).enumerate() {
        let first = (number > 0).then_some(rounds[0].as_slice());
        let report = PairsReport::new(run, options, own, first);
        reports.push(report.ok_or_else(|| BenchError::NothingMeasured {
            target: run.target().to_owned(),
            first_error: after_semicolon(run.errors().1.map(Shown)),
        })?);
    }
    Ok(reports)
}
