//! What a machine's log, answers and counters tell the recorder.

use crate::hub::Hub;
use crate::keys::Keys;
use lockring_core::testing::{Death, Ending, Fact, KeyId, Note, Noted, NotedSource, Replica};
use lockring_core::{Action, ConnId, Machine, Stats, Time};
use lockring_proto::{BlockedReason, Claim, Fence, HelloReply, Reply, Request, SessionId};
use lockring_ring::NamespaceSeed;
use std::collections::{BTreeMap, BTreeSet};

/// A request as the recorder needs it: its id, its key, the ring version it was routed by and since
/// which its key is owned here.
pub struct Asked {
    id: u64,
    key: Option<KeyId>,
    routed: Option<(u64, Option<u64>)>,
}

impl Asked {
    pub fn of(request: &Request<'_>, machine: &Machine, keys: &Keys, namespace: &str) -> Self {
        let (version, key, other) = match *request {
            Request::Keyed { version, ref operation, key, .. } => {
                (version, Some(key), operation.namespace())
            }
            _ => (0, None, ""),
        };
        let namespace = if other.is_empty() { namespace } else { other };
        let seed = NamespaceSeed::of(namespace);
        Self {
            id: request.id(),
            key: key.map(|key| keys.id_named(namespace, key)),
            routed: key.map(|key| (version, machine.owned_since(seed, key))),
        }
    }
}

/// What a worker answered on the connection whose requests it took in.
pub fn tell_answers(hub: &mut Hub, asked: &[Asked], actions: &[Action], from: (ConnId, SessionId)) {
    let (conn, session) = from;
    for action in actions {
        let Action::Reply { conn: to, reply } = action else { continue };
        let moved = matches!(reply, Reply::Moved { .. });
        // Who has learnt a newer ring meanwhile sends the request by that too, under one id.
        let mut same = asked.iter().filter(|asked| *to == conn && id_of(reply) == Some(asked.id));
        let its = if moved { same.next() } else { same.next_back() };
        let Some(its) = its else { continue };
        if let Some((routed, since)) = its.routed {
            if since.is_none() && moved {
                hub.reach("moved by a worker without the cell");
            }
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

/// What the stream of a worker says, and what it alone makes of its locks.
pub struct Reader {
    worker: u16,
    replica: Replica,
    /// Whose link a number is.
    sessions: BTreeMap<u64, SessionId>,
    dead: BTreeSet<u64>,
    /// Key and claim of each request that is queued or holds.
    claims: BTreeMap<(u64, u64), (KeyId, Claim)>,
    /// Link and request of each hold, by cell and fence.
    holds: BTreeMap<(u32, Fence), (u64, u64)>,
}

impl Reader {
    pub fn new(worker: u16, machine: &Machine) -> Self {
        Self {
            worker,
            replica: machine.replica(),
            sessions: BTreeMap::new(),
            dead: BTreeSet::new(),
            claims: BTreeMap::new(),
            holds: BTreeMap::new(),
        }
    }

    /// Tells what happened in a turn of a machine at its `now`, with what was noted in it.
    pub fn tell(&mut self, notes: &[Note], machine: &Machine, now: Time, keys: &Keys) -> Vec<Fact> {
        let mut facts = Vec::new();
        for note in notes {
            let worker = self.worker;
            match *note {
                Note::Defined { link, session, .. } => {
                    self.sessions.insert(link, session);
                    facts.push(Fact::Began { worker, session });
                }
                Note::Dead { link, death } => {
                    self.dead.insert(link);
                    let (session, expired) = (self.sessions[&link], death == Death::Expired);
                    facts.push(Fact::Dead { worker, session, expired });
                }
                Note::Op { cell, number, ref change, .. } => {
                    self.tell_op((cell, number), change, keys, &mut facts);
                    if let (Some(Fact::Granted { alive, .. }), &Noted::Granted { link, .. }) =
                        (facts.last_mut(), change)
                    {
                        *alive = !self.dead.contains(&link)
                            && machine.is_in_lease(now, link).unwrap_or_default();
                    }
                }
            }
        }
        facts
    }

    fn tell_op(
        &mut self,
        (cell, number): (u32, Fence),
        change: &Noted,
        keys: &Keys,
        facts: &mut Vec<Fact>,
    ) {
        match *change {
            Noted::Granted { link, request, ref source, .. } => {
                let session = self.sessions[&link];
                let back = match *source {
                    NotedSource::Reclaimed { fence, .. } => Some(fence),
                    _ => None,
                };
                let fence = back.unwrap_or(number);
                if let NotedSource::Asked { key, claim }
                | NotedSource::Reclaimed { key, claim, .. } = source
                {
                    let key = keys.id_of(session, key);
                    self.claims.insert((link, request), (key, *claim));
                }
                let (key, claim) = self.claims[&(link, request)];
                if *source == NotedSource::Queue {
                    facts.push(Fact::Left { session, request, key });
                }
                self.holds.insert((cell, fence), (link, request));
                facts.push(match back {
                    Some(_) => Fact::Reclaimed { session, request, key, claim, fence },
                    None => Fact::Granted { session, request, key, claim, fence, alive: true },
                });
            }
            Noted::Ended { fence, cause } => {
                let by = self.holds.remove(&(cell, fence)).expect("a hold ends that was granted");
                let (key, _) = self.claims.remove(&by).expect("a hold is of a claim");
                let (session, forced) = (self.sessions[&by.0], cause == Ending::Forced);
                facts.push(Fact::Freed { session, key, fence, forced });
            }
            Noted::Queued { link, request, ref key, claim, .. } => {
                let session = self.sessions[&link];
                let key = keys.id_of(session, key);
                self.claims.insert((link, request), (key, claim));
                facts.push(Fact::Queued { session, request, key, claim });
            }
            Noted::Left { link, request, .. } => {
                let (key, _) = self.claims.remove(&(link, request)).expect("it was queued");
                facts.push(Fact::Left { session: self.sessions[&link], request, key });
            }
        }
    }

    /// Whether the stream alone makes the locks that the machine has.
    pub fn check(&mut self, notes: &[Note], machine: &Machine) -> Result<(), String> {
        notes.iter().try_for_each(|note| {
            self.replica.see(note).map_err(|why| format!("{note:?}: {why}"))
        })?;
        let (its, ours) = (machine.locks_fingerprint(), self.replica.fingerprint());
        if its == ours {
            return Ok(());
        }
        Err(format!("{its:x} is not {ours:x} after {notes:?}"))
    }
}

/// Adds what a machine has counted to what the run has reached.
pub fn account(hub: &mut Hub, stats: &Stats) {
    let reached = [
        ("grants", stats.grants),
        ("grants from the line", stats.grants_queued),
        ("reclaims", stats.reclaimed),
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

/// Looks at a machine's inner invariants, and whether all is accounted for.
pub fn audit(hub: &mut Hub, machine: &Machine) {
    if let Err(what) = machine.audit() {
        hub.accuse("the machine's own invariants", what);
    }
    let stats = machine.stats();
    hub.fact(&Fact::Holds {
        granted: stats.grants + stats.reclaimed,
        released: stats.releases,
        expired: stats.expired_holds,
        forced: stats.forced + stats.outranked,
        held: stats.holds,
    });
    hub.fact(&Fact::Line {
        queued: stats.enqueued,
        granted: stats.grants_queued,
        cancelled: stats.cancelled_waiters,
        timed_out: stats.timeouts,
        dead: stats.dead_waiters + stats.refused_waiters,
        waiting: stats.waiters,
    });
}
