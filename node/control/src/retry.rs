//! When a proposal that failed is made again: after pauses that grow, and shrink when somebody
//! new waits.

use lockring_proto::Time;
use std::time::Duration;

/// Pause after the first proposal that failed; it doubles up to the longest.
const PAUSE_FIRST: Duration = Duration::from_millis(100);
const PAUSE_LONGEST: Duration = Duration::from_secs(5);

/// The pause under way.
#[derive(Debug, Default)]
pub(crate) struct Retry {
    /// While proposals fail: the pause after the last one, and when it ends.
    pause: Option<(Duration, Time)>,
}

impl Retry {
    /// Whether something may be proposed now.
    pub fn is_due(&self, now: Time) -> bool {
        self.pause.is_none_or(|(_, ends)| now >= ends)
    }

    pub fn works(&mut self) {
        self.pause = None;
    }

    pub fn fails(&mut self, now: Time) {
        let pause = self.pause.map_or(PAUSE_FIRST, |(pause, _)| (pause * 2).min(PAUSE_LONGEST));
        self.pause = Some((pause, now.after(pause)));
    }
}

#[cfg(any(test, feature = "testing"))]
impl Retry {
    /// The last proposal failed.
    pub fn is_failing(&self) -> bool {
        self.pause.is_some()
    }

    /// When the pause ends.
    pub fn ends(&self) -> Option<Time> {
        self.pause.map(|(_, ends)| ends)
    }

    /// Somebody new waits: the pause before the next try is a short one again.
    pub fn hurry(&mut self, now: Time) {
        if let Some((_, ends)) = &mut self.pause {
            *ends = (*ends).min(now.after(PAUSE_FIRST));
        }
    }
}
