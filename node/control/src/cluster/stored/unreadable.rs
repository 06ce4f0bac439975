//! What is wrong with bytes.

use std::fmt;

/// The format that this program writes.
pub(super) const FORMAT: u8 = 1;

/// Why bytes say nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unreadable {
    /// They are not as they were written: cut short, or changed since.
    Garbled,
    /// A later version of the program has written them, in this format.
    Format(u8),
    /// They are whole, and say what cannot be.
    Unsound(&'static str),
}

impl fmt::Display for Unreadable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Garbled => f.write_str("it is cut short or changed since it was written"),
            Self::Format(format) => write!(
                f,
                "it has the format {format}, and this program knows {FORMAT}: a later version has \
                 written it"
            ),
            Self::Unsound(what) => write!(f, "it says what cannot be: {what}"),
        }
    }
}

impl std::error::Error for Unreadable {}
