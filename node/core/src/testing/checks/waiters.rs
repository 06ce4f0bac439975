//! What the queue promises.

use crate::Time;
use crate::testing::recorder::{Book, Check, Key};
use crate::testing::{Fact, KeyId, Token};
use lockring_proto::{Claim, Fence, SessionId};
use std::collections::{BTreeMap, BTreeSet};

/// I8: nothing is granted to a session whose lease has ended.
pub struct DeadSessions;

impl Check for DeadSessions {
    fn rule(&self) -> &'static str {
        "I8 no grant to the dead"
    }

    fn see(&mut self, _: Time, fact: &Fact, _: &Book) -> Result<(), String> {
        match fact {
            Fact::Granted { alive: false, .. } => Err(format!("{fact:?}")),
            _ => Ok(()),
        }
    }
}

/// I10: whoever is next and fits is granted at once, when a hold ends or a claim leaves the queue.
#[derive(Default)]
pub struct Waiters {
    /// In the turn that is not over yet.
    touched: BTreeSet<KeyId>,
    /// In earlier turns of a worker, which has not come to them yet.
    later: BTreeMap<u16, BTreeSet<KeyId>>,
}

fn head_fits(key: &Key) -> bool {
    let Some(&(_, _, claim)) = key.queue.front() else { return false };
    match claim {
        Claim::EXCLUSIVE => key.holders.is_empty(),
        Claim::SHARED => key.holders.iter().all(|held| held.1 == Claim::SHARED),
        Claim::Permits { permits, capacity } => {
            let used: u32 = key
                .holders
                .iter()
                .map(|held| match held.1 {
                    Claim::Permits { permits, .. } => permits,
                    Claim::EXCLUSIVE | Claim::SHARED => capacity,
                })
                .sum();
            used + permits <= capacity
        }
    }
}

impl Check for Waiters {
    fn rule(&self) -> &'static str {
        "I10 the next is woken"
    }

    fn see(&mut self, _: Time, fact: &Fact, book: &Book) -> Result<(), String> {
        match *fact {
            Fact::Booted { ref keys } => {
                self.later.values_mut().for_each(|later| later.retain(|key| !keys.contains(key)));
            }
            Fact::Freed { key, .. } | Fact::Left { key, .. } => {
                self.touched.insert(key);
            }
            Fact::Turn { worker, grace: true, .. } => {
                self.touched.clear();
                self.later.remove(&worker);
            }
            Fact::Turn { worker, grace: false, ref unserved } => {
                let mut touched = std::mem::take(&mut self.touched);
                touched.extend(self.later.remove(&worker).unwrap_or_default());
                let (later, now) = touched.into_iter().partition(|key| unserved.contains(key));
                self.later.insert(worker, later);
                let now: BTreeSet<KeyId> = now;
                for id in now {
                    if let Some(key) = book.keys.get(&id).filter(|key| head_fits(key)) {
                        return Err(format!("{id:?} could be granted: {key:?}"));
                    }
                }
            }
            _ => {}
        }
        Ok(())
    }
}

/// I11: first in the queue, first granted; and nobody who asks later passes one who knows
/// it is queued.
#[derive(Default)]
pub struct Fifo {
    /// Who left a queue last, and from which place.
    left: Option<(SessionId, u64, usize)>,
    asked: BTreeMap<(SessionId, Token), (Time, KeyId)>,
    queued: BTreeMap<KeyId, Line>,
}

/// Who knows that it is queued: since when, and by which request.
type Line = BTreeMap<(SessionId, Token), (Time, u64)>;

/// A client learns that it is queued: by a new request it has a new place.
fn learns(line: &mut Line, name: (SessionId, Token), (at, request): (Time, u64)) {
    let known = line.entry(name).or_insert((at, request));
    if known.1 != request {
        *known = (at, request);
    }
}

impl Fifo {
    fn forget(&mut self, session: SessionId, token: Token) {
        if let Some((_, key)) = self.asked.remove(&(session, token))
            && let Some(queue) = self.queued.get_mut(&key)
        {
            queue.remove(&(session, token));
        }
    }

    fn forget_all(&mut self, gone: SessionId) {
        for queue in self.queued.values_mut() {
            queue.retain(|&(session, _), _| session != gone);
        }
    }

    fn granted(
        &mut self,
        session: SessionId,
        request: u64,
        key: Option<&Key>,
    ) -> Result<(), String> {
        match self.left.take() {
            Some((waited, its, place)) if (waited, its) == (session, request) => {
                (place == 0).then_some(()).ok_or_else(|| format!("{session:?} passed {place}"))
            }
            _ => {
                let ahead = key.map_or(0, |key| key.queue.len());
                (ahead == 0).then_some(()).ok_or_else(|| format!("{session:?} barged by {ahead}"))
            }
        }
    }

    /// A client holds a key: who knew to be queued before it asked, and still is?
    fn held(&mut self, name: (SessionId, Token), id: KeyId, book: &Book) -> Result<(), String> {
        let asked = self.asked.get(&name).map(|&(asked, _)| asked);
        self.forget(name.0, name.1);
        let (Some(asked), Some(queue), Some(key)) =
            (asked, self.queued.get(&id), book.keys.get(&id))
        else {
            return Ok(());
        };
        for (&(session, token), &(knew, request)) in queue {
            let waits = key.queue.iter().any(|&(its, at, _)| (its, at) == (session, request));
            if knew < asked && waits {
                return Err(format!("{name:?} passed {:?} on {id:?}", (session, token)));
            }
        }
        Ok(())
    }
}

impl Check for Fifo {
    fn rule(&self) -> &'static str {
        "I11 first in, first out"
    }

    fn see(&mut self, at: Time, fact: &Fact, book: &Book) -> Result<(), String> {
        match *fact {
            Fact::Booted { ref keys } => {
                self.left = None;
                self.queued.retain(|key, _| !keys.contains(key));
            }
            Fact::Left { session, request, key } => {
                let queue = book.keys.get(&key).map(|key| &key.queue);
                let its = |&(waits, waiting, _): &_| (waits, waiting) == (session, request);
                let place = queue.and_then(|queue| queue.iter().position(its));
                // If it comes back, after an operator or a timeout, it stands at the end.
                if let Some(known) = self.queued.get_mut(&key) {
                    known.retain(|&(waits, _), &mut (_, its)| (waits, its) != (session, request));
                }
                self.left = place.map(|place| (session, request, place));
            }
            Fact::Granted { session, request, key, .. } => {
                return self.granted(session, request, book.keys.get(&key));
            }
            Fact::Asked { session, token, key, .. } => {
                self.asked.insert((session, token), (at, key));
            }
            Fact::InLine { session, token, request } => {
                if let Some(&(_, key)) = self.asked.get(&(session, token)) {
                    learns(self.queued.entry(key).or_default(), (session, token), (at, request));
                }
            }
            Fact::Held { session, token, key, .. } => {
                return self.held((session, token), key, book);
            }
            Fact::NotGranted { session, token } | Fact::Undoing { session, token, .. } => {
                self.forget(session, token);
            }
            Fact::Dead { session, .. }
            | Fact::Anew { session, .. }
            | Fact::Crashed { session, .. } => self.forget_all(session),
            _ => {}
        }
        Ok(())
    }
}

/// I11 as clients see it, whoever owns the cell by then: who knows to be queued, for so long as it
/// takes, gets a lower fence than anybody who has asked since.
#[derive(Default)]
pub struct Passed {
    asked: BTreeMap<(SessionId, Token), (Time, KeyId, bool)>,
    queued: BTreeMap<KeyId, Line>,
    /// Who has asked and was granted since the first of a queue knew of that.
    granted: BTreeMap<KeyId, Vec<(Time, Fence, SessionId)>>,
    /// Which request each grant that was answered is of.
    requests: BTreeMap<(KeyId, Fence), (SessionId, u64)>,
    /// Until when sessions believe that their workers know them.
    believed: BTreeMap<(SessionId, u16), Time>,
}

impl Passed {
    fn leaves(&mut self, name: (SessionId, Token)) -> Option<(Time, KeyId, Option<Time>)> {
        let (asked, key, _) = self.asked.remove(&name)?;
        let line = self.queued.get_mut(&key);
        let knew = line.and_then(|line| line.remove(&name)).map(|(knew, _)| knew);
        if self.queued.get(&key).is_none_or(BTreeMap::is_empty) {
            self.granted.remove(&key);
        }
        Some((asked, key, knew))
    }

    /// Whether any worker may have forgotten a session after it knew to be queued.
    fn has_lapsed(&self, session: SessionId, knew: Time, now: Time) -> bool {
        let mut its = self.believed.range((session, 0)..=(session, u16::MAX));
        its.any(|(_, &until)| knew <= until && until < now)
    }

    fn believes(&mut self, of: (SessionId, u16), until: Time, now: Time) {
        let before = self.believed.insert(of, until);
        if before.is_some_and(|before| before < now) {
            self.forget(|_, its| its == of.0);
        }
    }

    fn held(&mut self, name: (SessionId, Token), fence: Fence, now: Time) -> Result<(), String> {
        let Some(&(_, key, _)) = self.asked.get(&name) else { return Ok(()) };
        let since = self.granted.get(&key).cloned().unwrap_or_default();
        let Some((asked, _, knew)) = self.leaves(name) else { return Ok(()) };
        let knew = knew.filter(|&knew| !self.has_lapsed(name.0, knew, now));
        let passed = |its: &&(Time, Fence, SessionId)| {
            knew.is_some_and(|knew| knew < its.0 && its.1 < fence)
        };
        if let Some(its) = since.iter().find(passed) {
            return Err(format!(
                "{name:?}, queued since {knew:?}, has {fence:?} of {key:?}: {its:?}"
            ));
        }
        if self.queued.get(&key).is_some_and(|line| !line.is_empty()) {
            self.granted.entry(key).or_default().push((asked, fence, name.0));
        }
        Ok(())
    }

    /// Whatever was queued is asked for anew.
    fn forget(&mut self, is_gone: impl Fn(KeyId, SessionId) -> bool) {
        for (&key, line) in &mut self.queued {
            line.retain(|&(session, _), _| !is_gone(key, session));
            if line.is_empty() {
                self.granted.remove(&key);
            }
        }
    }
}

impl Check for Passed {
    fn rule(&self) -> &'static str {
        "I11 nobody is passed"
    }

    fn see(&mut self, at: Time, fact: &Fact, _: &Book) -> Result<(), String> {
        match *fact {
            Fact::Booted { ref keys } => self.forget(|key, _| keys.contains(&key)),
            Fact::Believes { session, worker, until, .. } => {
                self.believes((session, worker), until, at);
            }
            Fact::Asked { session, token, key, patient, .. } => {
                self.asked.insert((session, token), (at, key, patient));
            }
            Fact::Granted { session, request, key, fence, .. } => {
                self.requests.insert((key, fence), (session, request));
            }
            // If it comes back, as nobody heard of that grant, it stands at the end.
            Fact::Freed { key, fence, forced, .. } => {
                if let Some(granted) = self.requests.remove(&(key, fence)).filter(|_| forced)
                    && let Some(line) = self.queued.get_mut(&key)
                {
                    line.retain(|&(session, _), &mut (_, request)| (session, request) != granted);
                }
            }
            Fact::InLine { session, token, request } => {
                if let Some(&(_, key, true)) = self.asked.get(&(session, token)) {
                    learns(self.queued.entry(key).or_default(), (session, token), (at, request));
                }
            }
            Fact::Held { session, token, fence, .. } => {
                return self.held((session, token), fence, at);
            }
            Fact::NotGranted { session, token } | Fact::Undoing { session, token, .. } => {
                self.leaves((session, token));
            }
            Fact::Anew { session, .. } | Fact::Crashed { session, .. } => {
                self.forget(|_, its| its == session);
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

    #[test]
    fn a_grant_to_the_dead_is_refused() {
        let Fact::Granted { session, request, key, claim, fence, .. } = granted(A, 1) else {
            unreachable!()
        };
        let bad = Fact::Granted { session, request, key, claim, fence, alive: false };
        tells_apart(|| DeadSessions, &[granted(A, 1)], &[bad]);
    }

    #[test]
    fn a_head_that_fits_and_waits_on_is_refused() {
        let woken = [granted(A, 1), queued(B, 2), freed(A, 1), left(B, 2), granted(B, 2), turn()];
        let stuck = [granted(A, 1), queued(B, 2), freed(A, 1), turn()];
        tells_apart(Waiters::default, &woken, &stuck);
        let grace = [
            queued(A, 1),
            queued(B, 2),
            left(A, 1),
            Fact::Turn { worker: 0, grace: true, unserved: Vec::new() },
        ];
        assert_eq!(judge(Waiters::default(), &grace), None);
        // What a worker has still to do is not measured by the turns of another.
        let (later, other) = (
            Fact::Turn { worker: 0, grace: false, unserved: vec![K] },
            Fact::Turn { worker: 1, grace: false, unserved: Vec::new() },
        );
        let then = |rest: &[Fact]| [&stuck[..3], &[later.clone(), other.clone()], rest].concat();
        tells_apart(Waiters::default, &then(&[]), &then(&[turn()]));
    }

    #[test]
    fn who_passes_another_is_refused() {
        let queue = [granted(A, 9), queued(A, 1), queued(B, 2), freed(A, 9)];
        let then = |rest: &[Fact]| [&queue[..], rest].concat();
        let good = then(&[left(A, 1), granted(A, 1)]);
        tells_apart(Fifo::default, &good, &then(&[left(B, 2), granted(B, 2)]));
        tells_apart(Fifo::default, &good, &then(&[granted(B, 3)]));
    }

    #[test]
    fn who_is_passed_though_it_knew_to_be_queued_is_refused() {
        let knows = |session| Fact::InLine { session, token: T, request: 1 };
        let bad = [asked(A), knows(A), asked(B), held(B, 2), held(A, 3)];
        let good = [asked(A), asked(B), knows(A), held(B, 2), held(A, 3)];
        tells_apart(Passed::default, &good, &bad);
        // The news of grants may come in any order.
        let good = [asked(A), knows(A), asked(B), held(B, 3), held(A, 2)];
        tells_apart(Passed::default, &good, &bad);
        let good = [asked(A), knows(A), booted(), asked(B), held(B, 2), held(A, 3)];
        tells_apart(Passed::default, &good, &bad);
        // Who was next, and was ended by force before it heard of that, is at the end.
        let forced = |of| Fact::Freed { session: of, key: K, fence: Fence(1), forced: true };
        let ended = |of| [&bad[..2], &[granted(of, 1), forced(of)], &bad[2..]].concat();
        tells_apart(Passed::default, &ended(A), &ended(B));
        let released = [&bad[..2], &[granted(A, 1), freed(A, 1)], &bad[2..]].concat();
        tells_apart(Passed::default, &ended(A), &released);
        // Whose lease has ended may have been forgotten.
        let lapsed = |ms| [&[believes(A, ms)], &bad[..]].concat();
        tells_apart(Passed::default, &lapsed(4), &lapsed(9));
    }

    #[test]
    fn who_asked_later_and_holds_first_is_refused() {
        let knows = |session| Fact::InLine { session, token: T, request: 1 };
        let bad = [queued(A, 1), asked(A), knows(A), asked(B), held(B, 2)];
        let good = [queued(A, 1), asked(A), asked(B), knows(A), held(B, 2)];
        tells_apart(Fifo::default, &good, &bad);
        let good = [queued(A, 1), asked(A), knows(A), left(A, 1), asked(B), held(B, 2)];
        tells_apart(Fifo::default, &good, &bad);
    }
}
