//! A session ends here by its own wish.

use super::Asker;
use crate::event::CloseReason;
use crate::locks::Death;
use crate::turn::Turn;
use crate::worker::Worker;
use lockring_proto::{Reply, Time};

/// The answer leaves when all of it is freed.
pub(super) fn goodbye(worker: &mut Worker, turn: &mut Turn<'_>, asker: Asker) {
    if let Some(until) = worker.links.spared_until(turn.now, asker.link)
        && worker.locks.hold_count(asker.link) > 0
    {
        return leave(worker, turn, asker, until);
    }
    worker.links.say_goodbye(asker.link, asker.conn, asker.id);
    worker.end_link(asker.link, Death::Left);
}

/// The process goes, and leaves holds in which the one before it may still believe.
fn leave(worker: &mut Worker, turn: &mut Turn<'_>, asker: Asker, until: Time) {
    turn.reply(asker.conn, Reply::Goodbye { id: asker.id });
    worker.hang_up(turn, asker.link, CloseReason::Goodbye);
    let entries = worker.locks.entry_count(asker.link);
    worker.links.leave(asker.link, until, entries);
}
