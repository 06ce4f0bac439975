//! What clients do: how long they hold, pause and wait.

use crate::hub::Step;
use crate::keys::Keys;
use lockring_core::testing::{KeyId, Rng};
use lockring_proto::Claim;
use std::time::Duration;

/// Which part a client plays.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// Several tasks, each asking for one key after the other, and one that keeps keys of its own.
    Worker,
    /// Takes hundreds of keys and dies.
    Hoarder,
    /// Forces and inspects.
    Operator,
}

/// A client's plans.
#[derive(Clone, Debug)]
pub struct Workload {
    pub part: Part,
    slots: usize,
    /// Slots rest until the next claim of this many.
    rests: u32,
    hoarded: usize,
    /// Nothing new is asked for any more.
    pub closing: bool,
    /// How many of a hundred holds are kept for longer than a TTL.
    pub long_holds: u64,
    /// If TTLs are long, holds and rests are shorter: of this much.
    pub longest: Duration,
    /// TTLs that sessions ask for, in milliseconds, unless that is left to chance.
    pub ttls: Option<&'static [u64]>,
    /// Holds are compared though both sides agree on them.
    pub needless_compares: bool,
}

/// The slot that keeps keys of the client's own.
pub const KEEPER: usize = 0;

fn micros(rng: &mut Rng, mean: u64) -> Duration {
    Duration::from_micros(rng.tailed(mean))
}

impl Workload {
    pub fn new(part: Part, rng: &mut Rng) -> Self {
        let slots = match part {
            Part::Worker => rng.range(2, 5) as usize,
            Part::Hoarder => 1,
            Part::Operator => 0,
        };
        Self {
            part,
            slots,
            rests: 0,
            hoarded: 0,
            closing: false,
            long_holds: 2,
            longest: Duration::MAX,
            ttls: None,
            needless_compares: false,
        }
    }

    /// The first steps of a new life.
    pub fn begin(&mut self, rng: &mut Rng) -> Vec<(Duration, Step)> {
        self.hoarded = 0;
        self.rests = 0;
        let mut steps: Vec<_> =
            (0..self.slots).map(|slot| (micros(rng, 20_000), Step::Claim(slot))).collect();
        if self.part == Part::Operator {
            steps.push((micros(rng, 20_000), Step::List));
        }
        if self.part == Part::Hoarder {
            steps.push((Duration::from_micros(rng.range(2_000_000, 6_000_000)), Step::Die));
        }
        steps
    }

    /// What a slot asks for next, and how long it waits for it. `None`: nothing.
    pub fn wants(
        &mut self,
        rng: &mut Rng,
        keys: &Keys,
        client: usize,
        slot: usize,
    ) -> Option<(KeyId, Claim, Option<Duration>)> {
        if self.closing {
            return None;
        }
        if self.part == Part::Hoarder {
            let key = *keys.hoard().get(self.hoarded)?;
            self.hoarded += 1;
            return Some((key, Claim::EXCLUSIVE, Some(Duration::ZERO)));
        }
        if slot == KEEPER {
            return Some((keys.own(client, rng), Claim::EXCLUSIVE, None));
        }
        if rng.percent(1) && rng.percent(60) {
            self.rests = self.slots as u32;
        }
        let (key, claim) = keys.shared(rng);
        let wait = match rng.range(0, 100) {
            0..25 => Some(Duration::ZERO),
            25..55 => Some(Duration::from_millis(rng.range(2, 900))),
            _ => None,
        };
        Some((key, claim, wait))
    }

    /// When a claim that waits is given up, if at all.
    pub fn gives_up(&self, rng: &mut Rng, slot: usize) -> Option<Duration> {
        let patient = self.part != Part::Worker || slot == KEEPER || !rng.percent(12);
        (!patient).then(|| micros(rng, 15_000))
    }

    /// How long a hold is kept. `None`: for good.
    pub fn holds(&mut self, rng: &mut Rng, slot: usize, ttl: Duration) -> Option<Duration> {
        match self.part {
            Part::Hoarder => None,
            _ if slot == KEEPER => Some(ttl * rng.range(1, 6) as u32),
            _ if rng.percent(self.long_holds) => Some(ttl.min(self.longest) + micros(rng, 500_000)),
            _ => Some(micros(rng, 25_000)),
        }
    }

    /// How long a slot pauses after a claim is over. `None`: for good.
    pub fn pause_of(&mut self, rng: &mut Rng, slot: usize, ttl: Duration) -> Option<Duration> {
        if self.closing {
            return None;
        }
        if slot != KEEPER && self.rests > 0 {
            // All tasks rest for a while, so that the session is at rest.
            self.rests -= 1;
            return Some((ttl * 2).min(self.longest));
        }
        Some(micros(rng, 40_000))
    }
}
