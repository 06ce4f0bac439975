//! One connection and its callers, sans-IO: bytes and moments in, bytes out.

use crate::board::{Board, Phase};
use crate::keys::{KeyChooser, KeySpace};
use crate::protocol::{Answer, Broken, Protocol, Slot};
use crate::slots::{CallerSlots, State};
use crate::time::Time;
use std::time::Duration;

/// First pause of a caller that found its key busy on a server without a queue; doubles.
const POLL_FIRST_NS: u64 = 200_000;
/// The pause doubles this often: to 6.4 ms.
const POLL_DOUBLINGS: u8 = 5;
/// Polls start at multiples of this, so that those of many callers share their system calls.
const POLL_GRID_NS: u64 = 50_000;
/// Pause after a failed operation, so that a broken server is not hammered.
const REST: Duration = Duration::from_millis(1);

/// When a caller starts its next pair.
#[derive(Clone, Copy, Debug)]
pub enum Pacing {
    /// As soon as its last one ended.
    Closed,
    /// At fixed moments, whether or not the server keeps up; latency counts from that moment.
    Open {
        /// Nanoseconds from one start to the next on this group (at least 1).
        interval_ns: u64,
        /// Nanoseconds from the beginning of a round to the first start.
        offset_ns: u64,
    },
}

/// What the callers of a group are to do.
#[derive(Clone, Debug)]
pub enum Work {
    /// Acquire and release pairs.
    Pairs {
        /// The keys.
        chooser: KeyChooser,
        /// When a caller starts its next pair.
        pacing: Pacing,
        /// How long a key is held.
        hold: Duration,
    },
    /// Acquire each key of a range once and keep it.
    Fill {
        /// The next key number.
        next: u32,
        /// The first key number past the range.
        end: u32,
    },
}

/// One connection with its callers as slots.
///
/// A turn is: [`Self::receive`] with what was read, then [`Self::turn`], then one write of
/// [`Self::out`]. The order inside a turn matters for the safety check: all grants of a batch are
/// seen before the first release is.
#[derive(Debug)]
pub struct CallerGroup<P> {
    protocol: P,
    slots: CallerSlots,
    work: Work,
    space: KeySpace,
    /// Number of the caller in slot 0, so that callers are distinct over all groups.
    first_caller: u32,
    phase: Phase,
    /// Next intended start in an open loop.
    next_start: Time,
    next_tick: Option<Time>,
    out: Vec<u8>,
    answers: Vec<Answer>,
    leaving: Vec<Slot>,
}

impl<P: Protocol> CallerGroup<P> {
    /// A paused group with callers `first_caller..first_caller + callers`.
    pub fn new(protocol: P, work: Work, first_caller: u32, callers: u32) -> Self {
        Self {
            protocol,
            slots: CallerSlots::new(callers),
            work,
            space: KeySpace::default(),
            first_caller,
            phase: Phase::Paused,
            next_start: Time(0),
            next_tick: None,
            out: Vec::new(),
            answers: Vec::with_capacity(callers as usize),
            leaving: Vec::with_capacity(callers as usize),
        }
    }

    /// The same group, with keys of this space.
    #[must_use]
    pub fn in_space(mut self, space: KeySpace) -> Self {
        self.space = space;
        self
    }

    /// The connection's half that the group drives.
    pub(crate) fn protocol_mut(&mut self) -> &mut P {
        &mut self.protocol
    }

    /// The bytes to send; whoever sends them takes them out.
    #[inline]
    pub fn out(&mut self) -> &mut Vec<u8> {
        &mut self.out
    }

    /// Whether no caller is under way.
    #[inline]
    pub fn is_quiet(&self) -> bool {
        self.slots.all_idle()
    }

    /// When [`Self::turn`] must run again even if nothing is received.
    pub fn next_deadline(&self) -> Option<Time> {
        let open = matches!(self.work, Work::Pairs { pacing: Pacing::Open { .. }, .. });
        let starts = open && self.phase == Phase::Running && self.slots.any_idle();
        let start = starts.then_some(self.next_start);
        [self.slots.next_due(), self.next_tick, start].into_iter().flatten().min()
    }

    /// Takes what was read at `now`.
    ///
    /// # Errors
    /// When the server broke the protocol; the group is of no further use.
    pub fn receive(&mut self, now: Time, bytes: &[u8], board: &mut Board) -> Result<(), Broken> {
        let mut answers = std::mem::take(&mut self.answers);
        self.protocol.receive(now, bytes, &mut answers)?;
        for answer in answers.drain(..) {
            self.apply(now, answer, board)?;
        }
        self.answers = answers;
        Ok(())
    }

    /// Does everything that is due at `now`: ends holds, polls busy keys, starts pairs.
    pub fn turn(&mut self, now: Time, phase: Phase, board: &mut Board) {
        if phase != self.phase {
            self.enter(phase, now);
        }
        while let Some(slot) = self.slots.pop_due(now) {
            self.wake(now, slot, board);
        }
        self.send_releases(now, board);
        if phase == Phase::Running {
            self.start_callers(now, board);
        }
        self.next_tick = self.protocol.tick(now, &mut self.out);
    }

    fn enter(&mut self, phase: Phase, now: Time) {
        self.phase = phase;
        // An open loop begins afresh with each round: a pause is no backlog.
        if let Work::Pairs { pacing: Pacing::Open { offset_ns, .. }, .. } = self.work {
            self.next_start = now + Duration::from_nanos(offset_ns);
        }
    }

    fn apply(&mut self, now: Time, answer: Answer, board: &mut Board) -> Result<(), Broken> {
        match answer {
            Answer::Granted { slot, fence } => {
                let caller = self.slots.answered(slot, State::Acquiring)?;
                caller.fence = fence;
                let (key, since) = (caller.key, caller.since);
                board.granted(key, self.first_caller + slot.0, fence, now.nanos_since(since));
                self.hold(now, slot, board);
            }
            Answer::Released { slot } => {
                let since = self.slots.answered(slot, State::Releasing)?.since;
                board.released(now.nanos_since(since));
                self.end(slot, board);
            }
            Answer::Busy { slot } => self.back_off(now, slot, board)?,
            Answer::Failed { slot } => {
                // Which operation failed is known by the caller's state; both end the same.
                if self.slots.answered(slot, State::Releasing).is_err() {
                    self.slots.answered(slot, State::Acquiring)?;
                }
                board.failed(self.protocol.failure());
                self.slots.set_timer(slot, State::Resting, now + REST);
            }
        }
        Ok(())
    }

    #[inline]
    fn hold(&mut self, now: Time, slot: Slot, board: &mut Board) {
        match self.work {
            Work::Pairs { hold, .. } if hold.is_zero() => {
                self.slots.caller(slot).state = State::Holding;
                self.leaving.push(slot);
            }
            Work::Pairs { hold, .. } => self.slots.set_timer(slot, State::Holding, now + hold),
            Work::Fill { .. } => self.end(slot, board),
        }
    }

    fn back_off(&mut self, now: Time, slot: Slot, board: &mut Board) -> Result<(), Broken> {
        let caller = self.slots.answered(slot, State::Acquiring)?;
        match &mut self.work {
            Work::Pairs { chooser, .. } => {
                let pause = chooser.jittered(POLL_FIRST_NS << caller.polls);
                caller.polls = (caller.polls + 1).min(POLL_DOUBLINGS);
                let due = Time((now.0 + pause).next_multiple_of(POLL_GRID_NS));
                self.slots.set_timer(slot, State::BackingOff, due);
            }
            Work::Fill { .. } => {
                board.failed(Some("a key to be held is held by somebody else"));
                self.end(slot, board);
            }
        }
        Ok(())
    }

    fn wake(&mut self, now: Time, slot: Slot, board: &mut Board) {
        let caller = self.slots.caller(slot);
        match caller.state {
            State::Holding => self.leaving.push(slot),
            State::BackingOff if self.phase == Phase::Running => {
                caller.state = State::Acquiring;
                let key = self.space.key(caller.key);
                self.protocol.acquire(now, slot, &key, &mut self.out);
            }
            State::BackingOff | State::Resting => self.end(slot, board),
            State::Idle | State::Acquiring | State::Releasing => {
                unreachable!("{slot:?} has a timer: {caller:?}")
            }
        }
    }

    fn send_releases(&mut self, now: Time, board: &mut Board) {
        for slot in self.leaving.drain(..) {
            let caller = self.slots.caller(slot);
            caller.state = State::Releasing;
            caller.since = now;
            let (number, fence) = (caller.key, caller.fence);
            board.safety.releasing(number, self.first_caller + slot.0);
            self.protocol.release(now, slot, &self.space.key(number), fence, &mut self.out);
        }
    }

    fn start_callers(&mut self, now: Time, board: &mut Board) {
        while let Some((number, since)) = self.next_pair(now) {
            let Some(slot) = self.slots.pop_idle() else {
                unreachable!("next_pair sees an idle caller");
            };
            self.slots.begin(slot, number, since);
            board.outstanding += 1;
            self.protocol.acquire(now, slot, &self.space.key(number), &mut self.out);
        }
    }

    /// Key and intended start of the next acquire, if one is due and a caller is idle.
    #[inline]
    fn next_pair(&mut self, now: Time) -> Option<(u32, Time)> {
        if !self.slots.any_idle() {
            return None;
        }
        match &mut self.work {
            Work::Pairs { chooser, pacing: Pacing::Closed, .. } => Some((chooser.next_key(), now)),
            Work::Pairs { chooser, pacing: Pacing::Open { interval_ns, .. }, .. } => {
                let start = self.next_start;
                (start <= now).then(|| {
                    self.next_start = Time(start.0 + *interval_ns);
                    (chooser.next_key(), start)
                })
            }
            Work::Fill { next, end } => (next < end).then(|| {
                *next += 1;
                (*next - 1, now)
            }),
        }
    }

    #[inline]
    fn end(&mut self, slot: Slot, board: &mut Board) {
        self.slots.end(slot);
        board.outstanding -= 1;
    }
}

#[cfg(test)]
#[path = "caller_group_tests.rs"]
mod tests;
