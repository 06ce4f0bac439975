//! Claims and queries: their states, and what callers may ask of them.

use super::pending::Pending;
use super::query::{Asked, Place, Query};
use super::{Goodbye, Link, NotGranted, Outcome, Phase, Shared};
use crate::claims::{ClaimRecord, Key, State};
use lockring_proto::{Claim, Fence, Operation, Request, Time, codec};
use std::time::Duration;

/// The worker times a wait out; this side does so too, this much later, in case no answer comes.
pub(super) const ANSWER_SLACK: Duration = Duration::from_millis(250);

/// A claim to make.
#[derive(Clone, Copy, Debug)]
pub struct Ask<'a> {
    /// The caller's own, returned with every outcome.
    pub token: u64,
    /// The key.
    pub key: &'a [u8],
    /// What is claimed of it.
    pub wanted: Claim,
    /// How long to wait: `None` without limit, zero for not at all.
    pub wait: Option<Duration>,
}

impl Link {
    /// Claims a key of a cell.
    pub(crate) fn acquire(
        &mut self,
        shared: &mut Shared,
        now: Time,
        cell: u16,
        ask: &Ask<'_>,
    ) -> u32 {
        let mut claim = ClaimRecord::new(Key::new(ask.key), cell, ask.wanted, ask.token);
        claim.waits = ask.wait != Some(Duration::ZERO);
        if let Some(span) = ask.wait.filter(|_| claim.waits) {
            claim.deadline = now.after(span);
        }
        let deadline = claim.deadline;
        let slot = self.ask(shared, now, claim);
        if deadline != Time::NEVER {
            shared.deadlines.insert((deadline.after(ANSWER_SLACK), slot));
        }
        self.send_claim(shared, now, slot);
        slot
    }

    /// Takes up a hold that an earlier process of the session has left, once the worker has
    /// confirmed it: [`Outcome::Granted`] follows, or [`NotGranted::NotHeld`].
    pub(crate) fn adopt(
        &mut self,
        shared: &mut Shared,
        now: Time,
        token: u64,
        (cell, key, fence): (u16, &[u8], Fence),
    ) -> u32 {
        let mut claim = ClaimRecord::new(Key::new(key), cell, Claim::EXCLUSIVE, token);
        claim.state = State::Confirming { fence };
        let slot = self.ask(shared, now, claim);
        #[cfg(feature = "testing")]
        if shared.mutant == Some(super::ClientMutant::AdoptUnasked) {
            let id = shared.claims[slot].id;
            let version = shared.version;
            self.confirmed(shared, now, (id, version), Claim::EXCLUSIVE);
            return slot;
        }
        self.send_claim(shared, now, slot);
        slot
    }

    /// A new claim with an unanswered request.
    fn ask(&mut self, shared: &mut Shared, now: Time, mut claim: ClaimRecord) -> u32 {
        let id = shared.ids.next();
        (claim.id, claim.link, claim.asked) = (id, self.id, now);
        let slot = shared.claims.insert(claim);
        self.pending.insert(id, Pending::Claim(slot));
        if !self.is_up() {
            self.expect_answer(shared, slot);
        }
        slot
    }

    /// Gives a hold back; what follows is told under `token`.
    pub(crate) fn release(&mut self, shared: &mut Shared, now: Time, slot: u32, token: u64) {
        shared.claims[slot].token = token;
        self.begin_release(shared, now, slot, true);
        if !self.is_up() {
            self.expect_answer(shared, slot);
        }
    }

    /// Turns a hold into a release under way. `told`: the caller wants to know how it ends.
    pub(crate) fn begin_release(&mut self, shared: &mut Shared, now: Time, slot: u32, told: bool) {
        let id = shared.ids.next();
        let State::Held { fence } = shared.claims[slot].state else {
            panic!("only a hold is released, not {:?}", shared.claims[slot].state)
        };
        let known = self.leave(shared, slot);
        if let Some(hold) = known {
            self.note_ended(hold);
        }
        let claim = &mut shared.claims[slot];
        // What nobody at the worker knows may have been ended with the cell that it was in.
        claim.state = State::Releasing { fence, resent: known.is_none(), told };
        claim.id = id;
        claim.sent = None;
        claim.asked = now;
        self.pending.insert(id, Pending::Claim(slot));
        self.send_claim(shared, now, slot);
    }

    /// Gives a claim up, whether it is granted by now or not. `false`: there is nothing to undo.
    pub(crate) fn cancel(&mut self, shared: &mut Shared, now: Time, slot: u32) -> bool {
        match shared.claims[slot].state {
            State::Acquiring => self.begin_cancel(shared, now, slot, true),
            // What is not confirmed is not ours to end.
            State::Confirming { .. } => {
                self.drop_claim(shared, slot);
            }
            State::Held { .. } => self.begin_release(shared, now, slot, true),
            State::Free | State::Releasing { .. } | State::Cancelling { .. } => return false,
        }
        true
    }

    pub(super) fn begin_cancel(&mut self, shared: &mut Shared, now: Time, slot: u32, told: bool) {
        let claim = &shared.claims[slot];
        if claim.sent.is_none() && claim.way.formers.is_empty() {
            // No worker has heard of it: while none is reached, what is given up would pile up.
            let token = claim.token;
            self.drop_claim(shared, slot);
            shared.outcomes.extend(told.then_some(Outcome::Cancelled { token }));
            return;
        }
        let id = shared.ids.next();
        let claim = &mut shared.claims[slot];
        let target = claim.id;
        claim.state = State::Cancelling { target, told };
        claim.id = id;
        claim.sent = None;
        shared.deadlines.remove(&(claim.deadline.after(ANSWER_SLACK), slot));
        // A grant of the target may be under way; it must find nobody.
        self.forget(target);
        #[cfg(feature = "testing")]
        if shared.mutant == Some(super::ClientMutant::CancelForgotten) {
            let token = shared.claims[slot].token;
            shared.claims.free(slot);
            shared.outcomes.push(Outcome::Cancelled { token });
            return;
        }
        self.pending.insert(id, Pending::Claim(slot));
        self.send_claim(shared, now, slot);
    }

    /// Asks a question; one about a key names the key's cell.
    pub(crate) fn query(
        &mut self,
        shared: &mut Shared,
        now: Time,
        token: u64,
        (cell, query): (Option<u16>, Query),
    ) {
        let id = shared.ids.next();
        let asked = Asked { token, cell, sent: None, routed: 0, asked: now, query };
        self.pending.insert(id, Pending::Query(Box::new(asked)));
        if !self.is_up() {
            self.expect_answer_at(now.after(shared.config.unreachable_after));
        }
        self.send_query(shared, now, id);
    }

    /// Says goodbye, if a connection stands and it is not said on it: the session ends here.
    pub(crate) fn say_goodbye(&mut self, shared: &mut Shared) {
        if self.phase == Phase::Up && self.peer.goodbye == Goodbye::Unsaid {
            let id = shared.ids.next();
            self.peer.goodbye = Goodbye::Said;
            self.pending.insert(id, Pending::Goodbye);
            codec::encode_frame(&Request::Goodbye { id }, &mut self.out);
        }
    }

    pub(super) fn send_query(&mut self, shared: &mut Shared, now: Time, id: u64) {
        if self.phase != Phase::Up {
            return;
        }
        let version = shared.version;
        let Some(Pending::Query(asked)) = self.pending.get_mut(id) else {
            panic!("query {id} is not pending")
        };
        asked.sent.get_or_insert(now);
        asked.routed = version;
        let request = match &asked.query {
            Query::Inspect(Place { namespace, key }) => {
                Request::Keyed { id, version, operation: Operation::Inspect { namespace }, key }
            }
            Query::Force(Place { namespace, key }) => {
                Request::Keyed { id, version, operation: Operation::Force { namespace }, key }
            }
            Query::List { namespace, cursor, rows, prefix } => {
                Request::List { id, namespace, cursor: *cursor, rows: *rows, prefix }
            }
        };
        codec::encode_frame(&request, &mut self.out);
        self.watches(shared, now);
    }

    /// Sends an unanswered request, again or for the first time, if a connection stands.
    pub(super) fn send(&mut self, shared: &mut Shared, now: Time, id: u64) {
        if let Some(slot) = self.pending.claim(id) {
            self.pending.is_asked_again(id);
            return self.send_claim(shared, now, slot);
        }
        match self.pending.get_mut(id) {
            Some(Pending::Query(_)) => self.send_query(shared, now, id),
            Some(Pending::Reclaim { slot, sent }) if self.phase == Phase::Up => {
                sent.get_or_insert(now);
                let claim = &shared.claims[*slot];
                let State::Held { fence } = claim.state else {
                    panic!("only what is held is reclaimed, not {:?}", claim.state)
                };
                let operation =
                    Operation::Reclaim { fence, request: claim.id, claim: claim.wanted };
                let (version, key) = (shared.version, claim.key.bytes());
                let request = Request::Keyed { id, version, operation, key };
                codec::encode_frame(&request, &mut self.out);
                self.watches(shared, now);
            }
            _ => {}
        }
    }

    /// Sends what the state of a claim calls for, if a connection stands.
    pub(super) fn send_claim(&mut self, shared: &mut Shared, now: Time, slot: u32) {
        if self.phase != Phase::Up {
            return;
        }
        let version = shared.version;
        let claim = &mut shared.claims[slot];
        claim.sent.get_or_insert(now);
        claim.way.routed = version;
        let (id, key) = (claim.id, claim.key.bytes());
        let request = match claim.state {
            State::Acquiring => {
                let wait = claim.wait(now);
                Request::Keyed {
                    id,
                    version,
                    operation: Operation::Acquire { claim: claim.wanted, wait },
                    key,
                }
            }
            State::Releasing { fence, .. } => {
                Request::Keyed { id, version, operation: Operation::Release { fence }, key }
            }
            State::Cancelling { target, .. } => {
                Request::Keyed { id, version, operation: Operation::Cancel { target }, key }
            }
            State::Confirming { fence } => {
                Request::Keyed { id, version, operation: Operation::Confirm { fence }, key }
            }
            State::Free | State::Held { .. } => panic!("nothing to send for {:?}", claim.state),
        };
        codec::encode_frame(&request, &mut self.out);
        self.watches(shared, now);
    }

    /// Nothing more comes of a request.
    pub(super) fn forget(&mut self, id: u64) {
        self.pending.remove(id);
        if !self.parked.is_empty() {
            self.parked.remove(id);
        }
        if !self.put_off.is_empty() {
            self.put_off.remove(id);
        }
    }

    /// The caller of an unanswered claim gets its answer now; the worker is told to undo it.
    pub(super) fn give_up(
        &mut self,
        shared: &mut Shared,
        now: Time,
        slot: u32,
        reason: NotGranted,
    ) {
        let claim = &shared.claims[slot];
        let (token, link) = (claim.token, self.id);
        let reason = match (&self.peer.refused, reason) {
            // Who was turned away hears why, not only that nobody answered.
            (Some(refusal), NotGranted::Unreachable | NotGranted::TimedOut(None)) => {
                NotGranted::Refused(refusal.clone())
            }
            (_, reason) => reason,
        };
        shared.outcomes.push(Outcome::NotGranted { token, link, reason });
        match claim.state {
            State::Confirming { .. } => self.drop_claim(shared, slot),
            _ => self.begin_cancel(shared, now, slot, false),
        }
    }

    /// Forgets a claim that nothing at the worker belongs to, or that the worker has forgotten.
    pub(super) fn drop_claim(&mut self, shared: &mut Shared, slot: u32) {
        let claim = &shared.claims[slot];
        let (id, deadline) = (claim.id, claim.deadline);
        self.forget(id);
        if deadline != Time::NEVER {
            shared.deadlines.remove(&(deadline.after(ANSWER_SLACK), slot));
        }
        shared.claims.free(slot);
    }
}
