//! That a worker hears its clients, and in time.

use crate::testing::Fact;
use crate::testing::recorder::{Book, Check};
use crate::{ConnId, Time};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// A connection that is not served any more is closed within this.
const DEAF: Duration = Duration::from_millis(500);

/// A frame is read within this, whatever dies meanwhile.
const READ: Duration = Duration::from_millis(50);

/// A worker may overlook what came this shortly before a lease ended: shorter pauses of its own
/// than this it does not notice.
const OVERLOOKED: Duration = Duration::from_millis(100);

/// A connection is served or closed, frames are read in time also while others die, and nobody
/// expires whose frames lie unread.
#[derive(Default)]
pub struct Attention {
    hung: BTreeSet<ConnId>,
    deaf: BTreeMap<ConnId, Time>,
}

impl Check for Attention {
    fn rule(&self) -> &'static str {
        "I10 clients are heard"
    }

    fn see(&mut self, at: Time, fact: &Fact, _: &Book) -> Result<(), String> {
        match *fact {
            Fact::Ignored { conn } if !self.hung.contains(&conn) => {
                self.deaf.entry(conn).or_insert(at.after(DEAF));
            }
            Fact::Hung { conn } => {
                self.hung.insert(conn);
                self.deaf.remove(&conn);
            }
            Fact::Stalled { span } => self.deaf.values_mut().for_each(|due| *due = due.after(span)),
            Fact::Turn { .. } => {
                if let Some((conn, due)) = self.deaf.iter().find(|&(_, &due)| due < at) {
                    return Err(format!("{conn:?} is neither served nor closed by {due}"));
                }
            }
            Fact::Read { waited } if waited > READ => {
                return Err(format!("a frame lay unread for {waited:?}"));
            }
            Fact::Overlooked { unread, lease_end } if unread.after(OVERLOOKED) < lease_end => {
                return Err(format!("a frame of {unread} lay unread, the lease ended {lease_end}"));
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
    fn a_connection_nobody_listens_to_is_refused() {
        let conn = ConnId(1);
        let wait = vec![turn(); 1005];
        let bad = [&[Fact::Ignored { conn }][..], &wait].concat();
        let good = [&[Fact::Ignored { conn }, Fact::Hung { conn }][..], &wait].concat();
        tells_apart(Attention::default, &good, &bad);
        let good = [&[Fact::Hung { conn }, Fact::Ignored { conn }][..], &wait].concat();
        tells_apart(Attention::default, &good, &bad);
    }

    #[test]
    fn frames_left_lying_are_refused() {
        let read = |ms| Fact::Read { waited: Duration::from_millis(ms) };
        tells_apart(Attention::default, &[read(49)], &[read(51)]);
        let overlooked = |ms: u64| Fact::Overlooked { unread: Time(0), lease_end: Time(ms * 1000) };
        tells_apart(Attention::default, &[overlooked(99)], &[overlooked(101)]);
    }
}
