//! The timer of a link's task.

use lockring_proto::{Time, clock};
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::time::{Instant, Sleep, sleep};

/// However far a deadline is, the timer rings within this.
const AT_MOST: Duration = Duration::from_secs(3600);

/// Rings no later than asked. The deadline of a busy link moves on with every answer: to be woken
/// early now and then costs a turn, to set the timer anew each time costs more.
pub(crate) struct Timer {
    sleep: Pin<Box<Sleep>>,
    rings_at: Time,
}

impl Timer {
    pub(crate) fn new() -> Self {
        Self { sleep: Box::pin(sleep(AT_MOST)), rings_at: Time::NEVER }
    }

    /// Rings at `at`, or before.
    pub(crate) fn ring_at(&mut self, at: Time) {
        if at < self.rings_at {
            let left = at.since(clock::now()).min(AT_MOST);
            self.sleep.as_mut().reset(Instant::now() + left);
            self.rings_at = at;
        }
    }

    /// Ready when it has rung.
    pub(crate) fn poll_rung(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.rings_at == Time::NEVER {
            return Poll::Pending;
        }
        self.sleep.as_mut().poll(cx).map(|()| self.rings_at = Time::NEVER)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::poll_fn;

    #[tokio::test]
    async fn it_rings_at_the_earliest_moment_asked_for_and_then_anew() {
        let mut timer = Timer::new();
        for _ in 0..3 {
            let start = clock::now();
            let soon = start.after(Duration::from_millis(20));
            for at in [start.after(Duration::from_secs(60)), soon, Time::NEVER] {
                timer.ring_at(at);
            }
            poll_fn(|cx| timer.poll_rung(cx)).await;
            assert!(clock::now() >= soon);
            assert!(clock::now() < start.after(Duration::from_secs(30)));
        }
    }
}
