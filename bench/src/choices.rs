//! Options whose values are words, and what is said of a value that is none.

use std::fmt;
use std::str::FromStr;

/// An option with an impossible value.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("--{option} {given}: {need}")]
pub struct OptionError {
    pub(crate) option: &'static str,
    pub(crate) given: String,
    pub(crate) need: &'static str,
}

/// How keys are drawn.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum KeyDist {
    /// All alike.
    #[default]
    Uniform,
    /// The k-th key with a weight of k to the minus this (0 to 100).
    Zipf(f64),
}

impl FromStr for KeyDist {
    type Err = OptionError;

    fn from_str(given: &str) -> Result<Self, OptionError> {
        let exponent = match given.split_once(':') {
            None if given == "uniform" => return Ok(Self::Uniform),
            Some(("zipf", exponent)) => exponent.parse().ok(),
            _ => None,
        };
        match exponent {
            Some(exponent) if (0.0..=100.0).contains(&exponent) => Ok(Self::Zipf(exponent)),
            _ => Err(OptionError {
                option: "dist",
                given: given.to_owned(),
                need: "use uniform, or zipf:S with S from 0 to 100, as in zipf:1.1",
            }),
        }
    }
}

impl fmt::Display for KeyDist {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Uniform => f.write_str("uniform"),
            Self::Zipf(exponent) => write!(f, "zipf:{exponent}"),
        }
    }
}

/// How callers are driven.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Driver {
    /// As slots of a connection, without a task per caller.
    #[default]
    Lean,
    /// As tasks through the public client. Redis and echo have none and are driven lean.
    Api,
}

impl FromStr for Driver {
    type Err = OptionError;

    fn from_str(given: &str) -> Result<Self, OptionError> {
        match given {
            "lean" => Ok(Self::Lean),
            "api" => Ok(Self::Api),
            _ => Err(OptionError {
                option: "driver",
                given: given.to_owned(),
                need: "use lean or api",
            }),
        }
    }
}

impl fmt::Display for Driver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Lean => "lean",
            Self::Api => "api",
        })
    }
}

/// How results are printed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Output {
    /// A table for people.
    #[default]
    Table,
    /// One array on one line.
    Json,
    /// One object per line.
    JsonLines,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distributions_parse_and_print() {
        for text in ["uniform", "zipf:0", "zipf:1.1"] {
            assert_eq!(text.parse::<KeyDist>().unwrap().to_string(), text);
        }
        for text in ["", "zipf", "zipf:", "zipf:-1", "zipf:NaN", "zipf:inf", "uniform:1"] {
            assert!(text.parse::<KeyDist>().unwrap_err().to_string().contains("zipf:1.1"));
        }
        assert!("fast".parse::<Driver>().unwrap_err().to_string().contains("lean or api"));
    }
}
