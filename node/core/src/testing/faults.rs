//! Which faults come when.

use super::rng::Rng;
use crate::Time;
use std::time::Duration;

/// Something that goes wrong. Whom it strikes is the run's choice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The connections of one client break.
    Cut,
    /// Every connection breaks.
    CutAll,
    /// A client and all nodes do not hear of each other for this long.
    Partition(Duration),
    /// A client and one of the nodes do not hear of each other for this long.
    Part(Duration),
    /// Nothing comes from a client to a node, or nothing comes back, for this long.
    CutWay(Duration),
    /// Nothing comes from a node to another for this long.
    CutNodes(Duration),
    /// A client ends its session, and comes back with another.
    Leave,
    /// A node stops in order, and starts again later.
    StopNode {
        /// It is down for so long.
        down: Duration,
    },
    /// The network is slow.
    Slow {
        /// For this long...
        span: Duration,
        /// ...by up to this much a frame.
        by: Duration,
    },
    /// A client does not run.
    PauseClient(Duration),
    /// A node, or one worker of it, does not run.
    PauseNode(Duration),
    /// A client is killed, and comes back later with a new session.
    CrashClient {
        /// It is down for so long.
        down: Duration,
    },
    /// A node is killed, and comes back later with an empty memory.
    CrashNode {
        /// It is down for so long.
        down: Duration,
    },
    /// A cell has a new epoch.
    RaiseEpoch,
    /// An operator releases a key by force.
    Force,
    /// The wall clock of a node's host jumps forward.
    WallJump(Duration),
    /// Operators force, while connections break: the news is lost.
    Storm,
}

/// The faults of a run, in order.
#[derive(Clone, Debug)]
pub struct FaultPlan {
    faults: std::vec::IntoIter<(Time, Fault)>,
}

fn millis(rng: &mut Rng, low: u64, high: u64) -> Duration {
    Duration::from_millis(rng.range(low, high))
}

impl FaultPlan {
    /// Faults for a run of `span`, ending with a storm. Kills of nodes are kept apart, as
    /// nothing is granted for a while after each.
    pub fn draw(rng: &mut Rng, span: Duration) -> Self {
        let end = span.as_micros() as u64;
        let mut faults = vec![(Time(end - 1), Fault::Storm)];
        for _ in 0..rng.range(0, 3) {
            let down = millis(rng, 0, 1500);
            let at = Time(rng.range(end / 10, end * 7 / 10));
            faults.push((at, Fault::CrashNode { down }));
            if rng.percent(30) {
                // Soon enough that the grace of its restart still runs.
                let stop = at.after(down + millis(rng, 50, 1500));
                faults.push((stop, Fault::StopNode { down: millis(rng, 0, 800) }));
            }
        }
        let mean = rng.range(80, 600) * 1000;
        let mut at = rng.tailed(mean) + 1;
        while at < end {
            faults.push((Time(at), Self::one(rng)));
            at += rng.tailed(mean) + 1;
        }
        faults.sort_by_key(|&(at, _)| at);
        Self { faults: faults.into_iter() }
    }

    fn one(rng: &mut Rng) -> Fault {
        match rng.range(0, 100) {
            0..17 => Fault::Cut,
            17..21 => Fault::CutWay(millis(rng, 50, 6000)),
            21..23 => Fault::Part(millis(rng, 50, 6000)),
            23..25 => Fault::CutNodes(millis(rng, 50, 6000)),
            25..27 => Fault::Partition(millis(rng, 50, 6000)),
            27..30 => Fault::Leave,
            30..32 => Fault::CutAll,
            32..38 => Fault::Slow { span: millis(rng, 50, 1500), by: millis(rng, 1, 200) },
            38..52 => Fault::PauseClient(millis(rng, 10, 4000)),
            52..60 => Fault::PauseNode(millis(rng, 20, 3000)),
            60..66 => Fault::CrashClient { down: millis(rng, 0, 1000) },
            66..76 => Fault::RaiseEpoch,
            76..95 => Fault::Force,
            _ => Fault::WallJump(millis(rng, 100, 20_000)),
        }
    }

    /// When the next fault is due.
    pub fn next_at(&self) -> Option<Time> {
        self.faults.as_slice().first().map(|&(at, _)| at)
    }
}

impl Iterator for FaultPlan {
    type Item = (Time, Fault);

    fn next(&mut self) -> Option<Self::Item> {
        self.faults.next()
    }
}
