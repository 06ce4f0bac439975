//! Who uses how much: sessions by identity, identities by namespace. What is not used is not
//! entered, so that what is only asked about costs nothing.
//!
//! What a link uses is counted where it changes, and carried over to its identity and namespace at
//! the end of each event: an operation of the common kind changes nothing but its own link.

use crate::links::Link;
use crate::machine::Machine;
use crate::record::{Entry, Record, Rich};
use lockring_ring::NamespaceSeed;
use std::collections::BTreeMap;

/// How much there is of what is limited, at one worker.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Amounts {
    /// Sessions.
    pub sessions: u64,
    /// Holds.
    pub holds: u64,
    /// Claims in line.
    pub waiters: u64,
    /// Bytes of memory for all of it: an estimate from above.
    pub bytes: u64,
}

/// A hold of a thin record: the record, its slot in the cell's table, and its place among the holds
/// of its link. Tables are seven eighths full at most, and half full when they have just grown.
pub(crate) const THIN_BYTES: u64 = size_of::<Record>() as u64 + 20;

/// Any other claim: its entry with its places in the indexes, and record and side record, as if
/// nobody else used the key.
const ENTRY_BYTES: u64 = (size_of::<Entry>() + size_of::<Rich>()) as u64 + 80 + THIN_BYTES;

/// A session, with its places in the maps of sessions and leases, its name and label.
const SESSION_BYTES: u64 = size_of::<Link>() as u64 + 320;

/// What a claim that is not thin costs.
pub(crate) fn claim_bytes(key: &[u8]) -> u64 {
    ENTRY_BYTES + key.len() as u64
}

impl Amounts {
    /// A hold of so many bytes.
    pub(crate) fn hold(bytes: u64) -> Self {
        Self { holds: 1, bytes, ..Self::default() }
    }

    /// A claim in line of so many bytes.
    pub(crate) fn waiter(bytes: u64) -> Self {
        Self { waiters: 1, bytes, ..Self::default() }
    }

    pub(crate) fn session() -> Self {
        Self { sessions: 1, bytes: SESSION_BYTES, ..Self::default() }
    }

    fn change(&mut self, before: Self, now: Self) {
        let one = |all: &mut u64, before: u64, now: u64| {
            assert!(*all >= before, "{all} is less than the {before} of one");
            *all = *all - before + now;
        };
        one(&mut self.sessions, before.sessions, now.sessions);
        one(&mut self.holds, before.holds, now.holds);
        one(&mut self.waiters, before.waiters, now.waiters);
        one(&mut self.bytes, before.bytes, now.bytes);
    }

    /// The limit that does not allow for more, if so: how much, and of what.
    fn exceeded(&self, more: Self, limit: &Self) -> Option<String> {
        let one = |used: u64, more: u64, limit: u64, what: &str| {
            let over = more > 0 && used.saturating_add(more) > limit;
            over.then(|| format!("its limit of {limit} {what}"))
        };
        one(self.sessions, more.sessions, limit.sessions, "sessions")
            .or_else(|| one(self.holds, more.holds, limit.holds, "holds"))
            .or_else(|| one(self.waiters, more.waiters, limit.waiters, "claims in line"))
            .or_else(|| one(self.bytes, more.bytes, limit.bytes, "bytes"))
    }

    /// How many more thin holds a limit allows for.
    fn room(&self, limit: &Self) -> u64 {
        let holds = limit.holds.saturating_sub(self.holds);
        holds.min(limit.bytes.saturating_sub(self.bytes) / THIN_BYTES)
    }
}

/// Somebody who has an account: a namespace, or an identity in one.
#[derive(Clone)]
pub(crate) struct Account {
    pub(crate) name: Box<str>,
    pub(crate) namespace: u16,
    pub(crate) used: Amounts,
}

/// Every account of one kind that some session has. An index stays valid while there is one.
#[derive(Clone, Default)]
pub(crate) struct Accounts {
    entries: Vec<Account>,
    free: Vec<u32>,
    by_name: BTreeMap<(u16, Box<str>), u32>,
}

impl Accounts {
    pub(crate) fn len(&self) -> usize {
        self.by_name.len()
    }

    pub(crate) fn get(&self, index: u32) -> &Account {
        &self.entries[index as usize]
    }

    pub(crate) fn find(&self, namespace: u16, name: &str) -> Option<u32> {
        // Names are few bytes, and this is not the common way.
        self.by_name.get(&(namespace, name.into())).copied()
    }

    pub(crate) fn find_or_enter(&mut self, namespace: u16, name: &str) -> u32 {
        if let Some(index) = self.find(namespace, name) {
            return index;
        }
        let account = Account { name: name.into(), namespace, used: Amounts::default() };
        let index = match self.free.pop() {
            Some(index) => {
                self.entries[index as usize] = account;
                index
            }
            None => {
                self.entries.push(account);
                (self.entries.len() - 1) as u32
            }
        };
        self.by_name.insert((namespace, name.into()), index);
        index
    }

    /// What one session uses has changed. An account without a session is no more.
    pub(crate) fn change(&mut self, index: u32, before: Amounts, now: Amounts) {
        let account = &mut self.entries[index as usize];
        account.used.change(before, now);
        if account.used.sessions == 0 {
            let name = std::mem::take(&mut account.name);
            self.by_name.remove(&(account.namespace, name));
            self.free.push(index);
            if self.by_name.is_empty() {
                *self = Self::default();
            }
        }
    }

    #[cfg(any(test, feature = "testing"))]
    pub(crate) fn iter(&self) -> impl Iterator<Item = (u32, &Account)> {
        self.by_name.values().map(|&index| (index, self.get(index)))
    }
}

/// What all sessions of this worker use.
#[derive(Clone, Default)]
pub(crate) struct Books {
    pub(crate) namespaces: Accounts,
    /// Of each namespace.
    seeds: Vec<NamespaceSeed>,
    pub(crate) identities: Accounts,
    pub(crate) all: Amounts,
    /// Links whose accounts are to be brought up to date.
    pub(crate) unsettled: Vec<u32>,
    /// The machine has no memory left: nothing new is let in.
    pub(crate) full: bool,
}

impl Books {
    /// The accounts of a new session.
    pub(crate) fn join(&mut self, namespace: &str, name: &str) -> (u16, u32) {
        let index = self.namespaces.find_or_enter(0, namespace) as u16;
        let seed = NamespaceSeed::of(namespace);
        self.seeds.resize(self.seeds.len().max(usize::from(index) + 1), seed);
        self.seeds[usize::from(index)] = seed;
        (index, self.identities.find_or_enter(index, name))
    }

    pub(crate) fn seed(&self, namespace: u16) -> NamespaceSeed {
        self.seeds[usize::from(namespace)]
    }
}

impl Machine {
    pub(crate) fn namespace_name(&self, index: u16) -> &str {
        &self.books.namespaces.get(u32::from(index)).name
    }

    /// The index of a namespace that some session has.
    pub(crate) fn namespace_of(&self, name: &str) -> Option<u16> {
        self.books.namespaces.find(0, name).map(|index| index as u16)
    }

    /// What a link uses at this moment.
    pub(crate) fn used_by(link: &Link) -> Amounts {
        Amounts {
            sessions: 1,
            holds: link.digest.count,
            waiters: u64::from(link.waiters),
            bytes: SESSION_BYTES + u64::from(link.thin.len()) * THIN_BYTES + link.rich_bytes,
        }
    }

    /// What a link uses changes, or may.
    pub(crate) fn unsettle(&mut self, link: u32) {
        let known = self.links.get_mut(link);
        if !known.unsettled {
            known.unsettled = true;
            self.books.unsettled.push(link);
        }
    }

    /// At the end of an event.
    pub(crate) fn settle_accounts(&mut self) {
        while let Some(link) = self.books.unsettled.pop() {
            if self.links.find(link).is_some_and(|link| link.unsettled) {
                self.settle_account(link);
            }
        }
    }

    fn settle_account(&mut self, link: u32) {
        let known = self.links.get_mut(link);
        known.unsettled = false;
        let now = Self::used_by(known);
        let before = std::mem::replace(&mut known.accounted, now);
        let (namespace, identity) = (u32::from(known.namespace), known.identity);
        self.books.namespaces.change(namespace, before, now);
        self.books.identities.change(identity, before, now);
        self.books.all.change(before, now);
    }

    /// A link is no more.
    pub(crate) fn close_account(&mut self, link: u32) {
        self.settle_account(link);
        let known = self.links.get(link);
        let (namespace, identity) = (u32::from(known.namespace), known.identity);
        let (before, now) = (known.accounted, Amounts::default());
        self.books.identities.change(identity, before, now);
        self.books.namespaces.change(namespace, before, now);
        self.books.all.change(before, now);
    }

    /// How many holds a link may have at the end of this turn, if all are thin.
    pub(crate) fn holds_cap(&self, link: u32) -> u64 {
        let known = self.links.get(link);
        let limits = &self.config.limits;
        let identity = self.books.identities.get(known.identity).used.room(&limits.identity);
        let namespace = self.books.namespaces.get(u32::from(known.namespace)).used;
        let own = known.accounted.room(&limits.session());
        let room = own.min(identity).min(namespace.room(&limits.namespace));
        if self.books.full { 0 } else { known.accounted.holds + room }
    }

    /// Why a link may not use more, if so.
    pub(crate) fn over_quota(&mut self, link: u32, more: Amounts) -> Option<String> {
        self.settle_account(link);
        self.unsettle(link);
        self.cap = self.holds_cap(link);
        let known = self.links.get(link);
        if self.books.full {
            return Some("the node has no memory left for more locks".to_owned());
        }
        let session = known.accounted.exceeded(more, &self.config.limits.session());
        match session.map(|what| format!("this session has {what}")) {
            None => self.over_shared_quota(known.namespace, Some(known.identity), more),
            refused => refused,
        }
    }

    /// Why a namespace, or an identity of it that has sessions, may not use more, if so.
    pub(crate) fn over_shared_quota(
        &self,
        namespace: u16,
        identity: Option<u32>,
        more: Amounts,
    ) -> Option<String> {
        let limits = &self.config.limits;
        let of_identity = identity.and_then(|index| {
            let Account { name, used, .. } = self.books.identities.get(index);
            let what = used.exceeded(more, &limits.identity)?;
            Some(format!("the identity {name} has {what}"))
        });
        of_identity.or_else(|| {
            let Account { name, used, .. } = self.books.namespaces.get(u32::from(namespace));
            let what = used.exceeded(more, &limits.namespace)?;
            Some(format!("the namespace {name} has {what}"))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_account_without_a_session_makes_room_for_another() {
        let mut accounts = Accounts::default();
        let (none, one) = (Amounts::default(), Amounts::session());
        let a = accounts.find_or_enter(0, "a");
        let b = accounts.find_or_enter(0, "b");
        accounts.change(a, none, one);
        accounts.change(b, none, one);
        accounts.change(a, none, one);
        accounts.change(a, one, none);
        assert_eq!(accounts.find(0, "a"), Some(a));
        accounts.change(a, one, none);
        assert_eq!((accounts.find(0, "a"), accounts.len()), (None, 1));
        assert_eq!((accounts.find_or_enter(0, "c"), accounts.find_or_enter(1, "b")), (a, b + 1));
        assert_eq!((&*accounts.get(a).name, accounts.get(b).namespace), ("c", 0));
    }
}
