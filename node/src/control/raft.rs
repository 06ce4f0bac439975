//! The log of the cluster on this node's disk: openraft's storage over redb.
//!
//! One thread writes, in the order in which it is asked, and what has gathered meanwhile goes into
//! one transaction: nothing is told to be durable before it is. The log is short, as snapshots cut
//! it, and is held in memory too, so that reading never waits for a disk. The state that its
//! entries make is kept by snapshots alone; what follows them is applied again at a start.
//!
//! What fails to be written is written again until it succeeds, with all that has gathered
//! meanwhile: openraft only sees a disk that is slow. It does nothing else while it waits for one,
//! which is why a node that votes alone asks it for no rounds. Nobody is told that anything is
//! durable that is not, and the node's health says what is wrong.

mod bytes;
mod log;
mod machine;
mod types;
mod writer;

pub use log::LogStore;
pub use machine::StateMachine;
pub use types::Types;

use super::health::Health;
use crate::store::{StoreError, Vault};
use lockring_control::cluster::{LogEvent, State};
use lockring_ring::{CellBits, NodeId};
use std::sync::Arc;
use std::thread::JoinHandle;
use tokio::sync::mpsc;

/// Opens a log. What is committed from here on is told to `events`, and first the state of the last
/// snapshot, if there is one. The thread that writes ends with what is returned beside it.
///
/// # Errors
/// When the file cannot be used, or says what cannot be.
pub fn open(
    mut vault: Vault,
    me: NodeId,
    bits: CellBits,
    health: Arc<Health>,
    events: mpsc::UnboundedSender<LogEvent>,
) -> Result<(LogStore, StateMachine, JoinHandle<()>), StoreError> {
    let kept = writer::read(&mut vault)?;
    let path = vault.path();
    let (writer, thread) = writer::start(vault, health)?;
    let machine = StateMachine::new(bits, kept.snapshot, &path, writer.clone(), events)?;
    Ok((LogStore::new(kept.log, me, writer), machine, thread))
}

/// The state that all entries of a log make, whether they were committed or not.
///
/// # Errors
/// When the file cannot be used, or says what cannot be.
pub fn state(vault: &mut Vault, bits: CellBits) -> Result<State, StoreError> {
    let kept = writer::read(vault)?;
    machine::state_of(bits, &kept, &vault.path())
}

#[cfg(test)]
mod tests;
