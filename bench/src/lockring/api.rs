//! Callers as tasks of the public client: what a service pays that uses it as documented.
//!
//! They share the one thread of the run. On two cores that gave 900,000 pairs/s where a runtime
//! with two threads gave 780,000 for a third more CPU time, and one with a single thread 620,000:
//! with threads, whoever is woken last runs first, so that fewer requests share a packet, and
//! every wake is a matter between threads. The server needs half of the other core.

use super::ClusterAccess;
use crate::alarm::Alarm;
use crate::board::Phase;
use crate::caller_group::Pacing;
use crate::drive::{GroupError, GroupSetting, lock};
use crate::keys::{self, KeyChooser};
use crate::time::Time;
use lockring_client::{Client, Error, ErrorKind};
use std::future::poll_fn;
use std::io;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;
use tokio::sync::Mutex;

/// Pause after a failed operation, so that a broken server is not hammered.
const REST: Duration = Duration::from_millis(1);

/// A server that died should end the run, not each caller's patience.
const UNREACHABLE_AFTER: Duration = Duration::from_secs(5);

impl ClusterAccess {
    /// A client of its own, with a session and connections.
    pub(crate) async fn client(&self) -> Result<Client, Error> {
        Client::builder()
            .identity_argument(Some(self.identity.clone()))
            .unreachable_after(UNREACHABLE_AFTER)
            .label("bench")
            .connect(&format!("lockring://{}", self.addr))
            .await
    }
}

/// The moments at which the callers of one client are to start, handed to whoever is idle.
pub(crate) struct Pacer {
    alarm: Alarm,
    interval_ns: u64,
    offset_ns: u64,
    /// None while nothing is to be started: an open loop begins afresh with each round.
    next: Option<Time>,
}

impl Pacer {
    /// None for a closed loop.
    pub(crate) fn of(pacing: Pacing) -> io::Result<Option<Arc<Mutex<Self>>>> {
        let Pacing::Open { interval_ns, offset_ns } = pacing else { return Ok(None) };
        let pacer = Self { alarm: Alarm::new()?, interval_ns, offset_ns, next: None };
        Ok(Some(Arc::new(Mutex::new(pacer))))
    }

    /// Waits for the next start and says when it was meant to be; none if the run pauses first.
    async fn start(&mut self, setting: &mut GroupSetting) -> Result<Option<Time>, GroupError> {
        loop {
            if *setting.phase.borrow_and_update() != Phase::Running {
                self.next = None;
                return Ok(None);
            }
            let now = setting.clock.now();
            let next = *self.next.get_or_insert(now + Duration::from_nanos(self.offset_ns));
            if next <= now {
                self.next = Some(next + Duration::from_nanos(self.interval_ns));
                return Ok(Some(next));
            }
            self.alarm.ring_at(now, next)?;
            tokio::select! {
                biased;
                rung = poll_fn(|cx| self.alarm.poll_rung(cx)) => rung?,
                // An end of the run shows as soon as the phase is waited for.
                _ = setting.phase.changed() => {}
            }
        }
    }
}

/// One caller.
pub(crate) struct Caller {
    pub(crate) client: Client,
    /// Distinct over all clients of the target.
    pub(crate) number: u32,
    pub(crate) chooser: KeyChooser,
    /// Kept by the runtime's timer, to its millisecond.
    pub(crate) hold: Duration,
    pub(crate) pacer: Option<Arc<Mutex<Pacer>>>,
    pub(crate) setting: GroupSetting,
    /// The phase as last seen.
    pub(crate) running: bool,
}

/// Lets all tasks go first that are ready now. The runtime's own way to yield polls the sockets
/// too, which a service that has nothing to wait for would not do.
async fn step_back() {
    let mut stepped = false;
    poll_fn(|cx| {
        if std::mem::replace(&mut stepped, true) {
            return Poll::Ready(());
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

impl Caller {
    /// Works until the run is over, with any number of measured rounds in between.
    ///
    /// # Errors
    /// When the server is gone.
    pub(crate) async fn run(mut self) -> Result<(), GroupError> {
        let mut ended = None;
        while self.wait_until_running(&mut ended).await {
            let start = match &self.pacer {
                // The end of a pair is the start of the next: the clock is read once.
                None => Some(ended.take().unwrap_or_else(|| self.setting.clock.now())),
                Some(pacer) => pacer.lock().await.start(&mut self.setting).await?,
            };
            let Some(start) = start else { continue };
            let key = self.chooser.next_key();
            lock(&self.setting.board).outstanding += 1;
            match self.pair(key, start).await {
                Ok(at) => ended = Some(at),
                Err(error) => self.failed(error).await?,
            }
            lock(&self.setting.board).outstanding -= 1;
        }
        Ok(())
    }

    /// Rests after a failed operation; an end of the client is the end of the run.
    async fn failed(&self, error: Error) -> Result<(), GroupError> {
        if matches!(error.kind(), ErrorKind::Unreachable | ErrorKind::Closed) {
            return Err(error.into());
        }
        lock(&self.setting.board).failed(Some(&error.to_string()));
        tokio::time::sleep(REST).await;
        Ok(())
    }

    /// `false`: the run is over.
    async fn wait_until_running(&mut self, ended: &mut Option<Time>) -> bool {
        let phase = &mut self.setting.phase;
        // The usual case, without the lock around the value.
        if self.running && phase.has_changed().is_ok_and(|changed| !changed) {
            return true;
        }
        *ended = None;
        self.running = phase.wait_for(|&phase| phase == Phase::Running).await.is_ok();
        self.running
    }

    /// One pair; says when it ended.
    async fn pair(&self, key: u32, start: Time) -> Result<Time, Error> {
        let guard = self.client.lock(keys::key(key)).await?;
        let waited = self.setting.clock.now().nanos_since(start);
        lock(&self.setting.board).granted(key, self.number, Some(guard.fence()), waited);
        if self.hold.is_zero() {
            // All whose grants came together must be seen to hold before the first lets go.
            step_back().await;
        } else {
            tokio::time::sleep(self.hold).await;
        }
        lock(&self.setting.board).safety.releasing(key, self.number);
        let begun = self.setting.clock.now();
        guard.release().await?;
        let ended = self.setting.clock.now();
        lock(&self.setting.board).released(ended.nanos_since(begun));
        Ok(ended)
    }
}
