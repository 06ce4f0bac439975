//! The state machine over a log that fails, with workers that hear of things late: whatever is
//! confirmed is covered by what is durable, at every step and after a crash at any.

use super::longest::Mutant;
use super::{
    Action, Control, Entry, EpochsUsedUp, Event, Grace, State, Statement, WorkerEnd, is_clean,
};
use lockring_proto::{Time, limits};
use lockring_ring::{BootId, CellId, Epoch, RingVersion};
use std::collections::VecDeque;
use std::time::Duration;

const LEAST: Duration = Duration::from_secs(10);
const WORKERS: usize = 2;

fn secs(secs: u64) -> Duration {
    Duration::from_secs(secs)
}

/// What becomes of a proposal.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Fate {
    Committed,
    FailedAndLost,
    FailedAndWritten,
}

/// A log of one node: what is durable, and an intent that a failure or a crash forgets.
struct Log(State);

impl Log {
    fn take(&mut self, entry: &Entry, fate: Fate) -> Event {
        let mut after = self.0.clone();
        after.apply(entry).unwrap();
        match fate {
            Fate::Committed => {
                self.0 = after;
                return Event::Committed(self.0.clone());
            }
            Fate::FailedAndWritten => self.0 = after,
            Fate::FailedAndLost => {}
        }
        self.0.intent = None;
        Event::Failed("no space left on device".to_owned())
    }
}

/// A worker, and what it has not heard yet.
#[derive(Default)]
struct Worker {
    cap: Duration,
    inbox: VecDeque<Action>,
    confirmed: Vec<Duration>,
    waiting: Vec<Duration>,
}

/// A node over lives.
struct World {
    now: Time,
    log: Log,
    control: Control,
    mutant: Option<Mutant>,
    workers: [Worker; WORKERS],
    proposed: Option<Entry>,
    /// Until when leases of earlier lives are waited for, and the TTLs of these.
    opens_at: Time,
    former: Vec<Duration>,
    rng: u64,
}

impl World {
    fn new(seed: u64, mutant: Option<Mutant>) -> Self {
        let mut log = Log(State::new(LEAST));
        log.0.apply(&Entry::NodeBoot).unwrap();
        let now = Time(seed);
        let control = Control::restored(now, log.0.clone(), WORKERS, LEAST).with_mutant(mutant);
        let workers = std::array::from_fn(|_| Worker { cap: LEAST, ..Worker::default() });
        let (proposed, opens_at, former) = (None, Time(0), Vec::new());
        Self { now, log, control, mutant, workers, proposed, opens_at, former, rng: seed }
    }

    fn draw(&mut self, below: u64) -> u64 {
        self.rng = self.rng.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.rng ^ (self.rng >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        ((mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb) >> 33) % below
    }

    fn handle(&mut self, event: Event) {
        let mut out = Vec::new();
        self.control.handle(self.now, event, &mut out);
        for action in out {
            match action {
                Action::Propose(entry) => assert_eq!(self.proposed.replace(entry), None),
                Action::Confirm { worker, .. } | Action::Refuse { worker, .. } => {
                    self.workers[worker].inbox.push_back(action);
                }
                Action::NewEpoch { epoch, version, .. } => {
                    assert_eq!(
                        (epoch, version),
                        (self.log.0.epoch_floor, self.log.0.ring_version())
                    );
                }
                Action::AskStatements { .. } => {
                    self.workers.iter_mut().for_each(|worker| {
                        worker.inbox.push_back(action.clone());
                    });
                }
                Action::Stopped { .. } => panic!("nobody stops it"),
            }
        }
    }

    /// A worker hears the next thing that it was told.
    fn hear(&mut self, at: usize) {
        let in_grace = self.now < self.opens_at;
        let worker = &mut self.workers[at];
        match worker.inbox.pop_front() {
            Some(Action::Confirm { ttl, .. }) => {
                worker.cap = ttl;
                let is_up_to = |waiting: &mut Duration| *waiting <= ttl;
                worker.confirmed.extend(worker.waiting.extract_if(.., is_up_to));
            }
            Some(Action::Refuse { .. }) => worker.waiting.clear(),
            Some(Action::AskStatements { round, .. }) => {
                let longest_ttl = worker.confirmed.iter().max().copied().unwrap_or_default();
                let statement = Statement { longest_ttl, whose: String::new(), in_grace };
                self.handle(Event::Stated { round, worker: at, statement });
            }
            _ => {}
        }
    }

    fn comes(&mut self, at: usize, ttl: Duration) {
        let worker = &mut self.workers[at];
        if ttl <= worker.cap {
            return worker.confirmed.push(ttl);
        }
        worker.waiting.push(ttl);
        self.handle(Event::TtlAsked { worker: at, ttl, by: "who".to_owned() });
    }

    fn settle(&mut self, fate: Fate) {
        if let Some(entry) = self.proposed.take() {
            let came = self.log.take(&entry, fate);
            self.handle(came);
        }
    }

    fn passes(&mut self, span: Duration) {
        self.now = self.now.after(span);
        if self.now >= self.opens_at {
            self.former.clear();
        }
        self.handle(Event::Tick);
    }

    /// The process is killed, with what was under way written or not, and starts again.
    fn crash(&mut self, written: bool) {
        if let Some(entry) = self.proposed.take().filter(|_| written) {
            self.log.0.apply(&entry).unwrap();
        }
        self.log.0.intent = None;
        let Grace { span, longest_ttl, .. } = self.log.0.grace().expect("nothing ended clean");
        self.opens_at = self.now.after(span);
        for worker in &mut self.workers {
            self.former.append(&mut worker.confirmed);
            *worker = Worker { cap: longest_ttl, ..Worker::default() };
        }
        self.log.0.apply(&Entry::NodeBoot).unwrap();
        let state = self.log.0.clone();
        self.control = Control::restored(self.now, state, WORKERS, LEAST).with_mutant(self.mutant);
    }

    /// What is durable covers whoever may believe.
    fn check(&self) -> Result<(), String> {
        let lives = self.workers.iter().flat_map(|worker| &worker.confirmed);
        match lives.chain(&self.former).max() {
            Some(ttl) if *ttl > self.log.0.longest_ttl => {
                Err(format!("{ttl:?} is believed in, {:?} is durable", self.log.0.longest_ttl))
            }
            _ => Ok(()),
        }
    }

    /// One thing happens, whichever.
    fn step(&mut self) {
        let worker = self.draw(WORKERS as u64) as usize;
        match self.draw(20) {
            0 | 1 => {
                let ttl = [1, 10, 20, 30, 60][self.draw(5) as usize];
                self.comes(worker, secs(ttl));
            }
            2..=4 => self.workers[worker].confirmed.clear(),
            5..=9 => self.hear(worker),
            10..=13 => self.settle(Fate::Committed),
            14 => self.settle(Fate::FailedAndLost),
            15 => self.settle(Fate::FailedAndWritten),
            16 if self.draw(5) == 0 => {
                let written = self.draw(2) == 0;
                self.crash(written);
            }
            16 => self.handle(Event::EpochAsked(CellId(3))),
            _ => {
                let span = Duration::from_millis(self.draw(2500));
                self.passes(span);
            }
        }
    }

    /// Nobody comes, nothing fails: whoever waits is heard, and what can fall falls.
    fn rests(&mut self) {
        for _ in 0..400 {
            self.settle(Fate::Committed);
            (0..WORKERS).for_each(|worker| self.hear(worker));
            self.passes(Duration::from_millis(500));
        }
    }
}

fn run(seed: u64, mutant: Option<Mutant>) -> Result<(), String> {
    let mut world = World::new(seed, mutant);
    for _ in 0..300 {
        world.step();
        world.check()?;
    }
    world.rests();
    world.check()?;
    let waits = world.workers.iter().any(|worker| !worker.waiting.is_empty());
    assert!(!waits, "seed {seed}: somebody waits for ever");
    world.workers.iter_mut().for_each(|worker| worker.confirmed.clear());
    world.rests();
    assert_eq!(world.log.0.longest_ttl, LEAST, "seed {seed}: it never fell");
    Ok(())
}

#[test]
fn what_is_confirmed_is_durable_whatever_fails() {
    for seed in 0..3000 {
        run(seed, None).unwrap_or_else(|why| panic!("seed {seed}: {why}"));
    }
}

#[test]
fn a_lowering_that_skips_a_step_is_seen() {
    for mutant in [Mutant::LowerUnasked, Mutant::LowerInGrace] {
        assert!((0..3000).any(|seed| run(seed, Some(mutant)).is_err()), "{mutant:?}");
    }
}

/// The lowering from 60 s, by hand, up to a crash at each of its steps, with what was under way
/// written or not.
#[test]
fn a_crash_between_any_two_steps_keeps_what_is_believed() {
    let mut ends = Vec::new();
    for (steps, written) in (0..14).flat_map(|steps| [(steps, false), (steps, true)]) {
        let mut world = World::new(1, None);
        world.comes(0, secs(60));
        world.settle(Fate::Committed);
        world.hear(0);
        assert_eq!(world.workers[0].confirmed, [secs(60)]);
        world.workers[0].confirmed = vec![secs(20)];
        let mut walk = [
            |world: &mut World| world.passes(secs(4)),
            |world: &mut World| world.hear(0),
            |world: &mut World| world.hear(1),
            |world: &mut World| assert_eq!(world.proposed, Some(Entry::IntendLongestTtl(secs(20)))),
            |world: &mut World| world.settle(Fate::Committed),
            |world: &mut World| assert_eq!(world.log.0.intent, Some(secs(20))),
            |world: &mut World| world.hear(0),
            |world: &mut World| world.hear(0),
            |world: &mut World| world.hear(1),
            |world: &mut World| world.hear(1),
            |world: &mut World| assert_eq!(world.workers[1].cap, secs(20)),
            |world: &mut World| assert!(world.proposed.is_some()),
            |world: &mut World| world.settle(Fate::Committed),
        ]
        .into_iter();
        walk.by_ref().take(steps).for_each(|step| step(&mut world));
        world.crash(written);
        world.check().unwrap();
        ends.push(world.log.0.longest_ttl);
        assert_eq!(world.log.0.intent, None);
    }
    // It falls with its second entry alone: the last three steps have it proposed, or committed.
    let fallen = |at: usize| ends[2 * at..].iter().map(|ttl| *ttl == secs(20)).collect::<Vec<_>>();
    assert!(ends[..20].iter().all(|ttl| *ttl == secs(60)), "{ends:?}");
    assert_eq!(fallen(10), [false, true, false, true, false, true, true, true]);
}

/// Control, and the proposals that it makes.
struct Alone {
    control: Control,
    log: Log,
}

impl Alone {
    fn new() -> Self {
        let mut log = Log(State::new(LEAST));
        log.0.apply(&Entry::NodeBoot).unwrap();
        Self { control: Control::restored(Time(0), log.0.clone(), 1, LEAST), log }
    }

    /// What comes of an event at this time, with every proposal answered at once.
    fn at(&mut self, millis: u64, event: Event, fate: Fate) -> Vec<Action> {
        let now = Time(millis * 1000);
        let mut out = Vec::new();
        let mut told = Vec::new();
        self.control.handle(now, event, &mut out);
        while let Some(action) = (!out.is_empty()).then(|| out.remove(0)) {
            if let Action::Propose(entry) = &action {
                let came = self.log.take(entry, fate);
                self.control.handle(now, came, &mut out);
            }
            told.push(action);
        }
        told
    }

    fn wants(&mut self, millis: u64, fate: Fate) -> Vec<Action> {
        let by = "who".to_owned();
        self.at(millis, Event::TtlAsked { worker: 0, ttl: secs(60), by }, fate)
    }
}

fn proposals(actions: &[Action]) -> usize {
    actions.iter().filter(|action| matches!(action, Action::Propose(_))).count()
}

#[test]
fn an_epoch_that_cannot_be_raised_is_tried_again_until_it_can() {
    let mut alone = Alone::new();
    let mut tries = proposals(&alone.at(0, Event::EpochAsked(CellId(7)), Fate::FailedAndLost));
    for second in 1..60 {
        let told = alone.at(second * 1000, Event::Tick, Fate::FailedAndLost);
        assert_eq!(told.len(), proposals(&told), "nobody is told of what is not committed");
        tries += proposals(&told);
    }
    assert!((8..20).contains(&tries), "{tries} tries in a minute");
    let told = alone.at(66_000, Event::Tick, Fate::Committed);
    let (epoch, version) = (Epoch(2), RingVersion(2));
    assert_eq!(told[1..], [Action::NewEpoch { cell: CellId(7), epoch, version }]);
}

/// Each try that failed may have raised the floor; none of these epochs is given.
#[test]
fn no_epoch_is_given_that_a_failed_write_may_have_used() {
    let mut alone = Alone::new();
    alone.at(0, Event::EpochAsked(CellId(7)), Fate::FailedAndWritten);
    let told = alone.at(1000, Event::Tick, Fate::Committed);
    let (epoch, version) = (Epoch(3), RingVersion(3));
    assert_eq!(told[1..], [Action::NewEpoch { cell: CellId(7), epoch, version }]);
}

#[test]
fn who_waits_for_a_ttl_is_told_why_and_a_newcomer_has_it_tried_soon() {
    let mut alone = Alone::new();
    assert_eq!(proposals(&alone.wants(0, Fate::FailedAndLost)), 1);
    let told = alone.at(1000, Event::Tick, Fate::FailedAndLost);
    assert_eq!(told.len(), proposals(&told), "it may yet succeed");
    let told = alone.at(2500, Event::Tick, Fate::FailedAndLost);
    let Some(Action::Refuse { worker: 0, why }) = told.last() else { panic!("{told:?}") };
    assert!(why.contains("a TTL of 60 s durable: no space") && why.contains("tries again"));
    for second in 3..60 {
        alone.at(second * 1000, Event::Tick, Fate::FailedAndLost);
    }
    // The pause is a long one by now, but not for somebody who comes.
    assert_eq!(alone.wants(59_500, Fate::Committed), []);
    let told = alone.at(59_700, Event::Tick, Fate::Committed);
    assert_eq!(told[1..], [Action::Confirm { worker: 0, ttl: secs(60) }]);
}

/// Nobody waits for anything any more, and yet it is found out that the log works again.
#[test]
fn a_log_that_works_again_is_noticed() {
    let mut alone = Alone::new();
    alone.wants(0, Fate::FailedAndLost);
    alone.at(2500, Event::Tick, Fate::FailedAndLost);
    let told = alone.at(9000, Event::Tick, Fate::Committed);
    assert_eq!(told, [Action::Propose(Entry::Blank)]);
    assert_eq!(alone.at(20_000, Event::Tick, Fate::Committed), []);
}

#[test]
fn a_stop_is_clean_if_nothing_is_held_or_believed_and_it_is_durable() {
    let end = |held, in_grace| Some(WorkerEnd { held, in_grace });
    assert!(is_clean(&[end(0, false), end(0, false)]));
    for bad in [end(1, false), end(0, true), None] {
        assert!(!is_clean(&[end(0, false), bad]));
        let told = Alone::new().at(0, Event::Stopped(vec![bad]), Fate::Committed);
        assert_eq!(told, [Action::Stopped { clean: false }]);
    }
    for (fate, clean) in [(Fate::Committed, true), (Fate::FailedAndLost, false)] {
        let mut alone = Alone::new();
        alone.wants(0, Fate::FailedAndLost);
        let told = alone.at(10, Event::Stopped(vec![end(0, false)]), fate);
        let entry = Action::Propose(Entry::CleanStop(BootId(1)));
        assert_eq!(told, [entry, Action::Stopped { clean }], "a pause does not hold it up");
        assert_eq!(alone.log.0.clean, clean);
    }
}

#[test]
fn a_life_owes_what_the_ones_before_it_may_have_promised() {
    let mut state = State::new(LEAST);
    assert_eq!(state.grace(), None, "there was none");
    state.apply(&Entry::NodeBoot).unwrap();
    let (ttl, whose) = (secs(60), "team/web".to_owned());
    state.apply(&Entry::RaiseLongestTtl { ttl, by: whose.clone() }).unwrap();
    let span = limits::honoured(ttl) + Duration::from_millis(50);
    let grace = Grace { span, longest_ttl: ttl, whose };
    assert_eq!(state.grace(), Some(grace.clone()));
    state.apply(&Entry::CleanStop(BootId(2))).unwrap();
    assert_eq!(state.grace(), Some(grace), "that was another life's");
    state.apply(&Entry::CleanStop(BootId(1))).unwrap();
    assert_eq!(state.grace(), None);
    state.apply(&Entry::NodeBoot).unwrap();
    assert!(state.grace().is_some() && state.boot == BootId(2));
    assert_eq!((state.epoch_floor, state.ring_version()), (Epoch(2), RingVersion(2)));
}

#[test]
fn entries_that_come_late_are_void() {
    let mut state = State::new(LEAST);
    let raise = |ttl| Entry::RaiseLongestTtl { ttl: secs(ttl), by: String::new() };
    let lower = Entry::LowerLongestTtl { ttl: secs(20), by: String::new() };
    state.apply(&raise(60)).unwrap();
    state.apply(&lower).unwrap();
    assert_eq!(state.longest_ttl, secs(60), "nobody intended it");
    for between in [raise(30), Entry::NodeBoot] {
        state.apply(&Entry::IntendLongestTtl(secs(20))).unwrap();
        state.apply(&between).unwrap();
        state.apply(&lower).unwrap();
        assert_eq!(state.longest_ttl, secs(60), "{between:?} came between");
    }
    state.apply(&Entry::IntendLongestTtl(secs(70))).unwrap();
    assert_eq!(state.intent, None, "that is no lowering");
    state.apply(&Entry::IntendLongestTtl(secs(20))).unwrap();
    state.apply(&lower).unwrap();
    assert_eq!((state.longest_ttl, state.intent), (secs(20), None));
}

#[test]
fn the_last_epoch_is_never_given() {
    let mut state = State { epoch_floor: Epoch(Epoch::LAST.0 - 2), ..State::new(LEAST) };
    state.apply(&Entry::RaiseEpoch(CellId(1))).unwrap();
    let before = state.clone();
    for entry in [Entry::RaiseEpoch(CellId(1)), Entry::NodeBoot] {
        assert_eq!(state.apply(&entry), Err(EpochsUsedUp(Epoch(Epoch::LAST.0 - 1))));
        assert_eq!(state, before);
    }
}
