//! What the process that started this one wants of signals.

use std::fs;
use tokio::signal::unix::SignalKind;

/// Whether this process ignores a signal. One that was ignored when it began is to stay so, as of a
/// job that outlives its terminal (nohup(1)) or runs in the background (POSIX shells, 2.11).
pub fn is_ignored(signal: SignalKind) -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let ignored = line.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0);
    ignored & 1 << (signal.as_raw_value() - 1) != 0
}
