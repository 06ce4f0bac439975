//! What the worker says.

use super::claims::{ANSWER_SLACK, Pending, State};
use super::{Link, Loss, NotGranted, Outcome, Phase};
use lockring_proto::codec::{self, FrameError};
use lockring_proto::{
    Fence, HelloReply, HoldId, LostReason, Push, RefusalKind, Reply, Time, Welcome,
};

impl Link {
    /// Takes in what came on the request stream; says how many bytes were whole frames.
    ///
    /// # Errors
    /// When the bytes are not of this wire: the connection is to be closed.
    pub fn receive(&mut self, now: Time, bytes: &[u8]) -> Result<usize, FrameError> {
        self.notice_lapse(now);
        let mut rest = bytes;
        if self.phase == Phase::Greeting {
            let Some((body, after)) = codec::split_frame(rest)? else { return Ok(0) };
            self.greeted(now, codec::decode_frame(body)?);
            rest = after;
        }
        let rest = codec::decode_frames(rest, |reply| self.replied(now, reply))?;
        Ok(bytes.len() - rest.len())
    }

    /// Takes in what came on the push stream; says how many bytes were whole frames.
    ///
    /// # Errors
    /// When the bytes are not of this wire: the connection is to be closed.
    pub fn receive_pushes(&mut self, now: Time, bytes: &[u8]) -> Result<usize, FrameError> {
        self.notice_lapse(now);
        let mut rest = bytes;
        while let Some((body, after)) = codec::split_frame(rest)? {
            self.pushed(now, codec::decode_frame(body)?);
            rest = after;
        }
        Ok(bytes.len() - rest.len())
    }

    fn greeted(&mut self, now: Time, reply: HelloReply) {
        match reply {
            HelloReply::Welcome(welcome) => self.welcomed(now, welcome),
            HelloReply::Refused(refusal) => {
                self.phase = Phase::Down;
                self.outcomes.push(Outcome::Rejected(refusal));
            }
        }
    }

    fn welcomed(&mut self, now: Time, welcome: Welcome) {
        self.phase = Phase::Up;
        self.blind_hellos -= u64::from(self.incarnation == 0);
        self.incarnation = welcome.incarnation;
        self.ttl = std::time::Duration::from_millis(welcome.ttl_ms);
        self.heard = now;
        self.credit(Some(self.greeted));
        if self.version == 0 {
            self.version = welcome.ring_version;
        }
        let (fresh, version) = (welcome.fresh, welcome.ring_version);
        self.outcomes.push(Outcome::Up(welcome));
        self.resume(now, fresh);
        self.learn_version(now, version);
    }

    #[inline]
    fn replied(&mut self, now: Time, reply: Reply) {
        self.heard = now;
        match reply {
            Reply::Granted { id, version, fence } => {
                self.granted(id, fence);
                self.learn_version(now, version);
            }
            Reply::Released { id, version } => {
                self.ended(id, true);
                self.learn_version(now, version);
            }
            Reply::NotHeld { id, version } => {
                self.ended(id, false);
                self.learn_version(now, version);
            }
            other => self.replied_rarely(now, other),
        }
    }

    fn replied_rarely(&mut self, now: Time, reply: Reply) {
        match reply {
            Reply::Queued { id, ahead, .. } => {
                if let Some(&Pending::Claim(slot)) = self.pending.get(&id) {
                    let claim = &self.claims[slot as usize];
                    let (token, sent) = (claim.token, claim.sent);
                    self.credit(sent);
                    self.outcomes.push(Outcome::Queued { token, ahead });
                }
            }
            Reply::Busy { id, reason, .. } => self.not_granted(id, NotGranted::Busy(reason)),
            Reply::TimedOut { id, reason, .. } => {
                self.not_granted(id, NotGranted::TimedOut(Some(reason)));
            }
            Reply::Cancelled { id, .. } => self.ended(id, true),
            Reply::Moved { id, version } => self.moved(now, id, version),
            Reply::Refused { id, ref refusal } => {
                if let Some(Pending::Claim(_)) = self.pending.get(&id) {
                    self.not_granted(id, NotGranted::Refused((**refusal).clone()));
                } else {
                    self.answered(id, reply);
                }
            }
            Reply::Renewed { id, version, digest } => {
                self.renewed(now, id, digest);
                self.learn_version(now, version);
            }
            Reply::Compared { id, lost, .. } => self.compared(id, &lost),
            Reply::Ring { id, chunk } => {
                if let Some(&Pending::GetRing { sent }) = self.pending.get(&id) {
                    self.credit(Some(sent));
                    if chunk.last {
                        self.pending.remove(&id);
                    }
                    self.outcomes.push(Outcome::Ring(chunk));
                }
            }
            Reply::Inspected { id, .. }
            | Reply::Listed { id, .. }
            | Reply::Forced { id, .. }
            | Reply::Goodbye { id } => self.answered(id, reply),
            // Not asked for yet.
            Reply::Confirmed { .. } => {}
            Reply::Granted { .. } | Reply::Released { .. } | Reply::NotHeld { .. } => {
                unreachable!("handled by the caller")
            }
        }
    }

    #[inline]
    fn granted(&mut self, id: u64, fence: Fence) {
        // A grant for a claim that was given up: the cancel on its way ends it there.
        let Some(Pending::Claim(slot)) = self.pending.remove(&id) else {
            return;
        };
        let claim = &mut self.claims[slot as usize];
        let State::Acquiring = claim.state else {
            panic!("request {id} granted while {:?}", claim.state)
        };
        let (token, sent, deadline) = (claim.token, claim.sent, claim.deadline);
        claim.state = State::Held { fence };
        let hold = HoldId { cell: claim.cell, fence };
        let named = super::ClaimRef { slot, generation: claim.generation };
        if deadline != Time::NEVER {
            self.deadlines.remove(&(deadline.after(ANSWER_SLACK), slot));
        }
        self.digest.add(hold);
        self.credit(sent);
        self.outcomes.push(Outcome::Granted { token, claim: named, fence });
        if !self.lost_early.is_empty() && self.lost_early.remove(&hold).is_some() {
            self.lose(slot, Loss::Forced);
        }
    }

    /// A release or a cancel is answered.
    fn ended(&mut self, id: u64, done: bool) {
        let Some(Pending::Claim(slot)) = self.pending.remove(&id) else {
            return;
        };
        let claim = &self.claims[slot as usize];
        let (token, sent, state) = (claim.token, claim.sent, claim.state);
        self.credit(sent);
        self.free(slot);
        match state {
            State::Releasing { told: true, resent, .. } => self.outcomes.push(if done {
                Outcome::Released { token }
            } else {
                Outcome::NotHeld { token, maybe_released: resent }
            }),
            State::Cancelling { told: true, .. } => {
                self.outcomes.push(Outcome::Cancelled { token });
            }
            State::Releasing { told: false, .. } | State::Cancelling { told: false, .. } => {}
            State::Free | State::Acquiring | State::Held { .. } => {
                panic!("request {id} ended while {state:?}")
            }
        }
    }

    fn not_granted(&mut self, id: u64, reason: NotGranted) {
        let Some(&Pending::Claim(slot)) = self.pending.get(&id) else {
            return;
        };
        let claim = &self.claims[slot as usize];
        let (token, sent, state, deadline) = (claim.token, claim.sent, claim.state, claim.deadline);
        if let State::Releasing { .. } | State::Cancelling { .. } = state {
            // A refused end ended nothing; the next compare or the lease does.
            return self.ended(id, false);
        }
        self.pending.remove(&id);
        self.deadlines.remove(&(deadline.after(ANSWER_SLACK), slot));
        self.credit(sent);
        self.free(slot);
        self.outcomes.push(Outcome::NotGranted { token, reason });
    }

    fn answered(&mut self, id: u64, reply: Reply) {
        match self.pending.remove(&id) {
            Some(Pending::Query { token, sent, .. }) => {
                self.credit(Some(sent));
                self.outcomes.push(Outcome::Answer { token, reply });
            }
            Some(other) => {
                // A renewal or compare that was refused: the next one tries again.
                if let Pending::Renew { sent } = other {
                    (self.renewing, self.renewed) = (None, sent);
                }
                self.comparing -= u32::from(matches!(other, Pending::Compare { .. }));
            }
            None => {}
        }
    }

    /// The request was not executed. It waits for the ring that says where to send it, unless that
    /// has come while the request was under way.
    fn moved(&mut self, now: Time, id: u64, version: u64) {
        let routed = match self.pending.get(&id) {
            Some(&Pending::Claim(slot)) => self.claims[slot as usize].routed,
            Some(&Pending::Query { routed, .. }) => routed,
            _ => return,
        };
        if routed < self.version {
            return self.send_again(now, id);
        }
        self.parked.push(id);
        self.ring_wanted = self.ring_wanted.min(self.version);
        self.learn_version(now, version.max(self.version + 1));
    }

    /// Sends a request by a newer ring, if it is still unanswered: an earlier copy of a claim may
    /// have been in line, and its turn has come.
    fn send_again(&mut self, now: Time, id: u64) {
        match self.pending.get(&id) {
            Some(&Pending::Claim(slot)) => self.send_claim(now, slot),
            Some(Pending::Query { .. }) => self.send_query(now, id),
            _ => {}
        }
    }

    /// Asks for the ring when the worker knows a newer one.
    #[inline]
    fn learn_version(&mut self, now: Time, version: u64) {
        if version > self.version && version > self.ring_wanted {
            self.ring_wanted = version;
            self.ask_for_ring(now);
        }
    }

    /// The ring is known at this version, and this link is still the way to its cells: what waited
    /// for it is sent.
    pub fn ring_is(&mut self, now: Time, version: u64) {
        if version <= self.version {
            return;
        }
        self.version = version;
        for id in std::mem::take(&mut self.parked) {
            self.send_again(now, id);
        }
    }

    fn pushed(&mut self, now: Time, push: Push) {
        self.heard = now;
        match push {
            Push::Lost { reason, holds } => {
                let reason = match reason {
                    LostReason::Forced => Loss::Forced,
                    LostReason::Expired => Loss::SessionEnded,
                };
                for hold in holds {
                    if !self.lose_hold(hold, reason) {
                        self.lost_early.insert(hold, now);
                    }
                }
            }
            Push::RingChanged { version } => self.learn_version(now, version),
            Push::Draining => self.outcomes.push(Outcome::Draining),
        }
    }

    /// A hold is gone at the worker: nothing is left to release. `false`: it is not held here.
    pub(super) fn lose_hold(&mut self, hold: HoldId, reason: Loss) -> bool {
        let found = self.claims.iter().position(|claim| claim.hold_id() == Some(hold));
        if let Some(slot) = found {
            self.lose(slot as u32, reason);
        }
        found.is_some()
    }

    /// Ends a hold that the worker does not have.
    pub(super) fn lose(&mut self, slot: u32, reason: Loss) {
        let claim = &self.claims[slot as usize];
        let hold = claim.hold_id().expect("only a hold is lost");
        let (token, generation) = (claim.token, claim.generation);
        self.digest.remove(hold);
        if reason != Loss::Unknown {
            self.note_ended(hold);
        }
        self.free(slot);
        let claim = super::ClaimRef { slot, generation };
        self.outcomes.push(Outcome::Lost { token, claim, reason });
    }

    /// Whether a refusal of a hello is worth another try.
    pub fn may_retry(kind: RefusalKind) -> bool {
        matches!(kind, RefusalKind::Draining | RefusalKind::Quota | RefusalKind::Superseded)
    }
}
