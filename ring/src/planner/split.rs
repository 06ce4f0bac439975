//! Spreads what each node shall have over the residue classes.

use super::exchange::Exchange;

/// Spreads the total of each node over the residue classes.
///
/// The classes are the leaves of a binary tree: the cells `c % m == r` divide into those with
/// `c % 2m == r` and with `c % 2m == r + m`. From the root down, each node's count is halved; of
/// the odd ones, exactly half get their odd cell on the left, as the two sides have equally many
/// cells. So a total t has t/m cells, rounded up or down, in every class of every modulus m. Which
/// half is decided by what it costs in moves, looking down to the leaves one node at a time.
pub(super) fn split(totals: &[u32], classes: usize, held: &[u32]) -> Vec<u32> {
    let costs: Vec<Costs> = totals
        .iter()
        .zip(held.chunks(classes))
        .map(|(&total, held)| Costs::new(total, held))
        .collect();
    // Counts by node, for the classes of the modulus reached so far.
    let mut counts: Vec<Vec<u32>> = vec![totals.to_vec()];
    while counts.len() < classes {
        let modulus = counts.len();
        let halves = (0..modulus).map(|class| halve(&counts[class], modulus, class, &costs));
        let (left, right): (Vec<_>, Vec<_>) = halves.unzip();
        counts = left.into_iter().chain(right).collect();
    }
    let node = |node: usize| counts.iter().map(move |class| class[node]);
    let mut spread = (0..totals.len()).flat_map(node).collect();
    Exchange::new(totals, classes, held, &mut spread).run();
    spread
}

/// Divides the cells of one class of `modulus` between its two classes of twice that.
fn halve(counts: &[u32], modulus: usize, class: usize, costs: &[Costs]) -> (Vec<u32>, Vec<u32>) {
    let (left, right) = (2 * modulus + class, 3 * modulus + class);
    let mut odd: Vec<usize> = (0..counts.len()).filter(|&node| counts[node] % 2 == 1).collect();
    debug_assert!(odd.len().is_multiple_of(2));
    odd.sort_by_key(|&node| {
        let (less, more) = (counts[node] / 2, counts[node] / 2 + 1);
        let cost = |a, b| i64::from(costs[node].of(left, a)) + i64::from(costs[node].of(right, b));
        (cost(more, less) - cost(less, more), node)
    });
    let mut halves: (Vec<u32>, Vec<u32>) =
        counts.iter().map(|count| (count / 2, count / 2)).unzip();
    let (to_left, to_right) = odd.split_at(odd.len() / 2);
    to_left.iter().for_each(|&node| halves.0[node] += 1);
    to_right.iter().for_each(|&node| halves.1[node] += 1);
    halves
}

/// What it costs one node, in cells to receive, to have a number of cells in each class; as if it
/// were alone. The class `r` of modulus m has the number m + r.
struct Costs {
    total: u32,
    /// For the total by the modulus, rounded down and up.
    by_class: Vec<[u32; 2]>,
}

impl Costs {
    fn new(total: u32, held: &[u32]) -> Self {
        let classes = held.len();
        let mut costs = Self { total, by_class: vec![[0; 2]; 2 * classes] };
        for at in (1..2 * classes).rev() {
            let low = total >> at.ilog2();
            costs.by_class[at] = [low, low + 1].map(|count| {
                if at >= classes {
                    return count.saturating_sub(held[at - classes]);
                }
                let modulus = 1 << at.ilog2();
                let (left, right) = (at + modulus, at + 2 * modulus);
                let (less, more) = (count / 2, count.div_ceil(2));
                let one = costs.of(left, more).saturating_add(costs.of(right, less));
                one.min(costs.of(left, less).saturating_add(costs.of(right, more)))
            });
        }
        costs
    }

    /// Cost of `count` cells in a class.
    fn of(&self, at: usize, count: u32) -> u32 {
        let low = self.total >> at.ilog2();
        self.by_class[at][usize::from(count > low)]
    }
}
