//! How soon a client learns what happened to its holds.

use crate::testing::recorder::{Book, Check};
use crate::testing::{Fact, Token};
use crate::{ConnId, Time};
use lockring_proto::SessionId;
use std::collections::{BTreeMap, BTreeSet};

/// Answers to renewals on one connection by which a loss is known. The first may have been under
/// way, two differ, and the compare is answered before the next.
const RENEWALS: u32 = 4;

/// I5: whoever is in contact learns that an operator ended its hold, also when the push was lost
/// with an earlier connection, and however much else is under way.
#[derive(Default)]
pub struct News {
    /// Workers with cells that recover, which compares leave out.
    in_grace: BTreeSet<u16>,
    unknown: BTreeMap<(SessionId, Token), (ConnId, u32)>,
}

impl Check for News {
    fn rule(&self) -> &'static str {
        "I5 losses are learnt in time"
    }

    fn see(&mut self, _: Time, fact: &Fact, book: &Book) -> Result<(), String> {
        if let &Fact::Turn { worker, grace, .. } = fact {
            let changed =
                if grace { self.in_grace.insert(worker) } else { self.in_grace.remove(&worker) };
            if changed {
                self.unknown.clear();
            }
        }
        let Fact::Renewed { session, worker, conn } = *fact else { return Ok(()) };
        if self.in_grace.contains(&worker) {
            return Ok(());
        }
        let first = (session, Token(0));
        for (&name, hold) in book.holds.range(first..).take_while(|(name, _)| name.0 == session) {
            if hold.worker != worker || !hold.forced || hold.giving {
                continue;
            }
            let seen = self.unknown.entry(name).or_insert((conn, 0));
            *seen = if seen.0 == conn { (conn, seen.1 + 1) } else { (conn, 1) };
            if seen.1 >= RENEWALS {
                return Err(format!("after {} renewals it still has {hold:?}", seen.1));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::checks::history::*;
    use lockring_proto::Fence;

    #[test]
    fn a_loss_that_stays_unknown_is_refused() {
        let renewed = |conn| Fact::Renewed { session: A, worker: 0, conn: ConnId(conn) };
        let forced = Fact::Freed { session: A, key: K, fence: Fence(1), forced: true };
        let lost = [granted(A, 1), held(A, 1), forced];
        let then = |rest: &[Fact]| [&lost[..], rest].concat();
        let bad = then(&[renewed(1), renewed(1), renewed(1), renewed(1)]);
        let good = then(&[renewed(1), renewed(1), renewed(1), released(A), renewed(1)]);
        tells_apart(News::default, &good, &bad);
        let good = then(&[renewed(1), renewed(1), renewed(1), renewed(2), renewed(2)]);
        tells_apart(News::default, &good, &bad);
        let fence = Fence(1);
        let adopted = Fact::Adopted { session: A, worker: 0, token: T, key: K, claim: X, fence };
        let renewals = vec![renewed(1); 9];
        let forced = Fact::Freed { session: A, key: K, fence, forced: true };
        let good = [&[adopted.clone()][..], &renewals].concat();
        tells_apart(News::default, &good, &[&[adopted, forced][..], &renewals].concat());
        let kept = [granted(A, 1), held(A, 1), renewed(1), renewed(1), renewed(1), renewed(1)];
        tells_apart(News::default, &kept, &bad);
    }
}
