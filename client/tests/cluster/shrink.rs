//! A seed that breaks a promise is made smaller: fewer faults, clients and nodes that still break
//! it (delta debugging: Zeller and Hildebrandt, 2002).

use crate::run::{Bug, Excerpt, run_excerpt};
use std::panic::{AssertUnwindSafe, catch_unwind};

/// What a run broke.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Broken {
    pub rule: String,
    pub what: String,
}

/// Runs it. An invariant of the program's own counts as a promise too.
pub fn breaks(seed: u64, bug: Bug, excerpt: &Excerpt) -> Option<Broken> {
    let run = || run_excerpt(seed, bug, excerpt, false).violation;
    match catch_unwind(AssertUnwindSafe(run)) {
        Ok(violation) => violation.map(|violation| Broken {
            rule: violation.rule.to_owned(),
            what: violation.to_string(),
        }),
        Err(_) => Some(Broken { rule: "panic".to_owned(), what: "it panicked".to_owned() }),
    }
}

/// A seed on its way to the least that breaks a promise.
struct Shrinking {
    seed: u64,
    bug: Bug,
    rule: String,
    smallest: Excerpt,
    runs: u64,
}

impl Shrinking {
    /// Takes the smaller one, if it breaks the same promise.
    fn accepts(&mut self, smaller: Excerpt) -> bool {
        self.runs += 1;
        let broken = breaks(self.seed, self.bug, &smaller);
        let same = broken.is_some_and(|broken| broken.rule == self.rule);
        if same {
            self.smallest = smaller;
        }
        same
    }

    /// Leaves faults out: halves, then quarters, and in the end each by itself.
    fn fewer_faults(&mut self) {
        let mut size = self.smallest.faults.len().div_ceil(2).max(1);
        loop {
            let all: Vec<u64> = self.smallest.faults.iter().copied().collect();
            // From the end: what comes after the promise was broken is of no use.
            for without in all.rchunks(size) {
                let mut smaller = self.smallest.clone();
                smaller.faults.retain(|fault| !without.contains(fault));
                self.accepts(smaller);
            }
            if size == 1 {
                return;
            }
            size = size.div_ceil(2);
        }
    }

    fn fewer_participants(&mut self) {
        let less = |excerpt: &Excerpt| Excerpt { clients: excerpt.clients - 1, ..excerpt.clone() };
        while self.smallest.clients > 2 && self.accepts(less(&self.smallest)) {}
        let less = |excerpt: &Excerpt| Excerpt { nodes: excerpt.nodes - 1, ..excerpt.clone() };
        while self.smallest.nodes > 1 && self.accepts(less(&self.smallest)) {}
    }
}

/// The least of a seed that was found to break the promise that it breaks, and how many runs that
/// took. `None`: it breaks none.
pub fn shrink(seed: u64, bug: Bug) -> Option<(Excerpt, Broken, u64)> {
    let smallest = Excerpt::whole(seed);
    let broken = breaks(seed, bug, &smallest)?;
    let mut shrinking = Shrinking { seed, bug, rule: broken.rule, smallest, runs: 1 };
    shrinking.fewer_faults();
    shrinking.fewer_participants();
    shrinking.fewer_faults();
    let broken = breaks(seed, bug, &shrinking.smallest).expect("it was accepted");
    Some((shrinking.smallest, broken, shrinking.runs))
}
