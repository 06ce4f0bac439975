//! What fences promise.

use crate::Time;
use crate::testing::recorder::{Book, Check, Hold};
use crate::testing::{Fact, KeyId, Token};
use lockring_proto::{Claim, Fence, SessionId};
use std::collections::{BTreeMap, BTreeSet};

/// I3: the fences of a key grow with every grant, over restarts too, and in real time.
#[derive(Default)]
pub struct Fences {
    /// Grants are told as they are answered. Those of claims that go together may be answered in
    /// another order.
    answers: bool,
    granted: BTreeMap<KeyId, (Fence, Claim)>,
    known: BTreeMap<KeyId, Fence>,
    /// The highest fence any client knew when a claim was asked for.
    floors: BTreeMap<(SessionId, Token), Fence>,
}

impl Fences {
    /// Of grants as they are answered, in whatever order that may be.
    pub fn of_answers() -> Self {
        Self { answers: true, ..Self::default() }
    }
}

impl Check for Fences {
    fn rule(&self) -> &'static str {
        "I3 fences grow"
    }

    fn see(&mut self, _: Time, fact: &Fact, _: &Book) -> Result<(), String> {
        match *fact {
            Fact::Granted { key, fence, claim, .. } => {
                let Some((last, before)) = self.granted.insert(key, (fence, claim)) else {
                    return Ok(());
                };
                let apart = [before, claim].contains(&Claim::EXCLUSIVE) || !self.answers;
                if last >= fence && apart {
                    return Err(format!("{fence} of {key:?} after {last}"));
                }
                if last > fence {
                    self.granted.insert(key, (last, before));
                }
                Ok(())
            }
            Fact::Asked { session, token, key, .. } => {
                if let Some(&known) = self.known.get(&key) {
                    self.floors.insert((session, token), known);
                }
                Ok(())
            }
            Fact::Held { session, token, key, fence, .. } => {
                let known = self.known.entry(key).or_insert(fence);
                *known = (*known).max(fence);
                match self.floors.remove(&(session, token)) {
                    Some(floor) if floor >= fence => {
                        Err(format!("{fence} of {key:?} was asked for when {floor} was known"))
                    }
                    _ => Ok(()),
                }
            }
            _ => Ok(()),
        }
    }
}

/// Every change of a key takes a number of its cell's counter, whose fences tell how many there
/// were at least: copies of a cell are kept alike by these numbers.
#[derive(Default)]
pub struct Numbered {
    /// The last grant, and how many changes there were since.
    changes: BTreeMap<KeyId, (Fence, u64)>,
    /// Who left a line last: to be granted, which is one change, or not.
    left: Option<(SessionId, u64)>,
}

impl Numbered {
    fn change(&mut self, key: KeyId) {
        if let Some((_, changes)) = self.changes.get_mut(&key) {
            *changes += 1;
        }
    }
}

impl Check for Numbered {
    fn rule(&self) -> &'static str {
        "every change is numbered"
    }

    fn see(&mut self, _: Time, fact: &Fact, _: &Book) -> Result<(), String> {
        let left = match *fact {
            Fact::Left { session, request, .. } => self.left.replace((session, request)),
            _ => self.left.take(),
        };
        match *fact {
            Fact::Booted { ref keys } => self.changes.retain(|key, _| !keys.contains(key)),
            Fact::Queued { key, .. }
            | Fact::Left { key, .. }
            | Fact::Freed { key, .. }
            | Fact::Reclaimed { key, .. } => {
                self.change(key);
            }
            Fact::Granted { session, request, key, fence, .. } => {
                let before = self.changes.insert(key, (fence, 0));
                let Some((last, mut changes)) = before else { return Ok(()) };
                changes -= u64::from(left == Some((session, request)));
                let numbers = fence.counter().saturating_sub(last.counter());
                if fence.epoch() == last.epoch() && numbers <= changes {
                    return Err(format!(
                        "{key:?} changed {changes} times between {last} and {fence}"
                    ));
                }
            }
            _ => {}
        }
        Ok(())
    }
}

/// I9: what is held was granted to that session, what is granted was asked for, and no fence has
/// two owners.
#[derive(Default)]
pub struct Phantoms {
    asked: BTreeSet<(SessionId, KeyId, Claim)>,
    granted: BTreeMap<(KeyId, Fence), (SessionId, Claim)>,
    held: BTreeSet<(KeyId, Fence)>,
}

impl Check for Phantoms {
    fn rule(&self) -> &'static str {
        "I9 no phantoms"
    }

    fn see(&mut self, _: Time, fact: &Fact, _: &Book) -> Result<(), String> {
        match *fact {
            Fact::Asked { session, key, claim, .. } => {
                self.asked.insert((session, key, claim));
                Ok(())
            }
            Fact::Granted { session, key, claim, fence, .. } => {
                self.granted.insert((key, fence), (session, claim));
                let asked = self.asked.contains(&(session, key, claim));
                asked.then_some(()).ok_or_else(|| format!("{session:?} never asked for {key:?}"))
            }
            Fact::Held { session, key, claim, fence, .. } => {
                let granted = self.granted.get(&(key, fence));
                if granted != Some(&(session, claim)) {
                    return Err(format!("{session:?} holds {key:?} {fence}, granted {granted:?}"));
                }
                let first = self.held.insert((key, fence));
                first.then_some(()).ok_or_else(|| format!("{fence} of {key:?} is held twice"))
            }
            _ => Ok(()),
        }
    }
}

/// I4: a resource that refuses old fences loses no update, and never refuses a holder within its
/// validity.
#[derive(Default)]
pub struct Resource {
    states: BTreeMap<KeyId, State>,
}

#[derive(Default)]
struct State {
    highest: Fence,
    value: u64,
    writes: u64,
    read: BTreeMap<Fence, u64>,
}

impl Check for Resource {
    fn rule(&self) -> &'static str {
        "I4 the fence protects"
    }

    fn see(&mut self, at: Time, fact: &Fact, book: &Book) -> Result<(), String> {
        let Fact::Used { key, fence, write } = *fact else { return Ok(()) };
        let state = self.states.entry(key).or_default();
        if fence < state.highest {
            let its = |hold: &&Hold| hold.fence == fence;
            let valid = book.believers(key).filter(its).any(|hold| book.acts(at, hold));
            let highest = state.highest;
            return (!valid)
                .then_some(())
                .ok_or_else(|| format!("{fence} is valid and refused for {highest}"));
        }
        state.highest = fence;
        if !write {
            state.read.insert(fence, state.value);
            return Ok(());
        }
        let Some(read) = state.read.remove(&fence) else { return Ok(()) };
        state.value = read + 1;
        state.writes += 1;
        let (value, writes) = (state.value, state.writes);
        (value == writes)
            .then_some(())
            .ok_or_else(|| format!("{writes} updates of {key:?} make {value}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::checks::history::*;

    fn used(fence: u64, write: bool) -> Fact {
        Fact::Used { key: K, fence: Fence(fence), write }
    }

    #[test]
    fn fences_that_fall_or_stand_are_refused() {
        tells_apart(
            Fences::default,
            &[granted(A, 1), granted(B, 2)],
            &[granted(A, 2), granted(B, 2)],
        );
        let good = [asked(B), held(A, 2), held(B, 1)];
        tells_apart(Fences::default, &good, &[held(A, 2), asked(B), held(B, 1)]);
    }

    #[test]
    fn changes_without_a_number_are_refused() {
        let check = Numbered::default;
        let ended = |next| [granted(A, 1), freed(A, 1), granted(B, next)];
        tells_apart(check, &ended(3), &ended(2));
        let granted_from_line =
            |next| [granted(A, 1), queued(B, 7), freed(A, 1), left(B, next), granted(B, next)];
        tells_apart(check, &granted_from_line(4), &granted_from_line(3));
        let gone = |next| [granted(A, 1), queued(B, 7), left(B, 7), freed(A, 1), granted(A, next)];
        tells_apart(check, &gone(5), &gone(4));
        // The next epoch counts anew.
        let raised = [granted(A, 9), freed(A, 9), granted(B, 1 << 40 | 1)];
        assert_eq!(judge(check(), &raised), None);
    }

    #[test]
    fn holds_out_of_nothing_are_refused() {
        let good = [asked(A), granted(A, 1), held(A, 1)];
        tells_apart(Phantoms::default, &good, &[granted(A, 1)]);
        tells_apart(Phantoms::default, &good, &[asked(A), held(A, 1)]);
        tells_apart(Phantoms::default, &good, &[&good[..], &[held(B, 1)]].concat());
        tells_apart(Phantoms::default, &good, &[&good[..], &[held(A, 1)]].concat());
    }

    #[test]
    fn lost_updates_and_needless_refusals_are_refused() {
        let good = [used(1, false), used(2, false), used(1, true), used(2, true)];
        // As if fence 2 had been given out twice.
        let bad = [used(2, false), used(3, false), used(3, true), used(3, false), used(3, true)];
        assert_eq!(judge(Resource::default(), &good), None);
        assert_eq!(judge(Resource::default(), &bad), None);
        let mut lossy = Resource::default();
        lossy.states.entry(K).or_default().read.insert(Fence(5), 0);
        lossy.states.entry(K).or_default().writes = 3;
        assert!(judge(lossy, &[used(5, true)]).is_some());
        let valid = [believes(A, 9), held(A, 1)];
        let good = [&valid[..], &[used(1, false), used(1, true)]].concat();
        let bad = [&valid[..], &[used(2, false), used(1, true)]].concat();
        tells_apart(Resource::default, &good, &bad);
    }
}
