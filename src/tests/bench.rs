//! The load generator as a user meets it: short runs of the real binary against real servers.
//! Figures are never compared with fixed limits: how fast this machine is, is not tested.

#![allow(clippy::print_stderr, reason = "says what is left out")]
#![allow(clippy::unwrap_used, reason = "helpers of tests fail the test")]

mod generator;

use generator::{Ran, assert_nothing_left, assert_safe, bench, number, run};
use serde_json::Value;
use std::fs;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;

fn redis_is_here() -> bool {
    let version = Command::new("redis-server").arg("--version").stdout(Stdio::null()).status();
    if version.is_err() {
        eprintln!("left out: no redis-server in PATH");
    }
    version.is_ok()
}

fn assert_latencies(report: &Value) {
    for operation in ["acquire", "release"] {
        let quantiles = ["p50_us", "p90_us", "p99_us", "p999_us", "max_us"]
            .map(|name| number(report, &format!("/{operation}/{name}")));
        assert!(quantiles[0] > 0.0 && quantiles.is_sorted(), "{report}");
    }
}

const SHORT: [&str; 6] = ["--duration", "500ms", "--callers", "32", "--connections", "2"];

fn pairs(more: &[&str]) -> Ran {
    run(&[&["pairs", "-o", "json"][..], &SHORT, more].concat())
}

#[test]
fn pairs_take_turns_and_are_compared() {
    let mut targets = vec!["lockring+spawn:", "echo+spawn:"];
    if redis_is_here() {
        targets.push("redis+spawn:");
    }
    let flags: Vec<&str> = targets.iter().flat_map(|target| ["--target", target]).collect();
    let ran = pairs(&flags);
    let reports = ran.reports();
    assert_eq!(reports.len(), targets.len());
    for (report, target) in reports.iter().zip(&targets) {
        assert_eq!(report["target"], *target);
        assert!(number(report, "/pairs_per_s") > 0.0, "{report}");
        assert!(number(report, "/server_cpu_us_per_pair") > 0.0, "{report}");
        assert!(number(report, "/client_cpu_us_per_pair") > 0.0, "{report}");
        assert_latencies(report);
        assert_eq!((&report["errors"], &report["driver"]), (&0.into(), &"lean".into()));
    }
    assert_safe(&reports[0]);
    assert_eq!(reports[1]["safety"]["double_grants"], Value::Null, "an echo promises nothing");
    assert!(reports[0]["ratios_to_first"].is_null());
    assert!(number(&reports[1], "/ratios_to_first/pairs_per_s/median") > 0.0);
    assert!(ran.stderr.contains("echo+spawn: against lockring+spawn:"), "{}", ran.stderr);
    if let Some(redis) = reports.get(2) {
        assert_eq!(redis["safety"]["double_grants"], 0);
        assert_eq!(redis["safety"]["fence_regressions"], Value::Null);
    }
}

#[test]
fn tasks_of_the_public_client_are_measured_alike() {
    let closed = pairs(&["--driver", "api"]);
    let open = pairs(&["--driver", "api", "--rate", "1000", "--keys", "5", "--hold", "2ms"]);
    for ran in [&closed, &open] {
        let report = ran.report();
        assert_eq!((&report["driver"], &report["errors"]), (&"api".into(), &0.into()));
        assert!(number(&report, "/pairs_per_s") > 0.0, "{report}");
        assert_latencies(&report);
        assert_safe(&report);
    }
    assert!(number(&open.report(), "/pairs_per_s") < 1500.0, "starts are paced");
}

#[test]
fn a_target_without_a_public_client_says_so() {
    let ran = pairs(&["--driver", "api", "--target", "echo+spawn:"]);
    assert_eq!(ran.report()["driver"], "lean");
    assert!(ran.stderr.contains("has no public client"), "{}", ran.stderr);
}

#[test]
fn two_workers_are_driven_over_two_links() {
    for driver in ["lean", "api"] {
        let target = "lockring+spawn:?workers=2";
        let ran = pairs(&["--target", target, "--driver", driver, "--keys", "10"]);
        let report = ran.report();
        assert_eq!((&report["target"], &report["errors"]), (&target.into(), &0.into()));
        assert!(number(&report, "/pairs_per_s") > 0.0, "{report}");
        assert_safe(&report);
    }
}

#[test]
fn the_latency_of_one_caller_is_measured() {
    let report = run(&["latency", "--duration", "500ms", "-o", "json"]).report();
    assert_eq!((&report["callers"], &report["connections"]), (&1.into(), &1.into()));
    assert_latencies(&report);
    assert_safe(&report);
}

#[test]
fn the_memory_of_held_locks_is_measured() {
    let report = run(&["memory", "--locks", "20000", "-o", "json"]).report();
    let resident = number(&report, "/rss_bytes");
    assert!(resident > number(&report, "/empty_rss_bytes"), "{report}");
    assert!((number(&report, "/bytes_per_lock") * 20_000.0 - resident).abs() < 1.0, "{report}");
    assert_eq!(report["locks"], 20_000);
    assert_safe(&report);
}

#[test]
fn the_death_of_a_session_is_measured() {
    let target = "lockring+spawn:?workers=2";
    let ran = run(&["expiry", "--locks", "5000", "--target", target, "-o", "json"]);
    let report = ran.report();
    assert_eq!((&report["target"], &report["locks"]), (&target.into(), &5000.into()));
    // No earlier than its lease has ended; how much later is this machine's affair.
    assert!(number(&report, "/freed_s") > number(&report, "/ttl_s"), "{report}");
    for figure in ["keepalive_p99_us", "acquire_p99_us"] {
        for when in ["before", "during"] {
            assert!(number(&report, &format!("/{figure}/{when}")) > 0.0, "{report}");
        }
    }
    assert_eq!(report["errors"], 0, "{report}");
    assert_safe(&report);
    assert!(ran.stderr.contains("all free within"), "{}", ran.stderr);
}

#[test]
fn json_lines_and_tables_are_printed_too() {
    let short = [&["pairs"][..], &SHORT].concat();
    let lines = run(&[&short[..], &["-o", "jsonl"]].concat());
    assert_eq!(lines.code, 0, "{}", lines.stderr);
    let report: Value = serde_json::from_str(lines.stdout.trim()).unwrap();
    assert_safe(&report);
    let table = run(&short);
    assert!(table.code == 0 && table.stdout.contains("pairs/s"), "{}", table.stdout);
}

#[test]
fn what_cannot_be_measured_is_told_plainly() {
    for (arguments, code, hint) in [
        (&["pairs", "--target", "etcd://h"][..], 64, "use lockring://HOST:PORT"),
        (&["pairs", "--target", "lockring+spawn:?workers=3"], 64, "power of two"),
        (&["latency", "--target", "redis://h:0"], 64, "not a port"),
        (&["pairs", "--callers", "0"], 64, "--callers 0"),
        (&["pairs", "--driver", "fast"], 64, "lean or api"),
        (&["pairs", "--dist", "zipf"], 64, "zipf:1.1"),
        (&["memory", "--target", "echo+spawn:"], 64, "an echo holds no locks"),
        (&["memory", "--target", "redis://h"], 64, "cannot be read"),
        (&["expiry", "--target", "redis+spawn:"], 64, "Redis has no sessions"),
        (&["expiry", "--target", "echo+spawn:"], 64, "an echo holds no locks"),
        (&["expiry", "--locks", "0"], 64, "--locks 0"),
        (&["pairs", "--target", "lockring+spawn:/no/such/binary"], 69, "there is no /no/such"),
        (&["pairs", "--target", "lockring://127.0.0.1:1"], 69, "?identity=FILE"),
        (&["pairs", "--target", "redis://127.0.0.1:1"], 69, "is the server running there?"),
    ] {
        run(arguments).failed_with(code, hint);
    }
}

#[test]
fn a_missing_redis_is_named_with_its_package() {
    let temporary = TempDir::new().unwrap();
    let mut command = bench(&temporary, &["pairs", "--target", "redis+spawn:"]);
    let ran = Ran::of(&command.env("PATH", temporary.path()).output().unwrap());
    ran.failed_with(69, "apt install redis-server");
    assert_nothing_left(temporary.path());
}

#[test]
fn an_interrupted_run_takes_its_servers_along() {
    for signal in ["INT", "TERM", "HUP", "QUIT", "USR1"] {
        let temporary = TempDir::new().unwrap();
        let mut command = bench(&temporary, &["pairs", "--duration", "60s"]);
        let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let begun = Instant::now();
        while fs::read_dir(temporary.path()).unwrap().count() == 0 {
            assert!(begun.elapsed() < Duration::from_secs(30), "no server was started");
            std::thread::sleep(Duration::from_millis(5));
        }
        let kill = Command::new("kill").args(["-s", signal, &child.id().to_string()]).status();
        assert!(kill.unwrap().success());
        Ran::of(&child.wait_with_output().unwrap()).failed_with(130, "interrupted");
        assert_nothing_left(temporary.path());
    }
}
