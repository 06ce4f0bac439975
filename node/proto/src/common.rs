//! The frames that nearly all traffic consists of, written and read without the codec's general
//! machinery, which costs two to four times as much: claims of its limit field by field, and
//! values moved through its results.
//!
//! The codec stays the authority. A frame that is not exactly of a common shape goes to it, and
//! the tests hold both ways to the same bytes and the same values, over arbitrary messages and over
//! arbitrary bytes.

use crate::{Claim, Fence, Hello, HelloReply, Mode, Operation, Push, Reply, Request, Wait};
use bincode::{BorrowDecode, Encode};

/// Room for the head of a frame, which is all but the bytes of its key: the length, the tag, and
/// what an acquire has, together 40 bytes. Bodies of other frames are built in the same room.
pub(crate) const ROOM: usize = 64;

/// First bytes of the codec's varints of two, four and eight bytes; smaller ones are the value.
pub(crate) const U16: u8 = 251;
pub(crate) const U32: u8 = 252;
const U64: u8 = 253;

/// What travels as a frame of its own: [`Hello`], [`HelloReply`], [`Request`], [`Reply`] and
/// [`Push`].
///
/// The methods are for the codec and the tests; [`crate::codec`] is what to call. They are inlined
/// by force: a value that is built elsewhere is stored in parts and moved in wide pieces, which
/// the processor cannot forward, and the wait is longer than all of the decoding.
pub trait Message<'a>: Encode + BorrowDecode<'a, ()> {
    /// Writes a common message but for the bytes of its key, which it returns. `None`: it is none,
    /// and what stands in the head is void.
    #[inline(always)]
    fn put_common(&self, _head: &mut Head<'_>) -> Option<&[u8]> {
        None
    }

    /// Reads a common message and gives it to `sink`. False: it is none, and nothing was given.
    #[inline(always)]
    fn take_common(_body: &'a [u8], _sink: &mut impl FnMut(Self)) -> bool {
        false
    }
}

impl<'a> Message<'a> for Hello<'a> {}
impl Message<'_> for HelloReply {}
impl Message<'_> for Push {}

impl<'a> Message<'a> for Request<'a> {
    #[inline(always)]
    fn put_common(&self, head: &mut Head<'_>) -> Option<&[u8]> {
        let Self::Keyed { id, version, operation, key } = *self else { return None };
        head.byte(tag::KEYED);
        head.varint(id);
        head.varint(version);
        match operation {
            Operation::Acquire { claim, wait } => {
                head.byte(tag::ACQUIRE);
                match claim {
                    Claim::Mode(mode) => {
                        head.byte(tag::MODE);
                        head.byte(mode as u8);
                    }
                    Claim::Permits { .. } => return None,
                }
                match wait {
                    Wait::No => head.byte(tag::NO),
                    Wait::Forever => head.byte(tag::FOREVER),
                    Wait::Millis(millis) => {
                        head.byte(tag::MILLIS);
                        head.varint(millis);
                    }
                }
            }
            Operation::Release { fence } => {
                head.byte(tag::RELEASE);
                head.varint(fence.0);
            }
            _ => return None,
        }
        head.varint(key.len() as u64);
        Some(key)
    }

    #[inline(always)]
    fn take_common(body: &'a [u8], sink: &mut impl FnMut(Self)) -> bool {
        let Some((id, version, first, rest)) = Rest(body).keyed() else {
            return false;
        };
        if first == tag::ACQUIRE {
            let Some((claim, wait, key)) = rest.acquire() else {
                return false;
            };
            let operation = Operation::Acquire { claim, wait };
            sink(Self::Keyed { id, version, operation, key });
        } else if first == tag::RELEASE {
            let Some((fence, key)) = rest.release() else {
                return false;
            };
            let operation = Operation::Release { fence };
            sink(Self::Keyed { id, version, operation, key });
        } else {
            return false;
        }
        true
    }
}

impl Message<'_> for Reply {
    #[inline(always)]
    fn put_common(&self, head: &mut Head<'_>) -> Option<&[u8]> {
        match *self {
            Self::Granted { id, version, fence } => {
                head.byte(tag::GRANTED);
                head.varint(id);
                head.varint(version);
                head.varint(fence.0);
            }
            Self::Released { id, version } => {
                head.byte(tag::RELEASED);
                head.varint(id);
                head.varint(version);
            }
            _ => return None,
        }
        Some(&[])
    }

    #[inline(always)]
    fn take_common(body: &[u8], sink: &mut impl FnMut(Self)) -> bool {
        let Some((&first, rest)) = body.split_first() else {
            return false;
        };
        if first == tag::GRANTED {
            let Some((id, version, fence)) = Rest(rest).granted() else {
                return false;
            };
            sink(Self::Granted { id, version, fence });
        } else if first == tag::RELEASED {
            let Some((id, version)) = Rest(rest).released() else {
                return false;
            };
            sink(Self::Released { id, version });
        } else {
            return false;
        }
        true
    }
}

/// Tags of the common shapes, as the codec counts the variants.
mod tag {
    pub const KEYED: u8 = 0;
    pub const ACQUIRE: u8 = 0;
    pub const RELEASE: u8 = 1;
    pub const GRANTED: u8 = 0;
    pub const RELEASED: u8 = 1;
    pub const MODE: u8 = 0;
    pub const NO: u8 = 0;
    pub const FOREVER: u8 = 1;
    pub const MILLIS: u8 = 2;
}

/// The head of a frame under construction, in the buffer where it will stay.
pub struct Head<'a> {
    pub(crate) room: &'a mut [u8; ROOM],
    /// Bytes written, the first of which is kept for the length.
    pub(crate) len: usize,
}

impl Head<'_> {
    #[inline(always)]
    fn byte(&mut self, byte: u8) {
        self.room[self.len] = byte;
        self.len += 1;
    }

    /// A varint of the codec, in its shortest form. All eight bytes are stored, whatever the form:
    /// those past it are overwritten by what follows, or cut off.
    #[inline(always)]
    fn varint(&mut self, value: u64) {
        let (first, len) = match value {
            0..=250 => (value as u8, 1),
            251..=0xffff => (U16, 3),
            0x1_0000..=0xffff_ffff => (U32, 5),
            _ => (U64, 9),
        };
        let at = self.len;
        self.room[at] = first;
        self.room[at + 1..at + 9].copy_from_slice(&value.to_le_bytes());
        self.len += len;
    }
}

/// What is left of a body.
struct Rest<'a>(&'a [u8]);

impl<'a> Rest<'a> {
    /// What every keyed request begins with, and the tag of its operation.
    #[inline(always)]
    fn keyed(mut self) -> Option<(u64, u64, u8, Self)> {
        if self.byte()? != tag::KEYED {
            return None;
        }
        Some((self.varint()?, self.varint()?, self.byte()?, self))
    }

    #[inline(always)]
    fn acquire(mut self) -> Option<(Claim, Wait, &'a [u8])> {
        if self.byte()? != tag::MODE {
            return None;
        }
        let claim = Claim::Mode(Mode::of_tag(self.byte()?)?);
        let wait = match self.byte()? {
            tag::NO => Wait::No,
            tag::FOREVER => Wait::Forever,
            tag::MILLIS => Wait::Millis(self.varint()?),
            _ => return None,
        };
        Some((claim, wait, self.key()?))
    }

    #[inline(always)]
    fn release(mut self) -> Option<(Fence, &'a [u8])> {
        Some((Fence(self.varint()?), self.key()?))
    }

    #[inline(always)]
    fn granted(mut self) -> Option<(u64, u64, Fence)> {
        let fields = (self.varint()?, self.varint()?, Fence(self.varint()?));
        self.0.is_empty().then_some(fields)
    }

    #[inline(always)]
    fn released(mut self) -> Option<(u64, u64)> {
        let fields = (self.varint()?, self.varint()?);
        self.0.is_empty().then_some(fields)
    }

    #[inline(always)]
    fn byte(&mut self) -> Option<u8> {
        let (&first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(first)
    }

    /// A varint in any form that the codec takes for 64 bits.
    #[inline(always)]
    fn varint(&mut self) -> Option<u64> {
        let first = self.byte()?;
        match first {
            U16 => self.chunk().map(|bytes| u64::from(u16::from_le_bytes(bytes))),
            U32 => self.chunk().map(|bytes| u64::from(u32::from_le_bytes(bytes))),
            U64 => self.chunk().map(u64::from_le_bytes),
            ..U16 => Some(u64::from(first)),
            _ => None,
        }
    }

    #[inline(always)]
    fn chunk<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (chunk, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        Some(*chunk)
    }

    /// A key that ends the body.
    #[inline(always)]
    fn key(mut self) -> Option<&'a [u8]> {
        let len = self.varint()?;
        (self.0.len() as u64 == len).then_some(self.0)
    }
}
