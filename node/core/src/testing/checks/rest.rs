//! What must be true when everybody is at rest.

use crate::Time;
use crate::testing::Fact;
use crate::testing::recorder::{Book, Check};

/// At rest both sides of every link hold the same, and at the end nobody holds anything.
pub struct Rest;

impl Check for Rest {
    fn rule(&self) -> &'static str {
        "I5 both sides agree at rest"
    }

    fn see(&mut self, _: Time, fact: &Fact, _: &Book) -> Result<(), String> {
        match *fact {
            Fact::Rest { client, node, .. } if client != node.unwrap_or_default() => {
                Err(format!("{fact:?}"))
            }
            Fact::Empty { keys, waiters, .. } if keys + waiters > 0 => Err(format!("{fact:?}")),
            _ => Ok(()),
        }
    }
}

/// I15: every hold and every queued claim is accounted for.
pub struct Conservation;

impl Check for Conservation {
    fn rule(&self) -> &'static str {
        "I15 conservation"
    }

    fn see(&mut self, _: Time, fact: &Fact, _: &Book) -> Result<(), String> {
        let whole = match *fact {
            Fact::Holds { granted, released, expired, forced, held } => {
                granted == released + expired + forced + held
            }
            Fact::Line { queued, granted, cancelled, timed_out, dead, waiting } => {
                queued == granted + cancelled + timed_out + dead + waiting
            }
            _ => true,
        };
        whole.then_some(()).ok_or_else(|| format!("{fact:?}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::checks::history::*;
    use lockring_proto::{Digest, Fence, HoldId};

    #[test]
    fn sides_that_differ_and_leftovers_are_refused() {
        let mut digest = Digest::default();
        digest.add(HoldId { cell: 1, fence: Fence(1) });
        let rest = |client, node| Fact::Rest { session: A, worker: 0, client, node };
        let none = Digest::default();
        tells_apart(
            || Rest,
            &[rest(digest, Some(digest)), rest(none, None)],
            &[rest(digest, None)],
        );
        tells_apart(|| Rest, &[rest(none, Some(none))], &[rest(none, Some(digest))]);
        let empty = |keys, waiters| Fact::Empty { worker: 0, keys, waiters };
        tells_apart(|| Rest, &[empty(0, 0)], &[empty(1, 0)]);
        tells_apart(|| Rest, &[empty(0, 0)], &[empty(0, 1)]);
    }

    #[test]
    fn sums_that_do_not_add_up_are_refused() {
        let holds = |held| Fact::Holds { granted: 10, released: 4, expired: 3, forced: 2, held };
        tells_apart(|| Conservation, &[holds(1)], &[holds(2)]);
        let line = |waiting| Fact::Line {
            queued: 10,
            granted: 4,
            cancelled: 1,
            timed_out: 2,
            dead: 2,
            waiting,
        };
        tells_apart(|| Conservation, &[line(1)], &[line(0)]);
    }
}
