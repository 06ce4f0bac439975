//! The machine of one worker: its state, its surface, and dispatch. The work is in the modules
//! named after it.

use crate::accounts::{Amounts, Books};
use crate::event::{Action, CloseReason, ConnId, Event, LinkIndex};
use crate::links::Link;
use crate::record::{Entry, LINKS_MAX, Record, Rich, THIN_MAX};
use crate::secret::Secret;
use crate::slab::Slab;
use crate::table::Cell;
use crate::tags::Index;
use crate::turn::TURN_PRICE_MIN;
use lockring_proto::Time;
use lockring_proto::{Push, SessionId};
use lockring_ring::{CellBits, CellId, Epoch, RingVersion};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

/// While there are links the machine wants to see the time this often, so that a longer silence
/// is a stall of the worker and not of its clients.
pub(crate) const BEAT: Duration = Duration::from_millis(25);

/// A silence longer than a beat by more than this is a stall.
pub(crate) const STALL: Duration = Duration::from_millis(50);

/// Cells whose tables are looked at for memory in one go.
pub const SHRINK_SLICE: u32 = 512;

/// What a machine is made with; fixed for its life.
#[derive(Clone)]
pub struct Config {
    /// log2 of the number of cells.
    pub cell_bits: CellBits,
    /// Which worker of the node this is.
    pub worker: u16,
    /// How many workers the node has, a power of two.
    pub workers: u16,
    /// The node.
    pub node: u32,
    /// Its process life.
    pub boot: u64,
    /// The epoch of every cell at the start.
    pub epoch: Epoch,
    /// The ring version at the start.
    pub ring_version: RingVersion,
    /// The longest TTL that is durable.
    pub longest_ttl: Duration,
    /// When leases of an earlier life have surely ended; `None` if there are none.
    pub opens_at: Option<Time>,
    /// Random numbers that only the cluster's nodes know: with them nobody can choose keys so that
    /// others' are harder to find.
    pub tag_secret: [u64; 4],
    /// Whose lease that is, for people; empty if nobody's in particular.
    pub grace_for: String,
    /// Bounds.
    pub limits: Limits,
}

/// What one client, or all of them, may use.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Links at one worker.
    pub links: u32,
    /// Holds of one link.
    pub holds_per_link: u64,
    /// Waiters of one link.
    pub waiters_per_link: u32,
    /// Waiters of one key.
    pub waiters_per_key: u32,
    /// Bytes of one link's state.
    pub bytes_per_link: u64,
    /// What the sessions of one identity may have together.
    pub identity: Amounts,
    /// What the sessions of one namespace may have together.
    pub namespace: Amounts,
    /// Namespaces with sessions at one worker.
    pub namespaces: u16,
    /// Holds and waiters that are freed, or granted from one queue, in one go before live clients
    /// are served again.
    pub expiry_slice: u32,
    /// What the requests of one connection may cost in one turn, in units of about an acquire.
    /// Between a request's coming in and its answer's going out others have a few turns, so that
    /// several of these are what a busy neighbour costs.
    pub turn_price: u32,
}

impl Limits {
    /// What one session may have.
    pub(crate) fn session(&self) -> Amounts {
        Amounts {
            sessions: 1,
            holds: self.holds_per_link,
            waiters: u64::from(self.waiters_per_link),
            bytes: self.bytes_per_link,
        }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            links: 1 << 20,
            holds_per_link: 1 << 26,
            waiters_per_link: 1 << 20,
            waiters_per_key: 1 << 20,
            bytes_per_link: 8 << 30,
            identity: Amounts {
                sessions: 1 << 18,
                holds: 1 << 27,
                waiters: 1 << 22,
                bytes: 16 << 30,
            },
            namespace: Amounts {
                sessions: 1 << 19,
                holds: 1 << 28,
                waiters: 1 << 23,
                bytes: 32 << 30,
            },
            namespaces: 4096,
            expiry_slice: 256,
            turn_price: 256,
        }
    }
}

/// Plain counters since the start, and gauges of now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Claims granted at once or from the queue.
    pub grants: u64,
    /// Of these, from the queue.
    pub grants_queued: u64,
    /// Holds ended by their client, by a release or a cancel.
    pub releases: u64,
    /// Holds ended with their link.
    pub expired_holds: u64,
    /// Holds ended by force.
    pub forced: u64,
    /// Holds ended by a compare, as no client knew them.
    pub orphans: u64,
    /// Holds that a compare found lost.
    pub lost: u64,
    /// Claims that came in line.
    pub enqueued: u64,
    /// Waiters that were cancelled.
    pub cancelled_waiters: u64,
    /// Waiters whose deadline passed.
    pub timeouts: u64,
    /// Waiters gone with their link.
    pub dead_waiters: u64,
    /// Copies of a request that found the hold or waiter of the first.
    pub retries: u64,
    /// Requests for a cell owned elsewhere, or anew.
    pub moved: u64,
    /// Claims that did not want to wait.
    pub busy: u64,
    /// Requests refused.
    pub refused: u64,
    /// Of these, for want of a role.
    pub denied: u64,
    /// Requests and hellos refused for a quota, or for want of memory.
    pub over_quota: u64,
    /// Requests of connections that a newer one had replaced.
    pub stale: u64,
    /// Links that ended with their lease.
    pub expired_links: u64,
    /// Links taken over by a newer connection.
    pub resumed_links: u64,
    /// Links that began.
    pub fresh_links: u64,
    /// Stalls of the worker.
    pub stalls: u64,
    /// Requests of every kind.
    pub requests: u64,
    /// Gauge: holds.
    pub holds: u64,
    /// Gauge: waiters.
    pub waiters: u64,
    /// Gauge: links.
    pub links: u64,
    /// Gauge: keys in use.
    pub keys: u64,
    /// Gauge: bytes of all that sessions have, as quotas count them.
    pub bytes: u64,
}

/// The state machine of one worker. See the crate's documentation.
#[derive(Clone)]
pub struct Machine {
    pub(crate) config: Config,
    #[cfg(any(test, feature = "testing"))]
    pub(crate) mutant: Option<crate::Mutant>,
    #[cfg(any(test, feature = "testing"))]
    pub(crate) seen: crate::testing::Seen,
    pub(crate) worker_shift: u32,
    pub(crate) secret: Secret,
    pub(crate) version: RingVersion,
    pub(crate) longest_ttl: Duration,
    pub(crate) draining: bool,
    pub(crate) stats: Stats,

    pub(crate) cells: Vec<Cell>,
    pub(crate) records: Slab<Record>,
    pub(crate) riches: Slab<Rich>,
    pub(crate) entries: Slab<Entry>,
    /// Entries by (link, request).
    pub(crate) by_request: Index,
    /// Entries that hold, by (record, fence).
    pub(crate) by_fence: Index,
    /// Waiters with a deadline.
    pub(crate) waits: BTreeSet<(Time, u32)>,
    /// Records whose queue is not worked off, as nothing may be granted yet or it was too long for
    /// one turn: ticks serve them, slice by slice, one after the other.
    pub(crate) unserved: BTreeSet<u32>,
    /// The next of them is the first from here on.
    pub(crate) serve_next: u32,
    /// Cells and records whose queue cannot be served, as the cell's epoch is used up.
    pub(crate) starved: BTreeSet<(u32, u32)>,
    /// Cells that have a new epoch since, and may have starved records.
    pub(crate) raised: BTreeSet<u32>,
    pub(crate) wanted_epochs: Vec<CellId>,

    pub(crate) links: Slab<Link>,
    pub(crate) sessions: BTreeMap<SessionId, u32>,
    /// Links by a time no later than their deadline, on the lease clock.
    pub(crate) leases: BTreeSet<(Time, u32)>,
    /// Links whose rich holds and waiters are being freed, slice by slice.
    pub(crate) dying: VecDeque<u32>,
    /// Links that come after those, as they have only thin holds left.
    pub(crate) dying_thin: VecDeque<u32>,
    /// Thin holds of theirs that may be freed now, as counted at `allowed_at`.
    pub(crate) allowance: u32,
    pub(crate) allowed_at: Time,
    /// Links that said goodbye and left spared holds, until their waiters are gone.
    pub(crate) leaving: BTreeSet<u32>,
    /// Hellos that wait for a longer TTL to be durable.
    pub(crate) unconfirmed: Vec<(Duration, ConnId, u32)>,
    pub(crate) books: Books,
    /// How many holds the link that is served may have.
    pub(crate) cap: u64,
    /// How many sessions have which TTL.
    pub(crate) ttls: BTreeMap<Duration, u32>,

    /// Sum of all stalls: the lease clock is `now` minus this.
    pub(crate) lag: Duration,
    pub(crate) last_seen: Time,
    /// After a stall nothing expires before this, so that the sockets are read first.
    pub(crate) no_expiry_before: Time,
    pub(crate) plan: Vec<crate::batch::Planned>,
    /// What this turn has cost so far.
    pub(crate) spent: u32,
    /// Links from here on are still to be told that the node stops.
    pub(crate) telling_drain: Option<u32>,
}

impl Machine {
    /// A machine that owns every cell of its worker.
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
        let cells = config.cell_bits.cells() / workers;
        let cell = Cell::new(config.epoch, config.ring_version);
        Self {
            #[cfg(any(test, feature = "testing"))]
            mutant: None,
            #[cfg(any(test, feature = "testing"))]
            seen: crate::testing::Seen::default(),
            secret: Secret::new(config.tag_secret),
            worker_shift: workers.trailing_zeros(),
            version: config.ring_version,
            longest_ttl: config.longest_ttl,
            draining: false,
            stats: Stats::default(),
            cells: vec![cell; cells as usize],
            records: Slab::new(),
            riches: Slab::new(),
            entries: Slab::new(),
            by_request: Index::new(),
            by_fence: Index::new(),
            waits: BTreeSet::new(),
            unserved: BTreeSet::new(),
            serve_next: 0,
            starved: BTreeSet::new(),
            raised: BTreeSet::new(),
            wanted_epochs: Vec::new(),
            links: Slab::new(),
            sessions: BTreeMap::new(),
            leases: BTreeSet::new(),
            dying: VecDeque::new(),
            dying_thin: VecDeque::new(),
            allowance: crate::expiry::ALLOWANCE_MAX as u32,
            allowed_at: now,
            leaving: BTreeSet::new(),
            unconfirmed: Vec::new(),
            books: Books::default(),
            cap: 0,
            ttls: BTreeMap::new(),
            lag: Duration::ZERO,
            last_seen: now,
            no_expiry_before: now,
            plan: Vec::new(),
            spent: 0,
            telling_drain: None,
            config,
        }
    }

    /// Takes one event in and appends every effect to `out`. `now` never goes back.
    ///
    /// Says how many of the requests of an [`Event::Requests`] were taken; of any other event, 0.
    /// The rest is to be given again, before anything else of that connection and after everybody
    /// else had a turn. What was not taken may have been worked on: each turn goes further.
    pub fn handle(&mut self, now: Time, event: Event<'_>, out: &mut Vec<Action>) -> usize {
        self.observe(now);
        self.spent = 0;
        let mut taken = 0;
        match event {
            Event::Opened { conn, party, hello } => self.opened(now, conn, party, &hello, out),
            Event::Requests { conn, link, requests } => {
                taken = self.requests(now, conn, link, requests, out);
            }
            Event::Closed { conn, link } => self.closed(conn, link),
            Event::Tick => self.tick(now, out),
            Event::LongestTtl(ttl) => self.longest_ttl_is(now, ttl, out),
            Event::TtlFailed(why) => self.ttl_failed(why, out),
            Event::EpochRaised { cell, epoch, version } => self.epoch_raised(cell, epoch, version),
            Event::Drain => self.drain(out),
            Event::Memory { full } => self.books.full = full,
            Event::Shrink { from } => self.shrink(from),
        }
        self.settle_accounts();
        for cell in self.wanted_epochs.drain(..) {
            out.push(Action::WantEpoch(cell));
        }
        taken
    }

    /// When [`Event::Tick`] is due at the latest; `None` while nothing can happen by itself.
    pub fn next_deadline(&self) -> Option<Time> {
        let raised = !self.raised.is_empty();
        if raised || self.leases_are_due() || self.queues_are_due() || self.telling_drain.is_some()
        {
            return Some(self.last_seen);
        }
        let freeing = self.freeing_due();
        let wait = self.waits.first().map(|&(at, _)| at);
        let beat = (self.links.len() > 0).then(|| self.last_seen.after(BEAT));
        let opens = self.config.opens_at.filter(|_| !self.unserved.is_empty());
        [freeing, wait, beat, opens].into_iter().flatten().min()
    }

    /// The counters, and the gauges as they are now.
    pub fn stats(&self) -> Stats {
        Stats {
            links: u64::from(self.links.len()),
            keys: u64::from(self.records.len()),
            bytes: self.books.all.bytes,
            ..self.stats
        }
    }

    /// Until when nothing is granted, because an earlier life of the node may have granted it.
    pub fn opens_at(&self) -> Option<Time> {
        self.config.opens_at.filter(|&at| self.last_seen < at)
    }

    /// Whether new claims are refused, as the node stops.
    pub fn is_draining(&self) -> bool {
        self.draining
    }

    /// Cells of this worker.
    pub fn cells(&self) -> u32 {
        self.cells.len() as u32
    }

    fn shrink(&mut self, from: u32) {
        for cell in self.cells.iter_mut().skip(from as usize).take(SHRINK_SLICE as usize) {
            cell.table.give_back();
        }
    }

    /// The ring version this machine knows.
    pub fn version(&self) -> RingVersion {
        self.version
    }

    fn queues_are_due(&self) -> bool {
        !self.unserved.is_empty() && self.opens_at().is_none()
    }

    /// Notices a stall of the worker: what clients sent meanwhile is still in the sockets, so the
    /// lease clock stands still for its length.
    fn observe(&mut self, now: Time) {
        assert!(now >= self.last_seen, "time went back from {} to {now}", self.last_seen);
        let silence = now.since(self.last_seen);
        let stalled = self.links.len() > 0 && silence > BEAT + STALL;
        if stalled && !crate::mutant::mutant!(self, ExpireOnWaking) {
            self.lag += silence;
            self.no_expiry_before = now.after(BEAT);
            self.stats.stalls += 1;
        }
        self.last_seen = now;
    }

    fn epoch_raised(&mut self, cell: CellId, epoch: Epoch, version: RingVersion) {
        self.version = self.version.max(version);
        if cell.0 & (self.config.workers - 1) != self.config.worker {
            return;
        }
        let at = u32::from(cell.0 >> self.worker_shift);
        let cell = &mut self.cells[at as usize];
        if epoch > cell.epoch {
            // Who waits for it is served by the next ticks, as after grace.
            self.raised.insert(at);
            cell.epoch = epoch;
            cell.counter = 0;
            cell.epoch_wanted = false;
            cell.since = version;
        }
    }

    fn drain(&mut self, out: &mut Vec<Action>) {
        self.draining = true;
        self.telling_drain = Some(0);
        self.tell_drain(out);
    }

    /// Tells a slice of the links that the node stops.
    pub(crate) fn tell_drain(&mut self, out: &mut Vec<Action>) {
        for _ in 0..self.config.limits.expiry_slice {
            let Some(from) = self.telling_drain else { return };
            let at = self.links.next_resident(from);
            self.telling_drain = at.map(|at| at + 1);
            let link = at.map(|at| self.links.get(at)).filter(|link| !link.dying);
            if let Some(conn) = link.and_then(|link| link.conn) {
                out.push(Action::Push { conn, push: Push::Draining });
            }
        }
    }

    /// Closes the connection of a link, if it has one.
    pub(crate) fn hang_up(&mut self, link: u32, reason: CloseReason, out: &mut Vec<Action>) {
        if let Some(conn) = self.links.get_mut(link).conn.take() {
            out.push(Action::Close { conn, reason });
        }
    }

    /// A link that an event names, if its connection is still the one in force: the second fence
    /// against stale copies of a request.
    pub(crate) fn link_of(&self, conn: ConnId, link: LinkIndex) -> Option<u32> {
        let found = self.links.find(link.0)?;
        (found.conn == Some(conn)).then_some(link.0)
    }
}
