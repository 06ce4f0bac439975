//! The control thread: what must be durable is written here, away from the workers.

use crate::store::Store;
use crate::worker::Command;
use lockring_ring::{CellId, Epoch, RingVersion};
use std::sync::mpsc as std_mpsc;
use std::time::Duration;
use tokio::sync::mpsc;

/// What is asked of the control thread.
#[derive(Debug)]
pub enum Order {
    /// Make the longest TTL durable; a session of this worker waits for it.
    RaiseLongestTtl {
        /// The worker.
        worker: usize,
        /// The TTL.
        ttl: Duration,
    },
    /// Raise the epoch of a cell.
    RaiseEpoch(CellId),
    /// Every worker has stopped.
    Stop {
        /// Nothing was held.
        clean: bool,
    },
}

/// Does one order after the other until told to stop.
pub fn run(
    store: &Store,
    inbox: &std_mpsc::Receiver<Order>,
    workers: &[mpsc::UnboundedSender<Command>],
) {
    let tell = |worker: &mpsc::UnboundedSender<Command>, command| {
        let _stopped_meanwhile = worker.send(command);
    };
    for order in inbox {
        match order {
            Order::RaiseLongestTtl { worker, ttl } => match store.raise_longest_ttl(ttl) {
                Ok(()) => tell(&workers[worker], Command::LongestTtl(ttl)),
                Err(error) => tracing::error!(%error, "cannot keep a longer TTL"),
            },
            // The epoch floor is also the ring version: both only grow, and by one entry each.
            Order::RaiseEpoch(cell) => match store.raise_epoch_floor() {
                Ok(epoch) => {
                    for worker in workers {
                        let version = RingVersion(u64::from(epoch));
                        tell(worker, Command::Epoch(cell, Epoch(epoch), version));
                    }
                }
                Err(error) => tracing::error!(%error, %cell, "cannot raise an epoch"),
            },
            Order::Stop { clean } => {
                if clean && let Err(error) = store.mark_clean_stop() {
                    tracing::error!(%error, "the stop was clean but cannot be recorded as such");
                }
                return;
            }
        }
    }
}
