//! Saves moves that the halving of classes, which looks at one node at a time, has left.

use std::collections::VecDeque;

/// Exchanges cells between nodes, class against class: as long as some node receives a cell in a
/// class that it could keep in another, and nodes that lose nothing by it can pass the difference
/// round. Counts stay even over every modulus.
pub(super) struct Exchange<'a> {
    totals: &'a [u32],
    classes: usize,
    held: &'a [u32],
    spread: &'a mut Vec<u32>,
    /// For each node, its cells in class `r` of modulus m at m + r.
    tree: Vec<Vec<u32>>,
}

impl<'a> Exchange<'a> {
    /// `held` is what nodes have, `spread` what they shall have, per node and class.
    pub fn new(
        totals: &'a [u32],
        classes: usize,
        held: &'a [u32],
        spread: &'a mut Vec<u32>,
    ) -> Self {
        let tree = spread.chunks(classes).map(|row| {
            let mut tree = [vec![0; classes], row.to_vec()].concat();
            for at in (1..classes).rev() {
                let modulus = 1 << at.ilog2();
                tree[at] = tree[at + modulus] + tree[at + 2 * modulus];
            }
            tree
        });
        let tree = tree.collect();
        Self { totals, classes, held, spread, tree }
    }

    /// Exchanges all that saves a move.
    pub fn run(mut self) {
        for at in 0..self.spread.len() {
            while self.spread[at] > self.held[at] && self.save(at / self.classes, at % self.classes)
            {
            }
        }
    }

    /// Lets a node have one cell less in a class, and one more where it has it already.
    fn save(&mut self, node: usize, class: usize) -> bool {
        for other in 0..self.classes {
            let at = node * self.classes + other;
            if self.spread[at] < self.held[at] && self.may_shift(node, class, other) {
                self.shift(node, class, other);
                if self.pass_round(node, other, class) {
                    return true;
                }
                self.shift(node, other, class);
            }
        }
        false
    }

    /// Finds nodes other than `giver` that bring one cell from a class to another, at no cost.
    fn pass_round(&mut self, giver: usize, from: usize, to: usize) -> bool {
        let mut came: Vec<Option<(usize, usize)>> = vec![None; self.classes];
        let mut queue = VecDeque::from([from]);
        while let Some(at) = queue.pop_front() {
            if at == to {
                return self.shift_along(&came, from, to);
            }
            for next in (0..self.classes).filter(|&next| next != from) {
                if came[next].is_none() {
                    let free = |&node: &usize| node != giver && self.is_free(node, at, next);
                    came[next] = (0..self.totals.len()).find(free).map(|node| (at, node));
                    queue.extend(came[next].map(|_| next));
                }
            }
        }
        false
    }

    /// Makes the shifts that lead to a class. A node may stand twice in a chain, where its second
    /// shift is no longer good after the first: then none is made.
    fn shift_along(&mut self, came: &[Option<(usize, usize)>], from: usize, to: usize) -> bool {
        let mut done = Vec::new();
        let mut at = to;
        while let Some((before, node)) = came[at].filter(|_| at != from) {
            if !self.is_free(node, before, at) {
                done.into_iter().rev().for_each(|(node, to, from)| self.shift(node, from, to));
                return false;
            }
            self.shift(node, before, at);
            done.push((node, before, at));
            at = before;
        }
        true
    }

    /// Whether a node can have a cell less in one class and one more in another, and receives no
    /// more for it.
    fn is_free(&self, node: usize, from: usize, to: usize) -> bool {
        let (lose, gain) = (node * self.classes + from, node * self.classes + to);
        let saves = self.spread[lose] > self.held[lose];
        let costs = self.spread[gain] >= self.held[gain];
        (saves || !costs) && self.may_shift(node, from, to)
    }

    /// Whether all counts stay the total by the modulus, rounded up or down.
    fn may_shift(&self, node: usize, from: usize, to: usize) -> bool {
        let low = |at: usize| self.totals[node] >> at.ilog2();
        let exact = |at: usize| low(at) << at.ilog2() == self.totals[node];
        self.branches(from, to).all(|(from, to)| {
            self.tree[node][from] > low(from) && self.tree[node][to] == low(to) && !exact(to)
        })
    }

    fn shift(&mut self, node: usize, from: usize, to: usize) {
        for (from, to) in self.branches(from, to) {
            self.tree[node][from] -= 1;
            self.tree[node][to] += 1;
        }
        self.spread[node * self.classes + from] -= 1;
        self.spread[node * self.classes + to] += 1;
    }

    /// The places in the tree above two classes, up to where they meet.
    fn branches(&self, from: usize, to: usize) -> impl Iterator<Item = (usize, usize)> + use<> {
        let levels = (0..=self.classes.ilog2()).rev().map(|level| 1 << level);
        levels
            .map(move |modulus| (modulus + from % modulus, modulus + to % modulus))
            .take_while(|(from, to)| from != to)
    }
}
