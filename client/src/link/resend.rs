//! A connection breaks, a new one stands: what is sent again, under which id.

use super::claims::{Pending, Query};
use super::{Goodbye, Link, Loss, NotGranted, Outcome, Phase, Shared};
use crate::claims::{Claim, State};
use lockring_proto::Time;

impl Link {
    /// The connection is gone. The lease runs on; unanswered requests wait for the next one.
    pub(crate) fn down(&mut self, shared: &mut Shared, now: Time) {
        if self.phase == Phase::Down {
            return;
        }
        self.phase = Phase::Down;
        self.times.fell = now;
        self.out.clear();
        self.times.renewing = None;
        self.compares.down();
        self.ring = super::RingFrom::default();
        self.lost_early.clear();
        if self.peer.goodbye == Goodbye::Said {
            self.peer.goodbye = Goodbye::Unsaid;
        }
        // Renewals and the like are not worth repeating: the next connection makes its own.
        self.pending.retain(|_, pending| matches!(pending, Pending::Claim(_) | Pending::Query(_)));
        #[cfg(feature = "testing")]
        self.forget_releases(shared);
        self.expect_answers(shared);
    }

    #[cfg(feature = "testing")]
    fn forget_releases(&mut self, shared: &mut Shared) {
        if shared.mutant != Some(super::ClientMutant::ReleaseForgotten) {
            return;
        }
        for slot in 0..shared.claims.slots() {
            let claim = &shared.claims[slot];
            if claim.link != self.id {
                continue;
            }
            if let State::Releasing { told, .. } = claim.state {
                let (id, token) = (claim.id, claim.token);
                self.pending.remove(&id);
                shared.claims.free(slot);
                if told {
                    shared.outcomes.push(Outcome::Released { token });
                }
            }
        }
    }

    /// A new connection stands. `fresh`: the worker has no link of this session, so that nothing
    /// of it is held or queued there, and an unanswered request may only run under a new id.
    pub(super) fn resume(&mut self, shared: &mut Shared, now: Time, fresh: bool) {
        if fresh {
            self.start_over(shared);
        }
        self.put_off.clear();
        let mut unanswered: Vec<u64> = self.pending.keys().copied().collect();
        unanswered.sort_unstable();
        for id in unanswered {
            match self.pending.get(&id) {
                Some(&Pending::Claim(slot)) => {
                    if let State::Releasing { resent, .. } = &mut shared.claims[slot].state {
                        *resent = true;
                    }
                    self.send_claim(shared, now, slot);
                }
                Some(Pending::Query(query)) => {
                    let sent = query.routed > 0 && !self.parked.contains(&id);
                    if sent && matches!(query.query, Query::Force(_)) {
                        // It names no fence: run twice it would end a hold that came after it.
                        let (token, link) = (query.token, self.id);
                        self.pending.remove(&id);
                        shared.outcomes.push(Outcome::NoAnswer { token, link });
                    } else {
                        self.send_query(shared, now, id);
                    }
                }
                Some(_) | None => {}
            }
        }
        self.parked.clear();
        // From now on what came from another link is as all others.
        for slot in 0..shared.claims.slots() {
            let claim = &mut shared.claims[slot];
            claim.moved_in &= claim.link != self.id;
        }
    }

    /// Everything of the earlier link is gone at the worker. Claims are made anew in the order in
    /// which they were asked for, as their callers expect to be served in it. What has come from
    /// another link since was never asked for on that one, and stays as it is.
    fn start_over(&mut self, shared: &mut Shared) {
        let slots = 0..shared.claims.slots();
        let mut slots: Vec<u32> =
            slots.filter(|&slot| shared.claims.is_of(slot, self.id)).collect();
        slots.sort_by_key(|&slot| shared.claims[slot].id);
        for slot in slots {
            let Claim { state, token, id, moved_in, .. } = shared.claims[slot];
            if moved_in {
                continue;
            }
            match state {
                State::Free => {}
                State::Held { .. } => self.lose(shared, slot, Loss::SessionEnded),
                State::Acquiring => {
                    self.pending.remove(&id);
                    let id = shared.ids.next();
                    shared.claims[slot].id = id;
                    shared.claims[slot].sent = None;
                    self.pending.insert(id, Pending::Claim(slot));
                }
                State::Confirming { .. } => {
                    self.drop_claim(shared, slot);
                    let (link, reason) = (self.id, NotGranted::NotHeld);
                    shared.outcomes.push(Outcome::NotGranted { token, link, reason });
                }
                State::Releasing { told, .. } => {
                    self.drop_claim(shared, slot);
                    if told {
                        // Whether an earlier copy ended it, or the lease did, nobody knows.
                        shared.outcomes.push(Outcome::NotHeld { token, maybe_released: true });
                    }
                }
                State::Cancelling { told, .. } => {
                    self.drop_claim(shared, slot);
                    if told {
                        shared.outcomes.push(Outcome::Cancelled { token });
                    }
                }
            }
        }
        // The lease of the new link began with this hello.
        self.times.valid_until = self.times.greeted.after(self.times.believed);
    }
}
