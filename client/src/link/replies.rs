//! What the worker says.

use super::claims::{ANSWER_SLACK, Pending};
use super::lease::PutOff;
use super::{Goodbye, Link, Loss, NotGranted, Outcome, Phase, Shared};
use crate::claims::{Claim, State};
use crate::router::WorkerId;
use lockring_proto::codec::{self, FrameError};
use lockring_proto::{
    Fence, HelloReply, HoldId, LostReason, Push, Refusal, RefusalKind, Reply, RingChunk, Time,
    Welcome, limits,
};
use lockring_ring::{CellId, NodeId};
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

fn worker_of(welcome: &Welcome) -> WorkerId {
    WorkerId { node: NodeId(welcome.node), worker: welcome.worker }
}

impl Link {
    /// Takes in what came on the request stream; says how many bytes were whole frames.
    ///
    /// # Errors
    /// When a node does not send such bytes: the connection is to be closed.
    pub(crate) fn receive(
        &mut self,
        shared: &mut Shared,
        now: Time,
        bytes: &[u8],
    ) -> Result<usize, ReceiveError> {
        self.notice_lapse(shared, now);
        let mut rest = bytes;
        if self.phase == Phase::Greeting {
            let Some((body, after)) = codec::split_frame(rest)? else { return Ok(0) };
            self.greeted(shared, now, codec::decode_frame(body)?);
            rest = after;
        }
        let rest = codec::decode_frames(rest, |reply| self.replied(shared, now, reply))?;
        match self.unexpected.take() {
            Some(what) => Err(ReceiveError::Unexpected(what)),
            None => Ok(bytes.len() - rest.len()),
        }
    }

    /// Takes in what came on the push stream; says how many bytes were whole frames.
    ///
    /// # Errors
    /// When a node does not send such bytes: the connection is to be closed.
    pub(crate) fn receive_pushes(
        &mut self,
        shared: &mut Shared,
        now: Time,
        bytes: &[u8],
    ) -> Result<usize, ReceiveError> {
        self.notice_lapse(shared, now);
        let mut rest = bytes;
        while let Some((body, after)) = codec::split_frame(rest)? {
            self.pushed(shared, now, codec::decode_frame(body)?);
            rest = after;
        }
        Ok(bytes.len() - rest.len())
    }

    fn greeted(&mut self, shared: &mut Shared, now: Time, reply: HelloReply) {
        match reply {
            HelloReply::Welcome(welcome) => {
                let WorkerId { node, worker } = worker_of(&welcome);
                match self.peer.dialled.filter(|&dialled| dialled != worker_of(&welcome)) {
                    Some(dialled) => self.is_unexpected(|| {
                        format!(
                            "worker {} of node {} was dialled, worker {worker} of node {node} \
                             answers",
                            dialled.worker, dialled.node
                        )
                    }),
                    None => self.welcomed(shared, now, welcome),
                }
            }
            HelloReply::Refused(refusal) => {
                self.phase = Phase::Down;
                self.peer.refused = Some(refusal);
            }
        }
    }

    fn welcomed(&mut self, shared: &mut Shared, now: Time, welcome: Welcome) {
        self.phase = Phase::Up;
        self.answer_by = None;
        let is_successor = self.peer.incarnation == 0;
        self.peer.blind_hellos -= u64::from(is_successor);
        self.peer.incarnation = welcome.incarnation;
        self.times.ttl = limits::clamp_ttl(Duration::from_millis(welcome.ttl_ms));
        self.times.believed = limits::believed(self.times.ttl);
        self.times.heard = now;
        // Whether the session was ever taken up only the worker knows. It counts on a clock that
        // stands still while it does: one more compare after that costs little.
        self.compares.spared_until =
            now.after(limits::honoured(self.times.ttl) + self.times.ttl / 20);
        self.note_round_trip(now, self.times.greeted);
        self.credit(Some(self.times.greeted));
        (self.peer.dialled, self.peer.welcome) = (Some(worker_of(&welcome)), Some(welcome.clone()));
        self.peer.refused = None;
        let (fresh, version, link) = (welcome.fresh, welcome.ring_version, self.id);
        shared.outcomes.push(Outcome::Up { link, welcome });
        self.resume(shared, now, fresh);
        // Without a ring, any is newer.
        self.learn_version(shared, now, version.max(1));
    }

    #[inline]
    fn replied(&mut self, shared: &mut Shared, now: Time, reply: Reply) {
        self.times.heard = now;
        match reply {
            Reply::Granted { id, version, fence } => {
                self.granted(shared, now, id, fence);
                self.learn_version(shared, now, version);
            }
            Reply::Released { id, version } => {
                self.ended(shared, id, true);
                self.learn_version(shared, now, version);
            }
            Reply::NotHeld { id, version } => {
                self.ended(shared, id, false);
                self.learn_version(shared, now, version);
            }
            other => self.replied_rarely(shared, now, other),
        }
    }

    fn replied_rarely(&mut self, shared: &mut Shared, now: Time, reply: Reply) {
        match reply {
            Reply::Queued { id, ahead, .. } => {
                if let Some(&Pending::Claim(slot)) = self.pending.get(&id) {
                    let claim = &shared.claims[slot];
                    let (token, sent) = (claim.token, claim.sent);
                    self.credit(sent);
                    self.put_off.remove(&slot);
                    shared.outcomes.push(Outcome::Queued { token, ahead });
                }
            }
            Reply::Busy { id, reason, .. } => {
                self.not_granted(shared, id, NotGranted::Busy(reason));
            }
            Reply::TimedOut { id, reason, .. } => {
                self.not_granted(shared, id, NotGranted::TimedOut(Some(reason)));
            }
            Reply::Cancelled { id, .. } => self.ended(shared, id, true),
            Reply::Moved { id, version } => self.moved(shared, now, id, version),
            Reply::Refused { id, ref refusal } => {
                if let Some(&Pending::Claim(slot)) = self.pending.get(&id) {
                    self.refused(shared, now, id, slot, (**refusal).clone());
                } else {
                    self.answered(shared, now, id, reply);
                }
            }
            Reply::Confirmed { id, version, claim } => {
                self.confirmed(shared, now, id, claim);
                self.learn_version(shared, now, version);
            }
            Reply::Renewed { id, version, digest } => {
                self.renewed(shared, now, id, digest);
                self.learn_version(shared, now, version);
            }
            Reply::Compared { id, lost, .. } => self.compared(shared, id, &lost),
            Reply::Ring { id, chunk } => {
                if let Some(&Pending::GetRing { sent }) = self.pending.get(&id) {
                    self.credit(Some(sent));
                    if chunk.last {
                        self.pending.remove(&id);
                        self.ring.asked = false;
                    }
                    self.ring_part(*chunk);
                }
            }
            Reply::Goodbye { id } => {
                if let Some(Pending::Goodbye) = self.pending.get(&id) {
                    // With it the lease ends, whoever's holds are kept there for a while.
                    self.pending.remove(&id);
                    self.peer.goodbye = Goodbye::Heard;
                }
            }
            Reply::Inspected { id, .. } | Reply::Listed { id, .. } | Reply::Forced { id, .. } => {
                self.answered(shared, now, id, reply);
            }
            Reply::Granted { .. } | Reply::Released { .. } | Reply::NotHeld { .. } => {
                unreachable!("handled by the caller")
            }
        }
    }

    #[inline]
    fn granted(&mut self, shared: &mut Shared, now: Time, id: u64, fence: Fence) {
        // A grant for a claim that was given up: the cancel on its way ends it there.
        let Some(&Pending::Claim(slot)) = self.pending.get(&id) else {
            return;
        };
        let claim = &mut shared.claims[slot];
        let State::Acquiring = claim.state else {
            let state = claim.state;
            return self.is_unexpected(|| format!("request {id} granted while {state:?}"));
        };
        self.pending.remove(&id);
        let deadline = claim.deadline;
        if deadline != Time::NEVER {
            shared.deadlines.remove(&(deadline.after(ANSWER_SLACK), slot));
        }
        self.hold(shared, now, slot, fence);
    }

    /// The earlier process's hold is still held.
    pub(super) fn confirmed(
        &mut self,
        shared: &mut Shared,
        now: Time,
        id: u64,
        wanted: lockring_proto::Claim,
    ) {
        let Some(&Pending::Claim(slot)) = self.pending.get(&id) else {
            return;
        };
        let claim = &mut shared.claims[slot];
        let State::Confirming { fence } = claim.state else {
            let state = claim.state;
            return self.is_unexpected(|| format!("request {id} confirmed while {state:?}"));
        };
        claim.wanted = wanted;
        let taken_up = HoldId { cell: claim.cell, fence };
        self.pending.remove(&id);
        // One hold has one owner: a release by either would leave the other believing.
        if let Some(before) = shared.claims.find_hold(taken_up) {
            self.lose(shared, before, Loss::HandedOver);
        }
        self.hold(shared, now, slot, fence);
    }

    /// A claim is held from now on, unless its lease is over already.
    #[inline]
    fn hold(&mut self, shared: &mut Shared, now: Time, slot: u32, fence: Fence) {
        if !self.put_off.is_empty() {
            self.put_off.remove(&slot);
        }
        let claim = &mut shared.claims[slot];
        let (token, sent) = (claim.token, claim.sent);
        claim.state = State::Held { fence };
        let hold = HoldId { cell: claim.cell, fence };
        self.compares.digest.add(hold);
        self.credit(sent);
        // What has come from another link may be believed for longer than that is worth.
        self.times.valid_until =
            self.times.valid_until.min(self.times.credited.after(self.times.believed));
        if now >= self.times.valid_until {
            let (link, reason) = (self.id, NotGranted::TooLate);
            shared.outcomes.push(Outcome::NotGranted { token, link, reason });
            return self.begin_release(shared, now, slot, false);
        }
        let (claim, link) = (shared.claims.name(slot), self.id);
        shared.outcomes.push(Outcome::Granted { token, claim, link, fence });
        if !self.lost_early.is_empty() && self.lost_early.remove(&hold).is_some() {
            self.lose(shared, slot, Loss::Forced);
        }
    }

    #[cold]
    fn is_unexpected(&mut self, what: impl FnOnce() -> String) {
        self.unexpected.get_or_insert_with(what);
    }

    /// A release, a cancel or a question for a hold is answered.
    fn ended(&mut self, shared: &mut Shared, id: u64, done: bool) {
        let Some(&Pending::Claim(slot)) = self.pending.get(&id) else {
            return;
        };
        let claim = &shared.claims[slot];
        let (token, sent, state) = (claim.token, claim.sent, claim.state);
        let outcome = match state {
            State::Releasing { told: true, .. } if done => Some(Outcome::Released { token }),
            State::Releasing { told: true, resent, .. } => {
                Some(Outcome::NotHeld { token, maybe_released: resent })
            }
            State::Cancelling { told: true, .. } => Some(Outcome::Cancelled { token }),
            State::Confirming { .. } if !done => {
                Some(Outcome::NotGranted { token, link: self.id, reason: NotGranted::NotHeld })
            }
            State::Releasing { told: false, .. } | State::Cancelling { told: false, .. } => None,
            State::Free | State::Acquiring | State::Confirming { .. } | State::Held { .. } => {
                return self.is_unexpected(|| format!("request {id} ended while {state:?}"));
            }
        };
        self.credit(sent);
        self.drop_claim(shared, slot);
        shared.outcomes.extend(outcome);
    }

    /// A claim or its end was refused. Some refusals pass, and who waits waits them out.
    fn refused(&mut self, shared: &mut Shared, now: Time, id: u64, slot: u32, refusal: Refusal) {
        let claim = &shared.claims[slot];
        let passes = matches!(refusal.kind, RefusalKind::Draining | RefusalKind::Unavailable);
        if passes && claim.waits && claim.state == State::Acquiring {
            let sent = claim.sent;
            self.credit(sent);
            self.put_off(shared, now, slot, NotGranted::Refused(refusal));
        } else {
            self.not_granted(shared, id, NotGranted::Refused(refusal));
        }
    }

    fn not_granted(&mut self, shared: &mut Shared, id: u64, reason: NotGranted) {
        let Some(&Pending::Claim(slot)) = self.pending.get(&id) else {
            return;
        };
        let claim = &shared.claims[slot];
        let (token, sent) = (claim.token, claim.sent);
        if let State::Releasing { .. } | State::Cancelling { .. } = claim.state {
            // A refused end ended nothing; the next compare or the lease does.
            return self.ended(shared, id, false);
        }
        self.credit(sent);
        self.drop_claim(shared, slot);
        shared.outcomes.push(Outcome::NotGranted { token, link: self.id, reason });
    }

    fn ring_part(&mut self, part: RingChunk) {
        if let Some(come) = self.ring.under_way.take(part).transpose() {
            self.ring.come = Some(come);
        }
    }

    fn answered(&mut self, shared: &mut Shared, now: Time, id: u64, reply: Reply) {
        if let Some(Pending::Claim(_)) = self.pending.get(&id) {
            return self.is_unexpected(|| format!("claim {id} is answered by {reply:?}"));
        }
        match self.pending.remove(&id) {
            Some(Pending::Query(query)) => {
                self.credit(Some(query.sent));
                shared.outcomes.push(Outcome::Answer { token: query.token, reply });
            }
            Some(Pending::Goodbye) => self.peer.goodbye = Goodbye::Heard,
            Some(other) => {
                // A renewal or compare that was refused: the next one tries again.
                if let Pending::Renew { sent } = other {
                    (self.times.renewing, self.times.renewed) = (None, sent);
                }
                if let Pending::Compare { .. } = other {
                    self.compares.answered();
                }
                if let Pending::GetRing { .. } = other {
                    self.ring.asked = false;
                    self.ring_is_newest(shared, now);
                }
            }
            None => {}
        }
    }

    /// The request was not executed. It waits for the ring that says where to send it, unless that
    /// has come while the request was under way.
    fn moved(&mut self, shared: &mut Shared, now: Time, id: u64, version: u64) {
        let routed = match self.pending.get(&id) {
            Some(&Pending::Claim(slot)) => shared.claims[slot].routed,
            Some(Pending::Query(query)) => query.routed,
            _ => return,
        };
        if routed < shared.version {
            return self.send_again(shared, now, id);
        }
        self.parked.insert(id);
        if self.ring.asked {
            // Answers come in order: the ring that is under way is no older than this one.
            return;
        }
        self.ring.wanted = self.ring.wanted.min(shared.version);
        self.learn_version(shared, now, version.max(shared.version.saturating_add(1)));
    }

    /// Sends a request by a newer ring, if it is still unanswered: an earlier copy of a claim may
    /// have been queued, and its turn has come.
    fn send_again(&mut self, shared: &mut Shared, now: Time, id: u64) {
        match self.pending.get(&id) {
            Some(&Pending::Claim(slot)) => self.send_claim(shared, now, slot),
            Some(Pending::Query(_)) => self.send_query(shared, now, id),
            _ => {}
        }
    }

    /// Asks for the ring when the worker knows a newer one.
    #[inline]
    fn learn_version(&mut self, shared: &mut Shared, now: Time, version: u64) {
        if version > shared.version && version > self.ring.wanted {
            self.ring.wanted = version;
            self.ask_for_ring(shared, now);
        }
    }

    /// A newer ring is known, and by it what waited for it here is still this worker's.
    pub(crate) fn ring_is_newer(&mut self, shared: &mut Shared, now: Time) {
        for id in std::mem::take(&mut self.parked) {
            self.send_again(shared, now, id);
        }
    }

    /// The newest ring that the worker knows is in: what waits for one that is newer still would
    /// wait for ever, as when a node came back with an older state. Claims are tried again for a
    /// while; all else has nothing to undo or find anywhere.
    pub(crate) fn ring_is_newest(&mut self, shared: &mut Shared, now: Time) {
        for id in std::mem::take(&mut self.parked) {
            match self.pending.get(&id) {
                Some(&Pending::Claim(slot)) => self.unserved(shared, now, slot),
                Some(Pending::Query(query)) => {
                    shared.outcomes.push(Outcome::Moved { token: query.token });
                    self.pending.remove(&id);
                }
                _ => {}
            }
        }
    }

    fn unserved(&mut self, shared: &mut Shared, now: Time, slot: u32) {
        let Claim { token, state, .. } = shared.claims[slot];
        let outcome = match state {
            State::Acquiring => {
                let known = self.put_off.entry(slot);
                known.or_insert_with(|| PutOff::unserved(now));
                return;
            }
            State::Confirming { .. } => {
                Some(Outcome::NotGranted { token, link: self.id, reason: NotGranted::Moved })
            }
            State::Releasing { told: true, .. } => {
                Some(Outcome::NotHeld { token, maybe_released: true })
            }
            State::Cancelling { told: true, .. } => Some(Outcome::Cancelled { token }),
            State::Releasing { told: false, .. } | State::Cancelling { told: false, .. } => None,
            State::Free | State::Held { .. } => panic!("{state:?} has no request to serve"),
        };
        self.drop_claim(shared, slot);
        shared.outcomes.extend(outcome);
    }

    fn pushed(&mut self, shared: &mut Shared, now: Time, push: Push) {
        self.times.heard = now;
        match push {
            Push::Lost { reason, holds } => {
                let reason = match reason {
                    LostReason::Forced => Loss::Forced,
                    LostReason::Expired => Loss::SessionEnded,
                };
                for hold in self.lose_holds(shared, &holds, reason) {
                    self.lost_early.insert(hold, now);
                }
            }
            Push::RingChanged { version } => self.learn_version(shared, now, version),
            Push::Draining => shared.outcomes.push(Outcome::Draining),
        }
    }

    /// Holds are gone at the worker: nothing is left to release. Returns those not held here.
    pub(super) fn lose_holds(
        &mut self,
        shared: &mut Shared,
        holds: &[HoldId],
        reason: Loss,
    ) -> BTreeSet<HoldId> {
        let mut left: BTreeSet<HoldId> = holds.iter().copied().collect();
        if left.is_empty() {
            return left;
        }
        let cells = left.iter().map(|hold| CellId(hold.cell)).collect();
        let slots: Vec<u32> = shared.claims.of_cells(&cells).collect();
        for slot in slots {
            let hold = shared.claims[slot].hold_id();
            if shared.claims[slot].link == self.id && hold.is_some_and(|hold| left.remove(&hold)) {
                self.lose(shared, slot, reason);
            }
        }
        left
    }

    /// Ends a hold that the worker does not have.
    pub(crate) fn lose(&mut self, shared: &mut Shared, slot: u32, reason: Loss) {
        let claim = &shared.claims[slot];
        let hold = claim.hold_id().expect("only a hold is lost");
        let (token, named) = (claim.token, shared.claims.name(slot));
        self.compares.digest.remove(hold);
        // What is handed over here is still held, and what the worker does not know was not.
        if !matches!(reason, Loss::Unknown | Loss::HandedOver) {
            self.note_ended(hold);
        }
        shared.claims.free(slot);
        shared.outcomes.push(Outcome::Lost { token, claim: named, link: self.id, reason });
    }
}
