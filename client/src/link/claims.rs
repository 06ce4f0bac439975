//! Claims and queries: their states, and what callers may ask of them.

use super::{Goodbye, Link, NotGranted, Outcome, Phase, Shared};
use crate::claims::{Claim, Key, LinkId, State};
use lockring_proto::{Claim as Wanted, Fence, HoldId, ListCursor, Operation, Request, Time, codec};
use std::time::Duration;

/// The worker times a wait out; this side does so too, this much later, in case no answer comes.
pub(super) const ANSWER_SLACK: Duration = Duration::from_millis(250);

/// What an unanswered request id belongs to.
#[derive(Debug)]
pub(super) enum Pending {
    Claim(u32),
    Query(Box<Asked>),
    /// The end of the session here.
    Goodbye,
    Renew {
        sent: Time,
    },
    Compare {
        sent: Time,
    },
    GetRing {
        sent: Time,
    },
}

/// A query that is unanswered.
#[derive(Debug)]
pub(crate) struct Asked {
    pub(super) token: u64,
    /// Of the key that it is about.
    pub(super) cell: Option<u16>,
    pub(super) sent: Time,
    /// The ring version that the last copy was routed by; 0: none was sent.
    pub(super) routed: u64,
    pub(super) asked: Time,
    pub(super) query: Query,
}

impl Asked {
    pub(crate) fn cell(&self) -> Option<u16> {
        self.cell
    }

    /// Its worker is none any more.
    pub(super) fn is_over(&self, link: LinkId) -> Outcome {
        let token = self.token;
        match self.query {
            Query::Force(_) if self.routed > 0 => Outcome::NoAnswer { token, link },
            _ => Outcome::Moved { token },
        }
    }
}

/// A question, or an order that names no hold of this session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Query {
    /// Look at a key.
    Inspect(Place),
    /// A page of locks.
    List {
        /// Of this namespace; empty: the session's own.
        namespace: String,
        /// Where to go on.
        cursor: ListCursor,
        /// Rows wanted.
        rows: u32,
        /// What the keys begin with.
        prefix: Vec<u8>,
    },
    /// End every hold of a key.
    Force(Place),
}

/// A key, and where it lives.
///
/// ```
/// use lockring_client::session::{Place, Query};
/// let of_team = Place { namespace: "team-a".to_owned(), key: b"job".to_vec() };
/// assert_ne!(Query::Inspect(of_team), Query::Inspect(b"job".to_vec().into()));
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// Its namespace; empty: the session's own.
    pub namespace: String,
    /// The key.
    pub key: Vec<u8>,
}

impl From<Vec<u8>> for Place {
    fn from(key: Vec<u8>) -> Self {
        Self { namespace: String::new(), key }
    }
}

/// A claim to make.
#[derive(Clone, Copy, Debug)]
pub struct Ask<'a> {
    /// The caller's own, returned with every outcome.
    pub token: u64,
    /// The key.
    pub key: &'a [u8],
    /// What is claimed of it.
    pub wanted: Wanted,
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
        let mut claim = Claim::new(Key::new(ask.key), cell, ask.wanted, ask.token);
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
        let mut claim = Claim::new(Key::new(key), cell, Wanted::EXCLUSIVE, token);
        claim.state = State::Confirming { fence };
        let slot = self.ask(shared, now, claim);
        #[cfg(feature = "testing")]
        if shared.mutant == Some(super::ClientMutant::AdoptUnasked) {
            let id = shared.claims[slot].id;
            self.confirmed(shared, now, id, Wanted::EXCLUSIVE);
            return slot;
        }
        self.send_claim(shared, now, slot);
        slot
    }

    /// A new claim with an unanswered request.
    fn ask(&mut self, shared: &mut Shared, now: Time, mut claim: Claim) -> u32 {
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
        let claim = &mut shared.claims[slot];
        let State::Held { fence } = claim.state else {
            panic!("only a hold is released, not {:?}", claim.state)
        };
        let hold = HoldId { cell: claim.cell, fence };
        claim.state = State::Releasing { fence, resent: false, told };
        claim.id = id;
        claim.sent = None;
        claim.asked = now;
        self.compares.digest.remove(hold);
        self.note_ended(hold);
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
        let id = shared.ids.next();
        let claim = &mut shared.claims[slot];
        let target = claim.id;
        claim.state = State::Cancelling { target, told };
        claim.id = id;
        claim.sent = None;
        shared.deadlines.remove(&(claim.deadline.after(ANSWER_SLACK), slot));
        self.parked.remove(&target);
        self.put_off.remove(&slot);
        // A grant of the target may be under way; it must find nobody.
        self.pending.remove(&target);
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
        let asked = Asked { token, cell, sent: now, routed: 0, asked: now, query };
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
        let Some(Pending::Query(asked)) = self.pending.get_mut(&id) else {
            panic!("query {id} is not pending")
        };
        (asked.sent, asked.routed) = (now, version);
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
    }

    /// Sends what the state of a claim calls for, if a connection stands.
    pub(super) fn send_claim(&mut self, shared: &mut Shared, now: Time, slot: u32) {
        if self.phase != Phase::Up {
            return;
        }
        let version = shared.version;
        let claim = &mut shared.claims[slot];
        claim.sent.get_or_insert(now);
        claim.routed = version;
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
        self.pending.remove(&id);
        self.parked.remove(&id);
        self.put_off.remove(&slot);
        if deadline != Time::NEVER {
            shared.deadlines.remove(&(deadline.after(ANSWER_SLACK), slot));
        }
        shared.claims.free(slot);
    }
}
