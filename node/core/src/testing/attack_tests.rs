//! Keys aimed at one place of a table.

use super::view_tests::World;
use crate::{Event, Mutant};
use lockring_proto::{Claim, Namespace};
use lockring_ring::{NamespaceSeed, hash_key};
use std::collections::BTreeMap;
use xxhash_rust::xxh3::xxh3_64;

/// Keys of 32 bytes in `default` whose hashes agree in the lower half: from the public secret of
/// the hash follow two words that make both of its products zero, and of the sums that are left one
/// can be chosen to make up for the other.
fn aimed(count: usize) -> Vec<[u8; 32]> {
    const FIRST: u64 = 0xbe4b_a423_396c_feb8;
    const SECOND: u64 = 0xdb97_9083_e96d_d4de;
    let seed = xxh3_64(b"default");
    let (a, c) = (FIRST.wrapping_add(seed), SECOND.wrapping_add(seed));
    let start = 32_u64.wrapping_mul(0x9e37_79b1_85eb_ca87);
    let key = |d: u64| {
        let b = 0_u64.wrapping_sub(start ^ c.wrapping_add(d)).wrapping_sub(a);
        let mut key = [0; 32];
        for (part, word) in key.chunks_mut(8).zip([a, b, c, d]) {
            part.copy_from_slice(&word.to_le_bytes());
        }
        key
    };
    (1..=count as u64).map(key).collect()
}

/// What it costs a victim to find its key among those of an attacker, in keys compared.
fn cost(mutant: Option<Mutant>) -> u64 {
    let mut world = World::with_mutant(mutant);
    world.open(1);
    world.open(2);
    let keys = aimed(1000);
    let seed = NamespaceSeed::of("default");
    let low = |key: &[u8]| hash_key(seed, key).low;
    assert!(keys.iter().all(|key| low(key) == low(&keys[0])), "the attack is broken");
    for (number, key) in (1..).zip(&keys) {
        world.acquire_bytes(1, number, key, Claim::EXCLUSIVE);
    }
    let before = world.machine.probes();
    for (number, key) in (1..).zip(&keys[900..]) {
        world.acquire_bytes(2, number, key, Claim::EXCLUSIVE);
    }
    world.machine.probes() - before
}

#[test]
fn computed_keys_do_not_share_a_place() {
    assert_eq!(cost(None), 100);
    assert!(cost(Some(Mutant::PublicTags)) > 10_000, "tags would not need a secret");
}

/// Two namespaces in which the same key has one cell and one tag.
fn namesakes(world: &World) -> [String; 2] {
    let mut seen = BTreeMap::new();
    for name in (0..).map(|number| format!("n{number}")) {
        let place = world.machine.place(NamespaceSeed::of(&name), b"k").unwrap();
        if let Some(other) = seen.insert(place, name.clone()) {
            return [other, name];
        }
    }
    unreachable!("there are more names than places")
}

#[test]
fn equal_keys_of_two_namespaces_are_two() {
    let holds = |mutant| {
        let mut world = World::with_mutant(mutant);
        for (conn, name) in (1..).zip(namesakes(&world)) {
            world.open_in(conn, Namespace::new(&name).unwrap());
            world.acquire(conn, 1, "k", Claim::EXCLUSIVE);
        }
        world.run(Event::Tick);
        world.machine.stats().holds
    };
    assert_eq!(holds(None), 2);
    assert_eq!(holds(Some(Mutant::NamespaceIgnored)), 1);
}
