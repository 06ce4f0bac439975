//! The role of a worker for a cell, and its transitions.
//!
//! ```text
//! Serving -- recover(opens_at) --> Recovering -- serve() --> Serving
//! Recovering -- recover_longer(until) --> Recovering
//! Serving, Recovering -- leave() --> None -- enter() --> Serving
//! ```
//! Whatever is not served has a standing that lets no request through, so that only those who are
//! stopped there ask for the role.

use super::standing::Standing;
use crate::locks::{CellIndex, Place};
use lockring_proto::Time;
use lockring_ring::{AttachId, CellId, Epoch, RingVersion};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// What a worker is for a cell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    /// Nothing: another worker, or another node, has it.
    None,
    /// It grants.
    Serving,
    /// It grants nothing before this, as holds of an earlier life may still be believed in.
    Recovering { opens_at: Time },
}

/// What a cell recovers from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Recovery {
    /// An earlier life of this process's node, as nobody else needs to know.
    Restart,
    /// A takeover: the log is to be told when it is over.
    Takeover,
}

/// A cell that is not served.
#[derive(Clone, Copy, Debug)]
struct Withheld {
    /// When it opens, and what it recovers from, if it does.
    opens: Option<(Time, Recovery)>,
    /// The ring version that made its epoch.
    since: RingVersion,
}

/// The roles of a worker's cells.
#[derive(Clone, Debug, Default)]
pub(crate) struct Cells {
    /// All others are served.
    withheld: BTreeMap<CellIndex, Withheld>,
    /// Those that recover, by when they open.
    opening: BTreeSet<(Time, CellIndex)>,
    /// How many of them were taken over.
    takeovers: u32,
    /// Cells whose epoch was asked to be raised.
    wanted: BTreeSet<CellIndex>,
    /// Those among them for which that is still to be said.
    unsaid: Vec<CellId>,
    /// This worker's attachment to each cell that it has had from the cluster's log.
    attached: BTreeMap<CellIndex, AttachId>,
}

impl Cells {
    pub(crate) fn role(&self, cell: CellIndex) -> Role {
        match self.withheld.get(&cell) {
            Some(&Withheld { opens: Some((opens_at, _)), .. }) => Role::Recovering { opens_at },
            Some(Withheld { opens: None, .. }) => Role::None,
            None => Role::Serving,
        }
    }

    /// Whether any is another's, or nobody's: so it is at every worker of a cluster of several
    /// nodes. A worker is not told which of the cells that it has no part in are lost.
    pub(crate) fn some_are_away(&self) -> bool {
        self.withheld.len() > self.opening.len()
    }

    /// The role for the cell of a key.
    pub(crate) fn role_at(&self, place: Option<Place>) -> Role {
        place.map_or(Role::None, |place| self.role(place.cell))
    }

    /// A cell of another is served from now on.
    pub(crate) fn enter(
        &mut self,
        cell: CellIndex,
        standing: &mut Standing,
        (epoch, attach): (Epoch, AttachId),
        since: RingVersion,
    ) {
        self.attached.insert(cell, attach);
        let before = self.withheld.remove(&cell);
        assert!(before.is_some_and(|it| it.opens.is_none()), "{cell:?} is served");
        if epoch > standing.epoch() {
            standing.raise(epoch);
        }
        standing.serve(since);
    }

    /// A served cell recovers.
    pub(crate) fn recover(
        &mut self,
        cell: CellIndex,
        standing: &mut Standing,
        (opens_at, from): (Time, Recovery),
    ) {
        self.withhold(cell, standing, Some((opens_at, from)));
        self.opening.insert((opens_at, cell));
        self.takeovers += u32::from(from == Recovery::Takeover);
    }

    /// A cell that recovers does so until then, too.
    pub(crate) fn recover_longer(&mut self, cell: CellIndex, until: Time) {
        let withheld = self.withheld.get_mut(&cell).expect("it is not served");
        let (opens_at, _) = withheld.opens.as_mut().expect("it recovers");
        self.opening.remove(&(*opens_at, cell));
        *opens_at = until.max(*opens_at);
        self.opening.insert((*opens_at, cell));
    }

    /// A cell is another node's.
    pub(crate) fn leave(&mut self, cell: CellIndex, standing: &mut Standing) {
        if let Role::Recovering { .. } = self.role(cell) {
            self.serve(cell, standing);
        }
        self.wanted.remove(&cell);
        self.attached.remove(&cell);
        self.withhold(cell, standing, None);
    }

    fn withhold(
        &mut self,
        cell: CellIndex,
        standing: &mut Standing,
        opens: Option<(Time, Recovery)>,
    ) {
        let since = standing.withhold();
        let before = self.withheld.insert(cell, Withheld { opens, since });
        assert!(before.is_none(), "{cell:?} is not served");
    }

    /// A cell that recovered is served from now on; what it has recovered from.
    pub(crate) fn serve(&mut self, cell: CellIndex, standing: &mut Standing) -> Recovery {
        let Withheld { opens, since } = self.withheld.remove(&cell).expect("it is not served");
        let (opens_at, from) = opens.expect("it recovers");
        self.opening.remove(&(opens_at, cell));
        self.takeovers -= u32::from(from == Recovery::Takeover);
        standing.serve(since);
        from
    }

    /// The ring version that made the epoch of a cell.
    pub(crate) fn since(&self, cell: CellIndex, standing: &Standing) -> RingVersion {
        self.withheld.get(&cell).map_or_else(|| standing.since(), |withheld| withheld.since)
    }

    /// A cell has a new epoch, if this is one.
    pub(crate) fn raise(
        &mut self,
        cell: CellIndex,
        standing: &mut Standing,
        epoch: Epoch,
        version: RingVersion,
    ) -> bool {
        if epoch <= standing.epoch() {
            return false;
        }
        standing.raise(epoch);
        match self.withheld.get_mut(&cell) {
            Some(withheld) => withheld.since = version,
            None => standing.serve(version),
        }
        self.wanted.remove(&cell);
        true
    }

    /// By which attachment this worker has a cell.
    pub(crate) fn attach(&self, cell: CellIndex) -> Option<AttachId> {
        self.attached.get(&cell).copied()
    }

    /// How long nothing is granted in a cell yet.
    pub(crate) fn grace_left(&self, cell: CellIndex, now: Time) -> Option<Duration> {
        match self.role(cell) {
            Role::Recovering { opens_at } if now < opens_at => Some(opens_at.since(now)),
            _ => None,
        }
    }

    /// Whether somebody is to be told when a cell opens.
    pub(crate) fn tell_of_opening(&self) -> bool {
        self.takeovers > 0
    }

    /// When the next cell, and the last, may open.
    pub(crate) fn opens_at(&self) -> Option<(Time, Time)> {
        Some((self.opening.first()?.0, self.opening.last()?.0))
    }

    /// A cell that recovers and may open.
    pub(crate) fn due(&self, now: Time) -> Option<CellIndex> {
        self.opening.first().filter(|&&(opens_at, _)| opens_at <= now).map(|&(_, cell)| cell)
    }

    /// A cell's epoch is half used up: another is wanted, and asked for once.
    #[cold]
    pub(crate) fn want(&mut self, cell: CellIndex, id: CellId) {
        if self.wanted.insert(cell) {
            self.unsaid.push(id);
        }
    }

    #[cfg(any(test, feature = "testing"))]
    pub(crate) fn is_wanted(&self, cell: CellIndex) -> bool {
        self.wanted.contains(&cell)
    }

    /// Cells whose next epoch is still to be asked for.
    #[inline]
    pub(crate) fn unsaid(&mut self) -> impl Iterator<Item = CellId> + '_ {
        self.unsaid.drain(..)
    }
}
