//! Whether a link holds a key under a fence, and as what.

use super::RequestContext;
use super::answer::{reply_confirmed, reply_not_held};
use crate::locks::Place;
use crate::turn::Turn;
use crate::worker::Worker;
use lockring_proto::Fence;

pub(super) fn confirm(
    worker: &Worker,
    turn: &mut Turn<'_>,
    context: RequestContext,
    place: Place,
    key: &[u8],
    fence: Fence,
) {
    let namespace = worker.locks.namespace_of(context.link);
    let found = worker.locks.find(place, namespace, key);
    let held = found.and_then(|record| worker.locks.held(record, fence));
    match held {
        Some((link, claim, _)) if link == context.link => {
            reply_confirmed(turn, context, place, claim);
        }
        _ => reply_not_held(turn, context, place),
    }
}
