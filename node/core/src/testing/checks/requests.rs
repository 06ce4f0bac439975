//! What single requests promise.

use crate::Time;
use crate::testing::recorder::{Book, Check};
use crate::testing::{Fact, KeyId, Token};
use lockring_proto::{Fence, SessionId};
use std::collections::{BTreeMap, BTreeSet};

/// I6: a release that was confirmed has ended that hold.
#[derive(Default)]
pub struct Releases {
    freed: BTreeSet<(KeyId, Fence)>,
}

impl Check for Releases {
    fn rule(&self) -> &'static str {
        "I6 released is released"
    }

    fn see(&mut self, _: Time, fact: &Fact, book: &Book) -> Result<(), String> {
        match *fact {
            Fact::Freed { key, fence, .. } => {
                self.freed.insert((key, fence));
                Ok(())
            }
            Fact::Released { session, token } => match book.holds.get(&(session, token)) {
                Some(hold) if !self.freed.contains(&(hold.key, hold.fence)) => {
                    Err(format!("the node still has {hold:?}"))
                }
                Some(_) => Ok(()),
                None => Err(format!("{session:?} did not hold {token:?}")),
            },
            _ => Ok(()),
        }
    }
}

/// I7: a request is executed at most once, however often it is sent: it is never queued or holding
/// twice, and never again once its hold has ended. Two things may happen again, as nothing is kept
/// of them and they do no harm: a wait that timed out, and a grant that an operator ended, both
/// while the answer was lost with the connection; and so may a grant that expired, where cells go
/// from one worker to another. And a node that starts anew has no memory: what nobody was told of
/// in its earlier lives may be asked of another of its workers, under the same id; what somebody
/// was told of, never again.
#[derive(Default)]
pub struct Once {
    queued: BTreeMap<(SessionId, u64), KeyId>,
    granted: BTreeMap<(SessionId, u64), KeyId>,
    holders: BTreeMap<(KeyId, Fence), (SessionId, u64)>,
    /// Granted, and known to be to whoever asked.
    told: BTreeSet<(SessionId, u64)>,
    forced: BTreeSet<(SessionId, u64)>,
}

impl Check for Once {
    fn rule(&self) -> &'static str {
        "I7 executed once"
    }

    fn see(&mut self, _: Time, fact: &Fact, _: &Book) -> Result<(), String> {
        let again = match *fact {
            Fact::Granted { session, request, key, fence, .. } => {
                self.holders.insert((key, fence), (session, request));
                self.granted.insert((session, request), key).is_some()
            }
            Fact::Reclaimed { session, request, key, fence, .. } => {
                self.holders.insert((key, fence), (session, request));
                self.granted.insert((session, request), key);
                false
            }
            Fact::Queued { session, request, key, .. } => {
                let granted = self.granted.contains_key(&(session, request));
                granted || self.queued.insert((session, request), key).is_some()
            }
            Fact::Held { key, fence, .. } => {
                self.told.extend(self.holders.get(&(key, fence)).copied());
                false
            }
            Fact::Booted { ref keys } => {
                self.queued.retain(|_, key| !keys.contains(key));
                self.granted
                    .retain(|request, key| self.told.contains(request) || !keys.contains(key));
                false
            }
            Fact::ForceRan { session, request } => !self.forced.insert((session, request)),
            Fact::Left { session, request, .. } => {
                self.queued.remove(&(session, request));
                false
            }
            Fact::Expired { key, fence } => {
                let by = self.holders.get(&(key, fence));
                if let Some(request) = by.filter(|request| !self.told.contains(request)) {
                    self.granted.remove(request);
                }
                false
            }
            Fact::Freed { key, fence, forced: true, .. } => {
                if let Some(request) = self.holders.remove(&(key, fence)) {
                    self.granted.remove(&request);
                }
                false
            }
            _ => false,
        };
        (!again).then_some(()).ok_or_else(|| format!("it ran again: {fact:?}"))
    }
}

/// I2: every grant takes effect between the question and its answer, every release between its
/// beginning and its end, and whoever is told that a key is held under a fence is told the truth.
#[derive(Default)]
pub struct Linear {
    asked: BTreeMap<(SessionId, Token), Time>,
    giving: BTreeMap<(SessionId, Token), Time>,
    granted: BTreeMap<(KeyId, Fence), Time>,
    freed: BTreeMap<(KeyId, Fence), Time>,
    freed_now: BTreeSet<(KeyId, Fence)>,
}

fn in_order(from: Option<&Time>, then: Option<&Time>) -> bool {
    matches!((from, then), (Some(from), Some(then)) if from <= then)
}

impl Check for Linear {
    fn rule(&self) -> &'static str {
        "I2 linearizable"
    }

    fn see(&mut self, at: Time, fact: &Fact, book: &Book) -> Result<(), String> {
        let right = match *fact {
            Fact::Asked { session, token, .. } => {
                self.asked.insert((session, token), at);
                true
            }
            Fact::Giving { session, token } => {
                self.giving.insert((session, token), at);
                true
            }
            Fact::Granted { key, fence, .. } => {
                self.granted.insert((key, fence), at);
                true
            }
            Fact::Freed { key, fence, .. } => {
                self.freed.insert((key, fence), at);
                self.freed_now.insert((key, fence))
            }
            Fact::Turn { .. } => {
                self.freed_now.clear();
                true
            }
            Fact::Held { session, token, key, fence, .. } => {
                let asked = self.asked.remove(&(session, token));
                in_order(asked.as_ref(), self.granted.get(&(key, fence)))
            }
            Fact::Released { session, token } => {
                let giving = self.giving.remove(&(session, token));
                book.holds.get(&(session, token)).is_some_and(|hold| {
                    in_order(giving.as_ref(), self.freed.get(&(hold.key, hold.fence)))
                })
            }
            Fact::ToldHeld { key, fence } => {
                let now = book.keys.get(&key);
                now.is_some_and(|key| key.holders.iter().any(|held| held.2 == fence))
                    || self.freed_now.contains(&(key, fence))
            }
            _ => true,
        };
        right.then_some(()).ok_or_else(|| format!("out of order: {fact:?}"))
    }
}

/// After a confirmed cancel nothing of the claim is held or queued, now or later.
#[derive(Default)]
pub struct Cancels {
    undoing: BTreeMap<(SessionId, Token), u64>,
    undone: BTreeSet<(SessionId, u64)>,
    granted: BTreeMap<(SessionId, u64), (KeyId, Fence)>,
}

impl Check for Cancels {
    fn rule(&self) -> &'static str {
        "I6 undone is undone"
    }

    fn see(&mut self, _: Time, fact: &Fact, book: &Book) -> Result<(), String> {
        match *fact {
            Fact::Undoing { session, token, request } => {
                self.undoing.insert((session, token), request);
                Ok(())
            }
            Fact::Granted { session, request, .. } | Fact::Queued { session, request, .. }
                if self.undone.contains(&(session, request)) =>
            {
                Err(format!("request {request} of {session:?} was undone: {fact:?}"))
            }
            Fact::Granted { session, request, key, fence, .. } => {
                self.granted.insert((session, request), (key, fence));
                Ok(())
            }
            Fact::Undone { session, token } => {
                let Some(request) = self.undoing.remove(&(session, token)) else { return Ok(()) };
                self.undone.insert((session, request));
                let its = |&(waits, waiting, _): &_| (waits, waiting) == (session, request);
                let waits = book.keys.values().any(|key| key.queue.iter().any(its));
                let held = self.granted.get(&(session, request)).is_some_and(|(key, fence)| {
                    book.keys.get(key).is_some_and(|key| key.holders.iter().any(|h| h.2 == *fence))
                });
                (!waits && !held)
                    .then_some(())
                    .ok_or_else(|| format!("of request {request} of {session:?} there is more"))
            }
            _ => Ok(()),
        }
    }
}

/// A request routed by an older ring than the cell's epoch is never executed, nor is one where the
/// cell is not.
pub struct Routing;

impl Check for Routing {
    fn rule(&self) -> &'static str {
        "I12 routed by the ring in force"
    }

    fn see(&mut self, _: Time, fact: &Fact, _: &Book) -> Result<(), String> {
        match *fact {
            Fact::Answered { routed, since, moved: false }
                if since.is_none_or(|since| routed < since) =>
            {
                Err(format!("executed though routed by {routed}, owned since {since:?}"))
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::checks::history::*;

    #[test]
    fn a_release_that_ended_nothing_is_refused() {
        let good = [granted(A, 1), held(A, 1), giving(A), freed(A, 1), released(A)];
        let bad = [granted(A, 1), held(A, 1), giving(A), released(A)];
        tells_apart(Releases::default, &good, &bad);
        tells_apart(Releases::default, &good, &[&good[..], &[released(A)]].concat());
    }

    #[test]
    fn effects_out_of_order_are_refused() {
        let good = [asked(A), granted(A, 1), held(A, 1), giving(A), freed(A, 1), released(A)];
        tells_apart(Linear::default, &good, &[granted(A, 1), asked(A), held(A, 1)]);
        let early = [asked(A), granted(A, 1), held(A, 1), freed(A, 1), giving(A), released(A)];
        tells_apart(Linear::default, &good, &early);
        let told = Fact::ToldHeld { key: K, fence: Fence(1) };
        let same_turn = [granted(A, 1), freed(A, 1), told.clone(), turn()];
        tells_apart(Linear::default, &same_turn, &[granted(A, 1), freed(A, 1), turn(), told]);
    }

    #[test]
    fn a_request_that_runs_twice_is_refused() {
        let good = [queued(A, 1), left(A, 1), granted(A, 1), freed(A, 1), granted(A, 2)];
        tells_apart(Once::default, &good, &[granted(A, 1), freed(A, 1), granted(A, 1)]);
        tells_apart(Once::default, &good, &[granted(A, 1), queued(A, 1)]);
        tells_apart(Once::default, &good, &[queued(A, 1), queued(A, 1)]);
        let ran = Fact::ForceRan { session: A, request: 1 };
        tells_apart(Once::default, std::slice::from_ref(&ran), &[ran.clone(), ran.clone()]);
        let forced = Fact::Freed { session: A, key: K, fence: Fence(1), forced: true };
        tells_apart(
            Once::default,
            &[
                queued(A, 1),
                left(A, 1),
                queued(A, 1),
                left(A, 1),
                granted(A, 1),
                forced,
                granted(A, 1),
            ],
            &[queued(A, 1), left(A, 1), granted(A, 1), queued(A, 1)],
        );
        // Another life of the node.
        tells_apart(
            Once::default,
            &[queued(A, 2), granted(A, 1), booted(), granted(A, 1), queued(A, 2)],
            &[granted(A, 1), held(A, 1), booted(), queued(A, 1)],
        );
    }

    #[test]
    fn what_is_left_after_a_cancel_is_refused() {
        let undoing = Fact::Undoing { session: A, token: T, request: 1 };
        let undone = Fact::Undone { session: A, token: T };
        let (good, waits) = (
            [queued(A, 1), undoing.clone(), left(A, 1), undone.clone(), granted(A, 2)],
            [queued(A, 1), undoing.clone(), undone.clone()],
        );
        tells_apart(Cancels::default, &good, &waits);
        let held = [granted(A, 1), undoing.clone(), undone.clone()];
        let given = [granted(A, 1), undoing.clone(), freed(A, 1), undone.clone()];
        tells_apart(Cancels::default, &given, &held);
        tells_apart(Cancels::default, &good, &[undoing, undone, granted(A, 1)]);
    }

    #[test]
    fn a_request_routed_by_an_older_ring_is_refused() {
        let answered = |routed, moved| Fact::Answered { routed, since: Some(2), moved };
        tells_apart(|| Routing, &[answered(2, false), answered(1, true)], &[answered(1, false)]);
        let elsewhere = |moved| Fact::Answered { routed: 9, since: None, moved };
        tells_apart(|| Routing, &[elsewhere(true)], &[elsewhere(false)]);
    }
}
