//! Moves ownership from nodes above their targets to nodes below them.

use super::board::{Board, NONE};
use super::targets::Targets;
use std::cmp::Reverse;

/// Makes each node own what it should of each residue class. Of a moved cell one old copy stays
/// as the backup where it may; the next step decides anew.
pub(super) fn place(board: &mut Board, targets: &Targets) {
    let nodes = board.len();
    let layout = &board.layout;
    let mut pairs = vec![0; nodes * nodes];
    for (&owner, &backup) in layout.owner.iter().zip(&layout.backup) {
        if backup != NONE {
            pairs[owner * nodes + backup] += 1;
        }
    }
    let owned = board.count(|cell| layout.owner[cell]);
    let backed = board.count(|cell| layout.backup[cell]);
    let mut step = Owners {
        board,
        targets,
        here: pairs.iter().map(|_| 0).collect(),
        pairs,
        backed,
        given: vec![0; nodes],
    };
    for class in 0..step.board.classes {
        step.class(class, &owned);
    }
}

struct Owners<'a> {
    board: &'a mut Board,
    targets: &'a Targets,
    /// Cells by owner and backup, row by row.
    pairs: Vec<u32>,
    /// The same in the class in hand.
    here: Vec<usize>,
    /// Cells backed up, per node and class.
    backed: Vec<u32>,
    /// Cells taken from those a node backs up.
    given: Vec<u64>,
}

impl Owners<'_> {
    fn class(&mut self, class: usize, owned: &[u32]) {
        let nodes = self.board.len();
        self.here.fill(0);
        let at = |node: usize| node * self.board.classes + class;
        let mut lacks: Vec<u32> =
            (0..nodes).map(|n| self.targets.own[at(n)].saturating_sub(owned[at(n)])).collect();
        let excess: Vec<u32> =
            (0..nodes).map(|n| owned[at(n)].saturating_sub(self.targets.own[at(n)])).collect();
        let mut cells: Vec<Vec<usize>> = vec![Vec::new(); nodes];
        // Scattered, so that no pattern of givers and takers lines up with a greater modulus.
        let mut scattered: Vec<usize> = self.board.class(class).collect();
        scattered.sort_by_key(|&cell| (cell as u32).wrapping_mul(0x9e37_79b9));
        for cell in scattered {
            let (owner, backup) = (self.board.layout.owner[cell], self.board.layout.backup[cell]);
            cells[owner].push(cell);
            if backup != NONE {
                self.here[owner * nodes + backup] += 1;
            }
        }
        for donor in 0..nodes {
            if excess[donor] > 0 {
                self.donate(class, donor, &cells[donor], excess[donor], &mut lacks);
            }
        }
    }

    /// Takes `count` of the donor's cells from it.
    fn donate(
        &mut self,
        class: usize,
        donor: usize,
        cells: &[usize],
        count: u32,
        lacks: &mut [u32],
    ) {
        // By backup; those without one last.
        let nodes = self.board.len();
        let mut groups: Vec<Vec<usize>> = vec![Vec::new(); nodes + 1];
        for &cell in cells {
            groups[self.board.layout.backup[cell].min(nodes)].push(cell);
        }
        for _ in 0..count {
            let filled = (0..=nodes).filter(|&backup| !groups[backup].is_empty());
            let here = |backup: usize| groups[backup].len();
            let order = |&backup: &usize| self.reluctance(donor, backup, here(backup), lacks);
            let Some(group) = filled.min_by_key(order) else {
                return;
            };
            let Some(cell) = groups[group].pop() else { return };
            let Some((owner, backup)) = self.inheritor(class, donor, group, lacks) else { return };
            lacks[owner] -= 1;
            self.hand_over(cell, (donor, group), (owner, backup));
        }
    }

    /// Order in which a donor parts with cells, by their backups: first those whose backup has to
    /// go anyway, or can become the owner of a cell that must find one; then those of the backup
    /// with the most of the donor's cells for its weight, so that the rest stay spread.
    fn reluctance(
        &self,
        donor: usize,
        backup: usize,
        here: usize,
        lacks: &[u32],
    ) -> impl Ord + use<> {
        let nodes = self.board.len();
        if backup == nodes || !self.board.may_back(donor, backup) {
            return (0, Reverse((0, 0)), 0, backup);
        }
        let promotes = self.board.weights[donor] == 0 && lacks[backup] > 0;
        let pair = donor * nodes + backup;
        let load = self.targets.excess(pair, here, self.pairs[pair]);
        let given = (self.given[backup] << 16) / self.board.weights[backup];
        (if promotes { 1 } else { 2 }, Reverse(load), given, backup)
    }

    /// Who gets a cell of the donor with this backup, and which old copy stays.
    fn inheritor(
        &self,
        class: usize,
        donor: usize,
        backup: usize,
        lacks: &[u32],
    ) -> Option<(usize, usize)> {
        let nodes = self.board.len();
        let mut best = None;
        for owner in (0..nodes).filter(|&node| lacks[node] > 0) {
            let promotes = owner == backup;
            let leaves = self.board.weights[donor] == 0;
            let stay = [donor, backup]
                .into_iter()
                .filter(|&copy| copy < nodes && self.board.may_back(owner, copy))
                .map(|copy| {
                    let at = copy * self.board.classes + class;
                    let here = i64::from(self.backed[at]) - i64::from(copy == backup);
                    let excess = here - i64::from(self.targets.back[at]);
                    let pair = owner * nodes + copy;
                    (
                        excess.max(-1),
                        self.targets.excess(pair, self.here[pair], self.pairs[pair]),
                        copy,
                    )
                })
                .min();
            let price = match stay {
                _ if promotes && leaves => 0,
                Some(_) => 1,
                None => 2,
            };
            let key = (price, stay, Reverse(lacks[owner]), owner);
            if best.as_ref().is_none_or(|best| key < *best) {
                best = Some(key);
            }
        }
        best.map(|(_, stay, _, owner)| (owner, stay.map_or(NONE, |stay| stay.2)))
    }

    fn hand_over(&mut self, cell: usize, from: (usize, usize), to: (usize, usize)) {
        let nodes = self.board.len();
        let class = self.board.class_of(cell);
        if from.1 < nodes {
            self.pairs[from.0 * nodes + from.1] -= 1;
            self.here[from.0 * nodes + from.1] -= 1;
            self.backed[from.1 * self.board.classes + class] -= 1;
            self.given[from.1] += 1;
        }
        if to.1 != NONE {
            self.pairs[to.0 * nodes + to.1] += 1;
            self.here[to.0 * nodes + to.1] += 1;
            self.backed[to.1 * self.board.classes + class] += 1;
        }
        self.board.layout.owner[cell] = to.0;
        self.board.layout.backup[cell] = to.1;
    }
}
