//! Admin HTTP: metrics, health and read-only views, on a thread of its own, so that no request
//! here ever delays a lock. It asks the workers and changes nothing.

use crate::control::Health;
use crate::node::StartError;
use crate::worker::{Command, Report};
use axum::extract::{Query, State};
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use lockring_proto::{Claim, ListCursor, ListedLock};
use metrics::{counter, gauge};
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusRecorder};
use serde::{Deserialize, Serialize};
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};

/// A worker that does not answer within this is not alive.
const ANSWER_WITHIN: Duration = Duration::from_secs(1);

/// Most rows of one page.
const ROWS_MAX: usize = 1000;

/// What the admin side sees of the node.
pub struct View {
    /// The workers.
    pub workers: Vec<mpsc::UnboundedSender<Command>>,
    /// The node's id.
    pub node: u32,
    /// Its process life.
    pub boot: u64,
    /// How durable writes go.
    pub health: Arc<Health>,
}

/// The running admin side.
pub struct Admin {
    at: SocketAddr,
    stop: oneshot::Sender<()>,
    thread: JoinHandle<()>,
}

struct Shared {
    view: View,
    /// One recorder per node, not the process's global one: tests run several nodes.
    recorder: PrometheusRecorder,
}

/// Binds the admin port.
///
/// # Errors
/// When it cannot be used.
pub fn bind(at: SocketAddr) -> Result<TcpListener, StartError> {
    let failed = |error| StartError::Admin(at, error);
    let listener = TcpListener::bind(at).map_err(failed)?;
    listener.set_nonblocking(true).map_err(failed)?;
    Ok(listener)
}

impl Admin {
    /// Serves until stopped.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub fn start(listener: TcpListener, view: View) -> Result<Self, StartError> {
        let at = listener.local_addr()?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let recorder = PrometheusBuilder::new().build_recorder();
        metrics::with_local_recorder(&recorder, describe);
        let shared = Arc::new(Shared { view, recorder });
        let (stop, stopped) = oneshot::channel::<()>();
        let thread = std::thread::Builder::new().name("admin".to_owned()).spawn(move || {
            runtime.block_on(async {
                let listener = match tokio::net::TcpListener::from_std(listener) {
                    Ok(listener) => listener,
                    Err(error) => return tracing::error!(%error, "admin HTTP is off"),
                };
                let served = axum::serve(listener, routes(shared)).into_future();
                tokio::select! {
                    ended = served => {
                        if let Err(error) = ended {
                            tracing::error!(%error, "admin HTTP ended");
                        }
                    }
                    _ = stopped => {}
                }
            });
        })?;
        Ok(Self { at, stop, thread })
    }

    /// Where it listens.
    pub fn at(&self) -> SocketAddr {
        self.at
    }

    /// Ends it.
    pub fn stop(self) {
        let _ended_already = self.stop.send(());
        if self.thread.join().is_err() {
            tracing::error!("the admin thread had panicked");
        }
    }
}

fn routes(shared: Arc<Shared>) -> Router {
    Router::new()
        .route("/metrics", get(metrics_text))
        .route("/livez", get(livez))
        .route("/readyz", get(readyz))
        .route("/v1/locks", get(locks))
        .route("/v1/sessions", get(sessions))
        .with_state(shared)
}

impl Shared {
    /// Asks one worker; `None` if it does not answer in time.
    async fn ask<T>(
        &self,
        worker: usize,
        command: impl FnOnce(oneshot::Sender<T>) -> Command,
    ) -> Option<T> {
        let (answer, answered) = oneshot::channel();
        self.view.workers.get(worker)?.send(command(answer)).ok()?;
        tokio::time::timeout(ANSWER_WITHIN, answered).await.ok()?.ok()
    }

    /// How each worker is; `None` if one does not answer.
    async fn reports(&self) -> Option<Vec<Report>> {
        let mut reports = Vec::with_capacity(self.view.workers.len());
        for worker in 0..self.view.workers.len() {
            reports.push(self.ask(worker, Command::Report).await?);
        }
        Some(reports)
    }
}

fn unavailable(why: impl Into<String>) -> Response {
    (StatusCode::SERVICE_UNAVAILABLE, why.into() + "\n").into_response()
}

async fn livez(State(shared): State<Arc<Shared>>) -> Response {
    match shared.reports().await {
        Some(_) => "ok\n".into_response(),
        None => unavailable("a worker does not answer"),
    }
}

/// Ready means: claims are granted now.
async fn readyz(State(shared): State<Arc<Shared>>) -> Response {
    let Some(reports) = shared.reports().await else {
        return unavailable("a worker does not answer");
    };
    if reports.iter().any(|report| report.draining) {
        return unavailable("stopping");
    }
    match reports.iter().filter_map(|report| report.grace_left).max() {
        Some(left) => unavailable(format!(
            "grants in {:.1} s, when every lease of the node's earlier life has surely ended",
            left.as_secs_f64()
        )),
        // What needs no durable write is granted as ever: no failure, but said.
        None => match shared.view.health.cause() {
            Some(cause) => format!(
                "ok, but durable writes fail ({cause}): sessions with a longer TTL than any before \
                 are refused until one succeeds\n"
            )
            .into_response(),
            None => "ok\n".into_response(),
        },
    }
}

async fn metrics_text(State(shared): State<Arc<Shared>>) -> Response {
    let Some(reports) = shared.reports().await else {
        return unavailable("a worker does not answer");
    };
    metrics::with_local_recorder(&shared.recorder, || {
        let (node, boot) = (shared.view.node.to_string(), shared.view.boot);
        gauge!("lockring_build_info", "version" => env!("CARGO_PKG_VERSION"), "node" => node)
            .set(1.0);
        gauge!("lockring_boot").set(boot as f64);
        let health = &shared.view.health;
        counter!("lockring_durable_write_errors_total").absolute(health.failures());
        let failing = f64::from(u8::from(health.cause().is_some()));
        gauge!("lockring_durable_writes_failing").set(failing);
        for (worker, report) in reports.iter().enumerate() {
            record(&worker.to_string(), report);
        }
    });
    let handle = shared.recorder.handle();
    handle.run_upkeep();
    let kind = [(CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")];
    (kind, handle.render()).into_response()
}

/// What each metric means, as scrapers show it.
fn describe() {
    use metrics::{describe_counter, describe_gauge};
    describe_gauge!("lockring_build_info", "Always 1; version and node are labels");
    describe_gauge!("lockring_boot", "Process life of the node: grows with each start");
    describe_counter!("lockring_durable_write_errors_total", "Durable writes that failed");
    describe_gauge!("lockring_durable_writes_failing", "1 while durable writes fail");
    describe_counter!("lockring_acquires_total", "Claims by how they were settled");
    describe_counter!("lockring_hold_ends_total", "Holds by how they ended");
    describe_counter!("lockring_requests_total", "Requests of every kind");
    describe_counter!("lockring_retries_total", "Copies of a request that found the first");
    describe_counter!("lockring_redirects_total", "Requests for a cell owned elsewhere or anew");
    describe_counter!("lockring_stale_requests_total", "Requests of replaced connections");
    describe_counter!("lockring_sessions_started_total", "Sessions that began");
    describe_counter!("lockring_sessions_resumed_total", "Sessions that reconnected");
    describe_counter!("lockring_sessions_expired_total", "Sessions whose lease ended");
    describe_counter!("lockring_orphans_released_total", "Holds that no client knew");
    describe_counter!("lockring_holds_lost_total", "Holds that only a client knew");
    describe_counter!(
        "lockring_handshakes_total",
        "Connection attempts by what was done with them"
    );
    describe_counter!("lockring_worker_stalls_total", "Times a worker was stalled over 75 ms");
    describe_gauge!("lockring_locks_held", "Holds");
    describe_gauge!("lockring_keys_in_use", "Keys held or waited for");
    describe_gauge!("lockring_waiters", "Claims in line");
    describe_gauge!("lockring_sessions", "Sessions");
    describe_gauge!("lockring_quic_connections", "Client connections");
    describe_gauge!("lockring_grace_left_seconds", "Until claims are granted after a restart");
}

/// Folds a worker's plain counters into the recorder.
fn record(worker: &str, report: &Report) {
    let stats = &report.stats;
    let worker = || worker.to_owned();
    let count = |name: &'static str, value: u64| {
        counter!(name, "worker" => worker()).absolute(value);
    };
    let level = |name: &'static str, value: f64| gauge!(name, "worker" => worker()).set(value);
    for (result, value) in [
        ("granted", stats.grants - stats.grants_queued),
        ("granted_from_queue", stats.grants_queued),
        ("busy", stats.busy),
        ("timeout", stats.timeouts),
        ("cancelled", stats.cancelled_waiters),
        ("refused", stats.refused),
    ] {
        counter!("lockring_acquires_total", "worker" => worker(), "result" => result)
            .absolute(value);
    }
    for (reason, value) in
        [("released", stats.releases), ("expired", stats.expired_holds), ("forced", stats.forced)]
    {
        counter!("lockring_hold_ends_total", "worker" => worker(), "reason" => reason)
            .absolute(value);
    }
    count("lockring_requests_total", stats.requests);
    count("lockring_retries_total", stats.retries);
    count("lockring_redirects_total", stats.moved);
    count("lockring_stale_requests_total", stats.stale);
    count("lockring_sessions_started_total", stats.fresh_links);
    count("lockring_sessions_resumed_total", stats.resumed_links);
    count("lockring_sessions_expired_total", stats.expired_links);
    count("lockring_orphans_released_total", stats.orphans);
    count("lockring_holds_lost_total", stats.lost);
    count("lockring_worker_stalls_total", stats.stalls);
    for (result, value) in [
        ("begun", report.handshakes.begun),
        ("failed", report.handshakes.failed),
        ("retried", report.handshakes.retried),
        ("ignored", report.handshakes.ignored),
    ] {
        counter!("lockring_handshakes_total", "worker" => worker(), "result" => result)
            .absolute(value);
    }
    level("lockring_locks_held", stats.holds as f64);
    level("lockring_keys_in_use", stats.keys as f64);
    level("lockring_waiters", stats.waiters as f64);
    level("lockring_sessions", stats.links as f64);
    level("lockring_quic_connections", report.connections as f64);
    let grace = report.grace_left.unwrap_or_default();
    level("lockring_grace_left_seconds", grace.as_secs_f64());
}

#[derive(Debug, Deserialize)]
struct PageQuery {
    #[serde(default)]
    prefix: String,
    #[serde(default)]
    limit: Option<usize>,
    /// What the page before has called `next`.
    #[serde(default)]
    cursor: Option<String>,
}

#[derive(Serialize)]
struct LockView {
    namespace: String,
    /// Bytes that are not printable ASCII are escaped.
    key: String,
    mode: String,
    holder: Option<String>,
    fence: Option<u64>,
    held_ms: Option<u64>,
    lease_left_ms: Option<u64>,
    holders: u32,
    waiters: u32,
}

#[derive(Serialize)]
struct Page<T> {
    rows: Vec<T>,
    next: Option<String>,
}

fn lock_view((namespace, lock): (String, ListedLock)) -> LockView {
    let holder = lock.holder;
    LockView {
        namespace,
        key: lock.key.escape_ascii().to_string(),
        mode: holder
            .as_ref()
            .map_or("", |holder| match holder.claim {
                Claim::Exclusive => "exclusive",
                Claim::Shared => "shared",
                Claim::Permits { .. } => "permits",
            })
            .to_owned(),
        fence: holder.as_ref().map(|holder| holder.fence.0),
        held_ms: holder.as_ref().map(|holder| holder.held_ms),
        lease_left_ms: holder.as_ref().map(|holder| holder.lease_left_ms),
        holder: holder.map(|holder| holder.label),
        holders: lock.holders,
        waiters: lock.waiters,
    }
}

fn bad_cursor() -> Response {
    let message = "the cursor is not one that an earlier page has called `next`\n";
    (StatusCode::BAD_REQUEST, message).into_response()
}

/// `worker.rest`: where a page of several workers begins.
fn split_cursor(cursor: Option<&str>) -> Option<(usize, Vec<u8>)> {
    let Some(cursor) = cursor else { return Some((0, Vec::new())) };
    let (worker, hex) = cursor.split_once('.')?;
    if hex.len() % 2 != 0 || !hex.is_ascii() {
        return None;
    }
    let rest = (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).ok());
    Some((worker.parse().ok()?, rest.collect::<Option<_>>()?))
}

fn join_cursor(worker: usize, rest: &[u8]) -> String {
    use std::fmt::Write;
    let mut text = format!("{worker}.");
    for byte in rest {
        let _a_string_takes_all = write!(text, "{byte:02x}");
    }
    text
}

async fn locks(State(shared): State<Arc<Shared>>, Query(query): Query<PageQuery>) -> Response {
    let limit = query.limit.unwrap_or(100).clamp(1, ROWS_MAX);
    let Some((mut worker, rest)) = split_cursor(query.cursor.as_deref()) else {
        return bad_cursor();
    };
    let mut cursor = match <[u8; 4]>::try_from(rest.as_slice()) {
        Ok(bytes) => ListCursor { from: u32::from_be_bytes(bytes) },
        Err(_) if rest.is_empty() => ListCursor::default(),
        Err(_) => return bad_cursor(),
    };
    let mut rows = Vec::new();
    let next = loop {
        if worker >= shared.view.workers.len() {
            break None;
        }
        if rows.len() >= limit {
            break Some(join_cursor(worker, &cursor.from.to_be_bytes()));
        }
        let (at, prefix) = (cursor, query.prefix.clone().into_bytes());
        let wanted = (limit - rows.len()) as u32;
        let page = shared.ask(worker, |answer| Command::Locks(at, wanted, prefix, answer)).await;
        let Some((page, next)) = page else { return unavailable("a worker does not answer") };
        rows.extend(page.into_iter().map(lock_view));
        match next {
            Some(next) => cursor = next,
            None => (worker, cursor) = (worker + 1, ListCursor::default()),
        }
    };
    Json(Page { rows, next }).into_response()
}

#[derive(Serialize)]
struct SessionView {
    worker: usize,
    namespace: String,
    name: String,
    label: String,
    connected: bool,
    ttl_ms: u64,
    lease_left_ms: u64,
    holds: u64,
    waiters: u32,
}

async fn sessions(State(shared): State<Arc<Shared>>, Query(query): Query<PageQuery>) -> Response {
    let limit = query.limit.unwrap_or(100).clamp(1, ROWS_MAX);
    let Some((mut worker, rest)) = split_cursor(query.cursor.as_deref()) else {
        return bad_cursor();
    };
    let mut from = match <[u8; 4]>::try_from(rest.as_slice()) {
        Ok(bytes) => u32::from_be_bytes(bytes),
        Err(_) if rest.is_empty() => 0,
        Err(_) => return bad_cursor(),
    };
    let mut rows = Vec::new();
    while worker < shared.view.workers.len() && rows.len() < limit {
        let rows_wanted = limit - rows.len();
        let ask = |answer| Command::Sessions { from, rows: rows_wanted, answer };
        let Some((page, next)) = shared.ask(worker, ask).await else {
            return unavailable("a worker does not answer");
        };
        rows.extend(page.into_iter().map(|seen| SessionView {
            worker,
            namespace: seen.namespace,
            name: seen.name,
            label: seen.label,
            connected: seen.connected,
            ttl_ms: seen.ttl.as_millis() as u64,
            lease_left_ms: seen.lease_left.as_millis() as u64,
            holds: seen.holds,
            waiters: seen.waiters,
        }));
        (worker, from) = next.map_or((worker + 1, 0), |next| (worker, next));
    }
    let more = worker < shared.view.workers.len();
    let next = more.then(|| join_cursor(worker, &from.to_be_bytes()));
    Json(Page { rows, next }).into_response()
}
