//! What the worker says.

use super::claims::ANSWER_SLACK;
use super::pending::Pending;
use super::{Goodbye, Link, Loss, NotGranted, Outcome, Phase, Shared, ToldLost};
use crate::claims::{State, Tenure};
use crate::router::WorkerId;
use lockring_proto::codec::{self, FrameError};
use lockring_proto::{
    Fence, HelloReply, HoldId, LostReason, Push, Refusal, RefusalKind, Reply, Time, Welcome, limits,
};
use lockring_ring::NodeId;
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
                    None if is_older_process(shared, &welcome) => self.is_unexpected(|| {
                        format!("process {} of node {node} is not its last one", welcome.boot)
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
        self.compares.has_gained(now, self.times.ttl);
        if welcome.ring_version < shared.version {
            self.gains_cells(shared.version);
        }
        self.note_round_trip(now, self.times.greeted);
        let before = self.welcome().map(|before| before.boot);
        let met = match before {
            Some(before) if before == welcome.boot && welcome.fresh => Met::Forgotten,
            Some(before) if before == welcome.boot => Met::Again,
            _ => Met::Another,
        };
        if met == Met::Another {
            self.process_has_ended(shared);
        }
        (self.peer.dialled, self.peer.welcome) = (Some(worker_of(&welcome)), Some(welcome.clone()));
        self.peer.refused = None;
        let (version, link) = (welcome.ring_version, self.id);
        shared.outcomes.push(Outcome::Up { link, welcome });
        self.resume(shared, now, met);
        if met == Met::Again {
            self.credit(shared, version, Some(self.times.greeted));
        }
        // Without a ring, any is newer.
        self.learn_version(shared, now, version.max(1));
    }

    #[inline]
    fn replied(&mut self, shared: &mut Shared, now: Time, reply: Reply) {
        self.times.heard = now;
        match reply {
            Reply::Granted { id, version, fence } => {
                self.granted(shared, now, (id, version), fence);
                self.learn_version(shared, now, version);
            }
            Reply::Released { id, version } => {
                self.ended(shared, (id, version), true);
                self.learn_version(shared, now, version);
            }
            Reply::NotHeld { id, version } => {
                self.ended(shared, (id, version), false);
                self.learn_version(shared, now, version);
            }
            other => self.replied_rarely(shared, now, other),
        }
    }

    fn replied_rarely(&mut self, shared: &mut Shared, now: Time, reply: Reply) {
        match reply {
            Reply::Queued { id, ahead, version } => self.queued(shared, (id, version), ahead),
            Reply::Busy { id, reason, version } => {
                self.not_granted(shared, (id, version), NotGranted::Busy(reason));
            }
            Reply::TimedOut { id, reason, version } => {
                self.not_granted(shared, (id, version), NotGranted::TimedOut(Some(reason)));
            }
            Reply::Cancelled { id, version } => self.ended(shared, (id, version), true),
            Reply::Moved { id, version } => self.moved(shared, now, id, version),
            Reply::Refused { id, ref refusal } => {
                if let Some(slot) = self.pending.claim(id) {
                    self.refused(shared, now, slot, (**refusal).clone());
                } else {
                    self.answered(shared, now, id, reply);
                }
            }
            Reply::Confirmed { id, version, claim } => {
                self.confirmed(shared, now, (id, version), claim);
                self.learn_version(shared, now, version);
            }
            Reply::Renewed { id, version, settled, digest } => {
                self.renewed(shared, now, (id, version, settled), digest);
                self.learn_version(shared, now, version);
            }
            Reply::Compared { id, version, lost } => self.compared(shared, id, version, &lost),
            Reply::Ring { id, chunk } => {
                if let Some(&Pending::GetRing { sent }) = self.pending.get(id) {
                    self.credit(shared, chunk.version, Some(sent));
                    let known = shared.ring.as_deref();
                    if !shared.fetch.comes(now, (self.id, id), *chunk, known) {
                        self.pending.remove(id);
                    }
                }
            }
            Reply::NoNewerRing { id, version } => {
                if let Some(&Pending::GetRing { sent }) = self.pending.get(id) {
                    self.pending.remove(id);
                    self.credit(shared, version, Some(sent));
                    shared.fetch.is_refused(self.id, id);
                    self.learn_version(shared, now, version);
                }
            }
            Reply::Goodbye { id } => {
                if let Some(Pending::Goodbye) = self.pending.get(id) {
                    // With it the lease ends, whoever's holds are kept there for a while.
                    self.pending.remove(id);
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

    fn queued(&mut self, shared: &mut Shared, (id, version): (u64, u64), ahead: u32) {
        let Some(slot) = self.pending.claim(id) else { return };
        let claim = &shared.claims[slot];
        if shared.is_before(version, claim.cell) {
            // The newer copy of the request is answered too.
            return;
        }
        let (token, sent) = (claim.token, claim.sent);
        self.credit(shared, version, sent);
        self.put_off.remove(id);
        self.pending.waits(id);
        // Who has copies of the cell knows by now that what this process had before is over.
        let process = self.process();
        shared.claims[slot].way.formers.retain(|former| former.process != process);
        shared.outcomes.push(Outcome::Queued { token, ahead });
    }

    #[inline]
    fn granted(&mut self, shared: &mut Shared, now: Time, (id, version): (u64, u64), fence: Fence) {
        // A grant for a claim that was given up: the cancel on its way ends it there.
        let Some(slot) = self.pending.claim(id) else {
            return;
        };
        let claim = &shared.claims[slot];
        let State::Acquiring = claim.state else {
            let state = claim.state;
            return self.is_unexpected(|| format!("request {id} granted while {state:?}"));
        };
        if fence.epoch() < shared.takeover(claim.cell) {
            // The cell has begun anew without it since, and was asked again.
            return;
        }
        self.pending.remove(id);
        let deadline = claim.deadline;
        if deadline != Time::NEVER {
            shared.deadlines.remove(&(deadline.after(ANSWER_SLACK), slot));
        }
        self.hold(shared, now, slot, (fence, version));
    }

    /// The earlier process's hold is still held, or one that was reclaimed is again.
    pub(super) fn confirmed(
        &mut self,
        shared: &mut Shared,
        now: Time,
        (id, version): (u64, u64),
        wanted: lockring_proto::Claim,
    ) {
        let Some(slot) = self.pending.claim(id) else {
            return self.reclaimed(shared, id, version);
        };
        let claim = &mut shared.claims[slot];
        let State::Confirming { fence } = claim.state else {
            let state = claim.state;
            return self.is_unexpected(|| format!("request {id} confirmed while {state:?}"));
        };
        claim.wanted = wanted;
        let taken_up = HoldId { cell: claim.cell, fence };
        if shared.is_before(version, taken_up.cell) {
            // The newer copy of the question is answered too.
            return;
        }
        self.pending.remove(id);
        // One hold has one owner: a release by either would leave the other believing.
        if let Some(before) = shared.claims.find_hold(taken_up) {
            self.lose(shared, before, Loss::HandedOver);
        }
        self.hold(shared, now, slot, (fence, version));
        // Whoever has answered has it, however old it is.
        let epoch = shared.epoch(taken_up.cell);
        let claim = &mut shared.claims[slot];
        if claim.hold_id() == Some(taken_up) {
            claim.tenure.epoch = claim.tenure.epoch.max(epoch);
        }
    }

    /// A claim is held from now on, unless its lease is over already.
    #[inline]
    fn hold(&mut self, shared: &mut Shared, now: Time, slot: u32, (fence, version): (Fence, u64)) {
        if !self.put_off.is_empty() {
            self.put_off.remove(shared.claims[slot].id);
        }
        let process = self.process();
        let claim = &mut shared.claims[slot];
        let (token, sent, cell) = (claim.token, claim.sent, claim.cell);
        claim.state = State::Held { fence };
        claim.tenure = Tenure { until: Time::NEVER, process, epoch: fence.epoch(), reclaim: 0 };
        claim.way.formers.clear();
        self.credit(shared, version, sent);
        let until = self.granted_until(shared, cell, version, sent);
        self.enter(shared, slot, until);
        if now >= self.believed(&shared.claims[slot].tenure) {
            let (link, reason) = (self.id, NotGranted::TooLate);
            shared.outcomes.push(Outcome::NotGranted { token, link, reason });
            return self.begin_release(shared, now, slot, false);
        }
        let (claim, link) = (shared.claims.name(slot), self.id);
        let apart = (until != Time::NEVER).then_some(until);
        shared.outcomes.push(Outcome::Granted { token, claim, link, fence, until: apart });
        if apart.is_some() {
            self.times.settle_at = Some(now);
        }
        let hold = HoldId { cell, fence };
        if !shared.lost_early.is_empty() && shared.lost_early.remove(&hold).is_some() {
            self.lose(shared, slot, Loss::Forced);
        }
    }

    /// Until when a grant is believed: under the lease, unless the answer is of a time in which the
    /// lease did not count for its cell.
    #[inline]
    fn granted_until(&self, shared: &Shared, cell: u16, version: u64, sent: Option<Time>) -> Time {
        let by_itself = sent.map_or(Time::NEVER, |sent| self.believed_from(sent));
        if version > shared.version {
            // By a ring that is not known the lease was not counted from this request.
            return if by_itself > self.times.valid_until { by_itself } else { Time::NEVER };
        }
        // The cell may have been away since: the newer copy of the request is on its way.
        if shared.is_before(version, cell) { by_itself } else { Time::NEVER }
    }

    #[cold]
    pub(super) fn is_unexpected(&mut self, what: impl FnOnce() -> String) {
        self.unexpected.get_or_insert_with(what);
    }

    /// A release, a cancel or a question for a hold is answered.
    fn ended(&mut self, shared: &mut Shared, (id, version): (u64, u64), done: bool) {
        let Some(slot) = self.pending.claim(id) else {
            if let (Some(&Pending::Reclaim { slot, .. }), false) = (self.pending.get(id), done) {
                // The time for it is over, or the claim of another went before.
                self.lose(shared, slot, Loss::SessionEnded);
            }
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
        self.credit(shared, version, sent);
        self.drop_claim(shared, slot);
        shared.outcomes.extend(outcome);
    }

    /// A claim or its end was refused. Some refusals pass, and who waits waits them out. No refusal
    /// says by which ring it was made, so that none makes a lease longer.
    fn refused(&mut self, shared: &mut Shared, now: Time, slot: u32, refusal: Refusal) {
        let claim = &shared.claims[slot];
        let (token, link) = (claim.token, self.id);
        let passes = matches!(refusal.kind, RefusalKind::Draining | RefusalKind::Unavailable);
        let outcome = match claim.state {
            State::Acquiring if passes && claim.waits => {
                return self.put_off(shared, now, slot, NotGranted::Refused(refusal));
            }
            State::Acquiring if claim.way.twice => {
                // The newer copy is answered too, and may be granted.
                return self.give_up(shared, now, slot, NotGranted::Refused(refusal));
            }
            State::Acquiring | State::Confirming { .. } => {
                let reason = NotGranted::Refused(refusal);
                Some(Outcome::NotGranted { token, link, reason })
            }
            // It ended nothing: the next compare or the lease does.
            State::Releasing { told: true, .. } | State::Cancelling { told: true, .. } => {
                Some(Outcome::NotEnded { token, refusal })
            }
            State::Free
            | State::Held { .. }
            | State::Releasing { told: false, .. }
            | State::Cancelling { told: false, .. } => None,
        };
        self.drop_claim(shared, slot);
        shared.outcomes.extend(outcome);
    }

    fn not_granted(&mut self, shared: &mut Shared, (id, version): (u64, u64), reason: NotGranted) {
        let Some(slot) = self.pending.claim(id) else {
            return;
        };
        let claim = &shared.claims[slot];
        let (token, sent, state) = (claim.token, claim.sent, claim.state);
        if let State::Releasing { .. } | State::Cancelling { .. } = state {
            return self.is_unexpected(|| format!("request {id} not granted while {state:?}"));
        }
        if shared.is_before(version, claim.cell) {
            // The cell has been away since: the newer copy is answered too, and may be granted.
            return;
        }
        self.credit(shared, version, sent);
        self.drop_claim(shared, slot);
        shared.outcomes.push(Outcome::NotGranted { token, link: self.id, reason });
    }

    fn answered(&mut self, shared: &mut Shared, now: Time, id: u64, reply: Reply) {
        if self.pending.claim(id).is_some() {
            return self.is_unexpected(|| format!("claim {id} is answered by {reply:?}"));
        }
        match self.pending.get(id) {
            Some(Pending::Reclaim { .. }) => {
                // Refused: it is tried again for as long as the hold is believed.
                return self.unserved(shared, now, id);
            }
            Some(Pending::Query(_)) => self.parked.remove(id),
            _ => {}
        };
        match self.pending.remove(id) {
            Some(Pending::Query(query)) if query.may_have_run(&reply) => {
                self.put_off.remove(id);
                shared.outcomes.push(Outcome::NoAnswer { token: query.token, link: self.id });
            }
            Some(Pending::Query(query)) => {
                self.put_off.remove(id);
                if let Some(version) = version_of(&reply) {
                    self.credit(shared, version, query.sent);
                }
                shared.outcomes.push(Outcome::Answer { token: query.token, reply });
            }
            Some(Pending::Goodbye) => self.peer.goodbye = Goodbye::Heard,
            // A renewal or compare that was refused: the next one tries again.
            Some(Pending::Renew { sent }) => {
                (self.times.renewing, self.times.renewed) = (None, sent);
                let again = self.settles_again(shared, sent);
                self.times.settle_at = self.times.settle_at.or(again);
            }
            Some(Pending::Compare { .. }) => self.compares.answered(),
            Some(Pending::GetRing { .. }) => shared.fetch.is_refused(self.id, id),
            _ => {}
        }
    }

    /// The cell is another's: the request is sent again by the ring that says whose.
    fn moved(&mut self, shared: &mut Shared, now: Time, id: u64, version: u64) {
        let has_cell = match self.pending.get(id) {
            Some(Pending::Query(query)) => query.cell().is_some(),
            Some(Pending::Claim(_) | Pending::Waiting(_) | Pending::Reclaim { .. }) => true,
            _ => return,
        };
        if !has_cell {
            return self.is_unexpected(|| format!("request {id} names no key, and has moved"));
        }
        // Whoever was deposed says so too of what it had carried out and not answered yet.
        if let Some(slot) = self.pending.claim(id)
            && let State::Releasing { resent, .. } = &mut shared.claims[slot].state
        {
            *resent = true;
        }
        self.parked.insert(id, version);
        self.learn_version(shared, now, version);
    }

    /// Asks for the ring when the worker knows a newer one.
    #[inline]
    pub(super) fn learn_version(&mut self, shared: &mut Shared, now: Time, version: u64) {
        if version > shared.version {
            self.is_told(shared, now, version);
        }
    }

    #[cold]
    fn is_told(&mut self, shared: &mut Shared, now: Time, version: u64) {
        if shared.fetch.may_come(version, self.id) {
            shared.fetch.is_told(version, self.id);
            if shared.fetch.is_idle() {
                self.ask_for_ring(shared, now);
            }
        }
    }

    fn pushed(&mut self, shared: &mut Shared, now: Time, push: Push) {
        self.times.heard = now;
        match push {
            Push::Lost { reason, holds } => {
                let (by, reason) = match reason {
                    LostReason::Forced => (self.id, Loss::Forced),
                    // What had the session forgotten is told of another's hold.
                    LostReason::Expired | LostReason::Outranked => (self.id, Loss::SessionEnded),
                };
                let told = holds.into_iter().map(|hold| ToldLost { hold, reason, by });
                shared.told_lost.extend(told);
            }
            Push::RingChanged { version } => self.learn_version(shared, now, version),
            Push::Draining => shared.outcomes.push(Outcome::Draining),
        }
    }
}

/// Whether the ring that is known has another process of the node, and the node no newer ring.
fn is_older_process(shared: &Shared, welcome: &Welcome) -> bool {
    let known = shared.ring.as_ref().and_then(|ring| ring.node(NodeId(welcome.node)));
    welcome.ring_version <= shared.version && known.is_some_and(|node| node.boot.0 != welcome.boot)
}

/// The ring version of a worker that has answered a question.
fn version_of(reply: &Reply) -> Option<u64> {
    match reply {
        Reply::Inspected { inspection, .. } => Some(inspection.version),
        Reply::Forced { version, .. } => Some(*version),
        _ => None,
    }
}

/// Who has welcomed the session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Met {
    /// The process that did so before.
    Again,
    /// That one, which has nothing of the session any more.
    Forgotten,
    /// One that this link has not met yet.
    Another,
}
