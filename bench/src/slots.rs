//! The callers of one group: where each is in its acquire and release, and when it goes on.

use crate::protocol::{Broken, Slot};
use crate::time::Time;
use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// Where a caller is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    /// Free for the next pair.
    Idle,
    /// Waits for its grant.
    Acquiring,
    /// Found the key busy; asks again when its timer is due.
    BackingOff,
    /// Has the key until its timer is due, or until the end of the turn.
    Holding,
    /// Waits for the answer to its release.
    Releasing,
    /// Failed; free when its timer is due.
    Resting,
}

/// One caller. It has a timer exactly while it backs off, rests or holds for a time.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Caller {
    pub(crate) state: State,
    /// Times the key was found busy.
    pub(crate) polls: u8,
    pub(crate) key: u32,
    /// When the acquire was meant to start, or the release was sent.
    pub(crate) since: Time,
    pub(crate) fence: Option<u64>,
}

impl Caller {
    const IDLE: Self = Self { state: State::Idle, polls: 0, key: 0, since: Time(0), fence: None };
}

/// All callers of a group, with the idle ones and the timers at hand.
#[derive(Debug)]
pub(crate) struct CallerSlots {
    callers: Vec<Caller>,
    idle: Vec<Slot>,
    timers: BinaryHeap<Reverse<(Time, u32)>>,
}

impl CallerSlots {
    /// `callers` idle ones.
    pub(crate) fn new(callers: u32) -> Self {
        Self {
            callers: vec![Caller::IDLE; callers as usize],
            idle: (0..callers).rev().map(Slot).collect(),
            timers: BinaryHeap::with_capacity(callers as usize),
        }
    }

    /// Whether all callers are idle.
    pub(crate) fn all_idle(&self) -> bool {
        self.idle.len() == self.callers.len()
    }

    pub(crate) fn any_idle(&self) -> bool {
        !self.idle.is_empty()
    }

    /// Takes an idle caller into use for an acquire that was meant to start at `since`.
    #[inline]
    pub(crate) fn begin(&mut self, slot: Slot, key: u32, since: Time) {
        let caller = self.caller(slot);
        assert!(caller.state == State::Idle, "{slot:?} began twice: {caller:?}");
        *caller = Caller { state: State::Acquiring, polls: 0, key, since, fence: None };
    }

    /// The next idle caller; the caller of this must [`Self::begin`] it.
    #[inline]
    pub(crate) fn pop_idle(&mut self) -> Option<Slot> {
        self.idle.pop()
    }

    /// Frees a caller.
    #[inline]
    pub(crate) fn end(&mut self, slot: Slot) {
        self.caller(slot).state = State::Idle;
        self.idle.push(slot);
    }

    #[inline]
    pub(crate) fn caller(&mut self, slot: Slot) -> &mut Caller {
        &mut self.callers[slot.0 as usize]
    }

    /// The caller that an answer is for.
    ///
    /// # Errors
    /// When there is none, or it waits for no such answer: the server's fault.
    #[inline]
    pub(crate) fn answered(&mut self, slot: Slot, expect: State) -> Result<&mut Caller, Broken> {
        match self.callers.get_mut(slot.0 as usize) {
            Some(caller) if caller.state == expect => Ok(caller),
            other => Err(Broken(format!("{slot:?} was not {expect:?} but {other:?}"))),
        }
    }

    /// Puts a caller into a state that ends at `due`.
    #[inline]
    pub(crate) fn set_timer(&mut self, slot: Slot, state: State, due: Time) {
        self.caller(slot).state = state;
        self.timers.push(Reverse((due, slot.0)));
    }

    /// The next caller whose timer is due.
    #[inline]
    pub(crate) fn pop_due(&mut self, now: Time) -> Option<Slot> {
        let &Reverse((due, slot)) = self.timers.peek()?;
        (due <= now).then(|| {
            self.timers.pop();
            Slot(slot)
        })
    }

    /// When the next timer is due.
    #[inline]
    pub(crate) fn next_due(&self) -> Option<Time> {
        self.timers.peek().map(|&Reverse((due, _))| due)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timers_come_in_order_and_not_early() {
        let mut slots = CallerSlots::new(3);
        for due in [30, 10, 20] {
            let slot = slots.pop_idle().unwrap();
            slots.begin(slot, due, Time(0));
            slots.set_timer(slot, State::Holding, Time(u64::from(due)));
        }
        assert!(!slots.any_idle() && slots.next_due() == Some(Time(10)));
        assert_eq!(slots.pop_due(Time(9)), None);
        assert_eq!(slots.pop_due(Time(25)), Some(Slot(1)));
        assert_eq!(slots.pop_due(Time(25)), Some(Slot(2)));
        assert_eq!(slots.pop_due(Time(25)), None);
        for slot in 0..3 {
            slots.end(Slot(slot));
        }
        assert!(slots.all_idle());
    }

    #[test]
    fn an_answer_nobody_waits_for_is_the_servers_fault() {
        let mut slots = CallerSlots::new(1);
        assert!(slots.answered(Slot(0), State::Acquiring).is_err());
        assert!(slots.answered(Slot(1), State::Acquiring).is_err());
        let slot = slots.pop_idle().unwrap();
        slots.begin(slot, 5, Time(3));
        assert_eq!(slots.answered(slot, State::Acquiring).unwrap().key, 5);
        assert!(slots.answered(slot, State::Releasing).is_err());
    }
}
