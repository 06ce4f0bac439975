//! The control thread over a log on a real disk, with a worker that only says what it must.

use super::*;
use crate::store::{LOG, Record, replace};
use lockring_control::cluster::{Before, Process, WorkerEvent};
use lockring_proto::Time;
use lockring_ring::{AttachId, CellId, Epoch, Membership};
use std::path::Path;
use std::thread::JoinHandle;
use std::time::Instant;
use tokio::sync::oneshot;

const SECOND: Duration = Duration::from_secs(1);

/// A process of a node, whose one worker this is.
struct Fixture {
    told: mpsc::UnboundedReceiver<WorkerCommand>,
    orders: mpsc::UnboundedSender<Order>,
    is_served: std_mpsc::Receiver<()>,
    health: Arc<Health>,
    thread: JoinHandle<Result<(), String>>,
    /// What it was told last of its first cell.
    cell: Option<Membership>,
    /// Cells that take claims of earlier holds alone.
    in_grace: BTreeSet<CellId>,
    ring: RingVersion,
    longest: Duration,
    lease: Time,
    refused: Option<String>,
}

impl Fixture {
    fn start(dir: &Path, boot: u64) -> Self {
        let mut store = Store::open(dir).unwrap();
        let log = store.log().unwrap();
        let boot = store.begin(BootId(boot), &log).unwrap();
        let process = Process { boot: boot.boot, workers: 1, addresses: Vec::new() };
        let (worker, told) = mpsc::unbounded_channel();
        let (orders, inbox) = mpsc::unbounded_channel();
        let (serves, is_served) = std_mpsc::channel();
        let health = Arc::new(Health::default());
        let start = Start {
            log,
            store,
            bits: CellBits::new(8).unwrap(),
            spec: NodeSpec { weight: 1, zone: None, host: String::new(), process },
            boot,
            workers: vec![worker],
            health: Arc::clone(&health),
            serves,
        };
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            let runtime = runtime.unwrap();
            let (store, writing) = runtime.block_on(run(start, inbox))?;
            drop(runtime);
            writing.join().expect("it ends");
            drop(store);
            Ok(())
        });
        let (ring, longest) = (RingVersion(0), Duration::ZERO);
        Self {
            told,
            orders,
            is_served,
            health,
            thread,
            cell: None,
            in_grace: BTreeSet::new(),
            ring,
            longest,
            lease: Time(0),
            refused: None,
        }
    }

    /// Does what it is told until this holds.
    fn until(&mut self, what: &str, holds: impl Fn(&Self) -> bool) {
        let begun = Instant::now();
        while !holds(self) {
            assert!(begun.elapsed() < 30 * SECOND, "never: {what}");
            match self.told.try_recv() {
                Ok(command) => self.obey(command),
                Err(_) => std::thread::sleep(Duration::from_millis(1)),
            }
        }
    }

    fn obey(&mut self, command: WorkerCommand) {
        match command {
            WorkerCommand::Nodes(nodes) => assert!(nodes.iter().all(|(node, ..)| node.0 == 1)),
            WorkerCommand::Ring(ring) => {
                assert!(ring.version() > self.ring, "rings are told in order");
                self.ring = ring.version();
            }
            WorkerCommand::Memberships(Changes { index, cells, version, .. }) => {
                assert!(version <= self.ring, "the ring comes first");
                for (cell, is) in &cells {
                    match is.as_ref().and_then(|is| is.grace) {
                        Some(_) => self.in_grace.insert(*cell),
                        None => self.in_grace.remove(cell),
                    };
                }
                let first = cells.iter().find(|(cell, _)| cell.0 == 0);
                self.cell = first.map_or(self.cell.take(), |(_, is)| is.clone());
                self.say(WorkerEvent::Applied(index));
            }
            WorkerCommand::LongestTtl(ttl) => self.longest = ttl,
            WorkerCommand::TtlFailed(why) => self.refused = Some(why),
            WorkerCommand::StateTtl { round, .. } => {
                let (longest, by) = (Some(SECOND), String::new());
                self.say(WorkerEvent::TtlStated { round, longest, by });
            }
            WorkerCommand::Lease(until) => self.lease = until,
            other => panic!("{other:?}"),
        }
    }

    fn say(&self, said: WorkerEvent) {
        self.orders.send(Order::Said(0, said)).unwrap();
    }

    /// A process that serves.
    fn serving(dir: &Path, boot: u64) -> Self {
        let mut it = Self::start(dir, boot);
        it.until("it serves", |it| it.is_served.try_recv().is_ok());
        it
    }

    fn standing(&self) -> (Epoch, Option<Duration>) {
        let cell = self.cell.as_ref().expect("it serves it");
        (cell.epoch, cell.grace)
    }

    /// The grace of every cell is over.
    fn opens(&mut self) {
        let (epoch, _) = self.standing();
        for cell in (0..256).map(CellId) {
            self.say(WorkerEvent::Recovered(cell, epoch));
        }
        self.until("all have opened", |it| it.in_grace.is_empty());
    }

    fn crash(self) {
        drop(self.orders);
        self.thread.join().unwrap().unwrap();
    }

    /// Ends with so many holds left; whether that was clean.
    fn stop(self, held: u64) -> bool {
        let (done, is_done) = oneshot::channel();
        self.orders.send(Order::Stop { held: vec![Some(held)], done }).unwrap();
        let clean = is_done.blocking_recv().unwrap();
        self.thread.join().unwrap().unwrap();
        clean
    }
}

#[test]
fn a_process_owes_the_one_before_what_that_may_have_granted() {
    let dir = tempfile::tempdir().unwrap();
    let first = Fixture::serving(dir.path(), 1);
    assert_eq!(first.standing(), (Epoch(1), None));
    first.crash();
    let grace = Some(Duration::from_millis(10_100));
    let second = Fixture::serving(dir.path(), 2);
    assert_eq!(second.standing(), (Epoch(2), grace));
    assert!(!second.stop(0), "within the grace");
    let mut third = Fixture::serving(dir.path(), 3);
    assert_eq!(third.standing(), (Epoch(3), grace));
    third.opens();
    assert!(!third.stop(1), "with something held");
    let mut fourth = Fixture::serving(dir.path(), 4);
    assert_eq!(fourth.standing(), (Epoch(4), grace));
    fourth.opens();
    assert!(fourth.stop(0));
    let fifth = Fixture::serving(dir.path(), 5);
    assert_eq!(fifth.standing(), (Epoch(5), None), "nobody believes in anything");
    assert!(fifth.stop(0));
}

#[test]
fn the_longest_ttl_is_agreed_to_and_outlives_the_process() {
    let dir = tempfile::tempdir().unwrap();
    let mut first = Fixture::serving(dir.path(), 1);
    first.say(WorkerEvent::TtlAsked { ttl: 60 * SECOND, by: "who".to_owned() });
    first.until("it may confirm a minute", |it| it.longest == 60 * SECOND);
    first.crash();
    let mut second = Fixture::serving(dir.path(), 2);
    assert_eq!(second.standing().1, Some(Duration::from_millis(60_600)));
    second.until("it is told so", |it| it.longest == 60 * SECOND);
    second.crash();
}

/// A disk that takes nothing, as seen from here: the mark's place is taken.
#[test]
fn a_disk_that_takes_nothing_ends_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let mut node = Fixture::serving(dir.path(), 1);
    let mark = dir.path().join(LOG.mark);
    std::fs::remove_file(&mark).unwrap();
    std::fs::create_dir(&mark).unwrap();
    let asked = WorkerEvent::TtlAsked { ttl: 60 * SECOND, by: "who".to_owned() };
    node.say(asked.clone());
    node.until("it is refused", |it| it.refused.is_some());
    let why = node.refused.take().unwrap();
    assert!(why.contains("60 s") && why.contains(&node.health.cause().unwrap()), "{why}");
    // The lease goes on, for longer than any that was acknowledged before: nothing of it is on a
    // disk.
    let begun = clock::now();
    node.until("the lease goes on", |it| it.lease > begun.after(6 * SECOND));
    std::fs::remove_dir(&mark).unwrap();
    node.say(asked);
    node.until("it may confirm a minute", |it| it.longest == 60 * SECOND);
    assert!(node.health.cause().is_none());
    assert!(node.stop(0));
}

/// What a node without a log left is what its log begins above.
#[test]
fn a_log_follows_what_was_before() {
    for (before, grace) in [
        (Before::Nothing, None),
        (Before::One, Some(Duration::from_millis(60_600))),
        (Before::Unknown, Some(Duration::from_millis(63_630))),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let floors = Floors {
            epoch: Epoch(41),
            version: RingVersion(70),
            node: NodeId(1),
            attach: AttachId(1),
            longest_ttl: 60 * SECOND,
            longest_by: "who".to_owned(),
            before,
        };
        let record = Record { floors: Some(floors), ..Record::new().unwrap() };
        replace(dir.path(), &record).unwrap();
        let begun = Instant::now();
        let node = Fixture::serving(dir.path(), 1);
        assert_eq!(node.standing(), (Epoch(42), grace));
        assert!(node.ring > RingVersion(70));
        // Whoever served before may run on until its lease has ended.
        let waited = begun.elapsed() >= 3 * SECOND;
        assert!(waited || before != Before::Unknown);
        node.crash();
        let next = Fixture::serving(dir.path(), 2);
        assert_eq!(next.standing().0, Epoch(43));
        next.crash();
    }
}
