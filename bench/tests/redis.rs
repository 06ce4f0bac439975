//! Short real runs against a private Redis. Skipped, and said so, where there is none.

#![allow(clippy::print_stderr, reason = "says what is left out")]

use lockring_bench::{
    BenchError, KeyDist, MemoryOptions, PairsOptions, Target, measure_memory, measure_pairs,
};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Whether there is a `redis-server` in PATH.
fn redis_is_here() -> bool {
    let mut command = Command::new("redis-server");
    let found = command.arg("--version").stdout(Stdio::null()).status().is_ok();
    if !found {
        eprintln!("skipped: no redis-server in PATH");
    }
    found
}

fn redis() -> Target {
    "redis+spawn:".parse().expect("the documented form")
}

fn short() -> PairsOptions {
    let duration = Duration::from_millis(500);
    PairsOptions { targets: vec![redis()], callers: 64, duration, ..PairsOptions::default() }
}

#[test]
fn pairs_take_turns_and_are_compared() {
    if !redis_is_here() {
        return;
    }
    let options = PairsOptions { targets: vec![redis(), redis()], ..short() };
    let reports = measure_pairs(&options).unwrap();
    assert_eq!(reports.len(), 2);
    for report in &reports {
        assert_eq!((report.errors, report.rounds), (0, 5), "{report:?}");
        assert_eq!(report.safety.double_grants, Some(0));
        assert_eq!(report.safety.fence_regressions, None);
        assert!(report.pairs_per_s > 1000.0, "{report:?}");
        assert!(report.server_cpu_us_per_pair.unwrap() > 0.1, "{report:?}");
        assert!(report.client_cpu_us_per_pair > 0.01, "{report:?}");
        assert!(report.acquire.p50_us > 1.0 && report.release.p50_us > 1.0, "{report:?}");
        assert!(report.acquire.max_us <= report.acquire_worst_us, "{report:?}");
    }
    assert!(reports[0].ratios_to_first.is_none());
    let ratios = reports[1].ratios_to_first.unwrap();
    assert!(ratios.pairs_per_s.median > 0.1 && ratios.pairs_per_s.median < 10.0, "{ratios:?}");
    assert!(ratios.pairs_per_server_cpu_s.is_some());
}

#[test]
fn contended_held_and_paced_pairs_are_safe() {
    if !redis_is_here() {
        return;
    }
    let (dist, hold) = (KeyDist::Zipf(1.1), Duration::from_millis(1));
    let options = PairsOptions { keys: 50, dist, hold, rate: Some(2000.0), ..short() };
    let reports = measure_pairs(&options).unwrap();
    let report = &reports[0];
    assert_eq!((report.errors, report.safety.double_grants), (0, Some(0)), "{report:?}");
    // Below the rate, as popular keys have lines.
    assert!(report.pairs_per_s > 100.0 && report.pairs_per_s < 2500.0, "{report:?}");
    // Whoever found a key busy polled again after 0.15 ms or more.
    assert!(report.acquire.max_us > 150.0, "{report:?}");
}

#[test]
fn held_locks_are_weighed() {
    if !redis_is_here() {
        return;
    }
    let options = MemoryOptions { targets: vec![redis()], locks: 100_000 };
    let report = measure_memory(&options).unwrap().remove(0);
    assert!(report.at_rest && report.safety.is_clean(), "{report:?}");
    let growth = (report.rss_bytes - report.empty_rss_bytes) as f64 / 100_000.0;
    assert!((60.0..400.0).contains(&growth), "{report:?}");
    assert!((report.bytes_per_lock - report.rss_bytes as f64 / 100_000.0).abs() < 0.001);
}

#[test]
fn an_absent_server_is_an_error_that_names_it() {
    // Bound and never listening to anybody: connections are accepted by none.
    let unused = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = unused.local_addr().unwrap().port();
    drop(unused);
    let target = format!("redis://127.0.0.1:{port}").parse().unwrap();
    let options = PairsOptions { targets: vec![target], ..short() };
    let error = measure_pairs(&options).unwrap_err();
    assert!(matches!(error, BenchError::Connect { .. }), "{error}");
    assert!(error.to_string().contains(&format!("port {port}")), "{error}");
}

#[test]
fn a_server_that_speaks_something_else_is_an_error() {
    let server = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let target = format!("redis://{}", server.local_addr().unwrap()).parse().unwrap();
    std::thread::spawn(move || {
        use std::io::Write;
        let (mut stream, _) = server.accept().unwrap();
        stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").unwrap();
        std::thread::sleep(Duration::from_secs(1));
    });
    let begun = Instant::now();
    let options = PairsOptions { targets: vec![target], ..short() };
    let error = measure_pairs(&options).unwrap_err().to_string();
    assert!(error.contains("HTTP/1.1") && begun.elapsed() < Duration::from_secs(5), "{error}");
}

#[test]
fn memory_of_a_foreign_server_and_of_an_echo_is_refused() {
    for (given, hint) in [("redis://h", "cannot be read"), ("echo+spawn:", "holds no locks")] {
        let options = MemoryOptions { targets: vec![given.parse().unwrap()], locks: 10 };
        let error = measure_memory(&options).unwrap_err().to_string();
        assert!(error.contains(hint) && error.contains("redis+spawn:"), "{error}");
    }
}
