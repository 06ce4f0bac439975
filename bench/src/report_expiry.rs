//! What `bench expiry` prints.

use crate::choices::Output;
use crate::error::BenchError;
use crate::print;
use crate::report::{count, print_json, row, table};
use crate::safety::SafetyReport;
use crate::target_run::Measurement;
use comfy_table::Table;
use lockring_client::proto::Shown;
use serde::Serialize;

/// A figure just before the death of a session, and while its locks are freed.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct BeforeDuring {
    /// Just before.
    pub before: f64,
    /// Meanwhile.
    pub during: f64,
}

impl BeforeDuring {
    /// The p99 of acquires in two rounds, neither of them empty.
    pub(crate) fn of(before: Measurement, during: Measurement) -> Self {
        let p99 = |round: Measurement| round.acquire.map_or(0.0, |acquire| acquire.p99_us);
        Self { before: p99(before), during: p99(during) }
    }

    /// Whether it stayed below twice what it was.
    pub(crate) fn is_steady(&self) -> bool {
        self.during < 2.0 * self.before
    }
}

/// The figures of one target of `bench expiry`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ExpiryReport {
    /// The target as given.
    pub target: String,
    /// Locks held by the session that died.
    pub locks: u32,
    /// From its last contact until all of them were free.
    pub freed_s: f64,
    /// Round trips of another session's renewals.
    pub keepalive_p99_us: BeforeDuring,
    /// Acquires of another session.
    pub acquire_p99_us: BeforeDuring,
    /// TTL of the session that died.
    pub ttl_s: f64,
    /// All is to be free within this: lease, drift and two seconds more.
    pub limit_s: f64,
    /// Whether it was.
    pub freed_in_time: bool,
    /// Whether both p99s stayed below twice what they were.
    pub undisturbed: bool,
    /// The measured time of the freeing, from the end of the lease on.
    pub freeing_s: f64,
    /// Locks for which a claim was queued.
    pub samples: u32,
    /// Pairs completed in the measured time before, and meanwhile.
    pub pairs: [u64; 2],
    /// Failed operations of the session that worked.
    pub errors: u64,
    /// What the server said of the first of them.
    pub first_error: Option<String>,
    /// What the safety check found.
    pub safety: SafetyReport,
}

/// Prints the figures, and whether the targets are met: on stderr where stdout is for machines.
pub(crate) fn print_expiry(reports: &[ExpiryReport], output: Output) -> Result<(), BenchError> {
    let verdicts: String = reports.iter().map(verdict).collect();
    match output {
        Output::Table => print::figures(&format!("{}\n{verdicts}\n", expiry_table(reports))),
        Output::Json | Output::JsonLines => {
            print_json(reports, output)?;
            print::remark(&verdicts);
            Ok(())
        }
    }
}

fn verdict(report: &ExpiryReport) -> String {
    let met = |met| if met { "met" } else { "missed" };
    format!(
        "{}: all free within {:.2} s (lease, drift and 2 s more): {}; p99s below twice those \
         before: {}\n",
        Shown(&report.target),
        report.limit_s,
        met(report.freed_in_time),
        met(report.undisturbed),
    )
}

fn expiry_table(reports: &[ExpiryReport]) -> Table {
    let mut table = table(&[
        "target",
        "locks",
        "freed s",
        "freeing s",
        "keepalive p99 us",
        "during",
        "acquire p99 us",
        "during",
        "double grants",
        "fences fell",
    ]);
    for report in reports {
        let ExpiryReport { keepalive_p99_us, acquire_p99_us, safety, .. } = report;
        table.add_row(row(
            &report.target,
            [
                report.locks.to_string(),
                format!("{:.3}", report.freed_s),
                format!("{:.3}", report.freeing_s),
                format!("{:.1}", keepalive_p99_us.before),
                format!("{:.1}", keepalive_p99_us.during),
                format!("{:.1}", acquire_p99_us.before),
                format!("{:.1}", acquire_p99_us.during),
                count(safety.double_grants),
                count(safety.fence_regressions),
            ],
        ));
    }
    table
}
