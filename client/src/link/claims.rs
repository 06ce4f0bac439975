//! Claims and queries: their states, and what callers may ask of them.

use super::key::Key;
use super::{ClaimRef, Link, Loss, NotGranted, Outcome, Phase};
use lockring_proto::{Claim as Wanted, Fence, HoldId, ListCursor, Request, Time, Wait, codec};
use std::time::Duration;

/// The worker times a wait out; this side does so too, this much later, in case no answer comes.
pub(super) const ANSWER_SLACK: Duration = Duration::from_millis(250);

/// How far a claim is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    Free,
    /// Asked for.
    Acquiring,
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
}

impl Claim {
    pub(super) fn hold_id(&self) -> Option<HoldId> {
        match self.state {
            State::Held { fence } => Some(HoldId { cell: self.cell, fence }),
            _ => None,
        }
    }

    /// The hold as the worker may have it: held, or its release unanswered.
    pub(super) fn listed_id(&self) -> Option<HoldId> {
        match self.state {
            State::Held { fence } | State::Releasing { fence, .. } => {
                Some(HoldId { cell: self.cell, fence })
            }
            State::Free | State::Acquiring | State::Cancelling { .. } => None,
        }
    }

    /// The unanswered acquire, also while it is being undone: what it may have got at the worker is
    /// not known here.
    pub(super) fn unsettled(&self) -> Option<u64> {
        match self.state {
            State::Acquiring => Some(self.id),
            State::Cancelling { target, .. } => Some(target),
            State::Free | State::Held { .. } | State::Releasing { .. } => None,
        }
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
    Inspect(Vec<u8>),
    /// A page of locks.
    List {
        /// Where to go on.
        cursor: ListCursor,
        /// Rows wanted.
        rows: u32,
        /// What the keys begin with.
        prefix: Vec<u8>,
    },
    /// End every hold of a key.
    Force(Vec<u8>),
    /// End the session here.
    Goodbye,
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
        let id = self.config.ids.next();
        let waits = ask.wait != Some(Duration::ZERO);
        let deadline = match ask.wait {
            Some(span) if waits => now.after(span),
            _ => Time::NEVER,
        };
        let claim = Claim {
            key: Key::new(ask.key),
            cell: ask.cell,
            wanted: ask.wanted,
            token: ask.token,
            generation: 0,
            state: State::Acquiring,
            id,
            sent: None,
            routed: 0,
            waits,
            deadline,
        };
        let slot = self.insert(claim);
        if deadline != Time::NEVER {
            self.deadlines.insert((deadline.after(ANSWER_SLACK), slot));
        }
        self.pending.insert(id, Pending::Claim(slot));
        self.send_claim(now, slot);
        ClaimRef { slot, generation: self.claims[slot as usize].generation }
    }

    /// Takes up a hold that an earlier process of the session has left.
    pub fn adopt(&mut self, token: u64, cell: u16, key: &[u8], fence: Fence) -> ClaimRef {
        let slot = self.insert(Claim {
            key: Key::new(key),
            cell,
            wanted: Wanted::Exclusive,
            token,
            generation: 0,
            state: State::Held { fence },
            id: 0,
            sent: None,
            routed: 0,
            waits: false,
            deadline: Time::NEVER,
        });
        let hold = HoldId { cell, fence };
        let named = ClaimRef { slot, generation: self.claims[slot as usize].generation };
        self.digest.add(hold);
        // The push stream may have been quicker than the welcome.
        if self.lost_early.remove(&hold).is_some() {
            self.lose(slot, Loss::Forced);
        }
        named
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
            Query::Inspect(key) => Request::Inspect { id, version, namespace: "", key },
            Query::Force(key) => Request::Force { id, version, namespace: "", key },
            Query::Goodbye => Request::Goodbye { id },
            Query::List { cursor, rows, prefix } => {
                Request::List { id, namespace: "", cursor: *cursor, rows: *rows, prefix }
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
                Request::Acquire { id, version, claim: claim.wanted, wait, key }
            }
            State::Releasing { fence, .. } => Request::Release { id, version, fence, key },
            State::Cancelling { target, .. } => Request::Cancel { id, version, target, key },
            State::Free | State::Held { .. } => panic!("nothing to send for {:?}", claim.state),
        };
        codec::encode_frame(&request, &mut self.out);
    }

    /// The caller of an unanswered claim gets its answer now; the worker is told to undo it.
    pub(super) fn give_up(&mut self, now: Time, slot: u32, reason: NotGranted) {
        let token = self.claims[slot as usize].token;
        self.outcomes.push(Outcome::NotGranted { token, reason });
        self.begin_cancel(now, slot, false);
    }
}
