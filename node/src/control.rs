//! The control thread: what must be durable is written here, away from the workers.

use crate::store::Store;
use crate::worker::Command;
use lockring_proto::limits::TTL_DEFAULT;
use lockring_ring::{CellId, Epoch, RingVersion};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, oneshot};

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

/// The control thread's state.
pub struct Control {
    store: Store,
    workers: Vec<mpsc::UnboundedSender<Command>>,
    /// The durable longest TTL: how long a restart waits.
    longest: Duration,
    /// Since when no session has needed that long a TTL.
    unneeded_since: Option<Instant>,
}

impl Control {
    /// A control thread's state over an open store.
    pub fn new(
        store: Store,
        workers: Vec<mpsc::UnboundedSender<Command>>,
        longest: Duration,
    ) -> Self {
        Self { store, workers, longest, unneeded_since: None }
    }

    /// Does one order after the other until told to stop.
    pub fn run(mut self, inbox: &Receiver<Order>) {
        loop {
            let look = (self.longest / 8).clamp(Duration::from_secs(1), Duration::from_secs(30));
            match inbox.recv_timeout(look) {
                Ok(Order::RaiseLongestTtl { worker, ttl }) => self.raise_longest(worker, ttl),
                Ok(Order::RaiseEpoch(cell)) => self.raise_epoch(cell),
                Ok(Order::Stop { clean }) => return self.stop(clean),
                Err(RecvTimeoutError::Timeout) => self.consider_lowering(),
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    fn tell(&self, worker: usize, command: Command) {
        let _stopped_meanwhile = self.workers[worker].send(command);
    }

    fn tell_all(&self, command: impl Fn() -> Command) {
        for worker in 0..self.workers.len() {
            self.tell(worker, command());
        }
    }

    fn raise_longest(&mut self, worker: usize, ttl: Duration) {
        match self.store.raise_longest_ttl(ttl) {
            Ok(()) => {
                self.longest = self.longest.max(ttl);
                self.unneeded_since = None;
                self.tell(worker, Command::LongestTtl(self.longest));
            }
            Err(error) => tracing::error!(%error, "cannot keep a longer TTL"),
        }
    }

    /// The epoch floor is also the ring version: both only grow, and by one entry each.
    fn raise_epoch(&self, cell: CellId) {
        match self.store.raise_epoch_floor() {
            Ok(epoch) => {
                let version = RingVersion(u64::from(epoch));
                self.tell_all(|| Command::Epoch(cell, Epoch(epoch), version));
            }
            Err(error) => tracing::error!(%error, %cell, "cannot raise an epoch"),
        }
    }

    /// The longest TTL that any session has now; `None` if a worker does not say.
    fn in_use(&self) -> Option<Duration> {
        let mut longest = Duration::ZERO;
        for worker in 0..self.workers.len() {
            let (answer, report) = oneshot::channel();
            self.tell(worker, Command::Report(answer));
            longest = longest.max(report.blocking_recv().ok()?.longest_ttl);
        }
        Some(longest)
    }

    /// One patient session must not make every later restart wait for ever: when none has needed
    /// the longest TTL for as long as that TTL, it is lowered. The workers go first, so that a
    /// session that comes meanwhile with a longer one asks here, and is served after this.
    fn consider_lowering(&mut self) {
        let Some(in_use) = self.in_use() else { return };
        let needed = in_use.max(TTL_DEFAULT);
        if needed >= self.longest {
            self.unneeded_since = None;
            return;
        }
        let since = *self.unneeded_since.get_or_insert_with(Instant::now);
        if since.elapsed() < self.longest + self.longest / 8 {
            return;
        }
        self.tell_all(|| Command::LongestTtl(needed));
        let still = self.in_use().is_some_and(|in_use| in_use <= needed);
        if still && self.store.set_longest_ttl(needed).is_ok() {
            tracing::info!(from = ?self.longest, to = ?needed, "the longest TTL is lowered");
            self.longest = needed;
        } else {
            let longest = self.longest;
            self.tell_all(|| Command::LongestTtl(longest));
        }
        self.unneeded_since = None;
    }

    fn stop(&self, clean: bool) {
        if clean && let Err(error) = self.store.mark_clean_stop() {
            tracing::error!(%error, "the stop was clean but cannot be recorded as such");
        }
    }
}
