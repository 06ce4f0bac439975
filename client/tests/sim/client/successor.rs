//! A process that takes up the session of one that was killed: it knows some of the holds, and what
//! it does not know is to be given back.

use super::{Claimed, Client, State};
use crate::hub::{Hub, Step};
use lockring_client::session::RequestIds;
use lockring_core::testing::{Fact, Token};
use lockring_proto::{Claim, Fence, SessionId};
use std::time::Duration;

/// The slot of holds that are taken up. Nothing follows when they are over.
pub const ADOPTED: usize = usize::MAX;

/// What is left of a process.
pub struct Estate {
    session: SessionId,
    ttl: Duration,
    holds: Vec<Claimed>,
}

impl Client {
    /// What the next process gets to know of this one, if it goes on with the session. It does not
    /// if a hello of this one may still be under way: a node could not tell it from a newer
    /// process's, and would refuse the next one.
    pub(super) fn leave(&mut self) -> Option<Estate> {
        let answered = !self.past.successor && self.is_linked();
        if !answered || !self.rng.percent(60) {
            return None;
        }
        let tokens = self.claims.values().filter(|claimed| {
            matches!(claimed.state, State::Holding(_)) && claimed.claim == Claim::EXCLUSIVE
        });
        let holds = tokens.copied().collect::<Vec<_>>();
        let holds = holds.into_iter().filter(|_| self.rng.percent(70)).collect();
        Some(Estate { session: self.session, ttl: self.ttl, holds })
    }

    /// Starts with the session of the process before.
    pub(super) fn take_up(&mut self, hub: &mut Hub) -> RequestIds {
        let estate = self.past.estate.as_ref().expect("a successor has an estate");
        hub.reach("sessions taken up");
        (self.session, self.ttl) = (estate.session, estate.ttl);
        hub.fact(&Fact::TakenUp { session: self.session });
        RequestIds::of_successor(self.rng.draw())
    }

    /// The ring is known: holds are taken up, if they are still there.
    pub(super) fn adopt(&mut self, hub: &mut Hub) {
        let now = self.local(hub);
        let Some(estate) = &mut self.past.estate else { return };
        for mut claimed in std::mem::take(&mut estate.holds) {
            let Claimed { key, state: State::Holding(fence), .. } = claimed else { continue };
            self.asked.next_token += 1;
            let token = self.asked.next_token;
            claimed.named = self.links.adopt(now, token, &self.asked.bytes[&key], fence);
            claimed.slot = ADOPTED;
            claimed.state = State::Asking(fence);
            self.claims.insert(token, claimed);
            hub.reach("tokens shown");
        }
    }

    /// The node has confirmed a hold of the earlier process.
    pub(super) fn adopted(
        &mut self,
        hub: &mut Hub,
        (token, worker): (u64, u16),
        claimed: Claimed,
        fence: Fence,
    ) {
        let Claimed { key, claim, .. } = claimed;
        hub.reach("holds taken up");
        let session = self.session;
        hub.fact(&Fact::Adopted { session, worker, token: Token(token), key, claim, fence });
        let after = Duration::from_micros(self.rng.range(0, 4_000_000));
        self.plan(hub, after, Step::Release(token));
    }
}
