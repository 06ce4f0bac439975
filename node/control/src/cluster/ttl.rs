//! The longest TTL as one node sees it: what its workers may confirm, who waits for more, and what
//! it states when it is asked.

use super::entry::Entry;
use super::event::Action;
use super::state::Longest;
use lockring_proto::Time;
use std::collections::BTreeMap;
use std::time::Duration;

/// Who has waited this long for an entry is told why.
const PATIENCE: Duration = Duration::from_secs(2);

/// Who asked and sees no effect asks again after this.
const AGAIN: Duration = Duration::from_millis(200);

/// A TTL that the sessions of a worker wait for.
#[derive(Clone, Debug)]
struct Wanted {
    ttl: Duration,
    by: String,
    since: Time,
}

/// A question, and which workers have answered it.
#[derive(Clone, Debug)]
struct Question {
    round: u64,
    stated: BTreeMap<usize, (Option<Duration>, String)>,
}

/// What every worker has stated.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Statement {
    pub round: u64,
    pub longest: Option<Duration>,
    pub by: String,
}

/// The longest TTL at one node.
#[derive(Clone, Debug)]
pub(super) struct NodeTtl {
    workers: usize,
    /// When the node's process began: what was before, none of its workers knows.
    began: Time,
    /// Up to here its workers were told that they may confirm.
    told: Duration,
    wanted: BTreeMap<usize, Wanted>,
    asked: Option<Time>,
    question: Option<Question>,
}

impl NodeTtl {
    pub fn new(now: Time, workers: usize) -> Self {
        let told = Duration::ZERO;
        let wanted = BTreeMap::new();
        Self { workers, began: now, told, wanted, asked: None, question: None }
    }

    /// The state has this by now: workers are told when they may confirm more or less.
    pub fn applied(&mut self, longest: &Longest, out: &mut Vec<Action>) {
        let ceiling = longest.ceiling();
        if ceiling != self.told {
            self.told = ceiling;
            out.extend((0..self.workers).map(|worker| Action::ConfirmTtl(worker, ceiling)));
        }
        self.wanted.retain(|_, wanted| wanted.ttl > ceiling);
    }

    /// A session of a worker waits to be confirmed.
    pub fn asked(
        &mut self,
        now: Time,
        worker: usize,
        (ttl, by): (Duration, String),
        out: &mut Vec<Action>,
    ) {
        if ttl <= self.told {
            return out.push(Action::ConfirmTtl(worker, self.told));
        }
        let known = self.wanted.entry(worker).or_insert(Wanted { ttl, by: by.clone(), since: now });
        if ttl > known.ttl {
            (known.ttl, known.by) = (ttl, by);
        }
    }

    /// Who has waited for too long waits no more.
    pub fn give_up(&mut self, now: Time, out: &mut Vec<Action>) {
        self.wanted.retain(|&worker, wanted| {
            let waits = now.since(wanted.since) < PATIENCE;
            if !waits {
                let ttl = wanted.ttl.as_secs_f64();
                let why = format!("the cluster has not agreed to a TTL of {ttl} s in time");
                out.push(Action::RefuseTtl(worker, why));
            }
            waits
        });
    }

    /// The entry that somebody waits for, if it is to be asked for now.
    pub fn entry(&mut self, now: Time) -> Option<Entry> {
        let most = self.wanted.values().max_by_key(|wanted| wanted.ttl)?;
        let is_due = self.asked.is_none_or(|asked| now.since(asked) >= AGAIN);
        is_due.then(|| {
            self.asked = Some(now);
            Entry::RaiseLongestTtl { ttl: most.ttl, by: most.by.clone() }
        })
    }

    /// The leader asks for a statement. One that began within the window cannot make it.
    pub fn question(
        &mut self,
        now: Time,
        round: u64,
        window: Duration,
        out: &mut Vec<Action>,
    ) -> Option<Statement> {
        if self.question.as_ref().is_some_and(|known| known.round == round) {
            return None;
        }
        if now.since(self.began) < window {
            return Some(Statement { round, longest: None, by: String::new() });
        }
        self.question = Some(Question { round, stated: BTreeMap::new() });
        out.push(Action::AskTtl { round, window });
        None
    }

    /// A worker states; the last one makes the node's statement.
    pub fn stated(
        &mut self,
        worker: usize,
        round: u64,
        statement: (Option<Duration>, String),
    ) -> Option<Statement> {
        let question = self.question.as_mut().filter(|question| question.round == round)?;
        question.stated.insert(worker, statement);
        if question.stated.len() < self.workers {
            return None;
        }
        let stated = &question.stated;
        let all: Option<Vec<Duration>> = stated.values().map(|(longest, _)| *longest).collect();
        let most = stated.values().max_by_key(|(longest, _)| *longest);
        let by = most.map_or(String::new(), |(_, by)| by.clone());
        let longest = all.and_then(|all| all.into_iter().max());
        self.question = None;
        Some(Statement { round, longest, by })
    }
}
