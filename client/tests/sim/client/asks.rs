//! What a client asks for, gives back, gives up and ends.

use super::{Claimed, Client, QUERY, State};
use crate::cluster::Cluster;
use crate::hub::Hub;
use crate::keys::{Keys, space_of};
use lockring_client::session::{Ask, LinkId, Loss, Query};
use lockring_core::testing::{Fact, KeyId, Token};
use lockring_proto::{Claim, Digest, Reply};
use std::time::Duration;

/// Within which a session is closed, as the client's driver has it.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

impl Client {
    /// Asks for a key. `None`: it does not know the ring yet.
    pub fn ask(
        &mut self,
        hub: &mut Hub,
        keys: &Keys,
        cluster: &Cluster,
        slot: usize,
        wanted: (KeyId, Claim, Option<Duration>),
    ) -> Option<u64> {
        let (key, claim, wait) = wanted;
        let key = keys.ids_in(space_of(self.index), key);
        let cell = self.links.ring()?.route(self.nature.seed, keys.bytes(key)).cell.0;
        self.asked.bytes.entry(key).or_insert_with(|| keys.bytes(key).to_vec());
        self.asked.next_token += 1;
        let token = self.asked.next_token;
        let now = self.local(hub);
        let (session, patient) = (self.session, wait.is_none());
        hub.fact(&Fact::Asked { session, token: Token(token), key, claim, patient });
        let ask = Ask { token, key: keys.bytes(key), wanted: claim, wait };
        let named = self.links.acquire(now, &ask);
        if self.links.request_of(named).is_some_and(|id| id >> 32 == 1) {
            hub.reach("ids past 32 bits");
        }
        let state = State::Waiting;
        self.claims.insert(token, Claimed { slot, key, claim, cell, named, seen: None, state });
        self.after(hub, cluster);
        Some(token)
    }

    /// Gives a hold back; `quietly`: nobody wants to know how that ends.
    pub fn release(&mut self, hub: &mut Hub, cluster: &Cluster, token: u64, quietly: bool) {
        let now = self.local(hub);
        let Some(claimed) = self.claims.get_mut(&token) else { return };
        let State::Holding(fence) = claimed.state else { return };
        claimed.state = State::Giving;
        let Claimed { key, claim, named, .. } = *claimed;
        if claim == Claim::EXCLUSIVE {
            hub.used(key, fence, true);
        }
        hub.fact(&Fact::Giving { session: self.session, token: Token(token) });
        if quietly {
            self.links.release_quietly(now, named);
            self.settled(hub, token);
        } else if !self.links.release(now, named, token) {
            hub.accuse("a hold can be released", format!("{token} of {:?}", self.session));
        }
        self.after(hub, cluster);
    }

    /// Gives a claim up while it waits.
    pub fn give_up(&mut self, hub: &mut Hub, cluster: &Cluster, token: u64) {
        let now = self.local(hub);
        let Some(claimed) = self.claims.get_mut(&token) else { return };
        if claimed.state != State::Waiting {
            return;
        }
        claimed.state = State::Undoing;
        let named = claimed.named;
        if let Some(request) = self.links.request_of(named) {
            hub.reach("cancels");
            hub.undoing.insert((self.session, request));
            let token = Token(token);
            hub.fact(&Fact::Undoing { session: self.session, token, request });
        }
        self.links.cancel(now, named);
        self.after(hub, cluster);
    }

    /// Asks a question; the answer is found under the token.
    pub fn query(&mut self, hub: &mut Hub, cluster: &Cluster, query: Query) -> Option<u64> {
        let ring = self.links.ring()?;
        let first = ring.route(self.nature.seed, &[]).worker;
        let now = self.local(hub);
        self.asked.next_token += 1;
        let token = QUERY | self.asked.next_token;
        match query {
            Query::List { .. } => self.links.query_at(now, token, first, query),
            Query::Inspect(_) | Query::Force(_) => self.links.query(now, token, query),
        }
        self.after(hub, cluster);
        Some(token)
    }

    /// Ends the session everywhere.
    pub fn say_goodbye(&mut self, hub: &mut Hub, cluster: &Cluster) {
        self.leaving = true;
        let now = self.local(hub);
        for (&token, claimed) in &self.claims {
            if let State::Holding(_) = claimed.state {
                hub.fact(&Fact::Giving { session: self.session, token: Token(token) });
            }
        }
        self.links.close(now, (true, CLOSE_TIMEOUT), Loss::Closed);
        self.after(hub, cluster);
    }

    /// The answer to a query, if there is one by now.
    pub fn answer(&self, token: u64) -> Option<&Reply> {
        self.asked.answers.get(&token).and_then(Option::as_ref)
    }

    /// The links to workers that there are, for the last look.
    fn live_links(&self) -> impl Iterator<Item = LinkId> {
        self.links.links().filter(|&link| !self.links.is_retired(link))
    }

    /// Whether all of its links are up.
    pub fn is_linked(&self) -> bool {
        self.live_links().all(|link| self.links.is_up(link))
    }

    /// What it holds at each worker.
    pub fn digests(&self) -> Vec<(u16, Digest)> {
        let of = |link| Some((self.worker(link)?, self.links.digest(link)));
        self.live_links().filter_map(of).collect()
    }
}
