//! One worker: a thread, a current_thread runtime, a UDP port and a machine of its own.

use crate::connection;
use crate::conns::{Shared, WorkerState};
use lockring_core::{Event, Seen, Stats};
use lockring_proto::{ListCursor, ListedLock, Time};
use lockring_ring::{CellId, Epoch, RingVersion};
use quinn::{Endpoint, VarInt};
use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};
use tokio::task::{spawn_local, yield_now};

/// A peer must finish its handshake within this.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(3);

/// Handshakes under way above which an unproven address must first show that it is real.
const RETRY_ABOVE: usize = 256;

/// What the rest of the node tells a worker.
#[derive(Debug)]
pub enum Command {
    /// The longest TTL is durable.
    LongestTtl(Duration),
    /// A cell has a new epoch.
    Epoch(CellId, Epoch, RingVersion),
    /// No new claims.
    Drain,
    /// Close every connection and end.
    Stop,
    /// A page of locks.
    Locks(ListCursor, u32, Vec<u8>, oneshot::Sender<LockPage>),
    /// A page of sessions.
    Sessions {
        /// Where the page begins.
        from: u32,
        /// At most so many.
        rows: usize,
        /// Who asks; with where the next page begins.
        answer: oneshot::Sender<(Vec<Seen>, Option<u32>)>,
    },
    /// Say how it is.
    Report(oneshot::Sender<Report>),
}

/// Locks with their namespaces, and where the next page begins.
pub type LockPage = (Vec<(String, ListedLock)>, Option<ListCursor>);

/// How a worker is.
#[derive(Clone, Copy, Debug)]
pub struct Report {
    /// The machine's counters.
    pub stats: Stats,
    /// Open connections.
    pub connections: usize,
    /// The longest TTL of any session at the worker.
    pub longest_ttl: Duration,
    /// The worker takes no new claims.
    pub draining: bool,
    /// Nothing is granted for this long, as an earlier life of the node may have granted it.
    pub grace_left: Option<Duration>,
}

/// Runs a worker until it is told to stop.
pub async fn run(
    endpoint: Endpoint,
    state: WorkerState,
    mut commands: mpsc::UnboundedReceiver<Command>,
) {
    let shared: Shared = Rc::new(RefCell::new(state));
    spawn_local(accept(endpoint.clone(), Rc::clone(&shared)));
    spawn_local(tick(Rc::clone(&shared)));
    while let Some(command) = commands.recv().await {
        match command {
            Command::LongestTtl(ttl) => shared.borrow_mut().run(None, Event::LongestTtl(ttl)),
            Command::Epoch(cell, epoch, version) => {
                shared.borrow_mut().epoch_raised(cell, epoch, version);
            }
            Command::Drain => shared.borrow_mut().run(None, Event::Drain),
            Command::Report(answer) => {
                let _asker_may_be_gone = answer.send(report(&shared.borrow()));
            }
            Command::Locks(cursor, rows, prefix, answer) => {
                let now = lockring_proto::clock::now();
                let page = shared.borrow().machine().list_all(now, &cursor, rows, &prefix);
                let _asker_may_be_gone = answer.send(page);
            }
            Command::Sessions { from, rows, answer } => {
                let now = lockring_proto::clock::now();
                let page = shared.borrow().machine().list_sessions(now, from, rows);
                let _asker_may_be_gone = answer.send(page);
            }
            Command::Stop => break,
        }
    }
    shared.borrow_mut().close_all();
    let goodbye = async {
        while shared.borrow().connections() > 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let _slow_peers_are_cut_off = tokio::time::timeout(Duration::from_millis(1500), goodbye).await;
    endpoint.close(VarInt::from_u32(0), b"the node is stopping");
    let _ = tokio::time::timeout(Duration::from_secs(1), endpoint.wait_idle()).await;
}

fn report(state: &WorkerState) -> Report {
    let machine = state.machine();
    let now = lockring_proto::clock::now();
    Report {
        stats: machine.stats(),
        connections: state.connections(),
        longest_ttl: machine.longest_ttl_in_use(),
        draining: machine.is_draining(),
        grace_left: machine.opens_at().map(|at| at.since(now)),
    }
}

/// Accepts connections. It never waits for a handshake: one slow peer must not hold up the others.
async fn accept(endpoint: Endpoint, shared: Shared) {
    let pending = Rc::new(());
    while let Some(incoming) = endpoint.accept().await {
        // Every handshake under way holds a clone.
        if Rc::strong_count(&pending) > RETRY_ABOVE
            && !incoming.remote_address_validated()
            && incoming.may_retry()
        {
            let _its_next_packet_comes_validated = incoming.retry();
            continue;
        }
        let shared = Rc::clone(&shared);
        let handshake = Rc::clone(&pending);
        spawn_local(async move {
            let peer = incoming.remote_address();
            match tokio::time::timeout(HANDSHAKE_TIMEOUT, incoming).await {
                Ok(Ok(conn)) => {
                    drop(handshake);
                    connection::serve(conn, shared).await;
                }
                Ok(Err(why)) => tracing::warn!(%peer, %why, "handshake failed"),
                Err(_) => tracing::warn!(%peer, "handshake not finished in time"),
            }
        });
    }
}

/// Tells the machine the time when it wants to know it.
async fn tick(shared: Shared) {
    let wake = shared.borrow().ticker();
    loop {
        let deadline = {
            let mut state = shared.borrow_mut();
            let deadline = state.machine().next_deadline().unwrap_or(Time::NEVER);
            state.arm(deadline);
            deadline
        };
        let left = deadline.since(lockring_proto::clock::now());
        if left.is_zero() {
            shared.borrow_mut().run(None, Event::Tick);
            // Between two slices of an expiry the sockets are read and the living served.
            yield_now().await;
            continue;
        }
        let sleep = tokio::time::sleep(left.min(Duration::from_secs(3600)));
        tokio::select! {
            biased;
            () = wake.notified() => {}
            () = sleep => shared.borrow_mut().run(None, Event::Tick),
        }
    }
}
