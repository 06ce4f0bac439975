//! Whatever the processes of a session do, as they come, replace each other and go: no key is
//! granted while another process may still believe in it.

use super::rng::Rng;
use super::view_tests::config;
use crate::{Access, Action, ConnId, Event, Identity, Limits, LinkIndex, Machine, Mutant, Time};
use lockring_proto::{
    Claim, Fence, Hello, HoldId, Namespace, Operation, PROTOCOL, Push, Reply, Request, SessionId,
    Wait, limits,
};
use lockring_ring::{CellBits, NamespaceSeed, hash_key};
use std::collections::BTreeMap;
use std::time::Duration;

const RUNS: u64 = 400;
const TURNS: u64 = 250;
const SESSIONS: u64 = 4;

/// Short and long ones, of both cells.
const KEYS: [&str; 4] = ["a", "b", "c", "a key of more than 24 bytes"];

/// One process, as it sees itself.
struct Process {
    session: u64,
    link: Option<LinkIndex>,
    connected: bool,
    /// Its next request is this one.
    next: u64,
    incarnation: u64,
    asked: BTreeMap<u64, (&'static str, Claim)>,
    held: BTreeMap<Fence, (&'static str, Claim)>,
    believes_until: Time,
}

struct World {
    rng: Rng,
    machine: Machine,
    now: Time,
    conns: u64,
    /// By their last connection.
    processes: BTreeMap<ConnId, Process>,
}

fn machine() -> Machine {
    let limits = Limits {
        holds_per_link: 6,
        waiters_per_link: 6,
        expiry_slice: 2,
        turn_price: 40,
        ..Limits::default()
    };
    Machine::new(config(limits), Time(0))
}

fn hold_id(key: &str, fence: Fence) -> HoldId {
    let seed = NamespaceSeed::of("default");
    let position = hash_key(seed, key.as_bytes()).position;
    HoldId { cell: CellBits::new(1).unwrap().cell(position).0, fence }
}

impl World {
    fn handle(&mut self, event: Event<'_>) -> usize {
        let mut actions = Vec::new();
        let taken = self.machine.handle(self.now, event, &mut actions);
        for action in actions {
            self.take_in(action);
        }
        taken
    }

    fn take_in(&mut self, action: Action) {
        let believes_until = self.now.after(limits::believed(limits::TTL_MIN));
        match action {
            Action::Welcome { conn, link, reply } => {
                let process = self.processes.get_mut(&conn).expect("welcomed");
                (process.link, process.connected) = (Some(link), true);
                let lockring_proto::HelloReply::Welcome(welcome) = *reply else { panic!() };
                process.incarnation = welcome.incarnation;
                if welcome.fresh {
                    process.held.clear();
                    process.asked.clear();
                }
                process.believes_until = believes_until;
            }
            Action::Refuse { conn, .. } => drop(self.processes.remove(&conn)),
            Action::Close { conn, .. } => {
                // It may not have heard of it yet, and goes on believing.
                if let Some(process) = self.processes.get_mut(&conn) {
                    process.connected = false;
                }
            }
            Action::Reply { conn, reply } => {
                let Some(process) = self.processes.get_mut(&conn) else { return };
                match reply {
                    Reply::Granted { id, fence, .. } => {
                        if let Some(&claim) = process.asked.get(&id) {
                            process.asked.remove(&id);
                            process.held.insert(fence, claim);
                        }
                    }
                    Reply::Compared { lost, .. } => {
                        process
                            .held
                            .retain(|&fence, (key, _)| !lost.contains(&hold_id(key, fence)));
                    }
                    Reply::Queued { .. } | Reply::Renewed { .. } => {}
                    Reply::Released { id, .. }
                    | Reply::NotHeld { id, .. }
                    | Reply::Cancelled { id, .. } => {
                        process.asked.remove(&id);
                    }
                    Reply::Busy { id, .. }
                    | Reply::TimedOut { id, .. }
                    | Reply::Refused { id, .. } => {
                        process.asked.remove(&id);
                        // A grant from the queue is no answer to a request of this moment.
                    }
                    Reply::Goodbye { .. } => {}
                    other => panic!("{other:?}"),
                }
            }
            Action::Push { conn, push: Push::Lost { holds, .. } } => {
                if let Some(process) = self.processes.get_mut(&conn) {
                    process.held.retain(|&fence, (key, _)| !holds.contains(&hold_id(key, fence)));
                }
            }
            _ => {}
        }
    }

    /// A process connects: a new one, the successor of whoever has the session, or one that was
    /// there.
    fn hello(&mut self, session: u64, mut process: Process, incarnation: u64) {
        self.conns += 1;
        let conn = ConnId(self.conns);
        process.connected = false;
        self.processes.insert(conn, process);
        let identity = Identity {
            namespace: Namespace::default(),
            name: "c".to_owned(),
            access: Access::User,
            ttl_max: limits::TTL_MAX,
        };
        let hello = Hello {
            protocol: PROTOCOL,
            session: SessionId([session as u8; 16]),
            incarnation,
            ttl_ms: 1000,
            ring_version: 1,
            ids_after: 0,
            label: "",
        };
        self.handle(Event::Opened { conn, identity: &identity, hello });
    }

    fn arrive(&mut self) {
        let session = self.rng.range(0, SESSIONS);
        let next = (self.conns + 1) << 20;
        let process = Process {
            session,
            link: None,
            connected: false,
            next,
            incarnation: 0,
            asked: BTreeMap::new(),
            held: BTreeMap::new(),
            believes_until: self.now,
        };
        self.hello(session, process, 0);
    }

    /// One that was cut off by the network comes back, though another may have taken its place: its
    /// hello was under way, and is numbered above that one's.
    fn come_back(&mut self, conn: ConnId) {
        let process = &self.processes[&conn];
        if process.link.is_none() {
            return;
        }
        if let Some(link) = process.link {
            self.handle(Event::Closed { conn, link });
        }
        let Some(process) = self.processes.remove(&conn) else { return };
        if self.now >= process.believes_until {
            return;
        }
        let (session, incarnation) = (process.session, process.incarnation + 2);
        self.hello(session, process, incarnation);
    }

    fn speak(&mut self, conn: ConnId) {
        let what = self.rng.range(0, 12);
        let (key, percent) = (*self.rng.pick(&KEYS), self.rng.percent(50));
        let process = self.processes.get_mut(&conn).expect("it is there");
        let Some(link) = process.link.filter(|_| process.connected) else { return };
        if self.now >= process.believes_until {
            // It has lost all, and would give it back; as if it had died.
            self.processes.remove(&conn);
            return;
        }
        process.next += 1;
        let id = process.next;
        let keyed = |key: &'static str, operation| Request::Keyed {
            id,
            version: 1,
            operation,
            key: key.as_bytes(),
        };
        let request = match what {
            0..=4 => {
                let claim = if percent { Claim::EXCLUSIVE } else { Claim::SHARED };
                process.asked.insert(id, (key, claim));
                keyed(key, Operation::Acquire { claim, wait: Wait::Forever })
            }
            5 | 6 => {
                let Some((&fence, &(key, _))) = process.held.first_key_value() else { return };
                process.held.remove(&fence);
                keyed(key, Operation::Release { fence })
            }
            7 => {
                let Some((&target, &(key, _))) = process.asked.first_key_value() else { return };
                process.asked.remove(&target);
                keyed(key, Operation::Cancel { target })
            }
            8 | 9 => {
                let mut holds: Vec<HoldId> =
                    process.held.iter().map(|(&fence, (key, _))| hold_id(key, fence)).collect();
                holds.sort_unstable();
                let upto = process.asked.keys().next().map_or(id, |&first| first - 1);
                Request::Compare { id, version: 1, upto, after: None, through: None, holds }
            }
            10 if percent => {
                process.held.clear();
                Request::Goodbye { id }
            }
            _ => Request::Renew { id },
        };
        let ends = matches!(request, Request::Goodbye { .. });
        let believes_until = self.now.after(limits::believed(limits::TTL_MIN));
        loop {
            let requests = std::slice::from_ref(&request);
            let taken = self.handle(Event::Requests { conn, link, requests });
            if taken == 1 {
                break;
            }
            self.handle(Event::Tick);
        }
        if ends {
            self.processes.remove(&conn);
        } else if let Some(process) = self.processes.get_mut(&conn)
            && process.connected
        {
            process.believes_until = believes_until;
        }
    }

    /// Two that exclude each other are not believed in at a time.
    fn check(&self) -> Result<(), String> {
        self.machine.audit()?;
        let mut believed: BTreeMap<&str, Vec<(ConnId, Fence, Claim)>> = BTreeMap::new();
        for (&conn, process) in &self.processes {
            if self.now < process.believes_until {
                for (&fence, &(key, claim)) in &process.held {
                    believed.entry(key).or_default().push((conn, fence, claim));
                }
            }
        }
        for (key, holders) in believed {
            let alone = holders.iter().any(|&(_, _, claim)| claim == Claim::EXCLUSIVE);
            if alone && holders.len() > 1 {
                return Err(format!("{key} is believed in by {holders:?}"));
            }
        }
        Ok(())
    }
}

/// One run: how many sessions were taken up or gone on with.
fn run(seed: u64, mutant: Option<Mutant>) -> Result<u64, String> {
    let mut world = World {
        rng: Rng::new(seed),
        machine: machine().with_mutant(mutant),
        now: Time(0),
        conns: 0,
        processes: BTreeMap::new(),
    };
    for turn in 0..TURNS {
        let pause = *world.rng.pick(&[0, 1, 5, 20, 20, 40, 150]);
        world.now = world.now.after(Duration::from_millis(pause));
        let conns: Vec<ConnId> = world.processes.keys().copied().collect();
        let what = world.rng.range(0, 20);
        if what == 0 || conns.is_empty() {
            world.arrive();
        } else {
            let conn = *world.rng.pick(&conns);
            match what {
                1 => world.come_back(conn),
                2..=6 => drop(world.handle(Event::Tick)),
                _ => world.speak(conn),
            }
        }
        world.check().map_err(|why| format!("turn {turn}: {why}"))?;
    }
    Ok(world.machine.stats().resumed_links)
}

#[test]
fn no_key_is_granted_while_another_process_believes_in_it() {
    let mut resumed = 0;
    for seed in 0..RUNS {
        resumed += run(seed, None).unwrap_or_else(|why| panic!("seed {seed}, {why}"));
    }
    assert!(resumed > RUNS, "{resumed} were gone on with");
}

/// What the test above would see.
#[test]
fn holds_that_a_successor_frees_are_believed_in() {
    assert!((0..RUNS).any(|seed| run(seed, Some(Mutant::SuccessorFrees)).is_err()));
}
