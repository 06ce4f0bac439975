//! What stands in the hash tables is mixed with a secret. Keys and request ids are chosen by
//! clients, and everybody knows how they are hashed: without it one could fill the places where
//! another's keys are looked for.

use super::record::INLINE_KEY;
use lockring_ring::KeyHash;

/// The nodes' secret; its parts are random numbers.
#[derive(Clone, Copy)]
pub(crate) struct Secret([u64; 4]);

/// Both halves of a product: it depends on all bits of both factors.
#[inline(always)]
fn fold(a: u64, b: u64) -> u64 {
    let product = u128::from(a) * u128::from(b);
    (product >> 64) as u64 ^ product as u64
}

#[inline]
fn word(bytes: &[u8], at: usize) -> u64 {
    let (word, _) = bytes[at..].split_first_chunk().expect("a word is left");
    u64::from_le_bytes(*word)
}

impl Secret {
    pub(crate) fn new(secret: [u64; 4]) -> Self {
        Self(secret)
    }

    /// The tag of a key in the table of its cell. Up to 16 bytes hardly any keys have a hash in
    /// common. Of longer ones as many can be computed as one likes, so that their bytes count too:
    /// up to 24, hardly any have the hash and the first 8 bytes in common.
    #[inline(always)]
    pub(crate) fn tag(&self, hash: KeyHash, key: &[u8]) -> u32 {
        let Self([a, b, ..]) = *self;
        let (x, y) = (hash.low ^ a, hash.position ^ b);
        match key.first_chunk() {
            Some(_) if key.len() > INLINE_KEY => self.long_tag(hash, key),
            Some(first) => fold(x ^ u64::from_le_bytes(*first), y) as u32,
            None => fold(x, y) as u32,
        }
    }

    #[inline(never)]
    fn long_tag(&self, hash: KeyHash, key: &[u8]) -> u32 {
        let Self([a, b, c, d]) = *self;
        let mut mixed = fold(hash.low ^ a, hash.position ^ b);
        let mut rest = key;
        while rest.len() > 16 {
            mixed = fold(mixed ^ word(rest, 0) ^ c, word(rest, 8) ^ d);
            rest = &rest[16..];
        }
        let end = key.len() - 16;
        fold(mixed ^ word(key, end) ^ c, word(key, end + 8) ^ d) as u32
    }

    /// The hash of two numbers.
    #[inline]
    pub(crate) fn pair(&self, one: u32, two: u64) -> u64 {
        let Self([.., c, d]) = *self;
        fold(two ^ c, u64::from(one) ^ d)
    }
}
