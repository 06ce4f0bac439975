//! Whether both sides know of the same holds, and what to do if they do not.
//!
//! A service is never at rest: requests are always under way. So both sides are compared as of one
//! point in the stream of requests, where the worker took a renewal in. Its answer comes after
//! every grant made before that point, so this side knows of them all by then; what this side has
//! ended since it sent the renewal is kept apart and added.
//!
//! Some differences are of the moment: a grant that raced a cancel, a release that was answered
//! "moved", a loss that is being pushed. They are gone by the next renewal, but a hold that only
//! one side knows stays. So it takes two in a row to have every hold compared.

use super::holds::Credit;
use super::pending::Pending;
use super::{Link, Loss, Shared};
use crate::claims::ClaimRecord;
use lockring_proto::{Digest, HoldId, Request, Time, codec, limits};
use lockring_ring::CellId;
use std::collections::BTreeSet;
use std::time::Duration;

/// Differences in a row that call for a compare, if it can look further than the last one.
const COMPARE_AFTER: u32 = 2;

/// Differences in a row that call for one in any case. What a compare leaves is mostly newer than a
/// claim that still waits, perhaps for hours: to list a million holds every few seconds for that
/// would be a waste.
const COMPARE_ANYWAY: u32 = 16;

/// What is held on a link, and how far both sides agree on that.
pub(super) struct Compares {
    pub(super) digest: Digest,
    /// What was held when the unanswered renewal was sent, or granted since, and is not held any
    /// more: the worker may have had it when it took the renewal in.
    ended_since_renewal: Digest,
    /// Renewals in a row whose digest was another.
    pub(super) mismatches: u32,
    /// How far the last compare of this connection looked.
    compared_upto: u64,
    /// When it was sent.
    compared: Time,
    /// Until then the worker keeps what an earlier process of the session may still believe in, if
    /// there was one.
    pub(super) spared_until: Time,
    /// The ring by which the worker has got cells since then, of which it has not told yet. What
    /// has come with them it keeps for as long again, and so all that the link has.
    gained: Option<u64>,
    /// Unanswered frames of a compare.
    comparing: u32,
    /// The last digest was of another ring version.
    is_unknown: bool,
}

impl Compares {
    pub(super) fn new(now: Time) -> Self {
        Self {
            digest: Digest::default(),
            ended_since_renewal: Digest::default(),
            mismatches: 0,
            compared_upto: 0,
            compared: now,
            spared_until: now,
            gained: None,
            comparing: 0,
            is_unknown: false,
        }
    }

    /// The connection is gone, and with it what it was asked.
    pub(super) fn down(&mut self) {
        (self.comparing, self.compared_upto) = (0, 0);
    }

    /// The worker has all that it got up to then. Whether the session was ever taken up, or what
    /// came has anything of it, only the worker knows. It counts on a clock that stands still while
    /// it does: one more compare after that costs little.
    pub(super) fn has_gained(&mut self, now: Time, ttl: Duration) {
        let until = now.after(limits::inherited(ttl) + ttl / 20);
        self.spared_until = self.spared_until.max(until);
        self.gained = None;
    }

    /// One difference is enough for the next compare.
    pub(super) fn is_doubtful(&mut self) {
        self.mismatches = self.mismatches.max(COMPARE_AFTER - 1);
    }

    /// A frame was answered, or refused.
    pub(super) fn answered(&mut self) {
        self.comparing -= 1;
    }

    /// Whether the next difference is to be looked into: `upto` is how far a compare would look.
    fn is_due(&self, now: Time, upto: u64) -> bool {
        // What was spared for an earlier process at the last one is not any more.
        let spared = self.compared < self.spared_until && self.spared_until <= now;
        upto > self.compared_upto || self.mismatches >= COMPARE_ANYWAY || spared
    }
}

impl Link {
    /// The worker gets cells by the ring of this version.
    pub(crate) fn gains_cells(&mut self, version: u64) {
        self.compares.gained = Some(version);
    }

    /// A newer ring is known: the digest that was told by that is asked for again.
    pub(crate) fn digests_again(&mut self, now: Time) {
        if std::mem::take(&mut self.compares.is_unknown) {
            self.times.settle_at.get_or_insert(now);
        }
    }

    /// Keeps the link alive, and asks for the worker's digest.
    pub(super) fn send_renewal(&mut self, shared: &mut Shared, now: Time) {
        let id = shared.ids.next();
        (self.times.renewing, self.times.settle_at) = (Some(now), None);
        self.compares.ended_since_renewal = Digest::default();
        self.pending.insert(id, Pending::Renew { sent: now });
        codec::encode_frame(&Request::Renew { id }, &mut self.out);
        self.watches(shared, now);
    }

    /// A hold is not held any more, though the worker may have had it at the last renewal.
    #[inline]
    pub(super) fn note_ended(&mut self, hold: HoldId) {
        if self.times.renewing.is_some() {
            self.compares.ended_since_renewal.add(hold);
        }
    }

    pub(super) fn renewed(
        &mut self,
        shared: &mut Shared,
        now: Time,
        (id, version, settled): (u64, u64, u64),
        theirs: Digest,
    ) {
        let Some(&Pending::Renew { sent }) = self.pending.get(id) else { return };
        self.pending.remove(id);
        (self.times.renewing, self.times.renewed) = (None, sent);
        self.note_round_trip(now, sent);
        self.credit_renewal(shared, Credit { version, sent, settled });
        if self.compares.gained.is_some_and(|gained| gained <= version) {
            self.compares.has_gained(now, self.times.ttl);
        }
        let again = self.settles_again(shared, sent);
        self.times.settle_at = self.times.settle_at.or(again);
        // Whatever was granted and lost before the renewal was sent has been told as granted too.
        let by = self.id;
        shared.lost_early.retain(|_, (of, told)| *of != by || *told >= sent);
        #[cfg(feature = "testing")]
        if shared.mutant == Some(super::ClientMutant::NoDigestCompare) {
            return;
        }
        if version != shared.version {
            // Each side may have cells that the other has not. It is asked again by the newer ring.
            self.compares.is_unknown = true;
            return;
        }
        let is_same = self.compares.digest.and(self.compares.ended_since_renewal) == theirs;
        #[cfg(feature = "testing")]
        let is_same = is_same && !shared.needless_compares;
        if is_same {
            self.compares.mismatches = 0;
            return;
        }
        self.compares.mismatches += 1;
        if self.compares.mismatches >= COMPARE_AFTER && self.compares.comparing == 0 {
            let upto = self.settled_upto(shared);
            #[cfg(feature = "testing")]
            if shared.mutant == Some(super::ClientMutant::CompareAtRest) && !self.pending.is_empty()
            {
                return;
            }
            if self.compares.is_due(now, upto) {
                self.compares.mismatches = 0;
                (self.compares.compared_upto, self.compares.compared) = (upto, now);
                self.send_compare(shared, now, upto);
            }
        }
    }

    /// The last request id up to which every claim is settled here.
    pub(crate) fn settled_upto(&mut self, shared: &mut Shared) -> u64 {
        let newest = shared.ids.next();
        #[cfg(feature = "testing")]
        if shared.mutant == Some(super::ClientMutant::CompareAll) {
            return newest;
        }
        let unsettled = shared.claims.of_link(self.id).filter_map(ClaimRecord::unsettled).min();
        unsettled.map_or(newest, |id| id - 1)
    }

    /// Lists every hold, part by part, so that the worker ends what this side does not know and
    /// says what it does not have.
    ///
    /// A release under way runs before this, unless it is answered "moved": then it still needs
    /// its hold, which is listed for that. Claims under way may have been granted or not: nothing
    /// from the first of them on is said to be unknown.
    fn send_compare(&mut self, shared: &mut Shared, now: Time, upto: u64) {
        let version = shared.version;
        let ours = shared.claims.of_link(self.id);
        let mut holds: Vec<HoldId> = ours.filter_map(ClaimRecord::listed_id).collect();
        holds.sort_unstable();
        let mut after = None;
        let mut parts = holds.chunks(shared.holds_per_frame).peekable();
        loop {
            let part = parts.next().unwrap_or(&[]);
            let through = parts.peek().and_then(|_| part.last().copied());
            let id = shared.ids.next();
            self.pending.insert(id, Pending::Compare { sent: now, version });
            self.compares.comparing += 1;
            let holds = part.to_vec();
            let request = Request::Compare { id, version, upto, after, through, holds };
            codec::encode_frame(&request, &mut self.out);
            after = through;
            if through.is_none() {
                return;
            }
        }
    }

    pub(super) fn compared(&mut self, shared: &mut Shared, id: u64, of: u64, lost: &[HoldId]) {
        let Some(&Pending::Compare { sent, version }) = self.pending.get(id) else { return };
        self.pending.remove(id);
        self.compares.answered();
        self.credit(shared, of, Some(sent));
        if lost.is_empty() {
            return;
        }
        // One that is being given back is not held, and not lost; and of what has come here since
        // the list was made the worker has said nothing.
        let lost: BTreeSet<HoldId> = lost.iter().copied().collect();
        let cells = lost.iter().map(|hold| CellId(hold.cell)).collect();
        let slots: Vec<u32> = shared.claims.of_cells(&cells).collect();
        for slot in slots {
            let claim = &shared.claims[slot];
            // What is being reclaimed is lost if the answer to that says so.
            let is_here = claim.tenure.reclaim == 0;
            let is_lost = is_here && claim.hold_id().is_some_and(|hold| lost.contains(&hold));
            if claim.link == self.id && is_lost && shared.since(claim.cell) <= version {
                self.lose(shared, slot, Loss::Unknown);
            }
        }
    }
}
