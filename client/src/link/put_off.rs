//! Requests that a worker cannot serve at present: they are sent again.

use super::pending::Pending;
use super::query::Query;
use super::{Link, NotGranted, Outcome, Shared};
use crate::claims::{ClaimRecord, State};
use lockring_proto::{SessionId, Time};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// How soon a request that was refused for now only is sent again at the latest; doubled each time
/// that it is refused again.
const RETRY_FIRST: Duration = Duration::from_millis(100);

/// The longest of these pauses.
const RETRY_MAX: Duration = Duration::from_millis(500);

/// How long a claim that does not wait, or a query, is sent again though its worker says that the
/// cell is another's, and no ring says whose. What workers know of a new ring is no further apart.
const UNSERVED_MAX: Duration = Duration::from_secs(2);

/// A request that its worker cannot serve at present.
#[derive(Clone, Debug)]
pub(super) struct PutOff {
    reason: NotGranted,
    /// How often it was refused before.
    times: u32,
    /// Sent again then; a new connection sends it in any case.
    again: Time,
    /// The caller hears the reason then.
    until: Time,
    /// It was sent again, and that copy is not answered.
    asked: bool,
}

impl PutOff {
    fn due(&self) -> Time {
        self.again.min(self.until)
    }

    /// When it is sent again, if it is refused now. Sessions that are refused together do not come
    /// back together; what is of one session does, as its callers expect to be served in the order
    /// in which they have asked.
    fn retry_at(&self, now: Time, session: SessionId) -> Time {
        let longest = RETRY_FIRST.saturating_mul(1 << self.times.min(8)).min(RETRY_MAX);
        let micros = longest.as_micros() as u64;
        let random = mix(session, self.times);
        now.after(Duration::from_micros(micros - random % (micros / 2)))
    }
}

/// All of a link, by their ids and by when they are due.
#[derive(Debug, Default)]
pub(super) struct PutOffs {
    by_id: BTreeMap<u64, PutOff>,
    due: BTreeSet<(Time, u64)>,
}

impl PutOffs {
    pub(super) fn contains(&self, id: u64) -> bool {
        self.by_id.contains_key(&id)
    }

    fn get(&self, id: u64) -> Option<&PutOff> {
        self.by_id.get(&id)
    }

    fn insert(&mut self, id: u64, put_off: PutOff) {
        self.remove(id);
        self.due.insert((put_off.due(), id));
        self.by_id.insert(id, put_off);
    }

    #[inline]
    pub(super) fn is_empty(&self) -> bool {
        self.by_id.is_empty()
    }

    pub(super) fn remove(&mut self, id: u64) -> Option<PutOff> {
        let put_off = self.by_id.remove(&id)?;
        self.due.remove(&(put_off.due(), id));
        Some(put_off)
    }

    pub(super) fn clear(&mut self) {
        (self.by_id, self.due) = Default::default();
    }

    /// Those that are due, in the order of their requests.
    fn due_at(&self, now: Time) -> Vec<u64> {
        let due = self.due.iter().take_while(|&&(at, _)| at <= now);
        let mut ids: Vec<u64> = due.map(|&(_, id)| id).collect();
        ids.sort_unstable();
        ids
    }
}

impl Link {
    /// When the next of them is due.
    pub(super) fn put_off_due(&self) -> Option<Time> {
        self.put_off.due.first().map(|&(at, _)| at)
    }

    /// Why a request was put off last, if it was.
    pub(super) fn why_put_off(&mut self, id: u64) -> Option<NotGranted> {
        self.put_off.remove(id).map(|put_off| put_off.reason)
    }

    /// The worker did not take a claim, for a reason that passes: it goes on waiting.
    pub(super) fn put_off(
        &mut self,
        shared: &mut Shared,
        now: Time,
        slot: u32,
        reason: NotGranted,
    ) {
        let claim = &shared.claims[slot];
        let (id, until) = (claim.id, waited_out(shared, now, claim));
        self.try_later(shared, now, id, (reason, until));
    }

    /// The worker says that the cell is another's, and the newest ring that anybody knows gives it
    /// to this one. Who waits goes on waiting, and who does not does so for a while; what is to end
    /// has to end, wherever.
    pub(super) fn unserved(&mut self, shared: &Shared, now: Time, id: u64) {
        let until = match self.pending.get(id) {
            Some(&(Pending::Claim(slot) | Pending::Waiting(slot))) => {
                let claim = &shared.claims[slot];
                match claim.state {
                    State::Acquiring if claim.waits => waited_out(shared, now, claim),
                    State::Acquiring | State::Confirming { .. } => now.after(UNSERVED_MAX),
                    _ => self.patience_of(shared, claim).unwrap_or(Time::NEVER),
                }
            }
            Some(Pending::Query(_)) => now.after(UNSERVED_MAX),
            Some(Pending::Reclaim { .. }) => Time::NEVER,
            _ => return,
        };
        self.try_later(shared, now, id, (NotGranted::Moved, until));
    }

    /// A request is sent again after a pause, and given up when its time is over, which began when
    /// it was refused first.
    fn try_later(
        &mut self,
        shared: &Shared,
        now: Time,
        id: u64,
        (reason, until): (NotGranted, Time),
    ) {
        let mut it = match self.put_off.remove(id) {
            Some(known) => PutOff { reason, times: known.times + 1, asked: false, ..known },
            None => PutOff { reason, times: 0, again: now, until, asked: false },
        };
        it.again = it.retry_at(now, shared.config.session);
        self.put_off.insert(id, it);
    }

    pub(super) fn serve_put_off(&mut self, shared: &mut Shared, now: Time) {
        for id in self.put_off.due_at(now) {
            let Some(put_off) = self.put_off.get(id).cloned() else { continue };
            if now < put_off.until {
                // Without a connection the next one sends it. A copy that is not answered may yet
                // be carried out, and its answer be one to the next: there is one at a time.
                let is_sent = !self.parked.contains(id) && !put_off.asked;
                let again = now.after(RETRY_MAX);
                let asked = put_off.asked || is_sent;
                self.put_off.insert(id, PutOff { again, asked, ..put_off });
                if is_sent {
                    self.send(shared, now, id);
                }
                continue;
            }
            self.put_off.insert(id, PutOff { until: Time::NEVER, ..put_off.clone() });
            self.is_given_up(shared, now, id, put_off);
        }
    }

    /// Nobody has served a request for as long as its caller waits for that.
    fn is_given_up(&mut self, shared: &mut Shared, now: Time, id: u64, put_off: PutOff) {
        if let Some(slot) = self.pending.claim(id) {
            return match shared.claims[slot].state {
                State::Acquiring | State::Confirming { .. } => {
                    self.put_off.remove(id);
                    // The last copy may still be under way, and be carried out.
                    self.give_up(shared, now, slot, put_off.reason);
                }
                _ => self.unconfirmed(shared, now, slot),
            };
        }
        self.put_off.remove(id);
        self.parked.remove(id);
        let Some(Pending::Query(query)) = self.pending.remove(id) else { return };
        let (token, link) = (query.token, self.id);
        shared.outcomes.push(match query.query {
            // That copy may yet be carried out.
            Query::Force(_) if put_off.asked => Outcome::NoAnswer { token, link },
            _ => Outcome::Moved { token },
        });
    }
}

/// Until when a claim that waits is tried: its wait may have an end of its own.
fn waited_out(shared: &Shared, now: Time, claim: &ClaimRecord) -> Time {
    match claim.deadline {
        Time::NEVER => now.after(shared.config.unreachable_after),
        _ => Time::NEVER,
    }
}

/// A number that is another one for each session, and each time.
fn mix(session: SessionId, times: u32) -> u64 {
    let of = |bytes: &[u8]| bytes.iter().fold(0, |sum, &byte| sum << 8 | u64::from(byte));
    let (low, high) = session.0.split_at(8);
    let mixed = (of(low) ^ of(high).rotate_left(times)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    mixed >> 32
}
