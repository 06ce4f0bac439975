//! A batch of requests: hash all, touch all, then apply. At ten million locks an operation costs a
//! few cache misses; touched ahead, those of a batch overlap instead of adding up.

use crate::acquire::Ask;
use crate::compare::Part;
use crate::event::{Action, ConnId, LinkIndex, Role};
use crate::inspect::Wanted;
use crate::machine::Machine;
use crate::mutant::mutant;
use crate::slab::NIL;
use crate::table::Place;
use crate::turn::{Progress, keyed_price, price};
use lockring_proto::Time;
use lockring_proto::{Refusal, RefusalKind, Reply, Request, limits};
use lockring_ring::NamespaceSeed;

/// What one operation of a batch will look at; nothing for a request without a key.
#[derive(Clone, Copy)]
pub(crate) struct Planned {
    pub(crate) place: Option<Place>,
    /// Its position among the thin holds of the link, if it is one.
    position: u32,
}

impl Planned {
    pub(crate) fn at(place: Option<Place>) -> Self {
        Self { place, position: NIL }
    }
}

/// What every answer names: the connection, the request and its link.
#[derive(Clone, Copy)]
pub(crate) struct Asker {
    pub(crate) conn: ConnId,
    pub(crate) link: u32,
    pub(crate) id: u64,
}

/// A key of a namespace; an empty name is the asker's own.
#[derive(Clone, Copy)]
pub(crate) struct Named<'a> {
    pub(crate) namespace: &'a str,
    pub(crate) key: &'a [u8],
}

/// The role that a request needs of an identity of the namespace `own`.
fn required(request: &Request<'_>, own: &str) -> Role {
    match *request {
        Request::Acquire { .. }
        | Request::Release { .. }
        | Request::Cancel { .. }
        | Request::Renew { .. }
        | Request::Compare { .. }
        | Request::GetRing { .. }
        | Request::Goodbye { .. }
        | Request::Confirm { .. } => Role::User,
        Request::Inspect { namespace, .. } | Request::List { namespace, .. } => {
            if namespace.is_empty() || namespace == own { Role::User } else { Role::Operator }
        }
        Request::Force { .. } => Role::Operator,
    }
}

/// The key of a request and the ring version it was routed by.
fn key_of<'a>(request: &Request<'a>) -> Option<(Named<'a>, u64)> {
    match *request {
        Request::Acquire { key, version, .. }
        | Request::Release { key, version, .. }
        | Request::Cancel { key, version, .. }
        | Request::Confirm { key, version, .. } => Some((Named { namespace: "", key }, version)),
        Request::Inspect { namespace, key, version, .. }
        | Request::Force { namespace, key, version, .. } => {
            Some((Named { namespace, key }, version))
        }
        Request::Renew { .. }
        | Request::Compare { .. }
        | Request::GetRing { .. }
        | Request::List { .. }
        | Request::Goodbye { .. } => None,
    }
}

impl Machine {
    pub(crate) fn requests(
        &mut self,
        now: Time,
        conn: ConnId,
        link: LinkIndex,
        requests: &[Request<'_>],
        out: &mut Vec<Action>,
    ) -> usize {
        if self.link_of(conn, link).is_none() && !self.runs_stale(link) {
            self.stats.stale += requests.len() as u64;
            return requests.len();
        }
        let link = link.0;
        self.renew(now, link);
        self.links.get_mut(link).fresh = false;
        self.unsettle(link);
        self.cap = self.holds_cap(link);
        // Each costs one at least.
        let turn = &requests[..requests.len().min(self.config.limits.turn_price as usize)];
        let mut plan = std::mem::take(&mut self.plan);
        plan.clear();
        let seed = self.links.get(link).seed;
        plan.extend(turn.iter().map(|request| {
            let place = key_of(request).and_then(|(Named { namespace, key }, _)| {
                let other = || NamespaceSeed::of(namespace);
                let seed = if namespace.is_empty() { seed } else { other() };
                self.place(seed, key)
            });
            Planned::at(place)
        }));
        if plan.len() > 1 {
            self.touch(link, &mut plan);
        }
        let mut taken = 0;
        for (request, planned) in turn.iter().zip(&plan) {
            if self.turn_is_over() {
                break;
            }
            let asker = Asker { conn, link, id: request.id() };
            match self.apply(now, asker, request, planned.place, out) {
                Progress::Done => taken += 1,
                Progress::More => break,
                Progress::Last => {
                    taken = requests.len();
                    break;
                }
            }
        }
        self.stats.requests += taken as u64;
        self.plan = plan;
        taken
    }

    /// Reads what applying will need, one level of memory after the other over the whole batch.
    /// The sum is only there so that the reads are not optimised away.
    pub(crate) fn touch(&self, link: u32, plan: &mut [Planned]) {
        let mut sum = 0;
        for place in plan.iter().filter_map(|planned| planned.place) {
            sum += self.cell(place).table.len() as u32;
        }
        std::hint::black_box(sum);
        for place in plan.iter().filter_map(|planned| planned.place) {
            sum += u32::from(self.cell(place).table.may_have(place.tag));
        }
        std::hint::black_box(sum);
        for place in plan.iter_mut().filter_map(|planned| planned.place.as_mut()) {
            let guess = self.cells[place.at as usize].table.guess(place.tag);
            if place.guess == NIL {
                place.guess = guess;
            }
        }
        let mut held = 0;
        for planned in &mut *plan {
            let guess = planned.place.map_or(NIL, |place| place.guess);
            if guess != NIL {
                let record = self.records.get(guess);
                if !record.is_rich() && record.link() == link {
                    planned.position = record.position();
                    held += 1;
                }
            }
        }
        // Ending a thin hold puts the last of its link into its position.
        let thin = &self.links.get(link).thin;
        for back in 0..held {
            sum ^= thin.nth_last(back).map_or(NIL, |last| self.records.get(last).position());
        }
        for planned in plan.iter().filter(|planned| planned.position != NIL) {
            sum ^= thin.get(planned.position);
        }
        std::hint::black_box(sum);
    }

    fn runs_stale(&self, link: LinkIndex) -> bool {
        mutant!(self, NoLinkFence) && self.links.find(link.0).is_some_and(|link| !link.dying)
    }

    fn apply(
        &mut self,
        now: Time,
        asker: Asker,
        request: &Request<'_>,
        place: Option<Place>,
        out: &mut Vec<Action>,
    ) -> Progress {
        // Nearly all requests are one of two. What holds for others too is told apart by one look.
        match (request, place) {
            (&Request::Acquire { version, claim, wait, key, .. }, Some(place))
                if self.is_plain(asker.id, place, version, key) =>
            {
                self.charge(keyed_price(key));
                self.acquire(now, &Ask { asker, place, key, claim, wait }, out);
                Progress::Done
            }
            (&Request::Release { version, fence, key, .. }, Some(place))
                if self.is_plain(asker.id, place, version, key) =>
            {
                self.charge(keyed_price(key));
                self.release(now, asker, place, key, fence, out);
                Progress::Done
            }
            _ => self.apply_any(now, asker, request, place, out),
        }
    }

    /// Whether a request of everybody's role is to be carried out.
    #[inline(always)]
    fn is_plain(&self, id: u64, place: Place, version: u64, key: &[u8]) -> bool {
        id <= limits::REQUEST_ID_MAX
            && key.len().wrapping_sub(1) < limits::KEY_BYTES_MAX
            && version >= self.cell(place).since.0
    }

    #[inline(never)]
    fn apply_any(
        &mut self,
        now: Time,
        asker: Asker,
        request: &Request<'_>,
        place: Option<Place>,
        out: &mut Vec<Action>,
    ) -> Progress {
        self.charge(price(request));
        if self.refuses(asker, request, out) {
            return Progress::Done;
        }
        if let Some((_, version)) = key_of(request) {
            let owned_since = |place| self.cell(place).since.0;
            match place {
                Some(place) if version >= owned_since(place) || mutant!(self, NoVersionFence) => {
                    return self.apply_at(now, asker, request, place, out);
                }
                _ => {
                    self.stats.moved += 1;
                    let reply = Reply::Moved { id: asker.id, version: self.version.0 };
                    out.push(Action::Reply { conn: asker.conn, reply });
                    return Progress::Done;
                }
            }
        }
        match *request {
            Request::Renew { id } => {
                let digest = self.links.get(asker.link).digest;
                let reply = Reply::Renewed { id, version: self.version.0, digest };
                out.push(Action::Reply { conn: asker.conn, reply });
            }
            Request::Compare { upto, after, through, ref holds, .. } => {
                return self.compare(now, asker, &Part { upto, after, through, holds }, out);
            }
            Request::GetRing { id } => out.push(Action::SendRing { conn: asker.conn, id }),
            Request::List { namespace, cursor, rows, prefix, .. } => {
                self.list(now, asker, namespace, &Wanted { cursor, rows, prefix }, out);
            }
            Request::Goodbye { .. } => {
                self.goodbye(now, asker, out);
                return Progress::Last;
            }
            _ => unreachable!("{request:?} has a key"),
        }
        Progress::Done
    }

    /// Refuses what is not even looked at; says whether it did.
    fn refuses(&mut self, asker: Asker, request: &Request<'_>, out: &mut Vec<Action>) -> bool {
        let len = key_of(request).map_or(1, |(Named { key, .. }, _)| key.len());
        let lawful = (1..=limits::KEY_BYTES_MAX).contains(&len);
        let link = self.links.get(asker.link);
        let needed = required(request, self.namespace_name(link.namespace));
        if lawful && asker.id <= limits::REQUEST_ID_MAX && needed <= link.role {
            return false;
        }
        self.refuse_unlawful(asker, len, needed, out);
        true
    }

    #[cold]
    fn refuse_unlawful(&mut self, asker: Asker, len: usize, needed: Role, out: &mut Vec<Action>) {
        if asker.id > limits::REQUEST_ID_MAX {
            let message = "the session's request ids are used up: begin a new session";
            return self.refuse(asker, RefusalKind::Malformed, message, out);
        }
        let role = self.links.get(asker.link).role;
        if role < needed {
            self.stats.denied += 1;
            let message = format!("this needs the role {needed}, and the certificate says {role}");
            return self.refuse(asker, RefusalKind::Denied, message, out);
        }
        let message = format!("a key has 1 to 512 bytes, not {len}");
        self.refuse(asker, RefusalKind::Malformed, message, out);
    }

    fn apply_at(
        &mut self,
        now: Time,
        asker: Asker,
        request: &Request<'_>,
        place: Place,
        out: &mut Vec<Action>,
    ) -> Progress {
        match *request {
            Request::Acquire { claim, wait, key, .. } => {
                self.acquire(now, &Ask { asker, place, key, claim, wait }, out);
            }
            Request::Release { fence, key, .. } => self.release(now, asker, place, key, fence, out),
            Request::Cancel { target, key, .. } => self.cancel(now, asker, place, key, target, out),
            Request::Confirm { fence, key, .. } => self.confirm(asker, place, key, fence, out),
            Request::Inspect { namespace, key, .. } => {
                self.inspect(now, asker, place, &Named { namespace, key }, out);
            }
            Request::Force { namespace, key, .. } => {
                return self.force(now, asker, place, &Named { namespace, key }, out);
            }
            _ => unreachable!("{request:?} has no key"),
        }
        Progress::Done
    }

    pub(crate) fn refuse(
        &mut self,
        asker: Asker,
        kind: RefusalKind,
        message: impl Into<String>,
        out: &mut Vec<Action>,
    ) {
        self.stats.refused += 1;
        self.stats.over_quota += u64::from(kind == RefusalKind::Quota);
        let refusal = Box::new(Refusal { kind, message: message.into() });
        out.push(Action::Reply {
            conn: asker.conn,
            reply: Reply::Refused { id: asker.id, refusal },
        });
    }
}
