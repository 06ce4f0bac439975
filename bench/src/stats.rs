//! Quantiles of a round, and medians and spreads over rounds.

use hdrhistogram::Histogram;
use serde::Serialize;

/// Latencies of one round, recorded in nanoseconds with three significant digits.
#[derive(Clone, Debug)]
pub struct LatencyHistogram(Histogram<u64>);

impl LatencyHistogram {
    /// Above this, latencies count as this.
    const LONGEST_NS: u64 = 3_600_000_000_000;

    /// An empty one.
    pub fn new() -> Self {
        Self(Histogram::new_with_bounds(1, Self::LONGEST_NS, 3).expect("the bounds are legal"))
    }

    /// Adds a latency.
    #[inline]
    pub fn record(&mut self, nanos: u64) {
        self.0.saturating_record(nanos);
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        // `clear` would keep the longest.
        self.0.reset();
    }

    /// The figures, unless nothing was recorded.
    pub fn quantiles(&self) -> Option<Quantiles> {
        let micros = |nanos: u64| nanos as f64 / 1000.0;
        let at = |quantile| micros(self.0.value_at_quantile(quantile));
        (!self.0.is_empty()).then(|| Quantiles {
            p50_us: at(0.5),
            p90_us: at(0.9),
            p99_us: at(0.99),
            p999_us: at(0.999),
            max_us: micros(self.0.max()),
        })
    }
}

impl Default for LatencyHistogram {
    fn default() -> Self {
        Self::new()
    }
}

/// Quantiles of latencies, in microseconds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Quantiles {
    /// Half were no longer.
    pub p50_us: f64,
    /// 90 % were no longer.
    pub p90_us: f64,
    /// 99 % were no longer.
    pub p99_us: f64,
    /// 99.9 % were no longer.
    pub p999_us: f64,
    /// The longest.
    pub max_us: f64,
}

impl Quantiles {
    /// Each figure as its median over rounds; none without rounds.
    pub fn medians(rounds: &[Self]) -> Option<Self> {
        let over = |figure: fn(&Self) -> f64| median(rounds.iter().map(figure));
        Some(Self {
            p50_us: over(|q| q.p50_us)?,
            p90_us: over(|q| q.p90_us)?,
            p99_us: over(|q| q.p99_us)?,
            p999_us: over(|q| q.p999_us)?,
            max_us: over(|q| q.max_us)?,
        })
    }
}

/// The middle value, or the mean of the two in the middle; none of none.
pub fn median(values: impl IntoIterator<Item = f64>) -> Option<f64> {
    Spread::of(values).map(|spread| spread.median)
}

/// A figure over rounds: its median, and how far it strayed.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Spread {
    /// The median.
    pub median: f64,
    /// The lowest.
    pub low: f64,
    /// The highest.
    pub high: f64,
}

impl Spread {
    /// Of values that are all numbers; none of none.
    pub fn of(values: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut sorted: Vec<f64> = values.into_iter().collect();
        sorted.sort_by(f64::total_cmp);
        let (&low, &high) = (sorted.first()?, sorted.last()?);
        let middle = (sorted[(sorted.len() - 1) / 2] + sorted[sorted.len() / 2]) / 2.0;
        Some(Self { median: middle, low, high })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_of_odd_even_and_no_rounds() {
        assert_eq!(median([3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median([4.0, 1.0, 2.0, 3.0]), Some(2.5));
        assert_eq!(median([]), None);
        let spread = Spread::of([3.0, 9.0, 5.0]).unwrap();
        assert_eq!(spread, Spread { median: 5.0, low: 3.0, high: 9.0 });
    }

    #[test]
    fn quantiles_are_in_microseconds() {
        let mut histogram = LatencyHistogram::new();
        assert_eq!(histogram.quantiles(), None);
        for micros in 1..=1000 {
            histogram.record(micros * 1000);
        }
        let quantiles = histogram.quantiles().unwrap();
        let near = |figure: f64, want: f64| (figure / want - 1.0).abs() < 0.002;
        assert!(near(quantiles.p50_us, 500.0), "{quantiles:?}");
        assert!(near(quantiles.p90_us, 900.0), "{quantiles:?}");
        assert!(near(quantiles.p99_us, 990.0), "{quantiles:?}");
        assert!(near(quantiles.p999_us, 999.0), "{quantiles:?}");
        assert!(near(quantiles.max_us, 1000.0), "{quantiles:?}");
        histogram.clear();
        assert_eq!(histogram.quantiles(), None);
        histogram.record(1000);
        assert!(near(histogram.quantiles().unwrap().max_us, 1.0), "the old maximum is gone");
    }

    #[test]
    fn each_quantile_is_a_median_of_its_own() {
        let round =
            |p50_us, max_us| Quantiles { p50_us, p90_us: 2.0, p99_us: 3.0, p999_us: 4.0, max_us };
        let rounds = [round(1.0, 30.0), round(3.0, 10.0), round(2.0, 20.0)];
        assert_eq!(Quantiles::medians(&rounds), Some(round(2.0, 20.0)));
        assert_eq!(Quantiles::medians(&[]), None);
    }
}
