//! The keys of a run, and who asks for which of them.

use lockring_core::testing::{KeyId, Rng};
use lockring_proto::{Claim, SessionId};
use lockring_ring::{CellBits, CellId, NamespaceSeed, hash_key};
use std::collections::{BTreeMap, BTreeSet};

/// Keys of each sort: few hot ones, many cold ones, some that only one client asks for.
const HOT: u64 = 3;
const READ: u64 = 2;
const SEMAPHORES: u64 = 2;
const COLD: u64 = 40;
const OWN: u64 = 4;

/// The namespaces of a run: the same keys in each, none of which meet.
const SPACES: [&str; 2] = ["default", "other"];

/// How far the ids of the keys of one namespace are from those of the one before.
const SPACE: u32 = 100_000;

/// The namespace of a client.
pub fn space_of(client: usize) -> usize {
    usize::from(client % 4 == 3)
}

/// Its name.
pub fn name_of(space: usize) -> &'static str {
    SPACES[space]
}

/// The namespace of a session, whose first byte tells its client.
fn space_of_session(session: SessionId) -> usize {
    space_of(usize::from(session.0[0]) - 1)
}

/// Every key of a run.
pub struct Keys {
    bytes: Vec<Vec<u8>>,
    ids: BTreeMap<Vec<u8>, KeyId>,
    own: Vec<KeyId>,
    hoard: Vec<KeyId>,
}

impl Keys {
    pub fn new(clients: usize, hoard: usize) -> Self {
        let mut keys =
            Self { bytes: Vec::new(), ids: BTreeMap::new(), own: Vec::new(), hoard: Vec::new() };
        for i in 0..HOT + READ + SEMAPHORES + 1 + COLD {
            keys.add(i);
        }
        keys.own = (0..clients as u64 * OWN).map(|i| keys.add(1000 + i)).collect();
        keys.hoard = (0..hoard as u64).map(|i| keys.add(100_000 + i)).collect();
        keys
    }

    /// Keys of every shape: short, long, with bytes that are no text.
    fn add(&mut self, i: u64) -> KeyId {
        let bytes = match i % 5 {
            0 => format!("key/{i}/of some thirty bytes or so").into_bytes(),
            1 => [b"\0\xff".as_slice(), &i.to_le_bytes()].concat(),
            _ => format!("k{i}").into_bytes(),
        };
        let id = KeyId(self.bytes.len() as u32);
        self.ids.insert(bytes.clone(), id);
        self.bytes.push(bytes);
        id
    }

    pub fn bytes(&self, id: KeyId) -> &[u8] {
        &self.bytes[(id.0 % SPACE) as usize]
    }

    /// A key by its bytes and its namespace.
    pub fn id_in(&self, space: usize, bytes: &[u8]) -> KeyId {
        self.ids_in(space, self.ids[bytes])
    }

    /// The same for the namespace of this name.
    pub fn id_named(&self, namespace: &str, bytes: &[u8]) -> KeyId {
        let space = SPACES.iter().position(|name| *name == namespace).expect("a namespace");
        self.id_in(space, bytes)
    }

    /// The same for the namespace of a session.
    pub fn id_of(&self, session: SessionId, bytes: &[u8]) -> KeyId {
        self.id_in(space_of_session(session), bytes)
    }

    /// The key of the same bytes in a namespace.
    pub fn ids_in(&self, space: usize, id: KeyId) -> KeyId {
        KeyId(id.0 % SPACE + space as u32 * SPACE)
    }

    /// The name of its namespace.
    pub fn space_name(&self, id: KeyId) -> &'static str {
        SPACES[(id.0 / SPACE) as usize]
    }

    pub fn count(&self) -> usize {
        self.bytes.len()
    }

    /// The keys of some cells, of all namespaces.
    pub fn of_cells(&self, bits: CellBits, has: impl Fn(CellId) -> bool) -> BTreeSet<KeyId> {
        let all = (0..SPACES.len()).flat_map(|space| self.ids.iter().map(move |key| (space, key)));
        let is_in = |&(space, (bytes, _)): &(usize, (&Vec<u8>, &KeyId))| {
            let position = hash_key(NamespaceSeed::of(SPACES[space]), bytes).position;
            has(bits.cell(position))
        };
        all.filter(is_in).map(|(space, (_, &id))| self.ids_in(space, id)).collect()
    }

    /// A key that only this client asks for.
    pub fn own(&self, client: usize, rng: &mut Rng) -> KeyId {
        self.own[client * OWN as usize + rng.range(0, OWN) as usize]
    }

    pub fn hoard(&self) -> &[KeyId] {
        &self.hoard
    }

    /// A key that everybody asks for, and what of it.
    pub fn shared(&self, rng: &mut Rng) -> (KeyId, Claim) {
        let semaphore = |rng: &mut Rng, capacity: u32| Claim::Permits {
            permits: rng.range(1, u64::from(capacity) + 1) as u32,
            capacity,
        };
        let (base, count, claim) = match rng.range(0, 100) {
            0..22 => (0, HOT, Claim::EXCLUSIVE),
            22..32 => (HOT, READ, Claim::EXCLUSIVE),
            32..44 => (HOT, READ, Claim::SHARED),
            44..54 => (HOT + READ, SEMAPHORES, semaphore(rng, 3)),
            54..58 => {
                // One key is used as everything.
                let claims =
                    [Claim::EXCLUSIVE, Claim::SHARED, semaphore(rng, 2), semaphore(rng, 4)];
                (HOT + READ + SEMAPHORES, 1, *rng.pick(&claims))
            }
            _ => (HOT + READ + SEMAPHORES + 1, COLD, Claim::EXCLUSIVE),
        };
        (KeyId((base + rng.range(0, count)) as u32), claim)
    }

    /// A key that many may read at once.
    pub fn read(&self) -> KeyId {
        KeyId(HOT as u32)
    }

    /// A key that everybody asks for, for an operator.
    pub fn any_shared(&self, rng: &mut Rng) -> KeyId {
        KeyId(rng.range(0, HOT + READ + SEMAPHORES + 1 + COLD) as u32)
    }
}
