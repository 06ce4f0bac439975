//! What is known of a hold, in one place: guard, owner, watchers and the link's task share it and
//! answer from it alone.

use crate::clock::Clock;
use crate::session::Loss;
use lockring_proto::{Fence, Time};
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering, fence};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::task::{Wake, Waker};
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// Whether something is lost, and why: set once.
#[derive(Debug, Default)]
struct Lost(AtomicU8);

impl Lost {
    /// `false`: it was lost before.
    fn set(&self, loss: Loss) -> bool {
        let number = Loss::ALL.iter().position(|&one| one == loss);
        let number = number.map_or(u8::MAX, |at| at as u8 + 1);
        // SeqCst, as is the reading of it: a watcher that comes now sees the loss, or is seen.
        self.0.compare_exchange(0, number, Ordering::SeqCst, Ordering::SeqCst).is_ok()
    }

    fn get(&self) -> Option<Loss> {
        let number = self.0.load(Ordering::SeqCst);
        Loss::ALL.get(usize::from(number).checked_sub(1)?).copied()
    }
}

/// A lease of a link, from its first hold to its end, or one of holds that have come from another
/// link: with it all of its holds end at once.
#[derive(Debug)]
pub(crate) struct Lease {
    clock: Clock,
    /// Holds are believed until then.
    valid_until: AtomicU64,
    /// The session's real TTL, in milliseconds; 0 until it is known.
    ttl_ms: AtomicU64,
    lost: Lost,
    /// Holds whose end somebody wants to hear of. They may have gone to another lease since.
    watching: Mutex<Vec<Weak<HoldState>>>,
    /// Somebody wants to know when it ends, whoever has to notice it.
    watched: AtomicBool,
}

impl Lease {
    pub(crate) fn new(clock: Clock, valid_until: Time) -> Arc<Self> {
        Arc::new(Self {
            clock,
            valid_until: AtomicU64::new(valid_until.0),
            ttl_ms: AtomicU64::new(0),
            lost: Lost::default(),
            watching: Mutex::new(Vec::new()),
            watched: AtomicBool::new(false),
        })
    }

    /// The link's task has counted it anew.
    pub(crate) fn is_valid_until(&self, at: Time) {
        // Relaxed: a reader only compares it with the clock, and reads again later.
        self.valid_until.store(at.0, Ordering::Relaxed);
    }

    /// The TTL that the worker gives.
    pub(crate) fn has_ttl(&self, ttl: Duration) {
        self.ttl_ms.store(ttl.as_millis() as u64, Ordering::Relaxed);
    }

    /// Zero until it is known.
    pub(crate) fn ttl(&self) -> Duration {
        Duration::from_millis(self.ttl_ms.load(Ordering::Relaxed))
    }

    fn valid_until(&self) -> Time {
        Time(self.valid_until.load(Ordering::Relaxed))
    }

    /// Ends it, with everything held under it.
    pub(crate) fn end(&self, loss: Loss) {
        if self.lost.set(loss) {
            // Whoever comes to watch after this sees the loss.
            let watching = std::mem::take(&mut *guard(&self.watching));
            watching.iter().filter_map(Weak::upgrade).for_each(|hold| hold.hears_of(self));
        }
    }

    pub(crate) fn loss(&self) -> Option<Loss> {
        self.lost.get()
    }

    /// A hold wants to hear of its end.
    fn is_watched_by(self: &Arc<Self>, hold: &Arc<HoldState>) {
        let mut watching = guard(&self.watching);
        if watching.len() == watching.capacity() {
            watching.retain(|hold| hold.strong_count() > 0);
            // As many have to come as are left before all are looked at again.
            let left = watching.len().max(1);
            watching.reserve(left);
        }
        watching.push(Arc::downgrade(hold));
        drop(watching);
        self.watch();
    }

    /// From now on the end of the lease is noticed by the clock alone, also when the link's task
    /// does not run any more.
    fn watch(self: &Arc<Self>) {
        if !self.watched.swap(true, Ordering::Relaxed) {
            Watch(Arc::downgrade(self)).arm(self);
        }
    }
}

/// Looks at a lease when it would be over.
struct Watch(Weak<Lease>);

impl Watch {
    fn arm(self, lease: &Lease) {
        lease.clock.wake_at(lease.valid_until(), Waker::from(Arc::new(self)));
    }
}

impl Wake for Watch {
    fn wake(self: Arc<Self>) {
        let Some(lease) = self.0.upgrade().filter(|lease| lease.loss().is_none()) else { return };
        if lease.clock.now() >= lease.valid_until() {
            lease.end(Loss::Lapsed);
        } else {
            Self(Weak::clone(&self.0)).arm(&lease);
        }
    }
}

/// One hold.
#[derive(Debug)]
pub(crate) struct HoldState {
    pub(crate) fence: Fence,
    /// Under which it is now.
    lease: Mutex<Arc<Lease>>,
    lost: Lost,
    /// Made for the first who watches.
    token: OnceLock<CancellationToken>,
}

impl HoldState {
    pub(crate) fn new(fence: Fence, lease: Arc<Lease>) -> Arc<Self> {
        let lease = Mutex::new(lease);
        Arc::new(Self { fence, lease, lost: Lost::default(), token: OnceLock::new() })
    }

    fn lease(&self) -> Arc<Lease> {
        Arc::clone(&guard(&self.lease))
    }

    /// From now on it is under another lease.
    pub(crate) fn follows(self: &Arc<Self>, lease: &Arc<Lease>) {
        let mut own = guard(&self.lease);
        *own = Arc::clone(lease);
        // Whoever makes the token does so with the lease in hand: here, or under the new one.
        if let Some(token) = self.token.get() {
            lease.is_watched_by(self);
            if lease.loss().is_some() {
                token.cancel();
            }
        }
    }

    /// Ends its lease, with everything held under that.
    pub(crate) fn end_lease(&self, loss: Loss) {
        self.lease().end(loss);
    }

    /// A lease has ended.
    fn hears_of(&self, lease: &Lease) {
        if std::ptr::eq(Arc::as_ptr(&guard(&self.lease)), lease)
            && let Some(token) = self.token.get()
        {
            token.cancel();
        }
    }

    /// It is not held any more, though its lease may run on.
    pub(crate) fn lose(&self, loss: Loss) {
        if self.lost.set(loss) {
            // With the fence in `token`: either the token is seen here, or the loss there.
            fence(Ordering::SeqCst);
            if let Some(token) = self.token.get() {
                token.cancel();
            }
        }
    }

    /// Why it is lost, if it is.
    pub(crate) fn loss(&self) -> Option<Loss> {
        self.lost.get().or_else(|| self.lease().loss())
    }

    /// How long it is valid without contact; zero once it is lost.
    pub(crate) fn valid_for(&self) -> Duration {
        if self.lost.get().is_some() {
            return Duration::ZERO;
        }
        let lease = guard(&self.lease);
        match lease.loss() {
            Some(_) => Duration::ZERO,
            None => lease.valid_until().since(lease.clock.now()),
        }
    }

    /// The session's TTL, where it is held.
    pub(crate) fn ttl(&self) -> Duration {
        self.lease().ttl()
    }

    /// Cancelled when it is lost. All that watch share it: nobody may cancel it but a loss.
    pub(crate) fn token(self: &Arc<Self>) -> &CancellationToken {
        let lease = guard(&self.lease);
        let token = self.token.get_or_init(|| {
            lease.is_watched_by(self);
            CancellationToken::new()
        });
        let is_over = lease.loss().is_some();
        drop(lease);
        fence(Ordering::SeqCst);
        if is_over || self.lost.get().is_some() {
            // It was lost before there was a token to cancel.
            token.cancel();
        }
        token
    }
}

fn guard<T>(shared: &Mutex<T>) -> MutexGuard<'_, T> {
    // What is guarded is a pointer or a list of them: a panic cannot have left it half changed.
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::tests::SetClock;

    fn held() -> (Arc<SetClock>, Arc<Lease>, Arc<HoldState>) {
        let set = SetClock::new(Time(0));
        let lease = Lease::new(Clock::Set(Arc::clone(&set)), Time(10_000_000));
        let hold = HoldState::new(Fence(1), Arc::clone(&lease));
        (set, lease, hold)
    }

    #[test]
    fn validity_ends_with_the_hold_though_the_lease_runs_on() {
        let (_, lease, hold) = held();
        let other = HoldState::new(Fence(2), Arc::clone(&lease));
        hold.lose(Loss::Forced);
        assert_eq!((hold.valid_for(), hold.loss()), (Duration::ZERO, Some(Loss::Forced)));
        assert_eq!((other.valid_for(), other.loss()), (Duration::from_secs(10), None));
        assert!(hold.token().is_cancelled(), "a late watcher is told at once");
        assert!(!other.token().is_cancelled());
    }

    #[test]
    fn a_lease_that_ends_takes_all_its_holds_along_and_the_first_reason_stays() {
        let (_, lease, hold) = held();
        let early = hold.token().clone();
        lease.end(Loss::Closed);
        lease.end(Loss::Lapsed);
        assert!(early.is_cancelled() && hold.token().is_cancelled());
        assert_eq!((hold.loss(), hold.valid_for()), (Some(Loss::Closed), Duration::ZERO));
    }

    #[test]
    fn a_hold_that_follows_its_cell_ends_with_its_new_lease_alone() {
        let (set, old, hold) = held();
        let (stays, early) = (HoldState::new(Fence(2), Arc::clone(&old)), hold.token().clone());
        let new = Lease::new(Clock::Set(Arc::clone(&set)), Time(3_000_000));
        hold.follows(&new);
        assert_eq!(hold.valid_for(), Duration::from_secs(3));
        old.is_valid_until(Time(60_000_000));
        assert_eq!(hold.valid_for(), Duration::from_secs(3), "the old one is nothing to it");
        old.end(Loss::Lapsed);
        assert_eq!((hold.loss(), early.is_cancelled()), (None, false));
        assert!(stays.token().is_cancelled());
        // Nobody but the clock drives the new one.
        set.advance(Duration::from_secs(4));
        assert!(early.is_cancelled());
        assert_eq!((hold.loss(), hold.valid_for()), (Some(Loss::Lapsed), Duration::ZERO));
        // To a lease that is over already it goes with all who watch.
        let (_, gone, other) = held();
        let watched = other.token().clone();
        other.follows(&new);
        assert!(watched.is_cancelled() && gone.loss().is_none());
    }

    #[test]
    fn the_clock_alone_ends_a_lease_that_is_watched_after_a_suspend_too() {
        let (set, lease, hold) = held();
        let token = hold.token().clone();
        set.advance(Duration::from_secs(9));
        lease.is_valid_until(Time(15_000_000));
        set.advance(Duration::from_secs(2));
        assert!(!token.is_cancelled(), "it was renewed meanwhile");
        // The machine sleeps for an hour, and no task of the link runs.
        set.advance(Duration::from_secs(3600));
        assert!(token.is_cancelled());
        assert_eq!(hold.loss(), Some(Loss::Lapsed));
    }

    #[test]
    fn to_watch_costs_the_same_however_many_others_do() {
        const WATCHED: u64 = 4000;
        let (_, lease, _hold) = held();
        let watched = |fence| {
            let hold = HoldState::new(Fence(fence), Arc::clone(&lease));
            hold.token();
            hold
        };
        let known = || guard(&lease.watching).len() as u64;
        let mut kept = Vec::new();
        while known() < WATCHED || known() + 1 < guard(&lease.watching).capacity() as u64 {
            kept.push(watched(1));
        }
        // From now on each is gone before the next comes.
        let mut looked_at = 0;
        for fence in 0..WATCHED {
            let before = known();
            drop(watched(fence));
            looked_at += if known() > before { 1 } else { before };
        }
        assert!(looked_at <= 4 * WATCHED, "{looked_at} for {WATCHED}");
    }

    #[test]
    fn watching_leaves_nothing_behind() {
        let (set, lease, hold) = held();
        for _ in 0..1000 {
            drop(hold.token().child_token());
        }
        assert_eq!(set.armed(), 1, "one alarm for the lease, however often it is watched");
        drop((lease, hold));
        set.advance(Duration::from_secs(20));
        assert_eq!(set.armed(), 0);
    }
}
