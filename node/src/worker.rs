//! One worker: a thread, a current_thread runtime, a UDP port and a machine of its own.

use crate::connection;
use crate::gate::{Gate, HandshakeLimits, Source, Verdict};
use crate::messages::{Changes, Handshakes, Report, WorkerCommand};
use crate::rated::{Cause, told};
use crate::state::{Shared, WorkerState};
use lockring_core::{ClusterEvent, Event, SHRINK_SLICE};
use lockring_proto::Time;
use quinn::{Endpoint, Incoming, VarInt};
use std::cell::RefCell;
use std::rc::Rc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::sync::{Notify, mpsc};
use tokio::task::{JoinHandle, spawn_local, yield_now};

/// A peer must finish its handshake within this.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(3);

/// At its end a worker does what is due for no longer than this.
const LAST_LOOK: Duration = Duration::from_secs(1);

/// Runs a worker until it is told to stop, or the node is dropped. Returns how it was at its very
/// end, after which nothing can have been granted; `None` if one of its tasks has panicked.
pub async fn run(
    endpoint: Endpoint,
    state: WorkerState,
    mut commands: mpsc::UnboundedReceiver<WorkerCommand>,
    limits: HandshakeLimits,
) -> Option<Report> {
    let shared: Shared = Rc::new(RefCell::new(state));
    let failed = shared.borrow().failed();
    let accepting = spawn(&shared, accept(endpoint.clone(), Rc::clone(&shared), limits));
    spawn(&shared, tick(Rc::clone(&shared)));
    loop {
        let command = tokio::select! {
            biased;
            () = failed.notified() => return None,
            command = commands.recv() => command,
        };
        match command {
            None | Some(WorkerCommand::Stop) => break,
            Some(WorkerCommand::Memberships(changes)) => do_by(&shared, changes).await,
            Some(command) => obey(&shared, command),
        }
    }
    // A client that comes back at once would otherwise keep the worker from ending.
    accepting.abort();
    endpoint.set_server_config(None);
    shared.borrow_mut().close_all();
    let goodbye = async {
        while shared.borrow().connections() > 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let ending = async {
        let _slow_peers_are_cut_off =
            tokio::time::timeout(Duration::from_millis(1500), goodbye).await;
        endpoint.close(VarInt::from_u32(0), b"the node is stopping");
        let _ = tokio::time::timeout(Duration::from_secs(1), endpoint.wait_idle()).await;
    };
    tokio::select! {
        biased;
        () = failed.notified() => return None,
        () = ending => {}
    }
    // With nothing awaited after it, no task of this thread runs any more.
    last_look(&shared);
    Some(report(&shared.borrow()))
}

/// Has the machine do all that is due, slice by slice, so that what it says at the end is so.
fn last_look(shared: &Shared) {
    let begun = lockring_proto::clock::now();
    loop {
        shared.borrow_mut().run(None, Event::Tick);
        let now = lockring_proto::clock::now();
        let is_due = shared.borrow().machine().next_deadline().is_some_and(|at| at <= now);
        if !is_due || now.since(begun) > LAST_LOOK {
            return;
        }
    }
}

fn obey(shared: &Shared, command: WorkerCommand) {
    let now = lockring_proto::clock::now();
    match command {
        WorkerCommand::LongestTtl(ttl) => shared.borrow_mut().run(None, Event::LongestTtl(ttl)),
        WorkerCommand::TtlFailed(why) => shared.borrow_mut().run(None, Event::TtlFailed(&why)),
        WorkerCommand::Nodes(nodes) => {
            for (node, boot, workers) in nodes {
                let event = ClusterEvent::Node { node, boot, workers };
                shared.borrow_mut().run(None, Event::Cluster(event));
            }
        }
        WorkerCommand::Ring(ring) => shared.borrow_mut().view.learns(&ring),
        WorkerCommand::Lease(until) => {
            shared.borrow_mut().run(None, Event::Cluster(ClusterEvent::Lease(until)));
        }
        WorkerCommand::StateTtl { round, window } => {
            shared.borrow_mut().states_ttl(round, window);
        }
        WorkerCommand::Shrink => {
            spawn(shared, shrink(Rc::clone(shared)));
        }
        WorkerCommand::Drain => shared.borrow_mut().run(None, Event::Drain),
        WorkerCommand::Memory { full } => shared.borrow_mut().run(None, Event::Memory { full }),
        WorkerCommand::Report(answer) => {
            let _whoever_asked_may_be_gone = answer.send(report(&shared.borrow()));
        }
        WorkerCommand::Locks(cursor, rows, prefix, answer) => {
            let page = shared.borrow().machine().list_all(now, &cursor, rows, &prefix);
            let _whoever_asked_may_be_gone = answer.send(page);
        }
        WorkerCommand::Sessions { from, rows, answer } => {
            let page = shared.borrow().machine().list_sessions(now, from, rows);
            let _whoever_asked_may_be_gone = answer.send(page);
        }
        WorkerCommand::Stop | WorkerCommand::Memberships(_) => {
            unreachable!("the worker has looked for it")
        }
        #[cfg(test)]
        WorkerCommand::Panic => {
            spawn(shared, async { panic!("on purpose") });
        }
    }
}

/// Does by an entry of the log from here on, slice by slice, with a turn for everybody in between,
/// and for no other command.
async fn do_by(shared: &Shared, changes: Changes) {
    let Changes { index, whole, cells, version } = changes;
    let cells = shared.borrow().view.all_named(whole, cells);
    let mut left = &cells[..];
    loop {
        let event = ClusterEvent::Memberships { changed: left, version };
        let taken = shared.borrow_mut().turn(None, Event::Cluster(event));
        left = &left[taken..];
        if left.is_empty() {
            break;
        }
        yield_now().await;
    }
    shared.borrow_mut().does_by(index, &cells);
}

/// Has the machine shrink its tables, slice by slice, with a turn for everybody in between.
async fn shrink(shared: Shared) {
    let cells = shared.borrow().machine().cells();
    for from in (0..cells).step_by(SHRINK_SLICE as usize) {
        shared.borrow_mut().run(None, Event::Shrink { from });
        yield_now().await;
    }
}

/// Starts a task of this worker. One that panics ends the worker, and so the node: what it has
/// left half-done is nothing to go on from.
fn spawn(shared: &Shared, task: impl Future<Output = ()> + 'static) -> JoinHandle<()> {
    let alarm = Alarm(shared.borrow().failed());
    spawn_local(async move {
        let _alarm = alarm;
        task.await;
    })
}

struct Alarm(Rc<Notify>);

impl Drop for Alarm {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.notify_one();
        }
    }
}

fn report(state: &WorkerState) -> Report {
    let machine = state.machine();
    let now = lockring_proto::clock::now();
    Report {
        stats: machine.stats(),
        connections: state.connections(),
        handshakes: Handshakes {
            dropped: state.telemetry.packets_dropped.load(Ordering::Relaxed),
            ..state.telemetry.handshakes
        },
        longest_ttl: machine.longest_ttl_in_use(),
        draining: machine.is_draining(),
        answers: !machine.takes_nothing_on(),
        grace_left: machine.opens_at().map(|at| at.since(now)).filter(|left| !left.is_zero()),
    }
}

/// Accepts connections. It never waits for a handshake: one slow peer must not hold up the others.
async fn accept(endpoint: Endpoint, shared: Shared, limits: HandshakeLimits) {
    let gate = Rc::new(RefCell::new(Gate::new(limits, lockring_proto::clock::now())));
    while let Some(incoming) = endpoint.accept().await {
        let source = Source::of(incoming.remote_address().ip());
        let proved = incoming.remote_address_validated() || !incoming.may_retry();
        let now = lockring_proto::clock::now();
        let verdict = gate.borrow_mut().judge(now, source, proved);
        match verdict {
            Verdict::Accept => {
                shared.borrow_mut().telemetry.handshakes.begun += 1;
                let under_way = UnderWay { gate: Rc::clone(&gate), source };
                spawn(&shared, handshake(incoming, Rc::clone(&shared), under_way));
                // Between two handshakes everybody who is connected has a turn.
                yield_now().await;
            }
            Verdict::Retry => {
                shared.borrow_mut().telemetry.handshakes.retried += 1;
                let _its_next_packet_comes_proved = incoming.retry();
            }
            Verdict::Ignore => {
                let peer = incoming.remote_address();
                incoming.ignore();
                let mut shared = shared.borrow_mut();
                shared.telemetry.handshakes.ignored += 1;
                if let Some(left_out) = shared.telemetry.rated.turn(now, Cause::Limited) {
                    tracing::warn!(%peer, left_out, "too many handshakes: one is not answered");
                }
            }
        }
    }
}

/// A handshake that the gate has let in, until it is over.
struct UnderWay {
    gate: Rc<RefCell<Gate>>,
    source: Source,
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.gate.borrow_mut().done(self.source);
    }
}

async fn handshake(incoming: Incoming, shared: Shared, under_way: UnderWay) {
    let peer = incoming.remote_address();
    let why = match tokio::time::timeout(HANDSHAKE_TIMEOUT, incoming).await {
        Ok(Ok(conn)) => {
            drop(under_way);
            if shared.borrow().is_stopping() {
                return conn
                    .close(VarInt::from_u32(connection::CODE_STOPPING), b"the node is stopping");
            }
            return connection::serve(conn, shared).await;
        }
        Ok(Err(error)) => error.to_string(),
        Err(_) => "not finished in time".to_owned(),
    };
    let mut shared = shared.borrow_mut();
    shared.telemetry.handshakes.failed += 1;
    if let Some(left_out) =
        shared.telemetry.rated.turn(lockring_proto::clock::now(), Cause::Handshake)
    {
        tracing::warn!(%peer, why = %told(&why), left_out, "handshake failed");
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
