//! The one clock of the shells on both sides, behind the feature `clock`. No wall clock takes part
//! in any decision.

use crate::Time;
use rustix::time::{ClockId, clock_gettime};

/// Microseconds of CLOCK_BOOTTIME, which also counts while the machine is suspended: a lease must
/// not live on through a suspend because the clock that measures it stood still.
pub fn now() -> Time {
    let now = clock_gettime(ClockId::Boottime);
    Time(now.tv_sec as u64 * 1_000_000 + now.tv_nsec as u64 / 1000)
}
