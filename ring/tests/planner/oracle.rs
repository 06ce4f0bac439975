//! Recounts a table and holds it to what the planner promises.

use lockring_ring::{Node, NodeId, Plan, RingTable};
use std::collections::BTreeSet;

/// Number of the failure domain of a node, told from the text: zone, else host, at the widest
/// level that divides the nodes that hold cells.
pub fn domain_of(nodes: &[Node], id: NodeId) -> String {
    let zone = |node: &Node| node.zone.clone().map_or(format!("host {}", node.host), |z| z);
    let host = |node: &Node| node.host.clone();
    let several = |label: &dyn Fn(&Node) -> String| {
        let holders = nodes.iter().filter(|node| node.weight > 0);
        holders.map(label).collect::<BTreeSet<_>>().len() > 1
    };
    let node = nodes.iter().find(|node| node.id == id).unwrap();
    match () {
        () if several(&zone) => zone(node),
        () if several(&host) => host(node),
        () => id.to_string(),
    }
}

/// Everything there is to count in a table. Indexes are those of its nodes.
pub struct Count<'a> {
    table: &'a RingTable,
    nodes: usize,
    cells: u64,
    /// The classes to balance: as many as the most workers, at least 64 of 256 cells.
    classes: usize,
    weights: Vec<u64>,
    domains: Vec<String>,
    /// By node and class.
    owned: Vec<Vec<u64>>,
    /// By owner, backup and class.
    pairs: Vec<Vec<Vec<u64>>>,
}

impl<'a> Count<'a> {
    pub fn new(table: &'a RingTable) -> Self {
        let nodes = table.nodes();
        let cells = u64::from(table.bits().cells());
        let workers = nodes.iter().filter(|node| node.weight > 0).map(|node| node.workers).max();
        let classes = usize::from(workers.unwrap());
        let classes = classes.max((cells as usize / 256).min(64)).min(cells as usize);
        let mut owned = vec![vec![0; classes]; nodes.len()];
        let mut pairs = vec![vec![vec![0; classes]; nodes.len()]; nodes.len()];
        for cell in table.cells() {
            let at = table.placement(cell);
            let class = usize::from(cell.0) % classes;
            let owner = table.node_index(at.owner).unwrap();
            owned[owner][class] += 1;
            if let Some(backup) = at.backup {
                pairs[owner][table.node_index(backup).unwrap()][class] += 1;
            }
        }
        Self {
            table,
            nodes: nodes.len(),
            cells,
            classes,
            weights: nodes.iter().map(|node| u64::from(node.weight)).collect(),
            domains: nodes.iter().map(|node| domain_of(nodes, node.id)).collect(),
            owned,
            pairs,
        }
    }

    fn total(&self, node: usize) -> u64 {
        self.owned[node].iter().sum()
    }

    fn pair(&self, owner: usize, backup: usize) -> u64 {
        self.pairs[owner][backup].iter().sum()
    }

    fn may_back(&self, owner: usize, backup: usize) -> bool {
        self.weights[backup] > 0 && self.domains[owner] != self.domains[backup]
    }

    /// Weight of all that may back up a node's cells.
    fn others(&self, owner: usize) -> u64 {
        (0..self.nodes).filter(|&b| self.may_back(owner, b)).map(|b| self.weights[b]).sum()
    }

    /// Witnesses hold nothing; a backup is in another domain; there is one wherever there can be.
    pub fn check_roles(&self) {
        let copies = self.weights.iter().filter(|weight| **weight > 0).count() > 1;
        for cell in self.table.cells() {
            let at = self.table.placement(cell);
            let owner = self.table.node_index(at.owner).unwrap();
            assert!(self.weights[owner] > 0, "a witness owns {cell}");
            assert_eq!(at.backup.is_some(), copies, "{cell}");
            if let Some(backup) = at.backup {
                assert_ne!(backup, at.owner);
                assert!(self.may_back(owner, self.table.node_index(backup).unwrap()), "{cell}");
            }
        }
    }

    /// Totals are the largest remainders of the weights: exact to one cell, and nobody could have
    /// less than the peak. Within a node, any modulus up to the number of classes divides its
    /// cells evenly to one cell, so its workers differ by one cell at most.
    pub fn check_owned(&self) {
        let weight: u64 = self.weights.iter().sum();
        let share = |node: usize| {
            let product = self.cells * self.weights[node];
            (product / weight, product % weight)
        };
        let mut least_up = u64::MAX;
        let mut most_down = 0;
        for node in 0..self.nodes {
            let (whole, rest) = share(node);
            match self.total(node).checked_sub(whole) {
                Some(0) => most_down = most_down.max(rest),
                Some(1) => least_up = least_up.min(rest),
                _ => panic!("node {node} has {} for {whole}", self.total(node)),
            }
        }
        assert!(least_up >= most_down, "not by largest remainder");
        for node in 0..self.nodes {
            let mut modulus = 1;
            while modulus <= self.classes {
                let part = |class: usize| -> u64 {
                    self.owned[node].iter().skip(class).step_by(modulus).sum()
                };
                let low = self.total(node) / modulus as u64;
                let high = self.total(node).div_ceil(modulus as u64);
                assert!((0..modulus).all(|class| (low..=high).contains(&part(class))));
                modulus *= 2;
            }
        }
    }

    /// After the crash of any one node, each survivor has its own cells and its part of the dead
    /// node's, by weight among those that may back them up: rounded up, with a leeway of 1/128 of
    /// all it then has, and within a cell and a half in each class. That holds where every node is
    /// a domain, all weigh the same, and classes have 64 cells at least. Otherwise the counts of a
    /// class may leave no such rounding: a pair then has up to one cell more in a class, and in
    /// all up to half a cell for each class.
    pub fn check_backups(&self) {
        let holders = || (0..self.nodes).filter(|&node| self.weights[node] > 0);
        let domains: BTreeSet<&String> = holders().map(|node| &self.domains[node]).collect();
        let weights: BTreeSet<u64> = holders().map(|node| self.weights[node]).collect();
        let plain = domains.len() == holders().count() && weights.len() == 1;
        let classes = self.classes as u64;
        let plain = plain && self.cells / classes >= 64;
        let (more, more_in_class) = if plain { (0, 0) } else { (classes / 2, 1) };
        for owner in holders() {
            for backup in holders().filter(|&backup| self.may_back(owner, backup)) {
                let share = self.total(owner) * self.weights[backup];
                let share = share.div_ceil(self.others(owner));
                let limit = share + (self.total(backup) + share) / 128 + more;
                let pair = self.pair(owner, backup);
                assert!(pair <= limit, "pair {owner} {backup}: {pair} > {limit} with {more}");
                let limit = (share + classes / 2).div_ceil(classes) + more_in_class;
                let most = *self.pairs[owner][backup].iter().max().unwrap();
                assert!(most <= limit, "class of {owner} {backup}: {most} > {limit}");
            }
        }
    }

    /// No more cells change owner than the new targets demand, and one for each node; with
    /// weights that differ, one for each class too. A crash deals out its cells without regard to
    /// classes, and its mends may take four more for each.
    pub fn check_moved(&self, before: &RingTable, made: &Plan) {
        let moves = &made.moves;
        let moved = moves.iter().filter(|change| change.from.owner != change.to.owner).count();
        let mut held = vec![vec![0u64; self.classes]; self.nodes];
        for cell in before.cells() {
            if let Some(owner) = self.table.node_index(before.placement(cell).owner) {
                held[owner][usize::from(cell.0) % self.classes] += 1;
            }
        }
        let homeless = self.cells - held.iter().flatten().sum::<u64>();
        let mut least = 0;
        let mut modulus = 1;
        while modulus <= self.classes {
            let (mut lacking, mut excess) = (0, homeless);
            for (node, held) in held.iter().enumerate() {
                let low = self.total(node) / modulus as u64;
                let high = self.total(node).div_ceil(modulus as u64);
                for class in 0..modulus {
                    let held: u64 = held.iter().skip(class).step_by(modulus).sum();
                    lacking += low.saturating_sub(held);
                    excess += held.saturating_sub(high);
                }
            }
            least = least.max(lacking).max(excess);
            modulus *= 2;
        }
        let crashed = !made.failover.is_empty() || !made.takeover.is_empty();
        let weights: BTreeSet<u32> =
            before.nodes().iter().chain(self.table.nodes()).map(|node| node.weight).collect();
        let more = match () {
            () if crashed => 4 * self.classes,
            () if weights.len() > 1 => self.classes,
            () => 0,
        };
        let most = least + (self.nodes + more) as u64;
        assert!(
            moved as u64 >= least && moved as u64 <= most,
            "{moved} moved of {least} and {more}"
        );
    }

    /// The figures for equal weights where every node is a domain.
    pub fn check_plain_targets(&self) {
        let nodes = self.nodes as u64;
        let peak = (0..self.nodes).map(|node| self.total(node)).max().unwrap();
        assert_eq!(peak, self.cells.div_ceil(nodes), "no placement has a lower peak");
        // 1.002, except where whole cells do not allow it: at worst 382 for 381.02, of 43 nodes.
        let ratio = (peak * nodes) as f64 / self.cells as f64;
        let least = (self.cells.div_ceil(nodes) * nodes) as f64 / self.cells as f64;
        assert!(nodes > 50 || ratio <= least.max(1.002) && ratio <= 1.0026, "peak {ratio}");
        if nodes == 1 {
            return;
        }
        let mean = self.cells as f64 / (nodes - 1) as f64;
        for dead in 0..self.nodes {
            for node in (0..self.nodes).filter(|&node| node != dead) {
                let after = (self.total(node) + self.pair(dead, node)) as f64 / mean;
                assert!(after <= 1.02, "{after} after the crash of {dead}");
            }
        }
        let backed = |node: usize| (0..self.nodes).map(|owner| self.pair(owner, node)).sum::<u64>();
        let most = (0..self.nodes).map(backed).max().unwrap();
        assert!(most <= self.cells.div_ceil(nodes) + 1, "one node backs up {most}");
    }

    /// What one node takes when it joins equals: its part, within a cell for each node.
    pub fn check_join(&self, before: &RingTable, newcomer: NodeId) {
        let changed = |cell: &_| before.placement(*cell).owner != self.table.placement(*cell).owner;
        let moved = self.table.cells().filter(changed).count() as u64;
        let optimum = self.cells / self.nodes as u64;
        assert!(moved.abs_diff(optimum) <= self.nodes as u64, "{moved} moved of {optimum}");
        let joined = self.table.node_index(newcomer).unwrap();
        let backed = (0..self.nodes).map(|owner| self.pair(owner, joined)).sum::<u64>();
        let copied = |cell: &_| {
            let (old, new) = (before.placement(*cell), self.table.placement(*cell));
            let had = |node: NodeId| node == old.owner || Some(node) == old.backup;
            u64::from(!had(new.owner)) + u64::from(new.backup.is_some_and(|node| !had(node)))
        };
        let copies: u64 = self.table.cells().map(|cell| copied(&cell)).sum();
        let least = self.total(joined) + backed;
        assert!(copies <= least + least / 4 + 16, "{copies} copies made for {least}");
    }
}
