//! What waits for copies costs the same each, however much there is.
#![expect(
    clippy::disallowed_types,
    clippy::disallowed_methods,
    reason = "what is measured is time"
)]

use super::*;
use std::time::Instant;

/// The least time of some that this takes, so often.
fn time(times: u32, what: impl Fn() -> Duration) -> Duration {
    (0..3).map(|_| (0..times).map(|_| what()).sum()).min().unwrap_or_default()
}

/// Answers of two cells, in turns, wait for a copy that refuses both; then it can take them. How
/// long it takes to send these anew, of so many answers.
fn given_anew(answers: usize) -> Duration {
    let (mut owner, mut copy) = pair(None);
    let of = |cell| {
        (0..u32::MAX).map(u32::to_be_bytes).filter(move |key| {
            let hashed = lockring_ring::hash_key(NamespaceSeed::of("default"), key);
            CellBits::new(1).expect("two cells").cell(hashed.position) == cell
        })
    };
    let both = of(CELLS[0]).zip(of(CELLS[1])).flat_map(|(one, other)| [one, other]);
    let keys: Vec<[u8; 4]> = both.take(answers + 2).collect();
    copy.cluster(ClusterEvent::Lease(Time(0)));
    let (refused, parked) = keys.split_at(2);
    for keys in [refused, parked] {
        for key in keys {
            owner.acquire(7, key, Wait::No);
        }
        settle(&mut owner, &mut copy);
    }
    copy.cluster(ClusterEvent::Lease(Time::NEVER));
    let ready = copy.messages();
    let begun = Instant::now();
    owner.hears(COPY, &ready);
    owner.flush();
    let took = begun.elapsed();
    settle(&mut owner, &mut copy);
    let ids: Vec<u64> = owner.answers().iter().map(Reply::id).collect();
    assert_eq!(ids, (1..=keys.len() as u64).collect::<Vec<u64>>());
    took
}

#[test]
fn answers_that_waited_for_several_cells_go_on_together_in_no_more_time_each() {
    let (few, many) = (time(32, || given_anew(1000)), time(1, || given_anew(32_000)));
    // The square of it would be 32 times as much. The many find memory slower than the few.
    assert!(many < few * 16, "{few:?} for 32 times 1000, {many:?} for 32000 at once");
}

/// How long a thousand requests take at an owner of so many cells, whose copy refuses all of them.
fn asked_astray(bits: u8) -> Duration {
    let bits = CellBits::new(bits).expect("few enough");
    let all: Vec<CellId> = (0..bits.cells()).map(|cell| CellId(cell as u16)).collect();
    let its = membership(2, OWNER, &[COPY]);
    let [mut owner, mut copy] = [OWNER, COPY].map(|me| {
        let others = all.iter().copied().collect();
        let mut it = Worker::of(me, None, Config { cell_bits: bits, others, ..config_of(me) });
        it.become_of(&all, &its);
        it
    });
    copy.cluster(ClusterEvent::Lease(Time(0)));
    settle(&mut owner, &mut copy);
    owner.hello(7, 1);
    let begun = Instant::now();
    for key in 0..1000_u32 {
        owner.acquire(7, &key.to_be_bytes(), Wait::No);
    }
    let took = begun.elapsed();
    assert_eq!(owner.answers(), []);
    took
}

#[test]
fn a_request_costs_the_same_however_many_cells_a_copy_has_refused() {
    let (few, many) = (time(1, || asked_astray(4)), time(1, || asked_astray(12)));
    assert!(many < few * 8, "{few:?} with 16 cells, {many:?} with 4096");
}
