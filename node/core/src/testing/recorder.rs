//! The recorder: hears every fact in order, keeps what the checkers need to know in common, and
//! stops at the first broken promise.

use super::fact::{Fact, KeyId, Token};
use crate::Time;
use lockring_proto::{Claim, Fence, SessionId};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt;

/// A broken promise.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// Which.
    pub rule: &'static str,
    /// How.
    pub what: String,
    /// When.
    pub at: Time,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at {}: {}", self.rule, self.at, self.what)
    }
}

/// One promise, checked fact by fact. `book` is how things were before the fact.
pub trait Check {
    /// Its name.
    fn rule(&self) -> &'static str;
    /// Takes a fact in.
    ///
    /// # Errors
    /// With what is wrong, if the fact breaks the promise.
    fn see(&mut self, at: Time, fact: &Fact, book: &Book) -> Result<(), String>;
}

/// A hold as its client sees it.
#[derive(Clone, Copy, Debug)]
pub struct Hold {
    /// The session.
    pub session: SessionId,
    /// The worker.
    pub worker: u16,
    /// It is believed until then, whatever else is at that worker.
    pub until: Option<Time>,
    /// The key.
    pub key: KeyId,
    /// What is held.
    pub claim: Claim,
    /// Its fence.
    pub fence: Fence,
    /// It is being given back: the client does not act on it any more.
    pub giving: bool,
    /// An operator ended it, or it was gone when it was taken up: whoever orders that takes the
    /// blame for what the client still does.
    pub forced: bool,
}

/// A key as its worker sees it.
#[derive(Clone, Debug, Default)]
pub struct Key {
    /// Who holds it.
    pub holders: Vec<(SessionId, Claim, Fence)>,
    /// Who is queued.
    pub queue: VecDeque<(SessionId, u64, Claim)>,
}

/// What is known in common: who believes what, and what the workers said.
#[derive(Clone, Debug, Default)]
pub struct Book {
    /// Holds of living clients.
    pub holds: BTreeMap<(SessionId, Token), Hold>,
    by_key: BTreeMap<KeyId, Vec<(SessionId, Token)>>,
    valid: BTreeMap<(SessionId, u16), Time>,
    /// Keys in use at their nodes.
    pub keys: BTreeMap<KeyId, Key>,
    boots: BTreeMap<KeyId, u32>,
    forced: BTreeSet<(KeyId, Fence)>,
}

impl Book {
    /// Until when a session believes in its holds at a worker.
    pub fn valid(&self, session: SessionId, worker: u16) -> Time {
        self.valid.get(&(session, worker)).copied().unwrap_or(Time(0))
    }

    /// Whether a client may act on a hold at `at`.
    pub fn acts(&self, at: Time, hold: &Hold) -> bool {
        !hold.giving && !hold.forced && self.until(hold) > at
    }

    /// Until when a client believes in a hold.
    pub fn until(&self, hold: &Hold) -> Time {
        hold.until.unwrap_or_else(|| self.valid(hold.session, hold.worker))
    }

    /// The holds of a key by clients.
    pub fn believers(&self, key: KeyId) -> impl Iterator<Item = &Hold> {
        self.by_key.get(&key).into_iter().flatten().map(|name| &self.holds[name])
    }

    /// How often the node of a key has started anew.
    pub fn boots(&self, key: KeyId) -> u32 {
        self.boots.get(&key).copied().unwrap_or(0)
    }

    /// Whether an operator ended the hold of a key under this fence.
    pub fn is_forced(&self, key: KeyId, fence: Fence) -> bool {
        self.forced.contains(&(key, fence))
    }

    fn force(&mut self, key: KeyId, fence: Fence) {
        self.forced.insert((key, fence));
        for name in self.by_key.get(&key).into_iter().flatten() {
            if let Some(hold) = self.holds.get_mut(name).filter(|hold| hold.fence == fence) {
                hold.forced = true;
            }
        }
    }

    /// What an operator has ordered is forgotten with the life of the node, if no client knows.
    fn is_back(&mut self, key: KeyId, fence: Fence) {
        self.forced.remove(&(key, fence));
        for name in self.by_key.get(&key).into_iter().flatten() {
            if let Some(hold) = self.holds.get_mut(name).filter(|hold| hold.fence == fence) {
                hold.forced = false;
            }
        }
    }

    fn hold(&mut self, token: Token, hold: Hold) {
        self.holds.insert((hold.session, token), hold);
        self.by_key.entry(hold.key).or_default().push((hold.session, token));
    }

    fn forget(&mut self, name: (SessionId, Token)) {
        if let Some(hold) = self.holds.remove(&name)
            && let Some(names) = self.by_key.get_mut(&hold.key)
        {
            names.retain(|known| *known != name);
        }
    }

    fn keep(&mut self, fact: &Fact) {
        match *fact {
            Fact::Booted { ref keys } => {
                for key in keys {
                    self.keys.remove(key);
                    *self.boots.entry(*key).or_default() += 1;
                }
            }
            Fact::Queued { session, request, key, claim } => {
                self.keys.entry(key).or_default().queue.push_back((session, request, claim));
            }
            Fact::Left { session, request, key } => {
                let queue = &mut self.keys.entry(key).or_default().queue;
                queue.retain(|&(waits, its, _)| (waits, its) != (session, request));
            }
            Fact::Reclaimed { session, key, claim, fence, .. } => {
                self.is_back(key, fence);
                self.keys.entry(key).or_default().holders.push((session, claim, fence));
            }
            Fact::Granted { session, key, claim, fence, .. } => {
                self.keys.entry(key).or_default().holders.push((session, claim, fence));
            }
            Fact::Freed { key, fence, forced, .. } => {
                if forced {
                    self.force(key, fence);
                }
                self.keys.entry(key).or_default().holders.retain(|held| held.2 != fence);
            }
            Fact::Held { session, worker, token, key, claim, fence }
            | Fact::Adopted { session, worker, token, key, claim, fence } => {
                let (giving, forced) = (false, self.is_forced(key, fence));
                let until = None;
                let hold = Hold { session, worker, until, key, claim, fence, giving, forced };
                self.hold(token, hold);
            }
            Fact::Believes { session, worker, until, .. } => {
                self.valid.insert((session, worker), until);
            }
            Fact::Went { session, token, worker, until } => {
                if let Some(hold) = self.holds.get_mut(&(session, token)) {
                    (hold.worker, hold.until) = (worker, until);
                }
            }
            Fact::Giving { session, token } => {
                if let Some(hold) = self.holds.get_mut(&(session, token)) {
                    hold.giving = true;
                }
            }
            Fact::Released { session, token }
            | Fact::NotHeld { session, token, .. }
            | Fact::Lost { session, token, .. } => self.forget((session, token)),
            Fact::Crashed { session, .. } => {
                let first = (session, Token(0));
                let last = (session, Token(u64::MAX));
                let names: Vec<_> = self.holds.range(first..=last).map(|(&name, _)| name).collect();
                names.into_iter().for_each(|name| self.forget(name));
            }
            _ => {}
        }
    }
}

/// Hears every fact.
pub struct Recorder {
    checks: Vec<Box<dyn Check>>,
    book: Book,
    violation: Option<Violation>,
}

impl Recorder {
    /// A recorder of these promises.
    pub fn new(checks: Vec<Box<dyn Check>>) -> Self {
        Self { checks, book: Book::default(), violation: None }
    }

    /// A fact. After the first broken promise nothing is checked any more.
    pub fn record(&mut self, at: Time, fact: &Fact) {
        if self.violation.is_some() {
            return;
        }
        for check in &mut self.checks {
            if let Err(what) = check.see(at, fact, &self.book) {
                self.violation = Some(Violation { rule: check.rule(), what, at });
                return;
            }
        }
        self.book.keep(fact);
    }

    /// Something that the run itself finds wrong.
    pub fn accuse(&mut self, at: Time, rule: &'static str, what: String) {
        self.violation.get_or_insert(Violation { rule, what, at });
    }

    /// The first broken promise.
    pub fn violation(&self) -> Option<&Violation> {
        self.violation.as_ref()
    }

    /// What is known in common.
    pub fn book(&self) -> &Book {
        &self.book
    }
}
