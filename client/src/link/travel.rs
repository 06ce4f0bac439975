//! Cells go from one worker to another, and what a session has of them from one link to another.

use super::claims::{Asked, Pending, Query};
use super::{Link, Shared};
use crate::claims::State;
use lockring_proto::Time;

impl Link {
    /// A claim leaves this link, with its id and, if it is one, as the hold that it is.
    pub(crate) fn take_out(&mut self, shared: &mut Shared, slot: u32) {
        let claim = &mut shared.claims[slot];
        let id = claim.id;
        if let State::Releasing { resent, .. } = &mut claim.state {
            // What this worker has made of it nobody will know.
            *resent |= claim.sent.is_some();
        }
        let hold = claim.hold_id();
        self.pending.remove(&id);
        self.parked.remove(&id);
        self.put_off.remove(&slot);
        if let Some(hold) = hold {
            self.compares.digest.remove(hold);
            self.note_ended(hold);
        }
    }

    /// A claim comes from another link, whose holds are believed until `believed`. What is
    /// unanswered of it is sent here, under its own id, now or when a connection stands.
    pub(crate) fn take_in(&mut self, shared: &mut Shared, now: Time, slot: u32, believed: Time) {
        let is_up = self.is_up();
        let claim = &mut shared.claims[slot];
        (claim.link, claim.sent, claim.moved_in) = (self.id, None, !is_up);
        if let Some(hold) = claim.hold_id() {
            // What was answered here so far was not counted for it.
            let held = self.compares.digest.count > 0;
            let known = if held { self.times.valid_until } else { believed };
            self.times.valid_until = known.min(believed);
            self.compares.digest.add(hold);
            return;
        }
        self.pending.insert(claim.id, Pending::Claim(slot));
        if is_up {
            self.send_claim(shared, now, slot);
        } else {
            self.expect_answer(shared, slot);
        }
    }

    /// Queries leave this link whose cells `stays` does not name, if they have not run here or may
    /// run twice.
    pub(crate) fn take_queries(&mut self, stays: impl Fn(u16) -> bool) -> Vec<(u64, Box<Asked>)> {
        let leaves = |id: u64, query: &Asked| {
            let may_run = match query.query {
                Query::Force(_) => query.routed == 0 || self.parked.contains(&id),
                Query::Inspect(_) => true,
                Query::List { .. } => false,
            };
            may_run && query.cell.is_some_and(|cell| !stays(cell))
        };
        let mut ids: Vec<u64> = self
            .pending
            .iter()
            .filter(|(id, pending)| matches!(pending, Pending::Query(query) if leaves(**id, query)))
            .map(|(&id, _)| id)
            .collect();
        ids.sort_unstable();
        self.parked.retain(|id| !ids.contains(id));
        let taken = ids.into_iter().filter_map(|id| match self.pending.remove(&id) {
            Some(Pending::Query(query)) => Some((id, query)),
            _ => None,
        });
        taken.collect()
    }

    /// A query comes from another link.
    pub(crate) fn take_query(
        &mut self,
        shared: &mut Shared,
        now: Time,
        (id, mut query): (u64, Box<Asked>),
    ) {
        query.routed = 0;
        let asked = query.asked;
        self.pending.insert(id, Pending::Query(query));
        if self.is_up() {
            self.send_query(shared, now, id);
        } else {
            self.expect_answer_at(
                asked.max(self.times.heard).after(shared.config.unreachable_after),
            );
        }
    }

    /// The ring has no such worker any more: nobody will ever answer what was asked of it alone.
    pub(crate) fn is_gone(&mut self, shared: &mut Shared) {
        let mut left: Vec<(u64, Pending)> =
            self.pending.extract_if(|_, pending| matches!(pending, Pending::Query(_))).collect();
        left.sort_unstable_by_key(|(id, _)| *id);
        for (_, pending) in left {
            let Pending::Query(query) = pending else { continue };
            shared.outcomes.push(query.is_over(self.id));
        }
    }
}
