//! The control thread: what must be durable is written here, away from the workers.
//!
//! A write that fails is tried again, with growing pauses, for as long as somebody needs it; who
//! waits for it hears why after a while, and the node's health says so until a write succeeds.

mod health;

pub use health::Health;

use crate::messages::{Command, Order, Report, who};
use crate::store::{Store, StoreError};
use lockring_proto::limits::TTL_DEFAULT;
use lockring_ring::{CellId, Epoch, RingVersion};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, oneshot};

/// How often it is looked whether the longest TTL may fall.
const LOOK: Duration = Duration::from_secs(1);

/// The longest TTL does not fall within this after it changed: a client that comes back every
/// moment must not cost a write each time.
const SETTLE: Duration = Duration::from_secs(3);

/// Pause after the first write that failed; it doubles up to the longest.
const PAUSE_FIRST: Duration = Duration::from_millis(100);
const PAUSE_LONGEST: Duration = Duration::from_secs(5);

/// Who has waited this long for a write that fails is told why.
const PATIENCE: Duration = Duration::from_secs(2);

/// A TTL that the sessions of one worker wait for.
struct Wanted {
    ttl: Duration,
    by: String,
    since: Instant,
}

/// The control thread's state.
pub struct Control {
    store: Store,
    workers: Vec<mpsc::UnboundedSender<Command>>,
    /// No more than the durable longest TTL: how long a restart waits.
    longest: Duration,
    health: Arc<Health>,
    wanted: BTreeMap<usize, Wanted>,
    epochs: BTreeSet<CellId>,
    /// While writes fail: the pause after the last one, and when it ends.
    pause: Option<(Duration, Instant)>,
    look_at: Instant,
    settled_at: Instant,
}

impl Control {
    /// A control thread's state over an open store.
    pub fn new(
        store: Store,
        workers: Vec<mpsc::UnboundedSender<Command>>,
        longest: Duration,
        health: Arc<Health>,
    ) -> Self {
        let now = Instant::now();
        Self {
            store,
            workers,
            longest,
            health,
            wanted: BTreeMap::new(),
            epochs: BTreeSet::new(),
            pause: None,
            look_at: now + LOOK,
            settled_at: now,
        }
    }

    /// Does one order after the other until told to stop.
    pub fn run(mut self, inbox: &Receiver<Order>) {
        loop {
            let wake = self.pause.map_or(self.look_at, |(_, ends)| ends.min(self.look_at));
            match inbox.recv_timeout(wake.saturating_duration_since(Instant::now())) {
                Ok(order) => {
                    if self.take(order, Instant::now()).is_break() {
                        return;
                    }
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
            self.work(Instant::now());
        }
    }

    fn take(&mut self, order: Order, now: Instant) -> ControlFlow<()> {
        match order {
            Order::RaiseLongestTtl { worker, ttl, by } => {
                let more = Wanted { ttl, by, since: now };
                match self.wanted.get_mut(&worker) {
                    Some(known) if known.ttl >= ttl => {}
                    Some(known) => *known = Wanted { since: known.since, ..more },
                    None => drop(self.wanted.insert(worker, more)),
                }
                self.hurry(now);
            }
            Order::RaiseEpoch(cell) => {
                self.epochs.insert(cell);
                self.hurry(now);
            }
            Order::Stop { clean, done } => {
                let _asker_may_be_gone = done.send(clean && self.record_clean_stop());
                return ControlFlow::Break(());
            }
        }
        ControlFlow::Continue(())
    }

    /// Somebody new needs a write: the pause before the next try is a short one again.
    fn hurry(&mut self, now: Instant) {
        if let Some((_, ends)) = &mut self.pause {
            *ends = (*ends).min(now + PAUSE_FIRST);
        }
    }

    /// Does what is due.
    fn work(&mut self, now: Instant) {
        if self.pause.is_none_or(|(_, ends)| now >= ends) {
            match self.write() {
                Ok(()) => {
                    self.pause = None;
                    self.health.works();
                }
                Err(error) => self.failed(&error, now),
            }
        }
        if now >= self.look_at {
            self.look_at = now + LOOK;
            self.consider_lowering(now);
        }
    }

    /// Tries every write that somebody waits for. While the last one failed and nobody waits, it
    /// is tried whether one would succeed, so that the health does not tell of yesterday's trouble.
    fn write(&mut self) -> Result<(), StoreError> {
        if self.pause.is_some() {
            self.store.probe()?;
        }
        if let Some(most) = self.wanted.values().max_by_key(|wanted| wanted.ttl) {
            if most.ttl > self.longest {
                self.store.raise_longest_ttl(most.ttl, &most.by)?;
                self.longest = most.ttl;
                self.settled_at = Instant::now() + SETTLE;
            }
            for (worker, _) in std::mem::take(&mut self.wanted) {
                self.tell(worker, Command::LongestTtl(self.longest));
            }
        }
        while let Some(&cell) = self.epochs.first() {
            // The epoch floor is also the ring version: both only grow, and by one entry each.
            let epoch = self.store.raise_epoch_floor()?;
            let version = RingVersion(u64::from(epoch));
            self.tell_all(|| Command::Epoch(cell, Epoch(epoch), version));
            self.epochs.remove(&cell);
        }
        Ok(())
    }

    fn failed(&mut self, error: &StoreError, now: Instant) {
        let pause = self.pause.map_or(PAUSE_FIRST, |(pause, _)| (pause * 2).min(PAUSE_LONGEST));
        self.pause = Some((pause, now + pause));
        self.health.fails(error);
        let cause = error.cause();
        let told: Vec<usize> = self
            .wanted
            .iter()
            .filter(|(_, wanted)| now.duration_since(wanted.since) >= PATIENCE)
            .map(|(&worker, _)| worker)
            .collect();
        for worker in told {
            if let Some(wanted) = self.wanted.remove(&worker) {
                let ttl = wanted.ttl.as_secs_f64();
                let why = format!(
                    "the node cannot make a TTL of {ttl} s durable: {cause}; it tries again"
                );
                self.tell(worker, Command::TtlFailed(why));
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

    /// How every worker is; `None` if one does not say.
    fn reports(&self) -> Option<Vec<Report>> {
        let mut asked = Vec::with_capacity(self.workers.len());
        for worker in 0..self.workers.len() {
            let (answer, report) = oneshot::channel();
            self.tell(worker, Command::Report(answer));
            asked.push(report);
        }
        asked.into_iter().map(|report| report.blocking_recv().ok()).collect()
    }

    /// The longest TTL that anybody can still believe in; `None` if that cannot be said. Leases of
    /// earlier lives are believed in until the grace is over, and no worker knows them.
    fn believed(&self) -> Option<Duration> {
        let reports = self.reports()?;
        let in_use = reports.iter().map(|report| report.longest_ttl).max().unwrap_or_default();
        let settled = reports.iter().all(|report| report.grace_left.is_none());
        settled.then(|| in_use.max(TTL_DEFAULT))
    }

    /// One patient session must not make a later restart wait for longer than it was there. The
    /// workers go first, so that a session that comes meanwhile with a longer TTL asks here, and
    /// is served after this; then they are asked again, for one that came before.
    fn consider_lowering(&mut self, now: Instant) {
        let busy = self.longest <= TTL_DEFAULT || self.pause.is_some() || now < self.settled_at;
        let Some(needed) = (!busy).then(|| self.believed()).flatten() else { return };
        if needed >= self.longest {
            return;
        }
        self.tell_all(|| Command::LongestTtl(needed));
        if self.believed().is_none_or(|believed| believed > needed) {
            let longest = self.longest;
            return self.tell_all(|| Command::LongestTtl(longest));
        }
        let by = self.whose(needed);
        let from = std::mem::replace(&mut self.longest, needed);
        self.settled_at = now + SETTLE;
        match self.store.set_longest_ttl(needed, &by) {
            Ok(()) => tracing::info!(?from, to = ?needed, "the longest TTL is lowered"),
            // It may have taken effect all the same, so that from here on the lower one counts.
            Err(error) => self.failed(&error, now),
        }
    }

    /// Whose session has this TTL, for people; nobody's if every restart waits for as long.
    fn whose(&self, ttl: Duration) -> String {
        let among = |worker: &mpsc::UnboundedSender<Command>| {
            let mut from = Some(0);
            while let Some(at) = from {
                let (answer, page) = oneshot::channel();
                worker.send(Command::Sessions { from: at, rows: 512, answer }).ok()?;
                let (rows, next) = page.blocking_recv().ok()?;
                if let Some(seen) = rows.iter().find(|seen| seen.ttl >= ttl) {
                    return Some(who(&seen.namespace, &seen.name, &seen.label));
                }
                from = next;
            }
            None
        };
        if ttl <= TTL_DEFAULT {
            return String::new();
        }
        self.workers.iter().find_map(among).unwrap_or_default()
    }

    fn record_clean_stop(&self) -> bool {
        let recorded = self.store.mark_clean_stop();
        if let Err(error) = &recorded {
            tracing::error!(%error, "the stop was clean but cannot be recorded as such");
        }
        recorded.is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Fixture {
        control: Control,
        told: mpsc::UnboundedReceiver<Command>,
        health: Arc<Health>,
        data: tempfile::TempDir,
        begun: Instant,
    }

    impl Fixture {
        fn new() -> Self {
            let data = tempfile::tempdir().unwrap();
            let store = Store::open(data.path()).unwrap();
            let longest = store.boot().unwrap().longest_ttl;
            let (worker, told) = mpsc::unbounded_channel();
            let health = Arc::new(Health::default());
            let mut control = Control::new(store, vec![worker], longest, Arc::clone(&health));
            // These tests are about writes alone.
            let begun = Instant::now();
            control.look_at = begun + Duration::from_secs(3600);
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

        fn at(&self, millis: u64) -> Instant {
            self.begun + Duration::from_millis(millis)
        }

        fn order(&mut self, order: Order, millis: u64) {
            assert!(self.control.take(order, self.at(millis)).is_continue());
            self.control.work(self.at(millis));
        }

        fn wants(&mut self, seconds: u64, millis: u64) {
            let ttl = Duration::from_secs(seconds);
            self.order(Order::RaiseLongestTtl { worker: 0, ttl, by: "who".to_owned() }, millis);
        }
    }

    #[test]
    fn an_epoch_that_cannot_be_raised_is_tried_again_until_it_can() {
        let mut fixture = Fixture::new();
        fixture.disk_fails(true);
        fixture.order(Order::RaiseEpoch(CellId(7)), 0);
        for second in 1..60 {
            fixture.control.work(fixture.at(second * 1000));
        }
        assert!(fixture.told.try_recv().is_err());
        let failures = fixture.health.failures();
        assert!((8..20).contains(&failures), "{failures} tries in a minute");
        fixture.disk_fails(false);
        fixture.control.work(fixture.at(66_000));
        let Ok(Command::Epoch(cell, epoch, version)) = fixture.told.try_recv() else { panic!() };
        assert_eq!((cell, u64::from(epoch.0)), (CellId(7), version.0));
        assert!(fixture.told.try_recv().is_err() && fixture.health.cause().is_none());
    }

    #[test]
    fn who_waits_for_a_ttl_is_told_why_and_a_newcomer_has_it_tried_soon() {
        let mut fixture = Fixture::new();
        fixture.disk_fails(true);
        fixture.wants(60, 0);
        fixture.control.work(fixture.at(1000));
        assert!(fixture.told.try_recv().is_err(), "it may yet succeed");
        fixture.control.work(fixture.at(2500));
        let Ok(Command::TtlFailed(why)) = fixture.told.try_recv() else { panic!() };
        assert!(why.contains("a TTL of 60 s durable") && why.contains("tries again"), "{why}");
        for second in 3..60 {
            fixture.control.work(fixture.at(second * 1000));
        }
        fixture.disk_fails(false);
        // The pause is a long one by now, but not for somebody who comes.
        fixture.wants(60, 60_100);
        fixture.control.work(fixture.at(60_300));
        let Ok(Command::LongestTtl(ttl)) = fixture.told.try_recv() else { panic!() };
        assert_eq!(ttl, Duration::from_secs(60));
        assert!(fixture.health.cause().is_none());
    }
}
