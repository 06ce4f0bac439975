//! What is proposed when, and who is told of what was committed.

use super::event::{Action, Event};
use super::longest::LongestTtl;
use super::state::{Entry, State, is_clean};
use crate::retry::Retry;
use lockring_proto::Time;
use lockring_ring::CellId;
use std::collections::BTreeSet;
use std::time::Duration;

/// The control plane of one life of a node.
#[derive(Debug)]
pub struct Control {
    /// As of the last entry that is known to be committed.
    state: State,
    longest: LongestTtl,
    /// Cells that wait for their next epoch.
    epochs: BTreeSet<CellId>,
    in_flight: Option<Entry>,
    retry: Retry,
    ending: Ending,
}

/// Whether the life goes on.
#[derive(Debug, PartialEq, Eq)]
enum Ending {
    /// It does.
    No,
    /// It has ended clean, which is to be in the log.
    Clean,
    /// Nothing follows.
    Over,
}

impl Control {
    /// That of a life which begins, over a state with its [`Entry::NodeBoot`]. The longest TTL
    /// never falls below `least`.
    pub fn restored(now: Time, state: State, workers: usize, least: Duration) -> Self {
        Self {
            longest: LongestTtl::new(workers, least, state.longest_ttl, now),
            state,
            epochs: BTreeSet::new(),
            in_flight: None,
            retry: Retry::default(),
            ending: Ending::No,
        }
    }

    /// With a seeded bug.
    #[cfg(test)]
    #[must_use]
    pub(crate) fn with_mutant(mut self, mutant: Option<super::longest::Mutant>) -> Self {
        self.longest.mutant = mutant;
        self
    }

    /// Takes in what has happened.
    pub fn handle(&mut self, now: Time, event: Event, out: &mut Vec<Action>) {
        match event {
            Event::Committed(state) => self.committed(now, state, out),
            Event::Failed(why) => self.failed(now, &why, out),
            Event::TtlAsked { worker, ttl, by } => {
                self.longest.asked(now, worker, (ttl, by), out);
                self.retry.hurry(now);
            }
            Event::EpochAsked(cell) => {
                self.epochs.insert(cell);
                self.retry.hurry(now);
            }
            Event::Stated { round, worker, statement } => {
                self.longest.stated(round, worker, statement);
            }
            Event::Stopped(ends) if is_clean(&ends) => self.ending = Ending::Clean,
            Event::Stopped(_) => self.is_over(false, out),
            Event::Tick => {}
        }
        if self.ending == Ending::No {
            self.longest.look(now, !self.retry.is_failing(), out);
        }
        self.propose(now, out);
    }

    /// When [`Event::Tick`] is due.
    pub fn next_deadline(&self) -> Time {
        let retry = self.retry.ends().filter(|_| self.in_flight.is_none());
        retry.map_or(self.longest.look_at(), |ends| ends.min(self.longest.look_at()))
    }

    fn committed(&mut self, now: Time, state: State, out: &mut Vec<Action>) {
        let Some(entry) = self.in_flight.take() else { return };
        self.retry.works();
        self.state = state;
        self.longest.committed(now, &entry, &self.state, out);
        match entry {
            Entry::RaiseEpoch(cell) => {
                self.epochs.remove(&cell);
                let (epoch, version) = (self.state.epoch_floor, self.state.ring_version());
                out.push(Action::NewEpoch { cell, epoch, version });
            }
            Entry::CleanStop(_) => self.is_over(true, out),
            _ => {}
        }
    }

    fn failed(&mut self, now: Time, why: &str, out: &mut Vec<Action>) {
        let Some(entry) = self.in_flight.take() else { return };
        self.retry.fails(now);
        self.longest.failed(now, &entry, why, out);
        if matches!(entry, Entry::CleanStop(_)) {
            self.is_over(false, out);
        }
    }

    fn is_over(&mut self, clean: bool, out: &mut Vec<Action>) {
        self.ending = Ending::Over;
        out.push(Action::Stopped { clean });
    }

    /// Proposes what somebody waits for. While the last proposal failed and nobody waits, it is
    /// tried whether the log takes entries again, so that nobody hears of yesterday's trouble.
    fn propose(&mut self, now: Time, out: &mut Vec<Action>) {
        if self.in_flight.is_some() || self.ending == Ending::Over {
            return;
        }
        if self.ending == Ending::Clean {
            return self.send(Entry::CleanStop(self.state.boot), out);
        }
        if !self.retry.is_due(now) {
            return;
        }
        let epoch = || self.epochs.first().map(|&cell| Entry::RaiseEpoch(cell));
        let blank = || self.retry.is_failing().then_some(Entry::Blank);
        let entry = self.longest.proposal(&self.state).or_else(epoch).or_else(blank);
        if let Some(entry) = entry {
            self.send(entry, out);
        }
    }

    fn send(&mut self, entry: Entry, out: &mut Vec<Action>) {
        self.in_flight = Some(entry.clone());
        out.push(Action::Propose(entry));
    }
}
