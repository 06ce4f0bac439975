//! The machine of one worker: its surface, and dispatch.

use crate::cells::standing::Standing;
use crate::cells::{Cells, Copies, Rounds, queues::Queues};
use crate::cells::{Recovery, Role};
use crate::config::Config;
use crate::event::{Action, Event};
use crate::links::{Awaiting, Links};
use crate::locks::{CellIndex, LINKS_MAX, Locks, Planned, THIN_MAX};
use crate::requests::list::{self, SessionRow, Wanted};
use crate::requests::{hello, peers, requests, tick};
use crate::stats::Stats;
use crate::turn::{TURN_PRICE_MIN, Turn};
use crate::worker::Worker;
use lockring_proto::{ListCursor, ListedLock, Push, Time};
use lockring_ring::{CellId, Epoch, RingVersion};
use std::collections::BTreeMap;
use std::time::Duration;

/// How many cells' tables are shrunk in one go.
pub const SHRINK_SLICE: u32 = 512;

/// The state machine of one worker. See the crate's documentation.
#[derive(Clone)]
pub struct Machine {
    pub(crate) worker: Worker,
    /// What answers wait for.
    pub(crate) rounds: Rounds,
    /// Kept for its memory.
    plan: Vec<Planned>,
    /// Links from here on are still to be told that the node stops.
    telling_drain: Option<u32>,
}

impl Machine {
    /// A machine that serves every cell of its worker but for those of other nodes.
    ///
    /// # Panics
    /// When the number of workers is not a power of two within the number of cells, or a limit is
    /// above what a record can name: 2^23 links, and 2^27 holds and waiters of one link; or a turn
    /// has a price below 40.
    pub fn new(config: Config, now: Time) -> Self {
        let workers = u32::from(config.workers);
        assert!(
            workers.is_power_of_two() && workers <= config.cell_bits.cells(),
            "{workers} workers is not a power of two within {} cells",
            config.cell_bits.cells()
        );
        assert!(config.worker < config.workers, "worker {} of {workers}", config.worker);
        let limits = &config.limits;
        let thin_most = limits.holds_per_link + u64::from(limits.waiters_per_link);
        assert!(
            limits.links <= LINKS_MAX && thin_most <= u64::from(THIN_MAX),
            "{limits:?} are above what a record can name"
        );
        assert!(limits.turn_price >= TURN_PRICE_MIN, "{limits:?}: a turn without room");
        let standing = Standing::new(config.epoch, config.ring_version);
        let mut worker = Worker {
            version: config.ring_version,
            draining: false,
            locks: Locks::new(&config, &standing),
            links: Links::new(&config, now),
            awaiting: Awaiting::default(),
            cells: Cells::default(),
            copies: Copies::new(&config),
            peers: BTreeMap::new(),
            queues: Queues::default(),
            stats: Stats::default(),
            #[cfg(any(test, feature = "testing"))]
            mutant: None,
            config,
        };
        for cell in (0..worker.locks.layout().cells()).map(CellIndex) {
            let id = worker.locks.cell_id(cell);
            let standing = worker.locks.standing_mut(cell);
            if worker.config.others.contains(&id) {
                worker.cells.leave(cell, standing);
            } else if let Some(opens_at) = worker.config.opens_at {
                worker.cells.recover(cell, standing, (opens_at, Recovery::Restart));
            }
        }
        let rounds = Rounds::new((&worker.config).into(), worker.version);
        Self { worker, rounds, plan: Vec::new(), telling_drain: None }
    }

    /// Takes in one event and appends every effect to `out`. `now` never goes back.
    ///
    /// Says how many of the requests of an [`Event::Requests`] were taken, or of the cells of
    /// [`ClusterEvent::Memberships`](crate::ClusterEvent::Memberships); of any other event, 0. The
    /// rest is to be given again, before anything else of that connection, or of the control
    /// plane, and after everybody else had a turn; if the connection is paused, when it is to go
    /// on. What was not taken may have been worked on: each turn goes further.
    pub fn handle(&mut self, now: Time, event: Event<'_>, out: &mut Vec<Action>) -> usize {
        let Self { worker, rounds, plan, telling_drain } = self;
        let begun = out.len();
        worker.stats.stalls += u64::from(worker.links.observe(now));
        let turn = &mut Turn::new(now, worker.version, &worker.config.limits, rounds, out);
        let mut taken = 0;
        match event {
            Event::Opened { conn, identity, hello } => {
                hello::opened(worker, turn, conn, identity, &hello);
            }
            Event::Requests { conn, link, requests: batch } => {
                taken = requests(worker, turn, plan, (conn, link), batch);
            }
            Event::Closed { conn, link } => hello::closed(worker, turn, conn, link),
            Event::Tick if turn.is_in_part() => {}
            Event::Tick => {
                tick::tick(worker, turn, plan);
                tell_drain(worker, turn, telling_drain);
            }
            Event::LongestTtl(ttl) => hello::longest_ttl_is(worker, turn, ttl),
            Event::TtlFailed(why) => hello::ttl_failed(worker, turn, why),
            Event::EpochRaised { cell, epoch, version } => {
                epoch_raised(worker, cell, epoch, version);
            }
            Event::Cluster(event) => taken = peers::happened(worker, turn, event),
            Event::Drain => {
                worker.draining = true;
                *telling_drain = Some(0);
                tell_drain(worker, turn, telling_drain);
            }
            Event::Memory { full } => worker.links.set_memory_full(full),
            Event::Shrink { from } => worker.locks.give_back(from, SHRINK_SLICE),
        }
        worker.settle_accounts();
        for cell in worker.cells.unsaid() {
            turn.act(Action::WantEpoch(cell));
        }
        if !worker.awaiting.is_empty() {
            for action in &out[begun..] {
                if let &Action::Close { conn, .. } = action {
                    worker.awaiting.forget(conn);
                }
            }
        }
        taken
    }

    /// When [`Event::Tick`] is due at the latest; `None` while nothing can happen by itself.
    pub fn next_deadline(&self) -> Option<Time> {
        let Worker { links, awaiting, queues, cells, config, version, .. } = &self.worker;
        if self.rounds.is_in_part() {
            return None;
        }
        let is_busy = queues.are_due() || self.rounds.are_due() || self.telling_drain.is_some();
        if links.leases_are_due() || is_busy {
            return Some(links.last_seen());
        }
        let is_awaited = queues.has_parked() || cells.tell_of_opening();
        let opens = cells.opens_at().filter(|_| is_awaited);
        let opens = opens.map(|(next, _)| next.max(links.last_seen()));
        let freeing = links.freeing_due(config.limits.expiry_slice);
        let wait = queues.first_wait().map(|(at, _)| at);
        let awaited = awaiting.due(links.last_seen(), version.0);
        let looks = self.rounds.looks_at(links.last_seen());
        let beat = links.next_beat();
        [freeing, wait, beat, opens, awaited, looks].into_iter().flatten().min()
    }

    /// The counters, and the gauges as they are now.
    pub fn stats(&self) -> Stats {
        let Worker { links, locks, stats, .. } = &self.worker;
        Stats {
            links: u64::from(links.len()),
            keys: u64::from(locks.key_count()),
            bytes: links.books().bytes(),
            ..*stats
        }
    }

    /// Until when some cell grants nothing, because an earlier life of the node may have granted
    /// it.
    pub fn opens_at(&self) -> Option<Time> {
        let (_, last) = self.worker.cells.opens_at()?;
        (self.worker.links.last_seen() < last).then_some(last)
    }

    /// Whether new claims are refused, as the node stops.
    pub fn is_draining(&self) -> bool {
        self.worker.draining
    }

    /// Cells of this worker.
    pub fn cells(&self) -> u32 {
        self.worker.locks.layout().cells()
    }

    /// The ring version this machine knows.
    pub fn version(&self) -> RingVersion {
        self.worker.version
    }

    /// Whether no requests are taken, as their answers would have to wait for long: for a peer that
    /// does not acknowledge, or for a lease of the node.
    pub fn takes_nothing_on(&self) -> bool {
        self.worker.links.last_seen() >= self.rounds.lease() || self.rounds.are_full()
    }

    /// The longest TTL of any session that can still be believed here, or of which a copy has
    /// something; zero without any.
    pub fn longest_ttl_in_use(&self) -> Duration {
        self.worker.links.longest_ttl_in_use().max(self.worker.copies.longest_ttl())
    }

    /// A page of the keys in use of every namespace, each with its namespace, for an operator's
    /// eyes. The cursor is that of the page before.
    pub fn list_all(
        &self,
        now: Time,
        cursor: &ListCursor,
        rows: u32,
        prefix: &[u8],
    ) -> (Vec<(String, ListedLock)>, Option<ListCursor>) {
        let page = list::page(&self.worker, now, None, &Wanted { cursor: *cursor, rows, prefix });
        let books = self.worker.links.books();
        let named = |(namespace, row)| (books.namespace_name(namespace).to_owned(), row);
        (page.rows.into_iter().map(named).collect(), page.next)
    }

    /// A page of the sessions of this worker, and where the next page begins: a position, not an
    /// id, as ids are secrets. A session keeps its position.
    pub fn list_sessions(
        &self,
        now: Time,
        from: u32,
        rows: usize,
    ) -> (Vec<SessionRow>, Option<u32>) {
        list::sessions(&self.worker, now, from, rows)
    }
}

fn epoch_raised(worker: &mut Worker, cell: CellId, epoch: Epoch, version: RingVersion) {
    let Worker { locks, cells, queues, version: known, .. } = worker;
    *known = version.max(*known);
    let Some(cell) = locks.layout().find(cell) else { return };
    let raised = cells.raise(cell, locks.standing_mut(cell), epoch, version);
    // Who waits for it is served by the next ticks; where it recovers, as it opens.
    if raised && cells.role(cell) == Role::Serving {
        queues.raised(cell);
    }
}

/// Tells a slice of the links that the node stops.
fn tell_drain(worker: &Worker, turn: &mut Turn<'_>, telling: &mut Option<u32>) {
    for _ in 0..turn.slice() {
        let Some(from) = *telling else { return };
        let link = worker.links.next_position(from);
        *telling = link.map(|link| link.0 + 1);
        if let Some(conn) = link.and_then(|link| worker.links.conn(link)) {
            turn.push(conn, Push::Draining);
        }
    }
}
