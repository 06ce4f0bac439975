//! Redis replies, parsed in place from whatever has arrived.

use crate::protocol::Broken;

/// A reply; longer kinds (arrays, maps) answer nothing that is asked here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reply<'a> {
    Simple(&'a [u8]),
    Error(&'a [u8]),
    Integer(i64),
    Bulk(&'a [u8]),
    Nil,
}

/// The first reply in `bytes` and its length, or none if it is not complete.
#[inline]
pub(super) fn parse(bytes: &[u8]) -> Result<Option<(Reply<'_>, usize)>, Broken> {
    let Some(end) = bytes.iter().position(|&byte| byte == b'\n') else {
        return match bytes.len() {
            0..=LINE_MAX => Ok(None),
            _ => Err(broken(bytes)),
        };
    };
    let line = bytes[..end].strip_suffix(b"\r").ok_or_else(|| broken(bytes))?;
    let (&kind, rest) = line.split_first().ok_or_else(|| broken(bytes))?;
    let after = end + 1;
    let reply = match kind {
        b'+' => Reply::Simple(rest),
        b'-' => Reply::Error(rest),
        b':' => Reply::Integer(number(rest).ok_or_else(|| broken(bytes))?),
        b'$' => match number(rest) {
            Some(-1) => Reply::Nil,
            Some(len @ 0..=BULK_MAX) => return bulk(bytes, after, len as usize),
            _ => return Err(broken(bytes)),
        },
        _ => return Err(broken(bytes)),
    };
    Ok(Some((reply, after)))
}

/// Longer lines than any error of a server.
const LINE_MAX: usize = 64 * 1024;
/// Longer values than any that is asked for.
const BULK_MAX: i64 = 64 * 1024;

fn bulk(bytes: &[u8], start: usize, len: usize) -> Result<Option<(Reply<'_>, usize)>, Broken> {
    let end = start + len;
    match bytes.get(end..end + 2) {
        None => Ok(None),
        Some(b"\r\n") => Ok(Some((Reply::Bulk(&bytes[start..end]), end + 2))),
        Some(_) => Err(broken(bytes)),
    }
}

fn number(digits: &[u8]) -> Option<i64> {
    std::str::from_utf8(digits).ok()?.parse().ok()
}

#[cold]
fn broken(bytes: &[u8]) -> Broken {
    let shown = &bytes[..bytes.len().min(40)];
    Broken(format!("\"{}\" is not an answer of Redis", String::from_utf8_lossy(shown)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_parses_once_complete() {
        let cases: [(&[u8], Reply<'_>); 7] = [
            (b"+OK\r\n", Reply::Simple(b"OK")),
            (b"-ERR no\r\n", Reply::Error(b"ERR no")),
            (b":1\r\n", Reply::Integer(1)),
            (b":-7\r\n", Reply::Integer(-7)),
            (b"$-1\r\n", Reply::Nil),
            (b"$0\r\n\r\n", Reply::Bulk(b"")),
            (b"$4\r\na\r\nb\r\n", Reply::Bulk(b"a\r\nb")),
        ];
        for (bytes, reply) in cases {
            for cut in 0..bytes.len() {
                assert_eq!(parse(&bytes[..cut]), Ok(None), "{cut} of {bytes:?}");
            }
            let followed = [bytes, b"+more"].concat();
            assert_eq!(parse(&followed), Ok(Some((reply, bytes.len()))));
        }
    }

    #[test]
    fn what_is_no_answer_is_refused() {
        let long = vec![b'+'; LINE_MAX + 1];
        let cases: [&[u8]; 9] = [
            b"\r\n",
            b"\n",
            b"+OK\n",
            b"HTTP/1.1 400 Bad Request\r\n",
            b":x\r\n",
            b"$-2\r\n",
            b"$99999999999\r\n",
            b"$1\r\nabc",
            &long,
        ];
        for bytes in cases {
            assert!(parse(bytes).is_err(), "{bytes:?}");
        }
    }
}
