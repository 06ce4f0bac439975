//! Connections that come and go.

use crate::event::{Action, CloseReason, ConnId, Identity, LinkIndex};
use crate::links::{Arrival, refusal};
use crate::locks::Death;
use crate::turn::Turn;
use crate::worker::Worker;
use lockring_proto::{Hello, HelloReply, RefusalKind};
use std::time::Duration;

/// Answers a hello.
pub(crate) fn opened(
    worker: &mut Worker,
    turn: &mut Turn<'_>,
    conn: ConnId,
    identity: &Identity,
    hello: &Hello<'_>,
) {
    match admit(worker, turn, &Arrival { conn, identity, hello }) {
        Ok(link) => match worker.links.must_wait(conn, link) {
            Some(ttl) => turn.act(Action::RaiseLongestTtl(ttl)),
            None => welcome(worker, turn, conn, link),
        },
        Err(reply) => turn.act(Action::Refuse { conn, reply: Box::new(reply) }),
    }
}

/// Finds or makes the link of a hello.
fn admit(
    worker: &mut Worker,
    turn: &mut Turn<'_>,
    arrival: &Arrival<'_>,
) -> Result<LinkIndex, HelloReply> {
    arrival.check()?;
    if turn.lease_is_over() {
        let message = "this node has lost contact with its cluster: ask another";
        return Err(refusal(RefusalKind::Unavailable, message));
    }
    match worker.links.of_session(arrival) {
        Some(link) => {
            worker.links.may_resume(link, arrival)?;
            worker.hang_up(turn, link, CloseReason::Superseded);
            let entries = worker.locks.entry_count(link);
            if worker.links.resume(turn.now, link, arrival, entries) {
                turn.link_is_anothers(&worker.links, &worker.locks, link);
            }
            worker.stats.resumed_links += 1;
            Ok(link)
        }
        None => begin(worker, turn, arrival),
    }
}

fn begin(
    worker: &mut Worker,
    turn: &mut Turn<'_>,
    arrival: &Arrival<'_>,
) -> Result<LinkIndex, HelloReply> {
    if worker.draining {
        let message = "this node is stopping: connect to another";
        return Err(refusal(RefusalKind::Draining, message));
    }
    if let Some(refused) = worker.links.may_begin(arrival.identity, &worker.config.limits) {
        worker.stats.over_quota += 1;
        return Err(refusal(RefusalKind::Quota, refused));
    }
    worker.stats.fresh_links += 1;
    Ok(worker.links.begin(turn.now, arrival, &mut worker.locks))
}

fn welcome(worker: &Worker, turn: &mut Turn<'_>, conn: ConnId, link: LinkIndex) {
    let welcome = worker.links.welcome(link, &worker.config, turn.version);
    let reply = Box::new(HelloReply::Welcome(welcome));
    turn.act(Action::Welcome { conn, link, reply });
}

/// The longest TTL is durably this.
pub(crate) fn longest_ttl_is(worker: &mut Worker, turn: &mut Turn<'_>, ttl: Duration) {
    for (conn, link) in worker.links.confirm(turn.now, ttl) {
        welcome(worker, turn, conn, link);
    }
}

/// Refuses the sessions that wait for a longer TTL. What a link has from an owner before stays
/// until its lease ends: it is believed in.
pub(crate) fn ttl_failed(worker: &mut Worker, turn: &mut Turn<'_>, why: &str) {
    for (conn, link, begun_for_this) in worker.links.give_up_waiting() {
        let reply = Box::new(refusal(RefusalKind::Unavailable, why));
        turn.act(Action::Refuse { conn, reply });
        if begun_for_this && !worker.locks.was_used(link) {
            worker.end_link(turn, link, Death::Left);
        }
    }
}

/// A connection is gone.
pub(crate) fn closed(worker: &mut Worker, turn: &mut Turn<'_>, conn: ConnId, link: LinkIndex) {
    worker.awaiting.forget(conn);
    if !worker.links.is_in_force(conn, link) {
        return;
    }
    worker.links.close(link);
    // There is nothing to keep, whatever its TTL.
    if !worker.locks.was_used(link) && !worker.links.may_count(link) {
        worker.end_link(turn, link, Death::Left);
    }
}
