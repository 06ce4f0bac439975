//! Frames: a length, then a body in the codec's `standard` configuration. The only user of the
//! codec library, always with a limit: without one, sixteen hostile bytes can ask for a terabyte.
//!
//! The length is itself a varint of the codec: one byte below 251, else `251` and two bytes, else
//! `252` and four. We write the shortest form; a body has at most [`FRAME_BYTES_MAX`] bytes.

use crate::common::{Head, Message, ROOM};
use crate::common::{U16 as LONG_U16, U32 as LONG_U32};
use crate::limits::{DECODE_BYTES_MAX, FRAME_BYTES_MAX};
use bincode::config::{Configuration, Limit, LittleEndian, Varint};
use bincode::enc::write::Writer;
use bincode::error::EncodeError;
use bincode::{BorrowDecode, Encode};

const CONFIG: Configuration<LittleEndian, Varint, Limit<DECODE_BYTES_MAX>> =
    bincode::config::standard().with_limit::<DECODE_BYTES_MAX>();

/// The body of a frame and the bytes after it. `None`: not all of the frame is here.
pub type Split<'a> = Option<(&'a [u8], &'a [u8])>;

/// Bytes that are not a frame of this wire. The connection cannot go on.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// The length is above the cap.
    #[error("a frame of {0} bytes is above the cap of {cap}", cap = FRAME_BYTES_MAX)]
    TooLong(u64),
    /// The length is in a form that no legal length takes.
    #[error("the length of a frame begins with the illegal byte {0}")]
    BadLength(u8),
    /// The body does not decode.
    #[error("a frame of {len} bytes does not decode: {cause}")]
    Malformed {
        /// Length of the body.
        len: usize,
        /// What the codec says.
        cause: String,
    },
    /// The body has bytes past its value.
    #[error("a frame of {len} bytes has {extra} bytes past its value")]
    Trailing {
        /// Length of the body.
        len: usize,
        /// Bytes past the value.
        extra: usize,
    },
}

/// Appends to a growing buffer.
struct Append<'a>(&'a mut Vec<u8>);

impl Writer for Append<'_> {
    #[inline]
    fn write(&mut self, bytes: &[u8]) -> Result<(), EncodeError> {
        self.0.extend_from_slice(bytes);
        Ok(())
    }
}

/// Appends one frame to `out`.
///
/// # Panics
/// When the body is above the cap: whoever builds a frame keeps it within.
#[inline]
pub fn encode_frame<'a, T: Message<'a>>(message: &T, out: &mut Vec<u8>) {
    let start = out.len();
    out.extend_from_slice(&[0; ROOM]);
    let room = out.last_chunk_mut().expect("it was just added");
    let mut head = Head { room, len: 1 };
    if let Some(key) = message.put_common(&mut head) {
        let end = head.len;
        let len = end - 1 + key.len();
        if len < LONG_U16 as usize {
            room[0] = len as u8;
            out.truncate(start + end);
            return out.extend_from_slice(key);
        }
    }
    encode_any_frame(message, start, out);
}

/// Builds a body in the room at `start`, without looking for more byte by byte, if it fits.
fn encode_any_frame<T: Encode>(message: &T, start: usize, out: &mut Vec<u8>) {
    match bincode::encode_into_slice(message, &mut out[start + 1..], CONFIG) {
        Ok(len) => {
            out[start] = len as u8;
            out.truncate(start + 1 + len);
        }
        Err(_) => encode_long_frame(message, start, out),
    }
}

#[cold]
fn encode_long_frame<T: Encode>(message: &T, start: usize, out: &mut Vec<u8>) {
    out.truncate(start + 1);
    bincode::encode_into_writer(message, Append(out), CONFIG).expect("appending cannot fail");
    let len = out.len() - start - 1;
    if len < LONG_U16 as usize {
        out[start] = len as u8;
    } else {
        lengthen(out, start, len);
    }
}

/// Rewrites the one-byte length at `start` in its long form.
#[cold]
fn lengthen(out: &mut Vec<u8>, start: usize, len: usize) {
    assert!(len <= FRAME_BYTES_MAX, "built a frame of {len} bytes");
    let mut prefix = [LONG_U16, 0, 0, 0, 0];
    let prefix = if let Ok(short) = u16::try_from(len) {
        prefix[1..3].copy_from_slice(&short.to_le_bytes());
        &prefix[..3]
    } else {
        prefix[0] = LONG_U32;
        prefix[1..5].copy_from_slice(&(len as u32).to_le_bytes());
        &prefix[..5]
    };
    out.splice(start..=start, prefix.iter().copied());
}

/// Splits the first frame off `bytes`.
///
/// # Errors
/// When the length is illegal or above the cap.
#[inline]
pub fn split_frame(bytes: &[u8]) -> Result<Split<'_>, FrameError> {
    let Some((&first, rest)) = bytes.split_first() else {
        return Ok(None);
    };
    if first < LONG_U16 {
        return Ok(rest.split_at_checked(first as usize));
    }
    split_long(first, rest)
}

#[cold]
fn split_long(first: u8, rest: &[u8]) -> Result<Split<'_>, FrameError> {
    let (len, rest) = match first {
        LONG_U16 => match rest.split_first_chunk::<2>() {
            Some((bytes, rest)) => (u64::from(u16::from_le_bytes(*bytes)), rest),
            None => return Ok(None),
        },
        LONG_U32 => match rest.split_first_chunk::<4>() {
            Some((bytes, rest)) => (u64::from(u32::from_le_bytes(*bytes)), rest),
            None => return Ok(None),
        },
        _ => return Err(FrameError::BadLength(first)),
    };
    if len > FRAME_BYTES_MAX as u64 {
        return Err(FrameError::TooLong(len));
    }
    Ok(rest.split_at_checked(len as usize))
}

/// Decodes every whole frame of `bytes` in turn and gives it to `sink`; returns the bytes after
/// the last. The way of the hot path: where `sink` stores the value is where it is built.
///
/// # Errors
/// At the first frame that is none. Those before it have been given.
#[inline]
pub fn decode_frames<'a, T: Message<'a>>(
    bytes: &'a [u8],
    sink: impl FnMut(T),
) -> Result<&'a [u8], FrameError> {
    decode_up_to(usize::MAX, bytes, sink)
}

/// [`decode_frames`] that stops after a number of frames: what would not be served is not decoded.
///
/// # Errors
/// As [`decode_frames`].
#[inline]
pub fn decode_up_to<'a, T: Message<'a>>(
    most: usize,
    mut bytes: &'a [u8],
    mut sink: impl FnMut(T),
) -> Result<&'a [u8], FrameError> {
    for _ in 0..most {
        let Some((body, after)) = split_frame(bytes)? else { break };
        if !T::take_common(body, &mut sink) {
            sink(decode_uncommon(body)?);
        }
        bytes = after;
    }
    Ok(bytes)
}

/// Apart, so that the loop around the common frames stays small.
#[inline(never)]
fn decode_uncommon<'a, T: Message<'a>>(body: &'a [u8]) -> Result<T, FrameError> {
    decode_frame(body)
}

/// Decodes the body of a frame, always by the codec; the value borrows from it.
///
/// # Errors
/// When the body is not exactly one value.
#[inline]
pub fn decode_frame<'a, T: BorrowDecode<'a, ()>>(body: &'a [u8]) -> Result<T, FrameError> {
    match bincode::borrow_decode_from_slice(body, CONFIG) {
        Ok((value, used)) if used == body.len() => Ok(value),
        Ok((_, used)) => Err(FrameError::Trailing { len: body.len(), extra: body.len() - used }),
        Err(cause) => Err(FrameError::Malformed { len: body.len(), cause: cause.to_string() }),
    }
}
