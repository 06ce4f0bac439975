//! Tables and their changes on the wire: what is told is what is read, and what strangers tell is
//! an error with a reason.

use lockring_proto::codec::encode_frame;
use lockring_proto::limits::{HOSTS_BYTES_MAX, WORKERS_MAX};
use lockring_proto::*;
use lockring_ring::{
    CellBits, CellId, Diff, DiffError, Epoch, MAX_NODES, Placement, RingTable, RingVersion, Run,
    TableError,
};
use proptest::collection::{btree_map, vec};
use proptest::prelude::*;
use proptest::sample::Index;

type Table = RingTable<NodeInfo>;

/// A node that clients can be told of.
fn node(id: u32) -> impl Strategy<Value = NodeInfo> {
    let host = prop_oneof!["[a-z]{0,8}", "[a-z]{240,250}"];
    (0..6_u32, any::<bool>(), vec(host, 64), 1..u16::MAX - WORKERS_MAX, any::<u64>()).prop_map(
        move |(workers, each, mut hosts, port, boot)| {
            let workers = 1 << workers;
            hosts.truncate(if each { usize::from(workers) } else { 1 });
            let address = |host| NodeAddress { host, port };
            let addresses = hosts.into_iter().map(address).collect();
            NodeInfo { id: NodeId(id), addresses, workers, boot: BootId(boot) }
        },
    )
}

fn nodes() -> impl Strategy<Value = Vec<NodeInfo>> {
    btree_map(0..40_u32, Just(()), 1..8)
        .prop_flat_map(|ids| ids.into_keys().map(node).collect::<Vec<_>>())
}

/// Where a cell is, as places among some nodes, and its epoch.
type At = (Index, Option<Index>, u32);

fn at() -> impl Strategy<Value = At> {
    (any::<Index>(), proptest::option::of(any::<Index>()), 0..1_u32 << 22)
}

fn run(nodes: &[NodeInfo], cells: u32, (owner, backup, epoch): At) -> Run {
    let owner = owner.get(nodes).id;
    let backup = backup.map(|backup| backup.get(nodes).id).filter(|backup| *backup != owner);
    let (since, takeover) = (RingVersion(u64::from(epoch % 2)), Epoch(epoch / 2));
    Run { cells, placement: Placement { owner, backup }, epoch: Epoch(epoch), since, takeover }
}

/// Any table: of few cells, or of as many as make several parts.
fn table() -> impl Strategy<Value = Table> {
    prop_oneof![9 => 1..8_u8, 1 => Just(MANY)].prop_flat_map(table_of)
}

/// Bits of a ring that has several parts when its cells differ.
const MANY: u8 = 12;

fn table_of(bits: u8) -> impl Strategy<Value = Table> {
    (Just(bits), nodes(), 1..u64::MAX / 2).prop_flat_map(|(bits, nodes, version)| {
        let bits = CellBits::new(bits).unwrap();
        vec((1..4_u32, at()), bits.cells() as usize).prop_map(move |cells| {
            let mut left = bits.cells();
            let runs = cells.into_iter().map_while(|(cells, at)| {
                let cells = cells.min(left);
                left -= cells;
                (cells > 0).then(|| run(&nodes, cells, at))
            });
            let runs: Vec<Run> = runs.collect();
            Table::from_runs(RingVersion(version), bits, nodes.clone(), &runs).unwrap()
        })
    })
}

/// A table, and a later one: nodes came, changed and went, and cells with them.
fn step() -> impl Strategy<Value = (Table, Table)> {
    let changes = vec(proptest::option::weighted(0.4, at()), 1..40);
    (table(), nodes(), changes, 1..1000_u64).prop_map(|(old, nodes, changes, later)| {
        let mut epoch = 1 << 22;
        let runs = old.cells().zip(changes.into_iter().cycle()).map(|(cell, change)| {
            let owner = old.placement(cell).owner;
            let is_there = |id: NodeId| nodes.iter().any(|node| node.id == id);
            let stays = is_there(owner) && old.placement(cell).backup.is_none_or(is_there);
            match change {
                None if stays => old.run(cell),
                change => {
                    epoch += 1;
                    let placement = Placement { owner: nodes[0].id, backup: None };
                    let at =
                        change.map(|(owner, backup, _)| run(&nodes, 1, (owner, backup, epoch)));
                    let (since, takeover) = (RingVersion(1), Epoch(epoch));
                    let taken = Run { cells: 1, placement, epoch: takeover, since, takeover };
                    at.unwrap_or(taken)
                }
            }
        });
        let runs: Vec<Run> = runs.collect();
        let version = RingVersion(old.version().0 + later);
        let new = Table::from_runs(version, old.bits(), nodes.clone(), &runs).unwrap();
        (old, new)
    })
}

/// What a node answers to who has a version of it.
fn told(history: &RingHistory, known: &Table) -> Option<RingNews> {
    let parts = history.answers(7, known.version().0).into_iter().map(|reply| match reply {
        Reply::Ring { id: 7, chunk } => Some(*chunk),
        Reply::NoNewerRing { id: 7, version } => {
            assert_eq!(version, history.newest().version().0);
            None
        }
        other => panic!("{other:?}"),
    });
    let parts: Option<Vec<RingChunk>> = parts.collect();
    parts.map(|parts| taken(parts).unwrap().expect("all of its parts"))
}

#[test]
fn a_node_tells_what_has_changed_for_as_long_as_it_remembers() {
    let bits = CellBits::new(4).unwrap();
    let mut table = Table::founded(RingVersion(3), bits, sound(1), Epoch(1)).unwrap();
    let mut tables = vec![table.clone()];
    let mut history = RingHistory::new(table.clone());
    for version in 5..=69 {
        table
            .renew(CellId(version % 16), Epoch(u32::from(version)), RingVersion(version.into()))
            .unwrap();
        assert!(history.learns(table.clone()) && !history.learns(table.clone()));
        tables.push(table.clone());
    }
    // The first change is forgotten; of a version that never was nobody knows what has changed.
    assert_eq!(told(&history, &tables[0]), Some(RingNews::Whole(table.clone())));
    let never = Table::founded(RingVersion(4), bits, sound(1), Epoch(1)).unwrap();
    assert_eq!(told(&history, &never), Some(RingNews::Whole(table.clone())));
    for known in &tables[1..tables.len() - 1] {
        let Some(RingNews::Change(change)) = told(&history, known) else { panic!("not a change") };
        assert_eq!(change.apply(known), Ok(table.clone()));
    }
    assert_eq!(told(&history, &table), None);
    assert!(!history.learns(
        Table::founded(RingVersion(99), CellBits::new(5).unwrap(), sound(1), Epoch(1)).unwrap()
    ));
}

fn taken(parts: impl IntoIterator<Item = RingChunk>) -> Result<Option<RingNews>, RingError> {
    let mut known = RingParts::default();
    parts.into_iter().try_fold(None, |_, part| known.take(part))
}

fn fit_their_frames(parts: &[RingChunk]) {
    for part in parts {
        let mut frame = Vec::new();
        encode_frame(&Reply::Ring { id: 1, chunk: Box::new(part.clone()) }, &mut frame);
        assert!(frame.len() <= 32 << 10, "{} bytes", frame.len());
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    /// Parts that were honest, and of which one is lost, told twice or told early.
    #[test]
    fn parts_out_of_order_are_no_ring(
        table in table_of(MANY), at in any::<Index>(), how in 0..3_u32
    ) {
        let mut parts = RingChunk::whole(&table);
        let at = at.index(parts.len() - 1);
        match how {
            0 => drop(parts.remove(at)),
            1 => parts.insert(at + 1, parts[at + 1].clone()),
            _ => parts.swap(at, at + 1),
        }
        prop_assert!(matches!(taken(parts), Err(RingError::Order(_))));
    }
}

proptest! {
    #[test]
    fn a_table_arrives_as_it_left(table in table()) {
        let parts = RingChunk::whole(&table);
        fit_their_frames(&parts);
        prop_assert_eq!(taken(parts), Ok(Some(RingNews::Whole(table))));
    }

    #[test]
    fn a_change_leads_to_the_newer_table((old, new) in step()) {
        let diff = Diff::between(&old, &new).unwrap();
        let parts = RingChunk::change(&diff);
        fit_their_frames(&parts);
        let Ok(Some(RingNews::Change(arrived))) = taken(parts) else { panic!("no change") };
        prop_assert_eq!(arrived.apply(&old), Ok(new.clone()));
        prop_assert_eq!(arrived.apply(&new).unwrap_err(), gap(&new, &old));
    }

    /// One number of honest parts is another: a ring or a reason comes of it.
    #[test]
    fn a_wrong_number_is_no_panic(
        (old, new) in step(), whole: bool, at in any::<(Index, Index)>(), field in 0..12_u32,
        to: u32
    ) {
        let diff = Diff::between(&old, &new).unwrap();
        let mut parts = if whole { RingChunk::whole(&old) } else { RingChunk::change(&diff) };
        let place = at.0.index(parts.len());
        twist(&mut parts[place], at.1, field, to);
        is_told(&old, taken(parts));
    }

    #[test]
    fn whatever_comes_there_is_a_reason(
        table in table(), parts in vec(crate::properties::ring_chunk(), 0..6), order: bool
    ) {
        let mut known = RingParts::default();
        for (at, part) in parts.into_iter().enumerate() {
            let part = RingChunk { part: if order { at as u32 } else { part.part }, ..part };
            is_told(&table, known.take(part));
        }
    }
}

fn gap(at: &Table, from: &Table) -> DiffError {
    DiffError::Gap { at: at.version(), from: from.version() }
}

/// Puts another number into a part.
fn twist(part: &mut RingChunk, at: Index, field: u32, to: u32) {
    let pick = |len: usize| if len == 0 { 0..0 } else { at.index(len)..at.index(len) + 1 };
    let (nodes, runs) = (pick(part.nodes.len()), pick(part.runs.len()));
    match field {
        0 => part.version = u64::from(to),
        1 => part.base = Some(u64::from(to)),
        2 => part.cell_bits = to as u8,
        3 => part.part = to,
        4 => part.gone.push(to),
        5 => part.nodes[nodes].iter_mut().for_each(|node| node.id = NodeId(to)),
        6 => part.nodes[nodes].iter_mut().for_each(|node| node.workers = to as u16),
        7 => part.runs[runs].iter_mut().for_each(|run| run.skip = to),
        8 => part.runs[runs].iter_mut().for_each(|run| run.cells = to),
        9 => part.runs[runs].iter_mut().for_each(|run| run.owner = to),
        10 => part.runs[runs].iter_mut().for_each(|run| run.backup = Some(to)),
        _ => part.runs[runs].iter_mut().for_each(|run| run.epoch = to),
    }
}

/// What came of parts is whole, can be followed, or has a reason in one line.
fn is_told(at_hand: &Table, came: Result<Option<RingNews>, RingError>) {
    let reason = match came {
        Ok(Some(RingNews::Whole(table))) => {
            assert_eq!(taken(RingChunk::whole(&table)), Ok(Some(RingNews::Whole(table))));
            return;
        }
        Ok(Some(RingNews::Change(diff))) => match diff.apply(at_hand) {
            Ok(_) => return,
            Err(error) => error.to_string(),
        },
        Ok(None) => return,
        Err(error) => error.to_string(),
    };
    assert!(!reason.is_empty() && !reason.contains('\n'), "{reason:?}");
}

fn sound(id: u32) -> NodeInfo {
    let addresses = vec![NodeAddress { host: "n".to_owned(), port: 7420 }];
    NodeInfo { id: NodeId(id), addresses, workers: 2, boot: BootId(1) }
}

fn all(cells: u32) -> RingRun {
    RingRun { skip: 0, cells, owner: 1, backup: None, epoch: 1, since: 9, takeover: 1 }
}

/// A part of a ring of four cells.
fn part(part: u32, last: bool) -> RingChunk {
    let (nodes, gone, runs) = (Vec::new(), Vec::new(), Vec::new());
    RingChunk { version: 9, base: None, cell_bits: 2, part, nodes, gone, runs, last }
}

#[test]
fn what_does_not_fit_together_is_named() {
    let whole = RingChunk { nodes: vec![sound(1)], runs: vec![all(4)], ..part(0, true) };
    assert!(matches!(taken([whole.clone()]), Ok(Some(RingNews::Whole(_)))));
    let no = |parts: Vec<RingChunk>| taken(parts).unwrap_err();
    let with_node = |node| no(vec![RingChunk { nodes: vec![node], ..whole.clone() }]);
    let with_runs = |runs: &[RingRun]| no(vec![RingChunk { runs: runs.to_vec(), ..whole.clone() }]);
    let begun = || RingChunk { runs: Vec::new(), last: false, ..whole.clone() };

    assert_eq!(no(vec![part(1, true)]), RingError::Order(1));
    assert_eq!(no(vec![begun(), part(2, true)]), RingError::Order(2));
    let mixed = RingChunk { version: 8, runs: vec![all(4)], ..part(1, true) };
    assert_eq!(no(vec![begun(), mixed]), RingError::Mixed(1, 8));
    assert_eq!(no(vec![part(0, false)]), RingError::Empty(0));
    assert_eq!(no(vec![begun(), part(1, true)]), RingError::Empty(1));
    let bits = RingChunk { cell_bits: 17, ..whole.clone() };
    assert!(matches!(no(vec![bits]), RingError::Bits(_)));
    let twice = RingChunk { nodes: vec![sound(1), sound(1)], ..whole.clone() };
    assert_eq!(no(vec![twice]), RingError::NodeOrder(NodeId(1)));
    assert_eq!(with_node(NodeInfo { workers: 3, ..sound(1) }), RingError::Workers(NodeId(1), 3));
    let many = WORKERS_MAX * 2;
    let crowded = NodeInfo { workers: many, ..sound(1) };
    assert_eq!(with_node(crowded), RingError::Workers(NodeId(1), many));
    let nowhere = NodeInfo { addresses: Vec::new(), ..sound(1) };
    assert_eq!(with_node(nowhere), RingError::Addresses(NodeId(1)));
    let host = "h".repeat(HOSTS_BYTES_MAX + 1);
    let long = NodeInfo { addresses: vec![NodeAddress { host, port: 1 }], ..sound(1) };
    assert_eq!(with_node(long), RingError::Hosts(NodeId(1), HOSTS_BYTES_MAX + 1));
    assert_eq!(with_runs(&[all(0)]), RingError::NoCells);
    assert_eq!(with_runs(&[all(u32::MAX)]), RingError::PastEnd(u64::from(u32::MAX), 4));
    assert_eq!(with_runs(&[all(3)]), TableError::Cells(3).into());
    let late = RingRun { since: 10, ..all(4) };
    assert_eq!(with_runs(&[late]), TableError::Since(CellId(0), RingVersion(10)).into());
    let ahead = RingRun { takeover: 2, ..all(4) };
    assert_eq!(with_runs(&[ahead]), TableError::Takeover(CellId(0), Epoch(2)).into());
    let hole = RingRun { skip: 1, ..all(3) };
    assert_eq!(with_runs(&[hole]), RingError::NotWhole);
    let gone = RingChunk { gone: vec![2], ..whole.clone() };
    assert_eq!(no(vec![gone.clone()]), RingError::NotWhole);
    let back = RingChunk { base: Some(9), ..gone };
    assert_eq!(no(vec![back]), RingError::Backwards(9, 9));
}

#[test]
fn no_more_is_kept_than_a_ring_can_have() {
    let mut known = RingParts::default();
    for id in 0..MAX_NODES as u32 {
        let more = RingChunk { nodes: vec![sound(id)], ..part(id, false) };
        assert_eq!(known.take(more), Ok(None));
    }
    let one_more = MAX_NODES as u32;
    let more = RingChunk { nodes: vec![sound(one_more)], ..part(one_more, false) };
    assert_eq!(known.take(more), Err(RingError::Nodes));
    for at in 0..4 {
        assert_eq!(known.take(RingChunk { runs: vec![all(1)], ..part(at, false) }), Ok(None));
    }
    let more = RingChunk { runs: vec![all(1)], ..part(4, false) };
    assert_eq!(known.take(more.clone()), Err(RingError::PastEnd(5, 4)));
    assert_eq!(known.take(more), Err(RingError::Order(4)), "nothing was kept");
}
