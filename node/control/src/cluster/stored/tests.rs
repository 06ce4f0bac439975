//! What is written is read, and what is no such thing is an error.

use super::*;
use crate::cluster::*;
use lockring_core::testing::Rng;
use lockring_proto::NodeAddress;
use lockring_ring::{AttachId, BootId, CellBits, CellId, Epoch, NodeId, RingVersion};
use std::time::Duration;

/// Small numbers, so that entries fit each other, and now and then one at its end.
fn number(rng: &mut Rng, most: u64) -> u64 {
    if rng.percent(3) { most - rng.range(0, 3) } else { rng.range(0, 6) }
}

fn node(rng: &mut Rng) -> NodeId {
    NodeId(number(rng, u32::MAX.into()) as u32)
}

fn boot(rng: &mut Rng) -> BootId {
    BootId(number(rng, u64::MAX))
}

fn index(rng: &mut Rng, newest: u64) -> Index {
    Index(if rng.percent(60) { newest } else { number(rng, u64::MAX) })
}

fn text(rng: &mut Rng) -> String {
    "zone é".chars().take(rng.range(0, 7) as usize).collect()
}

fn ttl(rng: &mut Rng) -> Duration {
    if rng.percent(5) { Duration::MAX } else { Duration::from_millis(rng.range(0, 90_000)) }
}

fn process(rng: &mut Rng) -> Process {
    let address = |rng: &mut Rng| NodeAddress { host: text(rng), port: rng.draw() as u16 };
    let addresses = (0..rng.range(0, 3)).map(|_| address(rng)).collect();
    let workers = if rng.percent(5) { rng.draw() as u16 } else { 1 << rng.range(0, 4) };
    Process { boot: boot(rng), workers, addresses }
}

fn spec(rng: &mut Rng) -> NodeSpec {
    let zone = rng.percent(50).then(|| text(rng));
    let weight = number(rng, u32::MAX.into()) as u32;
    NodeSpec { weight, zone, host: text(rng), process: process(rng) }
}

fn floors(rng: &mut Rng) -> Floors {
    Floors {
        epoch: Epoch(number(rng, Epoch::LAST.0.into()) as u32),
        version: RingVersion(number(rng, u64::MAX)),
        node: node(rng),
        attach: AttachId(number(rng, u64::MAX)),
        longest_ttl: ttl(rng),
        longest_by: text(rng),
        before: *rng.pick(&[Before::Unknown, Before::One, Before::Nothing]),
    }
}

/// Something decided on the present state, mostly.
fn change(rng: &mut Rng, state: &State) -> CellChange {
    let cell = CellId(number(rng, u16::MAX.into()) as u16);
    let known = state.cell(cell).map_or(0, |cell| cell.revision.0);
    let living: Vec<(NodeId, BootId)> =
        state.nodes().iter().map(|(&id, node)| (id, node.spec.process.boot)).collect();
    let (node, boot) = match living.is_empty() || rng.percent(20) {
        true => (node(rng), boot(rng)),
        false => *rng.pick(&living),
    };
    let step = match rng.range(0, 8) {
        0 => Step::Attach(node, boot),
        1 => Step::Synced,
        2 => Step::Switch(node),
        3 => Step::Drop(node),
        4 => Step::Detach,
        5 => Step::Takeover(node, boot),
        6 => Step::Recovered,
        _ => Step::Bump,
    };
    CellChange { cell, revision: index(rng, known), step }
}

fn entry(rng: &mut Rng, state: &State) -> Entry {
    let of_node = |rng: &mut Rng| {
        let node = node(rng);
        let known = state.nodes().get(&node);
        let known = known.map(|known| (known.spec.process.boot, known.revision.0));
        let (boot, revision) = known.unwrap_or((boot(rng), 0));
        (node, boot, index(rng, revision))
    };
    let (node, boot, revision) = of_node(rng);
    match rng.range(0, 17) {
        0 => Entry::Blank,
        1 | 2 => Entry::Join(spec(rng)),
        3 => Entry::Recover(spec(rng), floors(rng)),
        4 => {
            let (process, is_over) = (process(rng), rng.percent(50));
            Entry::Boot { node, before: boot, process, is_over }
        }
        5 => Entry::Down(node, boot),
        6 => Entry::Up(node, boot),
        14 => Entry::Stopped { node, boot, ring: RingVersion(revision.0) },
        7 => Entry::Leave(node),
        8 => Entry::Remove(node),
        9 => Entry::Weight { node, revision, weight: number(rng, u32::MAX.into()) as u32 },
        10 => Entry::RaiseLongestTtl { ttl: ttl(rng), by: text(rng) },
        11 => Entry::IntendLongestTtl(ttl(rng)),
        12 => {
            let intent = state.longest().intent.map_or(0, |intent| intent.at.0);
            Entry::LowerLongestTtl { intent: index(rng, intent), by: text(rng) }
        }
        13 => {
            let replicas = if rng.percent(50) { Replicas::None } else { Replicas::One };
            Entry::Policy { replicas, revision: index(rng, state.replicas().1.0) }
        }
        _ => {
            let count = if rng.percent(2) { 70 } else { rng.range(0, 5) };
            Entry::Cells((0..count).map(|_| change(rng, state)).collect())
        }
    }
}

fn message(rng: &mut Rng, state: &State) -> Message {
    let life = Life { node: node(rng), boot: boot(rng) };
    let Life { node, boot } = life;
    let n = number(rng, u64::MAX);
    match rng.range(0, 10) {
        0 => Message::Heartbeat { boot, renewal: n },
        1 => Message::Renewed { boot, renewal: n, bound: Index(n) },
        2 => Message::Propose(entry(rng, state)),
        3 => {
            let cell = |rng: &mut Rng| (CellId(rng.draw() as u16), Index(rng.draw()));
            let cells = (0..rng.range(0, 9)).map(|_| cell(rng)).collect();
            Message::Silent { copy: node, cells }
        }
        4 => Message::Probe(life, n),
        5 => Message::Ping(node, n),
        6 => Message::Pong(node, n, boot),
        7 => Message::Alive(life, n),
        8 => Message::AskTtl { round: n, window: ttl(rng), after: Index(n) },
        _ => {
            let longest = rng.percent(50).then(|| ttl(rng));
            Message::TtlStated { round: n, longest, by: text(rng) }
        }
    }
}

/// Any entries in any order, whose every state is kept and read again; no number in them breaks
/// anything, and the ring can be told after each.
#[test]
fn what_is_written_is_read_again() {
    let (mut voids, mut taken) = (0, 0);
    for seed in 0..300 {
        let mut rng = Rng::new(seed);
        let mut state = State::new(CellBits::new(1 + (seed % 3) as u8).unwrap());
        for at in 1..120 {
            let entry = entry(&mut rng, &state);
            assert_eq!(entry_from_bytes(&entry_to_bytes(&entry)), Ok(entry.clone()));
            let is_void = state.apply(Index(at), &entry).void;
            *(if is_void { &mut voids } else { &mut taken }) += 1;
            let bytes = state_to_bytes(&state);
            let read = state_from_bytes(&bytes);
            assert_eq!(read.as_ref(), Ok(&state), "{entry:?} at {at} of seed {seed}");
            let (_, _) = (state.ring(), state.layout());
            let message = message(&mut rng, &state);
            assert_eq!(message_from_bytes(&message_to_bytes(&message)), Ok(message));
        }
    }
    assert!(taken > 3000 && voids > 3000, "{taken} were taken, {voids} void");
}

/// A cluster of some size, for bytes to be spoilt.
fn a_state() -> State {
    for seed in 0.. {
        let mut rng = Rng::new(seed);
        let mut state = State::new(CellBits::new(2).unwrap());
        for at in 1..60 {
            let entry = entry(&mut rng, &state);
            state.apply(Index(at), &entry);
            if state.nodes().len() > 1 && state.cells().any(|(_, cell)| cell.learner.is_some()) {
                return state;
            }
        }
    }
    unreachable!("some seed has it")
}

#[test]
fn what_is_cut_short_or_changed_is_not_read() {
    let bytes = state_to_bytes(&a_state());
    for len in 0..bytes.len() {
        assert_eq!(state_from_bytes(&bytes[..len]), Err(Unreadable::Garbled), "{len} bytes");
    }
    for at in 0..bytes.len() {
        for bit in 0..8 {
            let mut spoilt = bytes.clone();
            spoilt[at] ^= 1 << bit;
            assert_eq!(state_from_bytes(&spoilt), Err(Unreadable::Garbled), "bit {bit} of {at}");
        }
    }
    let mut longer = bytes;
    longer.push(0);
    assert_eq!(state_from_bytes(&longer), Err(Unreadable::Garbled));
}

/// No checksum stands between a peer and what reads its messages.
#[test]
fn no_bytes_of_a_peer_break_what_reads_them() {
    let mut rng = Rng::new(3);
    let state = a_state();
    let (mut read, mut refused) = (0, 0);
    for _ in 0..20_000 {
        let mut bytes = message_to_bytes(&message(&mut rng, &state));
        for _ in 0..rng.range(1, 4) {
            let at = rng.range(0, bytes.len() as u64) as usize;
            match rng.range(0, 3) {
                0 => bytes[at] = rng.draw() as u8,
                1 => bytes.truncate(at + 1),
                _ => bytes.insert(at, 255),
            }
        }
        *(if message_from_bytes(&bytes).is_ok() { &mut read } else { &mut refused }) += 1;
    }
    assert!(read > 1000 && refused > 1000, "{read} were read, {refused} refused");
    let bomb = [&[FORMAT, 3, 1, 253][..], &u64::MAX.to_le_bytes()].concat();
    assert_eq!(message_from_bytes(&bomb), Err(Unreadable::Garbled));
    assert!(message_from_bytes(&vec![FORMAT; MESSAGE_BYTES_MAX + 1]).is_err());
}

#[test]
fn what_a_later_version_has_written_is_told() {
    let mut bytes = entry_to_bytes(&Entry::Blank);
    assert_eq!(bytes.len(), 10);
    bytes[0] = 9;
    let seal = xxh3_64(&bytes[..2]).to_le_bytes();
    bytes[2..].copy_from_slice(&seal);
    let why = entry_from_bytes(&bytes).unwrap_err();
    assert_eq!(why, Unreadable::Format(9));
    assert!(why.to_string().contains("a later version has written it"), "{why}");
}

/// Logs on disks are read by later versions: these bytes must stay readable.
#[test]
fn the_bytes_of_entries_are_pinned() {
    let addresses = vec![NodeAddress { host: "h".to_owned(), port: 7400 }];
    let process = Process { boot: BootId(300), workers: 4, addresses };
    let zone = Some("z".to_owned());
    let spec = NodeSpec { weight: 1, zone, host: "m".to_owned(), process: process.clone() };
    let floors = Floors {
        epoch: Epoch(5),
        version: RingVersion(6),
        node: NodeId(7),
        attach: AttachId(8),
        longest_ttl: Duration::from_millis(1500),
        longest_by: "w".to_owned(),
        before: Before::One,
    };
    let steps = [
        Step::Attach(NodeId(1), BootId(2)),
        Step::Synced,
        Step::Switch(NodeId(3)),
        Step::Drop(NodeId(4)),
        Step::Detach,
        Step::Takeover(NodeId(5), BootId(6)),
        Step::Recovered,
        Step::Bump,
    ];
    let change = |step| CellChange { cell: CellId(9), revision: Index(10), step };
    let (node, boot) = (NodeId(2), BootId(3));
    let (ttl, by) = (Duration::from_secs(60), "w".to_owned());
    let all = [
        (Entry::Blank, "00"),
        (Entry::Join(spec.clone()), "010101017a016dfb2c0104010168fbe81c"),
        (
            Entry::Recover(spec, floors),
            "020101017a016dfb2c0104010168fbe81c0506070801fc0065cd1d017701",
        ),
        (
            Entry::Boot { node, before: boot, process, is_over: true },
            "030203fb2c0104010168fbe81c01",
        ),
        (Entry::Down(node, boot), "040203"),
        (Entry::Up(node, boot), "050203"),
        (Entry::Leave(node), "0602"),
        (Entry::Remove(node), "0702"),
        (Entry::Weight { node, revision: Index(4), weight: 5 }, "08020405"),
        (
            Entry::Cells(steps.map(change).to_vec()),
            "0908090a000102090a01090a0203090a0304090a04090a050506090a06090a07",
        ),
        (Entry::RaiseLongestTtl { ttl, by }, "0a3c000177"),
        (Entry::IntendLongestTtl(Duration::from_secs(10)), "0b0a00"),
        (Entry::LowerLongestTtl { intent: Index(4), by: String::new() }, "0c0400"),
        (Entry::Policy { replicas: Replicas::One, revision: Index(4) }, "0d0104"),
        (Entry::Stopped { node, boot, ring: RingVersion(4) }, "0e020304"),
    ];
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    for (entry, pinned) in all {
        let bytes = entry_to_bytes(&entry);
        let (body, _) = bytes[1..].split_last_chunk::<8>().unwrap();
        assert_eq!(hex(body), pinned, "{entry:?}");
    }
}

/// As those of the log.
#[test]
fn the_bytes_of_a_state_are_pinned() {
    let mut state = State::new(CellBits::new(1).unwrap());
    let process = |boot| {
        let addresses = vec![NodeAddress { host: "h".to_owned(), port: 7400 }];
        Process { boot: BootId(boot), workers: 1, addresses }
    };
    let spec = |boot| NodeSpec { weight: 1, zone: None, host: "m".into(), process: process(boot) };
    let cell = CellId(0);
    let attach = Step::Attach(NodeId(2), BootId(20));
    let change = CellChange { cell, revision: Index(1), step: attach };
    let entries = [
        Entry::Join(spec(10)),
        Entry::Join(spec(20)),
        Entry::Cells(vec![change]),
        Entry::IntendLongestTtl(Duration::from_secs(5)),
    ];
    for (at, entry) in (1..).zip(&entries) {
        assert!(!state.apply(Index(at), entry).void);
    }
    let bytes = state_to_bytes(&state);
    let (body, _) = bytes[1..].split_last_chunk::<8>().unwrap();
    let hex: String = body.iter().map(|byte| format!("{byte:02x}")).collect();
    let nodes = "02\
        0101 00 016d 0a 01 01 0168 fbe81c 0a 01 00 01 00\
        0201 00 016d 14 01 01 0168 fbe81c 14 01 00 02 00\
        02 03 00";
    let cells = "02 03010101 010a01 00 01021403 00 00 01010101 010a02 00 00 00 00";
    let rest = "04 02 0a00 00 01050004 01 00 00";
    assert_eq!(hex, format!("01 04 {nodes} {cells} {rest}").replace(' ', ""));
    assert_eq!(state_from_bytes(&bytes), Ok(state));
}
