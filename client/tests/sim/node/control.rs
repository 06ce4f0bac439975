//! The control plane of a node: the real one, over a log whose writes take time and fail, and may
//! have taken effect all the same.

use super::Node;
use crate::agenda::{NodeEvent, Order};
use crate::hub::{Event, Hub};
use crate::ring::Copy;
use lockring_control::alone::{Action, Control, Entry, Event as Input, Grace, State, Statement};
use lockring_core::Time;
use lockring_core::testing::End;
use lockring_ring::RingTable;
use std::time::Duration;

/// The longest TTL that a restart always waits for.
const LONGEST_LEAST: Duration = Duration::from_secs(2);

/// What is durable, and the control plane of the life under way.
pub struct Plane {
    log: State,
    control: Control,
    /// The write that is under way.
    proposed: Option<(u64, Entry)>,
    writes: u64,
    /// How many of a hundred writes fail.
    failing: u64,
    armed: Time,
    /// How the stop was, once it is over.
    stopped: Option<bool>,
}

impl Plane {
    /// That of a node which never started.
    pub fn new(now: Time) -> Self {
        let log = State::new(LONGEST_LEAST);
        Self {
            control: Control::restored(now, log.clone(), 0, LONGEST_LEAST),
            log,
            proposed: None,
            writes: 0,
            failing: 5,
            armed: Time::NEVER,
            stopped: None,
        }
    }

    /// What is durable.
    pub fn log(&self) -> &State {
        &self.log
    }

    /// No write fails any more.
    pub fn is_sound(&mut self) {
        self.failing = 0;
    }

    /// A life begins, and owes this to those before it.
    pub fn begin_life(&mut self, now: Time, workers: u16) -> Option<Grace> {
        let grace = self.log.grace();
        self.log.apply(&Entry::NodeBoot).expect("there are epochs left");
        self.control = Control::restored(now, self.log.clone(), workers.into(), LONGEST_LEAST);
        self.stopped = None;
        grace
    }

    /// The process is killed: what it was writing is written or not.
    pub fn dies(&mut self, hub: &mut Hub) {
        self.armed = Time::NEVER;
        if let Some((_, entry)) = self.proposed.take()
            && hub.rng.percent(50)
        {
            self.log.apply(&entry).expect("there are epochs left");
        }
    }

    /// The write under way ends, one way or the other.
    fn written(&mut self, hub: &mut Hub) -> Option<Input> {
        let (_, entry) = self.proposed.take()?;
        let (fails, takes_effect) = (hub.rng.percent(self.failing), hub.rng.percent(50));
        let before = self.log.longest_ttl;
        if !fails || takes_effect {
            self.log.apply(&entry).expect("there are epochs left");
        }
        if self.log.longest_ttl < before {
            hub.reach("longest TTL lowered");
        }
        if fails {
            hub.reach("writes that failed");
            self.log.intent = None;
            return Some(Input::Failed("no space left on device".to_owned()));
        }
        Some(Input::Committed(self.log.clone()))
    }
}

impl Node {
    /// Something happens to the control plane.
    pub fn control(&mut self, hub: &mut Hub, event: Input) {
        let now = self.clock.shows(hub.now);
        let mut actions = Vec::new();
        self.plane.control.handle(now, event, &mut actions);
        for action in actions {
            self.carry_out(hub, action);
        }
        self.arm_control(hub);
    }

    fn carry_out(&mut self, hub: &mut Hub, action: Action) {
        match action {
            Action::Propose(entry) => {
                self.plane.writes += 1;
                let write = self.plane.writes;
                self.plane.proposed = Some((write, entry));
                let span = Duration::from_micros(hub.rng.range(500, 200_000));
                hub.soon(span, Event::Node(NodeEvent::Written { node: self.index, write }));
            }
            Action::Confirm { worker, ttl } => {
                self.tell(hub, worker as u16, Order::LongestTtl(ttl));
            }
            Action::Refuse { worker, why } => self.tell(hub, worker as u16, Order::TtlFailed(why)),
            Action::NewEpoch { cell, epoch, version } => {
                hub.reach("epoch raises");
                let version = hub.ring.renewed(cell, epoch, version);
                self.ring = Copy::clone(hub.ring.newest());
                self.history.learns(RingTable::clone(&self.ring));
                self.tell_all(hub, &Order::Epoch(cell, epoch, version));
                tell_ring(hub, self.index);
            }
            Action::AskStatements { round, .. } => self.tell_all(hub, &Order::State { round }),
            Action::Stopped { clean } => self.plane.stopped = Some(clean),
        }
    }

    fn tell_all(&mut self, hub: &mut Hub, order: &Order) {
        for worker in 0..self.workers() {
            self.tell(hub, worker, order.clone());
        }
    }

    fn tell(&mut self, hub: &mut Hub, worker: u16, order: Order) {
        self.workers[worker as usize].orders.push_back(order);
        self.arm(hub, worker);
    }

    /// Plans when the control plane wants to know the time.
    pub(super) fn arm_control(&mut self, hub: &mut Hub) {
        let at = self.clock.real(self.plane.control.next_deadline()).max(hub.now);
        if at < self.plane.armed {
            self.plane.armed = at;
            hub.plan(at, Event::Node(NodeEvent::ControlWakes { node: self.index }));
        }
    }

    /// The control plane may have something to do.
    pub fn control_wakes(&mut self, hub: &mut Hub) {
        if self.plane.armed == hub.now && self.up {
            self.plane.armed = Time::NEVER;
            self.control(hub, Input::Tick);
        }
    }

    /// A write of the log has come to its end.
    pub fn written(&mut self, hub: &mut Hub, write: u64) {
        if self.plane.proposed.as_ref().is_some_and(|(known, _)| *known == write)
            && let Some(came) = self.plane.written(hub)
        {
            self.control(hub, came);
        }
    }

    /// Another node tells what the ring is: it may be old.
    pub fn learns(&mut self, hub: &mut Hub, ring: &Copy) {
        if !self.up {
            return;
        }
        if ring.version() <= self.ring.version() {
            return hub.reach("news of the ring that was known");
        }
        hub.reach("news of the ring");
        let before = std::mem::replace(&mut self.ring, Copy::clone(ring));
        self.history.learns(RingTable::clone(ring));
        for cell in ring.cells().filter(|&cell| ring.epoch(cell) > before.epoch(cell)) {
            self.tell_all(hub, &Order::Epoch(cell, ring.epoch(cell), ring.version()));
        }
    }

    /// A worker states what it has.
    pub(super) fn states(&mut self, hub: &mut Hub, index: u16, round: u64) {
        let machine = &self.workers[index as usize].machine;
        let statement = Statement {
            longest_ttl: machine.longest_ttl_in_use(),
            whose: String::new(),
            in_grace: machine.opens_at().is_some(),
        };
        self.control(hub, Input::Stated { round, worker: index.into(), statement });
    }

    /// The workers have ended, and the process waits for its last write. Whether it was clean.
    pub(super) fn ends(&mut self, hub: &mut Hub, event: Input) -> bool {
        self.control(hub, event);
        while self.plane.stopped.is_none()
            && let Some(came) = self.plane.written(hub)
        {
            self.control(hub, came);
        }
        self.plane.stopped.unwrap_or(false)
    }
}

/// A node tells all others the newest ring.
pub fn tell_ring(hub: &mut Hub, from: usize) {
    for to in (0..hub.ring.nodes()).filter(|&to| to != from) {
        let (one, other) = (End::Node(from), End::Node(to));
        if hub.net.cut_until(hub.now, one, other).is_some() {
            hub.reach("news of the ring held up");
        }
        let due = hub.net.carry(hub.now, one, other);
        let news = NodeEvent::News { from, to, ring: Copy::clone(hub.ring.newest()) };
        hub.plan(due, Event::Node(news));
    }
}
