//! What a client's links tell it, and what it does then.

use super::successor::ADOPTED;
use super::{Claimed, Client, State};
use crate::hub::{Hub, Step};
use crate::ring::node_of;
use crate::way::number_of;
use lockring_client::session::{ClaimRef, LinkId, Loss, NotGranted, Outcome};
use lockring_core::Time;
use lockring_core::testing::{Fact, Token, Why};
use lockring_proto::{Claim, Fence, Refusal, RefusalKind, SessionId};
use lockring_ring::NodeId;
use std::time::Duration;

impl Client {
    fn name(&self, token: u64) -> (SessionId, Token) {
        (self.session, Token(token))
    }

    fn request_of(&self, token: u64) -> Option<u64> {
        self.links.request_of(self.claims.get(&token)?.named)
    }

    /// Takes in what the session says.
    pub(super) fn hear(&mut self, hub: &mut Hub, outcome: Outcome) {
        match outcome {
            Outcome::Granted { token, claim, link, fence, until } => {
                self.granted(hub, token, (claim, link), fence);
                if let Some(until) = until {
                    self.is_apart(hub, claim, link, until);
                }
            }
            Outcome::Queued { token, .. } => {
                let (session, name) = self.name(token);
                let request = self.request_of(token);
                if let Some(request) = request {
                    hub.fact(&Fact::InLine { session, token: name, request });
                }
            }
            Outcome::NotGranted { token, reason, .. } => self.not_granted(hub, token, &reason),
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
                self.asked.answers.insert(token, Some(reply));
            }
            Outcome::NoAnswer { token, .. } | Outcome::Moved { token } => {
                self.asked.answers.insert(token, None);
            }
            Outcome::Ring(_) => self.adopt(hub),
            Outcome::BadRing(error) => hub.accuse("rings add up", error.to_string()),
            Outcome::Up { link, welcome } => {
                self.count_nodes(hub, link);
                if welcome.fresh {
                    let worker = number_of(node_of(NodeId(welcome.node)), welcome.worker);
                    let session = self.session;
                    hub.fact(&Fact::Anew { session, worker });
                }
            }
            Outcome::Silent { link } => {
                hub.reach("connections given up as silent");
                self.hang_up(hub, link);
            }
            Outcome::TurnedAway { link, refusal } => self.turned_away(hub, link, &refusal),
            Outcome::NotEnded { refusal, .. } => {
                hub.accuse("no client is rejected", format!("{refusal:?}"));
            }
            Outcome::Ended { loss, refusal } => {
                hub.accuse("no client is rejected", format!("{loss}: {refusal:?}"));
            }
            Outcome::Draining => {}
            other => self.hear_of_moves(hub, other),
        }
    }

    /// A worker takes nobody on, for now.
    fn turned_away(&mut self, hub: &mut Hub, link: LinkId, refusal: &Refusal) {
        match refusal.kind {
            RefusalKind::Draining => hub.reach("hellos to a node that stops"),
            RefusalKind::Unavailable => hub.reach("hellos to a node without contact"),
            _ => hub.accuse("no client is rejected", format!("{refusal:?}")),
        }
        self.hang_up(hub, link);
    }

    /// Takes in what becomes of holds and links as cells and nodes change.
    fn hear_of_moves(&mut self, hub: &mut Hub, outcome: Outcome) {
        match outcome {
            Outcome::Jeopardy { .. } => hub.reach("jeopardies"),
            Outcome::Follows { claim, link, until } => {
                hub.reach("holds that went with their cells");
                self.is_apart(hub, claim, link, until);
            }
            Outcome::Settled { claim, link } => {
                hub.reach("holds that have arrived with their cells");
                self.went(hub, claim, link, None);
            }
            Outcome::LinkOver { link } => {
                hub.reach("links that are over");
                self.hang_up(hub, link);
                self.sides.remove(&link);
                self.host.dials.remove(&link);
                self.links.forget(link);
            }
            other => panic!("{other:?} is heard before"),
        }
    }

    /// A hold is believed by itself, until then by the client's clock.
    fn is_apart(&mut self, hub: &mut Hub, named: ClaimRef, link: LinkId, until: Time) {
        let until = Time(self.host.clock.real(until).0.saturating_sub(1));
        self.went(hub, named, link, Some(until));
    }

    /// A hold is at the worker of a link from now on.
    fn went(&mut self, hub: &mut Hub, named: ClaimRef, link: LinkId, until: Option<Time>) {
        let session = self.session;
        let found = self.claims.iter().find(|(_, claimed)| claimed.named == named);
        if let (Some((&token, _)), Some(worker)) = (found, self.worker(link)) {
            hub.fact(&Fact::Went { session, token: Token(token), worker, until });
        }
    }

    /// Counts the links that come up while others are, to other nodes.
    fn count_nodes(&self, hub: &mut Hub, at: LinkId) {
        let node = |link| self.links.worker(link).map(|worker| worker.node);
        let is_other = |&link: &LinkId| self.links.is_up(link) && node(link) != node(at);
        if self.links.links().any(|link| is_other(&link)) {
            hub.reach("clients at several nodes at once");
        }
    }

    /// The session has done with a connection.
    fn hang_up(&mut self, hub: &mut Hub, link: LinkId) {
        if let Some(way) = self.side(link).way.take() {
            hub.cut(way, Duration::ZERO);
        }
    }

    fn granted(
        &mut self,
        hub: &mut Hub,
        token: u64,
        (named, link): (ClaimRef, LinkId),
        fence: Fence,
    ) {
        let session = self.session;
        let worker = self.worker(link).expect("whoever grants has said who it is");
        let Some(claimed) = self.claims.get_mut(&token) else {
            hub.accuse("I9 no phantoms", format!("{session:?} was granted {token}, long settled"));
            return;
        };
        let asked = claimed.state;
        claimed.named = named;
        claimed.state = State::Holding(fence);
        if let State::Asking(_) = asked {
            let claimed = *claimed;
            return self.adopted(hub, (token, worker), claimed, fence);
        }
        let Claimed { slot, key, claim, .. } = *claimed;
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
            NotGranted::Moved => "told that nobody serves it",
            NotGranted::Ended(_) => "told of the end",
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
        if self.leaving {
            // It was given up with the goodbye, and whether that ended it nobody knows.
            hub.fact(&Fact::NotHeld { session, token: name, maybe: true });
            return self.settled(hub, token);
        }
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
