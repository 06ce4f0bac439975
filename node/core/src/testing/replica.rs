//! A worker that has nothing but the stream of another: what it makes of it must be what the other
//! has.

use crate::cells::standing::Standing;
use crate::config::Config;
use crate::event::LinkIndex;
use crate::locks::{
    CellIndex, Change, Definition, LinkRecord, Locks, Note, Noted, NotedSource, Op, Source, Spot,
};
use lockring_proto::{Claim, Fence};
use lockring_ring::NamespaceSeed;
use std::collections::BTreeMap;

/// The locks that a stream makes.
#[derive(Clone)]
pub struct Replica {
    locks: Locks,
    /// The links of the stream, by their numbers.
    links: BTreeMap<u64, LinkIndex>,
    seeds: BTreeMap<LinkIndex, NamespaceSeed>,
}

impl Replica {
    pub(super) fn new(config: &Config) -> Self {
        let standing = Standing::new(config.epoch, config.ring_version);
        let locks = Locks::new(config, &standing);
        Self { locks, links: BTreeMap::new(), seeds: BTreeMap::new() }
    }

    /// What the ops have made, in 64 bits.
    pub fn fingerprint(&self) -> u64 {
        self.locks.fingerprint()
    }

    /// Takes one note in.
    ///
    /// # Errors
    /// When it speaks of what there is not.
    pub fn see(&mut self, note: &Note) -> Result<(), String> {
        match *note {
            Note::Defined { link: number, session, ttl, namespace, seed } => {
                let definition = Definition { number, session, ttl, namespace, seed };
                let link = self.locks.define(definition);
                self.links.insert(number, link);
                self.seeds.insert(link, seed);
            }
            Note::Dead { link: number, death } => {
                let link = self.link(number)?;
                self.locks.apply_link(link, LinkRecord::Dead(death));
                self.drop_empty(number);
            }
            Note::Op { cell, tag, number, ref change } => {
                self.op(CellIndex(cell), tag, number, change)?;
            }
        }
        while self.locks.next_changed().is_some() {}
        Ok(())
    }

    fn link(&self, number: u64) -> Result<LinkIndex, String> {
        self.links.get(&number).copied().ok_or_else(|| format!("there is no link {number}"))
    }

    /// The numbers of dead links are forgotten when nothing is left of them.
    fn drop_empty(&mut self, number: u64) {
        let link = self.links[&number];
        let used = self.locks.used_by(link);
        if self.locks.is_dead(link) && used.holds == 0 && used.waiters == 0 {
            self.locks.drop_link(link);
            self.links.remove(&number);
        }
    }

    fn op(
        &mut self,
        cell: CellIndex,
        tag: u32,
        number: Fence,
        change: &Noted,
    ) -> Result<(), String> {
        match *change {
            Noted::Granted {
                link: by,
                request,
                source: NotedSource::Asked { ref key, claim },
                since,
            } => {
                let link = self.link(by)?;
                let spot = self.spot_of_key(link, cell, tag, (key, claim))?;
                let source = Source::Asked { key, claim };
                let change = Change::Granted { link, request, source, since };
                self.locks.apply(spot, &Op { number, change });
            }
            Noted::Granted { link: by, request, source: NotedSource::Queue, since } => {
                let link = self.link(by)?;
                let spot = self.spot_of_waiter(link, request)?;
                let source = Source::Queue;
                let change = Change::Granted { link, request, source, since };
                self.locks.apply(spot, &Op { number, change });
            }
            Noted::Ended { fence, cause } => {
                let found = self.locks.find_fence(cell, tag, fence);
                let (spot, link) = found.ok_or_else(|| format!("nobody holds {fence}"))?;
                let of = self.locks.number_of(link);
                self.locks.apply(spot, &Op { number, change: Change::Ended { fence, cause } });
                self.drop_empty(of);
            }
            Noted::Queued { link: by, request, ref key, claim, since, patience } => {
                let link = self.link(by)?;
                let spot = self.spot_of_key(link, cell, tag, (key, claim))?;
                let change = Change::Queued { link, request, key, claim, since, patience };
                self.locks.apply(spot, &Op { number, change });
            }
            Noted::Left { link: by, request, cause } => {
                let link = self.link(by)?;
                let spot = self.spot_of_waiter(link, request)?;
                let change = Change::Left { link, request, cause };
                self.locks.apply(spot, &Op { number, change });
                self.drop_empty(by);
            }
        }
        Ok(())
    }

    fn spot_of_key(
        &self,
        link: LinkIndex,
        cell: CellIndex,
        tag: u32,
        (key, claim): (&[u8], Claim),
    ) -> Result<Spot, String> {
        let place = self.locks.place(self.seeds[&link], key).ok_or("it is another worker's key")?;
        if (place.cell, place.tag) != (cell, tag) {
            return Err(format!("a key is at {place:?}, not at {tag} of {cell:?}"));
        }
        let found = self.locks.find(place, self.locks.namespace_of(link), key);
        let Some(record) = found else { return Ok(Spot::free(place)) };
        match self.locks.can_take(record, claim) {
            true => Ok(Spot::used(place, record)),
            false => Err(format!("a key of another kind is claimed as {claim:?}")),
        }
    }

    fn spot_of_waiter(&self, link: LinkIndex, request: u64) -> Result<Spot, String> {
        let found = self.locks.entry_by_request(link, request);
        let found = found.filter(|&entry| self.locks.entry(entry).fence.is_none());
        let waiter = found.ok_or_else(|| format!("request {request} of {link:?} waits nowhere"))?;
        let record = self.locks.entry(waiter).record;
        Ok(Spot::used(self.locks.place_of(record), record).entry(waiter))
    }
}
