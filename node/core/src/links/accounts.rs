//! Who uses how much: sessions by identity, identities by namespace. What is not used is not
//! entered, so that what is only asked about costs nothing.
//!
//! What a link uses is counted where it changes, and carried over to its identity and namespace at
//! the end of each event: an operation of the common kind changes nothing but its own link.

use crate::amounts::Amounts;
use crate::config::Limits;
use crate::locks::THIN_BYTES;
use std::collections::BTreeMap;

/// Somebody who has an account: a namespace, or an identity in one.
#[derive(Clone)]
struct Account {
    name: Box<str>,
    namespace: u16,
    used: Amounts,
}

/// Every account of one kind that some session has. An index stays valid while there is one.
#[derive(Clone, Default)]
struct Accounts {
    entries: Vec<Account>,
    free: Vec<u32>,
    by_name: BTreeMap<(u16, Box<str>), u32>,
}

impl Accounts {
    fn len(&self) -> usize {
        self.by_name.len()
    }

    fn get(&self, index: u32) -> &Account {
        &self.entries[index as usize]
    }

    fn find(&self, namespace: u16, name: &str) -> Option<u32> {
        // Names are few bytes, and this is not the common way.
        self.by_name.get(&(namespace, name.into())).copied()
    }

    fn find_or_enter(&mut self, namespace: u16, name: &str) -> u32 {
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

    /// What one session uses has changed. An account without a session goes.
    fn change(&mut self, index: u32, before: Amounts, now: Amounts) {
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
    fn iter(&self) -> impl Iterator<Item = (u32, &Account)> {
        self.by_name.values().map(|&index| (index, self.get(index)))
    }
}

/// Who a session is, to its accounts.
#[derive(Clone, Copy)]
pub(crate) struct Holder {
    pub(crate) namespace: u16,
    pub(crate) identity: u32,
}

/// What all sessions of this worker use.
#[derive(Clone, Default)]
pub(crate) struct Books {
    namespaces: Accounts,
    identities: Accounts,
    all: Amounts,
    /// The machine has no memory left: nothing new is let in.
    full: bool,
}

impl Books {
    /// The accounts of a new session.
    pub(crate) fn join(&mut self, namespace: &str, name: &str) -> Holder {
        let namespace = self.namespaces.find_or_enter(0, namespace) as u16;
        Holder { namespace, identity: self.identities.find_or_enter(namespace, name) }
    }

    pub(crate) fn set_full(&mut self, full: bool) {
        self.full = full;
    }

    pub(crate) fn is_full(&self) -> bool {
        self.full
    }

    /// Bytes of everything.
    pub(crate) fn bytes(&self) -> u64 {
        self.all.bytes
    }

    pub(crate) fn namespace_count(&self) -> usize {
        self.namespaces.len()
    }

    pub(crate) fn namespace_name(&self, index: u16) -> &str {
        &self.namespaces.get(u32::from(index)).name
    }

    /// The index of a namespace that some session has.
    pub(crate) fn namespace_of(&self, name: &str) -> Option<u16> {
        self.namespaces.find(0, name).map(|index| index as u16)
    }

    pub(crate) fn identity_of(&self, namespace: u16, name: &str) -> Option<u32> {
        self.identities.find(namespace, name)
    }

    /// What a session uses has changed.
    pub(crate) fn change(&mut self, holder: Holder, before: Amounts, now: Amounts) {
        let Holder { namespace, identity } = holder;
        self.identities.change(identity, before, now);
        self.namespaces.change(u32::from(namespace), before, now);
        self.all.change(before, now);
    }

    /// How many holds a session that uses this much may have, if all are thin.
    pub(crate) fn holds_cap(&self, holder: Holder, used: &Amounts, limits: &Limits) -> u64 {
        let identity = self.identities.get(holder.identity).used.room(&limits.identity, THIN_BYTES);
        let namespace = self.namespaces.get(u32::from(holder.namespace)).used;
        let room = used.room(&limits.session(), THIN_BYTES).min(identity);
        let room = room.min(namespace.room(&limits.namespace, THIN_BYTES));
        if self.full { 0 } else { used.holds + room }
    }

    /// Why a session that uses this much may not use more, if so.
    pub(crate) fn refuses(
        &self,
        holder: Holder,
        used: &Amounts,
        more: Amounts,
        limits: &Limits,
    ) -> Option<String> {
        if self.full {
            return Some("the node has no memory left for more locks".to_owned());
        }
        match used.exceeded(more, &limits.session()) {
            Some(what) => Some(format!("this session has {what}")),
            None => self.refuses_shared(holder.namespace, Some(holder.identity), more, limits),
        }
    }

    /// Why a namespace, or an identity of it that has sessions, may not use more, if so.
    pub(crate) fn refuses_shared(
        &self,
        namespace: u16,
        identity: Option<u32>,
        more: Amounts,
        limits: &Limits,
    ) -> Option<String> {
        let of_identity = identity.and_then(|index| {
            let Account { name, used, .. } = self.identities.get(index);
            let what = used.exceeded(more, &limits.identity)?;
            Some(format!("the identity {name} has {what}"))
        });
        of_identity.or_else(|| {
            let Account { name, used, .. } = self.namespaces.get(u32::from(namespace));
            let what = used.exceeded(more, &limits.namespace)?;
            Some(format!("the namespace {name} has {what}"))
        })
    }

    #[cfg(any(test, feature = "testing"))]
    pub(crate) fn used(&self) -> [BTreeMap<u32, Amounts>; 2] {
        [&self.identities, &self.namespaces]
            .map(|all| all.iter().map(|(index, account)| (index, account.used)).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_account_without_a_session_makes_room_for_another() {
        let mut accounts = Accounts::default();
        let none = Amounts::default();
        let one = Amounts { sessions: 1, bytes: 400, ..none };
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
