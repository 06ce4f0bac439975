//! Links of an owner before, whose holds and waiters this worker has from now on.

use super::lease::Lease;
use super::{Before, Link, Links, Who};
use crate::amounts::Amounts;
use crate::cells::Shadow;
use crate::event::{Access, LinkIndex};
use crate::locks::slab::NIL;
use crate::locks::{Definition, Locks};
use crate::mutant::mutant;
use lockring_proto::{Time, limits};
use lockring_ring::NamespaceSeed;

impl Links {
    /// The link on which what a shadow has goes on: that of its session, or a new one without a
    /// connection; and whether it is another process's by that. One that is dead is never that of a
    /// session, which may have begun anew.
    ///
    /// The owner before may go on answering renewals for as long as a node lease lasts, so that
    /// its clients may believe in their holds for that much longer.
    pub(crate) fn inherit(
        &mut self,
        now: Time,
        shadow: &Shadow,
        locks: &mut Locks,
    ) -> (LinkIndex, bool) {
        let without = mutant!(self, InheritedWithoutNodeLease);
        let counted = if without { limits::honoured } else { limits::inherited };
        let lease = counted(shadow.ttl);
        let deadline = self.lease_now(now).after(lease);
        let known = self.sessions.get(&shadow.session).copied();
        let dead = shadow.dead && !mutant!(self, DeadLinkRevived);
        if let Some(link) = known.filter(|&link| !dead && self.is_of(link, shadow)) {
            let Link { lease: its, before, .. } = self.links.get_mut(link);
            its.deadline = its.deadline.max(deadline);
            let process = before.process.and(shadow.process);
            let is_anothers = std::mem::replace(&mut before.process, process) != process;
            if process.taken_up {
                // It may be the process before that has it, as the owner before knew.
                before.spared_until = before.spared_until.max(Some(its.deadline));
            }
            return (link, is_anothers);
        }
        let link = self.begin_without_conn(shadow, deadline, locks);
        if !dead && known.is_none() {
            self.sessions.insert(shadow.session, link);
        }
        (link, false)
    }

    /// Whether a link is of the same identity. Sessions are named by their clients, who may name
    /// another's.
    fn is_of(&self, link: LinkIndex, shadow: &Shadow) -> bool {
        let who = &self.links.get(link).who;
        let namespace = self.books.namespace_name(who.holder.namespace);
        namespace == &*shadow.namespace && who.name == shadow.name
    }

    fn begin_without_conn(
        &mut self,
        shadow: &Shadow,
        deadline: Time,
        locks: &mut Locks,
    ) -> LinkIndex {
        let holder = self.books.join(&shadow.namespace, &shadow.name);
        self.begun += 1;
        let defined = locks.define(Definition {
            number: self.begun,
            session: shadow.session,
            ttl: shadow.ttl,
            namespace: holder.namespace,
            seed: NamespaceSeed::of(&shadow.namespace),
        });
        let who = Who {
            session: shadow.session,
            holder,
            access: Access::User,
            name: shadow.name.clone(),
            label: shadow.label.clone(),
        };
        let before = Before { spared_until: None, process: shadow.process, leaving: None };
        let link = self.links.insert(Link {
            who,
            incarnation: 0,
            conn: None,
            lease: Lease { ttl: shadow.ttl, deadline, armed: deadline },
            before,
            comparison: None,
            forcing: None,
            fresh: false,
            counts: false,
            goodbye: None,
            accounted: Amounts::default(),
            next_free: NIL,
        });
        assert!(link == defined, "what {link:?} has is at {defined:?}");
        self.leases.insert((deadline, link));
        *self.ttls.entry(shadow.ttl).or_default() += 1;
        link
    }
}
