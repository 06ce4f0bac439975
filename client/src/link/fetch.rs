//! The ring that the session asks for: of one worker at a time, over all of its links.

use crate::claims::LinkId;
use crate::router::{Ring, RingError, RingUnderWay};
use lockring_proto::{RingChunk, Time};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// A worker that was asked, and has not sent all of its answer.
struct Asked {
    /// Under which request: a late answer to another is none to this.
    id: u64,
    /// The version that was known then, and the one that was wanted.
    known: u64,
    wanted: u64,
    /// When it was asked, or the last part of its answer came.
    heard: Time,
    /// Others may be asked too. What it sends is welcome all the same.
    overdue: bool,
    under_way: RingUnderWay,
}

/// A ring that is wanted, or on its way.
#[derive(Default)]
pub(crate) struct Fetch {
    /// The newest version that a worker has told of, and by which link.
    wanted: u64,
    told_by: Option<LinkId>,
    /// Up to which version each worker has told of rings that it had not.
    refused: BTreeMap<LinkId, u64>,
    asked: BTreeMap<LinkId, Asked>,
    /// Who was asked since it is wanted, and has told of none since.
    tried: BTreeSet<LinkId>,
    /// What has come of it, once that is known.
    come: Option<Result<Ring, RingError>>,
}

impl Fetch {
    /// A worker has told of a version that is newer than the known one.
    pub(super) fn is_told(&mut self, version: u64, by: LinkId) {
        if version > self.wanted {
            self.tried.clear();
        }
        if version >= self.wanted {
            (self.wanted, self.told_by) = (version, Some(by));
            self.tried.remove(&by);
        }
    }

    /// Whether a ring of this version is still to be hoped for of the worker that tells of it.
    pub(super) fn may_come(&self, version: u64, by: LinkId) -> bool {
        version > self.refused(by)
    }

    /// Up to which version none is to be hoped for of this worker.
    pub(super) fn refused(&self, by: LinkId) -> u64 {
        self.refused.get(&by).copied().unwrap_or_default()
    }

    /// Whether nobody is asked whose answer is not overdue.
    pub(crate) fn is_idle(&self) -> bool {
        self.asked.values().all(|asked| asked.overdue)
    }

    /// Whether the worker at the end of a link owes an answer.
    pub(crate) fn is_asked(&self, link: LinkId) -> bool {
        self.asked.contains_key(&link)
    }

    /// A worker that owes none is asked, by whom `known` is the newest.
    pub(super) fn begins(&mut self, now: Time, (link, id): (LinkId, u64), known: u64) {
        let wanted = self.wanted;
        let under_way = RingUnderWay::default();
        let asked = Asked { id, known, wanted, heard: now, overdue: false, under_way };
        self.asked.insert(link, asked);
        self.tried.insert(link);
    }

    /// A part has come on a link. `true`: more are to come.
    pub(super) fn comes(
        &mut self,
        now: Time,
        (link, id): (LinkId, u64),
        part: RingChunk,
        known: Option<&Ring>,
    ) -> bool {
        let Some(asked) = self.asked.get_mut(&link).filter(|asked| asked.id == id) else {
            return false;
        };
        (asked.heard, asked.overdue) = (now, false);
        let (last, before, wanted) = (part.last, asked.known, asked.wanted);
        let taken = asked.under_way.take(part, known);
        if !last && taken.is_ok() {
            return true;
        }
        self.asked.remove(&link);
        match taken {
            Ok(Some(ring)) => self.come = Some(Ok(ring)),
            // It is what has changed of one that is not the newest any more: asked again, it says
            // what has changed of that.
            Ok(None) if known.is_some_and(|known| known.version().0 != before) => {
                self.tried.remove(&link);
            }
            Ok(None) => {}
            Err(error) => {
                // Whoever sends such a ring does so again.
                self.has_none(link, wanted);
                self.come = Some(Err(error));
            }
        }
        false
    }

    /// The worker at the end of a link has no newer one.
    pub(super) fn is_refused(&mut self, link: LinkId, id: u64) {
        if let Some(Asked { wanted, .. }) = self.asked.get(&link).filter(|asked| asked.id == id) {
            let wanted = *wanted;
            self.asked.remove(&link);
            self.has_none(link, wanted);
        }
    }

    /// Of what was told after the question the answer says nothing, and nothing of what others
    /// have: from now on what they tell of is wanted.
    fn has_none(&mut self, link: LinkId, wanted: u64) {
        if self.told_by == Some(link) {
            self.refused.insert(link, wanted.max(self.refused(link)));
            if self.wanted <= wanted {
                (self.wanted, self.told_by) = (0, None);
            }
        }
    }

    /// The connection of a link is gone.
    pub(super) fn down(&mut self, link: LinkId) {
        self.asked.remove(&link);
        self.tried.remove(&link);
        self.refused.remove(&link);
        if self.told_by == Some(link) {
            self.told_by = None;
        }
    }

    /// Whether the worker at the end of a link has sent nothing of a ring for so long that others
    /// may be asked.
    pub(super) fn is_overdue(&mut self, now: Time, link: LinkId, patience: Duration) -> bool {
        let Some(asked) = self.asked.get_mut(&link) else { return false };
        asked.overdue = now >= asked.heard.after(patience);
        asked.overdue
    }

    /// What has come.
    pub(crate) fn take(&mut self) -> Option<Result<Ring, RingError>> {
        self.come.take()
    }

    /// Whom to ask next for a ring that is newer than the known one, of those who can be asked.
    pub(crate) fn next(&self, known: u64, who: impl Iterator<Item = LinkId>) -> Option<LinkId> {
        if self.wanted <= known || !self.is_idle() {
            return None;
        }
        let untried = who.filter(|link| !self.tried.contains(link) && !self.is_asked(*link));
        untried.min_by_key(|&link| (self.told_by != Some(link), link))
    }
}
