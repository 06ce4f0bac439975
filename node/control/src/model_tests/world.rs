//! A state of the whole: processes, what is under way between them, clients, and what was granted.

use super::logs::{LogId, Said};
use super::machines::MachineId;
use super::names::{Answer, Ask, CLIENTS, Message, NODES, Process, Told, Wish};
use lockring_proto::Fence;
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// A node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Seat {
    pub life: u8,
    pub machine: MachineId,
    /// The last entry of the log that it has applied, by its place.
    pub applied: u8,
    /// Its lease runs.
    pub leased: bool,
}

/// What a client has asked and not been answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Open {
    pub id: u64,
    pub wish: Wish,
    /// Whom it has asked last, if that one has not sent it on, and by which version of the ring.
    pub at: Option<Process>,
    pub version: u64,
}

/// A client.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Client {
    /// The ring that it knows.
    pub ring: LogId,
    /// How often it is still to acquire.
    pub acquires: u8,
    pub releases: u8,
    pub ids: u64,
    pub held: Option<Fence>,
    pub open: Option<Open>,
}

/// What one process has sent to another, in order; and what may still come of what was sent before
/// their connection broke.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Way {
    pub sent: VecDeque<Message>,
    pub late: VecDeque<Message>,
}

/// How far a grant that was answered has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Fate {
    /// It was answered.
    Given,
    /// Its client has sent a release.
    Released,
    /// That was answered.
    Gone,
}

/// A grant that was answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Grant {
    pub fence: Fence,
    pub client: u8,
    pub id: u64,
    pub fate: Fate,
}

/// A promise that was broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Broken {
    /// Two have been answered that they hold the key, and neither has released it.
    HeldTwice,
    /// A grant has a fence that is not above those before.
    FenceFell,
    /// A client takes for its own what it has released, or never asked for.
    TokenBack,
    /// A hold was answered that nobody waits for.
    Unasked,
    /// A machine panics, or what it has does not add up.
    Unsound,
}

/// What may still go wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Left {
    pub crashes: u8,
    pub breaks: u8,
    pub leases: u8,
    pub delays: u8,
}

/// A state of the whole.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct World {
    pub log: LogId,
    pub seats: [Seat; NODES as usize],
    pub clients: [Client; CLIENTS as usize],
    pub ways: BTreeMap<(Process, u8), Way>,
    /// Requests under way, in order.
    pub asks: BTreeMap<(u8, u8), VecDeque<Ask>>,
    /// Answers under way, in order.
    pub answers: BTreeMap<(Process, u8), VecDeque<Answer>>,
    /// In the order in which they were answered first.
    pub grants: Vec<Grant>,
    /// Owners that have said that a learner has everything.
    pub said: BTreeSet<Said>,
    /// Pairs of nodes without a connection.
    pub cut: BTreeSet<(u8, u8)>,
    pub left: Left,
    pub broken: Option<Broken>,
}

impl World {
    pub fn process(&self, node: u8) -> Process {
        Process { node, life: self.seats[usize::from(node)].life }
    }

    /// Whether a process runs.
    pub fn runs(&self, it: Process) -> bool {
        self.process(it.node) == it
    }

    pub fn is_cut(&self, one: u8, other: u8) -> bool {
        self.cut.contains(&(one.min(other), one.max(other)))
    }

    pub fn send(&mut self, from: Process, to: Process, message: Message) {
        if self.runs(from) && self.runs(to) && !self.is_cut(from.node, to.node) {
            self.ways.entry((from, to.node)).or_default().sent.push_back(message);
        }
    }

    /// The next message that comes; `late`: of those that were sent by an earlier connection.
    pub fn take(&mut self, from: Process, to: u8, late: bool) -> Option<Message> {
        let way = self.ways.get_mut(&(from, to))?;
        let message = if late { way.late.pop_front() } else { way.sent.pop_front() };
        if way.sent.is_empty() && way.late.is_empty() {
            self.ways.remove(&(from, to));
        }
        message
    }

    /// Of what was sent each way anything may still come, in its order, or nothing.
    pub fn break_ways(&mut self, one: Process, other: Process) {
        for way in [(one, other.node), (other, one.node)] {
            if let Some(way) = self.ways.get_mut(&way) {
                let sent = std::mem::take(&mut way.sent);
                way.late.extend(sent);
            }
        }
    }

    /// A grant is answered: what that breaks, and whether it was answered before.
    pub fn granted(&mut self, client: u8, id: u64, fence: Fence) -> bool {
        if let Some(known) = self.grants.iter().find(|grant| grant.fence == fence) {
            if (known.client, known.id) != (client, id) {
                self.broken = Some(Broken::HeldTwice);
            }
            return true;
        }
        let open = self.clients[usize::from(client)].open;
        if self.grants.iter().any(|grant| grant.fate == Fate::Given) {
            self.broken = Some(Broken::HeldTwice);
        } else if self.grants.iter().any(|grant| grant.fence >= fence) {
            self.broken = Some(Broken::FenceFell);
        } else if open.is_none_or(|open| open.id != id) {
            self.broken = Some(Broken::Unasked);
        }
        self.grants.push(Grant { fence, client, id, fate: Fate::Given });
        false
    }

    /// A release is answered.
    pub fn ended(&mut self, client: u8, id: u64) {
        let open = self.clients[usize::from(client)].open.filter(|open| open.id == id);
        if let Some(Open { wish: Wish::Release(fence), .. }) = open
            && let Some(grant) = self.grants.iter_mut().find(|grant| grant.fence == fence)
        {
            grant.fate = Fate::Gone;
        }
    }

    /// The next answer of a way reaches its client.
    pub fn tell(&mut self, (from, client): (Process, u8)) -> Option<()> {
        let answers = self.answers.get_mut(&(from, client))?;
        let answer = answers.pop_front()?;
        if answers.is_empty() {
            self.answers.remove(&(from, client));
        }
        self.told(client, answer);
        Some(())
    }

    fn told(&mut self, client: u8, answer: Answer) {
        let its = &mut self.clients[usize::from(client)];
        let Some(open) = &mut its.open else { return };
        match answer.told {
            Told::Moved => open.at = None,
            Told::Ended => its.open = None,
            Told::Granted(fence) => {
                let is_its = |grant: &&Grant| {
                    (grant.fence, grant.client, grant.fate) == (fence, client, Fate::Given)
                };
                if !self.grants.iter().any(|grant| is_its(&grant)) {
                    self.broken = Some(Broken::TokenBack);
                }
                (its.open, its.held) = (None, Some(fence));
            }
        }
    }

    /// Whether an answer says something to its client, who looks at nothing but what it waits for,
    /// from whom it has asked last.
    pub fn is_awaited(&self, client: u8, from: Process, answer: Answer) -> bool {
        let open = self.clients[usize::from(client)].open;
        open.is_some_and(|open| (open.id, open.at) == (answer.id, Some(from)))
    }

    /// Answers that their clients would not look at are as good as lost.
    pub fn forget_answers(&mut self) {
        let mut answers = std::mem::take(&mut self.answers);
        answers.retain(|&(from, client), answers| {
            answers.retain(|&answer| self.is_awaited(client, from, answer));
            !answers.is_empty()
        });
        self.answers = answers;
    }
}
