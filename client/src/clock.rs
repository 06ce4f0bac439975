//! The clock that leases are counted on, and alarms on that clock.
//!
//! The clock is CLOCK_BOOTTIME, which goes on while the machine is suspended. A runtime's timers
//! count CLOCK_MONOTONIC, which does not: after a resume they would ring late by as long as the
//! machine slept, and losses would be noticed with the next traffic only. So alarms have a timer of
//! their own, one for the process, on a thread that needs no runtime: it also rings for holds whose
//! runtime is gone.

use lockring_proto::{Time, clock};
use rustix::fd::OwnedFd;
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
    timerfd_settime,
};
use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

/// Without a timer of the system's the bell looks at the clock this often.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// What is rung for, and when.
#[derive(Default)]
struct Armed {
    alarms: BTreeMap<(Time, u64), (Waker, Arc<AtomicBool>)>,
    serial: u64,
}

/// Alarms on one clock.
struct Bell {
    armed: Mutex<Armed>,
    /// Told the time of the first alarm.
    timer: Option<OwnedFd>,
}

impl Bell {
    fn armed(&self) -> MutexGuard<'_, Armed> {
        // Entries go in and out whole: a panic elsewhere leaves none half made.
        self.armed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The bell of CLOCK_BOOTTIME, with the thread that rings it.
    fn of_boot_time() -> Self {
        let timer = timerfd_create(TimerfdClockId::Boottime, TimerfdFlags::CLOEXEC);
        if let Err(error) = &timer {
            tracing::debug!(%error, "no timer on CLOCK_BOOTTIME; looking at the clock instead");
        }
        let rings = || BOOT_TIME.ring_for_ever();
        let thread = std::thread::Builder::new().name("lockring-clock".to_owned()).spawn(rings);
        if let Err(error) = thread {
            tracing::error!(%error, "no thread for alarms: lost locks are noticed late");
        }
        Self { armed: Mutex::default(), timer: timer.ok() }
    }

    fn ring_for_ever(&self) {
        loop {
            match &self.timer {
                Some(timer) => {
                    let mut rung = [0; 8];
                    if rustix::io::read(timer, &mut rung).is_err() {
                        std::thread::sleep(LOOK_EVERY);
                    }
                }
                None => std::thread::sleep(LOOK_EVERY),
            }
            self.ring(clock::now());
        }
    }

    /// Wakes whoever's time has come.
    fn ring(&self, now: Time) {
        let due = {
            let mut armed = self.armed();
            let later = armed.alarms.split_off(&(now.after(Duration::from_micros(1)), 0));
            let due = std::mem::replace(&mut armed.alarms, later);
            self.set_timer(&armed);
            due
        };
        for (waker, rung) in due.into_values() {
            rung.store(true, Ordering::Release);
            waker.wake();
        }
    }

    fn set_timer(&self, armed: &Armed) {
        let (Some(timer), Some((&(at, _), _))) = (&self.timer, armed.alarms.first_key_value())
        else {
            return;
        };
        let it_value = Timespec {
            tv_sec: (at.0 / 1_000_000) as i64,
            // Never all zero, which would stop the timer.
            tv_nsec: (at.0 % 1_000_000 * 1000 + 1) as _,
        };
        let it_interval = Timespec { tv_sec: 0, tv_nsec: 0 };
        let when = Itimerspec { it_interval, it_value };
        if let Err(error) = timerfd_settime(timer, TimerfdTimerFlags::ABSTIME, &when) {
            tracing::warn!(%error, "the system's timer cannot be set");
        }
    }

    fn arm(&self, at: Time, waker: Waker, rung: Arc<AtomicBool>) -> u64 {
        let mut armed = self.armed();
        armed.serial += 1;
        let serial = armed.serial;
        armed.alarms.insert((at, serial), (waker, rung));
        if armed.alarms.first_key_value().is_some_and(|(&first, _)| first == (at, serial)) {
            self.set_timer(&armed);
        }
        serial
    }

    fn disarm(&self, at: Time, serial: u64) {
        self.armed().alarms.remove(&(at, serial));
    }
}

static BOOT_TIME: LazyLock<Bell> = LazyLock::new(Bell::of_boot_time);

/// A clock with alarms.
#[derive(Clone)]
pub(crate) enum Clock {
    /// This machine's.
    BootTime,
    /// One that a test sets.
    #[cfg(test)]
    Set(Arc<tests::SetClock>),
}

impl fmt::Debug for Clock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Clock({})", self.now())
    }
}

impl Clock {
    #[inline]
    pub(crate) fn now(&self) -> Time {
        match self {
            Self::BootTime => clock::now(),
            #[cfg(test)]
            Self::Set(clock) => clock.now(),
        }
    }

    fn bell(&self) -> &Bell {
        match self {
            Self::BootTime => &BOOT_TIME,
            #[cfg(test)]
            Self::Set(clock) => clock.bell(),
        }
    }

    /// Wakes `waker` at this time, once.
    pub(crate) fn wake_at(&self, at: Time, waker: Waker) {
        let _it_rings_once = self.bell().arm(at, waker, Arc::default());
    }
}

/// Rings no later than asked. The deadline of a busy link moves on with every answer: to be woken
/// early now and then costs a turn, to set the alarm anew each time costs more.
pub(crate) struct Alarm {
    clock: Clock,
    rings_at: Time,
    armed: Option<(Time, u64, Waker)>,
    rung: Arc<AtomicBool>,
}

impl Alarm {
    pub(crate) fn new(clock: Clock) -> Self {
        Self { clock, rings_at: Time::NEVER, armed: None, rung: Arc::default() }
    }

    /// Rings at `at`, or before.
    pub(crate) fn ring_at(&mut self, at: Time) {
        if at < self.rings_at {
            self.disarm();
            self.rings_at = at;
        }
    }

    /// Ready when it has rung.
    pub(crate) fn poll_rung(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.rings_at == Time::NEVER {
            return Poll::Pending;
        }
        if self.rung.load(Ordering::Acquire) || self.clock.now() >= self.rings_at {
            self.disarm();
            self.rings_at = Time::NEVER;
            return Poll::Ready(());
        }
        if self.armed.as_ref().is_none_or(|(_, _, waker)| !waker.will_wake(cx.waker())) {
            self.disarm();
            let waker = cx.waker().clone();
            let rung = Arc::clone(&self.rung);
            let serial = self.clock.bell().arm(self.rings_at, waker.clone(), rung);
            self.armed = Some((self.rings_at, serial, waker));
        }
        Poll::Pending
    }

    fn disarm(&mut self) {
        if let Some((at, serial, _)) = self.armed.take() {
            self.clock.bell().disarm(at, serial);
            // One that rang meanwhile must not ring for the next time.
            self.rung = Arc::default();
        }
    }
}

impl Drop for Alarm {
    fn drop(&mut self) {
        self.disarm();
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use std::future::poll_fn;

    /// A clock that a test sets, as a suspend or a resume would.
    pub(crate) struct SetClock {
        now: Mutex<Time>,
        bell: Bell,
    }

    impl SetClock {
        pub(crate) fn new(now: Time) -> Arc<Self> {
            let bell = Bell { armed: Mutex::default(), timer: None };
            Arc::new(Self { now: Mutex::new(now), bell })
        }

        pub(crate) fn now(&self) -> Time {
            *self.now.lock().unwrap()
        }

        pub(super) fn bell(&self) -> &Bell {
            &self.bell
        }

        /// Time passes: what is due rings.
        pub(crate) fn advance(&self, span: Duration) {
            let now = {
                let mut now = self.now.lock().unwrap();
                *now = now.after(span);
                *now
            };
            self.bell.ring(now);
        }

        /// How many alarms are armed.
        pub(crate) fn armed(&self) -> usize {
            self.bell.armed().alarms.len()
        }
    }

    #[tokio::test]
    async fn it_rings_at_the_earliest_moment_asked_for_and_then_anew() {
        let mut alarm = Alarm::new(Clock::BootTime);
        for _ in 0..3 {
            let start = clock::now();
            let soon = start.after(Duration::from_millis(20));
            for at in [start.after(Duration::from_secs(60)), soon, Time::NEVER] {
                alarm.ring_at(at);
            }
            poll_fn(|cx| alarm.poll_rung(cx)).await;
            assert!(clock::now() >= soon);
            assert!(clock::now() < start.after(Duration::from_secs(30)));
        }
    }

    #[tokio::test]
    async fn an_alarm_of_a_set_clock_rings_with_that_clock_and_leaves_nothing() {
        let set = SetClock::new(Time(5));
        let mut alarm = Alarm::new(Clock::Set(Arc::clone(&set)));
        alarm.ring_at(Time(1_000_000));
        let waits = tokio::spawn(async move {
            poll_fn(|cx| alarm.poll_rung(cx)).await;
            alarm
        });
        while set.armed() == 0 {
            tokio::task::yield_now().await;
        }
        set.advance(Duration::from_secs(3600));
        let mut alarm = waits.await.unwrap();
        alarm.ring_at(Time(u64::MAX - 1));
        assert!(poll_fn(|cx| Poll::Ready(alarm.poll_rung(cx))).await.is_pending());
        assert_eq!(set.armed(), 1);
        drop(alarm);
        assert_eq!(set.armed(), 0);
    }
}
