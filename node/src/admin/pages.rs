//! Pages of locks and of sessions, as JSON.

use super::{Shared, unavailable};
use crate::messages::WorkerCommand;
use axum::extract::{Query, State};
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use lockring_proto::{Claim, ListCursor, ListedLock, exact, visible_json};
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::oneshot;

/// Most rows of one page.
const ROWS_MAX: usize = 1000;

#[derive(Debug, Default, Deserialize)]
pub(super) struct PageQuery {
    #[serde(default)]
    prefix: String,
    /// The same in hexadecimal, for what is not UTF-8.
    #[serde(default)]
    prefix_hex: Option<String>,
    #[serde(default)]
    limit: Option<usize>,
    /// What the page before has called `next`.
    #[serde(default)]
    cursor: Option<String>,
}

#[derive(Serialize)]
struct LockView {
    namespace: String,
    /// Exactly; as [`lockring_proto::Shown`] prints it if it is not UTF-8.
    key: String,
    /// The bytes of a key that is not UTF-8.
    #[serde(skip_serializing_if = "Option::is_none")]
    key_hex: Option<String>,
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
    let (key, key_hex) = exact(&lock.key);
    LockView {
        namespace,
        key,
        key_hex,
        mode: holder
            .as_ref()
            .map_or("", |holder| match holder.claim {
                Claim::Mode(mode) => mode.name(),
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

/// A page, which people ask for from terminals too.
fn page<T: Serialize>(page: &Page<T>) -> Response {
    match serde_json::to_string(page) {
        Ok(json) => ([(CONTENT_TYPE, "application/json")], visible_json(&json)).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")).into_response(),
    }
}

fn bad(message: &'static str) -> Response {
    (StatusCode::BAD_REQUEST, message).into_response()
}

fn bad_cursor() -> Response {
    bad("the cursor is not one that an earlier page has called `next`\n")
}

fn from_hex(hex: &str) -> Option<Vec<u8>> {
    if !hex.len().is_multiple_of(2) || !hex.bytes().all(|digit| digit.is_ascii_hexdigit()) {
        return None;
    }
    (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).ok()).collect()
}

impl PageQuery {
    fn prefix(&self) -> Option<Vec<u8>> {
        match &self.prefix_hex {
            Some(hex) => from_hex(hex).filter(|_| self.prefix.is_empty()),
            None => Some(self.prefix.clone().into_bytes()),
        }
    }

    fn limit(&self) -> Option<usize> {
        let limit = self.limit.unwrap_or(100);
        (1..=ROWS_MAX).contains(&limit).then_some(limit)
    }
}

fn bad_limit() -> Response {
    bad("a page has a limit of 1 to 1000 rows\n")
}

/// `worker.rest`: where a page of several workers begins.
fn split_cursor(cursor: Option<&str>) -> Option<(usize, Vec<u8>)> {
    let Some(cursor) = cursor else { return Some((0, Vec::new())) };
    let (worker, hex) = cursor.split_once('.')?;
    Some((worker.parse().ok()?, from_hex(hex)?))
}

fn join_cursor(worker: usize, rest: &[u8]) -> String {
    use std::fmt::Write;
    let mut text = format!("{worker}.");
    for byte in rest {
        let _a_string_takes_all = write!(text, "{byte:02x}");
    }
    text
}

/// Pages of a worker that one request looks through: with a prefix that nothing has, a listing
/// would otherwise go through all that the node holds.
const PAGES_PER_REQUEST: usize = 64;

/// A listing leaves a worker alone for this many times as long as a page of it took.
const REST: u32 = 4;

/// Asks for one page at a pace that leaves the worker to those it is there for.
async fn ask_paced<T>(
    shared: &Shared,
    worker: usize,
    command: impl FnOnce(oneshot::Sender<T>) -> WorkerCommand,
) -> Option<T> {
    let begun = Instant::now();
    let page = shared.ask(worker, command).await;
    tokio::time::sleep((begun.elapsed() * REST).max(Duration::from_millis(1))).await;
    page
}

pub(super) async fn locks(
    State(shared): State<Arc<Shared>>,
    Query(query): Query<PageQuery>,
) -> Response {
    let Some(limit) = query.limit() else { return bad_limit() };
    let Some(prefix) = query.prefix() else {
        return bad("prefix_hex is not bytes in hexadecimal, or prefix is given too\n");
    };
    let Some((mut worker, rest)) = split_cursor(query.cursor.as_deref()) else {
        return bad_cursor();
    };
    let mut cursor = match <[u8; 4]>::try_from(rest.as_slice()) {
        Ok(bytes) => ListCursor { from: u32::from_be_bytes(bytes) },
        Err(_) if rest.is_empty() => ListCursor::default(),
        Err(_) => return bad_cursor(),
    };
    // One listing at a time, however many ask.
    let _turn = shared.listing.lock().await;
    let (mut rows, mut pages) = (Vec::new(), 0);
    let next = loop {
        if worker >= shared.view.workers.len() {
            break None;
        }
        if rows.len() >= limit || pages == PAGES_PER_REQUEST {
            break Some(join_cursor(worker, &cursor.from.to_be_bytes()));
        }
        let (at, prefix) = (cursor, prefix.clone());
        let wanted = (limit - rows.len()) as u32;
        let ask = |answer| WorkerCommand::Locks(at, wanted, prefix, answer);
        let page = ask_paced(&shared, worker, ask).await;
        pages += 1;
        let Some((page, next)) = page else { return unavailable("a worker does not answer") };
        rows.extend(page.into_iter().map(lock_view));
        match next {
            Some(next) => cursor = next,
            None => (worker, cursor) = (worker + 1, ListCursor::default()),
        }
    };
    page(&Page { rows, next })
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

pub(super) async fn sessions(
    State(shared): State<Arc<Shared>>,
    Query(query): Query<PageQuery>,
) -> Response {
    let Some(limit) = query.limit() else { return bad_limit() };
    let Some((mut worker, rest)) = split_cursor(query.cursor.as_deref()) else {
        return bad_cursor();
    };
    let mut from = match <[u8; 4]>::try_from(rest.as_slice()) {
        Ok(bytes) => u32::from_be_bytes(bytes),
        Err(_) if rest.is_empty() => 0,
        Err(_) => return bad_cursor(),
    };
    let _turn = shared.listing.lock().await;
    let (mut rows, mut pages) = (Vec::new(), 0);
    while worker < shared.view.workers.len() && rows.len() < limit && pages < PAGES_PER_REQUEST {
        pages += 1;
        let rows_wanted = limit - rows.len();
        let ask = |answer| WorkerCommand::Sessions { from, rows: rows_wanted, answer };
        let Some((page, next)) = ask_paced(&shared, worker, ask).await else {
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
    page(&Page { rows, next })
}

#[cfg(test)]
mod tests {
    use super::super::hosts::Hosts;
    use super::super::{Shared, View};
    use super::*;
    use metrics_exporter_prometheus::PrometheusBuilder;
    use std::sync::atomic::{AtomicU32, Ordering};
    use tokio::sync::{Mutex, mpsc};

    /// A worker in which every slice has nothing and is not the last; it counts them.
    fn endless() -> (Arc<Shared>, Arc<AtomicU32>) {
        let (worker, mut commands) = mpsc::unbounded_channel();
        let asked = Arc::new(AtomicU32::new(0));
        let counted = Arc::clone(&asked);
        tokio::spawn(async move {
            while let Some(WorkerCommand::Locks(cursor, _, _, answer)) = commands.recv().await {
                assert!(commands.is_empty(), "two listings at a time");
                counted.fetch_add(1, Ordering::Relaxed);
                let next = ListCursor { from: cursor.from + 1 };
                assert!(answer.send((Vec::new(), Some(next))).is_ok());
            }
        });
        let shared = Shared {
            view: View {
                workers: vec![worker],
                node: 1,
                boot: 1,
                health: Arc::default(),
                memory: Arc::default(),
            },
            recorder: PrometheusBuilder::new().build_recorder(),
            hosts: Hosts::new(([127, 0, 0, 1], 1).into(), &[]),
            listing: Mutex::new(()),
        };
        (Arc::new(shared), asked)
    }

    #[tokio::test]
    async fn a_listing_is_made_slice_by_slice_one_at_a_time_and_bounded() {
        let (shared, asked) = endless();
        let mut listings = tokio::task::JoinSet::new();
        let begun = Instant::now();
        for _ in 0..3 {
            let query = PageQuery::default();
            listings.spawn(locks(State(Arc::clone(&shared)), Query(query)));
        }
        assert!(listings.join_all().await.iter().all(|response| response.status().is_success()));
        let slices = asked.load(Ordering::Relaxed);
        assert_eq!(slices, 3 * PAGES_PER_REQUEST as u32);
        // Between two slices there is a pause, however fast each was.
        assert!(begun.elapsed() >= Duration::from_millis(slices.into()));
    }
}
