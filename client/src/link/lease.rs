//! The lease as the believer counts it, and what happens by itself.

use super::pending::Pending;
use super::query::{Asked, Query};
use super::{Link, Loss, NotGranted, Outcome, Phase, Shared};
use crate::claims::{ClaimRecord, LinkId, State};
use lockring_proto::{Refusal, Reply, Request, Time, codec, limits};
use std::time::Duration;

/// How long a hello may stay unanswered, as a longer TTL is made durable first.
const GREETING_MAX: Duration = Duration::from_secs(10);

/// How a session ends, and what whoever still waits for an answer is told then.
pub(crate) struct Ending {
    pub(crate) loss: Loss,
    /// The node refuses the session: callers hear the refusal itself.
    pub(crate) refusal: Option<Refusal>,
}

impl Ending {
    fn to_claims(&self) -> NotGranted {
        match &self.refusal {
            Some(refusal) => NotGranted::Refused(refusal.clone()),
            None => NotGranted::Ended(self.loss),
        }
    }

    fn to_query(&self, query: &Asked, link: LinkId) -> Outcome {
        let token = query.token;
        match &self.refusal {
            // An order by force may have been carried out all the same.
            Some(refusal) if !matches!(query.query, Query::Force(_)) => {
                let refusal = Box::new(refusal.clone());
                Outcome::Answer { token, reply: Reply::Refused { id: 0, refusal } }
            }
            _ => Outcome::NoAnswer { token, link },
        }
    }
}

impl Link {
    /// When the next renewal is due: a third of the TTL after the last one, and as soon as
    /// something has come here. Other requests keep the lease alive too, but only a renewal has
    /// both sides compared.
    fn renewal_due(&self) -> Time {
        let regular = self.times.renewed.after(self.times.ttl / 3);
        self.times.settle_at.map_or(regular, |at| regular.min(at))
    }

    /// When [`Link::tick`] is due at the latest.
    pub(crate) fn next_deadline(&self) -> Option<Time> {
        let renewal = (self.is_up() && self.times.renewing.is_none()).then(|| self.renewal_due());
        let lapse = self.lapses_at().into_iter().chain(self.jeopardy_at()).min();
        let unanswered = self.answer_by.filter(|_| !self.is_up());
        let due =
            [renewal, lapse, unanswered, self.put_off_due(), self.looks_at(), self.silent_at()];
        due.into_iter().flatten().min()
    }

    /// Does what is due by itself, but for waits that are over and what lapses: renews, gives up.
    pub(crate) fn tick(&mut self, shared: &mut Shared, now: Time) {
        self.serve_put_off(shared, now);
        if !self.is_up() && self.answer_by.is_some_and(|at| now >= at) {
            self.fail_unanswered(shared, now);
        }
        if self.is_up() && self.times.renewing.is_none() && now >= self.renewal_due() {
            self.send_renewal(shared, now);
        }
        self.look(shared, now);
        self.tell_jeopardy(shared, now);
    }

    /// The wait of a claim is over, and no answer has come.
    pub(crate) fn time_out(&mut self, shared: &mut Shared, now: Time, slot: u32) {
        let reason = self.why_put_off(shared.claims[slot].id);
        self.give_up(shared, now, slot, reason.unwrap_or(NotGranted::TimedOut(None)));
    }

    /// A connection on which a hello or a renewal stays unanswered, and nothing else comes, for a
    /// third of the TTL is not worth waiting for: a new one may still save the lease. On a slow
    /// path an answer takes its time: twice the round trip seen is waited for.
    pub(crate) fn is_silent(&self, now: Time) -> bool {
        self.silent_at().is_some_and(|at| now >= at)
    }

    fn silent_at(&self) -> Option<Time> {
        match self.phase {
            Phase::Down => None,
            Phase::Greeting => Some(self.times.greeted.after(GREETING_MAX)),
            Phase::Up => {
                let sent = self.times.renewing?;
                let patience =
                    (self.times.ttl / 3).max(Duration::from_secs(1)).max(self.times.round_trip * 2);
                Some(sent.max(self.times.heard).after(patience))
            }
        }
    }

    /// How long an answer took of late.
    pub(crate) fn round_trip(&self) -> Duration {
        self.times.round_trip
    }

    /// Whether the path seen is too slow to keep a lease of this TTL: one renewal must be answered
    /// before the lease of the one before is over.
    pub(crate) fn is_too_slow(&self) -> bool {
        self.times.round_trip * 2 >= self.times.believed
    }

    /// An answer to what was sent at `sent` has come. A slow answer is remembered for a while.
    pub(super) fn note_round_trip(&mut self, now: Time, sent: Time) {
        self.times.round_trip =
            now.since(sent).max(self.times.round_trip - self.times.round_trip / 8);
    }

    /// Until when the caller of an unanswered claim waits for contact, while there is none; `None`
    /// without end, as its wait has an end of its own, or nobody waits.
    pub(super) fn patience_of(&self, shared: &Shared, claim: &ClaimRecord) -> Option<Time> {
        let limit = claim.asked.max(self.times.heard).after(shared.config.unreachable_after);
        match claim.state {
            _ if claim.is_asking() => Some(limit),
            // When the lease is over on this clock the hold is not this caller's any more.
            State::Releasing { told: true, .. } => {
                let believed = self.believed(&claim.tenure);
                Some(limit.min(believed.max(claim.asked)))
            }
            _ => None,
        }
    }

    /// A claim is unanswered while there is no contact.
    pub(super) fn expect_answer(&mut self, shared: &mut Shared, slot: u32) {
        if let Some(at) = self.patience_of(shared, &shared.claims[slot]) {
            self.expect_answer_at(at);
        }
    }

    pub(super) fn expect_answer_at(&mut self, at: Time) {
        self.answer_by = Some(self.answer_by.map_or(at, |earlier| earlier.min(at)));
    }

    /// Contact is gone: from now on unanswered callers wait for it to return, each for its time.
    pub(super) fn expect_answers(&mut self, shared: &mut Shared) {
        let limit = shared.config.unreachable_after;
        let patience = self.pending.values().filter_map(|pending| match pending {
            Pending::Claim(slot) | Pending::Waiting(slot) => {
                self.patience_of(shared, &shared.claims[*slot])
            }
            Pending::Query(query) => Some(query.asked.max(self.times.heard).after(limit)),
            _ => None,
        });
        self.answer_by = patience.min();
    }

    /// Nobody answers: callers whose patience is over get to know, and what they asked for is
    /// undone when contact returns.
    fn fail_unanswered(&mut self, shared: &mut Shared, now: Time) {
        // What is held waits for nothing: a session may hold a great many.
        for id in self.pending.ids(|_, pending| !matches!(pending, Pending::Reclaim { .. })) {
            let Some(slot) = self.pending.claim(id) else { continue };
            let claim = &shared.claims[slot];
            if self.patience_of(shared, claim).is_none_or(|at| now < at) {
                continue;
            }
            if claim.is_asking() {
                self.give_up(shared, now, slot, NotGranted::Unreachable);
            } else {
                self.unconfirmed(shared, now, slot);
            }
        }
        let limit = shared.config.unreachable_after;
        let heard = self.times.heard;
        let over = self.pending.take(|_, pending| match pending {
            Pending::Query(query) => now >= heard.max(query.asked).after(limit),
            _ => false,
        });
        for (id, pending) in over {
            self.forget(id);
            if let Pending::Query(query) = pending {
                let (token, link) = (query.token, self.id);
                shared.outcomes.push(Outcome::NoAnswer { token, link });
            }
        }
        self.expect_answers(shared);
    }

    /// Nobody has confirmed a release for as long as its caller waits for that. It goes on.
    pub(super) fn unconfirmed(&mut self, shared: &mut Shared, now: Time, slot: u32) {
        let (token, held_for) = (shared.claims[slot].token, self.honoured_for(now));
        if let State::Releasing { told: told @ true, .. } = &mut shared.claims[slot].state {
            *told = false;
            shared.outcomes.push(Outcome::Unconfirmed { token, held_for });
        }
    }

    /// For how long the worker may still take what this link held for held: it counts from the
    /// receipt of the last thing sent, which was no later than the end of the last connection, and
    /// for what has come with a cell, for longer, from when the cell came.
    pub(crate) fn honoured_for(&self, now: Time) -> Duration {
        let last = if self.is_up() { now } else { self.times.fell };
        let own = last.after(limits::honoured(self.times.ttl));
        let inherited = self.times.gained.map(|at| at.after(limits::inherited(self.times.ttl)));
        inherited.map_or(own, |inherited| own.max(inherited)).since(now)
    }

    /// Asks for the ring, unless an answer to that is owed.
    pub(crate) fn ask_for_ring(&mut self, shared: &mut Shared, now: Time) {
        if self.phase == Phase::Up && !shared.fetch.is_asked(self.id) {
            let (id, known) = (shared.ids.next(), shared.version);
            self.pending.insert(id, Pending::GetRing { sent: now });
            codec::encode_frame(&Request::GetRing { id, known }, &mut self.out);
            shared.fetch.begins(now, (self.id, id), known);
            self.watches(shared, now);
        }
    }

    /// The session is over: whatever was held is lost, and nothing is sent or answered any more.
    pub(crate) fn end(&mut self, shared: &mut Shared, now: Time, end: &Ending) {
        let (held_for, link) = (self.honoured_for(now), self.id);
        self.down(shared, now);
        for slot in 0..shared.claims.slots() {
            if !shared.claims.is_of(slot, self.id) {
                continue;
            }
            let named = shared.claims.name(slot);
            let ClaimRecord { token, state, .. } = shared.claims[slot];
            let outcome = match state {
                State::Free => continue,
                State::Acquiring | State::Confirming { .. } => {
                    Some(Outcome::NotGranted { token, link, reason: end.to_claims() })
                }
                State::Held { .. } => {
                    self.leave(shared, slot);
                    Some(Outcome::Lost { token, claim: named, link, reason: end.loss })
                }
                State::Releasing { told: true, .. } => {
                    Some(Outcome::Unconfirmed { token, held_for })
                }
                State::Cancelling { told: true, .. } => Some(Outcome::Cancelled { token }),
                State::Releasing { .. } | State::Cancelling { .. } => None,
            };
            shared.outcomes.extend(outcome);
            self.drop_claim(shared, slot);
        }
        for (_, pending) in self.pending.take(|_, _| true) {
            if let Pending::Query(query) = pending {
                shared.outcomes.push(end.to_query(&query, link));
            }
        }
    }

    /// Whether something was asked of the worker that it has not answered: a claim, its end, a
    /// query.
    pub(crate) fn is_owed_answers(&self) -> bool {
        self.pending.values().any(|pending| {
            matches!(pending, Pending::Claim(_) | Pending::Waiting(_) | Pending::Query(_))
        })
    }

    /// Gives up every claim that waits, as nobody wants it any more. Their callers are answered.
    pub(crate) fn give_up_waiting(&mut self, shared: &mut Shared, now: Time, loss: Loss) {
        for slot in 0..shared.claims.slots() {
            if !shared.claims.is_of(slot, self.id) {
                continue;
            }
            if let State::Acquiring | State::Confirming { .. } = shared.claims[slot].state {
                self.give_up(shared, now, slot, NotGranted::Ended(loss));
            }
        }
    }
}
