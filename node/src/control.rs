//! The control thread: carries out what the control plane decides, away from the workers. What must
//! be durable is written here.
//!
//! A write that fails is tried again, with growing pauses, for as long as somebody needs it; who
//! waits for it hears why after a while, and the node's health says so until a write succeeds.

mod health;
#[cfg(test)]
mod raft;

pub use health::Health;

use crate::messages::{Order, WorkerCommand, who};
use crate::store::Store;
use lockring_control::{self as control, Action, Entry, Event, State, Statement};
use lockring_proto::limits::TTL_DEFAULT;
use lockring_proto::{Time, clock};
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};

/// The control thread's state.
pub struct Control {
    store: Store,
    workers: Vec<mpsc::UnboundedSender<WorkerCommand>>,
    health: Arc<Health>,
    control: control::Control,
    /// Who waits to hear how the stop was.
    stopping: Option<oneshot::Sender<bool>>,
}

impl Control {
    /// A control thread's state over an open store, whose state this is.
    pub fn new(
        store: Store,
        state: State,
        workers: Vec<mpsc::UnboundedSender<WorkerCommand>>,
        health: Arc<Health>,
    ) -> Self {
        let control = control::Control::restored(clock::now(), state, workers.len(), TTL_DEFAULT);
        Self { store, workers, health, control, stopping: None }
    }

    /// Does one order after the other until told to stop.
    pub fn run(mut self, inbox: &Receiver<Order>) {
        loop {
            let wait = self.control.next_deadline().since(clock::now());
            let event = match inbox.recv_timeout(wait) {
                Ok(order) => self.event(order),
                Err(RecvTimeoutError::Timeout) => Event::Tick,
                Err(RecvTimeoutError::Disconnected) => return,
            };
            let stops = self.stopping.is_some();
            self.handle(clock::now(), event);
            if stops {
                return;
            }
        }
    }

    fn event(&mut self, order: Order) -> Event {
        match order {
            Order::RaiseLongestTtl { worker, ttl, by } => Event::TtlAsked { worker, ttl, by },
            Order::RaiseEpoch(cell) => Event::EpochAsked(cell),
            Order::Stop { ends, done } => {
                self.stopping = Some(done);
                Event::Stopped(ends)
            }
        }
    }

    /// Has the control plane decide, and carries it out, with all that follows at once.
    fn handle(&mut self, now: Time, event: Event) {
        let mut events = VecDeque::from([event]);
        let mut actions = Vec::new();
        while let Some(event) = events.pop_front() {
            self.control.handle(now, event, &mut actions);
            for action in actions.drain(..) {
                self.act(action, &mut events);
            }
        }
    }

    fn act(&mut self, action: Action, events: &mut VecDeque<Event>) {
        match action {
            Action::Propose(entry) => events.push_back(self.commit(&entry)),
            Action::Confirm { worker, ttl } => self.tell(worker, WorkerCommand::LongestTtl(ttl)),
            Action::Refuse { worker, why } => self.tell(worker, WorkerCommand::TtlFailed(why)),
            Action::NewEpoch { cell, epoch, version } => {
                for worker in 0..self.workers.len() {
                    self.tell(worker, WorkerCommand::Epoch(cell, epoch, version));
                }
            }
            Action::AskStatements { round, whose } => {
                for (worker, statement) in self.statements(whose).into_iter().enumerate() {
                    let Some(statement) = statement else { continue };
                    events.push_back(Event::Stated { round, worker, statement });
                }
            }
            Action::Stopped { clean } => {
                if let Some(done) = self.stopping.take() {
                    let _whoever_asked_may_be_gone = done.send(clean);
                }
            }
        }
    }

    fn commit(&self, entry: &Entry) -> Event {
        match self.store.commit(entry) {
            Ok(state) => {
                self.health.works();
                if let Entry::LowerLongestTtl { ttl, .. } = entry
                    && state.longest_ttl == *ttl
                {
                    tracing::info!(to = ?ttl, "the longest TTL is lowered");
                }
                Event::Committed(state)
            }
            Err(error) => {
                match entry {
                    Entry::CleanStop(_) => {
                        let what = "the stop was clean but cannot be recorded as such";
                        tracing::error!(%error, "{what}");
                    }
                    _ => self.health.fails(&error),
                }
                Event::Failed(error.cause())
            }
        }
    }

    fn tell(&self, worker: usize, command: WorkerCommand) {
        let _stopped_meanwhile = self.workers[worker].send(command);
    }

    /// What every worker has; `None` for one that does not say.
    fn statements(&self, whose: bool) -> Vec<Option<Statement>> {
        let mut asked = Vec::with_capacity(self.workers.len());
        for worker in 0..self.workers.len() {
            let (answer, report) = oneshot::channel();
            self.tell(worker, WorkerCommand::Report(answer));
            asked.push(report);
        }
        let statement = |(worker, report): (usize, oneshot::Receiver<_>)| {
            let report: crate::messages::Report = report.blocking_recv().ok()?;
            let longest_ttl = report.longest_ttl;
            let is_somebodys = whose && longest_ttl > TTL_DEFAULT;
            let whose = if is_somebodys { self.whose(worker, longest_ttl) } else { None };
            let whose = whose.unwrap_or_default();
            Some(Statement { longest_ttl, whose, in_grace: report.grace_left.is_some() })
        };
        asked.into_iter().enumerate().map(statement).collect()
    }

    /// Whose session at a worker has this TTL, for people.
    fn whose(&self, worker: usize, ttl: Duration) -> Option<String> {
        let mut from = Some(0);
        while let Some(at) = from {
            let (answer, page) = oneshot::channel();
            self.tell(worker, WorkerCommand::Sessions { from: at, rows: 512, answer });
            let (rows, next) = page.blocking_recv().ok()?;
            if let Some(seen) = rows.iter().find(|seen| seen.ttl >= ttl) {
                return Some(who(&seen.namespace, &seen.name, &seen.label));
            }
            from = next;
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lockring_ring::CellId;

    struct Fixture {
        control: Control,
        told: mpsc::UnboundedReceiver<WorkerCommand>,
        health: Arc<Health>,
        data: tempfile::TempDir,
        begun: Time,
    }

    impl Fixture {
        fn new() -> Self {
            let data = tempfile::tempdir().unwrap();
            let store = Store::open(data.path()).unwrap();
            let state = store.boot().unwrap().state;
            let (worker, told) = mpsc::unbounded_channel();
            let health = Arc::new(Health::default());
            let begun = clock::now();
            let control = Control::new(store, state, vec![worker], Arc::clone(&health));
            Self { control, told, health, data, begun }
        }

        /// Has every write fail, or succeed again.
        fn disk_fails(&self, fails: bool) {
            let mark = self.data.path().join("state.mark");
            if fails {
                std::fs::remove_file(&mark).unwrap();
                std::fs::create_dir(&mark).unwrap();
            } else {
                std::fs::remove_dir(&mark).unwrap();
            }
        }

        fn at(&mut self, millis: u64, event: Event) {
            let now = self.begun.after(Duration::from_millis(millis));
            self.control.handle(now, event);
        }
    }

    #[test]
    fn what_failed_is_written_once_it_can_be_and_the_health_says_so() {
        let mut fixture = Fixture::new();
        fixture.disk_fails(true);
        fixture.at(0, Event::EpochAsked(CellId(7)));
        fixture
            .at(10, Event::TtlAsked { worker: 0, ttl: Duration::from_secs(60), by: "who".into() });
        fixture.at(200, Event::Tick);
        assert!(fixture.told.try_recv().is_err());
        assert_eq!(fixture.health.failures(), 2);
        assert!(fixture.health.cause().is_some());
        fixture.disk_fails(false);
        fixture.at(900, Event::Tick);
        let Ok(WorkerCommand::LongestTtl(ttl)) = fixture.told.try_recv() else { panic!() };
        assert_eq!(ttl, Duration::from_secs(60));
        let Ok(WorkerCommand::Epoch(cell, epoch, version)) = fixture.told.try_recv() else {
            panic!()
        };
        assert_eq!((cell, u64::from(epoch.0)), (CellId(7), version.0));
        assert!(fixture.told.try_recv().is_err() && fixture.health.cause().is_none());
    }

    #[test]
    fn who_waits_hears_the_cause_that_the_system_gave() {
        let mut fixture = Fixture::new();
        fixture.disk_fails(true);
        fixture
            .at(0, Event::TtlAsked { worker: 0, ttl: Duration::from_secs(60), by: "who".into() });
        fixture.at(2500, Event::Tick);
        let Ok(WorkerCommand::TtlFailed(why)) = fixture.told.try_recv() else { panic!() };
        let cause = fixture.health.cause().unwrap();
        assert!(why.contains("a TTL of 60 s durable") && why.contains(&cause), "{why}");
    }
}
