//! What a link tells its task, and who is told of it.

use super::{Answer, Caller, Denial, Driver, Grant, Released, Uplink};
use crate::cause::Trouble;
use crate::hold::{HoldState, Lease};
use crate::link::{ClaimRef, Loss, NotGranted, Outcome};
use lockring_proto::{Fence, Refusal, RefusalKind, Reply, RingChunk, Shown, Time};
use std::sync::Arc;
use std::time::Duration;

impl<U: Uplink> Driver<U> {
    /// Hands out what happened.
    pub(super) fn deliver(&mut self, now: Time) {
        // The buffers change places, so that neither is ever allocated anew.
        let mut outcomes = std::mem::take(&mut self.outcomes);
        while !self.link.outcomes().is_empty() {
            std::mem::swap(self.link.outcomes(), &mut outcomes);
            for outcome in outcomes.drain(..) {
                self.deliver_one(now, outcome);
            }
        }
        self.outcomes = outcomes;
    }

    fn deliver_one(&mut self, now: Time, outcome: Outcome) {
        match outcome {
            Outcome::Granted { token, claim, fence } => self.granted(now, token, claim, fence),
            Outcome::NotGranted { token, reason } => self.not_granted(token, reason),
            Outcome::Released { token } => self.released(token, Released::Yes),
            Outcome::NotHeld { token, maybe_released } => {
                self.released(token, Released::NotHeld { maybe_released });
            }
            Outcome::Unconfirmed { token, held_for } => {
                self.released(token, Released::Unconfirmed { held_for });
            }
            Outcome::Lost { claim, reason, .. } => self.lost(claim, reason),
            Outcome::Answer { token, reply } => self.answered(token, Answer::Reply(reply)),
            Outcome::Moved { token } => self.answered(token, Answer::Moved),
            Outcome::NoAnswer { token } => {
                let trouble = self.trouble.clone();
                self.answered(token, Answer::None(trouble));
            }
            Outcome::Ring(chunk) => self.ring_part(now, *chunk),
            Outcome::Up(_) => self.up(),
            Outcome::Rejected(refusal) => self.rejected(now, refusal),
            Outcome::Draining | Outcome::Queued { .. } | Outcome::Cancelled { .. } => {}
        }
    }

    fn up(&mut self) {
        (self.backoff, self.failures) = (Duration::ZERO, 0);
        (self.trouble, self.turned_away) = (None, None);
        if self.link.is_too_slow() {
            let (round_trip, ttl) = (self.link.round_trip(), self.link.ttl());
            tracing::warn!(
                ?round_trip,
                ?ttl,
                "the path to the node is too slow to keep a lease of this TTL: use a TTL of at \
                 least three round trips"
            );
        }
    }

    fn granted(&mut self, now: Time, token: u64, claim: ClaimRef, fence: Fence) {
        if self.lease.loss().is_some() {
            self.begin_lease();
        }
        let hold = HoldState::new(fence, Arc::clone(&self.lease));
        let slot = claim.slot();
        if slot >= self.holds.len() {
            self.holds.resize(slot + 1, None);
        }
        self.holds[slot] = Some(Arc::clone(&hold));
        // The caller may look at it before this turn ends.
        self.lease.is_valid_until(self.link.valid_until());
        let taken = match self.callers.remove(&token) {
            Some(Caller::Acquire(answer, _)) => answer.send(Ok(Grant { claim, hold })).is_ok(),
            _ => false,
        };
        if !taken {
            // The caller has gone meanwhile.
            self.let_go(claim);
            self.link.release_quietly(now, claim);
        }
    }

    /// Holds from now on are under another lease than those that are lost.
    fn begin_lease(&mut self) {
        self.lease = Lease::new(self.clock.clone(), self.link.valid_until());
        self.shared.begin(Arc::clone(&self.lease));
    }

    /// Forgets what a guard knows of its hold.
    pub(super) fn let_go(&mut self, claim: ClaimRef) -> Option<Arc<HoldState>> {
        self.holds.get_mut(claim.slot())?.take()
    }

    fn not_granted(&mut self, token: u64, reason: NotGranted) {
        let Some(Caller::Acquire(answer, _)) = self.callers.remove(&token) else { return };
        let reason = match (&self.turned_away, reason) {
            // Who was turned away hears why, not only that nobody answered.
            (Some(refusal), NotGranted::Unreachable | NotGranted::TimedOut(None)) => {
                NotGranted::Refused(refusal.clone())
            }
            (_, reason) => reason,
        };
        let _caller_may_be_gone =
            answer.send(Err(Denial { reason, trouble: self.trouble.clone() }));
    }

    fn released(&mut self, token: u64, released: Released) {
        if let Some(Caller::Release(answer)) = self.callers.remove(&token) {
            let _caller_may_be_gone = answer.send(released);
        }
    }

    fn answered(&mut self, token: u64, answer: Answer) {
        match self.callers.remove(&token) {
            Some(Caller::Query(caller, _)) => drop(caller.send(answer)),
            Some(Caller::Goodbye) => self.said_goodbye(),
            _ => {}
        }
    }

    fn lost(&mut self, claim: ClaimRef, reason: Loss) {
        if reason != Loss::HandedOver {
            tracing::warn!(%reason, "a lock was lost");
        }
        if reason == Loss::Lapsed {
            // All at once, before the lease of later holds is told.
            self.lease.end(reason);
        }
        if let Some(hold) = self.let_go(claim) {
            hold.lose(reason);
        }
    }

    fn ring_part(&mut self, now: Time, part: RingChunk) {
        match self.ring.take(part) {
            Ok(None) => return,
            Ok(Some(ring)) => {
                self.uplink.learnt(ring);
                if let Some((version, serves)) = self.uplink.routes() {
                    self.link.ring_is(now, version, serves);
                }
            }
            Err(error) => tracing::warn!(%error, "ring ignored"),
        }
        self.link.ring_is_newest();
    }

    /// The worker refused the session. Some refusals pass; with others every claim fails at once.
    fn rejected(&mut self, now: Time, refusal: Refusal) {
        self.wire = None;
        self.link.down(now);
        let passes = matches!(
            refusal.kind,
            RefusalKind::Draining | RefusalKind::Quota | RefusalKind::Unavailable
        );
        if passes {
            let why = Shown(&refusal.message);
            tracing::debug!(%why, "refused for now");
            self.trouble = Some(Trouble::passing(why.to_string()));
            self.turned_away = Some(refusal);
            return;
        }
        tracing::error!(why = %Shown(&refusal.message), "the node refuses this session");
        let loss = match refusal.kind {
            RefusalKind::Superseded => Loss::Superseded,
            _ => Loss::Refused,
        };
        self.session_ends(now, loss, Some(&refusal));
    }

    /// The session is over, by the node's word or another's: everybody is told, here and at the
    /// session's other links.
    pub(super) fn session_ends(&mut self, now: Time, loss: Loss, refusal: Option<&Refusal>) {
        self.over = true;
        // The session first: whoever sees a guard lost finds the session over.
        self.uplink.session_is_over(loss, refusal.cloned());
        self.lease.end(loss);
        if let Some(refusal) = refusal {
            self.tell_refused(refusal);
        }
        self.link.end(now, loss);
    }

    /// Callers hear the refusal itself.
    fn tell_refused(&mut self, refusal: &Refusal) {
        let mut tokens: Vec<u64> = self.callers.keys().copied().collect();
        tokens.sort_unstable();
        for token in tokens {
            match self.callers.remove(&token) {
                Some(Caller::Acquire(answer, _)) => {
                    let reason = NotGranted::Refused(refusal.clone());
                    let _gone = answer.send(Err(Denial { reason, trouble: None }));
                }
                Some(Caller::Release(answer)) => {
                    let held_for = self.link.honoured_for(self.clock.now());
                    let _gone = answer.send(Released::Unconfirmed { held_for });
                }
                Some(Caller::Query(answer, unsure)) => {
                    let refused = Reply::Refused { id: 0, refusal: Box::new(refusal.clone()) };
                    let told = if unsure { Answer::None(None) } else { Answer::Reply(refused) };
                    let _gone = answer.send(told);
                }
                Some(Caller::Goodbye) => self.said_goodbye(),
                None => {}
            }
        }
    }
}
