//! The check that every grant of a run goes through.
//!
//! A caller holds a key from when its grant is *read* until its release is *sent*. A correct
//! server never lets two such spans of one key overlap, and gives every grant of a key a higher
//! fence than the one before. All groups share one thread, so the order seen here is real. The span
//! is shorter than the hold on the server, so a double grant can be missed, most easily with a
//! hold of zero; it is never reported where there was none.

use serde::Serialize;
use std::hint::black_box;

/// What the server of a target promises, and is therefore held to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Guarantees {
    /// One holder per key at a time.
    pub exclusive: bool,
    /// Every grant has a fence above the key's last.
    pub fenced: bool,
}

impl Guarantees {
    /// No lock table at all (an echo).
    pub const NONE: Self = Self { exclusive: false, fenced: false };
    /// Exclusion without fences.
    pub const EXCLUSION: Self = Self { exclusive: true, fenced: false };
    /// Both.
    pub const FENCED: Self = Self { exclusive: true, fenced: true };
}

const NOBODY: u32 = u32::MAX;

/// What is known of one key; both fields on one cache line.
#[derive(Clone, Copy, Debug)]
struct KeyState {
    last_fence: u64,
    holder: u32,
}

/// Something a caller did to a key.
#[derive(Clone, Copy, Debug)]
enum Event {
    Granted { key: u32, caller: u32, fence: Option<u64> },
    Releasing { key: u32, caller: u32 },
}

/// Holders and fences by key number.
///
/// A table of a million keys is far larger than the caches, and to wait for memory at each event
/// would weigh on what is measured: events are noted in order, and judged many at a time, so that
/// the processor fetches what is known of their keys all at once.
#[derive(Debug)]
pub struct SafetyCheck {
    guarantees: Guarantees,
    keys: Vec<KeyState>,
    /// Not judged yet.
    noted: Vec<Event>,
    double_grants: u64,
    fence_regressions: u64,
}

/// How many are judged at a time: their part of the table fits the first cache.
const NOTED_MAX: usize = 256;

impl SafetyCheck {
    /// For keys `0..keys`, none of them held.
    pub fn new(guarantees: Guarantees, keys: u32) -> Self {
        let kept = if guarantees == Guarantees::NONE { 0 } else { keys as usize };
        Self {
            guarantees,
            keys: vec![KeyState { last_fence: 0, holder: NOBODY }; kept],
            noted: Vec::with_capacity(NOTED_MAX),
            double_grants: 0,
            fence_regressions: 0,
        }
    }

    /// A grant was read. A fenced server that sends no fence is counted as a regression.
    #[inline]
    pub fn granted(&mut self, key: u32, caller: u32, fence: Option<u64>) {
        self.note(Event::Granted { key, caller, fence });
    }

    /// A release is about to be sent.
    #[inline]
    pub fn releasing(&mut self, key: u32, caller: u32) {
        self.note(Event::Releasing { key, caller });
    }

    /// The lease of every holder has ended, by its own clock: nobody holds anything.
    pub fn lapse(&mut self) {
        self.judge();
        for state in &mut self.keys {
            state.holder = NOBODY;
        }
    }

    #[inline]
    fn note(&mut self, event: Event) {
        if self.guarantees != Guarantees::NONE {
            self.noted.push(event);
            if self.noted.len() == NOTED_MAX {
                self.judge();
            }
        }
    }

    fn judge(&mut self) {
        for event in &self.noted {
            let (Event::Granted { key, .. } | Event::Releasing { key, .. }) = *event;
            black_box(self.keys.get(key as usize).map(|state| state.holder));
        }
        let mut noted = std::mem::take(&mut self.noted);
        for event in noted.drain(..) {
            match event {
                Event::Granted { key, caller, fence } => self.judge_grant(key, caller, fence),
                Event::Releasing { key, caller } => self.judge_release(key, caller),
            }
        }
        self.noted = noted;
    }

    fn judge_grant(&mut self, key: u32, caller: u32, fence: Option<u64>) {
        let Some(state) = self.keys.get_mut(key as usize) else {
            return;
        };
        if self.guarantees.exclusive {
            self.double_grants += u64::from(state.holder != NOBODY);
            state.holder = caller;
        }
        if self.guarantees.fenced {
            let fence = fence.unwrap_or(0);
            self.fence_regressions += u64::from(fence <= state.last_fence);
            state.last_fence = state.last_fence.max(fence);
        }
    }

    fn judge_release(&mut self, key: u32, caller: u32) {
        if let Some(state) = self.keys.get_mut(key as usize)
            && state.holder == caller
        {
            state.holder = NOBODY;
        }
    }

    /// Grants of a key that another caller still held; none where exclusion is not promised.
    pub fn double_grants(&mut self) -> Option<u64> {
        self.judge();
        self.guarantees.exclusive.then_some(self.double_grants)
    }

    /// Grants whose fence was not above the key's last; none where fences are not promised.
    pub fn fence_regressions(&mut self) -> Option<u64> {
        self.judge();
        self.guarantees.fenced.then_some(self.fence_regressions)
    }
}

/// What the safety check found; null where a target promises no such thing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct SafetyReport {
    /// Grants of a key that another caller still held.
    pub double_grants: Option<u64>,
    /// Grants whose fence was not above the key's last.
    pub fence_regressions: Option<u64>,
}

impl SafetyReport {
    /// What a check has found so far.
    pub fn of(check: &mut SafetyCheck) -> Self {
        Self { double_grants: check.double_grants(), fence_regressions: check.fence_regressions() }
    }

    /// What two checks have found together.
    pub(crate) fn and(self, other: Self) -> Self {
        let sum = |own: Option<u64>, other| own.zip(other).map(|(own, other)| own + other);
        Self {
            double_grants: sum(self.double_grants, other.double_grants),
            fence_regressions: sum(self.fence_regressions, other.fence_regressions),
        }
    }

    /// Whether nothing was found.
    pub fn is_clean(&self) -> bool {
        self.double_grants.unwrap_or(0) == 0 && self.fence_regressions.unwrap_or(0) == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_holder_after_the_other_is_clean() {
        let mut check = SafetyCheck::new(Guarantees::FENCED, 4);
        for round in 1..10 {
            check.granted(3, round % 2, Some(u64::from(round)));
            check.releasing(3, round % 2);
        }
        assert_eq!((check.double_grants(), check.fence_regressions()), (Some(0), Some(0)));
    }

    #[test]
    fn two_holders_are_counted_and_the_first_release_frees_nothing() {
        let mut check = SafetyCheck::new(Guarantees::EXCLUSION, 1);
        check.granted(0, 1, None);
        check.granted(0, 2, None);
        check.releasing(0, 1);
        check.granted(0, 3, None);
        assert_eq!((check.double_grants(), check.fence_regressions()), (Some(2), None));
    }

    #[test]
    fn a_grant_before_the_lease_ends_is_double_and_one_after_it_is_not() {
        for (early, found) in [(true, Some(1)), (false, Some(0))] {
            let mut check = SafetyCheck::new(Guarantees::FENCED, 2);
            check.granted(1, 1, Some(1));
            if early {
                check.granted(1, 2, Some(2));
            }
            check.lapse();
            check.granted(1, 3, Some(3));
            assert_eq!((check.double_grants(), check.fence_regressions()), (found, Some(0)));
        }
    }

    #[test]
    fn equal_lower_and_missing_fences_are_regressions() {
        let mut check = SafetyCheck::new(Guarantees::FENCED, 1);
        for fence in [Some(5), Some(5), Some(4), None, Some(6)] {
            check.granted(0, 1, fence);
            check.releasing(0, 1);
        }
        assert_eq!((check.double_grants(), check.fence_regressions()), (Some(0), Some(3)));
    }

    #[test]
    fn an_echo_is_held_to_nothing() {
        let mut check = SafetyCheck::new(Guarantees::NONE, 1);
        check.granted(0, 1, None);
        check.granted(0, 2, None);
        assert_eq!((check.double_grants(), check.fence_regressions()), (None, None));
    }
}
