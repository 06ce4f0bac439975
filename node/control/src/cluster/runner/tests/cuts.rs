//! The way between two nodes is cut, and both hear the others and the leader.

use super::*;
use crate::cluster::Status;

/// One look each tenth of a second. A copy beyond the cut is reported and dropped as it is, and any
/// other is synced at once.
fn run_cut(run: &mut Run, seconds: u32, is_cut: impl Fn(u32, u32) -> bool) {
    for _ in 0..seconds * 10 {
        run.now = run.now.after(Duration::from_millis(100));
        run.look().iter().for_each(|entry| run.put(entry));
        let traffic = Traffic::of(run.state(), &[]);
        let most = traffic.to.values().chain(traffic.from.values()).copied().max();
        run.most = run.most.max(most.unwrap_or_default());
        let mut said = Vec::new();
        for (id, cell) in run.rules.state().cells() {
            let owner = cell.owner.node;
            let silent = |node: NodeId| is_cut(owner.0, node.0) || is_cut(node.0, owner.0);
            let learner = cell.learner.map(|learner| learner.node);
            let step = match learner {
                Some(node) if silent(node) => Some((node, Step::Detach)),
                Some(node) => Some((node, Step::Synced)),
                None => {
                    let mut backups = cell.backups.iter().map(|backup| backup.node);
                    backups.find(|&node| silent(node)).map(|node| (node, Step::Drop(node)))
                }
            };
            let Some((node, step)) = step else { continue };
            if step != Step::Synced {
                run.runner.shun(run.now, owner, node);
            }
            said.push(change(id, cell, step));
        }
        said.chunks(BATCH_CELLS_MAX).for_each(|all| run.put(&Entry::Cells(all.to_vec())));
    }
}

/// Cells that have no copy.
fn bare(run: &Run) -> usize {
    run.state().cells().filter(|(_, cell)| cell.backups.is_empty()).count()
}

/// Copies that came or went, and owners that changed.
fn moves(run: &Run) -> [u64; 3] {
    ["synced", "dropped", "switched"].map(|what| run.rules.seen.get(what).copied().unwrap_or(0))
}

fn one_two(one: u32, other: u32) -> bool {
    (one, other) == (1, 2)
}

fn nobody(_: u32, _: u32) -> bool {
    false
}

/// It stays where it was put meanwhile, although the target is tried again and again, and goes
/// home when that can be synced.
#[test]
fn who_cannot_be_synced_is_stood_in_for_until_it_can() {
    for is_founded_cut in [true, false] {
        let mut run = Run::new(3);
        if !is_founded_cut {
            run.converge();
        }
        run_cut(&mut run, 60, one_two);
        assert_eq!(bare(&run), 0, "{:?}", run.shares());
        assert!(run.state().cells().all(|(_, cell)| cell.backups.len() == 1));
        let (before, tries) = (moves(&run), run.rules.seen["attached"]);
        run_cut(&mut run, 60, one_two);
        assert_eq!(moves(&run), before, "nobody goes to and fro");
        assert!(run.rules.seen["attached"] > tries, "it is tried again");
        assert!(run.most <= UNDER_WAY_MAX, "{} at once", run.most);
        run_cut(&mut run, 30, nobody);
        let home = |(id, cell): (CellId, &Cell)| {
            let target = run.runner.targets[usize::from(id.0)];
            cell.owner.node == target.owner && Some(cell.backups[0].node) == target.backup
        };
        assert!(run.state().cells().all(home));
        assert!(run.state().cells().all(|(_, cell)| cell.backups.len() == 1));
    }
}

/// Without the copy a single crash would lose what no client gets back.
#[test]
fn a_copy_that_falls_silent_is_replaced_before_it_is_tried_again() {
    let mut run = Run::new(3);
    run.converge();
    run_cut(&mut run, SHUNNED.as_secs() as u32 - 1, one_two);
    assert_eq!(bare(&run), 0);
}

#[test]
fn who_stands_in_is_in_another_zone_and_has_few_cells() {
    let mut run = Run::new(0);
    for (boot, zone) in [(1, "a"), (2, "b"), (3, "a"), (4, "b"), (5, "b")] {
        run.join_in(boot, Some(zone));
    }
    run.converge();
    run_cut(&mut run, 9, one_two);
    assert_eq!(bare(&run), 0);
    let mut by_node = BTreeMap::<NodeId, usize>::new();
    for (id, cell) in run.state().cells() {
        let (owner, target) = (cell.owner.node, run.runner.targets[usize::from(id.0)].backup);
        if owner == NodeId(1) && target == Some(NodeId(2)) {
            *by_node.entry(cell.backups[0].node).or_default() += 1;
        }
    }
    let [(NodeId(4), four), (NodeId(5), five)] = by_node.into_iter().collect::<Vec<_>>()[..] else {
        panic!("3 fails with 1")
    };
    assert!(four.abs_diff(five) <= 1, "{four} {five}");
}

/// Where the next owner does not hear the one that leaves, a third takes the cell between them.
#[test]
fn a_node_leaves_although_it_does_not_hear_who_follows_it() {
    for replicas in [Replicas::One, Replicas::None] {
        let mut run = Run::new(4);
        run.put(&Entry::Policy { replicas, revision: Index(0) });
        run.converge();
        run.put(&Entry::Leave(NodeId(1)));
        run_cut(&mut run, 120, |one, other| one == 1 && (other == 2 || other == 3));
        assert_eq!(run.state().nodes().len(), 3, "{replicas:?}: it has nothing any more");
        let copies = usize::from(replicas == Replicas::One);
        assert!(run.state().cells().all(|(_, cell)| cell.backups.len() == copies));
        assert!(run.state().nodes().values().all(|node| node.status == Status::Up));
        let before = moves(&run);
        run_cut(&mut run, 60, nobody);
        assert_eq!(moves(&run), before, "{replicas:?}");
    }
}
