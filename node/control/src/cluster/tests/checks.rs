//! What is looked at while the simulation runs: whatever a client could notice of a control plane
//! that is wrong.

use super::host::Host;
use crate::cluster::*;
use crate::testing::{Rules, Seen};
use lockring_proto::Time;
use lockring_proto::limits::{BELIEF_MARGIN as UNCOUNTED, NODE_LEASE};
use lockring_ring::{AttachId, CellId, Epoch, NodeId};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// A client's session with something held in a cell.
#[derive(Clone, Debug)]
pub struct Session {
    pub cell: CellId,
    pub ttl: Duration,
    /// The client believes in its hold until then.
    pub until: Time,
    /// In which epoch it was last confirmed.
    pub epoch: Epoch,
    /// It goes on asking until then.
    pub ends: Time,
    pub next: Time,
    /// Its client hears of no other owner.
    pub is_cut_off: bool,
}

/// How an epoch of a cell began.
#[derive(Clone, Copy, Debug)]
struct Beginning {
    at: Time,
    owner: Life,
    taken_over: bool,
}

/// Everything that is looked at.
#[derive(Debug)]
pub struct Checks {
    pub rules: Rules,
    /// What owners' workers really found to be synced.
    pub synced: BTreeSet<(CellId, AttachId)>,
    begun: BTreeMap<(CellId, Epoch), Beginning>,
    pub sessions: Vec<Session>,
    broken: Option<String>,
}

impl Checks {
    pub fn new(state: State) -> Self {
        Self {
            rules: Rules::new(state),
            synced: BTreeSet::new(),
            begun: BTreeMap::new(),
            sessions: Vec::new(),
            broken: None,
        }
    }

    pub fn seen(&mut self) -> &mut Seen {
        &mut self.rules.seen
    }

    pub fn count(&mut self, what: &'static str) {
        self.rules.count(what);
    }

    /// The first thing that was wrong.
    pub fn broken(&mut self) -> Option<String> {
        self.broken.take()
    }

    pub fn ensure(&mut self, holds: bool, what: impl FnOnce() -> String) {
        if !holds && self.broken.is_none() {
            self.broken = Some(what());
        }
    }

    /// A log begins anew: nothing of the earlier one may come again.
    pub fn log_begins_anew(&mut self, state: State) {
        let seen = std::mem::take(&mut self.rules.seen);
        self.rules = Rules::new(state);
        self.rules.seen = seen;
    }

    /// An entry is committed.
    pub fn committed(
        &mut self,
        now: Time,
        index: Index,
        entry: &Entry,
        hosts: &BTreeMap<NodeId, Host>,
    ) {
        let applied = match self.rules.apply(index, entry) {
            Ok(applied) => applied,
            Err(what) => return self.ensure(false, || what),
        };
        let state = self.rules.state().clone();
        for (id, before) in &applied.before {
            let Some(cell) = state.cell(*id) else { continue };
            let entered = cell
                .backups
                .iter()
                .filter(|backup| !before.backups.contains(backup) && before.owner != **backup);
            for backup in entered {
                let is_true = self.synced.contains(&(*id, backup.attach));
                self.ensure(is_true, || format!("{id}: {backup:?} was never synced: {entry:?}"));
            }
            if cell.epoch > before.epoch {
                let taken_over = before.loss.is_some();
                let owner = Life { node: cell.owner.node, boot: cell.owner.boot };
                self.begun.insert((*id, cell.epoch), Beginning { at: now, owner, taken_over });
            }
            if before.grace.is_some() && cell.grace.is_none() {
                self.opens(now, *id, cell.epoch);
            }
        }
        self.stale_owners(now, hosts);
    }

    /// A grace is over: whoever has not claimed its holds since the cell was lost, so that nobody
    /// has them in memory, does not believe in them any more.
    fn opens(&mut self, now: Time, id: CellId, epoch: Epoch) {
        let is_lost = |since: Epoch| {
            let later = (since.0 + 1..=epoch.0).map(Epoch);
            let mut begun = later.filter_map(|later| self.begun.get(&(id, later)));
            begun.any(|begun| begun.taken_over)
        };
        let believer = |session: &&Session| {
            session.cell == id && session.until > now && is_lost(session.epoch)
        };
        let found = self.sessions.iter().find(believer).cloned();
        self.ensure(found.is_none(), || format!("{id} opens, but {found:?} at {now}"));
    }

    /// An owner that the log has deposed may answer for T at most, so that its successor knows for
    /// how long it has to honour what clients believe; and not at all once its cell was taken over.
    pub fn stale_owners(&mut self, now: Time, hosts: &BTreeMap<NodeId, Host>) {
        let all = hosts.values().flat_map(|host| host.running(now).map(move |it| (host, it)));
        for (host, process) in all {
            if !process.has_lease(host.shown(now)) {
                continue;
            }
            for (id, is, _) in process.served() {
                // The same process in a later epoch has lost nothing.
                let later = (is.epoch.0 + 1..).map(|epoch| self.begun.get(&(id, Epoch(epoch))));
                let mut begun = later.map_while(Option::<&Beginning>::copied);
                let Some(begun) = begun.find(|begun| begun.owner != process.life) else {
                    continue;
                };
                *self.rules.seen.entry("stale owner").or_default() += 1;
                let is_late = now.since(begun.at) > NODE_LEASE;
                if (is_late || begun.taken_over) && self.broken.is_none() {
                    let life = process.life;
                    self.broken = Some(format!("{life:?} answers for {id} at {now}: {begun:?}"));
                }
            }
        }
    }

    /// Sessions live on as owners confirm them, and workers have their TTLs.
    pub fn sessions(&mut self, now: Time, hosts: &mut BTreeMap<NodeId, Host>) {
        let longest = self.rules.state().longest().ttl;
        for session in &mut self.sessions {
            if now >= session.next && now < session.ends {
                session.next = now.after(session.ttl / 3);
                confirm(now, session, hosts);
            }
        }
        self.sessions.retain(|session| session.until > now);
        for session in &self.sessions {
            for host in hosts.values_mut() {
                let shown = host.clock.show(now);
                let Some(process) = &mut host.process else { continue };
                let count = process.workers.len();
                let worker = &mut process.workers[usize::from(session.cell.0) % count];
                if worker.cells.contains_key(&session.cell) {
                    worker.ttls.insert(session.ttl, shown);
                }
            }
        }
        // A log that begins anew has nothing before its first entry.
        let is_begun = self.rules.state().cells().next().is_some();
        let above = |session: &&Session| is_begun && session.ttl > longest;
        let found = self.sessions.iter().find(above).cloned();
        self.ensure(found.is_none(), || format!("{found:?} above {longest:?} at {now}"));
    }
}

/// Whoever would answer for the cell confirms the session, the stalest owner first: its client
/// knows no better.
fn confirm(now: Time, session: &mut Session, hosts: &BTreeMap<NodeId, Host>) {
    let all = hosts.values().flat_map(|host| host.running(now).map(move |it| (host, it)));
    let answers = all.filter_map(|(host, process)| {
        let epoch = process.serves(session.cell)?;
        process.has_lease(host.shown(now)).then_some(epoch)
    });
    let known = answers.filter(|epoch| match session.is_cut_off {
        true => *epoch == session.epoch,
        false => *epoch >= session.epoch,
    });
    if let Some(epoch) = known.min() {
        session.epoch = epoch;
        session.until = session.until.max(now.after(session.ttl - UNCOUNTED));
    }
}
