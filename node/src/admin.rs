//! Admin HTTP: metrics, health and read-only views, on a thread of its own, so that no request
//! here ever delays a lock. It asks the workers and changes nothing.

mod hosts;
mod metrics;
mod pages;
mod server;

use crate::control::Health;
use crate::error::StartError;
use crate::memory::Memory;
use crate::messages::{Report, WorkerCommand};
use axum::Router;
use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::http::header::HOST;
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use hosts::Hosts;
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusRecorder};
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;
use tokio::sync::{Mutex, mpsc, oneshot};

/// A worker that does not answer within this is not alive.
const ANSWER_WITHIN: Duration = Duration::from_secs(1);

/// What the admin side sees of the node.
pub struct View {
    /// The workers.
    pub workers: Vec<mpsc::UnboundedSender<WorkerCommand>>,
    /// The node's id.
    pub node: u32,
    /// Its process life.
    pub boot: u64,
    /// How durable writes go.
    pub health: Arc<Health>,
    /// How much memory there is.
    pub memory: Arc<Memory>,
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
    hosts: Hosts,
    /// Held by whoever has a page of locks or sessions made.
    listing: Mutex<()>,
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
    /// Serves until stopped; `hosts` are the names it answers to beside its addresses.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub fn start(listener: TcpListener, view: View, hosts: &[String]) -> Result<Self, StartError> {
        let at = listener.local_addr()?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let recorder = PrometheusBuilder::new().build_recorder();
        ::metrics::with_local_recorder(&recorder, metrics::describe);
        let hosts = Hosts::new(at, hosts);
        let shared = Arc::new(Shared { view, recorder, hosts, listing: Mutex::new(()) });
        let (stop, stopped) = oneshot::channel::<()>();
        let thread = std::thread::Builder::new().name("admin".to_owned()).spawn(move || {
            runtime.block_on(async {
                let listener = match tokio::net::TcpListener::from_std(listener) {
                    Ok(listener) => listener,
                    Err(error) => return tracing::error!(%error, "admin HTTP is off"),
                };
                tokio::select! {
                    never = server::serve(listener, routes(shared)) => match never {},
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
        .route("/metrics", get(metrics::text))
        .route("/livez", get(livez))
        .route("/readyz", get(readyz))
        .route("/v1/locks", get(pages::locks))
        .route("/v1/sessions", get(pages::sessions))
        .layer(middleware::from_fn_with_state(Arc::clone(&shared), check_host))
        .with_state(shared)
}

async fn check_host(State(shared): State<Arc<Shared>>, request: Request, next: Next) -> Response {
    let host = request.headers().get(HOST).map(|host| host.to_str().unwrap_or_default());
    if shared.hosts.allow(host) {
        return next.run(request).await;
    }
    let message = "this node does not go by that name: ask it by its address, or name the host \
                   with --admin-host\n";
    (StatusCode::MISDIRECTED_REQUEST, message).into_response()
}

impl Shared {
    /// Asks one worker; `None` if it does not answer in time.
    async fn ask<T>(
        &self,
        worker: usize,
        command: impl FnOnce(oneshot::Sender<T>) -> WorkerCommand,
    ) -> Option<T> {
        let (answer, answered) = oneshot::channel();
        self.view.workers.get(worker)?.send(command(answer)).ok()?;
        tokio::time::timeout(ANSWER_WITHIN, answered).await.ok()?.ok()
    }

    /// How each worker is; `None` if one does not answer.
    async fn reports(&self) -> Option<Vec<Report>> {
        let mut reports = Vec::with_capacity(self.view.workers.len());
        for worker in 0..self.view.workers.len() {
            reports.push(self.ask(worker, WorkerCommand::Report).await?);
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

/// What goes wrong without being a failure of grants.
fn warnings(view: &View) -> String {
    let mut text = String::new();
    if let Some(cause) = view.health.cause() {
        text = format!(
            "\ndurable writes fail ({cause}): sessions with a longer TTL than any before are \
             refused until one succeeds"
        );
    }
    if view.memory.is_full() {
        text.push_str("\nmemory is nearly used up: new sessions, locks and waiters are refused");
    }
    text
}

/// Ready means: claims are granted now.
async fn readyz(State(shared): State<Arc<Shared>>) -> Response {
    let Some(reports) = shared.reports().await else {
        return unavailable("a worker does not answer");
    };
    if reports.iter().any(|report| report.draining) {
        return unavailable("stopping");
    }
    if !reports.iter().all(|report| report.answers) {
        let why = "nothing is answered: the node has lost contact with its cluster, or its copies";
        return unavailable(format!("{why}{}", warnings(&shared.view)));
    }
    match reports.iter().filter_map(|report| report.grace_left).max() {
        Some(left) => unavailable(format!(
            "grants in {:.1} s, when every lease of the node's earlier life has surely ended",
            left.as_secs_f64()
        )),
        None => format!("ok{}\n", warnings(&shared.view)).into_response(),
    }
}
