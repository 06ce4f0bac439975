//! Bad peers beside well-behaved ones. By itself in its program: figures of both are compared, and
//! other tests must not run beside one and not the other.

#![allow(clippy::unwrap_used, reason = "helpers of tests fail the test")]

mod generator;

use generator::{assert_safe, number, run};

/// A build without optimisation on a busy machine is far from the bar that the report names; what
/// must hold anywhere is that the victim is served, loses nothing, and that memory is bounded. An
/// attack that stops a worker shows as seconds beside milliseconds.
#[test]
fn no_bad_peer_stops_a_worker_or_fills_it() {
    for report in
        run(&["abuse", "--rounds", "1", "--duration", "600ms", "--output", "json"]).reports()
    {
        assert_safe(&report);
        let name = report["attack"].as_str().unwrap().to_owned();
        assert!(number(&report, "/pairs") > 0.0, "{name} stops the worker: {report}");
        assert_eq!(number(&report, "/verdict/errors"), 0.0, "{report}");
        assert!(number(&report, "/verdict/grown_bytes") < f64::from(64 << 20), "{report}");
        if number(&report, "/verdict/p99_ratio") > 10.0 {
            // Once more: a machine that stood still is no attack.
            let again = run(&["abuse", "--attack", &name, "--duration", "1s", "--output", "json"]);
            let again = again.report();
            assert!(number(&again, "/verdict/p99_ratio") < 10.0, "{report} and {again}");
        }
    }
}
