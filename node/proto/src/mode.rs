//! The modes of locks: their names, and which go together. One more is one more row.

use bincode::{Decode, Encode};

/// How a lock is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode)]
pub enum Mode {
    /// Alone (the DLM's EX).
    Exclusive,
    /// Together with other shared holders (the DLM's PR).
    Shared,
}

/// What there is to say of a mode.
struct Row {
    mode: Mode,
    name: &'static str,
    letter: char,
    /// Those that others may hold meanwhile.
    beside: &'static [Mode],
}

/// In the order of the modes.
const ROWS: [Row; Mode::COUNT] = [
    Row { mode: Mode::Exclusive, name: "exclusive", letter: 'X', beside: &[] },
    Row { mode: Mode::Shared, name: "shared", letter: 'S', beside: &[Mode::Shared] },
];

impl Mode {
    /// How many there are.
    pub const COUNT: usize = 2;

    /// All of them.
    pub fn all() -> impl Iterator<Item = Self> {
        ROWS.iter().map(|row| row.mode)
    }

    /// The mode that the codec writes so.
    #[inline(always)]
    pub(crate) fn of_tag(tag: u8) -> Option<Self> {
        ROWS.get(usize::from(tag)).map(|row| row.mode)
    }

    fn row(self) -> &'static Row {
        &ROWS[self as usize]
    }

    /// Its name, for people and programs.
    pub fn name(self) -> &'static str {
        self.row().name
    }

    /// Its name where there is no room for that.
    pub fn letter(self) -> char {
        self.row().letter
    }

    /// Whether it can be held while another holds `other`.
    pub fn fits_beside(self, other: Self) -> bool {
        self.row().beside.contains(&other)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_is_that_of_its_mode() {
        assert!(Mode::all().enumerate().all(|(at, mode)| mode as usize == at));
    }

    #[test]
    fn whoever_fits_beside_another_is_fitted_beside() {
        for (one, other) in Mode::all().flat_map(|one| Mode::all().map(move |it| (one, it))) {
            assert_eq!(one.fits_beside(other), other.fits_beside(one), "{one:?} and {other:?}");
        }
        assert!(Mode::Shared.fits_beside(Mode::Shared));
        assert!(Mode::all().all(|mode| !Mode::Exclusive.fits_beside(mode)));
    }
}
