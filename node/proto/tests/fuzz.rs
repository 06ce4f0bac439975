//! The fuzz targets without a fuzzer: a bounded run over mutated golden frames, the same each time.

use crate::fuzz_body;
use crate::golden::golden;

/// Mutated inputs, each given to both targets.
const EXECUTIONS: u32 = 200_000;

/// A small generator of our own, so that a failure names inputs that every build repeats.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, end: usize) -> usize {
        (self.next() % end.max(1) as u64) as usize
    }

    fn byte(&mut self) -> u8 {
        // The borders of the varint forms, and small tags, far more often than by chance.
        match self.next() % 4 {
            0 => self.next() as u8,
            1 => 249 + self.below(7) as u8,
            2 => self.below(16) as u8,
            _ => 0xff,
        }
    }
}

/// One change of some bytes, in the manner of a fuzzer.
fn mutate(random: &mut Random, bytes: &mut Vec<u8>, others: &[Vec<u8>]) {
    let at = random.below(bytes.len() + 1);
    match random.next() % 7 {
        0 => bytes.truncate(at),
        1 => bytes.insert(at, random.byte()),
        2 if at < bytes.len() => bytes[at] ^= 1 << random.below(8),
        3 if at < bytes.len() => bytes[at] = random.byte(),
        4 if at < bytes.len() => drop(bytes.remove(at)),
        5 => {
            let mut bomb = vec![251 + random.below(4) as u8];
            bomb.extend_from_slice(&(u64::MAX >> random.below(64)).to_le_bytes());
            bytes.splice(at..at, bomb);
        }
        _ => {
            let other = &others[random.below(others.len())];
            let from = random.below(other.len());
            bytes.truncate(at);
            bytes.extend_from_slice(&other[from..]);
        }
    }
}

#[test]
fn mutated_golden_frames_keep_the_rules() {
    let bodies: Vec<Vec<u8>> = golden().iter().map(|row| row.message.body()).collect();
    for body in &bodies {
        fuzz_body::differential(body);
        fuzz_body::decode(&fuzz_body::framed(body));
    }
    let mut random = Random(1);
    for _ in 0..EXECUTIONS {
        let mut input = bodies[random.below(bodies.len())].clone();
        for _ in 0..=random.below(4) {
            mutate(&mut random, &mut input, &bodies);
        }
        fuzz_body::differential(&input);
        fuzz_body::decode(&input);
    }
}
