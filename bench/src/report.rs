//! What a run prints: JSON for machines, tables for people.

use crate::choices::Output;
use crate::error::BenchError;
use crate::options::PairsOptions;
use crate::print;
use crate::safety::SafetyReport;
use crate::stats::{Quantiles, Spread, median};
use crate::target_run::{Measurement, TargetRun};
use comfy_table::{Cell, CellAlignment, Table, presets};
use lockring_client::proto::{Shown, visible_json};
use serde::Serialize;

/// Whether every grant of a run was safe. Otherwise the command must fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Outcome {
    /// No double grant, no falling fence.
    Safe,
    /// A target broke its promise; the report says how often.
    Unsafe,
}

impl Outcome {
    pub(crate) fn of<'a>(mut safety: impl Iterator<Item = &'a SafetyReport>) -> Self {
        if safety.all(SafetyReport::is_clean) { Self::Safe } else { Self::Unsafe }
    }
}

/// The figures of one target of `bench pairs`: medians over rounds. `errors` and `safety` count
/// the whole run.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct PairsReport {
    /// The target as given.
    pub target: String,
    /// Pairs completed per second.
    pub pairs_per_s: f64,
    /// CPU time of the server per pair; null if it was not started here.
    pub server_cpu_us_per_pair: Option<f64>,
    /// CPU time of this process per pair.
    pub client_cpu_us_per_pair: f64,
    /// From the start of an acquire to its grant, polls and queues included.
    pub acquire: Quantiles,
    /// From a release to its answer.
    pub release: Quantiles,
    /// Failed operations.
    pub errors: u64,
    /// What the safety check found.
    pub safety: SafetyReport,
    /// Pairs per second of the server's CPU time.
    pub pairs_per_server_cpu_s: Option<f64>,
    /// Cores the server used: near its number of threads it was the bottleneck.
    pub server_cores: Option<f64>,
    /// Cores this process used.
    pub client_cores: f64,
    /// The longest acquire of any round.
    pub acquire_worst_us: f64,
    /// Ratios to the first target; null for the first.
    pub ratios_to_first: Option<Ratios>,
    /// What the server said of the first failed operation.
    pub first_error: Option<String>,
    /// Measured rounds.
    pub rounds: u32,
    /// Callers over all connections.
    pub callers: u32,
    /// Connections.
    pub connections: u32,
    /// Distinct keys.
    pub keys: u32,
    /// How keys were drawn.
    pub dist: String,
    /// How callers were driven: `lean` where a target has no public client.
    pub driver: String,
}

/// A target against the first one, round by round.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Ratios {
    /// Pairs per second.
    pub pairs_per_s: Spread,
    /// Pairs per second of server CPU time; null unless both servers were started here.
    pub pairs_per_server_cpu_s: Option<Spread>,
    /// Median time to acquire.
    pub acquire_p50: Option<Spread>,
}

impl Measurement {
    fn pairs_per_s(&self) -> f64 {
        self.pairs as f64 / self.seconds
    }

    /// None if there is no such time, or no pair to share it.
    fn us_per_pair(&self, cpu_ns: Option<u64>) -> Option<f64> {
        let cpu_ns = cpu_ns.filter(|_| self.pairs > 0)?;
        Some(cpu_ns as f64 / 1000.0 / self.pairs as f64)
    }

    fn cores(&self, cpu_ns: u64) -> f64 {
        cpu_ns as f64 / 1e9 / self.seconds
    }

    fn server_us_per_pair(&self) -> Option<f64> {
        self.us_per_pair(self.server_cpu_ns)
    }
}

impl Ratios {
    fn of(own: &[Measurement], first: &[Measurement]) -> Option<Self> {
        let over = |figure: fn(&Measurement) -> Option<f64>| {
            let ratios = own.iter().zip(first).filter_map(|(own, first)| {
                figure(first).filter(|&base| base > 0.0).and_then(|base| Some(figure(own)? / base))
            });
            Spread::of(ratios)
        };
        Some(Self {
            pairs_per_s: over(|round| Some(round.pairs_per_s()))?,
            pairs_per_server_cpu_s: over(|round| round.server_us_per_pair().map(f64::recip)),
            acquire_p50: over(|round| Some(round.acquire?.p50_us)),
        })
    }
}

impl PairsReport {
    /// Of a target's rounds; none if no pair was completed in any.
    pub(crate) fn new(
        run: &TargetRun,
        options: &PairsOptions,
        rounds: &[Measurement],
        first: Option<&[Measurement]>,
    ) -> Option<Self> {
        let over =
            |figure: &dyn Fn(&Measurement) -> Option<f64>| median(rounds.iter().filter_map(figure));
        let quantiles = |figure: fn(&Measurement) -> Option<Quantiles>| {
            Quantiles::medians(&rounds.iter().filter_map(figure).collect::<Vec<_>>())
        };
        let server_us = over(&Measurement::server_us_per_pair);
        let worst = rounds.iter().filter_map(|round| round.acquire).map(|q| q.max_us);
        let (errors, first_error) = run.errors();
        Some(Self {
            target: run.target().to_owned(),
            pairs_per_s: over(&|round| Some(round.pairs_per_s()))?,
            server_cpu_us_per_pair: server_us,
            client_cpu_us_per_pair: over(&|round| round.us_per_pair(Some(round.client_cpu_ns)))?,
            acquire: quantiles(|round| round.acquire)?,
            release: quantiles(|round| round.release)?,
            errors,
            safety: run.safety(),
            pairs_per_server_cpu_s: server_us.map(|us| 1e6 / us),
            server_cores: over(&|round| Some(round.cores(round.server_cpu_ns?))),
            client_cores: over(&|round| Some(round.cores(round.client_cpu_ns)))?,
            acquire_worst_us: worst.fold(0.0, f64::max),
            ratios_to_first: first.and_then(|first| Ratios::of(rounds, first)),
            first_error,
            rounds: rounds.len() as u32,
            callers: options.callers,
            connections: options.connections,
            keys: options.keys,
            dist: options.dist.to_string(),
            driver: run.driver().to_string(),
        })
    }
}

/// The figures of one target of `bench memory`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct MemoryReport {
    /// The target as given.
    pub target: String,
    /// Locks held.
    pub locks: u32,
    /// Resident size by locks.
    pub bytes_per_lock: f64,
    /// Resident size of the server with all locks held.
    pub rss_bytes: u64,
    /// Its size before the first lock.
    pub empty_rss_bytes: u64,
    /// Whether the server had come to rest.
    pub at_rest: bool,
    /// How long that took after the last grant.
    pub rest_s: f64,
    /// What the safety check found.
    pub safety: SafetyReport,
}

/// Prints the figures, and the ratios: on stderr where stdout is for machines.
pub(crate) fn print_pairs(reports: &[PairsReport], output: Output) -> Result<(), BenchError> {
    let ratios = ratio_lines(reports);
    match output {
        Output::Table => print::figures(&format!("{}\n{ratios}\n", pairs_table(reports))),
        Output::Json | Output::JsonLines => {
            print_json(reports, output)?;
            print::remark(&ratios);
            Ok(())
        }
    }
}

/// Prints the figures.
pub(crate) fn print_memory(reports: &[MemoryReport], output: Output) -> Result<(), BenchError> {
    match output {
        Output::Table => print::figures(&format!("{}\n", memory_table(reports))),
        Output::Json | Output::JsonLines => print_json(reports, output),
    }
}

pub(crate) fn print_json<T: Serialize>(reports: &[T], output: Output) -> Result<(), BenchError> {
    let failed = |error| BenchError::system::<serde_json::Error>("the figures as JSON")(error);
    let mut text = String::new();
    if output == Output::Json {
        text = visible_json(&serde_json::to_string(reports).map_err(failed)?);
        text.push('\n');
    } else {
        for report in reports {
            text += &visible_json(&serde_json::to_string(report).map_err(failed)?);
            text.push('\n');
        }
    }
    print::figures(&text)
}

fn ratio_lines(reports: &[PairsReport]) -> String {
    let mut lines = String::new();
    let spread = |spread: Option<Spread>| match spread {
        Some(Spread { median, low, high }) => format!("{median:.2}x ({low:.2} to {high:.2})"),
        None => "-".to_owned(),
    };
    for report in reports {
        let Some(ratios) = report.ratios_to_first else {
            continue;
        };
        lines += &format!(
            "{} against {}: pairs/s {}, pairs per server CPU second {}, acquire p50 {}\n",
            Shown(&report.target),
            Shown(&reports[0].target),
            spread(Some(ratios.pairs_per_s)),
            spread(ratios.pairs_per_server_cpu_s),
            spread(ratios.acquire_p50),
        );
    }
    lines
}

fn pairs_table(reports: &[PairsReport]) -> Table {
    let mut table = table(&[
        "target",
        "pairs/s",
        "server us/pair",
        "client us/pair",
        "acquire p50 us",
        "p99",
        "p99.9",
        "release p50 us",
        "p99",
        "errors",
        "double grants",
        "fences fell",
    ]);
    for report in reports {
        let PairsReport { acquire, release, safety, .. } = report;
        table.add_row(row(
            &report.target,
            [
                format!("{:.0}", report.pairs_per_s),
                report.server_cpu_us_per_pair.map_or("-".to_owned(), |us| format!("{us:.3}")),
                format!("{:.3}", report.client_cpu_us_per_pair),
                format!("{:.1}", acquire.p50_us),
                format!("{:.1}", acquire.p99_us),
                format!("{:.1}", acquire.p999_us),
                format!("{:.1}", release.p50_us),
                format!("{:.1}", release.p99_us),
                report.errors.to_string(),
                count(safety.double_grants),
                count(safety.fence_regressions),
            ],
        ));
    }
    table
}

fn memory_table(reports: &[MemoryReport]) -> Table {
    let mut table =
        table(&["target", "locks", "bytes/lock", "resident MiB", "empty MiB", "at rest"]);
    let mebibytes = |bytes: u64| format!("{:.1}", bytes as f64 / f64::from(1 << 20));
    for report in reports {
        table.add_row(row(
            &report.target,
            [
                report.locks.to_string(),
                format!("{:.1}", report.bytes_per_lock),
                mebibytes(report.rss_bytes),
                mebibytes(report.empty_rss_bytes),
                if report.at_rest { "yes" } else { "no" }.to_owned(),
            ],
        ));
    }
    table
}

pub(crate) fn table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).set_header(header.iter().copied());
    table
}

/// A name, which others may have made up, to the left; figures to the right.
pub(crate) fn row<const N: usize>(name: &str, figures: [String; N]) -> Vec<Cell> {
    let figures = figures.map(|text| Cell::new(text).set_alignment(CellAlignment::Right));
    std::iter::once(Cell::new(Shown(name))).chain(figures).collect()
}

pub(crate) fn count(count: Option<u64>) -> String {
    count.map_or("-".to_owned(), |count| count.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_shown_and_a_figure_is_as_it_is() {
        let cells = row("a\nb", ["-".to_owned()]);
        let texts: Vec<String> = cells.iter().map(Cell::content).collect();
        assert_eq!(texts, ["a\\x0ab", "-"]);
    }

    fn round(pairs: u64, server_cpu_ns: Option<u64>) -> Measurement {
        let flat =
            Quantiles { p50_us: 50.0, p90_us: 90.0, p99_us: 99.0, p999_us: 99.9, max_us: 100.0 };
        let (acquire, release) = (Some(flat), Some(flat));
        Measurement {
            seconds: 2.0,
            pairs,
            server_cpu_ns,
            client_cpu_ns: 1_000_000,
            acquire,
            release,
        }
    }

    #[test]
    fn ratios_are_medians_over_pairs_of_rounds() {
        let own = [600, 200, 300].map(|pairs| round(pairs, Some(1_000_000)));
        let first = [100, 100, 100].map(|pairs| round(pairs, Some(2_000_000)));
        let ratios = Ratios::of(&own, &first).unwrap();
        assert_eq!(ratios.pairs_per_s, Spread { median: 3.0, low: 2.0, high: 6.0 });
        let per_cpu = ratios.pairs_per_server_cpu_s.unwrap();
        assert!((per_cpu.median - 6.0).abs() < 1e-9 && (per_cpu.high - 12.0).abs() < 1e-9);
        assert_eq!(ratios.acquire_p50.unwrap().median, 1.0);
        // A server that was not started here has no CPU time, and a round may be empty.
        let foreign = Ratios::of(&[round(100, None)], &first).unwrap();
        assert_eq!(foreign.pairs_per_server_cpu_s, None);
        assert_eq!(Ratios::of(&own[..1], &[round(0, None)]), None);
    }

    #[test]
    fn cpu_time_is_shared_by_the_pairs() {
        let measured = round(1000, Some(3_000_000));
        assert_eq!(measured.server_us_per_pair(), Some(3.0));
        assert_eq!(measured.pairs_per_s(), 500.0);
        assert_eq!(round(0, Some(3_000_000)).server_us_per_pair(), None);
    }

    #[test]
    fn a_broken_promise_is_unsafe_and_an_absent_one_is_null() {
        let clean = SafetyReport { double_grants: Some(0), fence_regressions: None };
        assert_eq!(
            serde_json::to_string(&clean).unwrap(),
            r#"{"double_grants":0,"fence_regressions":null}"#
        );
        assert_eq!(Outcome::of([clean, clean].iter()), Outcome::Safe);
        for dirty in [
            SafetyReport { double_grants: Some(1), fence_regressions: Some(0) },
            SafetyReport { double_grants: Some(0), fence_regressions: Some(1) },
        ] {
            assert_eq!(Outcome::of([clean, dirty].iter()), Outcome::Unsafe);
        }
    }
}
