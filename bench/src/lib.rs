//! The load generator: our servers and their peers, measured side by side in one process and one
//! run, and every grant checked.
//!
//! A *group* is one connection with its callers as plain slots: no task per caller, one clock read
//! per batch of replies, one write per turn. Groups are sans-IO ([`CallerGroup`]) and speak any
//! [`Protocol`]; [`drive`] runs one over a byte stream. All groups of a run share one thread, so
//! the [`SafetyCheck`] sees every grant and every release in the order the driver does. Needs
//! Linux: the costs of servers are read from `/proc`, and short waits use `timerfd`.

#![forbid(unsafe_code)]

mod abuse;
mod alarm;
mod board;
mod caller_group;
mod choices;
mod cores;
mod drive;
mod error;
mod expiry;
mod keys;
mod lockring;
mod memory;
mod options;
mod print;
mod process;
mod progress;
mod protocol;
mod redis;
mod report;
mod report_expiry;
mod rounds;
mod safety;
mod signals;
mod slots;
mod stats;
mod target;
mod target_run;
mod time;

pub use abuse::{AbuseReport, measure_abuse, run_abuse};
pub use board::{Board, Phase};
pub use caller_group::{CallerGroup, Pacing, Work};
pub use choices::{Driver, KeyDist, OptionError, Output};
pub use drive::{GroupError, GroupSetting, drive};
pub use error::BenchError;
pub use expiry::{measure_expiry, run_expiry};
pub use keys::{KEY_BYTES, Key, KeyChooser, KeySpace, key};
pub use memory::{measure_memory, run_memory};
pub use options::{AbuseOptions, ExpiryOptions, LatencyOptions, MemoryOptions, PairsOptions};
pub use process::{CpuTime, ResidentBytes, Spawned, own_cpu};
pub use protocol::{Answer, Broken, Protocol, Slot};
pub use report::{MemoryReport, Outcome, PairsReport, Ratios};
pub use report_expiry::{BeforeDuring, ExpiryReport};
pub use rounds::{measure_pairs, run_latency, run_pairs};
pub use safety::{Guarantees, SafetyCheck, SafetyReport};
pub use signals::is_ignored;
pub use stats::{LatencyHistogram, Quantiles, Spread, median};
pub use target::{Target, TargetError, TargetKind};
pub use time::{Clock, Time};
