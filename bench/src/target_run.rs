//! A target at work: its server if it was started here, its groups, and what they count.

use crate::board::{Board, Phase};
use crate::caller_group::{CallerGroup, Pacing, Work};
use crate::choices::{Driver, KeyDist};
use crate::drive::{GroupError, GroupSetting, drive, lock};
use crate::error::BenchError;
use crate::keys::KeyChooser;
use crate::lockring::{self, Caller, InOrderProtocol, LockringProtocol, Pacer, Question};
use crate::process::{CpuTime, Spawned, own_cpu};
use crate::protocol::Protocol;
use crate::redis;
use crate::safety::{Guarantees, SafetyCheck, SafetyReport};
use crate::stats::Quantiles;
use crate::target::{Target, TargetKind};
use crate::time::{Clock, Time};
use lockring_client::proto::{Shown, limits};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::task::{JoinError, JoinSet};

/// After a round, and in a fill, something must be answered within this.
const STUCK_AFTER: Duration = Duration::from_secs(30);

/// What all targets are given to do.
#[derive(Clone, Debug)]
pub(crate) struct Workload {
    pub(crate) callers: u32,
    pub(crate) connections: u32,
    pub(crate) keys: u32,
    /// For servers where each lock has one.
    pub(crate) lease: Duration,
    /// For servers that have a public client.
    pub(crate) driver: Driver,
    pub(crate) job: Job,
}

/// The kinds of run.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Job {
    Pairs { dist: KeyDist, hold: Duration, rate: Option<f64> },
    Fill,
}

impl Workload {
    /// First and number of a connection's callers: equal shares, the remainder to the first ones.
    fn callers_of(&self, connection: u32) -> (u32, u32) {
        share(self.callers, self.connections, connection)
    }

    fn work_of(&self, connection: u32) -> Work {
        match self.job {
            Job::Fill => {
                let (next, count) = share(self.keys, self.connections, connection);
                Work::Fill { next, end: next + count }
            }
            Job::Pairs { dist, hold, rate } => {
                let chooser = KeyChooser::new(self.keys, dist, u64::from(connection));
                let pacing = rate.map_or(Pacing::Closed, |rate| self.pacing(rate, connection));
                Work::Pairs { chooser, pacing, hold }
            }
        }
    }

    /// The connections take turns, so that starts are evenly spaced over all of them.
    fn pacing(&self, rate: f64, connection: u32) -> Pacing {
        let interval_ns = (1e9 * f64::from(self.connections) / rate).max(1.0) as u64;
        let turn = u64::from(connection) * interval_ns / u64::from(self.connections);
        Pacing::Open { interval_ns, offset_ns: turn }
    }
}

/// First and length of the `index`-th of `parts` nearly equal parts of `0..total`.
fn share(total: u32, parts: u32, index: u32) -> (u32, u32) {
    let (base, extra) = (total / parts, total % parts);
    (index * base + index.min(extra), base + u32::from(index < extra))
}

/// One measured round.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Measurement {
    pub(crate) seconds: f64,
    pub(crate) pairs: u64,
    pub(crate) server_cpu_ns: Option<u64>,
    pub(crate) client_cpu_ns: u64,
    pub(crate) acquire: Option<Quantiles>,
    pub(crate) release: Option<Quantiles>,
}

/// The clocks at one moment.
pub(crate) struct Reading {
    at: Time,
    server: Option<CpuTime>,
    client_ns: u64,
}

/// A target at work. Dropping it ends its groups, and its server if it was started here.
pub(crate) struct TargetRun {
    target: String,
    driver: Driver,
    clock: Clock,
    phase: watch::Sender<Phase>,
    board: Arc<Mutex<Board>>,
    groups: JoinSet<Result<(), GroupError>>,
    server: Option<Spawned>,
}

impl TargetRun {
    /// Starts the server if need be, and connects.
    pub(crate) async fn start(
        target: &Target,
        workload: &Workload,
        clock: Clock,
    ) -> Result<Self, BenchError> {
        let given = target.to_string();
        match target.kind() {
            TargetKind::RedisSpawn => {
                let (server, port) = redis::spawn(&given).await?;
                let ends = redis_ends(&given, "127.0.0.1", port, workload).await?;
                Ok(Self::launch(given, Some(server), Guarantees::EXCLUSION, ends, workload, clock))
            }
            TargetKind::Redis { host, port } => {
                let ends = redis_ends(&given, host, *port, workload).await?;
                Ok(Self::launch(given, None, Guarantees::EXCLUSION, ends, workload, clock))
            }
            TargetKind::Lockring { url } => {
                let access = lockring::reach(&given, url).await?;
                Self::launch_own(given, None, &access, workload, clock).await
            }
            TargetKind::LockringSpawn { path, workers } => {
                let (server, access) =
                    lockring::spawn_node(&given, path.as_deref(), *workers).await?;
                Self::launch_own(given, Some(server), &access, workload, clock).await
            }
            TargetKind::EchoSpawn => {
                let (server, access) = lockring::spawn(&given, None, &["echo-server"]).await?;
                let mut ends = Vec::new();
                for _ in 0..workload.connections {
                    let wire = access.wire().await;
                    let wire = wire.map_err(|error| refused(&given, error.to_string()))?;
                    ends.push((InOrderProtocol::new(Question::Echo), wire.into_stream()));
                }
                Ok(Self::launch(given, Some(server), Guarantees::NONE, ends, workload, clock))
            }
        }
    }

    /// Our own server, driven as the workload says.
    pub(crate) async fn launch_own(
        target: String,
        server: Option<Spawned>,
        access: &lockring::ClusterAccess,
        workload: &Workload,
        clock: Clock,
    ) -> Result<Self, BenchError> {
        let mut run = Self::idle(target, server, Guarantees::FENCED, workload, clock);
        match workload.driver {
            Driver::Lean => run.spawn_links(access, workload).await?,
            Driver::Api => run.spawn_callers(access, workload).await?,
        }
        run.driver = workload.driver;
        Ok(run)
    }

    /// Groups over the client's own links.
    async fn spawn_links(
        &mut self,
        access: &lockring::ClusterAccess,
        workload: &Workload,
    ) -> Result<(), BenchError> {
        for connection in 0..workload.connections {
            let (first, callers) = workload.callers_of(connection);
            let end = LockringProtocol::connect(access, callers, limits::TTL_DEFAULT).await;
            let (protocol, wires) = end.map_err(|problem| refused(&self.target, problem))?;
            let group = CallerGroup::new(protocol, workload.work_of(connection), first, callers);
            let setting = self.setting();
            self.groups.spawn(async { lockring::drive(group, wires, setting).await.map(drop) });
        }
        Ok(())
    }

    /// A task per caller, over the public client.
    async fn spawn_callers(
        &mut self,
        access: &lockring::ClusterAccess,
        workload: &Workload,
    ) -> Result<(), BenchError> {
        for connection in 0..workload.connections {
            let client = access.client().await;
            let client = client.map_err(|error| refused(&self.target, error.to_string()))?;
            let Work::Pairs { chooser, pacing, hold } = workload.work_of(connection) else {
                unreachable!("only pairs are driven by tasks")
            };
            let pacer = Pacer::of(pacing).map_err(BenchError::system("making a timer"))?;
            let (first, callers) = workload.callers_of(connection);
            for number in first..first + callers {
                let caller = Caller {
                    client: client.clone(),
                    number,
                    chooser: chooser.reseeded(u64::from(number)),
                    hold,
                    pacer: pacer.clone(),
                    setting: self.setting(),
                    running: false,
                };
                self.groups.spawn(caller.run());
            }
        }
        Ok(())
    }

    /// A session that does nothing but keep itself alive at every worker, at the workload's rate.
    pub(crate) async fn launch_keepalives(
        target: String,
        access: &lockring::ClusterAccess,
        workload: &Workload,
        clock: Clock,
    ) -> Result<Self, BenchError> {
        let end = LockringProtocol::connect(access, 0, limits::TTL_DEFAULT).await;
        let (_, wires) = end.map_err(|problem| refused(&target, problem))?;
        let workload = Workload { connections: wires.len() as u32, ..workload.clone() };
        let ends = wires
            .into_iter()
            .map(|wire| (InOrderProtocol::new(Question::Renewal), wire.into_stream()));
        Ok(Self::launch(target, None, Guarantees::NONE, ends.collect(), &workload, clock))
    }

    /// A target without groups.
    fn idle(
        target: String,
        server: Option<Spawned>,
        guarantees: Guarantees,
        workload: &Workload,
        clock: Clock,
    ) -> Self {
        let safety = SafetyCheck::new(guarantees, workload.keys);
        let board = Arc::new(Mutex::new(Board::new(safety)));
        let (phase, _) = watch::channel(Phase::Paused);
        let driver = Driver::Lean;
        Self { target, driver, clock, phase, board, groups: JoinSet::new(), server }
    }

    fn setting(&self) -> GroupSetting {
        GroupSetting {
            clock: self.clock,
            board: Arc::clone(&self.board),
            phase: self.phase.subscribe(),
        }
    }

    fn launch<P, S>(
        target: String,
        server: Option<Spawned>,
        guarantees: Guarantees,
        ends: Vec<(P, S)>,
        workload: &Workload,
        clock: Clock,
    ) -> Self
    where
        P: Protocol,
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let mut run = Self::idle(target, server, guarantees, workload, clock);
        let setting = run.setting();
        for (connection, (protocol, stream)) in (0..).zip(ends) {
            let (first, callers) = workload.callers_of(connection);
            let group = CallerGroup::new(protocol, workload.work_of(connection), first, callers);
            run.groups.spawn(drive(group, stream, setting.clone()));
        }
        run
    }

    /// The target as given.
    pub(crate) fn target(&self) -> &str {
        &self.target
    }

    /// How its callers are driven.
    pub(crate) fn driver(&self) -> Driver {
        self.driver
    }

    /// The server, if it was started here.
    pub(crate) fn server(&self) -> Option<&Spawned> {
        self.server.as_ref()
    }

    fn board(&self) -> MutexGuard<'_, Board> {
        lock(&self.board)
    }

    /// Whether anything was measured in this round.
    pub(crate) fn has_samples(&self) -> bool {
        self.board().acquire.quantiles().is_some()
    }

    /// Failed operations so far, and what was said of the first.
    pub(crate) fn errors(&self) -> (u64, Option<String>) {
        let board = self.board();
        (board.errors, board.first_error.clone())
    }

    /// What the safety check has found so far.
    pub(crate) fn safety(&self) -> SafetyReport {
        SafetyReport::of(&mut self.board().safety)
    }

    /// Works for `ramp` unmeasured and then for `length` measured, and comes to rest.
    pub(crate) async fn round(
        &mut self,
        ramp: Duration,
        length: Duration,
    ) -> Result<Measurement, BenchError> {
        self.work();
        self.sleep(ramp).await?;
        let begun = self.begin_round()?;
        self.sleep(length).await?;
        let round = self.end_round(&begun)?;
        self.phase.send_replace(Phase::Paused);
        self.await_quiet().await?;
        Ok(round)
    }

    /// Begins to work.
    pub(crate) fn work(&self) {
        self.phase.send_replace(Phase::Running);
    }

    /// Starts nothing new and waits until all is given back.
    pub(crate) async fn rest(&mut self) -> Result<(), BenchError> {
        self.phase.send_replace(Phase::Paused);
        self.await_quiet().await
    }

    /// Begins to measure.
    pub(crate) fn begin_round(&self) -> Result<Reading, BenchError> {
        let begun = self.reading()?;
        self.board().begin_round();
        Ok(begun)
    }

    /// Acquires every key of the workload once; `say` hears how many are held.
    pub(crate) async fn fill(&mut self, keys: u32, say: impl Fn(u64)) -> Result<(), BenchError> {
        self.work();
        let (mut last, mut moved_at) = (0, self.clock.now());
        loop {
            self.sleep(Duration::from_millis(20)).await?;
            let (grants, errors, outstanding) = {
                let board = self.board();
                (board.grants, board.errors, board.outstanding)
            };
            let settled = grants + errors;
            if outstanding == 0 && settled >= u64::from(keys) {
                break;
            }
            if settled > last {
                (last, moved_at) = (settled, self.clock.now());
            }
            self.refuse_stuck(moved_at, outstanding)?;
            say(grants);
        }
        self.phase.send_replace(Phase::Paused);
        let board = self.board();
        if board.grants == u64::from(keys) {
            return Ok(());
        }
        Err(not_filled(&self.target, keys, &board))
    }

    /// Sleeps, unless a group ends meanwhile.
    pub(crate) async fn sleep(&mut self, length: Duration) -> Result<(), BenchError> {
        let ended = tokio::select! {
            () = tokio::time::sleep(length) => return Ok(()),
            Some(ended) = self.groups.join_next() => ended,
        };
        Err(self.group_error(ended).await)
    }

    async fn group_error(
        &mut self,
        ended: Result<Result<(), GroupError>, JoinError>,
    ) -> BenchError {
        let source = match ended {
            Ok(Err(source)) => source,
            // A group ends well only when the phase's sender, which is here, is gone.
            Ok(Ok(())) => unreachable!("a group ended while its run lives"),
            Err(panic) => std::panic::resume_unwind(panic.into_panic()),
        };
        // A dying server's connections close a moment before it can be reaped.
        tokio::time::sleep(Duration::from_millis(100)).await;
        let obituary = self.server.as_mut().and_then(|server| server.obituary().ok().flatten());
        let obituary = after_semicolon(obituary);
        BenchError::CallerGroup { target: self.target.clone(), source, obituary }
    }

    fn reading(&self) -> Result<Reading, BenchError> {
        let server = self.server.as_ref().map(|server| CpuTime::of(server.pid())).transpose();
        Ok(Reading {
            at: self.clock.now(),
            server: server.map_err(BenchError::system("reading the server's CPU time"))?,
            client_ns: own_cpu(),
        })
    }

    /// Says what was measured since.
    pub(crate) fn end_round(&self, before: &Reading) -> Result<Measurement, BenchError> {
        let after = self.reading()?;
        let mut board = self.board();
        board.recording = false;
        let server = after.server.zip(before.server);
        Ok(Measurement {
            seconds: after.at.nanos_since(before.at) as f64 / 1e9,
            pairs: board.pairs,
            server_cpu_ns: server.map(|(after, before)| after.nanos_since(before)),
            client_cpu_ns: after.client_ns - before.client_ns,
            acquire: board.acquire.quantiles(),
            release: board.release.quantiles(),
        })
    }

    async fn await_quiet(&mut self) -> Result<(), BenchError> {
        let since = self.clock.now();
        loop {
            let outstanding = self.board().outstanding;
            if outstanding == 0 {
                return Ok(());
            }
            self.refuse_stuck(since, outstanding)?;
            self.sleep(Duration::from_millis(1)).await?;
        }
    }

    fn refuse_stuck(&self, since: Time, outstanding: u32) -> Result<(), BenchError> {
        if self.clock.now() <= since + STUCK_AFTER {
            return Ok(());
        }
        let (target, seconds) = (self.target.clone(), STUCK_AFTER.as_secs());
        Err(BenchError::Stuck { target, outstanding, seconds })
    }
}

/// Not all of the locks could be held.
pub(crate) fn not_filled(target: &str, wanted: u32, board: &Board) -> BenchError {
    BenchError::NotFilled {
        target: target.to_owned(),
        held: board.grants,
        wanted,
        first_error: after_semicolon(board.first_error.as_deref().map(Shown)),
    }
}

/// An optional remark for the end of a sentence.
pub(crate) fn after_semicolon(remark: Option<impl fmt::Display>) -> String {
    remark.map(|remark| format!("; {remark}")).unwrap_or_default()
}

pub(crate) fn refused(target: &str, problem: String) -> BenchError {
    BenchError::Start { target: target.to_owned(), problem }
}

async fn redis_ends(
    target: &str,
    host: &str,
    port: u16,
    workload: &Workload,
) -> Result<Vec<(redis::RedisProtocol, TcpStream)>, BenchError> {
    let mut ends = Vec::new();
    for connection in 0..workload.connections {
        let (_, callers) = workload.callers_of(connection);
        let end = redis::connect(host, port, callers, workload.lease).await;
        ends.push(end.map_err(|source| BenchError::Connect {
            target: target.to_owned(),
            address: format!("{host} port {port}"),
            source,
        })?);
    }
    Ok(ends)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_cover_everything_once() {
        for (total, parts) in [(512, 4), (10, 3), (5, 5), (1, 1)] {
            let mut next = 0;
            for index in 0..parts {
                let (first, count) = share(total, parts, index);
                assert_eq!(first, next);
                next += count;
            }
            assert_eq!(next, total);
        }
    }

    #[test]
    fn an_open_loop_spreads_its_starts_over_the_connections() {
        let job = Job::Pairs { dist: KeyDist::Uniform, hold: Duration::ZERO, rate: Some(1000.0) };
        let lease = Duration::from_secs(10);
        let workload =
            Workload { callers: 8, connections: 4, keys: 10, lease, driver: Driver::Lean, job };
        for (connection, expected) in [(0, 0), (1, 1_000_000), (3, 3_000_000)] {
            let Work::Pairs { pacing: Pacing::Open { interval_ns, offset_ns }, .. } =
                workload.work_of(connection)
            else {
                panic!("not an open loop");
            };
            assert_eq!((interval_ns, offset_ns), (4_000_000, expected));
        }
    }
}
