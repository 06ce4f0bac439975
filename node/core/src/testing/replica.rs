//! A worker that has nothing but the stream of another: what it makes of it must be what the other
//! has.

use crate::cells::standing::Standing;
use crate::config::Config;
use crate::event::LinkIndex;
use crate::locks::{
    CellIndex, Change, Definition, LinkRecord, Locks, Note, Noted, NotedSource, Op, Source,
};
use lockring_proto::Fence;
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
        noted: &Noted,
    ) -> Result<(), String> {
        let mut ended = None;
        let change = match *noted {
            Noted::Granted { link, request, ref source, since } => {
                let source = match *source {
                    NotedSource::Asked { ref key, claim } => Source::Asked { key, claim },
                    NotedSource::Queue => Source::Queue,
                    NotedSource::Reclaimed { ref key, claim, fence } => {
                        Source::Reclaimed { key, claim, fence }
                    }
                };
                Change::Granted { link: self.link(link)?, request, source, since }
            }
            Noted::Ended { fence, cause } => {
                let spot = self.locks.find_fence(cell, tag, fence);
                let held = spot.and_then(|spot| self.locks.held(spot.record(), fence));
                ended = held.map(|(link, ..)| self.locks.number_of(link));
                Change::Ended { fence, cause }
            }
            Noted::Queued { link, request, ref key, claim, since, patience } => {
                Change::Queued { link: self.link(link)?, request, key, claim, since, patience }
            }
            Noted::Left { link, request, cause } => {
                ended = Some(link);
                Change::Left { link: self.link(link)?, request, cause }
            }
        };
        if let Change::Granted {
            link,
            source: Source::Asked { key, .. } | Source::Reclaimed { key, .. },
            ..
        }
        | Change::Queued { link, key, .. } = change
        {
            let place = self.locks.place(self.seeds[&link], key).ok_or("another worker's key")?;
            if (place.cell, place.tag) != (cell, tag) {
                return Err(format!("a key is at {place:?}, not at {tag} of {cell:?}"));
            }
        }
        self.locks.replay(cell, tag, &Op { number, change }).map_err(|unfit| unfit.0.to_owned())?;
        if let Some(link) = ended {
            self.drop_empty(link);
        }
        Ok(())
    }
}
