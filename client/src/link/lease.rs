//! The lease as the believer counts it, and what happens by itself.

use super::claims::{Claim, Pending, State};
use super::{Link, Loss, NotGranted, Outcome, Phase};
use lockring_proto::{Refusal, Request, Time, codec, limits};
use std::time::Duration;

/// A hello may stay unanswered for so long, as a longer TTL is made durable first.
const GREETING_MAX: Duration = Duration::from_secs(10);

/// So soon a claim is sent again that was refused for now only.
const RETRY_AFTER: Duration = Duration::from_millis(200);

/// A claim that its worker cannot serve at present, though it waits.
#[derive(Clone, Debug)]
pub(super) struct PutOff {
    refusal: Refusal,
    /// Sent again then; a new connection sends it in any case.
    again: Time,
    /// The caller hears the refusal then.
    until: Time,
}

impl Link {
    /// A request first sent at `sent` is answered: the lease counts from there.
    #[inline]
    pub(super) fn credit(&mut self, sent: Option<Time>) {
        if let Some(sent) = sent
            && sent > self.credited
        {
            self.credited = sent;
            self.valid_until = self.valid_until.max(sent.after(limits::believed(self.ttl)));
        }
    }

    /// When the next renewal is due: a third of the TTL after the last one. Other requests keep the
    /// lease alive too, but only a renewal has both sides compared.
    fn renewal_due(&self) -> Time {
        self.renewed.after(self.ttl / 3)
    }

    fn holds_any(&self) -> bool {
        self.digest.count > 0
    }

    /// When [`Link::tick`] is due at the latest.
    pub fn next_deadline(&self) -> Option<Time> {
        let renewal = (self.is_up() && self.renewing.is_none()).then(|| self.renewal_due());
        let lapse = self.holds_any().then_some(self.valid_until);
        let wait = self.deadlines.first().map(|&(at, _)| at);
        let unanswered = self.answer_by.filter(|_| !self.is_up());
        let put_off = self.put_off.values().map(|put_off| put_off.again.min(put_off.until)).min();
        [renewal, lapse, wait, unanswered, put_off, self.silent_at()].into_iter().flatten().min()
    }

    /// Does what is due by itself: renews, times out, lapses, gives up.
    pub fn tick(&mut self, now: Time) {
        self.notice_lapse(now);
        while let Some(&(at, slot)) = self.deadlines.first() {
            if at > now {
                break;
            }
            self.time_out(now, slot);
        }
        self.serve_put_off(now);
        if !self.is_up() && self.answer_by.is_some_and(|at| now >= at) {
            self.fail_unanswered(now);
        }
        if self.is_up() && self.renewing.is_none() && now >= self.renewal_due() {
            self.send_renewal(now);
        }
    }

    /// The wait of a claim is over, and no answer has come.
    fn time_out(&mut self, now: Time, slot: u32) {
        let reason = match self.put_off.remove(&slot) {
            Some(put_off) => NotGranted::Refused(put_off.refusal),
            None => NotGranted::TimedOut(None),
        };
        self.give_up(now, slot, reason);
    }

    /// The worker refused a claim for a reason that passes: it goes on waiting.
    pub(super) fn put_off(&mut self, now: Time, slot: u32, refusal: Refusal) {
        let claim = &mut self.claims[slot as usize];
        claim.sent = None;
        let until = match claim.deadline {
            Time::NEVER => claim.asked.after(self.config.unreachable_after),
            _ => Time::NEVER,
        };
        self.put_off.insert(slot, PutOff { refusal, again: now.after(RETRY_AFTER), until });
    }

    fn serve_put_off(&mut self, now: Time) {
        let due = |put_off: &PutOff| now >= put_off.again.min(put_off.until);
        let slots: Vec<u32> =
            self.put_off.iter().filter(|(_, one)| due(one)).map(|(&slot, _)| slot).collect();
        for slot in slots {
            let Some(put_off) = self.put_off.get_mut(&slot) else { continue };
            if now >= put_off.until {
                let refusal = put_off.refusal.clone();
                self.put_off.remove(&slot);
                self.give_up(now, slot, NotGranted::Refused(refusal));
            } else {
                // Without a connection the next one sends it.
                put_off.again = now.after(RETRY_AFTER);
                self.send_claim(now, slot);
            }
        }
    }

    /// A connection on which a hello or a renewal stays unanswered, and nothing else comes, for a
    /// third of the TTL is not worth waiting for: a new one may still save the lease. On a slow
    /// path an answer takes its time: twice the round trip seen is waited for.
    pub fn is_silent(&self, now: Time) -> bool {
        self.silent_at().is_some_and(|at| now >= at)
    }

    fn silent_at(&self) -> Option<Time> {
        match self.phase {
            Phase::Down => None,
            Phase::Greeting => Some(self.greeted.after(GREETING_MAX)),
            Phase::Up => {
                let sent = self.renewing?;
                let patience = (self.ttl / 3).max(Duration::from_secs(1)).max(self.round_trip * 2);
                Some(sent.max(self.heard).after(patience))
            }
        }
    }

    /// How long an answer took of late.
    pub fn round_trip(&self) -> Duration {
        self.round_trip
    }

    /// Whether the path seen is too slow to keep a lease of this TTL: one renewal must be answered
    /// before the lease of the one before is over.
    pub fn is_too_slow(&self) -> bool {
        self.round_trip * 2 >= limits::believed(self.ttl)
    }

    /// An answer to what was sent at `sent` has come. A slow answer is remembered for a while.
    pub(super) fn note_round_trip(&mut self, now: Time, sent: Time) {
        self.round_trip = now.since(sent).max(self.round_trip - self.round_trip / 8);
    }

    /// No contact for a whole lease: every hold is lost, and given back when contact returns. This
    /// is looked at before anything that is heard: no late answer may revive what has lapsed.
    pub(super) fn notice_lapse(&mut self, now: Time) {
        if !self.holds_any() || now < self.valid_until {
            return;
        }
        for slot in 0..self.claims.len() as u32 {
            let claim = &self.claims[slot as usize];
            if let State::Held { .. } = claim.state {
                let named = super::ClaimRef { slot, generation: claim.generation };
                let token = claim.token;
                self.outcomes.push(Outcome::Lost { token, claim: named, reason: Loss::Lapsed });
                self.begin_release(now, slot, false);
            }
        }
    }

    /// Until when the caller of an unanswered claim waits for contact, while there is none; `None`
    /// without end, as its wait has an end of its own, or nobody waits.
    fn patience_of(&self, claim: &Claim) -> Option<Time> {
        let limit = claim.asked.max(self.heard).after(self.config.unreachable_after);
        match claim.state {
            _ if claim.is_asking() => Some(limit),
            // When the lease is over on this clock the hold is not this caller's any more.
            State::Releasing { told: true, .. } => {
                Some(limit.min(self.valid_until.max(claim.asked)))
            }
            _ => None,
        }
    }

    /// A claim is unanswered while there is no contact.
    pub(super) fn expect_answer(&mut self, slot: u32) {
        if let Some(at) = self.patience_of(&self.claims[slot as usize]) {
            self.expect_answer_at(at);
        }
    }

    pub(super) fn expect_answer_at(&mut self, at: Time) {
        self.answer_by = Some(self.answer_by.map_or(at, |earlier| earlier.min(at)));
    }

    /// Contact is gone: from now on unanswered callers wait for it to return, each for its time.
    pub(super) fn expect_answers(&mut self) {
        self.answer_by = None;
        for slot in 0..self.claims.len() as u32 {
            self.expect_answer(slot);
        }
        let limit = self.config.unreachable_after;
        let asked = self.pending.values().filter_map(|pending| match pending {
            Pending::Query { asked, .. } => Some(*asked),
            _ => None,
        });
        if let Some(asked) = asked.min() {
            self.expect_answer_at(asked.max(self.heard).after(limit));
        }
    }

    /// Nobody answers: callers whose patience is over get to know, and what they asked for is
    /// undone when contact returns.
    fn fail_unanswered(&mut self, now: Time) {
        for slot in 0..self.claims.len() as u32 {
            let claim = &self.claims[slot as usize];
            if self.patience_of(claim).is_none_or(|at| now < at) {
                continue;
            }
            if claim.is_asking() {
                self.give_up(now, slot, NotGranted::Unreachable);
                continue;
            }
            let (token, held_for) = (claim.token, self.honoured_for(now));
            if let State::Releasing { told, .. } = &mut self.claims[slot as usize].state {
                *told = false;
                self.outcomes.push(Outcome::Unconfirmed { token, held_for });
            }
        }
        let limit = self.config.unreachable_after;
        let heard = self.heard;
        let is_over = |pending: &Pending| match pending {
            Pending::Query { asked, .. } => now >= heard.max(*asked).after(limit),
            _ => false,
        };
        let mut over: Vec<u64> = self
            .pending
            .iter()
            .filter(|(_, pending)| is_over(pending))
            .map(|(&id, _)| id)
            .collect();
        over.sort_unstable();
        for id in over {
            if let Some(Pending::Query { token, .. }) = self.pending.remove(&id) {
                self.outcomes.push(Outcome::NoAnswer { token });
            }
        }
        self.expect_answers();
    }

    /// For how long the worker may still take what this link held for held: it counts from the
    /// receipt of the last thing sent, which was no later than the end of the last connection.
    pub fn honoured_for(&self, now: Time) -> Duration {
        let last = if self.is_up() { now } else { self.fell };
        last.after(limits::honoured(self.ttl)).since(now)
    }

    /// Asks for the ring; [`super::Outcome::Ring`] follows.
    pub fn ask_for_ring(&mut self, now: Time) {
        if self.phase == Phase::Up {
            let id = self.config.ids.next();
            self.pending.insert(id, Pending::GetRing { sent: now });
            codec::encode_frame(&Request::GetRing { id }, &mut self.out);
        }
    }

    /// The session is over: whatever was held is lost, and nothing is sent or answered any more.
    pub fn end(&mut self, now: Time, loss: Loss) {
        let held_for = self.honoured_for(now);
        self.down(now);
        for slot in 0..self.claims.len() as u32 {
            let claim = &self.claims[slot as usize];
            let (token, generation) = (claim.token, claim.generation);
            let outcome = match claim.state {
                State::Free => continue,
                State::Acquiring | State::Confirming { .. } => {
                    Some(Outcome::NotGranted { token, reason: NotGranted::Ended(loss) })
                }
                State::Held { fence } => {
                    self.digest.remove(lockring_proto::HoldId { cell: claim.cell, fence });
                    let claim = super::ClaimRef { slot, generation };
                    Some(Outcome::Lost { token, claim, reason: loss })
                }
                State::Releasing { told: true, .. } => {
                    Some(Outcome::Unconfirmed { token, held_for })
                }
                State::Cancelling { told: true, .. } => Some(Outcome::Cancelled { token }),
                State::Releasing { .. } | State::Cancelling { .. } => None,
            };
            self.outcomes.extend(outcome);
            self.drop_claim(slot);
        }
        let mut queries: Vec<(u64, u64)> = self
            .pending
            .iter()
            .filter_map(|(&id, pending)| match pending {
                Pending::Query { token, .. } => Some((id, *token)),
                _ => None,
            })
            .collect();
        queries.sort_unstable();
        self.pending.clear();
        self.outcomes.extend(queries.into_iter().map(|(_, token)| Outcome::NoAnswer { token }));
    }

    /// Whether something was asked of the worker that it has not answered: a claim, its end, a
    /// query.
    pub fn is_owed_answers(&self) -> bool {
        self.pending
            .values()
            .any(|pending| matches!(pending, Pending::Claim(_) | Pending::Query { .. }))
    }

    /// Gives up every claim that waits, as nobody wants it any more. Their callers are answered.
    pub fn give_up_waiting(&mut self, now: Time, loss: Loss) {
        for slot in 0..self.claims.len() as u32 {
            if let State::Acquiring | State::Confirming { .. } = self.claims[slot as usize].state {
                self.give_up(now, slot, NotGranted::Ended(loss));
            }
        }
    }
}
