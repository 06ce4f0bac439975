//! What fences promise.

use crate::Time;
use crate::testing::recorder::{Book, Check, Hold};
use crate::testing::{Fact, KeyId, Token};
use lockring_proto::{Claim, Fence, SessionId};
use std::collections::{BTreeMap, BTreeSet};

/// I3: the fences of a key grow with every grant, over restarts too, and in real time.
#[derive(Default)]
pub struct Fences {
    granted: BTreeMap<KeyId, Fence>,
    known: BTreeMap<KeyId, Fence>,
    /// The highest fence any client knew when a claim was asked for.
    floors: BTreeMap<(SessionId, Token), Fence>,
}

impl Check for Fences {
    fn rule(&self) -> &'static str {
        "I3 fences grow"
    }

    fn see(&mut self, _: Time, fact: &Fact, _: &Book) -> Result<(), String> {
        match *fact {
            Fact::Granted { key, fence, .. } => match self.granted.insert(key, fence) {
                Some(last) if last >= fence => Err(format!("{fence} of {key:?} after {last}")),
                _ => Ok(()),
            },
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
