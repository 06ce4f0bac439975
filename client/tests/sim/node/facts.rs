//! What a machine's log, answers and counters tell the recorder.

use crate::hub::Hub;
use crate::keys::Keys;
use lockring_core::testing::{Fact, KeyId, Note};
use lockring_core::{Action, Machine, Stats};
use lockring_proto::{HelloReply, Reply, Request};
use lockring_ring::NamespaceSeed;

/// A request as the recorder needs it: its id, and for a keyed one where its key was owned since
/// which version, and by which it was routed.
pub struct Asked {
    id: u64,
    routed: Option<(u64, u64)>,
    force: Option<KeyId>,
}

impl Asked {
    pub fn of(request: &Request<'_>, machine: &Machine, keys: &Keys) -> Self {
        let (version, key) = match *request {
            Request::Acquire { version, key, .. }
            | Request::Release { version, key, .. }
            | Request::Cancel { version, key, .. }
            | Request::Inspect { version, key, .. }
            | Request::Force { version, key, .. } => (version, Some(key)),
            Request::Renew { .. }
            | Request::Compare { .. }
            | Request::GetRing { .. }
            | Request::List { .. }
            | Request::Goodbye { .. } => (0, None),
        };
        let seed = NamespaceSeed::of("default");
        let since = key.and_then(|key| machine.owned_since(seed, key));
        let force = match *request {
            Request::Force { key, .. } => Some(keys.id(key)),
            _ => None,
        };
        Self { id: request.id(), routed: since.map(|since| (version, since)), force }
    }
}

pub fn tell_answers(hub: &mut Hub, asked: &[Asked], actions: &[Action]) {
    for asked in asked {
        let Some((routed, since)) = asked.routed.filter(|(routed, since)| routed < since) else {
            continue;
        };
        let answers = actions.iter().filter_map(|action| match action {
            Action::Reply { reply, .. } => Some(reply),
            _ => None,
        });
        let mut its = answers.filter(|reply| id_of(reply) == Some(asked.id)).peekable();
        if its.peek().is_some() {
            let moved = its.any(|reply| matches!(reply, Reply::Moved { .. }));
            hub.fact(&Fact::Answered { routed, since, moved });
        }
    }
}

pub fn says_fresh(actions: &[Action]) -> bool {
    actions.iter().any(|action| match action {
        Action::Welcome { reply: HelloReply::Welcome(welcome), .. } => welcome.fresh,
        _ => false,
    })
}

/// The id of an answer to a keyed request.
fn id_of(reply: &Reply) -> Option<u64> {
    match *reply {
        Reply::Granted { id, .. }
        | Reply::Released { id, .. }
        | Reply::Queued { id, .. }
        | Reply::Busy { id, .. }
        | Reply::TimedOut { id, .. }
        | Reply::Cancelled { id, .. }
        | Reply::NotHeld { id, .. }
        | Reply::Moved { id, .. }
        | Reply::Refused { id, .. }
        | Reply::Inspected { id, .. }
        | Reply::Forced { id, .. } => Some(id),
        _ => None,
    }
}

pub fn freed(stats: &Stats) -> u64 {
    stats.expired_holds + stats.dead_waiters
}

pub fn fact_of(note: Note, keys: &Keys, worker: u16, asked: &[Asked]) -> Fact {
    match note {
        Note::Began { session } => Fact::Began { worker, session },
        Note::Dead { session, expired } => Fact::Dead { worker, session, expired },
        Note::Queued { session, request, key, claim } => {
            Fact::Queued { session, request, key: keys.id(&key), claim }
        }
        Note::Left { session, request, key } => Fact::Left { session, request, key: keys.id(&key) },
        Note::Granted { session, request, key, claim, fence, alive } => {
            Fact::Granted { session, request, key: keys.id(&key), claim, fence, alive }
        }
        Note::Freed { session, key, fence } => {
            let key = keys.id(&key);
            let forced = asked.iter().any(|asked| asked.force == Some(key));
            Fact::Freed { session, key, fence, forced }
        }
    }
}

/// Adds what a machine has counted to what the run has reached.
pub fn account(hub: &mut Hub, stats: &Stats) {
    let reached = [
        ("grants", stats.grants),
        ("grants from the line", stats.grants_queued),
        ("expired links", stats.expired_links),
        ("expired holds", stats.expired_holds),
        ("dead waiters", stats.dead_waiters),
        ("forced releases", stats.forced),
        ("losses found by a compare", stats.lost),
        ("cancelled waiters", stats.cancelled_waiters),
        ("timeouts", stats.timeouts),
        ("retries", stats.retries),
        ("moved", stats.moved),
        ("busy", stats.busy),
        ("refused", stats.refused),
        ("stale frames", stats.stale),
        ("resumed links", stats.resumed_links),
        ("stalls", stats.stalls),
    ];
    for (what, n) in reached {
        hub.reach_n(what, n);
    }
}
