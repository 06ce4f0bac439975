//! Gives every cell a backup, such that crashes spread.

use super::board::{Board, Layout, NONE};
use super::targets::Targets;
use std::collections::{BTreeSet, VecDeque};

/// Gives every cell a backup. Targets are drawn up anew as long as that brings the counts nearer
/// to them: so a plan for a table that was planned is empty.
pub(super) fn place(board: &mut Board, before: &Layout) {
    let mut before = before.clone();
    loop {
        let targets = Targets::new(board);
        if targets.pairs.iter().all(|share| *share == 0) {
            board.layout.backup.fill(NONE);
            return;
        }
        let old = board.layout.clone();
        let complete = (0..board.cells())
            .all(|cell| board.may_back(board.layout.owner[cell], board.layout.backup[cell]));
        let worst = if complete { excess(board, &targets) } else { u64::MAX };
        improve(board, &targets, &before);
        if excess(board, &targets) >= worst {
            board.layout = old;
            return;
        }
        before = board.layout.clone();
    }
}

/// Cells above all limits that do not depend on how a board is.
fn excess(board: &Board, targets: &Targets) -> u64 {
    let nodes = board.len();
    let mut pairs = vec![0u64; nodes * nodes];
    let mut here = vec![0u64; nodes * nodes];
    let mut sum = 0;
    for class in 0..board.classes {
        for cell in board.class(class) {
            let (owner, backup) = (board.layout.owner[cell], board.layout.backup[cell]);
            if backup != NONE {
                let pair = owner * nodes + backup;
                pairs[pair] += 1;
                here[pair] += 1;
                sum += u64::from(here[pair] > targets.limits(owner, backup).0);
            }
        }
        here.fill(0);
    }
    for (pair, count) in pairs.into_iter().enumerate() {
        sum += count.saturating_sub(targets.limits(pair / nodes, pair % nodes).1);
    }
    let backed = board.count(|cell| board.layout.backup[cell]);
    for (node, row) in backed.chunks(board.classes).enumerate() {
        let most = targets.backed(node);
        let in_class = most.div_ceil(board.classes as u64);
        sum += row.iter().map(|&count| u64::from(count).saturating_sub(in_class)).sum::<u64>();
        let all = row.iter().copied().map(u64::from).sum::<u64>();
        sum += all.saturating_sub(most) * board.classes as u64;
    }
    sum
}

/// Places backups so that each node has its number of them in each residue class, and no pair of
/// owner and backup has more cells than its limits. Where these counts cannot all be met
/// (rounding, or domains of few nodes), they give way by one cell at a time. Backups that are
/// within them stay.
fn improve(board: &mut Board, targets: &Targets, before: &Layout) {
    let nodes = board.len();
    let mut pairs = vec![0; nodes * nodes];
    for cell in 0..board.cells() {
        let (owner, backup) = (board.layout.owner[cell], board.layout.backup[cell]);
        if board.may_back(owner, backup) {
            pairs[owner * nodes + backup] += 1;
        } else {
            board.layout.backup[cell] = NONE;
        }
    }
    let mut step = Backups {
        board,
        targets,
        before,
        pairs,
        held: vec![Vec::new(); nodes * nodes],
        room: vec![0; nodes],
        dropped: vec![0; nodes],
    };
    // Ends: a step brings nodes nearer to their numbers, or else pairs to their limits in a class,
    // or else to those in all, and worsens none of what comes first in this order.
    while (0..step.board.classes).fold(false, |changed, class| step.class(class) | changed) {}
}

/// How far the counts give way.
#[derive(Clone, Copy)]
struct Slack {
    in_class: u64,
    in_all: u64,
    of_node: i64,
    /// A node that counts as having room, as it has just given up a cell.
    swap: usize,
}

/// Not at all.
const STRICT: Slack = Slack { in_class: 0, in_all: 0, of_node: 0, swap: NONE };
/// Only in what a pair has in all, which other classes can make up for.
const LOOSE: Slack = Slack { in_all: u64::MAX / 2, ..STRICT };

impl Slack {
    /// Ever further: in all, then by a cell more of a node, then of a pair, and so on.
    fn level(level: u64) -> Self {
        let start = if level == 0 { STRICT } else { LOOSE };
        let in_class = level.saturating_sub(1) / 2;
        Self { in_class, of_node: (level / 2) as i64, ..start }
    }
}

struct Backups<'a> {
    board: &'a mut Board,
    targets: &'a Targets,
    before: &'a Layout,
    /// Cells by owner and backup, row by row.
    pairs: Vec<u32>,
    /// The cells of the class in hand by owner and backup, row by row.
    held: Vec<Vec<usize>>,
    /// Cells of the class that each node still should back up.
    room: Vec<i64>,
    /// Cells of each owner that lost their backup to make room.
    dropped: Vec<u64>,
}

impl Backups<'_> {
    /// Improves one residue class; whether anything changed.
    fn class(&mut self, class: usize) -> bool {
        let (nodes, classes) = (self.board.len(), self.board.classes);
        for node in 0..nodes {
            self.room[node] = i64::from(self.targets.back[node * classes + class]);
        }
        let mut open = Vec::new();
        for cell in self.board.class(class) {
            let (owner, backup) = (self.board.layout.owner[cell], self.board.layout.backup[cell]);
            if backup == NONE {
                open.push(cell);
            } else {
                self.held[owner * nodes + backup].push(cell);
                self.room[backup] -= 1;
            }
        }
        let mut changed = !open.is_empty();
        for backup in 0..nodes {
            changed |= self.trim_node(backup);
        }
        open.into_iter().for_each(|cell| self.fill(cell));
        let pair = |cell| self.board.layout.owner[cell] * nodes + self.board.layout.backup[cell];
        let pairs: BTreeSet<usize> = self.board.class(class).map(pair).collect();
        for pair in pairs {
            changed |= self.trim_pair(pair / nodes, pair % nodes);
        }
        for cell in self.board.class(class) {
            let (owner, backup) = (self.board.layout.owner[cell], self.board.layout.backup[cell]);
            self.held[owner * nodes + backup].clear();
        }
        changed
    }

    /// Finds other backups for what a pair has above its share.
    fn trim_pair(&mut self, owner: usize, backup: usize) -> bool {
        let pair = owner * self.board.len() + backup;
        let (in_class, in_all) = self.targets.limits(owner, backup);
        let mut changed = false;
        loop {
            let crowded = self.held[pair].len() as u64 > in_class;
            let over = crowded || u64::from(self.pairs[pair]) > in_all;
            let done = over && self.relocate(owner, backup, Slack { swap: backup, ..STRICT })
                || crowded && self.relocate(owner, backup, Slack { swap: backup, ..LOOSE });
            if !done {
                return changed;
            }
            changed = true;
        }
    }

    /// Finds other backups for what a node has above its number.
    fn trim_node(&mut self, backup: usize) -> bool {
        let nodes = self.board.len();
        let mut changed = false;
        while self.room[backup] < 0 {
            if let Some((owner, to)) = self.swap_backup(backup) {
                self.dropped[owner] += 1;
                let cell = self.release(owner, backup);
                cell.into_iter().for_each(|cell| self.assign(cell, to));
            } else if !(0..nodes).any(|owner| self.relocate(owner, backup, STRICT))
                && !(0..nodes).any(|owner| self.relocate(owner, backup, LOOSE))
            {
                break;
            }
            changed = true;
        }
        changed
    }

    /// The owner that should give up one of its cells at `backup`, and for which node with room:
    /// what levels the pairs most, and of equal ones the owner that gave least.
    fn swap_backup(&self, backup: usize) -> Option<(usize, usize)> {
        let nodes = self.board.len();
        let roomy: Vec<usize> = (0..nodes).filter(|&node| self.room[node] > 0).collect();
        let mut best = None;
        for owner in (0..nodes).filter(|owner| !self.held[owner * nodes + backup].is_empty()) {
            let from = self.excess(owner, backup);
            let dropped = (self.dropped[owner] << 16) / self.board.weights[owner].max(1);
            for &to in &roomy {
                if self.allows(owner, to, STRICT) {
                    let at = self.excess(owner, to);
                    let key = (at.0 - from.0, at.1 - from.1, dropped, owner, to);
                    if best.is_none_or(|best| key < best) {
                        best = Some(key);
                    }
                }
            }
        }
        best.map(|(.., owner, to)| (owner, to))
    }

    fn excess(&self, owner: usize, backup: usize) -> (i64, i64) {
        let pair = owner * self.board.len() + backup;
        self.targets.excess(pair, self.held[pair].len(), self.pairs[pair])
    }

    /// Finds another backup for one cell of a pair, if there is one within the counts.
    fn relocate(&mut self, owner: usize, backup: usize, slack: Slack) -> bool {
        let Some(cell) = self.release(owner, backup) else { return false };
        let found = self.place(cell, slack);
        if !found {
            self.assign(cell, backup);
        }
        found
    }

    fn release(&mut self, owner: usize, backup: usize) -> Option<usize> {
        let pair = owner * self.board.len() + backup;
        let cell = self.held[pair].pop()?;
        self.pairs[pair] -= 1;
        self.room[backup] += 1;
        self.board.layout.backup[cell] = NONE;
        Some(cell)
    }

    fn assign(&mut self, cell: usize, backup: usize) {
        let pair = self.board.layout.owner[cell] * self.board.len() + backup;
        self.held[pair].push(cell);
        self.pairs[pair] += 1;
        self.room[backup] -= 1;
        self.board.layout.backup[cell] = backup;
    }

    /// Finds a backup for a cell, with as little slack as will do. There is one: an owner has a
    /// weight, and every node with a weight has another domain to turn to.
    fn fill(&mut self, cell: usize) {
        let mut level = 0;
        while !self.place(cell, Slack::level(level)) {
            level += 1;
        }
    }

    /// Finds a backup for a cell within some slack.
    fn place(&mut self, cell: usize, slack: Slack) -> bool {
        if let Some(backup) = self.direct(cell, slack) {
            self.assign(cell, backup);
        } else if let Some(path) = self.path(self.board.layout.owner[cell], slack) {
            self.shift(cell, &path);
        } else {
            return false;
        }
        true
    }

    fn allows(&self, owner: usize, backup: usize, slack: Slack) -> bool {
        let (in_class, in_all) = self.targets.limits(owner, backup);
        let pair = owner * self.board.len() + backup;
        self.board.may_back(owner, backup)
            && (self.held[pair].len() as u64) < in_class + slack.in_class
            && u64::from(self.pairs[pair]) < in_all + slack.in_all
    }

    fn has_room(&self, node: usize, slack: Slack) -> bool {
        self.room[node] + slack.of_node > 0 || node == slack.swap
    }

    /// A node with room: one that has a copy already, else the one with the least of the owner's
    /// cells for its share.
    fn direct(&self, cell: usize, slack: Slack) -> Option<usize> {
        let nodes = self.board.len();
        let owner = self.board.layout.owner[cell];
        let fits = |&node: &usize| self.has_room(node, slack) && self.allows(owner, node, slack);
        let load = |&node: &usize| {
            let copies = [self.before.owner[cell], self.before.backup[cell]];
            (!copies.contains(&node), self.excess(owner, node), node)
        };
        (0..nodes).filter(fits).min_by_key(load)
    }

    /// The shortest chain of nodes b1, b2, .., such that `owner` may use b1, the owner of a cell
    /// backed up at b1 may use b2 for it, and so on to one with room. Returned as (owner, backup).
    fn path(&self, owner: usize, slack: Slack) -> Option<Vec<(usize, usize)>> {
        let nodes = self.board.len();
        let mut seen_owner = vec![NONE; nodes];
        let mut seen_backup = vec![NONE; nodes];
        let mut queue = VecDeque::from([owner]);
        seen_owner[owner] = owner;
        while let Some(at) = queue.pop_front() {
            for backup in 0..nodes {
                if seen_backup[backup] != NONE || !self.allows(at, backup, slack) {
                    continue;
                }
                seen_backup[backup] = at;
                if self.has_room(backup, slack) {
                    return Some(trace(owner, backup, &seen_owner, &seen_backup));
                }
                for (other, seen) in seen_owner.iter_mut().enumerate() {
                    if *seen == NONE && !self.held[other * nodes + backup].is_empty() {
                        *seen = backup;
                        queue.push_back(other);
                    }
                }
            }
        }
        None
    }

    /// Moves one cell along each link of a chain, from its end, and then places `cell`.
    fn shift(&mut self, cell: usize, path: &[(usize, usize)]) {
        for pair in path.windows(2).rev() {
            let (owner, to) = pair[1];
            let moved = self.release(owner, pair[0].1);
            moved.into_iter().for_each(|cell| self.assign(cell, to));
        }
        self.assign(cell, path[0].1);
    }
}

/// Reads a chain back from its end.
fn trace(
    first: usize,
    last: usize,
    seen_owner: &[usize],
    seen_backup: &[usize],
) -> Vec<(usize, usize)> {
    let mut path = vec![(seen_backup[last], last)];
    let mut owner = seen_backup[last];
    while owner != first {
        let backup = seen_owner[owner];
        owner = seen_backup[backup];
        path.push((owner, backup));
    }
    path.reverse();
    path
}
