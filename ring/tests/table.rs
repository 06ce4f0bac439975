//! Tables and changes of tables: what is refused, and what small plans look like.

#![expect(clippy::unwrap_used, reason = "what fails here fails the test")]

use lockring_ring::{
    CellBits, CellId, Change, Diff, DiffError, Epoch, MAX_NODES, Move, Node, NodeError, NodeId,
    Patch, Placement, PlanError, RingTable, RingVersion, Run, TableError, plan,
};

fn node(id: u32) -> Node {
    Node { id: NodeId(id), weight: 1, zone: None, host: format!("h{id}"), workers: 2 }
}

fn at(owner: u32, backup: Option<u32>) -> Placement {
    Placement { owner: NodeId(owner), backup: backup.map(NodeId) }
}

fn run(cells: u32, owner: u32, backup: Option<u32>, epoch: u32) -> Run {
    let (since, takeover) = (RingVersion(1), Epoch(1));
    Run { cells, placement: at(owner, backup), epoch: Epoch(epoch), since, takeover }
}

fn bits(bits: u8) -> CellBits {
    CellBits::new(bits).unwrap()
}

/// Four cells of nodes 1 and 2.
fn four() -> RingTable {
    let runs = [run(2, 1, Some(2), 5), run(1, 2, Some(1), 5), run(1, 2, None, 6)];
    RingTable::from_runs(RingVersion(7), bits(2), vec![node(2), node(1)], &runs).unwrap()
}

fn after(table: &RingTable, changes: &[Change]) -> RingTable {
    let version = RingVersion(table.version().0 + 1);
    plan(table, changes).unwrap().apply(table, version).unwrap()
}

#[test]
fn a_table_answers() {
    let table = four();
    assert_eq!(table.nodes().iter().map(|node| node.id.0).collect::<Vec<_>>(), [1, 2]);
    assert_eq!(table.placement(CellId(1)), at(1, Some(2)));
    assert_eq!(table.owner_at(0), NodeId(1));
    assert_eq!(table.owner_at(u64::MAX), NodeId(2));
    assert_eq!(table.owner_index(1 << 63), 1);
    assert_eq!(table.epoch(CellId(3)), Epoch(6));
    assert_eq!(table.owner(CellId(3)).map(|node| node.id), Some(NodeId(2)));
    assert_eq!(table.owner(CellId(4)), None);
    let shares: Vec<_> = table.shares().iter().map(|share| (share.owned, share.backed)).collect();
    assert_eq!(shares, [(2, 1), (2, 2)]);
    assert_eq!(table.runs().len(), 3);
    assert_eq!(table.node(NodeId(3)), None);
}

#[test]
fn what_is_no_table_is_refused() {
    let made = |nodes: Vec<Node>, runs: &[Run]| {
        RingTable::from_runs(RingVersion(1), bits(2), nodes, runs).map(|_| ()).unwrap_err()
    };
    let pair = || vec![node(1), node(2)];
    assert_eq!(made(pair(), &[run(3, 1, None, 1)]), TableError::Cells(3));
    assert_eq!(made(pair(), &[run(5, 1, None, 1)]), TableError::Cells(5));
    let bomb = [run(u32::MAX, 1, None, 1), run(u32::MAX, 1, None, 1)];
    assert_eq!(made(pair(), &bomb), TableError::Cells(2 * u64::from(u32::MAX)));
    let unknown = TableError::UnknownNode(CellId(2), NodeId(3));
    assert_eq!(made(pair(), &[run(2, 1, None, 1), run(2, 3, None, 1)]), unknown);
    assert_eq!(made(pair(), &[run(2, 1, None, 1), run(2, 1, Some(3), 1)]), unknown);
    assert_eq!(made(pair(), &[run(4, 1, Some(1), 1)]), TableError::SelfBackup(CellId(0)));
    let last = [run(4, 1, None, Epoch::LAST.0)];
    assert_eq!(made(pair(), &last), TableError::Epoch(CellId(0), Epoch::LAST));
    let twice = TableError::Nodes(NodeError::Twice(NodeId(1)));
    assert_eq!(made(vec![node(1), node(1)], &[run(4, 1, None, 1)]), twice);
    let odd = Node { workers: 3, ..node(1) };
    let workers = TableError::Nodes(NodeError::Workers(NodeId(1), 3));
    assert_eq!(made(vec![odd], &[run(4, 1, None, 1)]), workers);
    let many: Vec<Node> = (0..=MAX_NODES as u32).map(node).collect();
    let too_many = TableError::Nodes(NodeError::TooMany(MAX_NODES + 1));
    assert_eq!(made(many, &[run(4, 1, None, 1)]), too_many);
}

#[test]
fn a_move_is_compare_and_swap() {
    let mut table = four();
    let to = at(2, Some(1));
    let change = Move { cell: CellId(0), from: at(1, Some(2)), to };
    table.apply(&change).unwrap();
    assert_eq!((table.placement(CellId(0)), table.epoch(CellId(0))), (to, Epoch(6)));
    assert_eq!(table.apply(&change), Err(TableError::Elsewhere(CellId(0), to)));
    let drop_backup = Move { cell: CellId(0), from: to, to: at(2, None) };
    table.apply(&drop_backup).unwrap();
    assert_eq!(table.epoch(CellId(0)), Epoch(6), "the owner is the same");
    let outside = Move { cell: CellId(4), ..change };
    assert_eq!(table.apply(&outside), Err(TableError::NoSuchCell(CellId(4))));
    let unknown = Move { cell: CellId(1), to: at(9, None), ..change };
    assert_eq!(table.apply(&unknown), Err(TableError::UnknownNode(CellId(1), NodeId(9))));
}

#[test]
fn epochs_and_versions_only_grow() {
    let mut table = four();
    assert_eq!(table.raise(CellId(0), Epoch(5)), Err(TableError::Epoch(CellId(0), Epoch(5))));
    assert_eq!(table.raise(CellId(4), Epoch(9)), Err(TableError::NoSuchCell(CellId(4))));
    let last = Epoch::LAST;
    assert_eq!(table.raise(CellId(0), last), Err(TableError::Epoch(CellId(0), last)));
    table.raise(CellId(0), Epoch(last.0 - 1)).unwrap();
    let change = Move { cell: CellId(0), from: at(1, Some(2)), to: at(2, None) };
    assert_eq!(table.apply(&change), Err(TableError::Epoch(CellId(0), last)));
    assert_eq!(table.placement(CellId(0)), change.from, "a refused move changes nothing");
    assert_eq!(table.advance(RingVersion(7)), Err(TableError::Version(RingVersion(7))));
    table.advance(RingVersion(9)).unwrap();
    let before = table.clone();
    let older = TableError::Version(RingVersion(9));
    assert_eq!(table.renew(CellId(1), Epoch(7), RingVersion(9)), Err(older));
    let same = TableError::Epoch(CellId(1), Epoch(5));
    assert_eq!(table.renew(CellId(1), Epoch(5), RingVersion(10)), Err(same));
    assert_eq!(table, before, "a refused step changes nothing");
    table.renew(CellId(1), Epoch(7), RingVersion(10)).unwrap();
    assert_eq!((table.epoch(CellId(1)), table.version()), (Epoch(7), RingVersion(10)));
}

/// By these a client tells which of its holds a new owner knows, and from which answer on.
#[test]
fn a_table_says_since_when_an_epoch_runs_and_which_began_without_a_copy() {
    let mut table = four();
    table.raise(CellId(0), Epoch(6)).unwrap();
    let change = Move { cell: CellId(3), from: at(2, None), to: at(1, None) };
    table.take_over(&change).unwrap();
    table.apply(&Move { cell: CellId(2), from: at(2, Some(1)), to: at(2, None) }).unwrap();
    table.advance(RingVersion(11)).unwrap();
    let of = |table: &RingTable, cell| {
        let cell = CellId(cell);
        (table.epoch(cell).0, table.since(cell).0, table.takeover(cell).0)
    };
    let all = |table: &RingTable| [0, 1, 2, 3].map(|cell| of(table, cell));
    assert_eq!(all(&table), [(6, 11, 1), (5, 1, 1), (5, 1, 1), (7, 11, 7)]);
    // The next version takes nothing of that back, and a change tells it all.
    let before = table.clone();
    table.renew(CellId(3), Epoch(8), RingVersion(12)).unwrap();
    assert_eq!(all(&table), [(6, 11, 1), (5, 1, 1), (5, 1, 1), (8, 12, 7)]);
    assert_eq!(Diff::between(&before, &table).unwrap().apply(&before).unwrap(), table);
    // Nor does one of several versions at once.
    let first = four();
    assert_eq!(Diff::between(&first, &table).unwrap().apply(&first).unwrap(), table);
    let founded = RingTable::founded(RingVersion(3), bits(2), node(1), Epoch(4)).unwrap();
    assert_eq!(of(&founded, 2), (4, 3, 4));
    // Neither can be later than the table has it.
    let made = |run| RingTable::from_runs(RingVersion(7), bits(2), vec![node(1)], &[run]);
    let late = Run { since: RingVersion(8), ..run(4, 1, None, 5) };
    assert_eq!(made(late), Err(TableError::Since(CellId(0), RingVersion(8))));
    let ahead = Run { takeover: Epoch(6), ..run(4, 1, None, 5) };
    assert_eq!(made(ahead), Err(TableError::Takeover(CellId(0), Epoch(6))));
}

#[test]
fn a_node_with_cells_stays() {
    let mut table = four();
    assert_eq!(table.set_nodes(vec![node(1)]), Err(TableError::InUse(NodeId(2))));
    let before = table.runs();
    table.set_nodes(vec![node(0), node(1), node(2)]).unwrap();
    assert_eq!(table.runs(), before);
    assert_eq!(table.owner_index(0), 1);
}

#[test]
fn the_second_node_takes_half_and_backs_up_the_rest() {
    let first = RingTable::founded(RingVersion(1), bits(14), node(1), Epoch(1)).unwrap();
    let table = after(&first, &[Change::Join(node(2))]);
    let shares: Vec<_> = table.shares().iter().map(|share| (share.owned, share.backed)).collect();
    assert_eq!(shares, [(8192, 8192), (8192, 8192)]);
    let kept = |cell: &CellId| table.placement(*cell).backup == Some(NodeId(1));
    assert_eq!(table.cells().filter(kept).count(), 8192, "the old owner stays as the backup");
    let alone = after(&table, &[Change::Crash(NodeId(1))]);
    assert!(alone.cells().all(|cell| alone.placement(cell) == at(2, None)));
}

#[test]
fn a_zone_at_once_costs_no_lock() {
    let zoned = |id: u32| Node { zone: Some(format!("z{}", id % 3)), ..node(id) };
    let first = RingTable::founded(RingVersion(1), bits(10), zoned(0), Epoch(1)).unwrap();
    let joins: Vec<Change> = (1..9).map(|id| Change::Join(zoned(id))).collect();
    let table = after(&first, &joins);
    let crash = [0, 3, 6].map(|id| Change::Crash(NodeId(id)));
    let made = plan(&table, &crash).unwrap();
    assert!(made.takeover.is_empty());
    assert!(made.failover.len() > 600, "owned and backed up: two thirds");
}

#[test]
fn hosts_count_where_zones_do_not_divide() {
    let on = |id: u32, host: &str| Node {
        zone: Some("z".to_owned()),
        host: host.to_owned(),
        ..node(id)
    };
    let first = RingTable::founded(RingVersion(1), bits(8), on(1, "a"), Epoch(1)).unwrap();
    let joins = [on(2, "a"), on(3, "b"), Node { weight: 0, ..on(4, "c") }].map(Change::Join);
    let table = after(&first, &joins);
    for cell in table.cells() {
        let Placement { owner, backup } = table.placement(cell);
        assert_eq!(owner == NodeId(3), backup != Some(NodeId(3)));
        assert!(owner != NodeId(4) && backup != Some(NodeId(4)), "a witness holds nothing");
    }
}

/// More workers than the classes that are always kept even: what moves beside the newcomer's part
/// is the noise of chance, not half the ring.
#[test]
fn a_node_of_many_workers_joins() {
    let first = RingTable::founded(RingVersion(1), bits(14), node(0), Epoch(1)).unwrap();
    let mut table = first;
    for id in 1..9 {
        table = after(&table, &[Change::Join(node(id))]);
    }
    let made = plan(&table, &[Change::Join(Node { workers: 256, ..node(9) })]).unwrap();
    let moved = made.moves.iter().filter(|change| change.from.owner != change.to.owner).count();
    assert!(moved < 1638 + 16384 / 10, "{moved} moved");
}

#[test]
fn what_does_not_fit_has_no_plan() {
    let table = four();
    let no = |changes: &[Change]| plan(&table, changes).unwrap_err();
    assert_eq!(no(&[Change::Join(node(1))]), PlanError::Known(NodeId(1)));
    assert_eq!(no(&[Change::Leave(NodeId(3))]), PlanError::Unknown(NodeId(3)));
    assert_eq!(no(&[Change::Weight(NodeId(3), 1)]), PlanError::Unknown(NodeId(3)));
    let both = [Change::Crash(NodeId(1)), Change::Weight(NodeId(2), 0)];
    assert_eq!(no(&both), PlanError::NoOwner);
    let odd = Node { workers: 0, ..node(3) };
    let workers = NodeError::Workers(NodeId(3), 0);
    assert_eq!(no(&[Change::Join(odd)]), PlanError::Nodes(workers));
}

/// The node keeps nothing it had; a cell it alone had is opened anew, here by the same node, and
/// that must show: a fence of before is older than any of after.
#[test]
fn back_with_an_empty_memory() {
    let table = four();
    let made = plan(&table, &[Change::Crash(NodeId(2)), Change::Join(node(2))]).unwrap();
    assert_eq!((made.failover.len(), made.takeover.len(), made.nodes.len()), (3, 1, 2));
    let new = made.apply(&table, RingVersion(8)).unwrap();
    assert!(new.epoch(CellId(3)) > table.epoch(CellId(3)));
    let same = Move { cell: CellId(3), from: at(2, None), to: at(2, None) };
    let mut reopened = table.clone();
    reopened.take_over(&same).unwrap();
    assert_eq!(reopened.epoch(CellId(3)), Epoch(7));
}

#[test]
fn changes_are_runs() {
    let old = four();
    let mut new = old.clone();
    for cell in [1, 2, 3] {
        new.raise(CellId(cell), Epoch(9)).unwrap();
    }
    new.advance(RingVersion(8)).unwrap();
    let diff = Diff::between(&old, &new).unwrap();
    let since = RingVersion(8);
    let expected = [
        Patch { skip: 1, run: Run { since, ..run(1, 1, Some(2), 9) } },
        Patch { skip: 0, run: Run { since, ..run(1, 2, Some(1), 9) } },
        Patch { skip: 0, run: Run { since, ..run(1, 2, None, 9) } },
    ];
    assert_eq!(diff.patches, expected);
    assert_eq!(diff.apply(&old).unwrap(), new);
    let none = Diff::between(&new, &new).unwrap();
    assert_eq!((none.patches.len(), none.apply(&new).unwrap()), (0, new.clone()));
    let gap = DiffError::Gap { at: RingVersion(8), from: RingVersion(7) };
    assert_eq!(diff.apply(&new).unwrap_err(), gap);
    assert_eq!(diff.then(&diff).unwrap_err(), gap);
    assert_eq!(
        Diff::between(&new, &old).unwrap_err(),
        DiffError::Gap { at: RingVersion(7), from: RingVersion(8) }
    );
}

#[test]
fn a_change_from_a_stranger_is_checked() {
    let old = four();
    let change = |patches: Vec<Patch>| Diff {
        from: RingVersion(7),
        to: RingVersion(8),
        bits: bits(2),
        nodes: Vec::new(),
        gone: Vec::new(),
        patches,
    };
    let no = |diff: Diff| diff.apply(&old).unwrap_err();
    let long = Patch { skip: u32::MAX, run: run(u32::MAX, 1, None, 9) };
    let end = 2 * u64::from(u32::MAX);
    assert_eq!(no(change(vec![long])), DiffError::PastEnd(end));
    assert_eq!(
        change(vec![long]).then(&Diff { from: RingVersion(8), ..change(Vec::new()) }),
        Err(DiffError::PastEnd(end))
    );
    let empty = Patch { skip: 0, run: run(0, 1, None, 9) };
    assert_eq!(no(change(vec![empty])), DiffError::Empty);
    let older = Patch { skip: 0, run: run(1, 1, None, 4) };
    assert_eq!(no(change(vec![older])), TableError::Epoch(CellId(0), Epoch(4)).into());
    let unknown = Patch { skip: 3, run: run(1, 9, None, 9) };
    assert_eq!(no(change(vec![unknown])), TableError::UnknownNode(CellId(3), NodeId(9)).into());
    let gone = Diff { gone: vec![NodeId(2)], ..change(Vec::new()) };
    assert_eq!(no(gone), TableError::InUse(NodeId(2)).into());
    assert_eq!(no(Diff { bits: bits(3), ..change(Vec::new()) }), DiffError::Bits(bits(3)));
}
