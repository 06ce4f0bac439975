//! Since when something waits for a copy that does not say anything.

use crate::locks::CellIndex;
use lockring_proto::Time;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// A copy that has acknowledged nothing for so long is silent, and is said to be so again each time
/// that this has passed.
const SILENT_AFTER: Duration = Duration::from_millis(500);

/// What waited on a lane at the last look, and since when.
#[derive(Clone, Debug, Default)]
pub(super) struct Seen {
    /// The first frame that was not acknowledged.
    frame: Option<(u64, Time)>,
    /// Cells whose copy did not follow.
    astray: BTreeMap<CellIndex, Time>,
}

fn is_long(now: Time, since: Time) -> bool {
    now.since(since) >= SILENT_AFTER
}

impl Seen {
    /// Whether the first frame that is not acknowledged has been that for long.
    pub(super) fn is_frame_old(&mut self, now: Time, first: Option<u64>) -> bool {
        let before = self.frame.filter(|&(number, _)| Some(number) == first);
        let is_old = before.is_some_and(|(_, since)| is_long(now, since));
        let since = before.filter(|_| !is_old).map_or(now, |(_, since)| since);
        self.frame = first.map(|number| (number, since));
        is_old
    }

    /// Those of the cells astray that have been so for long.
    pub(super) fn long_astray(
        &mut self,
        now: Time,
        astray: &BTreeSet<CellIndex>,
    ) -> Vec<CellIndex> {
        self.astray.retain(|cell, _| astray.contains(cell));
        let is_old = |&cell: &CellIndex| {
            let since = self.astray.entry(cell).or_insert(now);
            let is_old = is_long(now, *since);
            if is_old {
                *since = now;
            }
            is_old
        };
        astray.iter().copied().filter(is_old).collect()
    }
}
