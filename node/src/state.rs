//! A worker's state: its machine, its connections, and the ring it answers with.
//!
//! Everything of a worker runs in one thread, so the state is in a `RefCell`. It is borrowed for
//! one turn at a time (take in what came, run the machine, sort its actions into the connections'
//! buffers) and never across an await.

use crate::cluster_view::ClusterView;
use crate::conns::{Conns, Ending, Outbox};
use crate::messages::{Handshakes, Order, who};
use crate::rated::Rated;
use crate::ttl::TtlMax;
use lockring_control::cluster::{Index, WorkerEvent};
use lockring_core::{Action, ConnId, Event, LinkIndex, Machine};
use lockring_proto::limits::TTL_DEFAULT;
use lockring_proto::{HelloReply, Push, codec};
use lockring_ring::{CellId, Membership};
use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;
use tokio::sync::{Notify, mpsc};

/// The state of a worker.
pub struct WorkerState {
    machine: Machine,
    actions: Vec<Action>,
    conns: Conns,
    pub(crate) view: ClusterView,
    /// Which worker of the node this is.
    index: usize,
    orders: mpsc::UnboundedSender<Order>,
    /// When the ticker is to wake next, and how to make it wake earlier.
    armed: lockring_proto::Time,
    ticker: Rc<Notify>,
    /// Links whose connection was gone when it was welcomed.
    late: Vec<(ConnId, LinkIndex)>,
    /// Received bytes of the turn, contiguous.
    pub(crate) scratch: Vec<u8>,
    /// A turn is under way, or one has panicked and left the machine half-changed.
    in_turn: bool,
    pub(crate) ttl_max: TtlMax,
    /// No new connections: the worker ends.
    stopping: bool,
    failed: Rc<Notify>,
    pub(crate) telemetry: Telemetry,
}

/// What people are told of a worker's peers.
#[derive(Default)]
pub struct Telemetry {
    /// When which log line was written last.
    pub(crate) rated: Rated,
    /// Connection attempts since the start.
    pub(crate) handshakes: Handshakes,
    /// Counted by the socket.
    pub(crate) packets_dropped: Arc<AtomicU64>,
}

/// The state, shared by the tasks of a worker's thread.
pub type Shared = Rc<RefCell<WorkerState>>;

impl WorkerState {
    /// A worker with no connections.
    pub fn new(
        index: usize,
        machine: Machine,
        orders: mpsc::UnboundedSender<Order>,
        ttl_max: TtlMax,
    ) -> Self {
        Self {
            ttl_max,
            index,
            machine,
            actions: Vec::new(),
            conns: Conns::default(),
            view: ClusterView::default(),
            orders,
            armed: lockring_proto::Time::NEVER,
            ticker: Rc::new(Notify::new()),
            late: Vec::new(),
            scratch: Vec::new(),
            in_turn: false,
            stopping: false,
            failed: Rc::new(Notify::new()),
            telemetry: Telemetry::default(),
        }
    }

    /// Notified when a task of this worker has panicked.
    pub fn failed(&self) -> Rc<Notify> {
        Rc::clone(&self.failed)
    }

    /// The machine, to look at.
    pub fn machine(&self) -> &Machine {
        &self.machine
    }

    /// How the ticker is woken.
    pub fn ticker(&self) -> Rc<Notify> {
        Rc::clone(&self.ticker)
    }

    /// It does by this entry, which has changed these cells.
    pub fn does_by(&mut self, index: Index, cells: &[(CellId, Option<Membership>)]) {
        self.view.does_by(cells);
        self.says(WorkerEvent::Applied(index));
    }

    /// States the longest TTL that it had within that time.
    pub fn states_ttl(&mut self, round: u64, window: Duration) {
        let now = lockring_proto::clock::now();
        let in_use = self.machine.longest_ttl_in_use();
        let longest = self.view.ttls.longest(now, window, in_use);
        let by = if in_use > TTL_DEFAULT { self.whose(now, in_use) } else { None };
        let by = by.unwrap_or_default();
        self.says(WorkerEvent::TtlStated { round, longest: Some(longest), by });
    }

    /// Whose session has this TTL, for people.
    fn whose(&self, now: lockring_proto::Time, ttl: Duration) -> Option<String> {
        let mut from = Some(0);
        while let Some(at) = from {
            let (rows, next) = self.machine.list_sessions(now, at, 512);
            if let Some(seen) = rows.iter().find(|seen| seen.ttl >= ttl) {
                return Some(who(&seen.namespace, &seen.name, &seen.label));
            }
            from = next;
        }
        None
    }

    /// Whether nothing more of connections is to be run. Those that asked are woken when that is
    /// over.
    pub fn takes_nothing_on(&mut self) -> bool {
        let nothing = self.machine.takes_nothing_on();
        if nothing {
            self.conns.hold_up();
        }
        nothing
    }

    /// Says when the ticker wakes by itself.
    pub fn arm(&mut self, at: lockring_proto::Time) {
        self.armed = at;
    }

    /// Number of open connections.
    pub fn connections(&self) -> usize {
        self.conns.count()
    }

    /// Enters a new connection.
    pub fn open(&mut self) -> (ConnId, Rc<Notify>) {
        self.conns.open()
    }

    /// Forgets a connection; the machine gets to know.
    pub fn close(&mut self, id: ConnId) {
        if let Some(link) = self.conns.close(id) {
            self.run(None, Event::Closed { conn: id, link });
        }
    }

    /// The outbox of an open connection.
    pub fn outbox(&mut self, id: ConnId) -> Option<&mut Outbox> {
        self.conns.outbox(id)
    }

    /// Whether new connections are turned away, as the worker ends.
    pub fn is_stopping(&self) -> bool {
        self.stopping
    }

    /// Tells every connection to close, and lets in no new one.
    pub fn close_all(&mut self) {
        self.stopping = true;
        self.conns.end_all();
    }

    /// Runs the machine on one event. The connection `own`, whose task does this, is not woken: it
    /// flushes by itself.
    ///
    /// # Panics
    /// When an earlier turn has panicked: what it left half-done must not be gone on with.
    pub fn run(&mut self, own: Option<ConnId>, event: Event<'_>) {
        self.turn(own, event);
    }

    /// The same; says how many requests of the event were taken.
    pub fn turn(&mut self, own: Option<ConnId>, event: Event<'_>) -> usize {
        assert!(!std::mem::replace(&mut self.in_turn, true), "an earlier turn has panicked");
        let now = lockring_proto::clock::now();
        let mut actions = std::mem::take(&mut self.actions);
        let taken = self.machine.handle(now, event, &mut actions);
        // Nearly all of it is replies to whoever asked: they skip the look-up of their outbox.
        let mut replies = match own.and_then(|own| self.conns.outbox(own)) {
            Some(outbox) => std::mem::take(&mut outbox.replies),
            None => Vec::new(),
        };
        for action in actions.drain(..) {
            match action {
                Action::RaiseLongestTtl(ttl) => self.raise_longest_ttl(ttl, &event),
                other => self.sort(own, &mut replies, other),
            }
        }
        if let Some(outbox) = own.and_then(|own| self.conns.outbox(own)) {
            outbox.replies = replies;
        }
        self.actions = actions;
        if self.machine.next_deadline().is_some_and(|at| at < self.armed) {
            self.ticker.notify_one();
        }
        self.in_turn = false;
        self.view.ttls.has(now, self.machine.longest_ttl_in_use());
        if self.conns.are_held_up() && !self.machine.takes_nothing_on() {
            self.conns.go_on();
        }
        // Each is a turn of its own.
        while let Some((conn, link)) = self.late.pop() {
            self.run(None, Event::Closed { conn, link });
        }
        taken
    }

    fn raise_longest_ttl(&self, ttl: Duration, event: &Event<'_>) {
        let by = match event {
            Event::Opened { identity, hello, .. } => {
                who(identity.namespace.as_str(), &identity.name, hello.label)
            }
            _ => String::new(),
        };
        self.says(WorkerEvent::TtlAsked { ttl, by });
    }

    #[inline]
    fn sort(&mut self, own: Option<ConnId>, replies: &mut Vec<u8>, action: Action) {
        let turn = (own, replies);
        match action {
            Action::Reply { conn, reply } => {
                self.answer(turn, conn, |bytes| codec::encode_frame(&reply, bytes));
            }
            // A welcome and a refusal may come late, when a longer TTL is durable or cannot be.
            Action::Welcome { conn, link, .. } if self.conns.outbox(conn).is_none() => {
                self.late.push((conn, link));
            }
            Action::Welcome { conn, link, reply } => {
                self.answer(turn, conn, |bytes| codec::encode_frame::<HelloReply>(&reply, bytes));
                self.conns.post(conn, |outbox| outbox.link = Some(link));
            }
            Action::Refuse { conn, reply } => {
                self.answer(turn, conn, |bytes| codec::encode_frame::<HelloReply>(&reply, bytes));
                self.conns.post(conn, |outbox| outbox.close = Some(Ending::Refused));
            }
            Action::Pause(conn) => self.conns.post(conn, |outbox| outbox.paused = true),
            Action::Resume(conn) => self.conns.post(conn, |outbox| outbox.paused = false),
            Action::SendRing { conn, id, known } => {
                let replies = self.view.answers(id, known);
                self.answer(turn, conn, |bytes| {
                    replies.iter().for_each(|reply| codec::encode_frame(reply, bytes));
                });
            }
            Action::Push { conn, push } => self.conns.post(conn, |outbox| {
                codec::encode_frame::<Push>(&push, &mut outbox.pushes);
            }),
            Action::Close { conn, reason } => self.conns.post(conn, |outbox| {
                outbox.close = Some(Ending::Core(reason));
                outbox.link = None;
            }),
            Action::RaiseLongestTtl(_) => unreachable!("the turn has taken it out"),
            Action::WantEpoch(cell) => {
                if let Some(epoch) = self.view.epoch(cell) {
                    self.says(WorkerEvent::EpochAsked(cell, epoch));
                }
            }
            Action::Recovered { cell, epoch } => self.says(WorkerEvent::Recovered(cell, epoch)),
            Action::Synced { cell, attach, .. } => self.says(WorkerEvent::Synced(cell, attach)),
            Action::Silent { cell, node } => self.says(WorkerEvent::Silent(cell, node)),
            Action::Peer { .. } | Action::PeerBroken(_) => {
                unreachable!("a cluster of one has no peers: {action:?}")
            }
        }
    }

    /// Gives an answer to a connection: into the buffer of the one whose turn it is, or into the
    /// outbox of another.
    fn answer(
        &mut self,
        (own, replies): (Option<ConnId>, &mut Vec<u8>),
        conn: ConnId,
        encode: impl FnOnce(&mut Vec<u8>),
    ) {
        if own == Some(conn) {
            encode(replies);
        } else {
            self.conns.post(conn, |outbox| encode(&mut outbox.replies));
        }
    }

    fn says(&self, said: WorkerEvent) {
        // The control thread outlives the workers; it ends only with the process.
        if self.orders.send(Order::Said(self.index, said)).is_err() {
            tracing::error!("the control thread is gone");
        }
    }
}
