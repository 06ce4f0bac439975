//! The inner invariants of the links, and what tests may see of them.

use super::{Comparison, Link, Links, amounts};
use crate::amounts::Amounts;
use crate::event::{ConnId, LinkIndex};
use crate::locks::Locks;
use crate::testing::{LinkView, same};
use lockring_proto::{Digest, SessionId, Time};
use std::collections::BTreeMap;
use std::time::Duration;

impl Links {
    /// Looks at everything.
    pub(crate) fn audit(&self, locks: &Locks) -> Result<(), String> {
        let (mut identities, mut namespaces) = (BTreeMap::new(), BTreeMap::new());
        let mut count = 0;
        for (index, _) in self.named() {
            count += 1;
            let link = self.links.get(index);
            let used = amounts(locks.used_by(index));
            same("account of a link", used, link.accounted)?;
            let holder = link.who.holder;
            for sum in [
                identities.entry(holder.identity).or_insert_with(Amounts::default),
                namespaces.entry(u32::from(holder.namespace)).or_insert_with(Amounts::default),
            ] {
                sum.sessions += used.sessions;
                sum.holds += used.holds;
                sum.waiters += used.waiters;
                sum.bytes += used.bytes;
            }
        }
        same("links", self.links.len(), count)?;
        let [of_identities, of_namespaces] = self.books.used();
        if identities != of_identities {
            return Err(format!("identities: {identities:?}, {of_identities:?}"));
        }
        if namespaces != of_namespaces {
            return Err(format!("namespaces: {namespaces:?}, {of_namespaces:?}"));
        }
        Ok(())
    }

    /// All links: live ones, and those that are dying, with their turn.
    pub(crate) fn named(&self) -> impl Iterator<Item = (LinkIndex, Option<usize>)> + '_ {
        let live = self.leases.iter().map(|&(_, link)| (link, None));
        let dying = self.dying.iter().enumerate().map(|(turn, link)| (link, Some(turn)));
        live.chain(dying)
    }

    pub(crate) fn find_session(&self, session: SessionId) -> Option<LinkIndex> {
        self.sessions.get(&session).copied()
    }

    /// Lag of the lease clock, the last time seen, and when leases end again.
    pub(crate) fn clock(&self) -> (Duration, Time, Time) {
        (self.clock.lag, self.clock.last_seen, self.clock.no_expiry_before)
    }

    pub(crate) fn wall_clock_jumps(&mut self, by: Duration) {
        self.clock.wall_jumps += by;
    }

    /// When a lease ends, on the lease clock.
    pub(crate) fn deadline(&self, link: LinkIndex) -> Time {
        self.links.get(link).lease.deadline
    }

    pub(crate) fn longest_ttl(&self) -> Duration {
        self.longest_ttl
    }

    /// Hellos that wait for a longer TTL: TTL, connection, session.
    pub(crate) fn unconfirmed(&self) -> Vec<(Duration, ConnId, SessionId)> {
        let its = |&(ttl, conn, link)| (ttl, conn, self.who(link).session);
        self.unconfirmed.iter().map(its).collect()
    }

    pub(crate) fn view(&self, link: LinkIndex, locks: &Locks) -> LinkView {
        let Link { who, incarnation, conn, lease, before, comparison, .. } = self.links.get(link);
        let Link { fresh, goodbye, .. } = self.links.get(link);
        let namespace = self.books.namespace_name(who.holder.namespace).to_owned();
        let Digest { count, xor } = locks.digest(link);
        LinkView {
            identity: (namespace, who.name.to_string(), who.label.to_string()),
            conn: (*incarnation, *conn),
            ttl: lease.ttl,
            deadline: lease.deadline,
            digest: (count, xor),
            comparing: comparison.as_deref().map(Comparison::left),
            waiters: locks.waiter_count(link),
            fresh: *fresh,
            used: locks.was_used(link),
            goodbye: *goodbye,
            spared: (before.spared_until, before.process.taken_up),
            ids_after: before.process.ids_after,
            leaving: before.leaving.map(|its| (its.entries, its.all)),
        }
    }

    /// Slots that have memory.
    #[cfg(test)]
    pub(crate) fn resident(&self) -> usize {
        self.links.resident()
    }
}
