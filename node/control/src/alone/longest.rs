//! The longest TTL: raised before the first session with it is confirmed, and lowered in two
//! entries once nobody can believe in it any more.
//!
//! One patient session must not make a later restart wait for longer than it was there. So now and
//! then every worker states the longest TTL it has a session with; if that is less than the log
//! says, the way down is:
//!
//! 1. [`Entry::IntendLongestTtl`]; once it is committed, no worker confirms above it: who comes
//!    with more has to ask, and an [`Entry::RaiseLongestTtl`] ends the intent;
//! 2. every worker states once more, for whoever came before it was told so;
//! 3. [`Entry::LowerLongestTtl`], or, if somebody came, the intent is taken back.
//!
//! A crash between any two of them leaves the higher TTL, and the next life forgets the intent.

use super::event::{Action, Statement};
use super::state::{Entry, State};
use lockring_proto::Time;
use std::collections::BTreeMap;
use std::time::Duration;

/// How often it is looked whether the longest TTL may fall.
const LOOK: Duration = Duration::from_secs(1);

/// The longest TTL does not fall within this after it changed: a client that comes back every
/// moment must not cost a write each time.
const SETTLE: Duration = Duration::from_secs(3);

/// Who has waited this long for a write that fails is told why.
const PATIENCE: Duration = Duration::from_secs(2);

/// Seeded bugs, each of which the tests must notice. A normal build cannot switch one on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mutant {
    /// Workers are not asked again after the intent.
    LowerUnasked,
    /// Leases of earlier lives are not waited for.
    LowerInGrace,
}

/// A TTL that the sessions of one worker wait for.
#[derive(Debug)]
struct Wanted {
    ttl: Duration,
    by: String,
    since: Time,
}

/// Statements of one round, by worker.
#[derive(Debug)]
struct StatementRound {
    number: u64,
    stated: BTreeMap<usize, Statement>,
}

/// How far a lowering is.
#[derive(Debug)]
enum Lowering {
    /// None is under way.
    Rests,
    /// The workers are asked.
    Asked(StatementRound),
    /// The intent is to be proposed.
    Intends(Duration),
    /// No worker confirms above it, and they are asked once more.
    Capped(Duration, StatementRound),
    /// It is to be proposed.
    Falls(Duration, String),
    /// The intent is to be taken back: no worker confirms above this until then.
    TakesBack(Duration),
}

/// What is known and wanted of the longest TTL.
#[derive(Debug)]
pub(crate) struct LongestTtl {
    workers: usize,
    /// Lower than this it never falls.
    least: Duration,
    /// What the log says is within these two: they differ after a proposal of which nobody knows
    /// whether it took effect.
    at_least: Duration,
    at_most: Duration,
    wanted: BTreeMap<usize, Wanted>,
    lowering: Lowering,
    rounds: u64,
    look_at: Time,
    settled_at: Time,
    pub mutant: Option<Mutant>,
}

impl LongestTtl {
    pub fn new(workers: usize, least: Duration, longest: Duration, now: Time) -> Self {
        Self {
            workers,
            least,
            at_least: longest,
            at_most: longest,
            wanted: BTreeMap::new(),
            lowering: Lowering::Rests,
            rounds: 0,
            look_at: now.after(LOOK),
            settled_at: now,
            mutant: None,
        }
    }

    /// When it is looked next whether it may fall.
    pub fn look_at(&self) -> Time {
        self.look_at
    }

    /// A session of a worker wants to be confirmed.
    pub fn asked(
        &mut self,
        now: Time,
        worker: usize,
        (ttl, by): (Duration, String),
        out: &mut Vec<Action>,
    ) {
        let more = Wanted { ttl, by, since: now };
        match self.wanted.get_mut(&worker) {
            Some(known) if known.ttl >= ttl => {}
            Some(known) => *known = Wanted { since: known.since, ..more },
            None => drop(self.wanted.insert(worker, more)),
        }
        self.confirm_wanted(out);
    }

    /// Up to here workers may confirm.
    fn ceiling(&self) -> Duration {
        match self.lowering {
            Lowering::Capped(cap, _) | Lowering::Falls(cap, _) | Lowering::TakesBack(cap) => cap,
            Lowering::Rests | Lowering::Asked(_) | Lowering::Intends(_) => self.at_least,
        }
    }

    /// Confirms whoever needs no entry, and forgets them.
    fn confirm_wanted(&mut self, out: &mut Vec<Action>) {
        let ttl = self.ceiling();
        self.wanted.retain(|&worker, wanted| {
            let waits = wanted.ttl > ttl;
            if !waits {
                out.push(Action::Confirm { worker, ttl });
            }
            waits
        });
    }

    fn confirm_all(&self, ttl: Duration, out: &mut Vec<Action>) {
        out.extend((0..self.workers).map(|worker| Action::Confirm { worker, ttl }));
    }

    /// What is to be proposed.
    pub fn proposal(&self, state: &State) -> Option<Entry> {
        let most = self.wanted.values().max_by_key(|wanted| wanted.ttl);
        if let Some(most) = most.filter(|most| most.ttl > self.ceiling()) {
            return Some(Entry::RaiseLongestTtl { ttl: most.ttl, by: most.by.clone() });
        }
        match &self.lowering {
            Lowering::Intends(ttl) => Some(Entry::IntendLongestTtl(*ttl)),
            Lowering::Falls(ttl, by) => Some(Entry::LowerLongestTtl { ttl: *ttl, by: by.clone() }),
            Lowering::TakesBack(_) => Some(Entry::RaiseLongestTtl {
                ttl: state.longest_ttl,
                by: state.longest_by.clone(),
            }),
            Lowering::Rests | Lowering::Asked(_) | Lowering::Capped(..) => None,
        }
    }

    /// An entry is committed, and this is the state with it.
    pub fn committed(&mut self, now: Time, entry: &Entry, state: &State, out: &mut Vec<Action>) {
        let longest = state.longest_ttl;
        if longest != self.at_least || longest != self.at_most {
            self.settled_at = now.after(SETTLE);
        }
        (self.at_least, self.at_most) = (longest, longest);
        match entry {
            Entry::IntendLongestTtl(ttl) if state.intent == Some(*ttl) => {
                self.confirm_all(*ttl, out);
                self.lowering = match self.is(Mutant::LowerUnasked) {
                    true => Lowering::Falls(*ttl, String::new()),
                    false => Lowering::Capped(*ttl, self.ask(now, true, out)),
                };
            }
            Entry::IntendLongestTtl(_) => self.lowering = Lowering::Rests,
            Entry::RaiseLongestTtl { .. } | Entry::LowerLongestTtl { .. } => {
                let capped = self.ceiling() < longest;
                self.lowering = Lowering::Rests;
                if capped {
                    self.confirm_all(longest, out);
                }
            }
            Entry::NodeBoot | Entry::RaiseEpoch(_) | Entry::CleanStop(_) | Entry::Blank => {}
        }
        self.confirm_wanted(out);
    }

    /// A proposal failed, and may have taken effect all the same.
    pub fn failed(&mut self, now: Time, entry: &Entry, why: &str, out: &mut Vec<Action>) {
        match entry {
            Entry::RaiseLongestTtl { ttl, .. } => self.at_most = self.at_most.max(*ttl),
            Entry::LowerLongestTtl { ttl, .. } => {
                // From here on the lower one counts, which is also what workers confirm up to.
                self.at_least = self.at_least.min(*ttl);
                self.lowering = Lowering::Rests;
            }
            Entry::IntendLongestTtl(_) => self.lowering = Lowering::Rests,
            Entry::NodeBoot | Entry::RaiseEpoch(_) | Entry::CleanStop(_) | Entry::Blank => {}
        }
        self.wanted.retain(|&worker, wanted| {
            let waits = now.since(wanted.since) < PATIENCE;
            if !waits {
                let ttl = wanted.ttl.as_secs_f64();
                let why =
                    format!("the node cannot make a TTL of {ttl} s durable: {why}; it tries again");
                out.push(Action::Refuse { worker, why });
            }
            waits
        });
    }

    /// Looks whether it may fall, if that is due. A lowering for which a worker has not answered
    /// by then is given up.
    pub fn look(&mut self, now: Time, log_works: bool, out: &mut Vec<Action>) {
        if now < self.look_at {
            return;
        }
        self.look_at = now.after(LOOK);
        match &self.lowering {
            Lowering::Rests | Lowering::Asked(_) => {
                let may_fall = self.at_most > self.least && log_works && now >= self.settled_at;
                self.lowering = match may_fall {
                    true => Lowering::Asked(self.ask(now, false, out)),
                    false => Lowering::Rests,
                };
            }
            Lowering::Capped(cap, _) => self.lowering = Lowering::TakesBack(*cap),
            Lowering::Intends(_) | Lowering::Falls(..) | Lowering::TakesBack(_) => {}
        }
    }

    /// Asks every worker, who have until the next look to answer.
    fn ask(&mut self, now: Time, whose: bool, out: &mut Vec<Action>) -> StatementRound {
        self.look_at = now.after(LOOK);
        self.rounds += 1;
        out.push(Action::AskStatements { round: self.rounds, whose });
        StatementRound { number: self.rounds, stated: BTreeMap::new() }
    }

    /// A worker states what it has.
    pub fn stated(&mut self, round: u64, worker: usize, statement: Statement) {
        let (Lowering::Asked(asked) | Lowering::Capped(_, asked)) = &mut self.lowering else {
            return;
        };
        if asked.number != round {
            return;
        }
        asked.stated.insert(worker, statement);
        if asked.stated.len() == self.workers {
            self.all_stated();
        }
    }

    /// Every worker has stated: the lowering goes on, or is given up.
    fn all_stated(&mut self) {
        let lowering = std::mem::replace(&mut self.lowering, Lowering::Rests);
        self.lowering = match lowering {
            Lowering::Asked(round) => match self.believed(&round) {
                Some((ttl, _)) if ttl < self.at_most => Lowering::Intends(ttl),
                _ => Lowering::Rests,
            },
            Lowering::Capped(cap, round) => match self.believed(&round) {
                Some((ttl, whose)) if ttl <= cap => Lowering::Falls(cap, whose),
                _ => Lowering::TakesBack(cap),
            },
            other => other,
        };
    }

    fn is(&self, mutant: Mutant) -> bool {
        self.mutant == Some(mutant)
    }

    /// The longest TTL that anybody can still believe in, and whose it is; `None` if that cannot
    /// be said. Leases of earlier lives are believed in until the grace is over.
    fn believed(&self, round: &StatementRound) -> Option<(Duration, String)> {
        let in_grace = round.stated.values().any(|said| said.in_grace);
        if in_grace && !self.is(Mutant::LowerInGrace) {
            return None;
        }
        let most = round.stated.values().max_by_key(|said| said.longest_ttl)?;
        if most.longest_ttl > self.least {
            Some((most.longest_ttl, most.whose.clone()))
        } else {
            Some((self.least, String::new()))
        }
    }
}
