//! Log lines that a peer can cause: each cause is told once a second at most, with a count of what
//! was left out, and without a raw byte of the peer's.

use lockring_proto::{Shown, Time};
use std::fmt;
use std::time::Duration;

const EVERY: Duration = Duration::from_secs(1);

/// How much of what a peer says is told.
const TOLD_CHARS: usize = 200;

/// What a log line is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// A handshake that failed, or was not finished in time.
    Handshake,
    /// An attempt that was not let in.
    Limited,
    /// A certificate that names nobody who may come in.
    Identity,
    /// A connection that broke the rules.
    Fault,
    /// A link that ended.
    Ended,
}

const CAUSES: usize = 5;

/// When each cause was told last, and what was left out since.
#[derive(Debug, Default)]
pub struct Rated {
    causes: [Option<(Time, u64)>; CAUSES],
}

impl Rated {
    /// How many lines of this cause were left out before this one; `None` if it is to be left out
    /// too.
    pub fn turn(&mut self, now: Time, cause: Cause) -> Option<u64> {
        let known = &mut self.causes[cause as usize];
        match known {
            Some((told, left_out)) if now.since(*told) < EVERY => {
                *left_out += 1;
                None
            }
            _ => Some(known.replace((now, 0)).map_or(0, |(_, left_out)| left_out)),
        }
    }
}

/// Text of a peer, or with such in it, as a log may have it: on one line, printable, and short.
pub fn told(text: &str) -> impl fmt::Display {
    match text.char_indices().nth(TOLD_CHARS) {
        Some((end, _)) => format!("{}\u{2026}", Shown(&text[..end])),
        None => Shown(text).to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cause_is_told_once_a_second_and_says_what_was_left_out() {
        let mut rated = Rated::default();
        let second = 1_000_000;
        assert_eq!(rated.turn(Time(5), Cause::Fault), Some(0));
        for micros in 6..1000 {
            assert_eq!(rated.turn(Time(micros), Cause::Fault), None);
        }
        assert_eq!(rated.turn(Time(7), Cause::Limited), Some(0), "another cause");
        assert_eq!(rated.turn(Time(second + 5), Cause::Fault), Some(994));
        assert_eq!(rated.turn(Time(3 * second), Cause::Fault), Some(0));
    }

    #[test]
    fn what_a_peer_says_is_one_printable_line() {
        let line = told("bye\n2026-01-01 ERROR forged \u{1b}[31m\0\u{202e}").to_string();
        assert!(!line.chars().any(char::is_control), "{line}");
        assert!(line.starts_with("bye\\x0a2026") && !line.contains('\u{202e}'), "{line}");
        let long = told(&"x".repeat(5000)).to_string();
        assert_eq!(long.chars().count(), TOLD_CHARS + 1);
    }
}
