//! Links: sessions at this worker, their connections and their leases.

use crate::accounts::Amounts;
use crate::compare::Comparison;
use crate::event::{Action, CloseReason, ConnId, LinkIndex, Party, Role};
use crate::holds::Holds;
use crate::machine::Machine;
use crate::mutant::{mutant, note};
use crate::release::Forcing;
use crate::slab::{List, NIL, Slot};
use lockring_proto::Time;
use lockring_proto::{
    Digest, Hello, HelloReply, PROTOCOL, Refusal, RefusalKind, SessionId, Welcome, limits,
};
use lockring_ring::NamespaceSeed;
use std::time::Duration;

/// A session at this worker. It outlives its connections and ends with its lease.
#[derive(Clone)]
pub(crate) struct Link {
    pub(crate) session: SessionId,
    pub(crate) namespace: u16,
    /// Its account.
    pub(crate) identity: u32,
    /// Of the connection in force.
    pub(crate) role: Role,
    pub(crate) seed: NamespaceSeed,
    pub(crate) name: Box<str>,
    pub(crate) label: Box<str>,
    pub(crate) incarnation: u64,
    /// The connection in force.
    pub(crate) conn: Option<ConnId>,
    /// Never changes: what was promised at the first hello can still be believed.
    pub(crate) ttl: Duration,
    /// End of the lease, on the lease clock.
    pub(crate) deadline: Time,
    /// Where the link stands in the machine's `leases`: no later than `deadline`.
    pub(crate) armed: Time,
    /// Thin holds.
    pub(crate) thin: Holds,
    /// Rich holds and waiters.
    pub(crate) entries: List,
    pub(crate) waiters: u32,
    pub(crate) digest: Digest,
    /// What the next frame of a compare goes on with.
    pub(crate) comparison: Option<Box<Comparison>>,
    /// A release by force that goes on with the next turn.
    pub(crate) forcing: Option<Forcing>,
    /// No request of it has run yet: its client may not know that it began anew, as the welcome
    /// that said so may be lost. Until then every welcome says so.
    pub(crate) fresh: bool,
    /// Its holds and waiters are being freed.
    pub(crate) dying: bool,
    /// A goodbye to answer when all is freed.
    pub(crate) goodbye: Option<(ConnId, u64)>,
    /// Another process has taken the session up: the one before it may believe in its holds until
    /// then, on the lease clock, so that they end by an explicit release alone.
    pub(crate) spared_until: Option<Time>,
    /// A process has taken the session up from another. From then on whoever comes back may be
    /// either of them: the one before, whose hello was under way, numbers its connections too.
    pub(crate) taken_up: bool,
    /// Waiters asked for on a connection before `waiters_from` are nobody's any more: so many
    /// entries are still to be looked at for them.
    pub(crate) leaving: Option<u32>,
    pub(crate) waiters_from: ConnId,
    /// Bytes of its rich holds and waiters.
    pub(crate) rich_bytes: u64,
    /// What it used when that was last carried over to its identity and namespace.
    pub(crate) accounted: Amounts,
    /// That may have changed since.
    pub(crate) unsettled: bool,
    /// It has held something, or waited for it.
    pub(crate) used: bool,
    next_free: u32,
}

impl Slot for Link {
    fn set_free(&mut self, next: u32) {
        self.conn = None;
        self.thin = Holds::default();
        self.comparison = None;
        self.name = Box::default();
        self.label = Box::default();
        self.next_free = next;
    }
    fn next_free(&self) -> u32 {
        self.next_free
    }
}

/// A connection with its first frame.
#[derive(Clone, Copy)]
struct Arrival<'a> {
    conn: ConnId,
    party: &'a Party,
    hello: &'a Hello<'a>,
}

impl Arrival<'_> {
    /// The TTL it gets, whatever it asks for.
    fn ttl(&self) -> Duration {
        let most = self.party.ttl_max.max(limits::TTL_MIN);
        limits::clamp_ttl(Duration::from_millis(self.hello.ttl_ms)).min(most)
    }
}

fn refusal(kind: RefusalKind, message: impl Into<String>) -> HelloReply {
    HelloReply::Refused(Refusal { kind, message: message.into() })
}

impl Machine {
    pub(crate) fn opened(
        &mut self,
        now: Time,
        conn: ConnId,
        party: &Party,
        hello: &Hello<'_>,
        out: &mut Vec<Action>,
    ) {
        match self.admit(now, &Arrival { conn, party, hello }, out) {
            Ok(link) => self.greet(conn, link, out),
            Err(reply) => out.push(Action::Refuse { conn, reply: Box::new(reply) }),
        }
    }

    /// Finds or makes the link of a hello.
    fn admit(
        &mut self,
        now: Time,
        arrival: &Arrival<'_>,
        out: &mut Vec<Action>,
    ) -> Result<u32, HelloReply> {
        let hello = arrival.hello;
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
        match self.sessions.get(&hello.session) {
            Some(&link) if !mutant!(self, TwoLinks) => {
                self.resume(now, link, arrival, out).map(|()| link)
            }
            _ => self.begin(now, arrival),
        }
    }

    fn resume(
        &mut self,
        now: Time,
        link: u32,
        arrival: &Arrival<'_>,
        out: &mut Vec<Action>,
    ) -> Result<(), HelloReply> {
        let Arrival { conn, party, hello } = *arrival;
        let known = self.links.get(link);
        let namespace = self.namespace_name(known.namespace);
        if namespace != party.namespace.as_str() || *known.name != *party.name {
            let message = "the session id is in use by another identity: make a new one";
            return Err(refusal(RefusalKind::ForeignSession, message));
        }
        if hello.incarnation != 0 && hello.incarnation <= known.incarnation {
            let message = "a newer connection of this session took over";
            return Err(refusal(RefusalKind::Superseded, message));
        }
        self.hang_up(link, CloseReason::Superseded, out);
        let known = self.links.get_mut(link);
        known.taken_up |= hello.incarnation == 0;
        if known.taken_up {
            known.spared_until = known.spared_until.max(Some(known.deadline));
        }
        if hello.incarnation == 0 {
            known.incarnation += 1;
            // The process before is cut off here: nobody would hear of a grant to it.
            (known.leaving, known.waiters_from) = (Some(known.entries.len), conn);
            self.leaving.insert(link);
        } else {
            known.incarnation = hello.incarnation;
        }
        let known = self.links.get_mut(link);
        known.conn = Some(conn);
        known.comparison = None;
        known.forcing = None;
        known.role = party.role;
        known.label = hello.label.into();
        self.renew(now, link);
        self.stats.resumed_links += 1;
        Ok(())
    }

    fn begin(&mut self, now: Time, arrival: &Arrival<'_>) -> Result<u32, HelloReply> {
        let Arrival { conn, party, hello } = *arrival;
        let ttl = arrival.ttl();
        if self.draining {
            let message = "this node is stopping: connect to another";
            return Err(refusal(RefusalKind::Draining, message));
        }
        if let Some(refused) = self.may_begin(party) {
            self.stats.over_quota += 1;
            return Err(refusal(RefusalKind::Quota, refused));
        }
        let (namespace, identity) = self.books.join(party.namespace.as_str(), party.name.as_str());
        let deadline = self.lease_now(now).after(limits::honoured(ttl));
        let link = self.links.insert(Link {
            session: hello.session,
            namespace,
            role: party.role,
            identity,
            seed: self.books.seed(namespace),
            name: party.name.as_str().into(),
            label: hello.label.into(),
            incarnation: hello.incarnation.max(1),
            conn: Some(conn),
            ttl,
            deadline,
            armed: deadline,
            thin: Holds::default(),
            entries: List::default(),
            waiters: 0,
            digest: Digest::default(),
            comparison: None,
            forcing: None,
            fresh: true,
            dying: false,
            goodbye: None,
            spared_until: None,
            taken_up: false,
            leaving: None,
            waiters_from: conn,
            rich_bytes: 0,
            accounted: Amounts::default(),
            unsettled: false,
            used: false,
            next_free: NIL,
        });
        self.leases.insert((deadline, link));
        self.sessions.insert(hello.session, link);
        *self.ttls.entry(ttl).or_default() += 1;
        self.unsettle(link);
        note!(self, note_began(link));
        self.stats.fresh_links += 1;
        Ok(link)
    }

    /// Why another session may not begin, if so.
    fn may_begin(&self, party: &Party) -> Option<String> {
        let limits = &self.config.limits;
        if self.books.full {
            return Some("the node has no memory left for more sessions".to_owned());
        }
        if self.links.len() >= limits.links {
            return Some(format!("this worker has its limit of {} sessions", limits.links));
        }
        let Some(namespace) = self.namespace_of(party.namespace.as_str()) else {
            let most = usize::from(limits.namespaces);
            let full = self.books.namespaces.len() >= most;
            return full.then(|| format!("this worker has its limit of {most} namespaces"));
        };
        let identity = self.books.identities.find(namespace, &party.name);
        self.over_shared_quota(namespace, identity, Amounts::session())
    }

    /// Answers a hello, unless its TTL must first be made durable: a restarted node waits for the
    /// longest TTL it knows of, so it must know before the session can act on it.
    fn greet(&mut self, conn: ConnId, link: u32, out: &mut Vec<Action>) {
        let known = self.links.get(link);
        if known.ttl > self.longest_ttl && !mutant!(self, UndurableTtl) {
            self.unconfirmed.push((known.ttl, conn, link));
            out.push(Action::RaiseLongestTtl(known.ttl));
            return;
        }
        self.welcome(conn, link, out);
    }

    fn welcome(&self, conn: ConnId, link: u32, out: &mut Vec<Action>) {
        let known = self.links.get(link);
        let welcome = Welcome {
            protocol: PROTOCOL,
            fresh: known.fresh,
            incarnation: known.incarnation,
            ttl_ms: known.ttl.as_millis() as u64,
            ring_version: self.version.0,
            node: self.config.node,
            boot: self.config.boot,
            worker: self.config.worker,
            namespace: self.namespace_name(known.namespace).to_owned(),
        };
        let reply = Box::new(HelloReply::Welcome(welcome));
        out.push(Action::Welcome { conn, link: LinkIndex(link), reply });
    }

    pub(crate) fn longest_ttl_is(&mut self, now: Time, ttl: Duration, out: &mut Vec<Action>) {
        self.longest_ttl = ttl;
        let waiting = std::mem::take(&mut self.unconfirmed);
        for (wanted, conn, link) in waiting {
            if self.links.find(link).is_none_or(|link| link.conn != Some(conn)) {
                continue;
            }
            if wanted > ttl {
                self.unconfirmed.push((wanted, conn, link));
                continue;
            }
            self.renew(now, link);
            self.welcome(conn, link, out);
        }
    }

    /// Refuses the sessions that wait for a longer TTL. None of them was confirmed, so none of them
    /// believes in anything.
    pub(crate) fn ttl_failed(&mut self, why: &str, out: &mut Vec<Action>) {
        for (_, conn, link) in std::mem::take(&mut self.unconfirmed) {
            let known = self.links.get_mut(link);
            if known.conn != Some(conn) {
                continue;
            }
            known.conn = None;
            let begun_for_this = known.fresh;
            let reply = Box::new(refusal(RefusalKind::Unavailable, why));
            out.push(Action::Refuse { conn, reply });
            if begun_for_this {
                note!(self, note_dead(link, false));
                self.start_dying(link);
            }
        }
    }

    /// The longest TTL of any session that can still be believed here; zero without any.
    pub fn longest_ttl_in_use(&self) -> Duration {
        self.ttls.last_key_value().map_or(Duration::ZERO, |(&ttl, _)| ttl)
    }

    pub(crate) fn closed(&mut self, conn: ConnId, link: LinkIndex) {
        if let Some(index) = self.link_of(conn, link) {
            let link = self.links.get_mut(index);
            link.conn = None;
            link.comparison = None;
            link.forcing = None;
            // There is nothing to keep, whatever its TTL.
            if !link.used {
                note!(self, note_dead(index, false));
                self.start_dying(index);
            }
        }
    }

    /// The clock that leases are counted on: stalls of the worker are left out of it.
    #[inline]
    pub(crate) fn lease_now(&self, now: Time) -> Time {
        #[cfg(any(test, feature = "testing"))]
        let now = self.wall_clock(now);
        Time(now.0.saturating_sub(self.lag.as_micros() as u64))
    }

    /// Counts the lease of a link anew from the receipt of what it sent.
    #[inline]
    pub(crate) fn renew(&mut self, now: Time, link: u32) {
        let lease_now = self.lease_now(now);
        let link = self.links.get_mut(link);
        link.deadline = lease_now.after(limits::honoured(link.ttl));
    }

    /// Whether a process before the one in force may still believe in holds of this link.
    pub(crate) fn is_spared(&self, now: Time, link: u32) -> bool {
        self.spared_until(now, link).is_some()
    }

    /// Until when that is, on the lease clock.
    pub(crate) fn spared_until(&self, now: Time, link: u32) -> Option<Time> {
        let spared = self.links.get(link).spared_until?;
        (spared >= self.lease_now(now) && !mutant!(self, HeirFrees)).then_some(spared)
    }

    /// Whether a grant to this link can still be believed.
    pub(crate) fn is_alive(&self, now: Time, link: u32) -> bool {
        let known = self.links.get(link);
        !known.dying && known.deadline >= self.lease_now(now)
    }
}
