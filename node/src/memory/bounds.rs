//! What memory there is, by whose word, and how much of it is used.

use rustix::process::{Resource, getrlimit};
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

/// A share of every bound is kept free: what grows does so in one go, by as much as it has.
const RESERVE_SHARE: u64 = 10;
const RESERVE_LEAST: u64 = 48 << 20;
const RESERVE_MOST: u64 = 1 << 30;

/// How much memory a node may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MemoryLimit {
    /// What the machine, the control group and the address space have.
    Auto,
    /// This many bytes, and what the address space has.
    Bytes(u64),
    /// As much as it can get: it may be ended by the system.
    Unlimited,
}

/// What sets a bound.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Of {
    /// The node's own setting.
    Setting,
    /// The machine.
    Machine,
    /// The control group.
    Cgroup,
    /// The limit on the address space (`ulimit -v`).
    AddressSpace,
}

impl fmt::Display for Of {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Setting => "the setting",
            Self::Machine => "the machine",
            Self::Cgroup => "the control group",
            Self::AddressSpace => "the limit on the address space",
        })
    }
}

/// One bound and how much of it is used, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bound {
    /// What sets it.
    pub of: Of,
    /// How much is used.
    pub used: u64,
    /// How much there is.
    pub limit: u64,
}

impl Bound {
    fn reserve(&self) -> u64 {
        let share = (self.limit / RESERVE_SHARE).clamp(RESERVE_LEAST, RESERVE_MOST);
        share.min(self.limit / 3)
    }

    /// Bytes until nothing new is admitted.
    pub fn left(&self) -> u64 {
        self.limit.saturating_sub(self.used).saturating_sub(self.reserve())
    }

    /// Whether nothing new is to be admitted, given whether that is so already: it goes on until
    /// there is room to speak of, so that it does not change from moment to moment.
    pub fn is_full(&self, already: bool) -> bool {
        if already { self.left() < self.reserve() / 4 } else { self.left() == 0 }
    }
}

impl fmt::Display for Bound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { of, used, limit } = self;
        write!(f, "{} MiB are used of the {} MiB of {of}", used >> 20, limit >> 20)
    }
}

/// What the system says, in bytes.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Reading {
    pub(super) resident: u64,
    pub(super) address_space: u64,
    pub(super) address_space_limit: Option<u64>,
    /// Used and limit.
    pub(super) machine: Option<(u64, u64)>,
    pub(super) cgroup: Option<(u64, u64)>,
}

impl Reading {
    /// Reads what matters under this limit. What cannot be read is left out: it bounds nothing.
    pub(super) fn now(limit: MemoryLimit) -> Self {
        let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
        let field = |name| kib(&status, name).unwrap_or_default();
        let auto = limit == MemoryLimit::Auto;
        Self {
            resident: field("VmRSS:"),
            address_space: field("VmSize:"),
            address_space_limit: getrlimit(Resource::As).current,
            machine: auto.then(machine).flatten(),
            cgroup: auto.then(cgroup).flatten(),
        }
    }
}

/// The bounds that hold.
pub(super) fn bounds(limit: MemoryLimit, reading: &Reading) -> Vec<Bound> {
    let bound = |of, (used, limit)| Bound { of, used, limit };
    let Reading { resident, address_space, address_space_limit, machine, cgroup } = *reading;
    let auto = limit == MemoryLimit::Auto;
    let set = match limit {
        MemoryLimit::Bytes(bytes) => Some((resident, bytes)),
        MemoryLimit::Auto | MemoryLimit::Unlimited => None,
    };
    let address_space = address_space_limit.map(|limit| (address_space, limit));
    let found = [
        set.map(|of| bound(Of::Setting, of)),
        machine.filter(|_| auto).map(|of| bound(Of::Machine, of)),
        cgroup.filter(|_| auto).map(|of| bound(Of::Cgroup, of)),
        address_space
            .filter(|_| limit != MemoryLimit::Unlimited)
            .map(|of| bound(Of::AddressSpace, of)),
    ];
    found.into_iter().flatten().collect()
}

/// A field of a file of the kernel's that tells kibibytes.
fn kib(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_whitespace().next()?.parse::<u64>().ok().map(|kib| kib << 10)
}

fn machine() -> Option<(u64, u64)> {
    let text = fs::read_to_string("/proc/meminfo").ok()?;
    let total = kib(&text, "MemTotal:")?;
    Some((total.saturating_sub(kib(&text, "MemAvailable:")?), total))
}

/// The tightest bound of the control group and those it is in.
fn cgroup() -> Option<(u64, u64)> {
    let text = fs::read_to_string("/proc/self/cgroup").ok()?;
    cgroup_under(Path::new("/sys/fs/cgroup"), &text)
}

fn cgroup_under(mount: &Path, groups: &str) -> Option<(u64, u64)> {
    let mut tightest: Option<(u64, u64)> = None;
    for line in groups.lines() {
        let mut parts = line.splitn(3, ':');
        let (_, Some(controllers), Some(path)) = (parts.next(), parts.next(), parts.next()) else {
            continue;
        };
        let (root, of_v1) = if controllers.is_empty() {
            (mount.to_owned(), false)
        } else if controllers.split(',').any(|controller| controller == "memory") {
            (mount.join("memory"), true)
        } else {
            continue;
        };
        // A container may see its own group as the root, under a path that is the host's.
        let path = PathBuf::from(path.trim_start_matches('/'));
        for group in path.ancestors() {
            let found = group_bound(&root.join(group), of_v1);
            let tighter = |(used, limit): &(u64, u64)| {
                tightest.is_none_or(|(best_used, best_limit)| {
                    limit.saturating_sub(*used) < best_limit.saturating_sub(best_used)
                })
            };
            tightest = found.filter(tighter).or(tightest);
        }
    }
    tightest
}

fn group_bound(group: &Path, of_v1: bool) -> Option<(u64, u64)> {
    let names = if of_v1 {
        ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file ")
    } else {
        ("memory.max", "memory.current", "inactive_file ")
    };
    let number = |name| fs::read_to_string(group.join(name)).ok()?.trim().parse::<u64>().ok();
    // "max", or nearly all there can be: no bound.
    let limit = number(names.0).filter(|&limit| limit < 1 << 62)?;
    let stat = fs::read_to_string(group.join("memory.stat")).unwrap_or_default();
    // Pages of files that nobody used lately go first, before anybody is ended.
    let cache = stat.lines().find_map(|line| line.strip_prefix(names.2)?.parse::<u64>().ok());
    Some((number(names.1)?.saturating_sub(cache.unwrap_or_default()), limit))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn a_bound_is_full_before_it_is_used_up_and_stays_so_until_there_is_room() {
        let at = |used| Bound { of: Of::Setting, used: used * MIB, limit: 1000 * MIB };
        assert!(!at(899).is_full(false) && at(900).is_full(false));
        assert!(at(890).is_full(true) && !at(870).is_full(true));
        assert_eq!(at(800).left(), 100 * MIB);
        // Of a small one a third is kept at most, of a large one a gibibyte.
        let small = Bound { of: Of::Setting, used: 0, limit: 90 * MIB };
        assert_eq!(small.left(), 60 * MIB);
        let large = Bound { of: Of::Machine, used: 0, limit: 100 << 30 };
        assert_eq!(large.left(), 99 << 30);
        assert_eq!(at(2000).left(), 0);
    }

    #[test]
    fn the_setting_chooses_the_bounds() {
        let reading = Reading {
            resident: 5 * MIB,
            address_space: 70 * MIB,
            address_space_limit: Some(500 * MIB),
            machine: Some((1, 2)),
            cgroup: Some((3, 4)),
        };
        let of =
            |limit| -> Vec<Of> { bounds(limit, &reading).iter().map(|bound| bound.of).collect() };
        assert_eq!(of(MemoryLimit::Auto), [Of::Machine, Of::Cgroup, Of::AddressSpace]);
        assert_eq!(of(MemoryLimit::Bytes(9)), [Of::Setting, Of::AddressSpace]);
        assert_eq!(of(MemoryLimit::Unlimited), []);
        let set = bounds(MemoryLimit::Bytes(9 * MIB), &reading)[0];
        assert_eq!((set.used, set.limit), (5 * MIB, 9 * MIB));
    }

    #[test]
    fn this_process_is_read() {
        let reading = Reading::now(MemoryLimit::Auto);
        assert!(reading.resident > MIB && reading.address_space > reading.resident);
        assert!(reading.machine.is_some_and(|(used, total)| used < total && total > 64 * MIB));
    }

    #[test]
    fn groups_of_both_kinds_are_read_with_those_they_are_in() {
        let root = tempfile::tempdir().unwrap();
        let file = |path: &str, text: &str| {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        let of = |groups: &str| cgroup_under(root.path(), groups);
        assert_eq!(of("0::/\n"), None);
        file("a/memory.max", "1000\n");
        file("a/memory.current", "300\n");
        file("a/b/memory.max", "max\n");
        file("a/b/memory.current", "200\n");
        assert_eq!(of("0::/a/b\n"), Some((300, 1000)), "of the one it is in");
        file("a/memory.stat", "anon 1\ninactive_file 250\nactive_file 2\n");
        assert_eq!(of("0::/a/b\n"), Some((50, 1000)));
        file("a/b/memory.max", "400\n");
        assert_eq!(of("0::/a/b\n"), Some((200, 400)), "the tighter one");
        file("memory/x/memory.limit_in_bytes", "500\n");
        file("memory/x/memory.usage_in_bytes", "100\n");
        file("memory/memory.limit_in_bytes", "9223372036854771712\n");
        file("memory/memory.usage_in_bytes", "100\n");
        assert_eq!(of("4:cpu,memory:/x\n0::/\n"), Some((100, 500)));
        assert_eq!(of("4:memory:/host/path/unseen\n"), None);
        file("memory/memory.limit_in_bytes", "700\n");
        assert_eq!(of("4:memory:/host/path/unseen\n"), Some((100, 700)));
    }
}
