//! A timer that is exact to microseconds: the runtime's own ticks once a millisecond, five times
//! the first pause of a caller that polls a busy key.

use crate::time::Time;
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
    timerfd_settime,
};
use std::io;
use std::os::fd::OwnedFd;
use std::task::{Context, Poll, ready};
use tokio::io::unix::AsyncFd;

/// Wakes its task once, at the earliest moment asked for since it last rang.
#[derive(Debug)]
pub(crate) struct Alarm {
    timer: AsyncFd<OwnedFd>,
    armed: Option<Time>,
}

impl Alarm {
    pub(crate) fn new() -> io::Result<Self> {
        let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
        let timer = timerfd_create(TimerfdClockId::Monotonic, flags)?;
        // Its successor asks for `unsafe` code, on behalf of types whose descriptor may change
        // while they are registered. That of an `OwnedFd` cannot.
        #[allow(deprecated)]
        let timer = AsyncFd::new(timer)?;
        Ok(Self { timer, armed: None })
    }

    /// Rings at `at`, or before if it was already to ring before: being woken early costs a turn,
    /// setting the timer costs a system call.
    pub(crate) fn ring_at(&mut self, now: Time, at: Time) -> io::Result<()> {
        if self.armed.is_some_and(|armed| armed <= at) {
            return Ok(());
        }
        // Zero would disarm it.
        let nanos = at.nanos_since(now).max(1);
        let value = Timespec {
            tv_sec: (nanos / 1_000_000_000) as i64,
            tv_nsec: (nanos % 1_000_000_000) as i64,
        };
        let once = Itimerspec { it_interval: Timespec { tv_sec: 0, tv_nsec: 0 }, it_value: value };
        timerfd_settime(&self.timer, TimerfdTimerFlags::empty(), &once)?;
        self.armed = Some(at);
        Ok(())
    }

    /// Ready when it has rung.
    pub(crate) fn poll_rung(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            let mut ready = ready!(self.timer.poll_read_ready(cx))?;
            match rustix::io::read(&self.timer, &mut [0; 8]) {
                Ok(_) => {
                    // It cannot ring again before it is set again: nothing is missed.
                    ready.clear_ready();
                    self.armed = None;
                    return Poll::Ready(Ok(()));
                }
                // It was set anew between ringing and this read.
                Err(rustix::io::Errno::AGAIN) => ready.clear_ready(),
                Err(error) => return Poll::Ready(Err(error.into())),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::time::Clock;
    use std::future::poll_fn;
    use std::time::Duration;

    #[tokio::test(flavor = "current_thread")]
    async fn rings_on_time_again_and_again() {
        let clock = Clock::start();
        let mut alarm = Alarm::new().unwrap();
        for _ in 0..20 {
            let start = clock.now();
            alarm.ring_at(start, start + Duration::from_secs(60)).unwrap();
            alarm.ring_at(start, start + Duration::from_micros(200)).unwrap();
            poll_fn(|cx| alarm.poll_rung(cx)).await.unwrap();
            assert!(clock.now() >= start + Duration::from_micros(200));
        }
        assert!(clock.now() < Time(0) + Duration::from_secs(10));
    }
}
