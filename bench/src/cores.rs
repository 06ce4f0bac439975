//! Which cores the load generator and the servers it starts run on.
//!
//! Left alone, the scheduler now and then puts a server and its only client on one core, as each
//! wakes the other: both then wait half of the time, batches shrink, and the cost of a pair rises
//! by a third without either being at fault. So they are kept apart, for every target alike: the
//! load generator has the last core, servers all the others.

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use std::sync::OnceLock;

struct Cores {
    client: CpuSet,
    servers: CpuSet,
}

/// As it was when first asked: later this thread sees only its own core.
static CORES: OnceLock<Option<Cores>> = OnceLock::new();

fn cores() -> Option<&'static Cores> {
    CORES.get_or_init(apart).as_ref()
}

/// `None` on a single core, or where the system does not say.
fn apart() -> Option<Cores> {
    let all = sched_getaffinity(None).ok()?;
    let usable: Vec<usize> = (0..CpuSet::MAX_CPU).filter(|&core| all.is_set(core)).collect();
    let (&last, others) = usable.split_last()?;
    if others.is_empty() {
        return None;
    }
    let (mut client, mut servers) = (CpuSet::new(), CpuSet::new());
    client.set(last);
    others.iter().for_each(|&core| servers.set(core));
    Some(Cores { client, servers })
}

/// Runs `start`, which starts a server: the process inherits the servers' cores. Afterwards this
/// thread, and what it starts, runs on the load generator's core.
pub(crate) fn start_apart<T>(start: impl FnOnce() -> T) -> T {
    let Some(cores) = cores() else { return start() };
    // A refusal costs steadiness of the figures and nothing else.
    let _unpinned_then = sched_setaffinity(None, &cores.servers);
    let started = start();
    let _unpinned_then = sched_setaffinity(None, &cores.client);
    started
}
