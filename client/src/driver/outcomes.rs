//! What a session tells its task, and who is told of it.

use super::Driver;
use crate::cause::Trouble;
use crate::error::Denial;
use crate::fate::Over;
use crate::hold::{HoldState, Lease};
use crate::session::{ClaimRef, LinkId, Loss, NotGranted, Outcome};
use lockring_proto::{Refusal, Reply, Shown, Time};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::oneshot;

/// A claim that was granted.
#[derive(Clone, Debug)]
pub(crate) struct Grant {
    pub(crate) claim: ClaimRef,
    pub(crate) hold: Arc<HoldState>,
}

pub(crate) type Granted = Result<Grant, Denial>;

/// How a release ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Released {
    Yes,
    NotHeld {
        maybe_released: bool,
    },
    /// No answer; the node may take the hold for held so long.
    Unconfirmed {
        held_for: Duration,
    },
    Refused(Refusal),
}

/// What came of a query.
pub(crate) enum Answer {
    Reply(Reply),
    /// No worker takes the key for its own, or there is no such worker.
    Moved,
    /// None came; with what prevented contact.
    None(Option<Trouble>),
}

/// Who waits for an outcome.
pub(super) enum Caller {
    Acquire(oneshot::Sender<Granted>, ClaimRef),
    Release(oneshot::Sender<Released>),
    Query(oneshot::Sender<Answer>),
}

impl Driver {
    /// Hands out what happened.
    pub(super) fn deliver(&mut self, now: Time) {
        // Whoever is granted something has a lease.
        self.add_lines();
        // The buffers change places, so that neither is ever allocated anew.
        let mut outcomes = std::mem::take(&mut self.outcomes);
        while !self.session.outcomes().is_empty() {
            std::mem::swap(self.session.outcomes(), &mut outcomes);
            for outcome in outcomes.drain(..) {
                self.deliver_one(now, outcome);
            }
        }
        self.outcomes = outcomes;
    }

    fn deliver_one(&mut self, now: Time, outcome: Outcome) {
        match outcome {
            Outcome::Granted { token, claim, link, fence, until } => {
                let lease = match until {
                    Some(until) => self.lease_apart(link, until),
                    None => self.lease_of(link),
                };
                self.granted(now, token, claim, HoldState::new(fence, lease));
            }
            Outcome::NotGranted { token, link, reason } => self.not_granted(token, link, reason),
            Outcome::Released { token } => self.released(token, Released::Yes),
            Outcome::NotHeld { token, maybe_released } => {
                self.released(token, Released::NotHeld { maybe_released });
            }
            Outcome::Unconfirmed { token, held_for } => {
                self.released(token, Released::Unconfirmed { held_for });
            }
            Outcome::NotEnded { token, refusal } => {
                self.released(token, Released::Refused(refusal));
            }
            Outcome::Lost { claim, reason, .. } => self.lost(claim, reason),
            Outcome::Jeopardy { until, .. } => {
                let left = until.since(now);
                tracing::warn!(?left, "no contact: locks are valid for so long only");
            }
            Outcome::Follows { claim, link, until } => self.follows(claim, link, until),
            Outcome::Settled { claim, link } => self.settled(claim, link),
            Outcome::LinkOver { link } => self.link_over(link),
            Outcome::Answer { token, reply } => self.answered(token, Answer::Reply(reply)),
            Outcome::Moved { token } => self.answered(token, Answer::Moved),
            Outcome::NoAnswer { token, link } => {
                let trouble = self.lines[link.index()].trouble.clone();
                self.answered(token, Answer::None(trouble));
            }
            Outcome::Ring(ring) => self.pool.learn(ring),
            Outcome::BadRing(error) => tracing::warn!(%error, "ring ignored"),
            Outcome::Up { link, .. } => self.up(link),
            Outcome::Silent { link } => self.silent(link),
            Outcome::TurnedAway { link, refusal } => {
                let why = Shown(&refusal.message);
                tracing::debug!(%why, "refused for now");
                let line = &mut self.lines[link.index()];
                (line.wire, line.trouble) = (None, Some(Trouble::passing(why.to_string())));
            }
            Outcome::Ended { loss, refusal } => self.session_ends(loss, refusal),
            Outcome::Draining | Outcome::Queued { .. } | Outcome::Cancelled { .. } => {}
        }
    }

    fn up(&mut self, link: LinkId) {
        self.lines[link.index()].trouble = None;
        if let Some(round_trip) = self.session.slow_round_trip(link) {
            let ttl = self.session.ttl(link);
            tracing::warn!(
                ?round_trip,
                ?ttl,
                "the path to the node is too slow to keep a lease of this TTL: use a TTL of at \
                 least three round trips"
            );
        }
    }

    fn silent(&mut self, link: LinkId) {
        let line = &mut self.lines[link.index()];
        if let Some(wire) = line.wire.take() {
            let silent = "the node does not answer on a connection that stands";
            line.trouble = Some(Trouble::passing(silent));
            wire.close();
        }
    }

    fn granted(&mut self, now: Time, token: u64, claim: ClaimRef, hold: Arc<HoldState>) {
        let slot = claim.slot();
        if slot >= self.holds.len() {
            self.holds.resize(slot + 1, None);
        }
        self.holds[slot] = Some(Arc::clone(&hold));
        let taken = match self.callers.remove(&token) {
            Some(Caller::Acquire(answer, _)) => answer.send(Ok(Grant { claim, hold })).is_ok(),
            _ => false,
        };
        if !taken {
            // The caller has gone meanwhile.
            self.let_go(claim);
            self.session.release_quietly(now, claim);
        }
    }

    /// The lease of a link, for whoever is held under it from now on.
    fn lease_of(&mut self, link: LinkId) -> Arc<Lease> {
        let valid_until = self.session.valid_until(link);
        let line = &mut self.lines[link.index()];
        if line.lease.loss().is_some() {
            // Holds from now on are under another lease than those that are lost.
            let ttl = line.lease.ttl();
            line.lease = Lease::new(self.clock.clone(), valid_until);
            line.lease.has_ttl(ttl);
            self.fate.begins(link, &line.lease);
        }
        // The caller may look at it before this turn ends.
        line.lease.is_valid_until(valid_until);
        Arc::clone(&line.lease)
    }

    /// What a guard knows of its hold.
    fn hold(&self, claim: ClaimRef) -> Option<Arc<HoldState>> {
        self.holds.get(claim.slot())?.clone()
    }

    /// A hold has gone to another link, and is believed by itself.
    fn follows(&mut self, claim: ClaimRef, link: LinkId, until: Time) {
        if let Some(hold) = self.hold(claim) {
            hold.follows(&self.lease_apart(link, until));
        }
    }

    /// The lease of what is believed by itself on a link.
    fn lease_apart(&self, link: LinkId, until: Time) -> Arc<Lease> {
        self.fate.apart(until, || {
            let lease = Lease::new(self.clock.clone(), until);
            lease.has_ttl(self.lines[link.index()].lease.ttl());
            lease
        })
    }

    /// A hold is under the lease of its link.
    fn settled(&mut self, claim: ClaimRef, link: LinkId) {
        let Some(hold) = self.hold(claim) else { return };
        hold.follows(&self.lease_of(link));
    }

    /// The worker of a link is no more.
    fn link_over(&mut self, link: LinkId) {
        let line = &mut self.lines[link.index()];
        if let Some(wire) = line.wire.take() {
            wire.close();
        }
        (line.connecting, line.trouble) = (None, None);
        self.session.forget(link);
    }

    /// Forgets what a guard knows of its hold.
    pub(super) fn let_go(&mut self, claim: ClaimRef) -> Option<Arc<HoldState>> {
        self.holds.get_mut(claim.slot())?.take()
    }

    fn not_granted(&mut self, token: u64, link: LinkId, reason: NotGranted) {
        let Some(Caller::Acquire(answer, _)) = self.callers.remove(&token) else { return };
        let trouble = match reason {
            NotGranted::Ended(_) => None,
            _ => self.lines[link.index()].trouble.clone(),
        };
        let _caller_may_be_gone = answer.send(Err(Denial { reason, trouble }));
    }

    fn released(&mut self, token: u64, released: Released) {
        if let Some(Caller::Release(answer)) = self.callers.remove(&token) {
            let _caller_may_be_gone = answer.send(released);
        }
    }

    fn answered(&mut self, token: u64, answer: Answer) {
        if let Some(Caller::Query(caller)) = self.callers.remove(&token) {
            drop(caller.send(answer));
        }
    }

    fn lost(&mut self, claim: ClaimRef, reason: Loss) {
        if reason != Loss::HandedOver {
            tracing::warn!(%reason, "a lock was lost");
        }
        if let Some(hold) = self.let_go(claim) {
            if reason == Loss::Lapsed {
                // All at once, before the lease of later holds is told.
                hold.end_lease(reason);
            }
            hold.lose(reason);
        }
    }

    /// The session is over, whoever said so: everybody is told after this.
    fn session_ends(&mut self, loss: Loss, refusal: Option<Refusal>) {
        if let Some(refusal) = &refusal {
            tracing::error!(why = %Shown(&refusal.message), "the node refuses this session");
        }
        self.over = true;
        self.fate.ends(Over { loss, refusal });
        self.fate.end_leases(loss);
    }
}
