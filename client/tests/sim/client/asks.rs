//! What a client asks for, gives back, gives up and ends.

use super::{Claimed, Client, QUERY, State};
use crate::hub::Hub;
use crate::keys::{Keys, space_of};
use crate::node::Node;
use lockring_client::link::{Ask, Link, Loss, Query};
use lockring_core::testing::{Fact, KeyId, Token};
use lockring_proto::{Claim, Reply};
use lockring_ring::NamespaceSeed;
use std::time::Duration;

impl Client {
    /// Asks for a key. `None`: it does not know the ring yet.
    pub fn ask(
        &mut self,
        hub: &mut Hub,
        keys: &Keys,
        node: &Node,
        slot: usize,
        wanted: (KeyId, Claim, Option<Duration>),
    ) -> Option<u64> {
        let (key, claim, wait) = wanted;
        let key = keys.ids_in(space_of(self.index), key);
        let route = self.ring.as_ref()?.route(self.seed, keys.bytes(key));
        self.bytes.entry(key).or_insert_with(|| keys.bytes(key).to_vec());
        let worker = route.worker.worker;
        self.next_token += 1;
        let token = self.next_token;
        let now = self.local(hub);
        hub.fact(&Fact::Asked { session: self.session, token: Token(token), key, claim });
        let cell = route.cell.0;
        let ask = Ask { token, cell, key: keys.bytes(key), wanted: claim, wait };
        let lane = self.lane(hub, worker);
        let named = lane.link.acquire(now, &ask);
        if lane.link.request_of(named).is_some_and(|id| id >> 32 == 1) {
            hub.reach("ids past 32 bits");
        }
        let state = State::Waiting;
        self.claims.insert(token, Claimed { slot, key, claim, worker, cell, named, state });
        self.after(hub, node, worker);
        Some(token)
    }

    /// Gives a hold back; `quietly`: nobody wants to know how that ends.
    pub fn release(&mut self, hub: &mut Hub, node: &Node, token: u64, quietly: bool) {
        let now = self.local(hub);
        let Some(claimed) = self.claims.get_mut(&token) else { return };
        let State::Holding(fence) = claimed.state else { return };
        claimed.state = State::Giving;
        let Claimed { key, claim, worker, named, .. } = *claimed;
        if claim == Claim::EXCLUSIVE {
            hub.used(key, fence, true);
        }
        hub.fact(&Fact::Giving { session: self.session, token: Token(token) });
        let Some(lane) = self.lanes.get_mut(&worker) else { return };
        if quietly {
            lane.link.release_quietly(now, named);
            self.settled(hub, token);
        } else if !lane.link.release(now, named, token) {
            hub.accuse("a hold can be released", format!("{token} of {:?}", self.session));
        }
        self.after(hub, node, worker);
    }

    /// Gives a claim up while it waits.
    pub fn give_up(&mut self, hub: &mut Hub, node: &Node, token: u64) {
        let now = self.local(hub);
        let Some(claimed) = self.claims.get_mut(&token) else { return };
        if claimed.state != State::Waiting {
            return;
        }
        claimed.state = State::Undoing;
        let Claimed { worker, named, .. } = *claimed;
        let Some(lane) = self.lanes.get_mut(&worker) else { return };
        if let Some(request) = lane.link.request_of(named) {
            hub.reach("cancels");
            hub.undoing.insert((self.session, request));
            let token = Token(token);
            hub.fact(&Fact::Undoing { session: self.session, token, request });
        }
        lane.link.cancel(now, named);
        self.after(hub, node, worker);
    }

    /// Asks a question; the answer is found under the token.
    pub fn query(&mut self, hub: &mut Hub, node: &Node, query: Query) -> Option<u64> {
        let (seed, key) = match &query {
            Query::Inspect(place) | Query::Force(place) if !place.namespace.is_empty() => {
                (NamespaceSeed::of(&place.namespace), place.key.clone())
            }
            Query::Inspect(place) | Query::Force(place) => (self.seed, place.key.clone()),
            Query::List { .. } | Query::Goodbye => (self.seed, Vec::new()),
        };
        let worker = self.ring.as_ref()?.route(seed, &key).worker.worker;
        let now = self.local(hub);
        self.next_token += 1;
        let token = QUERY | self.next_token;
        self.lane(hub, worker).link.query(now, token, query);
        self.after(hub, node, worker);
        Some(token)
    }

    /// Ends the session everywhere.
    pub fn say_goodbye(&mut self, hub: &mut Hub, node: &Node) {
        self.leaving = true;
        let now = self.local(hub);
        for (&token, claimed) in &self.claims {
            if let State::Holding(_) = claimed.state {
                hub.fact(&Fact::Giving { session: self.session, token: Token(token) });
            }
        }
        let workers: Vec<u16> = self.lanes.keys().copied().collect();
        for worker in workers {
            if let Some(lane) = self.lanes.get_mut(&worker) {
                // As the client's task does it: nobody waits any more, then the goodbye.
                lane.link.give_up_waiting(now, Loss::Closed);
                lane.link.query(now, QUERY, Query::Goodbye);
            }
            self.after(hub, node, worker);
        }
    }

    /// The answer to a query, if there is one by now.
    pub fn answer(&self, token: u64) -> Option<&Reply> {
        self.answers.get(&token).and_then(Option::as_ref)
    }

    /// Where its links stand, for the last look.
    pub fn links(&self) -> impl Iterator<Item = (u16, &Link)> {
        self.lanes.iter().map(|(&worker, lane)| (worker, &lane.link))
    }
}
