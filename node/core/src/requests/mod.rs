//! What is done for whoever asks: each request decides by what the parts of the worker show, and
//! emits the ops that carry it out.
//!
//! A batch is hashed and touched before it is applied. At ten million locks an operation costs a
//! few cache misses; touched ahead, those of a batch overlap instead of adding up.

mod acquire;
mod answer;
mod cancel;
mod compare;
mod confirm;
mod end;
mod force;
mod goodbye;
mod grant;
pub(crate) mod hello;
mod inspect;
mod leave;
pub(crate) mod list;
mod membership;
pub(crate) mod peers;
mod reclaim;
mod release;
pub(crate) mod tick;

use crate::cells::{Role, Shows};
use crate::event::{Access, Action, ConnId, LinkIndex};
use crate::links::{Part, Wait};
use crate::locks::{Place, Planned, RecordIndex};
use crate::mutant::mutant;
use crate::turn::{Progress, Turn, keyed_price, price};
use crate::worker::Worker;
use acquire::{AcquireRequest, acquire};
use answer::{refuse, refuse_moved};
use list::Wanted;
use lockring_proto::{Operation, RefusalKind, Reply, Request, limits};
use lockring_ring::NamespaceSeed;
use reclaim::Told;
use release::release;

/// What every answer names: the connection, the request and its link.
#[derive(Clone, Copy)]
struct RequestContext {
    conn: ConnId,
    link: LinkIndex,
    id: u64,
}

/// A key of a namespace; an empty name is the context's own.
#[derive(Clone, Copy)]
struct Named<'a> {
    namespace: &'a str,
    key: &'a [u8],
}

impl Named<'_> {
    /// The record of the key, if it is in use.
    fn find(&self, worker: &Worker, link: LinkIndex, place: Place) -> Option<RecordIndex> {
        let namespace = namespace_named(worker, link, self.namespace)?;
        worker.locks.find(place, namespace, self.key)
    }
}

/// The index of a namespace by its name; an empty one is that of the link.
fn namespace_named(worker: &Worker, link: LinkIndex, name: &str) -> Option<u16> {
    if name.is_empty() {
        return Some(worker.locks.namespace_of(link));
    }
    worker.links.books().namespace_of(name)
}

/// The role that a request needs of an identity of the namespace `own`.
fn required(request: &Request<'_>, own: &str) -> Access {
    let of = |namespace: &str| {
        if namespace.is_empty() || namespace == own { Access::User } else { Access::Operator }
    };
    match *request {
        Request::Keyed { operation, .. } => match operation {
            Operation::Acquire { .. }
            | Operation::Release { .. }
            | Operation::Cancel { .. }
            | Operation::Confirm { .. }
            | Operation::Reclaim { .. } => Access::User,
            Operation::Inspect { namespace } => of(namespace),
            Operation::Force { .. } => Access::Operator,
        },
        Request::List { namespace, .. } => of(namespace),
        Request::Renew { .. }
        | Request::Compare { .. }
        | Request::GetRing { .. }
        | Request::Goodbye { .. } => Access::User,
    }
}

/// Runs requests of one connection, as far as a turn goes: how many were taken.
pub(crate) fn requests(
    worker: &mut Worker,
    turn: &mut Turn<'_>,
    plan: &mut Vec<Planned>,
    (conn, link): (ConnId, LinkIndex),
    requests: &[Request<'_>],
) -> usize {
    if !worker.links.is_in_force(conn, link) && !runs_stale(worker, link) {
        worker.stats.stale += requests.len() as u64;
        return requests.len();
    }
    if turn.takes_nothing_on() {
        return 0;
    }
    worker.links.renew(turn.now, link);
    worker.links.ran(link);
    worker.locks.mark_changed(link);
    worker.links.set_cap(link, &worker.config.limits);
    // Each costs one at least.
    let first = &requests[..requests.len().min(worker.config.limits.turn_price as usize)];
    plan.clear();
    let seed = worker.locks.seed_of(link);
    plan.extend(first.iter().map(|request| {
        let Request::Keyed { operation, key, .. } = *request else { return Planned::at(None) };
        let namespace = operation.namespace();
        let other = || NamespaceSeed::of(namespace);
        let seed = if namespace.is_empty() { seed } else { other() };
        Planned::at(worker.locks.place(seed, key))
    }));
    if plan.len() > 1 {
        worker.locks.touch(link, plan);
        turn.touch_copies(plan.iter().filter_map(|planned| Some(planned.place?.cell)));
    }
    let mut taken = 0;
    for (request, planned) in first.iter().zip(&*plan) {
        if turn.is_over() {
            break;
        }
        let context = RequestContext { conn, link, id: request.id() };
        match run(worker, turn, context, request, planned.place) {
            Progress::Done => taken += 1,
            Progress::More => break,
            Progress::Last => {
                taken = requests.len();
                break;
            }
        }
    }
    worker.stats.requests += taken as u64;
    taken
}

fn runs_stale(worker: &Worker, link: LinkIndex) -> bool {
    mutant!(worker, NoLinkFence) && worker.links.exists(link) && !worker.locks.is_dead(link)
}

#[inline(always)]
fn run(
    worker: &mut Worker,
    turn: &mut Turn<'_>,
    context: RequestContext,
    request: &Request<'_>,
    place: Option<Place>,
) -> Progress {
    // Nearly all requests are one of two. What holds for others too is told apart by one look.
    if let (&Request::Keyed { version, operation, key, .. }, Some(place)) = (request, place)
        && (version <= turn.version || mutant!(worker, ServesByOlderRing))
        && is_plain(worker, context.id, place, version, key)
    {
        match operation {
            Operation::Acquire { claim, wait } => {
                turn.charge(keyed_price(key));
                acquire(
                    worker,
                    turn,
                    &AcquireRequest { context, place, key, claim, wait, grace: None },
                );
                return Progress::Done;
            }
            Operation::Release { fence } => {
                turn.charge(keyed_price(key));
                release(worker, turn, context, place, key, fence);
                return Progress::Done;
            }
            _ => {}
        }
    }
    run_any(worker, turn, context, request, place)
}

/// Whether a request of everybody's role is to be carried out.
#[inline(always)]
fn is_plain(worker: &Worker, id: u64, place: Place, version: u64, key: &[u8]) -> bool {
    id <= limits::REQUEST_ID_MAX
        && key.len().wrapping_sub(1) < limits::KEY_BYTES_MAX
        && worker.locks.standing(place.cell).serves(version)
}

#[inline(never)]
fn run_any(
    worker: &mut Worker,
    turn: &mut Turn<'_>,
    context: RequestContext,
    request: &Request<'_>,
    place: Option<Place>,
) -> Progress {
    turn.charge(price(request));
    if refuses(worker, turn, context, request) {
        return Progress::Done;
    }
    match *request {
        Request::Keyed { version, ref operation, key, .. } => {
            return match served(worker, place, version) {
                Some(place) => run_keyed(worker, turn, context, operation, (place, key)),
                None if awaits(worker, turn, context, (place, version)) => Progress::More,
                None => {
                    match operation {
                        Operation::Force { .. } => force::moved(worker, turn, context),
                        _ => refuse_moved(worker, turn, context),
                    }
                    Progress::Done
                }
            };
        }
        Request::Renew { id } => {
            if worker.cells.some_are_away() {
                worker.links.counts_for_others(context.link);
            }
            let digest = worker.locks.digest(context.link);
            let (version, settled) = (turn.version, turn.settled());
            let renewed = || Reply::Renewed { id, version, settled, digest };
            turn.answer(context.conn, Shows::Lease, renewed);
        }
        Request::Compare { version, upto, after, through, ref holds, .. } => {
            let process = worker.links.process(context.link);
            let part = Part { version, upto, process, after, through, holds };
            return compare::compare(worker, turn, context, &part);
        }
        Request::GetRing { id, known } => {
            turn.act(Action::SendRing { conn: context.conn, id, known });
        }
        Request::List { namespace, cursor, rows, prefix, .. } => {
            list::list(worker, turn, context, namespace, &Wanted { cursor, rows, prefix });
        }
        Request::Goodbye { .. } => {
            goodbye::goodbye(worker, turn, context);
            return Progress::Last;
        }
    }
    Progress::Done
}

/// Where a key is, if this worker is to answer for it to whoever routed by this version.
fn served(worker: &Worker, place: Option<Place>, version: u64) -> Option<Place> {
    match worker.cells.role_at(place) {
        Role::None => None,
        Role::Serving | Role::Recovering { .. } => place.filter(|place| {
            let standing = worker.locks.standing(place.cell);
            let since = worker.cells.since(place.cell, standing);
            // An answer names the ring by which it is given. By an older one than that of the
            // request it may seem to be of a time before the cell was here.
            let is_known = version <= worker.version.0 || mutant!(worker, ServesByOlderRing);
            is_known && version >= since.0 || mutant!(worker, NoVersionFence)
        }),
    }
}

/// Whether a request that is not served is to wait, as its sender knows a newer ring, which the
/// worker may be told of any moment.
fn awaits(
    worker: &mut Worker,
    turn: &mut Turn<'_>,
    context: RequestContext,
    (place, version): (Option<Place>, u64),
) -> bool {
    // No ring gives a worker the cell of another, and alone there is nobody to tell of one.
    let is_told = || !worker.peers.is_empty() || worker.cells.role_at(place) != Role::None;
    let may_come = place.is_some() && version > worker.version.0 && is_told();
    let wait = may_come
        .then(|| worker.awaiting.wait(turn.now, context.conn, (version, worker.version.0)))
        .flatten();
    if wait == Some(Wait::Begins) {
        turn.act(Action::Pause(context.conn));
    }
    wait.is_some()
}

/// Refuses what is not even looked at; says whether it did.
fn refuses(
    worker: &mut Worker,
    turn: &mut Turn<'_>,
    context: RequestContext,
    request: &Request<'_>,
) -> bool {
    let len = if let Request::Keyed { key, .. } = request { key.len() } else { 1 };
    let lawful = (1..=limits::KEY_BYTES_MAX).contains(&len);
    let own = worker.locks.namespace_of(context.link);
    let needed = required(request, worker.links.books().namespace_name(own));
    let access = worker.links.who(context.link).access;
    if lawful && context.id <= limits::REQUEST_ID_MAX && needed <= access {
        return false;
    }
    refuse_unlawful(worker, turn, context, len, (needed, access));
    true
}

#[cold]
fn refuse_unlawful(
    worker: &mut Worker,
    turn: &mut Turn<'_>,
    context: RequestContext,
    len: usize,
    (needed, access): (Access, Access),
) {
    if context.id > limits::REQUEST_ID_MAX {
        let message = "the session's request ids are used up: begin a new session";
        return refuse(worker, turn, context, RefusalKind::Malformed, message);
    }
    if access < needed {
        worker.stats.denied += 1;
        let message = format!("this needs the role {needed}, and the certificate says {access}");
        return refuse(worker, turn, context, RefusalKind::Denied, message);
    }
    let message = format!("a key has 1 to 512 bytes, not {len}");
    refuse(worker, turn, context, RefusalKind::Malformed, message);
}

fn run_keyed(
    worker: &mut Worker,
    turn: &mut Turn<'_>,
    context: RequestContext,
    operation: &Operation<'_>,
    (place, key): (Place, &[u8]),
) -> Progress {
    match *operation {
        Operation::Acquire { claim, wait } => {
            let grace = worker.cells.grace_left(place.cell, turn.now);
            acquire(worker, turn, &AcquireRequest { context, place, key, claim, wait, grace });
        }
        Operation::Release { fence } => release(worker, turn, context, place, key, fence),
        Operation::Cancel { target } => cancel::cancel(worker, turn, context, place, key, target),
        Operation::Confirm { fence } => {
            confirm::confirm(worker, turn, context, place, key, fence);
        }
        Operation::Reclaim { fence, request, claim } => {
            let told = Told { context, place, key, fence, request, claim };
            return reclaim::reclaim(worker, turn, &told);
        }
        Operation::Inspect { namespace } => {
            inspect::inspect(worker, turn, context, place, &Named { namespace, key });
        }
        Operation::Force { namespace } => {
            return force::force(worker, turn, context, place, &Named { namespace, key });
        }
    }
    Progress::Done
}
