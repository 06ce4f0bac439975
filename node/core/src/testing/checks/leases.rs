//! What leases promise.

use crate::Time;
use crate::testing::fact::Why;
use crate::testing::recorder::{Book, Check, Key};
use crate::testing::{Fact, KeyId, Token};
use lockring_proto::{Fence, SessionId};
use std::collections::{BTreeMap, BTreeSet};

/// A client never believes in its holds for longer than the worker honours them.
pub struct Leases;

impl Check for Leases {
    fn rule(&self) -> &'static str {
        "I1 belief within the lease"
    }

    fn see(&mut self, _: Time, fact: &Fact, _: &Book) -> Result<(), String> {
        match *fact {
            Fact::Believes { session, until, honoured: Some(honoured), .. } if until > honoured => {
                Err(format!("{session:?} believes until {until}, honoured until {honoured}"))
            }
            _ => Ok(()),
        }
    }
}

/// I5: a hold ends early only by its client's wish, by force, or with the node.
#[derive(Default)]
pub struct NoLoss {
    freed: BTreeSet<(KeyId, Fence)>,
    /// The node's life that granted it.
    granted: BTreeMap<(KeyId, Fence), u32>,
    /// Holds that had lapsed when their release began.
    late: BTreeSet<(SessionId, Token)>,
}

impl NoLoss {
    /// The client hears that a hold is gone.
    fn gone(
        &self,
        at: Time,
        name: (SessionId, Token),
        why: Why,
        book: &Book,
    ) -> Result<(), String> {
        let Some(hold) = book.holds.get(&name) else { return Ok(()) };
        let boot = self.granted.get(&(hold.key, hold.fence)).copied().unwrap_or(0);
        let began_anew = boot < book.boots(hold.key);
        let over = book.until(hold) <= at || self.late.contains(&name);
        let forced = hold.forced || book.is_forced(hold.key, hold.fence);
        let legal = match why {
            Why::Lapsed => over,
            Why::Forced => forced,
            Why::Ended => over || began_anew,
            Why::Unknown => over || forced || began_anew,
        };
        legal.then_some(()).ok_or_else(|| format!("{why:?} without cause: {hold:?}"))
    }
}

impl Check for NoLoss {
    fn rule(&self) -> &'static str {
        "I5 no hold is lost"
    }

    fn see(&mut self, at: Time, fact: &Fact, book: &Book) -> Result<(), String> {
        match *fact {
            Fact::Freed { key, fence, forced, .. } => {
                self.freed.insert((key, fence));
                if forced {
                    return Ok(());
                }
                match book.believers(key).find(|hold| hold.fence == fence && book.acts(at, hold)) {
                    Some(hold) => Err(format!("freed while its client may act: {hold:?}")),
                    None => Ok(()),
                }
            }
            Fact::Granted { key, fence, .. } => {
                self.granted.insert((key, fence), book.boots(key));
                Ok(())
            }
            Fact::Reclaimed { key, fence, .. } => {
                self.freed.remove(&(key, fence));
                self.granted.insert((key, fence), book.boots(key));
                Ok(())
            }
            Fact::Held { session, worker, key, fence, .. } => {
                let freed = self.freed.contains(&(key, fence));
                let forced = book.is_forced(key, fence);
                if freed && !forced && book.valid(session, worker) > at {
                    return Err(format!("{key:?} {fence} was freed before {session:?} had it"));
                }
                Ok(())
            }
            Fact::Giving { session, token } => {
                let hold = book.holds.get(&(session, token));
                if hold.is_some_and(|hold| !book.acts(at, hold)) {
                    self.late.insert((session, token));
                }
                Ok(())
            }
            Fact::NotHeld { session, token, maybe: false } => {
                self.gone(at, (session, token), Why::Unknown, book)
            }
            Fact::Lost { session, token, why } => self.gone(at, (session, token), why, book),
            _ => Ok(()),
        }
    }
}

/// I13: what a killed client held is free when its lease has ended, at the latest; if its node is
/// dead, when that starts again.
#[derive(Default)]
pub struct Orphans {
    due: BTreeMap<SessionId, Time>,
    /// Keys of dead nodes.
    down: BTreeSet<KeyId>,
}

impl Check for Orphans {
    fn rule(&self) -> &'static str {
        "I13 no immortal hold"
    }

    fn see(&mut self, at: Time, fact: &Fact, book: &Book) -> Result<(), String> {
        match *fact {
            Fact::Died { ref keys } => self.down.extend(keys),
            Fact::Booted { ref keys } => self.down.retain(|key| !keys.contains(key)),
            Fact::Crashed { session, worst_lease } => {
                self.due.insert(session, at.after(worst_lease));
            }
            Fact::TakenUp { session } => {
                self.due.remove(&session);
            }
            Fact::Stalled { span } => self.due.values_mut().for_each(|due| *due = due.after(span)),
            Fact::Turn { .. } => {
                let over: Vec<SessionId> =
                    self.due.iter().filter(|&(_, &due)| due < at).map(|(&dead, _)| dead).collect();
                for dead in over {
                    self.due.remove(&dead);
                    let held = |&(id, key): &(&KeyId, &Key)| {
                        !self.down.contains(id)
                            && (key.holders.iter().any(|&(session, ..)| session == dead)
                                || key.queue.iter().any(|&(session, ..)| session == dead))
                    };
                    if let Some((_, key)) = book.keys.iter().find(held) {
                        return Err(format!("of dead {dead:?} there is still {key:?}"));
                    }
                }
            }
            _ => {}
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::checks::history::*;
    use std::time::Duration;

    #[test]
    fn belief_past_the_lease_is_refused() {
        let believes = |until| {
            let honoured = Some(Time(10));
            Fact::Believes { session: A, worker: 0, until: Time(until), honoured }
        };
        tells_apart(|| Leases, &[believes(10)], &[believes(11)]);
    }

    #[test]
    fn a_hold_that_ends_early_is_refused() {
        let held = [granted(A, 1), believes(A, 9), held(A, 1)];
        let forced = Fact::Freed { session: A, key: K, fence: Fence(1), forced: true };
        let lost = |why| Fact::Lost { session: A, token: T, why };
        let then = |rest: &[Fact]| [&held[..], rest].concat();
        let check = NoLoss::default;
        tells_apart(check, &then(&[giving(A), freed(A, 1)]), &then(&[freed(A, 1)]));
        tells_apart(
            check,
            &then(&[forced.clone(), lost(Why::Forced)]),
            &then(&[lost(Why::Forced)]),
        );
        tells_apart(check, &then(&[booted(), lost(Why::Ended)]), &then(&[lost(Why::Ended)]));
        let other = Fact::Booted { keys: [KeyId(9)].into() };
        assert!(judge(check(), &then(&[other, lost(Why::Ended)])).is_some());
        tells_apart(check, &then(&[forced, lost(Why::Unknown)]), &then(&[lost(Why::Unknown)]));
        let late = [&held[..], &vec![turn(); 9], &[lost(Why::Lapsed)]].concat();
        tells_apart(check, &late, &then(&[lost(Why::Lapsed)]));
        let not_held = |maybe| Fact::NotHeld { session: A, token: T, maybe };
        tells_apart(
            check,
            &then(&[giving(A), not_held(true)]),
            &then(&[giving(A), not_held(false)]),
        );
        let early = [granted(A, 1), freed(A, 1), believes(A, 90), held[2].clone()];
        assert!(judge(check(), &early).is_some());
    }

    #[test]
    fn a_hold_that_outlives_its_client_is_refused() {
        let dead = Fact::Crashed { session: A, worst_lease: Duration::from_millis(2) };
        let stalled = Fact::Stalled { span: Duration::from_millis(9) };
        let wait = vec![turn(); 5];
        let bad = [&[granted(A, 1), dead.clone()][..], &wait].concat();
        let freed = [&[granted(A, 1), dead.clone(), freed(A, 1)][..], &wait].concat();
        let taken_up = Fact::TakenUp { session: A };
        let goes_on = [&[granted(A, 1), dead.clone(), taken_up][..], &wait].concat();
        tells_apart(Orphans::default, &goes_on, &bad);
        let late = [&[granted(A, 1), dead, stalled][..], &wait].concat();
        tells_apart(Orphans::default, &freed, &bad);
        tells_apart(Orphans::default, &late, &bad);
        let down = [&[Fact::Died { keys: [K].into() }][..], &bad].concat();
        tells_apart(Orphans::default, &down, &bad);
        let again = [&[Fact::Died { keys: [K].into() }, booted()][..], &bad].concat();
        tells_apart(Orphans::default, &down, &again);
    }
}
