//! Whether the history of a key, as its clients saw it, can have happened at all.

use crate::Time;
use crate::testing::recorder::{Book, Check, Hold};
use crate::testing::{Fact, KeyId, Token};
use lockring_proto::{Claim, Fence, SessionId};
use std::collections::{BTreeMap, BTreeSet};

/// How the client of a grant knows that it ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// It was told that its release, begun then, ended it.
    Released { begun: Time, told: Time },
    /// Not at all. It ended no earlier than this: when its lease did, or a release was begun of
    /// which nothing is known.
    Unknown { from: Time },
}

/// A grant as its client knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Grant {
    asked: Time,
    told: Time,
    end: End,
}

/// Whether there are instants at which each of these grants, in the order of their fences, began
/// and ended, none before the last had ended.
///
/// The earliest instant that is left is taken for each: as fences give the order, no later one
/// leaves more room to those that follow.
fn can_have_happened(grants: &[Grant]) -> Result<(), usize> {
    let mut free = Time(0);
    for (place, grant) in grants.iter().enumerate() {
        let latest = match grant.end {
            End::Released { told, .. } => grant.told.min(told),
            End::Unknown { .. } => grant.told,
        };
        let began = free.max(grant.asked);
        if began > latest {
            return Err(place);
        }
        free = match grant.end {
            End::Released { begun, told } if began.max(begun) > told => return Err(place),
            End::Released { begun, .. } => began.max(begun),
            End::Unknown { from } => began.max(from),
        };
    }
    Ok(())
}

/// I2, exactly: the grants of every key that is only ever held exclusively are in some order, each
/// between its question and its answer, and each after the end of the one before. It is looked at
/// when everything was given back.
#[derive(Default)]
pub struct Exact {
    asked: BTreeMap<(SessionId, Token), Time>,
    giving: BTreeMap<(SessionId, Token), Time>,
    /// Until when a hold was good whose release has begun.
    good: BTreeMap<(SessionId, Token), Time>,
    keys: BTreeMap<KeyId, BTreeMap<Fence, Grant>>,
    /// Keys that are held otherwise too.
    shared: BTreeSet<KeyId>,
    is_judged: bool,
}

impl Exact {
    fn ends(&mut self, hold: &Hold, end: End) {
        let grants = self.keys.entry(hold.key).or_default();
        if let Some(grant) = grants.get_mut(&hold.fence) {
            grant.end = end;
        }
    }

    /// A hold is over, and nobody knows since when, but that it was good until `most`.
    fn is_lost(&mut self, name: (SessionId, Token), most: Time, book: &Book) {
        let Some(hold) = book.holds.get(&name) else { return };
        let good = self.good.get(&name).copied().unwrap_or(Time::NEVER);
        let from = if hold.forced { Time(0) } else { book.until(hold).min(good).min(most) };
        self.ends(hold, End::Unknown { from });
    }

    fn judge(&self) -> Result<(), String> {
        for (key, grants) in self.keys.iter().filter(|(key, _)| !self.shared.contains(key)) {
            let all: Vec<Grant> = grants.values().copied().collect();
            if let Err(place) = can_have_happened(&all) {
                let around = &all[place.saturating_sub(2)..=place];
                return Err(format!("{key:?} cannot have been granted so: {around:?}"));
            }
        }
        Ok(())
    }
}

impl Check for Exact {
    fn rule(&self) -> &'static str {
        "I2 a history that can have happened"
    }

    fn see(&mut self, at: Time, fact: &Fact, book: &Book) -> Result<(), String> {
        match *fact {
            Fact::Asked { session, token, key, claim, .. } => {
                self.asked.insert((session, token), at);
                if claim != Claim::EXCLUSIVE {
                    self.shared.insert(key);
                }
            }
            Fact::Held { session, token, key, fence, .. } => {
                let asked = self.asked.remove(&(session, token)).unwrap_or(at);
                let grant = Grant { asked, told: at, end: End::Unknown { from: at } };
                self.keys.entry(key).or_default().insert(fence, grant);
            }
            Fact::Giving { session, token } => {
                let name = (session, token);
                let until = book.holds.get(&name).map_or(at, |hold| book.until(hold));
                // With a goodbye everything is given back, and then each hold for itself.
                self.good.entry(name).or_insert(at.min(until));
                self.giving.entry(name).or_insert(at);
            }
            Fact::Released { session, token } => {
                let begun = self.giving.remove(&(session, token)).unwrap_or(at);
                if let Some(hold) = book.holds.get(&(session, token)) {
                    // A client that has not heard of an end by force may have taken it up again.
                    let forced = End::Unknown { from: Time(0) };
                    let released = End::Released { begun, told: at };
                    self.ends(hold, if hold.forced { forced } else { released });
                }
            }
            Fact::Lost { session, token, .. } | Fact::NotHeld { session, token, .. } => {
                self.is_lost((session, token), Time::NEVER, book);
            }
            Fact::Crashed { session, .. } => {
                // Whoever takes the session up may give back what it does not know of.
                let its = (session, Token(0))..=(session, Token(u64::MAX));
                for (&name, _) in book.holds.range(its) {
                    self.is_lost(name, at, book);
                }
            }
            Fact::Empty { .. } if !self.is_judged => {
                self.is_judged = true;
                return self.judge();
            }
            _ => {}
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Rng;
    use crate::testing::checks::history::*;

    /// No instant of the small histories is later.
    const LAST: u64 = 7;

    /// Tries every way.
    fn some_way(grants: &[Grant], free: u64) -> bool {
        let Some((grant, rest)) = grants.split_first() else { return true };
        let begins = free.max(grant.asked.0)..=grant.told.0;
        begins.into_iter().any(|began| {
            (began..=LAST + 1).any(|ended| {
                let fits = match grant.end {
                    End::Released { begun, told } => {
                        began <= told.0 && (begun.0..=told.0).contains(&ended)
                    }
                    End::Unknown { from } => ended >= from.0,
                };
                fits && some_way(rest, ended)
            })
        })
    }

    fn span(rng: &mut Rng) -> (Time, Time) {
        let (one, other) = (rng.range(0, LAST + 1), rng.range(0, LAST + 1));
        (Time(one.min(other)), Time(one.max(other)))
    }

    #[test]
    fn the_earliest_instants_find_a_way_if_there_is_one() {
        let mut rng = Rng::new(1);
        let mut legal = 0;
        for _ in 0..60_000 {
            let grants: Vec<Grant> = (0..rng.range(1, 4))
                .map(|_| {
                    let (asked, told) = span(&mut rng);
                    let (begun, ended) = span(&mut rng);
                    let end = match rng.percent(60) {
                        true => End::Released { begun, told: ended },
                        false => End::Unknown { from: begun },
                    };
                    Grant { asked, told, end }
                })
                .collect();
            let way = some_way(&grants, 0);
            assert_eq!(can_have_happened(&grants).is_ok(), way, "{grants:?}");
            legal += u32::from(way);
        }
        assert!((5_000..55_000).contains(&legal), "{legal} of them are legal");
    }

    #[test]
    fn a_grant_before_the_end_of_the_last_is_refused() {
        let empty = Fact::Empty { worker: 0, keys: 0, waiters: 0 };
        let first = [asked(A), held(A, 1), believes(A, 50), giving(A), released(A)];
        let second = [asked(B), believes(B, 90), held(B, 2), empty];
        let good = [&first[..], &second[..]].concat();
        // It was asked for and answered before the first was given back.
        let early = [asked(A), believes(A, 50), held(A, 1), asked(B), held(B, 2), giving(A)];
        let bad = [&early[..], &[released(A), second[3].clone()]].concat();
        tells_apart(Exact::default, &good, &bad);
    }
}
