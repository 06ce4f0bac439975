//! How a link begins, and how a connection takes one up.

use super::lease::Lease;
use super::{Before, Leaving, Link, Links, Who, amounts};
use crate::amounts::Amounts;
use crate::cells::Process;
use crate::config::{Config, Limits};
use crate::event::{ConnId, Identity, LinkIndex};
use crate::locks::slab::NIL;
use crate::locks::{Definition, Locks, Used};
use crate::mutant::mutant;
use lockring_proto::{Hello, HelloReply, PROTOCOL, Refusal, RefusalKind, Time, Welcome, limits};
use lockring_ring::NamespaceSeed;
use std::time::Duration;

/// A connection with its first frame.
#[derive(Clone, Copy)]
pub(crate) struct Arrival<'a> {
    pub(crate) conn: ConnId,
    pub(crate) identity: &'a Identity,
    pub(crate) hello: &'a Hello<'a>,
}

impl Arrival<'_> {
    /// The TTL it gets, whatever it asks for.
    fn ttl(&self) -> Duration {
        let most = self.identity.ttl_max.max(limits::TTL_MIN);
        limits::clamp_ttl(Duration::from_millis(self.hello.ttl_ms)).min(most)
    }

    /// Whether it can be understood.
    pub(crate) fn check(&self) -> Result<(), HelloReply> {
        let hello = self.hello;
        if hello.protocol != PROTOCOL {
            let message = format!(
                "this node speaks wire version {PROTOCOL}, the client {}: upgrade the older one",
                hello.protocol
            );
            return Err(refusal(RefusalKind::Protocol, message));
        }
        if hello.label.len() > limits::LABEL_BYTES_MAX {
            let message = format!("a label has at most {} bytes", limits::LABEL_BYTES_MAX);
            return Err(refusal(RefusalKind::Malformed, message));
        }
        if hello.incarnation > limits::INCARNATION_MAX {
            let message = format!("an incarnation is at most {}", limits::INCARNATION_MAX);
            return Err(refusal(RefusalKind::Malformed, message));
        }
        Ok(())
    }
}

pub(crate) fn refusal(kind: RefusalKind, message: impl Into<String>) -> HelloReply {
    HelloReply::Refused(Refusal { kind, message: message.into() })
}

impl Links {
    /// The link of a session, if it is not dying.
    pub(crate) fn of_session(&self, arrival: &Arrival<'_>) -> Option<LinkIndex> {
        let known = self.sessions.get(&arrival.hello.session).copied();
        known.filter(|_| !mutant!(self, TwoLinks))
    }

    /// Whether a connection may take up a link.
    pub(crate) fn may_resume(
        &self,
        link: LinkIndex,
        arrival: &Arrival<'_>,
    ) -> Result<(), HelloReply> {
        let Arrival { identity, hello, .. } = *arrival;
        let known = self.links.get(link);
        let namespace = self.books.namespace_name(known.who.holder.namespace);
        if namespace != identity.namespace.as_str() || *known.who.name != *identity.name {
            let message = "the session id is in use by another identity: make a new one";
            return Err(refusal(RefusalKind::ForeignSession, message));
        }
        if hello.incarnation != 0 && hello.incarnation <= known.incarnation {
            let message = "a newer connection of this session took over";
            return Err(refusal(RefusalKind::Superseded, message));
        }
        Ok(())
    }

    /// A connection takes up a link, which has this many rich holds and waiters; whether it is of
    /// another process than before.
    pub(crate) fn resume(
        &mut self,
        now: Time,
        link: LinkIndex,
        arrival: &Arrival<'_>,
        entries: u32,
    ) -> bool {
        let Arrival { conn, identity, hello } = *arrival;
        let known = self.links.get_mut(link);
        let before = &mut known.before;
        let (process, ids_after) = (before.process, hello.ids_after);
        let is_first = process == Process::UNHEARD && ids_after == 0;
        let is_same = ids_after == process.ids_after || is_first;
        let is_another = hello.incarnation == 0 || !is_same;
        before.process = Process { ids_after, taken_up: process.taken_up || is_another };
        if before.process.taken_up {
            before.spared_until = before.spared_until.max(Some(known.lease.deadline));
        }
        known.conn = Some(conn);
        known.comparison = None;
        known.forcing = None;
        known.who.access = identity.access;
        known.who.label = hello.label.into();
        known.incarnation = match hello.incarnation {
            0 => known.incarnation + 1,
            its => its,
        };
        if is_another {
            // The process before is cut off here: nobody would hear of a grant to it.
            self.let_waiters_go(link, Leaving { all: false, entries });
        }
        self.renew(now, link);
        is_another
    }

    /// A new link.
    pub(crate) fn begin(
        &mut self,
        now: Time,
        arrival: &Arrival<'_>,
        locks: &mut Locks,
    ) -> LinkIndex {
        let Arrival { conn, identity, hello } = *arrival;
        let ttl = arrival.ttl();
        let holder = self.books.join(identity.namespace.as_str(), identity.name.as_str());
        let deadline = self.lease_now(now).after(limits::honoured(ttl));
        self.begun += 1;
        let defined = locks.define(Definition {
            number: self.begun,
            session: hello.session,
            ttl,
            namespace: holder.namespace,
            seed: NamespaceSeed::of(identity.namespace.as_str()),
        });
        let who = Who {
            session: hello.session,
            holder,
            access: identity.access,
            name: identity.name.as_str().into(),
            label: hello.label.into(),
        };
        let ids_after = hello.ids_after;
        let taken_up = hello.incarnation == 0 || ids_after > 0;
        let process = Process { ids_after, taken_up };
        let before = Before { spared_until: None, process, leaving: None };
        let link = self.links.insert(Link {
            who,
            incarnation: hello.incarnation.max(1),
            conn: Some(conn),
            lease: Lease { ttl, deadline, armed: deadline },
            before,
            comparison: None,
            forcing: None,
            fresh: true,
            counts: false,
            goodbye: None,
            accounted: Amounts::default(),
            next_free: NIL,
        });
        assert!(link == defined, "what {link:?} has is at {defined:?}");
        self.leases.insert((deadline, link));
        self.sessions.insert(hello.session, link);
        *self.ttls.entry(ttl).or_default() += 1;
        link
    }

    /// Why another session may not begin, if so.
    pub(crate) fn may_begin(&self, identity: &Identity, limits: &Limits) -> Option<String> {
        if self.books.is_full() {
            return Some("the node has no memory left for more sessions".to_owned());
        }
        if self.links.len() >= limits.links {
            return Some(format!("this worker has its limit of {} sessions", limits.links));
        }
        let Some(namespace) = self.books.namespace_of(identity.namespace.as_str()) else {
            let most = usize::from(limits.namespaces);
            let full = self.books.namespace_count() >= most;
            return full.then(|| format!("this worker has its limit of {most} namespaces"));
        };
        let identity = self.books.identity_of(namespace, &identity.name);
        let nothing = Used { holds: 0, waiters: 0, bytes: 0 };
        let more = amounts(nothing);
        self.books.refuses_shared(namespace, identity, more, limits)
    }

    /// Keeps a hello for later, if its TTL must first be made durable: a restarted node waits for
    /// the longest TTL it knows of, so it must know before the session can act on it.
    pub(crate) fn must_wait(&mut self, conn: ConnId, link: LinkIndex) -> Option<Duration> {
        let ttl = self.links.get(link).lease.ttl;
        let must = ttl > self.longest_ttl && !mutant!(self, UndurableTtl);
        must.then(|| {
            self.unconfirmed.push((ttl, conn, link));
            ttl
        })
    }

    /// The longest TTL is durably this: the connections and links that need not wait any more.
    pub(crate) fn confirm(&mut self, now: Time, ttl: Duration) -> Vec<(ConnId, LinkIndex)> {
        self.longest_ttl = ttl;
        let mut confirmed = Vec::new();
        for (wanted, conn, link) in std::mem::take(&mut self.unconfirmed) {
            if !self.is_in_force(conn, link) {
                continue;
            }
            if wanted > ttl {
                self.unconfirmed.push((wanted, conn, link));
                continue;
            }
            self.renew(now, link);
            confirmed.push((conn, link));
        }
        confirmed
    }

    /// Nobody waits for a longer TTL any more: the connections and links that did, and whether the
    /// link had begun for nothing else. None of them was confirmed, so none of them believes in
    /// anything.
    pub(crate) fn give_up_waiting(&mut self) -> Vec<(ConnId, LinkIndex, bool)> {
        let mut refused = Vec::new();
        for (_, conn, link) in std::mem::take(&mut self.unconfirmed) {
            let known = self.links.get_mut(link);
            if known.conn == Some(conn) {
                known.conn = None;
                refused.push((conn, link, known.fresh));
            }
        }
        refused
    }

    /// What a link is told at its beginning.
    pub(crate) fn welcome(&self, link: LinkIndex, config: &Config, version: u64) -> Welcome {
        let known = self.links.get(link);
        Welcome {
            protocol: PROTOCOL,
            fresh: known.fresh,
            incarnation: known.incarnation,
            ttl_ms: known.lease.ttl.as_millis() as u64,
            ring_version: version,
            node: config.node,
            boot: config.boot,
            worker: config.worker,
            namespace: self.books.namespace_name(known.who.holder.namespace).to_owned(),
        }
    }
}
