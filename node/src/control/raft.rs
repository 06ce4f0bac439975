//! The log of the cluster on this node's disk: openraft's storage over redb.
//!
//! One thread writes, in the order in which it is asked, and what has gathered meanwhile goes into
//! one transaction: nothing is told to be durable before it is. The log is short, as snapshots cut
//! it, and is held in memory too, so that reading never waits for a disk. The state that its
//! entries make is kept by snapshots alone; what follows them is applied again at a start.
//!
//! Whatever fails to be written is an error to openraft, whose core ends by it. What was read from
//! the disk is then as it is there: whoever goes on opens the file anew.

mod bytes;
mod log;
mod machine;
mod types;
mod writer;

pub use log::LogStore;
pub use machine::StateMachine;
pub use types::{OpenError, Types};

use lockring_control::cluster::LogEvent;
use tokio::sync::mpsc;

/// Opens the log of a file, or begins one. What is committed from here on is told to `events`, and
/// first the state of the last snapshot, if there is one.
///
/// # Errors
/// When the file cannot be used, or says what cannot be.
pub fn open(
    database: redb::Database,
    bits: lockring_ring::CellBits,
    events: mpsc::UnboundedSender<LogEvent>,
) -> Result<(LogStore, StateMachine), OpenError> {
    let (writer, kept) = writer::open(database)?;
    let machine = StateMachine::new(bits, kept.snapshot, writer.clone(), events)?;
    Ok((LogStore::new(kept.log, writer), machine))
}

#[cfg(test)]
mod tests;
