//! What a listing shows while keys come and go.

use crate::Time;
use crate::testing::recorder::{Book, Check};
use crate::testing::{Fact, KeyId};
use lockring_proto::SessionId;
use std::collections::{BTreeMap, BTreeSet};

/// No key that is held from a listing's beginning to its end is missed, and none is shown twice.
#[derive(Default)]
pub struct Listing {
    running: BTreeMap<SessionId, Coverage>,
}

#[derive(Default)]
struct Coverage {
    /// Held ever since, and not shown yet.
    missing: BTreeSet<KeyId>,
    /// Not in use at some time since: one may be in use anew, and elsewhere.
    ended: BTreeSet<KeyId>,
    shown: BTreeSet<KeyId>,
}

impl Check for Listing {
    fn rule(&self) -> &'static str {
        "a listing is whole"
    }

    fn see(&mut self, _: Time, fact: &Fact, book: &Book) -> Result<(), String> {
        match fact {
            Fact::ListBegan { session, of } => {
                let held =
                    |key: &&KeyId| book.keys.get(key).is_some_and(|key| !key.holders.is_empty());
                let missing = of.iter().filter(held).copied().collect();
                self.running.insert(*session, Coverage { missing, ..Coverage::default() });
            }
            Fact::Freed { key, .. } => {
                for seen in self.running.values_mut() {
                    if book.keys.get(key).is_none_or(|key| key.holders.len() == 1) {
                        seen.missing.remove(key);
                    }
                    seen.ended.insert(*key);
                }
            }
            Fact::Left { key, .. } => {
                for seen in self.running.values_mut() {
                    seen.ended.insert(*key);
                }
            }
            Fact::Booted { keys } => {
                for seen in self.running.values_mut() {
                    seen.missing.retain(|key| !keys.contains(key));
                    seen.ended.extend(keys);
                }
            }
            Fact::ListPage { session, keys, last } => {
                let Some(seen) = self.running.get_mut(session) else { return Ok(()) };
                for key in keys {
                    seen.missing.remove(key);
                    if !seen.shown.insert(*key) && !seen.ended.contains(key) {
                        return Err(format!("{key:?} is shown twice"));
                    }
                }
                if *last && let Some(missed) = seen.missing.first() {
                    return Err(format!("{missed:?} was held all the time, and not shown"));
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

    #[test]
    fn a_listing_that_misses_or_repeats_a_key_is_refused() {
        let began = Fact::ListBegan { session: B, of: vec![K] };
        let page = |keys: &[KeyId], last| {
            let keys = keys.to_vec();
            Fact::ListPage { session: B, keys, last }
        };
        let check = Listing::default;
        let good = [granted(A, 1), began.clone(), page(&[K], false), page(&[], true)];
        tells_apart(check, &good, &[granted(A, 1), began.clone(), page(&[], true)]);
        tells_apart(check, &good, &[began.clone(), page(&[K], false), page(&[K], true)]);
        let gone = [granted(A, 1), began.clone(), freed(A, 1), granted(A, 2), page(&[], true)];
        assert_eq!(judge(check(), &gone), None);
        let again = [began.clone(), page(&[K], false), freed(A, 1), page(&[K], true)];
        assert_eq!(judge(check(), &again), None);
        let restarted = [granted(A, 1), began, booted(), page(&[], true)];
        assert_eq!(judge(check(), &restarted), None);
    }
}
