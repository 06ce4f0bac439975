//! What is held on a link, and until when each of it is believed.
//!
//! The lease of a link counts what this process of the worker was heard to have. What has come
//! with its cell from elsewhere is believed for as long as it was there, by itself, until a renewal
//! says that the cell has arrived: it makes the lease of the others neither longer nor shorter.

use super::pending::Pending;
use super::{Link, Loss, Outcome, Shared};
use crate::claims::{State, Tenure};
use lockring_proto::{HoldId, Time};
use std::collections::BTreeSet;
use std::time::Duration;

/// How soon another renewal asks whether a cell has arrived.
const SETTLE_AGAIN: Duration = Duration::from_millis(200);

/// Of so many ring versions that are not known what was heard is kept.
const DEFERRED_MAX: usize = 64;

/// The least time there is.
const TICK: Duration = Duration::from_micros(1);

/// The holds of a link.
#[derive(Default)]
pub(super) struct Holdings {
    /// How many are under its lease.
    leased: u64,
    /// Each of the others, by until when it is believed.
    apart: BTreeSet<(Time, u32)>,
    /// That those which are believed until then are in jeopardy was told: under the lease, and of
    /// the others those of up to that time.
    told: (Time, Time),
}

/// What an answer is worth.
#[derive(Clone, Copy)]
pub(super) struct Credit {
    /// The ring version of the worker.
    pub(super) version: u64,
    /// When the answered request was sent.
    pub(super) sent: Time,
    /// What the worker has gained up to this version has arrived.
    pub(super) settled: u64,
}

/// What the answers of the worker's process were worth.
#[derive(Default)]
pub(super) struct Credits {
    settled: u64,
    /// Of versions whose ring is not known yet, in their order.
    deferred: Vec<Credit>,
}

impl Link {
    /// The process at the other end, by its boot id.
    pub(super) fn process(&self) -> u64 {
        self.welcome().map_or(0, |welcome| welcome.boot)
    }

    /// Until when a hold of this link is believed.
    pub(crate) fn believed(&self, tenure: &Tenure) -> Time {
        if tenure.until == Time::NEVER { self.times.valid_until } else { tenure.until }
    }

    /// Until when an answer to what was sent then is believed. It is never [`Time::NEVER`], which
    /// says that a hold is under the lease.
    #[inline]
    pub(super) fn believed_from(&self, sent: Time) -> Time {
        sent.after(self.times.believed).min(Time(Time::NEVER.0 - 1))
    }

    /// When the next hold lapses.
    pub(super) fn lapses_at(&self) -> Option<Time> {
        let leased = (self.holds.leased > 0).then_some(self.times.valid_until);
        let apart = self.holds.apart.first().map(|&(until, _)| until);
        leased.into_iter().chain(apart).min()
    }

    /// Contact has been lost, or something has been on its way here, for so long that what is
    /// held may soon be lost: those who hold it get to know while it is valid.
    pub(super) fn tell_jeopardy(&mut self, shared: &mut Shared, now: Time) {
        let soon = now.after(self.jeopardy());
        let (leased, apart) = self.holds.told;
        let mut told = BTreeSet::new();
        let until = self.times.valid_until;
        if self.holds.leased > 0 && until <= soon && until != leased {
            self.holds.told.0 = until;
            told.insert(until);
        }
        let untold = self.holds.apart.range((apart.after(TICK), 0)..);
        for &(until, _) in untold.take_while(|&&(until, _)| until <= soon) {
            self.holds.told.1 = until;
            told.insert(until);
        }
        let link = self.id;
        shared.outcomes.extend(told.into_iter().map(|until| Outcome::Jeopardy { link, until }));
    }

    /// When the next of that is to be told.
    pub(super) fn jeopardy_at(&self) -> Option<Time> {
        let (leased, apart) = self.holds.told;
        let until = self.times.valid_until;
        let leased = (self.holds.leased > 0 && until != leased).then_some(until);
        let apart =
            self.holds.apart.range((apart.after(TICK), 0)..).next().map(|&(until, _)| until);
        let next = leased.into_iter().chain(apart).min()?;
        Some(Time(next.0.saturating_sub(self.jeopardy().as_micros() as u64)))
    }

    /// A renewal that was due has then been unanswered for some time.
    fn jeopardy(&self) -> Duration {
        self.times.believed / 3
    }

    /// A claim is held here from now on, and believed until then; [`Time::NEVER`]: under the lease.
    #[inline]
    pub(super) fn enter(&mut self, shared: &mut Shared, slot: u32, until: Time) {
        let claim = &mut shared.claims[slot];
        claim.tenure.until = until;
        let hold = claim.hold_id().expect("what enters is held");
        if until == Time::NEVER {
            self.holds.leased += 1;
        } else {
            self.holds.apart.insert((until, slot));
        }
        if claim.tenure.reclaim == 0 {
            self.compares.digest.add(hold);
        }
    }

    /// A claim is not held here any more. `None`: the worker does not know of it.
    #[inline]
    pub(super) fn leave(&mut self, shared: &mut Shared, slot: u32) -> Option<HoldId> {
        let claim = &mut shared.claims[slot];
        let hold = claim.hold_id().expect("what leaves is held");
        let Tenure { until, reclaim, .. } = claim.tenure;
        if until == Time::NEVER {
            self.holds.leased -= 1;
        } else {
            self.holds.apart.remove(&(until, slot));
        }
        if reclaim > 0 {
            claim.tenure.reclaim = 0;
            #[cfg(feature = "testing")]
            if shared.mutant == Some(super::ClientMutant::ReclaimsReleased) {
                return None;
            }
            self.forget(reclaim);
            return None;
        }
        self.compares.digest.remove(hold);
        Some(hold)
    }

    /// A request that was first sent at `sent` is answered by a worker of this ring version: the
    /// lease counts from there.
    #[inline]
    pub(super) fn credit(&mut self, shared: &mut Shared, version: u64, sent: Option<Time>) {
        let Some(sent) = sent.filter(|&sent| sent > self.times.credited) else { return };
        if version > shared.version {
            return self.defer(shared, Credit { version, sent, settled: 0 });
        }
        self.times.credited = sent;
        self.times.valid_until = self.times.valid_until.max(self.believed_from(sent));
    }

    /// A renewal is answered.
    pub(super) fn credit_renewal(&mut self, shared: &mut Shared, credit: Credit) {
        if credit.version > shared.version {
            return self.defer(shared, credit);
        }
        self.credits.settled = self.credits.settled.max(credit.settled);
        self.credit(shared, credit.version, Some(credit.sent));
        self.settle(shared);
    }

    /// What is still this worker's by its version only the ring of that version tells.
    #[cold]
    fn defer(&mut self, shared: &Shared, credit: Credit) {
        #[cfg(feature = "testing")]
        if shared.mutant == Some(super::ClientMutant::CreditUnknownRing) {
            self.credits.settled = self.credits.settled.max(credit.settled);
            self.times.credited = credit.sent;
            self.times.valid_until = self.times.valid_until.max(self.believed_from(credit.sent));
            return;
        }
        #[cfg(not(feature = "testing"))]
        let _ = shared;
        let deferred = &mut self.credits.deferred;
        match deferred.binary_search_by_key(&credit.version, |one| one.version) {
            Ok(at) => {
                let same = &mut deferred[at];
                same.sent = same.sent.max(credit.sent);
                same.settled = same.settled.max(credit.settled);
            }
            Err(at) => deferred.insert(at, credit),
        }
        if deferred.len() > DEFERRED_MAX {
            // What is not counted makes no lease longer. The newest ring is the likeliest to come.
            deferred.remove(0);
        }
    }

    /// A newer ring is known. What has lapsed until now stays so.
    pub(crate) fn credit_deferred(&mut self, shared: &mut Shared, now: Time) {
        if self.credits.deferred.is_empty() {
            return;
        }
        self.notice_lapse(shared, now);
        let version = shared.version;
        let known = self.credits.deferred.partition_point(|credit| credit.version <= version);
        for credit in self.credits.deferred.drain(..known).collect::<Vec<_>>() {
            self.credit_renewal(shared, credit);
        }
    }

    /// Whether a hold that is believed by itself is one that renewals here may be counted for.
    fn may_settle(&self, shared: &Shared, slot: u32) -> bool {
        let tenure = &shared.claims[slot].tenure;
        tenure.process == self.process() && tenure.reclaim == 0
    }

    /// What has arrived with its cell is under the lease of the link from now on.
    fn settle(&mut self, shared: &mut Shared) {
        let (settled, valid_until) = (self.credits.settled, self.times.valid_until);
        let has_arrived = |slot: u32| {
            #[cfg(feature = "testing")]
            if shared.mutant == Some(super::ClientMutant::CreditSyncing) {
                return true;
            }
            shared.since(shared.claims[slot].cell) <= settled && self.may_settle(shared, slot)
        };
        let slots = self.holds.apart.iter().take_while(|&&(until, _)| until <= valid_until);
        let slots: Vec<u32> =
            slots.map(|&(_, slot)| slot).filter(|&slot| has_arrived(slot)).collect();
        for slot in slots {
            self.settles(shared, slot);
        }
    }

    fn settles(&mut self, shared: &mut Shared, slot: u32) {
        let named = shared.claims.name(slot);
        let claim = &mut shared.claims[slot];
        self.holds.apart.remove(&(claim.tenure.until, slot));
        self.holds.leased += 1;
        claim.tenure.until = Time::NEVER;
        shared.outcomes.push(Outcome::Settled { claim: named, link: self.id });
    }

    /// When the next renewal is to ask whether what has come here has arrived.
    pub(super) fn settles_again(&self, shared: &Shared, sent: Time) -> Option<Time> {
        let waits = self.holds.apart.iter().any(|&(_, slot)| self.may_settle(shared, slot));
        waits.then(|| sent.after(SETTLE_AGAIN))
    }

    /// A hold has come from elsewhere, believed until then.
    pub(super) fn moves_in(&mut self, shared: &mut Shared, now: Time, slot: u32, until: Time) {
        let cell = shared.claims[slot].cell;
        let reclaims = shared.takeover(cell) > shared.claims[slot].tenure.epoch;
        let reclaim = if reclaims { shared.ids.next() } else { 0 };
        let tenure = &mut shared.claims[slot].tenure;
        (tenure.process, tenure.reclaim) = (0, reclaim);
        if let Some(process) = shared.process_of(cell) {
            shared.claims[slot].tenure.process = process;
        }
        self.enter(shared, slot, until);
        self.stands_apart(shared, slot);
        if reclaims {
            self.pending.insert(reclaim, Pending::Reclaim { slot, sent: None });
            self.send(shared, now, reclaim);
        } else {
            self.times.settle_at = Some(now);
        }
    }

    fn stands_apart(&self, shared: &mut Shared, slot: u32) {
        let (claim, link) = (shared.claims.name(slot), self.id);
        let until = shared.claims[slot].tenure.until;
        shared.outcomes.push(Outcome::Follows { claim, link, until });
    }

    /// The owner of a cell that was taken over has a hold again.
    pub(super) fn reclaimed(&mut self, shared: &mut Shared, id: u64, version: u64) {
        let Some(&Pending::Reclaim { slot, sent }) = self.pending.get(id) else { return };
        self.forget(id);
        let cell = shared.claims[slot].cell;
        let epoch = shared.epoch(cell);
        let claim = &mut shared.claims[slot];
        (claim.tenure.reclaim, claim.tenure.epoch) = (0, epoch.max(claim.tenure.epoch));
        self.compares.digest.add(claim.hold_id().expect("what is reclaimed is held"));
        self.credit(shared, version, sent);
        // Whoever has answered a claim on the cell has it.
        let is_here = version <= shared.version && shared.since(cell) <= version;
        let until = shared.claims[slot].tenure.until;
        if is_here && self.may_settle(shared, slot) && until <= self.times.valid_until {
            self.settles(shared, slot);
        } else {
            self.times.settle_at = sent;
        }
    }

    /// Another process runs in the place of the one that was here: what that had is believed for as
    /// long as it was, and nothing that this one says counts for it.
    pub(super) fn process_has_ended(&mut self, shared: &mut Shared) {
        let until = self.times.valid_until;
        for slot in 0..shared.claims.slots() {
            let claim = &shared.claims[slot];
            let is_leased = claim.is_held() && claim.tenure.until == Time::NEVER;
            if is_leased && shared.claims.is_of(slot, self.id) {
                self.holds.leased -= 1;
                shared.claims[slot].tenure.until = until;
                self.holds.apart.insert((until, slot));
                self.stands_apart(shared, slot);
            }
        }
    }

    /// No contact for a whole lease: every hold is lost, and given back when contact returns. This
    /// is looked at before anything that is heard: no late answer may revive what has lapsed.
    pub(crate) fn notice_lapse(&mut self, shared: &mut Shared, now: Time) {
        while let Some(&(until, slot)) = self.holds.apart.first()
            && until <= now
        {
            self.lapses(shared, now, slot);
        }
        if self.holds.leased == 0 || now < self.times.valid_until {
            return;
        }
        for slot in 0..shared.claims.slots() {
            let claim = &shared.claims[slot];
            let is_leased = claim.is_held() && claim.tenure.until == Time::NEVER;
            if is_leased && shared.claims.is_of(slot, self.id) {
                self.lapses(shared, now, slot);
            }
        }
    }

    fn lapses(&mut self, shared: &mut Shared, now: Time, slot: u32) {
        let (claim, link, token) = (shared.claims.name(slot), self.id, shared.claims[slot].token);
        shared.outcomes.push(Outcome::Lost { token, claim, link, reason: Loss::Lapsed });
        self.begin_release(shared, now, slot, false);
    }

    /// Ends a hold that the worker does not have.
    pub(crate) fn lose(&mut self, shared: &mut Shared, slot: u32, reason: Loss) {
        let known = self.leave(shared, slot);
        // What is handed over here is still held, and what the worker does not know was not.
        if let Some(hold) = known.filter(|_| !matches!(reason, Loss::Unknown | Loss::HandedOver)) {
            self.note_ended(hold);
        }
        let (token, named) = (shared.claims[slot].token, shared.claims.name(slot));
        shared.claims.free(slot);
        shared.outcomes.push(Outcome::Lost { token, claim: named, link: self.id, reason });
    }

    /// What a fresh welcome of the same process has ended: what it had, and not what has come from
    /// another since.
    pub(super) fn is_own(&self, state: State, tenure: &Tenure) -> bool {
        matches!(state, State::Held { .. }) && tenure.until == Time::NEVER
    }
}
