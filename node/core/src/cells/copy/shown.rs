//! The copies of a worker as text, for a model that looks at all states.

use super::Copies;
use crate::locks::CellIndex;
use lockring_proto::Time;

impl Copies {
    /// All that these copies do by, as text.
    pub(crate) fn shown(&self) -> String {
        let Self { locks, cells, owners, links, shadows, namespaces, later, .. } = self;
        let mut shown =
            format!("{cells:?} {owners:?} {links:?} {shadows:?} {namespaces:?} {later:?}");
        for cell in (0..locks.layout().cells()).map(CellIndex) {
            shown += &format!(" {:?}", locks.last(cell));
            locks.rebuild(cell, Time(0), |tag, op| shown += &format!(" {tag} {op:?}"));
        }
        shown
    }
}
