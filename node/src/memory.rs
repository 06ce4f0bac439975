//! A node stops admitting before it runs out of memory, and gives back what it no longer needs.
//!
//! A process that is out of memory ends, and with it everybody's locks. So a thread looks often at
//! what is used and what there is: of the setting, the machine, the control group and the address
//! space. Near the first of these ends the workers refuse what is new and serve on.

mod bounds;

pub use bounds::{Bound, MemoryLimit};

use crate::messages::{Report, WorkerCommand};
use bounds::Reading;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, oneshot};

/// How often it is looked, with little left and with much.
const LOOK_NEAR: Duration = Duration::from_millis(20);
const LOOK_FAR: Duration = Duration::from_millis(200);

/// Much is left when it would take this long at a gigabyte a second.
const FAR_BYTES: u64 = 1 << 30;

/// How often it is looked whether a peak has passed.
const LOOK_PEAK: Duration = Duration::from_secs(1);

/// Memory is given back at most this often: it takes the workers' time.
const GIVE_BACK_EVERY: Duration = Duration::from_secs(5);

/// A peak of fewer bytes than this is not worth it.
const PEAK_LEAST: u64 = 2 << 20;

/// What a connection takes, nearly all of it in QUIC's own state.
const CONNECTION_BYTES: u64 = 35 << 10;

/// What the rest of the node sees of its memory.
#[derive(Debug, Default)]
pub struct Memory {
    resident: AtomicU64,
    left: AtomicU64,
    full: AtomicBool,
}

impl Memory {
    /// Bytes that the process uses.
    pub fn resident(&self) -> u64 {
        self.resident.load(Ordering::Relaxed)
    }

    /// Bytes until nothing new is admitted, by the nearest bound; the largest number if there is
    /// none.
    pub fn left(&self) -> u64 {
        self.left.load(Ordering::Relaxed)
    }

    /// Whether nothing new is admitted.
    pub fn is_full(&self) -> bool {
        self.full.load(Ordering::Relaxed)
    }
}

/// The thread that looks. It ends when this is dropped.
pub struct Watch {
    stop: Sender<()>,
    thread: JoinHandle<()>,
}

impl Watch {
    /// Looks once, then goes on in a thread of its own.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub fn start(
        limit: MemoryLimit,
        workers: Vec<mpsc::UnboundedSender<WorkerCommand>>,
        memory: Arc<Memory>,
    ) -> std::io::Result<Self> {
        lockring_heap::set_up();
        let (stop, stopped) = channel();
        let mut looker = Looker { limit, workers, memory, peak: Peak::default() };
        looker.look();
        let thread = std::thread::Builder::new()
            .name("memory".to_owned())
            .spawn(move || looker.run(&stopped))?;
        Ok(Self { stop, thread })
    }

    /// Ends it.
    pub fn stop(self) {
        drop(self.stop);
        if self.thread.join().is_err() {
            tracing::error!("the memory thread had panicked");
        }
    }
}

struct Looker {
    limit: MemoryLimit,
    workers: Vec<mpsc::UnboundedSender<WorkerCommand>>,
    memory: Arc<Memory>,
    peak: Peak,
}

impl Looker {
    fn run(&mut self, stopped: &Receiver<()>) {
        let mut asked: Vec<oneshot::Receiver<Report>> = Vec::new();
        let mut peak_at = Instant::now();
        let mut shrunk = false;
        loop {
            let near = self.memory.left() < FAR_BYTES;
            match stopped.recv_timeout(if near { LOOK_NEAR } else { LOOK_FAR }) {
                Err(RecvTimeoutError::Timeout) => {}
                Ok(()) | Err(RecvTimeoutError::Disconnected) => return,
            }
            self.look();
            let now = Instant::now();
            if now < peak_at {
                continue;
            }
            peak_at = now + LOOK_PEAK;
            // The workers have had a look's time to give back to the heap what lies between.
            if std::mem::take(&mut shrunk) {
                lockring_heap::give_back();
            }
            // Asked a look ago, so that a worker that is busy is never waited for.
            let reports: Vec<Report> =
                asked.drain(..).filter_map(|mut report| report.try_recv().ok()).collect();
            if reports.len() == self.workers.len()
                && self.peak.has_passed(now, reports.iter().map(load).sum())
            {
                self.tell(|| WorkerCommand::Shrink);
                shrunk = true;
            }
            asked = self.workers.iter().map(ask).collect();
        }
    }

    fn look(&mut self) {
        let reading = Reading::now(self.limit);
        let bounds = bounds::bounds(self.limit, &reading);
        let was_full = self.memory.is_full();
        let nearest = bounds.iter().min_by_key(|bound| bound.left());
        let left = nearest.map_or(u64::MAX, Bound::left);
        self.memory.resident.store(reading.resident, Ordering::Relaxed);
        self.memory.left.store(left, Ordering::Relaxed);
        let full = nearest.is_some_and(|bound| bound.is_full(was_full));
        if full == was_full {
            return;
        }
        self.memory.full.store(full, Ordering::Relaxed);
        match nearest.filter(|_| full) {
            Some(bound) => tracing::warn!(
                "memory is nearly used up: {bound}; new sessions, locks and waiters are refused"
            ),
            None => tracing::info!("there is memory again: everything is admitted"),
        }
        self.tell(|| WorkerCommand::Memory { full });
    }

    fn tell(&self, command: impl Fn() -> WorkerCommand) {
        for worker in &self.workers {
            let _stopped_meanwhile = worker.send(command());
        }
    }
}

fn ask(worker: &mpsc::UnboundedSender<WorkerCommand>) -> oneshot::Receiver<Report> {
    let (answer, report) = oneshot::channel();
    let _answered_by_its_drop = worker.send(WorkerCommand::Report(answer));
    report
}

/// About how many bytes a worker has for its clients.
fn load(report: &Report) -> u64 {
    report.stats.bytes + CONNECTION_BYTES * report.connections as u64
}

/// When a peak has passed: what is kept has fallen below half of the most there was since memory
/// was given back last.
#[derive(Debug, Default)]
struct Peak {
    most: u64,
    given_back: Option<Instant>,
}

impl Peak {
    fn has_passed(&mut self, now: Instant, load: u64) -> bool {
        self.most = self.most.max(load);
        let rested = self.given_back.is_none_or(|at| now.duration_since(at) >= GIVE_BACK_EVERY);
        let passed = self.most >= PEAK_LEAST && load < self.most / 2 && rested;
        if passed {
            *self = Self { most: load, given_back: Some(now) };
        }
        passed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peak_has_passed_when_half_of_it_is_gone() {
        let (mut peak, begun) = (Peak::default(), Instant::now());
        let at = |seconds| begun + Duration::from_secs(seconds);
        let mib = |count: u64| count << 20;
        assert!(!peak.has_passed(at(0), mib(100)));
        assert!(!peak.has_passed(at(1), mib(60)));
        assert!(peak.has_passed(at(2), mib(40)));
        assert!(!peak.has_passed(at(3), mib(10)), "too soon again");
        assert!(peak.has_passed(at(7), mib(10)));
        assert!(!peak.has_passed(at(60), mib(9)));
        assert!(peak.has_passed(at(61), 0), "what was left has gone too");
        assert!(!peak.has_passed(at(99), PEAK_LEAST - 1));
        assert!(!peak.has_passed(at(199), 0), "a small one");
    }
}
