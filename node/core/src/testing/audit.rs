//! The machine's inner invariants, each looked at from the outside in: what is counted is what is
//! there, every index names what it should, and every key is in its simplest form.

use crate::Time;
use crate::accounts::{Accounts, Amounts, claim_bytes};
use crate::machine::Machine;
use crate::slab::NIL;
use crate::table::Place;
use lockring_proto::{Digest, Fence};
use std::collections::BTreeMap;

/// What one pass over the keys in use has counted.
#[derive(Default)]
struct Counted {
    /// Digest, waiters and thin holds of each link.
    links: BTreeMap<u32, (Digest, u32, u32)>,
    keys: u32,
    riches: u32,
    holders: u32,
    waiters: u32,
    timed: usize,
    thin: u32,
    /// Bytes of the claims of each link that are not thin.
    rich_bytes: BTreeMap<u32, u64>,
}

fn same<T: Copy + PartialEq + std::fmt::Debug>(
    what: &str,
    counted: T,
    kept: T,
) -> Result<(), String> {
    if counted == kept {
        return Ok(());
    }
    Err(format!("{what}: counted {counted:?}, kept {kept:?}"))
}

impl Machine {
    /// Looks at everything.
    ///
    /// # Errors
    /// With what does not add up.
    pub fn audit(&self) -> Result<(), String> {
        let mut counted = Counted::default();
        for (at, cell) in self.cells.iter().enumerate() {
            for record in cell.table.iter() {
                counted.keys += 1;
                self.audit_key(at as u32, record, &mut counted)?;
            }
        }
        for (&link, &(digest, waiters, thin)) in &counted.links {
            let kept = self.links.get(link);
            same("digest of a link", digest, kept.digest)?;
            same("waiters of a link", waiters, kept.waiters)?;
            same("thin holds of a link", thin, kept.thin.len())?;
        }
        same("records", counted.keys, self.records.len())?;
        same("side records", counted.riches, self.riches.len())?;
        same("entries", counted.holders + counted.waiters, self.entries.len())?;
        same("entries by request", self.entries.len() as usize, self.by_request.len())?;
        same("entries by fence", counted.holders as usize, self.by_fence.len())?;
        same("timed waits", counted.timed, self.waits.len())?;
        same("holds", u64::from(counted.thin + counted.holders), self.stats.holds)?;
        same("waiters", u64::from(counted.waiters), self.stats.waiters)?;
        self.audit_accounts(&counted)?;
        let dying = self.dying.len() + self.dying_thin.len();
        same("links", self.links.len() as usize, self.leases.len() + dying)
    }

    fn audit_key(&self, at: u32, index: u32, counted: &mut Counted) -> Result<(), String> {
        let record = self.records.get(index);
        let place = self.place_of(index);
        same("cell of a key", at, place.at)?;
        if !record.is_rich() {
            counted.thin += 1;
            let link = counted.links.entry(record.link()).or_default();
            link.0.add(self.hold_id(place, record.fence));
            link.2 += 1;
            let thin = &self.links.get(record.link()).thin;
            return same("record at a position", thin.get(record.position()), index);
        }
        counted.riches += 1;
        let rich = self.riches.get(record.rich());
        let (mut holders, mut last) = (0, Fence(0));
        let mut next = rich.holders.head;
        while next != NIL {
            let entry = self.entries.get(next);
            let fence = entry.fence.ok_or("a holder without a fence")?;
            if fence <= last {
                return Err(format!("holders out of order: {last} before {fence}"));
            }
            last = fence;
            holders += 1;
            counted.links.entry(entry.link).or_default().0.add(self.hold_id(place, fence));
            *counted.rich_bytes.entry(entry.link).or_default() += claim_bytes(self.key(record));
            next = entry.queue_next;
        }
        let mut waiters = 0;
        let mut next = rich.waiters.head;
        while next != NIL {
            let entry = self.entries.get(next);
            waiters += 1;
            counted.timed += usize::from(entry.deadline != Time::NEVER);
            counted.links.entry(entry.link).or_default().1 += 1;
            *counted.rich_bytes.entry(entry.link).or_default() += claim_bytes(self.key(record));
            next = entry.queue_next;
        }
        same("holders of a key", holders, rich.holders.len)?;
        same("waiters of a key", waiters, rich.waiters.len)?;
        counted.holders += holders;
        counted.waiters += waiters;
        self.audit_form(place, index)
    }

    /// What every link uses is in the account of its identity, and of its namespace.
    fn audit_accounts(&self, counted: &Counted) -> Result<(), String> {
        let (mut identities, mut namespaces) = (BTreeMap::new(), BTreeMap::new());
        let armed = self.leases.iter().map(|&(_, link)| link);
        let links = armed.chain(self.dying.iter().copied()).chain(self.dying_thin.iter().copied());
        for index in links {
            let link = self.links.get(index);
            let bytes = counted.rich_bytes.get(&index).copied().unwrap_or_default();
            same("bytes of a link", bytes, link.rich_bytes)?;
            let used = Self::used_by(link);
            same("account of a link", used, link.accounted)?;
            for sum in [
                identities.entry(link.identity).or_insert_with(Amounts::default),
                namespaces.entry(u32::from(link.namespace)).or_insert_with(Amounts::default),
            ] {
                sum.sessions += used.sessions;
                sum.holds += used.holds;
                sum.waiters += used.waiters;
                sum.bytes += used.bytes;
            }
        }
        let kept = |accounts: &Accounts| {
            accounts
                .iter()
                .map(|(index, account)| (index, account.used))
                .collect::<BTreeMap<_, _>>()
        };
        if identities != kept(&self.books.identities) {
            return Err(format!("identities: {identities:?}, {:?}", kept(&self.books.identities)));
        }
        if namespaces != kept(&self.books.namespaces) {
            return Err(format!("namespaces: {namespaces:?}, {:?}", kept(&self.books.namespaces)));
        }
        Ok(())
    }

    /// A rich key is never what a thin one could say, and its head never fits.
    fn audit_form(&self, place: Place, index: u32) -> Result<(), String> {
        let rich = self.rich_of(index);
        let thin_would_do = rich.exclusive && rich.long_key.is_none();
        if rich.waiters.len == 0 && (rich.holders.len == 0 || thin_would_do) {
            return Err(format!("a rich record that need not be: {:?}", rich.kind));
        }
        let waits_for_time = self.unserved.contains(&index)
            || self.grace_left(self.last_seen).is_some()
            || self.starved.contains(&(place.at, index));
        if rich.waiters.len == 0 || waits_for_time {
            return Ok(());
        }
        let head = self.entries.get(rich.waiters.head);
        if rich.fits(head.claim) {
            return Err(format!("the head of the line fits and waits: {head:?}"));
        }
        Ok(())
    }
}
