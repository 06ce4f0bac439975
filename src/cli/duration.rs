//! Durations on the command line.

use lockring_client::proto::limits;
use std::time::Duration;

/// Reads `250ms`, `10s`, `5m`, `1h`, or a bare number of seconds, fractions allowed.
pub fn parse(text: &str) -> Result<Duration, String> {
    let wrong = || format!("{text:?} is not a duration: use 250ms, 10s, 5m, 1h or seconds");
    let unit_at = text.find(|c: char| c.is_ascii_alphabetic()).unwrap_or(text.len());
    let (number, unit) = text.split_at(unit_at);
    let number: f64 = number.parse().map_err(|_| wrong())?;
    let seconds = match unit {
        "us" => number / 1e6,
        "ms" => number / 1e3,
        "" | "s" => number,
        "m" => number * 60.0,
        "h" => number * 3600.0,
        _ => return Err(wrong()),
    };
    Duration::try_from_secs_f64(seconds).map_err(|_| wrong())
}

/// Reads the TTL of a session, which has a range.
pub fn ttl(text: &str) -> Result<Duration, String> {
    let ttl = parse(text)?;
    if limits::clamp_ttl(ttl) != ttl {
        return Err("a TTL is 1s to 1h".to_owned());
    }
    Ok(ttl)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ttl_is_never_cut_to_its_range() {
        for text in ["0", "999ms", "3600.001", "2h", "999999999999h"] {
            assert_eq!(ttl(text), Err("a TTL is 1s to 1h".to_owned()), "{text}");
        }
        for (text, seconds) in [("1s", 1), ("1h", 3600)] {
            assert_eq!(ttl(text), Ok(Duration::from_secs(seconds)));
        }
    }

    #[test]
    fn reads_units_and_bare_seconds() {
        for (text, millis) in
            [("250ms", 250), ("1.5", 1500), ("10s", 10_000), ("2m", 120_000), ("1h", 3_600_000)]
        {
            assert_eq!(parse(text), Ok(Duration::from_millis(millis)), "{text}");
        }
        for text in ["", "s", "-1", "1 s", "1d", "nan", "inf", "1e300"] {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}
