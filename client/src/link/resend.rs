//! A connection breaks, a new one stands: what is sent again, under which id.

use super::holds::Credits;
use super::pending::Pending;
use super::query::Query;
use super::replies::Met;
use super::{Goodbye, Link, Loss, NotGranted, Outcome, Phase, Shared};
use crate::claims::{ClaimRecord, Former, State};
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
        self.watch = None;
        shared.fetch.down(self.id);
        shared.lost_early.retain(|_, (by, _)| *by != self.id);
        if self.peer.goodbye == Goodbye::Said {
            self.peer.goodbye = Goodbye::Unsaid;
        }
        // Renewals and the like are not worth repeating: the next connection makes its own.
        self.pending.take(|_, pending| {
            matches!(
                pending,
                Pending::Goodbye
                    | Pending::Renew { .. }
                    | Pending::Compare { .. }
                    | Pending::GetRing { .. }
            )
        });
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
                self.pending.remove(id);
                shared.claims.free(slot);
                if told {
                    shared.outcomes.push(Outcome::Released { token });
                }
            }
        }
    }

    /// A new connection stands. [`Met::Forgotten`]: the worker has no link of this session any
    /// more, so that nothing of it is held or queued there, and what is unanswered may only run
    /// under a new id. Another process was never sent what is unanswered, whatever it has of it.
    pub(super) fn resume(&mut self, shared: &mut Shared, now: Time, met: Met) {
        if met == Met::Forgotten {
            self.start_over(shared);
        }
        if met != Met::Again {
            // The lease began with this hello, and what was said before is of another one.
            self.credits = Credits::default();
            self.times.credited = self.times.greeted;
            self.times.valid_until = self.believed_from(self.times.greeted);
        }
        self.put_off.clear();
        let parked = std::mem::take(&mut self.parked);
        for id in self.in_order(shared) {
            if let Some(slot) = self.pending.claim(id)
                && let State::Releasing { resent, .. } = &mut shared.claims[slot].state
            {
                *resent = true;
            }
            if let Some(Pending::Query(query)) = self.pending.get(id)
                && let (Query::Force(_), 1..) = (&query.query, query.routed)
                && !parked.contains(id)
            {
                // It names no fence: run twice it would end a hold that came after it.
                let (token, link) = (query.token, self.id);
                self.pending.remove(id);
                shared.outcomes.push(Outcome::NoAnswer { token, link });
                continue;
            }
            self.send(shared, now, id);
        }
        // From now on what came from another link is as all others.
        for slot in 0..shared.claims.slots() {
            let claim = &mut shared.claims[slot];
            claim.way.moved_in &= claim.link != self.id;
        }
        if self.settles_again(shared, now).is_some() {
            self.times.settle_at = Some(now);
            // Whether the worker has what has come meanwhile is looked at once.
            self.compares.is_doubtful();
        }
    }

    /// What is unanswered, in the order in which it is sent again: what is undone goes before what
    /// may wait for it.
    fn in_order(&self, shared: &Shared) -> Vec<u64> {
        let mut ids = self.pending.ids(|_, _| true);
        ids.sort_by_key(|&id| {
            let slot = self.pending.claim(id);
            let state = slot.map(|slot| shared.claims[slot].state);
            !matches!(state, Some(State::Cancelling { .. }))
        });
        ids
    }

    /// Everything of the earlier link is gone at the worker. Claims are made anew in the order in
    /// which they were asked for, as their callers expect to be served in it. What has come from
    /// another link since was never asked for on that one, and stays as it is.
    fn start_over(&mut self, shared: &mut Shared) {
        let slots = 0..shared.claims.slots();
        let mut slots: Vec<u32> =
            slots.filter(|&slot| shared.claims.is_of(slot, self.id)).collect();
        slots.sort_by_key(|&slot| shared.claims[slot].id);
        let process = self.process();
        for slot in slots {
            let ClaimRecord { state, token, id, ref way, ref tenure, .. } = shared.claims[slot];
            #[cfg(feature = "testing")]
            if shared.mutant == Some(super::ClientMutant::FreshDropsMovedIn)
                && shared.claims[slot].is_held()
            {
                self.lose(shared, slot, Loss::SessionEnded);
                continue;
            }
            if way.moved_in || shared.claims[slot].is_held() && !self.is_own(state, tenure) {
                continue;
            }
            match state {
                State::Free => {}
                State::Held { .. } => self.lose(shared, slot, Loss::SessionEnded),
                State::Acquiring => {
                    self.pending.remove(id);
                    let new = shared.ids.next();
                    let claim = &mut shared.claims[slot];
                    if claim.sent.is_some() {
                        claim.way.formers.push(Former { id, process });
                    }
                    (claim.id, claim.sent) = (new, None);
                    self.pending.insert(new, Pending::Claim(slot));
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
    }
}
