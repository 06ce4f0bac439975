//! The lease as the believer counts it, and what happens by itself.

use super::claims::{Pending, State};
use super::{Link, Loss, NotGranted, Outcome, Phase};
use lockring_proto::{Request, Time, codec, limits};
use std::time::Duration;

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
        let unreachable = (!self.is_up() && !self.pending.is_empty())
            .then(|| self.heard.after(self.config.unreachable_after));
        [renewal, lapse, wait, unreachable, self.silent_at()].into_iter().flatten().min()
    }

    /// Does what is due by itself: renews, times out, lapses, gives up.
    pub fn tick(&mut self, now: Time) {
        self.notice_lapse(now);
        while let Some(&(at, slot)) = self.deadlines.first() {
            if at > now {
                break;
            }
            self.give_up(now, slot, NotGranted::TimedOut(None));
        }
        if !self.is_up() && now >= self.heard.after(self.config.unreachable_after) {
            self.fail_all(now);
        }
        if self.is_up() && self.renewing.is_none() && now >= self.renewal_due() {
            self.send_renewal(now);
        }
    }

    /// A connection on which a renewal stays unanswered, and nothing else comes, for a third of the
    /// TTL is not worth waiting for: a new one may still save the lease.
    pub fn is_silent(&self, now: Time) -> bool {
        self.silent_at().is_some_and(|at| now >= at)
    }

    fn silent_at(&self) -> Option<Time> {
        let sent = self.renewing.filter(|_| self.is_up())?;
        Some(sent.max(self.heard).after((self.ttl / 3).max(Duration::from_secs(1))))
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

    /// Nobody answers: callers get to know, and what they asked for is undone when contact returns.
    fn fail_all(&mut self, now: Time) {
        for slot in 0..self.claims.len() as u32 {
            if self.claims[slot as usize].state == State::Acquiring {
                self.give_up(now, slot, NotGranted::Unreachable);
            }
        }
        let mut unanswered: Vec<u64> = self
            .pending
            .iter()
            .filter(|(_, pending)| {
                matches!(pending, Pending::Query { asked, .. }
                    if now >= asked.after(self.config.unreachable_after))
            })
            .map(|(&id, _)| id)
            .collect();
        unanswered.sort_unstable();
        for id in unanswered {
            if let Some(Pending::Query { token, .. }) = self.pending.remove(&id) {
                self.outcomes.push(Outcome::NoAnswer { token });
            }
        }
        // Callers that come later get their own full time.
        self.heard = now;
    }

    /// Asks for the ring; [`super::Outcome::Ring`] follows.
    pub fn ask_for_ring(&mut self, now: Time) {
        if self.phase == Phase::Up {
            let id = self.config.ids.next();
            self.pending.insert(id, Pending::GetRing { sent: now });
            codec::encode_frame(&Request::GetRing { id }, &mut self.out);
        }
    }
}
