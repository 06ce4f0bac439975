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

use super::Link;
use super::Loss;
use super::claims::{Claim, Pending};
use lockring_proto::{Digest, HoldId, Request, Time, codec};

/// Differences in a row that call for a compare, if it can look further than the last one.
const COMPARE_AFTER: u32 = 2;

/// Differences in a row that call for one in any case. What a compare leaves is mostly newer than a
/// claim that still waits, perhaps for hours: to list a million holds every few seconds for that
/// would be a waste.
const COMPARE_ANYWAY: u32 = 16;

impl Link {
    /// Keeps the link alive, and asks for the worker's digest.
    pub(super) fn send_renewal(&mut self, now: Time) {
        let id = self.config.ids.next();
        self.renewing = Some(now);
        self.ended_since_renewal = Digest::default();
        self.pending.insert(id, Pending::Renew { sent: now });
        codec::encode_frame(&Request::Renew { id }, &mut self.out);
    }

    /// A hold is not held any more, though the worker may have had it at the last renewal.
    #[inline]
    pub(super) fn note_ended(&mut self, hold: HoldId) {
        if self.renewing.is_some() {
            self.ended_since_renewal.add(hold);
        }
    }

    pub(super) fn renewed(&mut self, now: Time, id: u64, theirs: Digest) {
        let Some(Pending::Renew { sent }) = self.pending.remove(&id) else {
            return;
        };
        (self.renewing, self.renewed) = (None, sent);
        self.note_round_trip(now, sent);
        self.credit(Some(sent));
        // Whatever was granted and lost before the renewal was sent has been told as granted too.
        self.lost_early.retain(|_, told| *told >= sent);
        #[cfg(feature = "testing")]
        if self.mutant == Some(super::LinkMutant::NoDigestCompare) {
            return;
        }
        if self.digest.and(self.ended_since_renewal) == theirs {
            self.mismatches = 0;
            return;
        }
        self.mismatches += 1;
        if self.mismatches >= COMPARE_AFTER && self.comparing == 0 {
            let upto = self.settled_upto();
            #[cfg(feature = "testing")]
            if self.mutant == Some(super::LinkMutant::CompareAtRest) && !self.pending.is_empty() {
                return;
            }
            // What was spared for an earlier process at the last one is not any more.
            let spared = self.compared < self.spared_until && self.spared_until <= now;
            if upto > self.compared_upto || self.mismatches >= COMPARE_ANYWAY || spared {
                (self.mismatches, self.compared_upto, self.compared) = (0, upto, now);
                self.send_compare(now, upto);
            }
        }
    }

    /// The last request id up to which every claim is settled here.
    fn settled_upto(&mut self) -> u64 {
        let newest = self.config.ids.next();
        #[cfg(feature = "testing")]
        if self.mutant == Some(super::LinkMutant::CompareAll) {
            return newest;
        }
        self.claims.iter().filter_map(Claim::unsettled).min().map_or(newest, |id| id - 1)
    }

    /// Lists every hold, part by part, so that the worker ends what this side does not know and
    /// says what it does not have.
    ///
    /// A release under way runs before this, unless it is answered "moved": then it still needs
    /// its hold, which is listed for that. Claims under way may have been granted or not: nothing
    /// from the first of them on is said to be unknown.
    fn send_compare(&mut self, now: Time, upto: u64) {
        let mut holds: Vec<HoldId> = self.claims.iter().filter_map(Claim::listed_id).collect();
        holds.sort_unstable();
        let mut after = None;
        let mut parts = holds.chunks(self.holds_per_frame).peekable();
        loop {
            let part = parts.next().unwrap_or(&[]);
            let through = parts.peek().and_then(|_| part.last().copied());
            let id = self.config.ids.next();
            self.pending.insert(id, Pending::Compare { sent: now });
            self.comparing += 1;
            let holds = part.to_vec();
            let request = Request::Compare { id, upto, after, through, holds };
            codec::encode_frame(&request, &mut self.out);
            after = through;
            if through.is_none() {
                return;
            }
        }
    }

    pub(super) fn compared(&mut self, id: u64, lost: &[HoldId]) {
        let Some(Pending::Compare { sent }) = self.pending.remove(&id) else {
            return;
        };
        self.comparing -= 1;
        self.credit(Some(sent));
        // One that is being given back is not held, and not lost.
        self.lose_holds(lost, Loss::Unknown);
    }
}
