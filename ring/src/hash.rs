//! Key hashing. The placement of a key is a wire contract: client and node must agree for ever,
//! so the hashed bytes are built by hand and pinned by the vectors below.

use xxhash_rust::xxh3::{xxh3_64, xxh3_128_with_seed};

/// The part a namespace plays in the hash of its keys, computed once per connection.
///
/// Two namespaces hold distinct keys even when the bytes of the keys are equal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct NamespaceSeed(u64);

impl NamespaceSeed {
    /// The seed of the namespace with this name.
    pub fn of(namespace: &str) -> Self {
        Self(xxh3_64(namespace.as_bytes()))
    }
}

/// Both halves of a key's hash. Anybody can compute keys of any hash: what must not be aimed at
/// mixes a secret with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeyHash {
    /// Place on the ring; its top bits are the cell.
    pub position: u64,
    /// The other half.
    pub low: u64,
}

/// Hashes the raw bytes of a key in a namespace: `xxh3_128(key, seed = xxh3_64(namespace))`,
/// high half = position.
#[inline]
pub fn hash_key(seed: NamespaceSeed, key: &[u8]) -> KeyHash {
    let hash = xxh3_128_with_seed(key, seed.0);
    KeyHash { position: (hash >> 64) as u64, low: hash as u64 }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Pinned for ever: changing a value here moves every key of every cluster.
    #[test]
    fn placement_vectors() {
        let cases: [(&str, &[u8], u64, u32); 7] = [
            ("default", b"a", 0xa3ef_05a1_30c5_8aac, 0x9730_ed7f),
            ("default", b"orders/42", 0xfc27_aa10_2528_5134, 0xd8b3_bc11),
            ("default", b"0123456789abcdef0", 0x1df8_9432_93e1_474c, 0x68af_1b55),
            ("default", b"\x00\xff not utf-8 \xfe", 0xc7c2_a599_5c4f_fd84, 0x6e9d_d728),
            ("team-a", b"orders/42", 0xd990_1dc5_4239_b4c3, 0x35a3_1e70),
            ("default", &[7; 200], 0x3382_10fd_7625_c80d, 0xa8ff_6931),
            ("default", &[9; 512], 0xda22_2745_1480_1483, 0x4dd7_442f),
        ];
        for (namespace, key, position, low) in cases {
            let hash = hash_key(NamespaceSeed::of(namespace), key);
            assert_eq!((hash.position, hash.low as u32), (position, low), "{namespace} {key:?}");
        }
    }
}
