//! Claims and queries: their states, and what callers may ask of them.

use super::key::Key;
use super::{ClaimRef, Link, NotGranted, Outcome, Phase};
use lockring_proto::{
    Claim as Wanted, Fence, HoldId, ListCursor, Operation, Request, Time, Wait, codec,
};
use std::time::Duration;

/// The worker times a wait out; this side does so too, this much later, in case no answer comes.
pub(super) const ANSWER_SLACK: Duration = Duration::from_millis(250);

/// How far a claim is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    Free,
    /// Asked for.
    Acquiring,
    /// Left by an earlier process of the session; the worker is asked whether it is still held.
    Confirming {
        fence: Fence,
    },
    Held {
        fence: Fence,
    },
    /// Being given back.
    Releasing {
        fence: Fence,
        resent: bool,
        told: bool,
    },
    /// Being undone: request `target` may have been granted or not.
    Cancelling {
        target: u64,
        told: bool,
    },
}

/// One claim, from its request until the worker has confirmed its end.
pub(super) struct Claim {
    pub(super) key: Key,
    pub(super) cell: u16,
    pub(super) wanted: Wanted,
    pub(super) token: u64,
    pub(super) generation: u32,
    pub(super) state: State,
    /// The request that is unanswered, or that made the hold.
    pub(super) id: u64,
    /// When the first copy of that request was sent: what is answered may be that one, also while a
    /// later copy is still on its way.
    pub(super) sent: Option<Time>,
    /// The ring version that the last copy was routed by.
    pub(super) routed: u64,
    pub(super) waits: bool,
    pub(super) deadline: Time,
    /// When the caller asked for what is unanswered.
    pub(super) asked: Time,
}

impl Claim {
    pub(super) fn hold_id(&self) -> Option<HoldId> {
        match self.state {
            State::Held { fence } => Some(HoldId { cell: self.cell, fence }),
            _ => None,
        }
    }

    /// The hold as the worker may have it: held, being asked for, or its release unanswered.
    pub(super) fn listed_id(&self) -> Option<HoldId> {
        match self.state {
            State::Held { fence }
            | State::Confirming { fence }
            | State::Releasing { fence, .. } => Some(HoldId { cell: self.cell, fence }),
            State::Free | State::Acquiring | State::Cancelling { .. } => None,
        }
    }

    /// The unanswered acquire, also while it is being undone: what it may have got at the worker is
    /// not known here.
    pub(super) fn unsettled(&self) -> Option<u64> {
        match self.state {
            State::Acquiring => Some(self.id),
            State::Cancelling { target, .. } => Some(target),
            State::Free
            | State::Confirming { .. }
            | State::Held { .. }
            | State::Releasing { .. } => None,
        }
    }

    /// Whether its caller waits for an answer without a deadline of its own.
    pub(super) fn is_asking(&self) -> bool {
        matches!(self.state, State::Acquiring | State::Confirming { .. })
            && self.deadline == Time::NEVER
    }

    /// The wait that is left.
    fn wait(&self, now: Time) -> Wait {
        if !self.waits {
            Wait::No
        } else if self.deadline == Time::NEVER {
            Wait::Forever
        } else {
            Wait::Millis(self.deadline.since(now).as_millis() as u64)
        }
    }
}

/// What an unanswered request id belongs to.
#[derive(Clone, Debug)]
pub(super) enum Pending {
    Claim(u32),
    Query { token: u64, sent: Time, routed: u64, asked: Time, query: Query },
    Renew { sent: Time },
    Compare { sent: Time },
    GetRing { sent: Time },
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
    /// End the session here.
    Goodbye,
}

/// A key, and where it lives.
///
/// ```
/// use lockring_client::link::{Place, Query};
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
    /// The key's cell.
    pub cell: u16,
    /// The key.
    pub key: &'a [u8],
    /// What is claimed of it.
    pub wanted: Wanted,
    /// How long to wait: `None` without limit, zero for not at all.
    pub wait: Option<Duration>,
}

impl Link {
    /// Claims a key.
    pub fn acquire(&mut self, now: Time, ask: &Ask<'_>) -> ClaimRef {
        let waits = ask.wait != Some(Duration::ZERO);
        let deadline = match ask.wait {
            Some(span) if waits => now.after(span),
            _ => Time::NEVER,
        };
        let slot = self.ask(now, ask, State::Acquiring, waits, deadline);
        if deadline != Time::NEVER {
            self.deadlines.insert((deadline.after(ANSWER_SLACK), slot));
        }
        self.send_claim(now, slot);
        ClaimRef { slot, generation: self.claims[slot as usize].generation }
    }

    /// Takes up a hold that an earlier process of the session has left, once the worker has
    /// confirmed it: [`Outcome::Granted`] follows, or [`NotGranted::NotHeld`].
    pub fn adopt(
        &mut self,
        now: Time,
        token: u64,
        cell: u16,
        key: &[u8],
        fence: Fence,
    ) -> ClaimRef {
        let ask = Ask { token, cell, key, wanted: Wanted::EXCLUSIVE, wait: None };
        let slot = self.ask(now, &ask, State::Confirming { fence }, false, Time::NEVER);
        #[cfg(feature = "testing")]
        if self.mutant == Some(super::LinkMutant::AdoptUnasked) {
            let id = self.claims[slot as usize].id;
            self.confirmed(now, id, Wanted::EXCLUSIVE);
            return ClaimRef { slot, generation: self.claims[slot as usize].generation };
        }
        self.send_claim(now, slot);
        ClaimRef { slot, generation: self.claims[slot as usize].generation }
    }

    /// A new claim with an unanswered request.
    fn ask(&mut self, now: Time, ask: &Ask<'_>, state: State, waits: bool, deadline: Time) -> u32 {
        let id = self.config.ids.next();
        let slot = self.insert(Claim {
            key: Key::new(ask.key),
            cell: ask.cell,
            wanted: ask.wanted,
            token: ask.token,
            generation: 0,
            state,
            id,
            sent: None,
            routed: 0,
            waits,
            deadline,
            asked: now,
        });
        self.pending.insert(id, Pending::Claim(slot));
        if !self.is_up() {
            self.expect_answer(slot);
        }
        slot
    }

    fn insert(&mut self, mut claim: Claim) -> u32 {
        if let Some(slot) = self.free.pop() {
            claim.generation = self.claims[slot as usize].generation;
            self.claims[slot as usize] = claim;
            return slot;
        }
        self.claims.push(claim);
        (self.claims.len() - 1) as u32
    }

    pub(super) fn free(&mut self, slot: u32) {
        let claim = &mut self.claims[slot as usize];
        assert!(claim.state != State::Free, "claim {slot} freed twice");
        claim.state = State::Free;
        claim.generation = claim.generation.wrapping_add(1);
        self.free.push(slot);
    }

    fn slot_of(&self, claim: ClaimRef) -> Option<u32> {
        let known = self.claims.get(claim.slot as usize)?;
        (known.generation == claim.generation && known.state != State::Free).then_some(claim.slot)
    }

    /// The request that made a claim, for tests that follow it to the worker.
    #[cfg(feature = "testing")]
    pub fn request_of(&self, claim: ClaimRef) -> Option<u64> {
        let claim = &self.claims[self.slot_of(claim)? as usize];
        match claim.state {
            State::Cancelling { target, .. } => Some(target),
            _ => Some(claim.id),
        }
    }

    /// Whether this claim is held.
    pub fn is_held(&self, claim: ClaimRef) -> bool {
        self.slot_of(claim)
            .is_some_and(|slot| matches!(self.claims[slot as usize].state, State::Held { .. }))
    }

    /// Gives a hold back; what follows is told under `token`. `false`: it is not held any more (it
    /// was lost, and told so).
    pub fn release(&mut self, now: Time, claim: ClaimRef, token: u64) -> bool {
        let Some(slot) = self.slot_of(claim).filter(|_| self.is_held(claim)) else { return false };
        self.claims[slot as usize].token = token;
        self.begin_release(now, slot, true);
        if !self.is_up() {
            self.expect_answer(slot);
        }
        true
    }

    /// Gives a hold back, and nobody wants to know how that ends.
    pub fn release_quietly(&mut self, now: Time, claim: ClaimRef) {
        if let Some(slot) = self.slot_of(claim).filter(|_| self.is_held(claim)) {
            self.begin_release(now, slot, false);
        }
    }

    /// Turns a hold into a release under way. `told`: the caller wants to know how it ends.
    pub(super) fn begin_release(&mut self, now: Time, slot: u32, told: bool) {
        let id = self.config.ids.next();
        let claim = &mut self.claims[slot as usize];
        let State::Held { fence } = claim.state else {
            panic!("only a hold is released, not {:?}", claim.state)
        };
        let hold = HoldId { cell: claim.cell, fence };
        claim.state = State::Releasing { fence, resent: false, told };
        claim.id = id;
        claim.sent = None;
        claim.asked = now;
        self.digest.remove(hold);
        self.note_ended(hold);
        self.pending.insert(id, Pending::Claim(slot));
        self.send_claim(now, slot);
    }

    /// Gives a claim up, whether it is granted by now or not. `false`: there is nothing to undo.
    /// [`Outcome::Cancelled`] follows when the worker has confirmed it.
    pub fn cancel(&mut self, now: Time, claim: ClaimRef) -> bool {
        let Some(slot) = self.slot_of(claim) else {
            return false;
        };
        match self.claims[slot as usize].state {
            State::Acquiring => self.begin_cancel(now, slot, true),
            // What is not confirmed is not ours to end.
            State::Confirming { .. } => {
                self.drop_claim(slot);
            }
            State::Held { .. } => self.begin_release(now, slot, true),
            State::Free | State::Releasing { .. } | State::Cancelling { .. } => return false,
        }
        true
    }

    pub(super) fn begin_cancel(&mut self, now: Time, slot: u32, told: bool) {
        let id = self.config.ids.next();
        let claim = &mut self.claims[slot as usize];
        let target = claim.id;
        claim.state = State::Cancelling { target, told };
        claim.id = id;
        claim.sent = None;
        self.deadlines.remove(&(claim.deadline.after(ANSWER_SLACK), slot));
        self.parked.retain(|&parked| parked != target);
        self.put_off.remove(&slot);
        // A grant of the target may be under way; it must find nobody.
        self.pending.remove(&target);
        #[cfg(feature = "testing")]
        if self.mutant == Some(super::LinkMutant::CancelForgotten) {
            let token = self.claims[slot as usize].token;
            self.free(slot);
            self.outcomes.push(Outcome::Cancelled { token });
            return;
        }
        self.pending.insert(id, Pending::Claim(slot));
        self.send_claim(now, slot);
    }

    /// Asks a question.
    pub fn query(&mut self, now: Time, token: u64, query: Query) {
        let id = self.config.ids.next();
        let pending = Pending::Query { token, sent: now, routed: 0, asked: now, query };
        self.pending.insert(id, pending);
        if !self.is_up() {
            self.expect_answer_at(now.after(self.config.unreachable_after));
        }
        self.send_query(now, id);
    }

    pub(super) fn send_query(&mut self, now: Time, id: u64) {
        if self.phase != Phase::Up {
            return;
        }
        let version = self.version;
        let Some(Pending::Query { sent, routed, query, .. }) = self.pending.get_mut(&id) else {
            panic!("query {id} is not pending")
        };
        (*sent, *routed) = (now, version);
        let request = match query {
            Query::Inspect(Place { namespace, key }) => {
                Request::Keyed { id, version, operation: Operation::Inspect { namespace }, key }
            }
            Query::Force(Place { namespace, key }) => {
                Request::Keyed { id, version, operation: Operation::Force { namespace }, key }
            }
            Query::Goodbye => Request::Goodbye { id },
            Query::List { namespace, cursor, rows, prefix } => {
                Request::List { id, namespace, cursor: *cursor, rows: *rows, prefix }
            }
        };
        codec::encode_frame(&request, &mut self.out);
    }

    /// Sends what the state of a claim calls for, if a connection stands.
    pub(super) fn send_claim(&mut self, now: Time, slot: u32) {
        if self.phase != Phase::Up {
            return;
        }
        let version = self.version;
        let claim = &mut self.claims[slot as usize];
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
    pub(super) fn give_up(&mut self, now: Time, slot: u32, reason: NotGranted) {
        let claim = &self.claims[slot as usize];
        self.outcomes.push(Outcome::NotGranted { token: claim.token, reason });
        match claim.state {
            State::Confirming { .. } => self.drop_claim(slot),
            _ => self.begin_cancel(now, slot, false),
        }
    }

    /// Forgets a claim that nothing at the worker belongs to, or that the worker has forgotten.
    pub(super) fn drop_claim(&mut self, slot: u32) {
        let claim = &self.claims[slot as usize];
        let (id, deadline) = (claim.id, claim.deadline);
        self.pending.remove(&id);
        self.parked.retain(|&parked| parked != id);
        self.put_off.remove(&slot);
        if deadline != Time::NEVER {
            self.deadlines.remove(&(deadline.after(ANSWER_SLACK), slot));
        }
        self.free(slot);
    }

    /// The claim's cell is another worker's by now, and this one has nothing of it: the caller asks
    /// there.
    pub(super) fn reroute(&mut self, slot: u32) {
        let Claim { token, state, .. } = self.claims[slot as usize];
        self.drop_claim(slot);
        match state {
            State::Acquiring | State::Confirming { .. } => {
                self.outcomes.push(Outcome::NotGranted { token, reason: NotGranted::Moved });
            }
            State::Releasing { told: true, .. } => {
                self.outcomes.push(Outcome::NotHeld { token, maybe_released: true });
            }
            State::Cancelling { told: true, .. } => {
                self.outcomes.push(Outcome::Cancelled { token });
            }
            State::Releasing { told: false, .. } | State::Cancelling { told: false, .. } => {}
            State::Free | State::Held { .. } => panic!("{state:?} has no request to route"),
        }
    }
}
