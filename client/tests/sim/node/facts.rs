//! What a machine's log, answers and counters tell the recorder.

use crate::hub::Hub;
use crate::keys::Keys;
use lockring_core::testing::{Fact, KeyId, Note};
use lockring_core::{Action, ConnId, Machine, Stats};
use lockring_proto::{BlockedReason, HelloReply, Reply, Request, SessionId};
use lockring_ring::NamespaceSeed;

/// A request as the recorder needs it: its id, its key, the ring version it was routed by and since
/// which its key is owned here, and whether it forces.
pub struct Asked {
    id: u64,
    key: Option<KeyId>,
    routed: Option<(u64, u64)>,
    forces: bool,
}

impl Asked {
    pub fn of(request: &Request<'_>, machine: &Machine, keys: &Keys, namespace: &str) -> Self {
        let (version, key) = match *request {
            Request::Acquire { version, key, .. }
            | Request::Release { version, key, .. }
            | Request::Cancel { version, key, .. }
            | Request::Inspect { version, key, .. }
            | Request::Force { version, key, .. }
            | Request::Confirm { version, key, .. } => (version, Some(key)),
            Request::Renew { .. }
            | Request::Compare { .. }
            | Request::GetRing { .. }
            | Request::List { .. }
            | Request::Goodbye { .. } => (0, None),
        };
        let namespace = match *request {
            Request::Inspect { namespace: other, .. } | Request::Force { namespace: other, .. }
                if !other.is_empty() =>
            {
                other
            }
            _ => namespace,
        };
        let seed = NamespaceSeed::of(namespace);
        let since = key.and_then(|key| machine.owned_since(seed, key));
        Self {
            id: request.id(),
            key: key.map(|key| keys.id_named(namespace, key)),
            routed: since.map(|since| (version, since)),
            forces: matches!(request, Request::Force { .. }),
        }
    }
}

/// What a worker answered on the connection whose requests it took in.
pub fn tell_answers(hub: &mut Hub, asked: &[Asked], actions: &[Action], from: (ConnId, SessionId)) {
    let (conn, session) = from;
    for action in actions {
        let Action::Reply { conn: to, reply } = action else { continue };
        let Some(its) = asked.iter().find(|asked| *to == conn && id_of(reply) == Some(asked.id))
        else {
            continue;
        };
        if let Some((routed, since)) = its.routed {
            let moved = matches!(reply, Reply::Moved { .. });
            hub.fact(&Fact::Answered { routed, since, moved });
        }
        match (reply, its.key) {
            (Reply::Forced { id, .. }, _) => hub.fact(&Fact::ForceRan { session, request: *id }),
            (Reply::Busy { reason: BlockedReason::Held { fence, .. }, .. }, Some(key)) => {
                hub.fact(&Fact::ToldHeld { key, fence: *fence });
            }
            _ => {}
        }
    }
}

pub fn says_fresh(actions: &[Action]) -> bool {
    actions.iter().any(|action| match action {
        Action::Welcome { reply, .. } => {
            matches!(&**reply, HelloReply::Welcome(welcome) if welcome.fresh)
        }
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
        | Reply::Forced { id, .. }
        | Reply::Confirmed { id, .. } => Some(id),
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
            Fact::Queued { session, request, key: keys.id_of(session, &key), claim }
        }
        Note::Left { session, request, key } => {
            Fact::Left { session, request, key: keys.id_of(session, &key) }
        }
        Note::Granted { session, request, key, claim, fence, alive } => {
            Fact::Granted { session, request, key: keys.id_of(session, &key), claim, fence, alive }
        }
        Note::Freed { session, key, fence } => {
            let key = keys.id_of(session, &key);
            let forced = asked.iter().any(|asked| asked.forces && asked.key == Some(key));
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
        ("orphans", stats.orphans),
        ("cancelled waiters", stats.cancelled_waiters),
        ("timeouts", stats.timeouts),
        ("retries", stats.retries),
        ("moved", stats.moved),
        ("busy", stats.busy),
        ("refused", stats.refused),
        ("over a quota", stats.over_quota),
        ("stale frames", stats.stale),
        ("resumed links", stats.resumed_links),
        ("stalls", stats.stalls),
    ];
    for (what, n) in reached {
        hub.reach_n(what, n);
    }
}
