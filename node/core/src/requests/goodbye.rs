//! A session ends here by its own wish.

use super::RequestContext;
use crate::locks::Death;
use crate::turn::Turn;
use crate::worker::Worker;
use lockring_proto::Time;

/// The answer leaves when all of it is freed.
pub(super) fn goodbye(worker: &mut Worker, turn: &mut Turn<'_>, context: RequestContext) {
    if let Some(until) = worker.links.spared_until(turn.now, context.link)
        && worker.locks.hold_count(context.link) > 0
    {
        return leave(worker, turn, context, until);
    }
    worker.links.say_goodbye(context.link, context.conn, context.id);
    worker.end_link(turn, context.link, Death::Left);
}

/// The process goes, and leaves holds in which the one before it may still believe.
fn leave(worker: &mut Worker, turn: &mut Turn<'_>, context: RequestContext, until: Time) {
    turn.answer_goodbye(context.conn, context.id);
    worker.links.take_conn(context.link);
    let entries = worker.locks.entry_count(context.link);
    worker.links.leave(context.link, until, entries);
}
