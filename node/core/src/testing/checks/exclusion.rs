//! Who may hold a key together.

use crate::Time;
use crate::testing::recorder::{Book, Check, Hold};
use crate::testing::{Fact, KeyId};
use lockring_proto::Claim;

/// Whether these claims may all hold one key.
fn together(claims: impl Iterator<Item = Claim>) -> bool {
    let (mut holders, mut writers, mut permits, mut least) = (0, 0, 0, None);
    for claim in claims {
        holders += 1;
        match claim {
            Claim::EXCLUSIVE => writers += 1,
            Claim::SHARED => {}
            Claim::Permits { permits: some, capacity } => {
                permits += u64::from(some);
                least = Some(least.map_or(capacity, |least: u32| least.min(capacity)));
            }
        }
    }
    let one_kind = permits == 0 || least.is_some_and(|capacity| permits <= u64::from(capacity));
    one_kind && (writers == 0 || holders == 1)
}

/// I1: no two clients act on one key at the same time, within the validity of their leases.
pub struct Exclusion;

impl Exclusion {
    /// `claim` joins those who act on the key.
    fn joins(at: Time, key: KeyId, claim: Claim, book: &Book) -> Result<(), String> {
        let acting = book.believers(key).filter(|hold| book.acts(at, hold));
        if together(acting.map(|hold| hold.claim).chain([claim])) {
            return Ok(());
        }
        let acting: Vec<_> = book.believers(key).filter(|hold| book.acts(at, hold)).collect();
        Err(format!("{claim:?} of {key:?} beside {acting:?}"))
    }
}

impl Check for Exclusion {
    fn rule(&self) -> &'static str {
        "I1 exclusion within validity"
    }

    fn see(&mut self, at: Time, fact: &Fact, book: &Book) -> Result<(), String> {
        match *fact {
            // The worker must not even grant while another may act.
            Fact::Granted { key, claim, .. } => Self::joins(at, key, claim, book),
            // Who has it back may have acted on it all the time.
            Fact::Reclaimed { session, key, claim, fence, .. } => {
                let others = book.believers(key).filter(|hold| {
                    (hold.session, hold.fence) != (session, fence) && book.acts(at, hold)
                });
                let fits = together(others.map(|hold| hold.claim).chain([claim]));
                fits.then_some(()).ok_or_else(|| format!("{claim:?} of {key:?} is back: {fact:?}"))
            }
            Fact::Held { session, worker, key, claim, fence, .. }
            | Fact::Adopted { session, worker, key, claim, fence, .. }
                if book.valid(session, worker) > at && !book.is_forced(key, fence) =>
            {
                Self::joins(at, key, claim, book)
            }
            Fact::Believes { session, worker, until, .. }
                if until > at && book.valid(session, worker) <= at =>
            {
                let its = |hold: &&Hold| {
                    let is_leased = hold.until.is_none() && !hold.giving;
                    hold.session == session && hold.worker == worker && is_leased
                };
                match book.holds.values().find(its) {
                    Some(hold) => Err(format!("a lapsed hold is believed in again: {hold:?}")),
                    None => Ok(()),
                }
            }
            Fact::Went { session, token, until: None, .. } => {
                match book.holds.get(&(session, token)).filter(|hold| !hold.giving) {
                    Some(hold) if book.until(hold) <= at => {
                        Err(format!("a lapsed hold is believed in again: {hold:?}"))
                    }
                    _ => Ok(()),
                }
            }
            _ => Ok(()),
        }
    }
}

/// I1 at the node: the holders of a key fit together, and only what is held or queued ends.
pub struct Capacity;

impl Check for Capacity {
    fn rule(&self) -> &'static str {
        "I1 holders fit together"
    }

    fn see(&mut self, _: Time, fact: &Fact, book: &Book) -> Result<(), String> {
        match *fact {
            Fact::Granted { key, claim, .. } | Fact::Reclaimed { key, claim, .. } => {
                let none = Default::default();
                let holders = &book.keys.get(&key).unwrap_or(&none).holders;
                if together(holders.iter().map(|held| held.1).chain([claim])) {
                    return Ok(());
                }
                Err(format!("{claim:?} granted of {key:?} beside {holders:?}"))
            }
            Fact::Freed { key, fence, .. } => {
                let held = book.keys.get(&key);
                let held = held.is_some_and(|key| key.holders.iter().any(|held| held.2 == fence));
                held.then_some(()).ok_or_else(|| format!("{fence} of {key:?} was not held"))
            }
            Fact::Left { session, request, key } => {
                let is_it = |&(waits, its, _): &_| (waits, its) == (session, request);
                let waited = book.keys.get(&key).is_some_and(|key| key.queue.iter().any(is_it));
                waited.then_some(()).ok_or_else(|| format!("{request} of {session:?} not queued"))
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
    fn claims_that_go_together() {
        let (s, x) = (Claim::SHARED, Claim::EXCLUSIVE);
        let p = |permits, capacity| Claim::Permits { permits, capacity };
        for good in [vec![x], vec![s, s], vec![p(1, 3), p(2, 3)]] {
            assert!(together(good.iter().copied()), "{good:?}");
        }
        for bad in [vec![x, s], vec![x, x], vec![p(2, 3), p(2, 3)], vec![p(1, 2), p(1, 1)]] {
            assert!(!together(bad.iter().copied()), "{bad:?}");
        }
    }

    #[test]
    fn two_who_act_at_once_are_refused() {
        let first = [believes(A, 9), believes(B, 90), held(A, 1)];
        let good = [&first[..], &vec![turn(); 6], &[held(B, 2)]].concat();
        let bad = [&first[..], &[held(B, 2)]].concat();
        tells_apart(|| Exclusion, &good, &bad);
        // Whoever is giving a hold back does not act on it any more.
        assert_eq!(judge(Exclusion, &[&first[..], &[giving(A), held(B, 2)]].concat()), None);
    }

    #[test]
    fn a_grant_beside_one_who_acts_is_refused() {
        let good = [believes(A, 9), held(A, 1), giving(A), granted(B, 2)];
        let bad = [believes(A, 9), held(A, 1), granted(B, 2)];
        tells_apart(|| Exclusion, &good, &bad);
    }

    #[test]
    fn a_lapsed_hold_that_comes_back_is_refused() {
        let good = [believes(A, 9), held(A, 1), turn(), believes(A, 20)];
        let bad = [believes(A, 2), held(A, 1), turn(), believes(A, 20)];
        tells_apart(|| Exclusion, &good, &bad);
    }

    #[test]
    fn holders_that_do_not_fit_and_ends_of_nothing_are_refused() {
        let good = [granted(A, 1), freed(A, 1), granted(B, 2)];
        tells_apart(|| Capacity, &good, &[granted(A, 1), granted(B, 2)]);
        tells_apart(|| Capacity, &good, &[granted(A, 1), freed(A, 1), freed(A, 1)]);
        tells_apart(|| Capacity, &[queued(A, 1), left(A, 1)], &[queued(A, 1), left(A, 2)]);
    }
}
