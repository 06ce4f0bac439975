//! What a client's links tell it, and what it does then.

use super::heir::ADOPTED;
use super::{Claimed, Client, State, routes};
use crate::hub::{Hub, Step};
use lockring_client::link::{ClaimRef, Loss, NotGranted, Outcome};
use lockring_core::testing::{Fact, Token, Why};
use lockring_proto::{Claim, Fence, RefusalKind, RingChunk, SessionId};
use std::time::Duration;

impl Client {
    fn name(&self, token: u64) -> (SessionId, Token) {
        (self.session, Token(token))
    }

    fn request_of(&self, token: u64) -> Option<u64> {
        let claimed = self.claims.get(&token)?;
        self.lanes.get(&claimed.worker)?.link.request_of(claimed.named)
    }

    /// Takes in what a link says.
    pub(super) fn hear(&mut self, hub: &mut Hub, worker: u16, outcome: Outcome) {
        match outcome {
            Outcome::Granted { token, claim, fence } => self.granted(hub, token, claim, fence),
            Outcome::Queued { token, .. } => {
                let (session, name) = self.name(token);
                let request = self.request_of(token);
                if let Some(request) = request {
                    hub.fact(&Fact::InLine { session, token: name, request });
                }
            }
            Outcome::NotGranted { token, reason } => self.not_granted(hub, token, &reason),
            Outcome::Released { token } => {
                let (session, token) = self.name(token);
                hub.fact(&Fact::Released { session, token });
                self.settled(hub, token.0);
            }
            Outcome::NotHeld { token, maybe_released: maybe } => {
                let (session, token) = self.name(token);
                hub.fact(&Fact::NotHeld { session, token, maybe });
                self.settled(hub, token.0);
            }
            Outcome::Unconfirmed { token, .. } => {
                hub.reach("releases nobody confirmed");
                let (session, token) = self.name(token);
                hub.fact(&Fact::NotHeld { session, token, maybe: true });
                self.settled(hub, token.0);
            }
            Outcome::Cancelled { token } => {
                let (session, token) = self.name(token);
                hub.fact(&Fact::Undone { session, token });
                self.settled(hub, token.0);
            }
            Outcome::Lost { token, reason, .. } => self.lost(hub, token, reason),
            Outcome::Answer { token, reply } => {
                self.answers.insert(token, Some(reply));
            }
            Outcome::NoAnswer { token } | Outcome::Moved { token } => {
                self.answers.insert(token, None);
            }
            Outcome::Ring(chunk) => self.ring_part(hub, worker, *chunk),
            Outcome::Up(welcome) => self.up(hub, worker, welcome.fresh),
            Outcome::Rejected(refusal) if refusal.kind == RefusalKind::Draining => {
                hub.reach("hellos to a node that stops");
                self.turned_away(hub, worker);
            }
            Outcome::Rejected(refusal) => {
                hub.accuse("no client is rejected", format!("{refusal:?}"));
            }
            Outcome::Draining => {}
        }
    }

    fn turned_away(&mut self, hub: &mut Hub, worker: u16) {
        let now = self.local(hub);
        let Some(lane) = self.lanes.get_mut(&worker) else { return };
        if let Some(way) = lane.way.take() {
            hub.cut(way, Duration::ZERO);
        }
        lane.link.down(now);
    }

    fn up(&mut self, hub: &mut Hub, worker: u16, fresh: bool) {
        let now = self.local(hub);
        let unknown = self.ring.is_none();
        let Some(lane) = self.lanes.get_mut(&worker) else { return };
        lane.backoff = Duration::ZERO;
        if fresh {
            hub.fact(&Fact::Anew { session: self.session, worker });
        }
        if unknown {
            lane.link.ask_for_ring(now);
        }
        self.adopt(hub, worker);
    }

    fn ring_part(&mut self, hub: &mut Hub, worker: u16, part: RingChunk) {
        let now = self.local(hub);
        let Some(lane) = self.lanes.get_mut(&worker) else { return };
        if let Some(ring) = lane.ring.take(part).expect("a whole ring") {
            let (version, serves) = routes(&ring, worker);
            lane.link.ring_is(now, version, serves);
            if self.ring.as_ref().is_none_or(|known| known.version() < ring.version()) {
                self.ring = Some(ring);
            }
        }
    }

    fn granted(&mut self, hub: &mut Hub, token: u64, named: ClaimRef, fence: Fence) {
        let session = self.session;
        let Some(claimed) = self.claims.get_mut(&token) else {
            hub.accuse("I9 no phantoms", format!("{session:?} was granted {token}, long settled"));
            return;
        };
        let asked = claimed.state;
        claimed.named = named;
        claimed.state = State::Holding(fence);
        if let State::Asking(_) = asked {
            let claimed = *claimed;
            return self.adopted(hub, token, claimed, fence);
        }
        let Claimed { slot, key, claim, worker, .. } = *claimed;
        hub.fact(&Fact::Held { session, worker, token: Token(token), key, claim, fence });
        if claim == Claim::EXCLUSIVE {
            hub.used(key, fence, false);
        }
        hub.reach("holds");
        if let Some(after) = self.workload.holds(&mut self.rng, slot, self.ttl) {
            self.plan(hub, after, Step::Release(token));
        }
    }

    fn not_granted(&mut self, hub: &mut Hub, token: u64, reason: &NotGranted) {
        hub.reach(match reason {
            NotGranted::Busy(_) => "told busy",
            NotGranted::TimedOut(Some(_)) => "told timed out",
            NotGranted::TimedOut(None) => "gave up after its own deadline",
            NotGranted::Refused(_) => "told refused",
            NotGranted::Unreachable => "told unreachable",
            NotGranted::NotHeld => "holds taken up too late",
            NotGranted::TooLate => "grants that came too late",
            NotGranted::Moved | NotGranted::Ended(_) => "told of the end",
        });
        let (session, name) = self.name(token);
        let asking = self.claims.get(&token).map(|claimed| claimed.state);
        if !matches!(asking, Some(State::Asking(_))) {
            hub.fact(&Fact::NotGranted { session, token: name });
        }
        self.settled(hub, token);
    }

    fn lost(&mut self, hub: &mut Hub, token: u64, loss: Loss) {
        let (session, name) = self.name(token);
        let (why, reached) = match loss {
            Loss::Lapsed => (Why::Lapsed, "holds lapsed"),
            Loss::SessionEnded => (Why::Ended, "holds lost with the session"),
            Loss::Forced => (Why::Forced, "holds lost by force"),
            Loss::Unknown => (Why::Unknown, "holds found lost"),
            other => panic!("{session:?} was lost as {other:?}"),
        };
        hub.reach(reached);
        hub.fact(&Fact::Lost { session, token: name, why });
        if let Some(Claimed { key, state: State::Holding(fence), claim: Claim::EXCLUSIVE, .. }) =
            self.claims.get(&token).copied()
            && self.rng.percent(50)
        {
            let after = Duration::from_micros(self.rng.range(0, 3_000_000));
            self.plan(hub, after, Step::WriteLate(key, fence));
        }
        self.settled(hub, token);
    }

    /// A claim is over: its slot goes on.
    pub(super) fn settled(&mut self, hub: &mut Hub, token: u64) {
        if let Some(claimed) = self.claims.remove(&token)
            && claimed.slot != ADOPTED
            && let Some(after) = self.workload.pause_of(&mut self.rng, claimed.slot, self.ttl)
        {
            self.plan(hub, after, Step::Claim(claimed.slot));
        }
    }
}
