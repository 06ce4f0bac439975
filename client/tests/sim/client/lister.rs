//! A client that lists a worker's keys page by page, while they come and go.

use super::Client;
use crate::cluster::Cluster;
use crate::hub::{Hub, Step};
use crate::keys::{Keys, space_of};
use crate::ring::node_of;
use lockring_client::session::Query;
use lockring_core::testing::{Fact, KeyId};
use lockring_proto::{ListCursor, Reply};
use std::time::Duration;

impl Client {
    /// Takes in the page that was asked for, if it has come, and asks for the next.
    pub fn list_on(&mut self, hub: &mut Hub, keys: &Keys, cluster: &Cluster) {
        if self.workload.closing {
            return;
        }
        self.plan(hub, Duration::from_millis(20), Step::List);
        let cursor = match self.asked.listing {
            None => self.begin_listing(hub, keys, cluster),
            Some(token) => match self.asked.answers.get(&token) {
                None => return,
                Some(Some(Reply::Listed { listing, .. })) => {
                    let seen =
                        listing.rows.iter().map(|row| keys.id_of(self.session, &row.key)).collect();
                    let (session, last) = (self.session, listing.next.is_none());
                    let next = listing.next;
                    hub.reach("pages of listings");
                    hub.fact(&Fact::ListPage { session, keys: seen, last });
                    if last {
                        hub.reach("whole listings");
                    }
                    next
                }
                Some(_) => None,
            },
        };
        self.asked.listing = None;
        if let Some(cursor) = cursor {
            let rows = self.rng.range(1, 12) as u32;
            self.asked.listing = self.query(
                hub,
                cluster,
                Query::List { namespace: String::new(), cursor, rows, prefix: Vec::new() },
            );
        }
    }

    /// `None`: it does not know the ring yet, or not what the node has become since.
    fn begin_listing(&self, hub: &mut Hub, keys: &Keys, cluster: &Cluster) -> Option<ListCursor> {
        let ring = self.links.ring()?;
        let worker_of = |key: &[u8]| ring.route(self.nature.seed, key).worker;
        let node = worker_of(&[]).node;
        let workers = cluster.workers_of(node_of(node));
        if ring.node(node).is_none_or(|known| known.workers != workers) {
            return None;
        }
        let space = space_of(self.index);
        let all = (0..keys.count() as u32).map(|id| keys.ids_in(space, KeyId(id)));
        let of = all.filter(|&key| worker_of(keys.bytes(key)) == worker_of(&[])).collect();
        hub.fact(&Fact::ListBegan { session: self.session, of });
        Some(ListCursor::default())
    }
}
