//! The copies of a worker for those who test them: as text, for a model that looks at all states,
//! and what should not be among them.

use super::{Copies, Shadow};
use crate::locks::CellIndex;
use lockring_proto::Time;

impl Copies {
    /// All that these copies do by, as text.
    pub(crate) fn shown(&self) -> String {
        let Self { locks, cells, owners, links, shadows, namespaces, later, heard, .. } = self;
        let mut shown = format!(
            "{cells:?} {owners:?} {links:?} {shadows:?} {namespaces:?} {later:?} {heard:?}"
        );
        for cell in (0..locks.layout().cells()).map(CellIndex) {
            shown += &format!(" {:?}", locks.last(cell));
            locks.rebuild(cell, Time(0), |tag, op| shown += &format!(" {tag} {op:?}"));
        }
        shown
    }

    /// Links that nothing is left of and nobody will name, though they are still here.
    pub(crate) fn leftover(&self) -> Option<&Shadow> {
        let is_unused = |link| {
            let used = self.locks.used_by(link);
            used.holds == 0 && used.waiters == 0
        };
        let left = |link, shadow: &Shadow| {
            (shadow.gone || !self.owners.contains_key(&shadow.called.by)) && is_unused(link)
        };
        self.shadows.iter().find(|&(&link, shadow)| left(link, shadow)).map(|(_, shadow)| shadow)
    }

    pub(crate) fn heard_count(&self) -> usize {
        self.heard.len()
    }

    pub(crate) fn link_count(&self) -> usize {
        self.shadows.len()
    }
}
