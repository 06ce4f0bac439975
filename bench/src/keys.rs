//! The keys of a run: numbered, 17 bytes each, drawn from a distribution.

use crate::choices::KeyDist;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use rand_distr::{Distribution, Zipf};

/// Length of every key, in bytes.
pub const KEY_BYTES: usize = 17;

/// A key as sent.
pub type Key = [u8; KEY_BYTES];

/// Keys that begin alike, so that they can be listed apart from others.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct KeySpace(pub u32);

impl KeySpace {
    /// The key with this number: `k`, then 8 hexadecimal digits of the space and 8 of the number.
    #[inline]
    pub fn key(self, number: u32) -> Key {
        let mut key = [b'k'; KEY_BYTES];
        key[1..].copy_from_slice(&hex(u64::from(self.0) << 32 | u64::from(number)));
        key
    }

    /// What all of its keys begin with.
    pub(crate) fn prefix(self) -> [u8; KEY_BYTES - 8] {
        let mut prefix = [0; KEY_BYTES - 8];
        prefix.copy_from_slice(&self.key(0)[..KEY_BYTES - 8]);
        prefix
    }
}

/// The key with this number in the first space.
#[inline]
pub fn key(number: u32) -> Key {
    KeySpace::default().key(number)
}

/// 16 hexadecimal digits. Written out because `format!` would cost more than the rest of a
/// command.
#[inline]
pub(crate) fn hex(mut value: u64) -> [u8; 16] {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let mut digits = [0; 16];
    for digit in digits.iter_mut().rev() {
        *digit = DIGITS[(value & 15) as usize];
        value >>= 4;
    }
    digits
}

/// Draws key numbers below a limit. The same seed draws the same keys.
#[derive(Clone, Debug)]
pub struct KeyChooser {
    rng: SmallRng,
    keys: u32,
    zipf: Option<Zipf<f64>>,
}

impl KeyChooser {
    /// For `keys` keys (at least 1).
    pub fn new(keys: u32, dist: KeyDist, seed: u64) -> Self {
        assert!(keys > 0, "a run has at least one key");
        let zipf = match dist {
            KeyDist::Uniform => None,
            KeyDist::Zipf(s) => {
                Some(Zipf::new(f64::from(keys), s).expect("KeyDist holds a legal exponent"))
            }
        };
        Self { rng: SmallRng::seed_from_u64(seed), keys, zipf }
    }

    /// The same distribution, drawn anew.
    pub(crate) fn reseeded(&self, seed: u64) -> Self {
        Self { rng: SmallRng::seed_from_u64(seed), ..self.clone() }
    }

    /// The number of the next key.
    #[inline]
    pub fn next_key(&mut self) -> u32 {
        match &self.zipf {
            None => self.rng.random_range(0..self.keys),
            // Samples are 1..=keys, rounding included; the popular ones come first.
            Some(zipf) => (zipf.sample(&mut self.rng) as u32).clamp(1, self.keys) - 1,
        }
    }

    /// `base` varied by up to a quarter either way, so that callers do not march in step.
    #[inline]
    pub(crate) fn jittered(&mut self, base: u64) -> u64 {
        base - base / 4 + self.rng.random_range(0..=base / 2)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_17_distinct_bytes() {
        assert_eq!(&key(0), b"k0000000000000000");
        assert_eq!(&key(0xdead_beef), b"k00000000deadbeef");
        assert_ne!(key(1), key(16));
        assert_eq!(&KeySpace(1).key(0xab), b"k00000001000000ab");
        assert_eq!(&KeySpace(1).prefix(), b"k00000001");
    }

    #[test]
    fn the_seed_decides_the_keys() {
        for dist in [KeyDist::Uniform, KeyDist::Zipf(1.1)] {
            let draw = |seed| {
                let mut chooser = KeyChooser::new(1000, dist, seed);
                (0..100).map(|_| chooser.next_key()).collect::<Vec<_>>()
            };
            assert_eq!(draw(1), draw(1));
            assert_ne!(draw(1), draw(2));
            assert!(draw(3).iter().all(|&key| key < 1000));
        }
    }

    #[test]
    fn zipf_is_skewed_and_uniform_is_not() {
        let share_of_first = |dist| {
            let mut chooser = KeyChooser::new(100, dist, 7);
            (0..100_000).filter(|_| chooser.next_key() == 0).count()
        };
        assert!((800..1200).contains(&share_of_first(KeyDist::Uniform)));
        // 1 / H(100) = 19.3 %.
        assert!((18_000..21_000).contains(&share_of_first(KeyDist::Zipf(1.0))));
    }

    #[test]
    fn jitter_stays_within_a_quarter() {
        let mut chooser = KeyChooser::new(1, KeyDist::Uniform, 1);
        assert!((0..1000).all(|_| (75..=125).contains(&chooser.jittered(100))));
    }
}
