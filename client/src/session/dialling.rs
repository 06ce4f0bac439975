//! When a worker is dialled, and under which incarnation.

use lockring_proto::Time;
use std::time::Duration;

/// First pause before another try to connect; doubled each time.
const BACKOFF_MIN: Duration = Duration::from_millis(10);
const BACKOFF_MAX: Duration = Duration::from_secs(1);

/// A connection that was welcomed and has stood for less was none: its worker may break off each.
const BRIEF: Duration = BACKOFF_MAX;

/// After this many tries in a row the worker may be gone for good: others are asked.
const TRIES_ALONE: u32 = 3;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// Until it is dialled.
    Resting(Time),
    UnderWay,
    /// A connection stands, welcomed or not.
    Stands,
}

/// How a link comes to its connections.
pub(super) struct Dialling {
    stage: Stage,
    /// The next pause; none after a connection that was welcomed and has stood for some time.
    backoff: Duration,
    /// The same, of connections in a row that were welcomed and brief.
    brief: Duration,
    /// When the connection was welcomed.
    welcomed: Option<Time>,
    /// Tries in a row that failed.
    failures: u32,
    /// The highest that a hello of ours had, or was to have.
    incarnation: u64,
}

impl Dialling {
    /// It is dialled at once.
    pub(super) fn new(now: Time) -> Self {
        Self {
            stage: Stage::Resting(now),
            backoff: Duration::ZERO,
            brief: Duration::ZERO,
            welcomed: None,
            failures: 0,
            incarnation: 0,
        }
    }

    /// When it is to be dialled.
    pub(super) fn due(&self) -> Option<Time> {
        match self.stage {
            Stage::Resting(until) => Some(until),
            Stage::UnderWay | Stage::Stands => None,
        }
    }

    /// It is dialled now, if it rests.
    pub(super) fn is_due(&mut self, now: Time) {
        if let Stage::Resting(until) = &mut self.stage {
            *until = now.min(*until);
        }
    }

    pub(super) fn begins(&mut self) {
        self.stage = Stage::UnderWay;
    }

    /// The highest incarnation that a hello of ours had, or was to have.
    pub(super) fn incarnation(&self) -> u64 {
        self.incarnation
    }

    /// A connection stands: the incarnation of its hello, of a link whose hellos may have brought
    /// `known` into force, where others up to `astray` may have come to the same worker. 0, by
    /// which the worker chooses: another process began the session, and nobody has told its last
    /// one.
    pub(super) fn stands(&mut self, known: u64, astray: u64, taken_up: bool) -> u64 {
        self.stage = Stage::Stands;
        self.incarnation = self.incarnation.max(known).max(astray).saturating_add(1);
        if taken_up && known == 0 { 0 } else { self.incarnation }
    }

    pub(super) fn welcomed(&mut self, now: Time) {
        (self.welcomed, self.failures) = (Some(now), 0);
    }

    /// There is no connection, any more or after a try. It is dialled again after the pause that is
    /// due: half of it fixed, half at random, so that the clients of a node that has restarted do
    /// not come at once.
    pub(super) fn rests(&mut self, now: Time, random: u64) {
        let stood = self.welcomed.take().map(|at| now.since(at));
        if let Some(stood) = stood {
            self.backoff = if stood < BRIEF { self.brief } else { Duration::ZERO };
        }
        let micros = self.backoff.as_micros() as u64;
        let pause = Duration::from_micros(micros / 2 + random % (micros / 2 + 1));
        self.backoff = (self.backoff * 2).clamp(BACKOFF_MIN, BACKOFF_MAX);
        if stood.is_some() {
            self.brief = self.backoff;
        }
        self.stage = Stage::Resting(now.after(pause));
    }

    /// A try has failed. `true`: others are to be asked.
    pub(super) fn failed(&mut self, now: Time, random: u64) -> bool {
        self.rests(now, random);
        self.failures += 1;
        self.failures == TRIES_ALONE
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1000;

    fn due(dialling: &Dialling) -> u64 {
        dialling.due().map_or(0, |at| at.0)
    }

    #[test]
    fn pauses_grow_to_a_second_and_begin_anew_after_a_connection_that_stood() {
        let mut dialling = Dialling::new(Time(0));
        let mut pauses = Vec::new();
        for random in [0, u64::MAX].into_iter().cycle().take(20) {
            dialling.begins();
            assert_eq!(dialling.due(), None);
            dialling.failed(Time(0), random);
            pauses.push(due(&dialling));
        }
        assert_eq!(pauses[0], 0, "the first is tried again at once");
        assert!((5 * MS..=10 * MS).contains(&pauses[1]), "{pauses:?}");
        assert!(pauses.iter().all(|&pause| pause <= 1000 * MS), "{pauses:?}");
        assert!(pauses[18] >= 500 * MS && pauses[18] != pauses[19], "{pauses:?}");
        assert_eq!(dialling.stands(0, 0, false), 1);
        dialling.welcomed(Time(7));
        dialling.rests(Time(7), 3);
        assert_eq!(due(&dialling), 7, "none after a connection that was welcomed");
        for _ in 0..10 {
            dialling.welcomed(Time(7));
            dialling.rests(Time(7), 3);
        }
        assert!(due(&dialling) >= 500 * MS, "but after many that were brief");
        dialling.welcomed(Time(7));
        dialling.rests(Time(1000 * MS + 7), 3);
        assert_eq!(due(&dialling), 1000 * MS + 7, "none after one that has stood");
    }

    #[test]
    fn the_third_failure_in_a_row_has_others_asked() {
        let mut dialling = Dialling::new(Time(0));
        let asked: Vec<bool> = (0..5).map(|_| dialling.failed(Time(0), 1)).collect();
        assert_eq!(asked, [false, false, true, false, false]);
    }

    #[test]
    fn incarnations_grow_past_all_that_may_be_in_force() {
        let mut own = Dialling::new(Time(0));
        assert_eq!([own.stands(0, 0, false), own.stands(1, 0, false)], [1, 2]);
        assert_eq!([own.stands(9, 0, false), own.stands(0, 20, false)], [10, 21]);
        let mut successor = Dialling::new(Time(0));
        let stands = [
            successor.stands(0, 0, true),
            successor.stands(0, 0, true),
            successor.stands(7, 0, true),
        ];
        assert_eq!(stands, [0, 0, 8]);
    }
}
