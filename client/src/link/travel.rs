//! Cells go from one worker to another, and what a session has of them from one link to another.

use super::pending::Pending;
use super::query::{Asked, Query};
use super::{Link, Shared};
use crate::claims::{ClaimRecord, Former, State};
use lockring_proto::Time;

impl Link {
    /// A claim leaves this link, with its id and, if it is one, as the hold that it is: until when
    /// it is believed.
    pub(crate) fn take_out(&mut self, shared: &mut Shared, slot: u32) -> Time {
        let claim = &mut shared.claims[slot];
        let (id, believed) = (claim.id, self.believed(&claim.tenure));
        if let State::Releasing { resent, .. } = &mut claim.state {
            // What this worker has made of it nobody will know.
            *resent |= claim.sent.is_some();
            // Its caller waits no longer than it was believed here.
            claim.tenure.until = believed;
        }
        if claim.is_held() {
            if let Some(hold) = self.leave(shared, slot) {
                self.note_ended(hold);
            }
        } else {
            self.forget(id);
        }
        believed
    }

    /// A claim comes from another link, or to this one again, believed until then if it is a hold.
    /// What is unanswered of it is sent here, under its own id, now or when a connection stands.
    pub(crate) fn take_in(&mut self, shared: &mut Shared, now: Time, slot: u32, believed: Time) {
        let is_up = self.is_up();
        self.times.gained = Some(now);
        let claim = &mut shared.claims[slot];
        // What has been here before was sent here before.
        let is_new = claim.link != self.id;
        claim.way.moved_in = !is_up && (is_new || claim.way.moved_in);
        claim.way.twice |= !is_new && claim.sent.is_some();
        claim.link = self.id;
        if claim.is_held() {
            return self.moves_in(shared, now, slot, believed);
        }
        self.cancel_formers(shared, now, slot);
        let id = shared.claims[slot].id;
        self.pending.insert(id, Pending::Claim(slot));
        if is_up {
            self.send(shared, now, id);
        } else {
            self.expect_answer(shared, slot);
        }
    }

    /// Ids that a claim has given up, as a process knew nothing of them, may be known to whoever
    /// has the cell now: what they have made there is nobody's.
    fn cancel_formers(&mut self, shared: &mut Shared, now: Time, slot: u32) {
        let owner = shared.process_of(shared.claims[slot].cell);
        for Former { id: target, process } in std::mem::take(&mut shared.claims[slot].way.formers) {
            if Some(process) == owner {
                shared.claims[slot].way.formers.push(Former { id: target, process });
                continue;
            }
            let ClaimRecord { ref key, cell, wanted, token, .. } = shared.claims[slot];
            let mut cancel = ClaimRecord::new(key.clone(), cell, wanted, token);
            cancel.state = State::Cancelling { target, told: false };
            cancel.id = shared.ids.next();
            (cancel.link, cancel.asked, cancel.way.moved_in) = (self.id, now, !self.is_up());
            let id = cancel.id;
            let cancelling = shared.claims.insert(cancel);
            self.pending.insert(id, Pending::Claim(cancelling));
            self.send(shared, now, id);
        }
    }

    /// Queries leave this link whose cells `stays` does not name, if they have not run here or may
    /// run twice.
    pub(crate) fn take_queries(&mut self, stays: impl Fn(u16) -> bool) -> Vec<(u64, Box<Asked>)> {
        let leaves = |id: u64, query: &Asked| {
            let may_run = match query.query {
                Query::Force(_) => query.routed == 0 || self.parked.contains(id),
                Query::Inspect(_) => true,
                Query::List { .. } => false,
            };
            may_run && query.cell.is_some_and(|cell| !stays(cell))
        };
        let ids = self
            .pending
            .ids(|id, pending| matches!(pending, Pending::Query(query) if leaves(id, query)));
        let taken = ids.into_iter().filter_map(|id| {
            self.parked.remove(id);
            self.put_off.remove(id);
            match self.pending.remove(id) {
                Some(Pending::Query(query)) => Some((id, query)),
                _ => None,
            }
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
    pub(crate) fn is_gone(&mut self, shared: &mut Shared, now: Time) {
        self.down(shared, now);
        for (_, pending) in self.pending.take(|_, pending| matches!(pending, Pending::Query(_))) {
            let Pending::Query(query) = pending else { continue };
            shared.outcomes.push(query.is_over(self.id));
        }
    }
}
