//! The participants of a run, and what happens to them, but for faults.

use crate::client::Client;
use crate::cluster::Cluster;
use crate::hub::{Event, Hub, Step};
use crate::keys::Keys;
use crate::way::Way;
use crate::workload::{KEEPER, Part};
use lockring_client::session::{Place, Query};
use lockring_core::Time;
use lockring_core::testing::{Fact, KeyId, Stream};
use lockring_proto::{Claim, Reply};
use std::time::Duration;

/// Everybody.
pub struct Stage {
    pub hub: Hub,
    pub keys: Keys,
    pub cluster: Cluster,
    pub clients: Vec<Client>,
}

impl Stage {
    pub fn failed(&self) -> bool {
        self.hub.recorder.violation().is_some()
    }

    /// Lets everything happen that is due until then.
    pub fn until(&mut self, until: Time) {
        while !self.failed()
            && let Some(event) = self.hub.next(until)
        {
            self.happens(event);
        }
        if !self.failed() {
            self.hub.now = self.hub.now.max(until);
        }
    }

    pub fn for_span(&mut self, span: Duration) {
        self.until(self.hub.now.after(span));
    }

    fn happens(&mut self, event: Event) {
        let Self { hub, keys, cluster, clients, .. } = self;
        match event {
            Event::Frame { way, stream, bytes, held } => {
                if hub.arrives(way, stream, &bytes, held) {
                    self.frame(way, stream, bytes);
                }
            }
            Event::ClientNotices { way, superseded } => {
                let client = &mut clients[way.client];
                if client.life == way.life && client.is_paused(hub) {
                    let event = Event::ClientNotices { way, superseded };
                    hub.plan(client.paused_until(), event);
                } else if client.life == way.life && !client.down {
                    client.loses(hub, cluster, way, superseded);
                }
            }
            Event::Stands { way } => {
                let client = &mut clients[way.client];
                if client.life == way.life && client.is_paused(hub) {
                    hub.plan(client.paused_until(), Event::Stands { way });
                } else if client.life == way.life && !client.down {
                    client.stands(hub, cluster, way);
                }
            }
            Event::Unwelcome { way } => {
                let client = &mut clients[way.client];
                if client.life == way.life && !client.down && !client.is_paused(hub) {
                    client.unwelcome(hub, cluster, way);
                }
            }
            Event::Wake { client, life } => {
                if clients[client].life == life && !clients[client].down {
                    clients[client].wake(hub, cluster);
                }
            }
            Event::Step { client, life, step } => self.step(client, life, step),
            Event::Return { client } => clients[client].start(hub),
            Event::Node(event) => cluster.happens(hub, keys, event),
        }
    }

    /// A frame is here.
    fn frame(&mut self, way: Way, stream: Stream, bytes: Vec<u8>) {
        let Self { hub, cluster, clients, .. } = self;
        if stream == Stream::Requests {
            return cluster.frame(hub, way, bytes);
        }
        let client = &mut clients[way.client];
        if client.life == way.life && !client.down {
            client.frame(hub, cluster, way, (stream, bytes));
        }
    }

    /// A client does what it had planned.
    fn step(&mut self, at: usize, life: u32, step: Step) {
        let Self { hub, keys, cluster, clients, .. } = self;
        let client = &mut clients[at];
        if client.life != life || client.down {
            return;
        }
        if client.is_paused(hub) {
            return hub.plan(client.paused_until(), Event::Step { client: at, life, step });
        }
        match step {
            // Its task carries nothing out any more.
            Step::Claim(_) | Step::Release(_) | Step::GiveUp(_) if client.is_leaving() => {}
            Step::Claim(slot) => {
                let mut rng = client.rng.fork();
                let Some(wanted) = client.workload.wants(&mut rng, keys, at, slot) else { return };
                match client.ask(hub, keys, cluster, slot, wanted) {
                    None => client.plan(hub, Duration::from_millis(20), Step::Claim(slot)),
                    Some(token) => {
                        if let Some(after) = client.workload.gives_up(&mut rng, slot) {
                            client.plan(hub, after, Step::GiveUp(token));
                        }
                        if client.workload.part == Part::Hoarder {
                            client.plan(hub, Duration::from_micros(300), Step::Claim(slot));
                        }
                    }
                }
            }
            Step::Release(token) => {
                let keeper = client.claims.get(&token).is_some_and(|claim| claim.slot == KEEPER);
                if keeper && client.workload.closing {
                    return;
                }
                let quietly = client.rng.percent(15);
                client.release(hub, cluster, token, quietly);
            }
            Step::GiveUp(token) => client.give_up(hub, cluster, token),
            Step::WriteLate(key, fence) => {
                hub.reach("late writes");
                hub.used(key, fence, true);
            }
            Step::List => client.list_on(hub, keys, cluster),
            Step::Die => {
                if !client.workload.closing || client.is_leaving() {
                    self.kill(at, Duration::from_millis(300));
                }
            }
        }
    }

    pub fn kill(&mut self, at: usize, down: Duration) {
        if !self.clients[at].down {
            self.clients[at].crash(&mut self.hub);
            self.hub.soon(down, Event::Return { client: at });
        }
    }

    /// A client ends its session in order. What it does next, it does with another.
    pub fn leave(&mut self, whom: usize) {
        let Self { hub, cluster, clients, .. } = self;
        let client = &mut clients[whom];
        if !client.down && !client.is_paused(hub) && client.workload.part == Part::Worker {
            hub.reach("goodbyes in mid-run");
            client.say_goodbye(hub, cluster);
            client.plan(hub, Duration::from_millis(400), Step::Die);
        }
    }

    pub fn cut_all(&mut self) {
        for client in &mut self.clients {
            client.cut(&mut self.hub);
        }
    }

    /// The operator, if it is there, forces a key that somebody holds.
    pub fn force_one(&mut self) {
        let held: Vec<_> = self.hub.recorder.book().holds.values().map(|hold| hold.key).collect();
        let key = if held.is_empty() || self.hub.rng.percent(20) {
            self.keys.any_shared(&mut self.hub.rng)
        } else {
            *self.hub.rng.pick(&held)
        };
        let operator = &mut self.clients[0];
        if !operator.down && !operator.is_paused(&self.hub) {
            let namespace = self.keys.space_name(key).to_owned();
            let key = self.keys.bytes(key).to_vec();
            let query = Query::Force(Place { namespace, key });
            operator.query(&mut self.hub, &self.cluster, query);
        }
    }

    /// Everybody holds something, for long enough that both sides compare; then they must agree.
    pub fn everybody_holds(&mut self) {
        for at in 0..self.clients.len() {
            let mut rng = self.clients[at].rng.fork();
            let own = self.keys.own(at, &mut rng);
            for (key, claim) in [(own, Claim::EXCLUSIVE), (self.keys.read(), Claim::SHARED)] {
                let client = &mut self.clients[at];
                let wanted = (key, claim, Some(Duration::ZERO));
                client.ask(&mut self.hub, &self.keys, &self.cluster, KEEPER, wanted);
            }
        }
        self.for_span(Duration::from_secs(8).max(self.longest_ttl() * 3));
        for client in &self.clients {
            for (worker, digest) in client.digests() {
                let machine = self.cluster.machine(worker);
                let node = machine.and_then(|machine| machine.digest_of(client.session));
                let (session, client) = (client.session, digest);
                self.hub.fact(&Fact::Rest { session, worker, client, node });
            }
        }
    }

    /// Both sides compare once a third of the TTL.
    pub fn longest_ttl(&self) -> Duration {
        self.clients.iter().map(|client| client.ttl).max().unwrap_or_default()
    }

    /// Everything is given back, and nothing may be left of any key by the machines.
    pub fn everybody_gives_back(&mut self) {
        for client in &mut self.clients {
            let tokens: Vec<u64> = client.claims.keys().copied().collect();
            for token in tokens {
                client.release(&mut self.hub, &self.cluster, token, false);
            }
        }
        // Long enough that what only the node knows of is given back too.
        self.for_span(Duration::from_secs(6).max(self.longest_ttl() * 3));
        self.cluster.audit(&mut self.hub);
        for (worker, machine) in self.cluster.machines() {
            let stats = machine.stats();
            let (keys, waiters) = (stats.keys, stats.waiters);
            self.hub.fact(&Fact::Empty { worker, keys, waiters });
        }
    }

    /// With the goodbyes of all nobody is left.
    pub fn everybody_leaves(&mut self) {
        for client in &mut self.clients {
            client.say_goodbye(&mut self.hub, &self.cluster);
        }
        self.for_span(Duration::from_millis(1500));
        let links: u64 = self.cluster.machines().map(|(_, machine)| machine.stats().links).sum();
        if links > 0 && !self.failed() {
            self.hub.accuse("nobody is left after goodbye", format!("{links} links"));
        }
    }

    pub fn inspect_all(&mut self) {
        let mut asked = Vec::new();
        for id in 0..self.keys.count() as u32 {
            let key = self.keys.bytes(KeyId(id)).to_vec();
            let query = Query::Inspect(key.into());
            asked.extend(self.clients[0].query(&mut self.hub, &self.cluster, query));
        }
        self.for_span(Duration::from_secs(2));
        if asked.len() != self.keys.count() {
            self.hub.accuse("the last look", "the operator knows no ring".to_owned());
        }
        for token in asked {
            match self.clients[0].answer(token) {
                Some(Reply::Inspected { inspection, .. })
                    if inspection.holder_count + inspection.waiter_count == 0 => {}
                other => self.hub.accuse("the last look", format!("{other:?}")),
            }
        }
    }
}
