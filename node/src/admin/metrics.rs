//! The metrics, as Prometheus scrapes them.

use super::{Shared, unavailable};
use crate::messages::Report;
use axum::extract::State;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use metrics::{counter, gauge};
use std::sync::Arc;

pub(super) async fn text(State(shared): State<Arc<Shared>>) -> Response {
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
        let memory = &shared.view.memory;
        gauge!("lockring_memory_resident_bytes").set(memory.resident() as f64);
        gauge!("lockring_memory_full").set(f64::from(u8::from(memory.is_full())));
        if memory.left() < u64::MAX {
            gauge!("lockring_memory_left_bytes").set(memory.left() as f64);
        }
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
pub(super) fn describe() {
    use metrics::{describe_counter, describe_gauge};
    describe_gauge!("lockring_build_info", "Always 1; version and node are labels");
    describe_gauge!("lockring_boot", "Process life of the node: another with each start");
    describe_counter!("lockring_durable_write_errors_total", "Durable writes that failed");
    describe_gauge!("lockring_durable_writes_failing", "1 while durable writes fail");
    describe_gauge!("lockring_memory_resident_bytes", "Memory that the process uses");
    describe_gauge!("lockring_memory_left_bytes", "Until nothing new is admitted");
    describe_gauge!("lockring_memory_full", "1 while nothing new is admitted for lack of memory");
    describe_counter!("lockring_acquires_total", "Claims by how they were settled");
    describe_counter!("lockring_hold_ends_total", "Holds by how they ended");
    describe_counter!("lockring_requests_total", "Requests of every kind");
    describe_counter!("lockring_retries_total", "Copies of a request that found the first");
    describe_counter!("lockring_redirects_total", "Requests for a cell owned elsewhere or anew");
    describe_counter!("lockring_stale_requests_total", "Requests of replaced connections");
    describe_counter!("lockring_denied_total", "Requests without the role they need");
    describe_counter!("lockring_over_quota_total", "Requests and hellos above a quota");
    describe_gauge!("lockring_state_bytes", "Memory of sessions, locks and waiters, estimated");
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
    describe_gauge!("lockring_waiters", "Queued claims");
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
    count("lockring_denied_total", stats.denied);
    count("lockring_over_quota_total", stats.over_quota);
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
    count("lockring_handshake_packets_dropped_total", report.handshakes.dropped);
    level("lockring_locks_held", stats.holds as f64);
    level("lockring_keys_in_use", stats.keys as f64);
    level("lockring_waiters", stats.waiters as f64);
    level("lockring_state_bytes", stats.bytes as f64);
    level("lockring_sessions", stats.links as f64);
    level("lockring_quic_connections", report.connections as f64);
    let grace = report.grace_left.unwrap_or_default();
    level("lockring_grace_left_seconds", grace.as_secs_f64());
}
