//! One node of the simulation: its process, its clock, and workers that do what real ones would as
//! far as the control plane can notice.

use crate::cluster::*;
use lockring_core::testing::Rng;
use lockring_proto::{NodeAddress, Time};
use lockring_ring::{BootId, CellId, Epoch, Member, Membership, NodeId};
use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

/// A clock that began at some time and runs up to 1 % wrong.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    offset: u64,
    /// Parts in 1000 that it shows of each 1000 that pass.
    rate: u64,
}

impl Clock {
    pub fn any(rng: &mut Rng) -> Self {
        let offset = rng.range(0, 1_000_000_000);
        Self { offset, rate: *rng.pick(&[990, 995, 1000, 1005, 1010]) }
    }

    pub fn show(self, now: Time) -> Time {
        Time(self.offset + now.0 * self.rate / 1000)
    }

    /// When it shows that: not before it really does.
    pub fn when(self, shown: Time) -> Time {
        Time((shown.0.saturating_sub(self.offset) * 1000).div_ceil(self.rate))
    }
}

/// What a worker is told at once.
#[derive(Debug)]
pub struct Told {
    pub index: Index,
    pub whole: bool,
    pub cells: Vec<(CellId, Option<Membership>)>,
}

/// One worker of a process.
#[derive(Debug, Default)]
pub struct Worker {
    /// What it was told and does not do by yet.
    pub told: VecDeque<Told>,
    /// What it does by, and since when by that epoch.
    pub cells: BTreeMap<CellId, (Membership, Time)>,
    /// Up to here it confirms sessions unasked.
    pub ceiling: Duration,
    /// The longest TTL that it had of late, by when it had it last.
    pub ttls: BTreeMap<Duration, Time>,
}

impl Worker {
    /// Does by what it was told next.
    pub fn apply(&mut self, now: Time) -> Option<Index> {
        let Told { index, whole, cells } = self.told.pop_front()?;
        if whole {
            self.cells.retain(|cell, _| cells.iter().any(|(named, _)| named == cell));
        }
        for (cell, is) in cells {
            let before = self.cells.remove(&cell);
            if let Some(is) = is {
                let same = before.filter(|(was, _)| was.epoch == is.epoch);
                let since = same.map_or(now, |(_, since)| since);
                self.cells.insert(cell, (is, since));
            }
        }
        Some(index)
    }
}

/// What workers have is looked at more often than this, on any clock.
const LOOKED_AT: Duration = Duration::from_millis(150);

/// A process.
#[derive(Debug)]
pub struct Running {
    pub control: Control,
    pub life: Life,
    pub workers: Vec<Worker>,
    /// Until when it may answer, by its clock.
    pub lease: Time,
    /// What waits while it is stopped.
    pub inbox: VecDeque<Event>,
    pub stopped_until: Time,
    /// Its workers do by nothing new until then.
    pub workers_stuck_until: Time,
    /// When its next tick is scheduled for.
    pub tick_at: Time,
}

impl Running {
    /// Whether it may answer now, as far as it knows.
    pub fn has_lease(&self, shown: Time) -> bool {
        shown < self.lease
    }

    pub fn is_me(&self, member: &Member) -> bool {
        member.node == self.life.node && member.boot == self.life.boot
    }

    /// What all workers do by.
    pub fn told(&self) -> Vec<(CellId, Membership)> {
        let all = self.workers.iter().flat_map(|worker| &worker.cells);
        let all: BTreeMap<CellId, Membership> =
            all.map(|(&cell, (is, _))| (cell, is.clone())).collect();
        all.into_iter().collect()
    }

    /// The longest TTL that each worker had within that time: what it had when that was looked at
    /// last it has still.
    pub fn longest(&mut self, shown: Time, window: Duration) -> Vec<Duration> {
        let window = window.max(LOOKED_AT);
        let of = |worker: &mut Worker| {
            worker.ttls.retain(|_, last| shown.since(*last) <= window);
            worker.ttls.keys().max().copied().unwrap_or_default()
        };
        self.workers.iter_mut().map(of).collect()
    }

    /// What it does by of a cell.
    pub fn cell(&self, cell: CellId) -> Option<&(Membership, Time)> {
        self.workers[usize::from(cell.0) % self.workers.len()].cells.get(&cell)
    }

    /// The epoch in which it would answer for a cell.
    pub fn serves(&self, cell: CellId) -> Option<Epoch> {
        let (is, _) = self.cell(cell)?;
        self.is_me(&is.owner).then_some(is.epoch)
    }

    /// Cells for which it would answer.
    pub fn served(&self) -> impl Iterator<Item = (CellId, &Membership, Time)> {
        let all = self.workers.iter().flat_map(|worker| &worker.cells);
        let mine = all.filter(|(_, (is, _))| self.is_me(&is.owner));
        mine.map(|(&cell, (is, since))| (cell, is, *since))
    }
}

/// A node, whose processes come and go.
#[derive(Debug)]
pub struct Host {
    pub id: NodeId,
    pub clock: Clock,
    /// It begins the log anew, with these floors.
    pub founding: Option<Floors>,
    pub process: Option<Running>,
    /// The last process of its data directory.
    pub last: Option<BootId>,
    /// One that runs on, hears nobody and is not heard, while another is the node from a copy of
    /// the data directory.
    pub former: Option<Running>,
}

impl Host {
    pub fn new(id: NodeId, clock: Clock, founding: Option<Floors>) -> Self {
        Self { id, clock, founding, process: None, last: None, former: None }
    }

    /// All that would answer a client.
    pub fn running(&self, now: Time) -> impl Iterator<Item = &Running> {
        let all = self.process.iter().chain(&self.former);
        all.filter(move |process| process.stopped_until <= now)
    }

    pub fn is_running(&self, now: Time) -> bool {
        self.process.as_ref().is_some_and(|process| process.stopped_until <= now)
    }

    pub fn shown(&self, now: Time) -> Time {
        self.clock.show(now)
    }

    /// A process begins.
    pub fn start(&mut self, now: Time, boot: BootId, founding: Option<Entry>, state: State) {
        let shown = self.shown(now);
        let (spec, after) = (spec(boot), self.last.replace(boot));
        let workers = (0..spec.process.workers).map(|_| Worker::default()).collect();
        let founding = founding.unwrap_or_else(|| Entry::Join(spec.clone()));
        self.process = Some(Running {
            control: Control::new(shown, self.id, (spec, after), founding, state),
            life: Life { node: self.id, boot },
            workers,
            lease: Time(0),
            inbox: VecDeque::new(),
            stopped_until: Time(0),
            workers_stuck_until: Time(0),
            tick_at: Time::NEVER,
        });
    }
}

/// What a process says of itself.
pub fn spec(boot: BootId) -> NodeSpec {
    let workers = 1 << (boot.0 >> 1 & 1);
    let host = format!("h{}", boot.0);
    let addresses = vec![NodeAddress { host: host.clone(), port: 7400 }];
    let process = Process { boot, workers, addresses };
    NodeSpec { weight: 1, zone: None, host, process }
}
