//! A log of several nodes as a model: what a consensus log promises, and nothing more. Whoever
//! drives it decides who is reached, what is lost, and when; nothing happens by itself.
//!
//! Of the protocol below it has what its users can notice. Voters promise themselves to a term, so
//! that a leader which was deposed gets neither entries nor rounds through, before it knows. What
//! a leader had proposed when it was deposed may be lost or kept, as the prefix that its successor
//! happens to have. A proposal that was said to have failed may be in the log later.

use super::conformance::TestLog;
use crate::cluster::{Entry, Index, LogEvent, Mutant, ProposalId, RoundId, State, Term};
use lockring_ring::NodeId;
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// An entry, and by whom it was proposed.
#[derive(Clone, Debug)]
struct Record {
    term: Term,
    entry: Entry,
    by: Option<(NodeId, ProposalId)>,
}

/// One node's part of the log.
#[derive(Clone, Debug)]
struct Seat {
    is_up: bool,
    /// Its store takes nothing.
    is_broken: bool,
    votes: bool,
    /// It follows nobody of an earlier term.
    promised: Term,
    /// It believes that it leads.
    leads: Option<Term>,
    /// Whom it was told to follow.
    follows: Option<NodeId>,
    /// Handed out to its user.
    applied: Index,
    /// Proposals that cannot get through, as it was deposed and does not know.
    orphans: Vec<ProposalId>,
    /// Rounds under way, and what was committed when they began.
    rounds: BTreeMap<RoundId, Index>,
    events: VecDeque<LogEvent>,
}

/// The log of a cluster.
#[derive(Clone, Debug)]
pub struct LogModel {
    initial: State,
    seats: BTreeMap<NodeId, Seat>,
    /// Committed for good.
    records: Vec<Record>,
    /// What they make.
    state: State,
    /// Of entries up to here nobody has more than what they make.
    snapshot: Option<(Term, State)>,
    /// The present leader's, not committed yet.
    tail: Vec<Record>,
    term: Term,
    leader: Option<NodeId>,
    mutant: Option<Mutant>,
}

impl LogModel {
    /// An empty log, with this state, of voters.
    pub fn new(initial: State, voters: &BTreeSet<NodeId>, mutant: Option<Mutant>) -> Self {
        let mut log = Self {
            state: initial.clone(),
            initial,
            seats: BTreeMap::new(),
            records: Vec::new(),
            snapshot: None,
            tail: Vec::new(),
            term: Term(0),
            leader: None,
            mutant,
        };
        voters.iter().for_each(|&node| log.seat(node, true));
        log
    }

    fn seat(&mut self, node: NodeId, votes: bool) {
        let seat = Seat {
            is_up: true,
            is_broken: false,
            votes,
            promised: Term(0),
            leads: None,
            follows: None,
            applied: Index(0),
            orphans: Vec::new(),
            rounds: BTreeMap::new(),
            events: VecDeque::new(),
        };
        self.seats.insert(node, seat);
    }

    /// A node that gets the log and has no vote.
    pub fn add_learner(&mut self, node: NodeId) {
        self.seat(node, false);
    }

    /// Other nodes have votes from now on. Only while the leader reaches all of them: no majority
    /// of before may be none of after.
    pub fn set_voters(&mut self, voters: &BTreeSet<NodeId>) {
        let term = self.term;
        for (node, seat) in &mut self.seats {
            seat.votes = voters.contains(node);
            if seat.votes {
                seat.promised = term;
            }
        }
    }

    /// The state after every committed entry.
    pub fn state(&self) -> &State {
        &self.state
    }

    /// The committed entry at a place.
    pub fn entry(&self, index: Index) -> Option<&Entry> {
        self.records.get((index.0 as usize).checked_sub(1)?).map(|record| &record.entry)
    }

    /// The last committed place.
    pub fn last(&self) -> Index {
        Index(self.records.len() as u64)
    }

    /// Who leads, as far as a majority knows.
    pub fn leader(&self) -> Option<NodeId> {
        self.leader.filter(|node| self.seats[node].leads == Some(self.term))
    }

    /// Whether a node has a vote.
    pub fn votes(&self, node: NodeId) -> bool {
        self.seats.get(&node).is_some_and(|seat| seat.votes)
    }

    /// Whether that many voters are enough.
    fn is_quorum(&self, votes: usize) -> bool {
        let voters = self.seats.values().filter(|seat| seat.votes).count();
        votes > voters / 2
    }

    /// Voters that a node reaches and that have promised themselves to no later term.
    fn voters<'a>(
        &'a self,
        term: Term,
        reach: &'a dyn Fn(NodeId) -> bool,
    ) -> impl Iterator<Item = NodeId> + 'a {
        let can = move |(node, seat): &(&NodeId, &Seat)| {
            let works = seat.is_up && !seat.is_broken && seat.votes;
            works && seat.promised <= term && reach(**node)
        };
        self.seats.iter().filter(can).map(|(&node, _)| node)
    }

    /// A voter stands for election, among the voters that it reaches (itself included). It has
    /// `keep` of the entries that the leader before had not committed.
    pub fn elect(&mut self, node: NodeId, keep: usize, reach: &dyn Fn(NodeId) -> bool) -> bool {
        let term = Term(self.term.0 + 1);
        let votes: Vec<NodeId> = self.voters(term, reach).collect();
        if !votes.contains(&node) || !self.is_quorum(votes.len()) {
            return false;
        }
        self.term = term;
        let lost = self.tail.split_off(keep.min(self.tail.len()));
        for (by, proposal) in lost.into_iter().filter_map(|record| record.by) {
            self.seats.entry(by).and_modify(|seat| seat.orphans.push(proposal));
        }
        self.tail.push(Record { term, entry: Entry::Blank, by: None });
        for voter in votes {
            self.seat_mut(voter).promised = term;
        }
        let before = self.leader.replace(node);
        let seat = self.seat_mut(node);
        (seat.leads, seat.follows) = (Some(term), Some(node));
        seat.rounds.clear();
        seat.events.push_back(LogEvent::Elected { term, before });
        true
    }

    fn seat_mut(&mut self, node: NodeId) -> &mut Seat {
        self.seats.get_mut(&node).unwrap_or_else(|| panic!("{node} has no part in the log"))
    }

    /// A node proposes; `early` puts it before the proposal made just before.
    pub fn propose(&mut self, node: NodeId, id: ProposalId, entry: Entry, early: bool) {
        let (term, leads) = (self.term, self.leader() == Some(node));
        let seat = self.seat_mut(node);
        match seat.leads {
            Some(_) if leads => {
                self.tail.push(Record { term, entry, by: Some((node, id)) });
                let last = self.tail.len() - 1;
                if early && last > 0 && self.tail[last - 1].by.is_some() {
                    self.tail.swap(last - 1, last);
                }
            }
            Some(_) => seat.orphans.push(id),
            None => seat.events.push_back(LogEvent::Failed(id)),
        }
    }

    /// A proposal is said to have failed, and may be committed all the same.
    pub fn fail(&mut self, node: NodeId, id: ProposalId) {
        self.seat_mut(node).events.push_back(LogEvent::Failed(id));
    }

    /// The leader commits what it has, if it reaches a majority.
    pub fn commit(&mut self, reach: &dyn Fn(NodeId) -> bool) -> bool {
        let Some(leader) = self.leader() else { return false };
        if self.tail.is_empty() {
            return false;
        }
        let votes: Vec<NodeId> = self.voters(self.term, reach).collect();
        if !votes.contains(&leader) || !self.is_quorum(votes.len()) {
            return false;
        }
        for voter in votes {
            self.seat_mut(voter).promised = self.term;
        }
        for record in std::mem::take(&mut self.tail) {
            let index = Index(self.records.len() as u64 + 1);
            self.state.apply(index, &record.entry);
            self.records.push(record);
        }
        true
    }

    /// A node that was deposed is told so.
    pub fn notice(&mut self, node: NodeId) {
        let leader = self.leader();
        let seat = self.seat_mut(node);
        if seat.leads.is_none() || leader == Some(node) {
            return;
        }
        Self::depose(seat);
        seat.follows = None;
    }

    fn depose(seat: &mut Seat) {
        seat.leads = None;
        seat.rounds.clear();
        seat.events.push_back(LogEvent::Deposed);
        let orphans = std::mem::take(&mut seat.orphans);
        seat.events.extend(orphans.into_iter().map(LogEvent::Failed));
    }

    /// A node asks for a round.
    pub fn begin_round(&mut self, node: NodeId, round: RoundId) {
        let Some(term) = self.seats[&node].leads else { return };
        // One that was deposed knows nothing of what its successor has committed.
        let known = self.records.partition_point(|record| record.term <= term);
        self.seat_mut(node).rounds.insert(round, Index(known as u64));
    }

    /// The answers to a round are in.
    pub fn end_round(&mut self, node: NodeId, round: RoundId, reach: &dyn Fn(NodeId) -> bool) {
        let Some(committed) = self.seat_mut(node).rounds.remove(&round) else { return };
        let Some(term) = self.seats[&node].leads else { return };
        let votes = self.voters(term, reach).count();
        let voters = self.seats.values().filter(|seat| seat.votes).count();
        let half = self.mutant == Some(Mutant::HalfIsQuorum) && votes >= voters / 2;
        if self.is_quorum(votes) || half {
            let done = LogEvent::RoundDone { round, committed };
            self.seat_mut(node).events.push_back(done);
        }
    }

    /// What a node is to be told at once.
    pub fn news(&mut self, node: NodeId) -> Option<LogEvent> {
        self.seats.get_mut(&node).filter(|seat| seat.is_up)?.events.pop_front()
    }

    /// The next thing of the log that reaches a node: what it is to be told at once, who leads, an
    /// entry, or, if it is behind the snapshot, that.
    pub fn deliver(&mut self, node: NodeId) -> Option<LogEvent> {
        let leader = self.leader();
        if let Some(event) = self.news(node) {
            return Some(event);
        }
        let seat = self.seats.get_mut(&node).filter(|seat| seat.is_up && !seat.is_broken)?;
        if let Some(leader) = leader.filter(|_| seat.leads.is_none() && seat.follows != leader) {
            seat.follows = Some(leader);
            return Some(LogEvent::Follows(leader));
        }
        if let Some((term, state)) = &self.snapshot
            && seat.applied < state.applied()
        {
            seat.applied = state.applied();
            return Some(LogEvent::Restored { term: *term, state: Box::new(state.clone()) });
        }
        let record = self.records.get(seat.applied.0 as usize)?;
        seat.applied = Index(seat.applied.0 + 1);
        let Record { term, entry, .. } = record.clone();
        Some(LogEvent::Committed { index: seat.applied, term, entry })
    }

    /// How many entries a node has not been told of.
    pub fn behind(&self, node: NodeId) -> u64 {
        self.last().0 - self.seats[&node].applied.0
    }

    /// All entries so far are replaced by what they make.
    pub fn take_snapshot(&mut self) {
        if let Some(last) = self.records.last() {
            self.snapshot = Some((last.term, self.state.clone()));
        }
    }

    /// A process ends. Its log is durable; what its user had applied is not.
    pub fn crash(&mut self, node: NodeId) {
        let seat = self.seat_mut(node);
        (seat.is_up, seat.leads, seat.follows, seat.applied) = (false, None, None, Index(0));
        seat.events.clear();
        seat.rounds.clear();
        seat.orphans.clear();
    }

    /// A node's next process begins, over the log as it was.
    pub fn restart(&mut self, node: NodeId) {
        let seat = self.seat_mut(node);
        (seat.is_up, seat.is_broken) = (true, false);
    }

    /// A node's store takes nothing any more: it leads no longer, and has no vote.
    pub fn break_store(&mut self, node: NodeId) {
        let seat = self.seat_mut(node);
        seat.is_broken = true;
        if seat.leads.is_some() {
            Self::depose(seat);
        }
        seat.follows = None;
    }

    /// It has been opened anew.
    pub fn mend_store(&mut self, node: NodeId) {
        self.seat_mut(node).is_broken = false;
    }
}

/// The model with everything happening at once, for the script that any log has to follow.
#[derive(Debug)]
pub struct ModelCluster {
    log: LogModel,
    cut: BTreeSet<NodeId>,
    broken: BTreeSet<NodeId>,
    rounds: Vec<(NodeId, RoundId)>,
}

impl ModelCluster {
    /// Of voters.
    pub fn new(initial: State, voters: &BTreeSet<NodeId>) -> Self {
        let log = LogModel::new(initial, voters, None);
        Self { log, cut: BTreeSet::new(), broken: BTreeSet::new(), rounds: Vec::new() }
    }

    fn reach(&self, from: NodeId) -> impl Fn(NodeId) -> bool + use<> {
        let cut = self.cut.clone();
        move |to| to == from || !(cut.contains(&to) || cut.contains(&from))
    }
}

impl TestLog for ModelCluster {
    fn propose(&mut self, node: NodeId, id: ProposalId, entry: Entry) {
        self.log.propose(node, id, entry, false);
        if self.broken.remove(&node) {
            self.log.break_store(node);
        }
    }

    fn confirm(&mut self, node: NodeId, round: RoundId) {
        self.log.begin_round(node, round);
        self.rounds.push((node, round));
    }

    fn elect(&mut self, node: NodeId) {
        let reach = self.reach(node);
        self.log.elect(node, 0, &reach);
    }

    fn cut(&mut self, node: NodeId) {
        self.cut.insert(node);
    }

    fn heal(&mut self, node: NodeId) {
        self.cut.remove(&node);
    }

    fn restart(&mut self, node: NodeId) {
        self.log.crash(node);
        self.log.restart(node);
    }

    fn snapshot(&mut self) {
        self.log.take_snapshot();
    }

    fn storage_error(&mut self, node: NodeId) {
        self.broken.insert(node);
    }

    fn settle(&mut self) -> Vec<(NodeId, LogEvent)> {
        let mut all = Vec::new();
        if let Some(leader) = self.log.leader() {
            let reach = self.reach(leader);
            self.log.commit(&reach);
        }
        for (node, round) in std::mem::take(&mut self.rounds) {
            let reach = self.reach(node);
            self.log.end_round(node, round, &reach);
        }
        let nodes: Vec<NodeId> = self.log.seats.keys().copied().collect();
        for node in nodes {
            self.log.mend_store(node);
            if !self.cut.contains(&node) {
                self.log.notice(node);
            }
            while let Some(event) = self.log.news(node) {
                all.push((node, event));
            }
            while let Some(event) =
                (!self.cut.contains(&node)).then(|| self.log.deliver(node)).flatten()
            {
                all.push((node, event));
            }
        }
        all
    }
}

impl LogModel {
    /// Begins anew, as a quorum's stores are lost: with this voter alone.
    #[must_use]
    pub fn recovered(&self, founder: NodeId) -> Self {
        Self::new(self.initial.clone(), &BTreeSet::from([founder]), self.mutant)
    }
}
