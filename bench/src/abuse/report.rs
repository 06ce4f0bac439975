//! What `bench abuse` prints.

use crate::options::Output;
use crate::report::{SafetyReport, count, print_json, row, table};
use comfy_table::Table;
use serde::Serialize;
use std::io::{self, Write, stdout};

/// The victim's p99 may be so many times that beside honest peers.
const RATIO_MAX: f64 = 2.0;

/// What an attack came to.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Verdict {
    /// The victim's p99 beside the attacker, against that beside honest peers.
    pub p99_ratio: f64,
    /// What the node's memory grew by, at its peak.
    pub grown_bytes: u64,
    /// Operations of the victim that failed.
    pub errors: u64,
}

impl Verdict {
    pub(super) fn is_withstood(&self, memory_bound: u64) -> bool {
        // No figure at all is the worst of them.
        let served = self.p99_ratio > 0.0;
        served
            && self.p99_ratio <= RATIO_MAX
            && self.grown_bytes <= memory_bound
            && self.errors == 0
    }
}

/// The figures of one attack.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct AbuseReport {
    /// Its name.
    pub attack: String,
    /// How often the attacker did what it does.
    pub done: u64,
    /// The victim alone.
    pub idle_p99_us: f64,
    /// The victim beside honest peers at full load.
    pub honest_p99_us: f64,
    /// The victim beside the attacker.
    pub during_p99_us: f64,
    /// Pairs of the victim in the attack.
    pub pairs: u64,
    /// What it came to.
    pub verdict: Verdict,
    /// Whether that is within the bar.
    pub withstood: bool,
    /// What the server said of the first failure.
    pub first_error: Option<String>,
    /// What the safety check found.
    pub safety: SafetyReport,
}

/// Prints the table.
pub(super) fn print_abuse(reports: &[AbuseReport], output: Output) -> io::Result<()> {
    match output {
        Output::Table => writeln!(stdout(), "{}", abuse_table(reports)),
        Output::Json | Output::JsonLines => print_json(reports, output),
    }
}

fn abuse_table(reports: &[AbuseReport]) -> Table {
    let mut table = table(&[
        "attack",
        "done",
        "idle p99 us",
        "honest p99 us",
        "p99 us",
        "ratio",
        "memory MiB",
        "errors",
        "double grants",
        "withstood",
    ]);
    for report in reports {
        table.add_row(row([
            report.attack.clone(),
            report.done.to_string(),
            format!("{:.0}", report.idle_p99_us),
            format!("{:.0}", report.honest_p99_us),
            format!("{:.0}", report.during_p99_us),
            format!("{:.2}", report.verdict.p99_ratio),
            format!("{:.1}", report.verdict.grown_bytes as f64 / f64::from(1 << 20)),
            report.verdict.errors.to_string(),
            count(report.safety.double_grants),
            if report.withstood { "yes" } else { "NO" }.to_owned(),
        ]));
    }
    table
}
