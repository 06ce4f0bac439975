//! Touching memory ahead: what a batch will need is read one level after the other over all of it,
//! so that misses overlap instead of adding up.

use super::Locks;
use super::cell::Place;
use super::record::{RecordIndex, Shape};
use super::slab::{Index as _, NIL};
use crate::event::LinkIndex;

/// What one operation of a batch will look at; nothing for a request without a key.
#[derive(Clone, Copy)]
pub(crate) struct Planned {
    pub(crate) place: Option<Place>,
    /// Its position among the thin holds of the link, if it is one.
    position: u32,
}

impl Planned {
    #[inline(always)]
    pub(crate) fn at(place: Option<Place>) -> Self {
        Self { place, position: NIL }
    }
}

impl Locks {
    /// Reads what applying will need, one level of memory after the other over the whole batch.
    /// The sum is only there so that the reads are not optimised away.
    pub(crate) fn touch(&self, link: LinkIndex, plan: &mut [Planned]) {
        let table = |place: &Place| &self.cells[place.cell.0 as usize].table;
        let mut sum = 0;
        for place in plan.iter().filter_map(|planned| planned.place) {
            sum += table(&place).len() as u32;
        }
        std::hint::black_box(sum);
        for place in plan.iter().filter_map(|planned| planned.place) {
            sum += u32::from(table(&place).may_have(place.tag));
        }
        std::hint::black_box(sum);
        for place in plan.iter_mut().filter_map(|planned| planned.place.as_mut()) {
            let guess = table(place).guess(place.tag);
            if place.guess == RecordIndex::NIL {
                place.guess = RecordIndex(guess);
            }
        }
        let mut held = 0;
        for planned in &mut *plan {
            let guess = planned.place.map_or(RecordIndex::NIL, |place| place.guess);
            if guess != RecordIndex::NIL {
                let record = self.records.get(guess);
                if matches!(record.shape(), Shape::Thin(thin) if thin.link == link) {
                    planned.position = record.position();
                    held += 1;
                }
            }
        }
        // Ending a thin hold puts the last of its link into its position.
        let thin = &self.holdings.get(link).thin;
        for back in 0..held {
            sum ^= thin.nth_last(back).map_or(NIL, |last| self.records.get(last).position());
        }
        for planned in plan.iter().filter(|planned| planned.position != NIL) {
            sum ^= thin.get(planned.position).0;
        }
        std::hint::black_box(sum);
    }
}
