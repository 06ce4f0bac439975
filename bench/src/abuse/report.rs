//! What `bench abuse` prints.

use crate::choices::Output;
use crate::error::BenchError;
use crate::print;
use crate::report::{count, print_json, row, table};
use crate::safety::SafetyReport;
use comfy_table::Table;
use serde::Serialize;

/// The victim's p99 may be at most this many times that beside honest peers.
const RATIO_MAX: f64 = 2.0;

/// What an attack came to.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Verdict {
    /// The victim's p99 beside the attacker, against that beside honest peers: the median of the
    /// rounds, as any of them may meet a moment in which the machine stands still.
    pub p99_ratio: f64,
    /// The same in the worst round.
    pub p99_ratio_worst: f64,
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
    /// Pairs of the victim in the attack, in the round with the fewest.
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

impl AbuseReport {
    /// Rounds as one: the figures of the round whose ratio is the median, and of all others what
    /// must hold in every round.
    pub(super) fn of_rounds(mut rounds: Vec<Self>, memory_bound: u64) -> Option<Self> {
        rounds.sort_by(|a, b| a.verdict.p99_ratio.total_cmp(&b.verdict.p99_ratio));
        let worst = rounds.last()?.verdict.p99_ratio;
        // Of an even number the worse one.
        let mut report = rounds[rounds.len() / 2].clone();
        report.verdict = Verdict {
            p99_ratio: report.verdict.p99_ratio,
            p99_ratio_worst: worst,
            grown_bytes: rounds.iter().map(|round| round.verdict.grown_bytes).max()?,
            errors: rounds.iter().map(|round| round.verdict.errors).sum(),
        };
        report.done = rounds.iter().map(|round| round.done).sum();
        report.pairs = rounds.iter().map(|round| round.pairs).min()?;
        report.first_error = rounds.iter().find_map(|round| round.first_error.clone());
        report.safety = rounds.iter().map(|round| round.safety).reduce(SafetyReport::and)?;
        report.withstood = report.pairs > 0 && report.verdict.is_withstood(memory_bound);
        Some(report)
    }
}

/// Prints the table.
pub(super) fn print_abuse(reports: &[AbuseReport], output: Output) -> Result<(), BenchError> {
    match output {
        Output::Table => print::figures(&format!("{}\n", abuse_table(reports))),
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
        "worst",
        "memory MiB",
        "errors",
        "double grants",
        "withstood",
    ]);
    for report in reports {
        table.add_row(row(
            &report.attack,
            [
                report.done.to_string(),
                format!("{:.0}", report.idle_p99_us),
                format!("{:.0}", report.honest_p99_us),
                format!("{:.0}", report.during_p99_us),
                format!("{:.2}", report.verdict.p99_ratio),
                format!("{:.2}", report.verdict.p99_ratio_worst),
                format!("{:.1}", report.verdict.grown_bytes as f64 / f64::from(1 << 20)),
                report.verdict.errors.to_string(),
                count(report.safety.double_grants),
                if report.withstood { "yes" } else { "NO" }.to_owned(),
            ],
        ));
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    fn round(p99_ratio: f64, grown_bytes: u64, errors: u64, pairs: u64) -> AbuseReport {
        let verdict = Verdict { p99_ratio, p99_ratio_worst: p99_ratio, grown_bytes, errors };
        AbuseReport {
            attack: "any".to_owned(),
            done: 1,
            idle_p99_us: 1.0,
            honest_p99_us: 1.0,
            during_p99_us: p99_ratio,
            pairs,
            verdict,
            withstood: verdict.is_withstood(10),
            first_error: None,
            safety: SafetyReport { double_grants: Some(0), fence_regressions: Some(0) },
        }
    }

    fn withstood(rounds: &[AbuseReport]) -> bool {
        AbuseReport::of_rounds(rounds.to_vec(), 10).unwrap().withstood
    }

    #[test]
    fn the_median_decides_and_nothing_else_is_averaged() {
        let good = round(1.0, 5, 0, 9);
        let slow = round(50.0, 5, 0, 9);
        assert!(withstood(&[good.clone(), slow.clone(), good.clone()]));
        assert!(!withstood(&[slow.clone(), slow.clone(), good.clone()]));
        assert!(!withstood(&[slow, good.clone()]));
        for bad in [round(1.0, 11, 0, 9), round(1.0, 5, 1, 9), round(1.0, 5, 0, 0)] {
            assert!(!withstood(&[good.clone(), bad, good.clone()]));
        }
        assert_eq!(AbuseReport::of_rounds(Vec::new(), 10), None);
    }
}
