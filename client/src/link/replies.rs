//! What the worker says.

use super::claims::{ANSWER_SLACK, Pending, Query, State};
use super::{Link, Loss, NotGranted, Outcome, Phase, Serves};
use lockring_proto::codec::{self, FrameError};
use lockring_proto::{
    Fence, HelloReply, HoldId, LostReason, Push, Refusal, RefusalKind, Reply, Time, Welcome, limits,
};
use std::collections::BTreeSet;
use std::time::Duration;

/// Bytes that no node sends. The connection is to be closed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReceiveError {
    /// They are not of this wire.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// They are, but do not answer what was asked.
    #[error("the node's answer does not fit the request: {0}")]
    Unexpected(String),
}

impl Link {
    /// Takes in what came on the request stream; says how many bytes were whole frames.
    ///
    /// # Errors
    /// When a node does not send such bytes: the connection is to be closed.
    pub fn receive(&mut self, now: Time, bytes: &[u8]) -> Result<usize, ReceiveError> {
        self.notice_lapse(now);
        let mut rest = bytes;
        if self.phase == Phase::Greeting {
            let Some((body, after)) = codec::split_frame(rest)? else { return Ok(0) };
            self.greeted(now, codec::decode_frame(body)?);
            rest = after;
        }
        let rest = codec::decode_frames(rest, |reply| self.replied(now, reply))?;
        match self.unexpected.take() {
            Some(what) => Err(ReceiveError::Unexpected(what)),
            None => Ok(bytes.len() - rest.len()),
        }
    }

    /// Takes in what came on the push stream; says how many bytes were whole frames.
    ///
    /// # Errors
    /// When a node does not send such bytes: the connection is to be closed.
    pub fn receive_pushes(&mut self, now: Time, bytes: &[u8]) -> Result<usize, ReceiveError> {
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
            HelloReply::Welcome(welcome) => {
                let met = (welcome.node, welcome.worker);
                match self.dialled.filter(|&dialled| dialled != met) {
                    Some((node, worker)) => self.is_unexpected(|| {
                        format!(
                            "worker {worker} of node {node} was dialled, worker {} of node {} \
                             answers",
                            met.1, met.0
                        )
                    }),
                    None => self.welcomed(now, welcome),
                }
            }
            HelloReply::Refused(refusal) => {
                self.phase = Phase::Down;
                self.outcomes.push(Outcome::Rejected(refusal));
            }
        }
    }

    fn welcomed(&mut self, now: Time, welcome: Welcome) {
        self.phase = Phase::Up;
        self.answer_by = None;
        let is_heir = self.incarnation == 0;
        self.blind_hellos -= u64::from(is_heir);
        self.incarnation = welcome.incarnation;
        self.ttl = limits::clamp_ttl(Duration::from_millis(welcome.ttl_ms));
        self.heard = now;
        // Whether the session was ever taken up only the worker knows. It counts on a clock that
        // stands still while it does: one more compare after that costs little.
        self.spared_until = now.after(limits::honoured(self.ttl) + self.ttl / 20);
        self.note_round_trip(now, self.greeted);
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
                self.granted(now, id, fence);
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
                if let Some(&Pending::Claim(slot)) = self.pending.get(&id) {
                    self.refused(now, id, slot, (**refusal).clone());
                } else {
                    self.answered(id, reply);
                }
            }
            Reply::Confirmed { id, version, claim } => {
                self.confirmed(now, id, claim);
                self.learn_version(now, version);
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
            Reply::Granted { .. } | Reply::Released { .. } | Reply::NotHeld { .. } => {
                unreachable!("handled by the caller")
            }
        }
    }

    #[inline]
    fn granted(&mut self, now: Time, id: u64, fence: Fence) {
        // A grant for a claim that was given up: the cancel on its way ends it there.
        let Some(&Pending::Claim(slot)) = self.pending.get(&id) else {
            return;
        };
        let claim = &mut self.claims[slot as usize];
        let State::Acquiring = claim.state else {
            let state = claim.state;
            return self.is_unexpected(|| format!("request {id} granted while {state:?}"));
        };
        self.pending.remove(&id);
        let deadline = claim.deadline;
        if deadline != Time::NEVER {
            self.deadlines.remove(&(deadline.after(ANSWER_SLACK), slot));
        }
        self.hold(now, slot, fence);
    }

    /// The earlier process's hold is still held.
    pub(super) fn confirmed(&mut self, now: Time, id: u64, wanted: lockring_proto::Claim) {
        let Some(&Pending::Claim(slot)) = self.pending.get(&id) else {
            return;
        };
        let claim = &mut self.claims[slot as usize];
        let State::Confirming { fence } = claim.state else {
            let state = claim.state;
            return self.is_unexpected(|| format!("request {id} confirmed while {state:?}"));
        };
        claim.wanted = wanted;
        let taken_up = HoldId { cell: claim.cell, fence };
        self.pending.remove(&id);
        // One hold has one owner: a release by either would leave the other believing.
        let before = self.claims.iter().position(|claim| claim.hold_id() == Some(taken_up));
        if let Some(before) = before {
            self.lose(before as u32, Loss::HandedOver);
        }
        self.hold(now, slot, fence);
    }

    /// A claim is held from now on, unless its lease is over already.
    #[inline]
    fn hold(&mut self, now: Time, slot: u32, fence: Fence) {
        if !self.put_off.is_empty() {
            self.put_off.remove(&slot);
        }
        let claim = &mut self.claims[slot as usize];
        let (token, sent) = (claim.token, claim.sent);
        claim.state = State::Held { fence };
        let hold = HoldId { cell: claim.cell, fence };
        let named = super::ClaimRef { slot, generation: claim.generation };
        self.digest.add(hold);
        self.credit(sent);
        if now >= self.valid_until {
            self.outcomes.push(Outcome::NotGranted { token, reason: NotGranted::TooLate });
            return self.begin_release(now, slot, false);
        }
        self.outcomes.push(Outcome::Granted { token, claim: named, fence });
        if !self.lost_early.is_empty() && self.lost_early.remove(&hold).is_some() {
            self.lose(slot, Loss::Forced);
        }
    }

    #[cold]
    fn is_unexpected(&mut self, what: impl FnOnce() -> String) {
        self.unexpected.get_or_insert_with(what);
    }

    /// A release, a cancel or a question for a hold is answered.
    fn ended(&mut self, id: u64, done: bool) {
        let Some(&Pending::Claim(slot)) = self.pending.get(&id) else {
            return;
        };
        let claim = &self.claims[slot as usize];
        let (token, sent, state) = (claim.token, claim.sent, claim.state);
        let outcome = match state {
            State::Releasing { told: true, .. } if done => Some(Outcome::Released { token }),
            State::Releasing { told: true, resent, .. } => {
                Some(Outcome::NotHeld { token, maybe_released: resent })
            }
            State::Cancelling { told: true, .. } => Some(Outcome::Cancelled { token }),
            State::Confirming { .. } if !done => {
                Some(Outcome::NotGranted { token, reason: NotGranted::NotHeld })
            }
            State::Releasing { told: false, .. } | State::Cancelling { told: false, .. } => None,
            State::Free | State::Acquiring | State::Confirming { .. } | State::Held { .. } => {
                return self.is_unexpected(|| format!("request {id} ended while {state:?}"));
            }
        };
        self.credit(sent);
        self.drop_claim(slot);
        self.outcomes.extend(outcome);
    }

    /// A claim or its end was refused. Some refusals pass, and who waits waits them out.
    fn refused(&mut self, now: Time, id: u64, slot: u32, refusal: Refusal) {
        let claim = &self.claims[slot as usize];
        let passes = matches!(refusal.kind, RefusalKind::Draining | RefusalKind::Unavailable);
        if passes && claim.waits && claim.state == State::Acquiring {
            let sent = claim.sent;
            self.credit(sent);
            self.put_off(now, slot, refusal);
        } else {
            self.not_granted(id, NotGranted::Refused(refusal));
        }
    }

    fn not_granted(&mut self, id: u64, reason: NotGranted) {
        let Some(&Pending::Claim(slot)) = self.pending.get(&id) else {
            return;
        };
        let claim = &self.claims[slot as usize];
        let (token, sent) = (claim.token, claim.sent);
        if let State::Releasing { .. } | State::Cancelling { .. } = claim.state {
            // A refused end ended nothing; the next compare or the lease does.
            return self.ended(id, false);
        }
        self.credit(sent);
        self.drop_claim(slot);
        self.outcomes.push(Outcome::NotGranted { token, reason });
    }

    fn answered(&mut self, id: u64, reply: Reply) {
        match self.pending.remove(&id) {
            Some(Pending::Query { token, sent, query, .. }) => {
                // With the goodbye the lease ends, whoever's holds are kept there for a while.
                if query != Query::Goodbye {
                    self.credit(Some(sent));
                }
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
        self.learn_version(now, version.max(self.version.saturating_add(1)));
    }

    /// Sends a request by a newer ring, if it is still unanswered: an earlier copy of a claim may
    /// have been in line, and its turn has come.
    fn send_again(&mut self, now: Time, id: u64) {
        match self.pending.get(&id) {
            Some(&Pending::Claim(slot)) => self.route_claim(now, slot),
            Some(&Pending::Query { token, .. }) => {
                self.pending.remove(&id);
                self.outcomes.push(Outcome::Moved { token });
            }
            _ => {}
        }
    }

    /// Sends a claim if its cell is still this worker's; else its caller is to ask elsewhere.
    pub(super) fn route_claim(&mut self, now: Time, slot: u32) {
        if (self.serves)(self.claims[slot as usize].cell) {
            self.send_claim(now, slot);
        } else {
            self.reroute(slot);
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

    /// The ring is known at this version, by which `serves` says which cells are this worker's:
    /// what waited for it is sent, or its callers told to ask elsewhere.
    pub fn ring_is(&mut self, now: Time, version: u64, serves: Serves) {
        if version < self.version {
            return;
        }
        let newer = version > self.version;
        (self.version, self.serves) = (version, serves);
        if newer {
            for id in std::mem::take(&mut self.parked) {
                self.send_again(now, id);
            }
        }
        if !self.is_up() {
            // There may be no such worker any more, so that no connection would ever tell.
            self.reroute_queries();
            for slot in 0..self.claims.len() as u32 {
                let claim = &self.claims[slot as usize];
                let has_request = !matches!(claim.state, State::Free | State::Held { .. });
                if has_request && !(self.serves)(claim.cell) {
                    self.reroute(slot);
                }
            }
        }
    }

    /// The newest ring that the worker knows is in: what waits for one that is newer still would
    /// wait for ever, as when a node came back with an older state. Its callers ask again, or hear
    /// so.
    pub(crate) fn ring_is_newest(&mut self) {
        for id in std::mem::take(&mut self.parked) {
            match self.pending.get(&id) {
                Some(&Pending::Claim(slot)) => self.reroute(slot),
                Some(&Pending::Query { token, .. }) => {
                    self.pending.remove(&id);
                    self.outcomes.push(Outcome::Moved { token });
                }
                _ => {}
            }
        }
    }

    /// Queries that have not run, or may run twice, are asked where the new ring says.
    fn reroute_queries(&mut self) {
        let moves = |pending: &Pending| match pending {
            Pending::Query { query: Query::Inspect(_) | Query::List { .. }, .. } => true,
            Pending::Query { query: Query::Force(_), routed, .. } => *routed == 0,
            _ => false,
        };
        let mut moved: Vec<u64> =
            self.pending.iter().filter(|(_, one)| moves(one)).map(|(&id, _)| id).collect();
        moved.sort_unstable();
        for id in moved {
            if let Some(Pending::Query { token, .. }) = self.pending.remove(&id) {
                self.outcomes.push(Outcome::Moved { token });
            }
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
                for hold in self.lose_holds(&holds, reason) {
                    self.lost_early.insert(hold, now);
                }
            }
            Push::RingChanged { version } => self.learn_version(now, version),
            Push::Draining => self.outcomes.push(Outcome::Draining),
        }
    }

    /// Holds are gone at the worker: nothing is left to release. Returns those not held here.
    pub(super) fn lose_holds(&mut self, holds: &[HoldId], reason: Loss) -> BTreeSet<HoldId> {
        let mut left: BTreeSet<HoldId> = holds.iter().copied().collect();
        for slot in 0..self.claims.len() {
            if left.is_empty() {
                break;
            }
            if self.claims[slot].hold_id().is_some_and(|hold| left.remove(&hold)) {
                self.lose(slot as u32, reason);
            }
        }
        left
    }

    /// Ends a hold that the worker does not have.
    pub(super) fn lose(&mut self, slot: u32, reason: Loss) {
        let claim = &self.claims[slot as usize];
        let hold = claim.hold_id().expect("only a hold is lost");
        let (token, generation) = (claim.token, claim.generation);
        self.digest.remove(hold);
        // What is handed over here is still held, and what the worker does not know was not.
        if !matches!(reason, Loss::Unknown | Loss::HandedOver) {
            self.note_ended(hold);
        }
        self.free(slot);
        let claim = super::ClaimRef { slot, generation };
        self.outcomes.push(Outcome::Lost { token, claim, reason });
    }
}
