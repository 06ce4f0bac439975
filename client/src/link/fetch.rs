//! The ring that the session asks for: of one worker at a time, over all of its links.

use crate::claims::LinkId;
use crate::router::{Ring, RingError, RingUnderWay};
use lockring_proto::RingChunk;
use std::collections::BTreeSet;

/// A ring that is wanted, or on its way.
#[derive(Default)]
pub(crate) struct Fetch {
    /// The newest version that a worker has told of, and by which link.
    wanted: u64,
    told_by: Option<LinkId>,
    /// Nobody who has told of a version up to this one had it.
    refused: u64,
    /// Of whom it is asked.
    asked: Option<LinkId>,
    /// Who was asked since it is wanted.
    tried: BTreeSet<LinkId>,
    under_way: RingUnderWay,
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
        }
    }

    /// Whether a ring of this version is still to be hoped for.
    pub(super) fn may_come(&self, version: u64) -> bool {
        version > self.refused
    }

    pub(crate) fn is_idle(&self) -> bool {
        self.asked.is_none()
    }

    pub(super) fn begins(&mut self, link: LinkId) {
        (self.asked, self.under_way) = (Some(link), RingUnderWay::default());
        self.tried.insert(link);
    }

    /// A part has come on a link.
    pub(super) fn comes(&mut self, link: LinkId, part: RingChunk, known: Option<&Ring>) {
        if self.asked != Some(link) {
            return;
        }
        if part.last {
            self.asked = None;
        }
        match self.under_way.take(part, known) {
            Ok(None) => {}
            Ok(Some(ring)) => self.come = Some(Ok(ring)),
            Err(error) => {
                // Whoever sends such a ring does so again.
                (self.refused, self.asked) = (self.wanted, None);
                self.come = Some(Err(error));
            }
        }
    }

    /// The worker at the end of a link has none.
    pub(super) fn is_refused(&mut self, link: LinkId) {
        if self.asked == Some(link) {
            self.asked = None;
        }
        if self.told_by == Some(link) {
            self.refused = self.refused.max(self.wanted);
        }
    }

    /// The connection of a link is gone.
    pub(super) fn down(&mut self, link: LinkId) {
        self.gives_up(link);
        self.tried.remove(&link);
        if self.told_by == Some(link) {
            self.refused = 0;
        }
    }

    /// The worker at the end of a link does not answer: others may.
    pub(crate) fn gives_up(&mut self, link: LinkId) {
        if self.asked == Some(link) {
            self.asked = None;
        }
    }

    /// What has come.
    pub(crate) fn take(&mut self) -> Option<Result<Ring, RingError>> {
        self.come.take()
    }

    /// Whom to ask next for a ring that is newer than the known one, of those who can be asked.
    pub(crate) fn next(&self, known: u64, who: impl Iterator<Item = LinkId>) -> Option<LinkId> {
        if self.asked.is_some() || self.wanted <= known.max(self.refused) {
            return None;
        }
        let untried = who.filter(|link| !self.tried.contains(link));
        untried.min_by_key(|&link| (self.told_by != Some(link), link))
    }
}
