//! Guards: the values that own holds.

use crate::claims::Key;
use crate::driver::{Commands, Grant, Granted, Released, SessionCommand};
use crate::error::{Denial, Error};
use crate::hold::HoldState;
use crate::session::{ClaimRef, Loss};
use lockring_proto::Shown;
use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

/// A hold and the way to give it back. Dropping it gives the hold back without waiting.
#[derive(Debug)]
pub(crate) struct Hold {
    session: Commands,
    claim: ClaimRef,
    state: Arc<HoldState>,
    armed: bool,
}

impl Hold {
    fn new(session: Commands, Grant { claim, hold }: Grant) -> Self {
        Self { session, claim, state: hold, armed: true }
    }
}

impl Drop for Hold {
    /// Only puts a message into the session's queue: it never blocks, and works outside a runtime
    /// and during a panic.
    fn drop(&mut self) {
        if self.armed {
            let release = SessionCommand::Release { claim: self.claim, answer: None };
            // If its task is gone, so is the session, and its locks end with their lease.
            let _session_may_be_closed = self.session.send(release);
        }
    }
}

/// An acquire under way. If its caller goes before the answer is taken, it leaves the queue, or
/// gives back what it was granted meanwhile.
pub(crate) struct Waiting {
    /// None once the answer is taken.
    session: Option<Commands>,
    ticket: u64,
    answered: oneshot::Receiver<Granted>,
}

impl Waiting {
    pub(crate) fn new(
        session: Commands,
        ticket: u64,
        answered: oneshot::Receiver<Granted>,
    ) -> Self {
        Self { session: Some(session), ticket, answered }
    }

    /// Waits for the answer. `None`: the session ended before there was one.
    pub(crate) async fn granted(mut self) -> Option<Result<Hold, Denial>> {
        let answer = (&mut self.answered).await;
        let session = self.session.take()?;
        Some(answer.ok()?.map(|grant| Hold::new(session, grant)))
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        let Some(session) = self.session.take() else { return };
        // A grant from now on comes back to the session's task, which releases it.
        self.answered.close();
        let command = match self.answered.try_recv() {
            Ok(Ok(Grant { claim, .. })) => SessionCommand::Release { claim, answer: None },
            Ok(Err(_)) => return,
            Err(_) => SessionCommand::Abandon { ticket: self.ticket },
        };
        let _session_may_be_closed = session.send(command);
    }
}

/// A held lock. It is `Send + 'static` and not `Clone`; dropping it releases the lock in the
/// background, [`Guard::release`] does so and says how it ended.
///
/// The lock is exclusive *within the validity of its lease*: a process that is paused for longer
/// may wake to find it lost. Pass [`Guard::fence`] along with whatever the lock protects, and have
/// the resource refuse a lower fence than it has seen.
///
/// A guard belongs to its client's session: when that ends (closed, left, its last
/// [`crate::Client`] dropped, taken up by another process, its runtime shut down) the guard is
/// lost, and told so.
///
/// ```no_run
/// # async fn example(client: lockring_client::Client) -> Result<(), lockring_client::Error> {
/// use lockring_client::{Guard, proto::Shown};
/// let guard: Guard = client.lock("orders/42").await?;
/// println!("{} under fence {}", Shown(guard.key()), guard.fence());
/// guard.release().await?;
/// # Ok(()) }
/// ```
#[must_use = "a dropped guard releases its lock at once"]
pub struct Guard {
    hold: Hold,
    key: Key,
}

impl Guard {
    pub(crate) fn new(hold: Hold, key: Key) -> Self {
        Self { hold, key }
    }

    /// The fencing token: strictly increasing per key, whoever holds it.
    pub fn fence(&self) -> u64 {
        self.hold.state.fence.0
    }

    /// The key.
    pub fn key(&self) -> &[u8] {
        self.key.bytes()
    }

    /// Whether the lock is held, as far as is known here: it was not lost, and its lease still runs
    /// by this machine's clock. It costs no message, and may be out of date as soon as it is said.
    ///
    /// ```no_run
    /// # fn step() -> bool { false }
    /// # async fn example(client: lockring_client::Client) -> Result<(), lockring_client::Error> {
    /// let guard = client.lock("import").await?;
    /// while guard.is_valid() && step() {
    ///     println!("{:?} left without contact, of {:?}", guard.valid_for(), guard.ttl());
    /// }
    /// # Ok(()) }
    /// ```
    pub fn is_valid(&self) -> bool {
        !self.valid_for().is_zero()
    }

    /// How long the lock is held from now on without contact, by this machine's clock; zero once it
    /// is lost, whatever else the session holds.
    pub fn valid_for(&self) -> Duration {
        self.hold.state.valid_for()
    }

    /// The real TTL of the session, as the node gave it, in whole milliseconds.
    pub fn ttl(&self) -> Duration {
        self.hold.state.ttl()
    }

    /// Gives the lock back and waits for the node's word; no longer than until its lease is over on
    /// this machine's clock, or contact was gone for as long as the client waits for it.
    ///
    /// Not cancel safe in one respect: a dropped future leaves unknown how it ended; the lock is
    /// released all the same (or, if the future was never polled, as by dropping the guard).
    ///
    /// ```no_run
    /// # async fn example(client: lockring_client::Client) -> Result<(), lockring_client::Error> {
    /// use lockring_client::ErrorKind;
    /// let guard = client.lock("orders/42").await?;
    /// match guard.release().await {
    ///     Err(error) if error.kind() == ErrorKind::Lost => println!("undo the work: {error}"),
    ///     ended => ended?,
    /// }
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// [`crate::ErrorKind::Lost`] when the lock was not held any more: if
    /// [`crate::Error::is_indeterminate`], an earlier copy of the release may have ended it.
    /// [`crate::ErrorKind::Unreachable`] when no answer came: the lock may still be held, for as
    /// long as the message says, and is given back when there is contact again.
    /// [`crate::ErrorKind::Denied`] and the like when the node refused the release: the lock may
    /// still be held there, no longer than its lease.
    /// [`crate::ErrorKind::Closed`] when the client was closed meanwhile.
    pub async fn release(mut self) -> Result<(), Error> {
        let (answer, answered) = oneshot::channel();
        let release = SessionCommand::Release { claim: self.hold.claim, answer: Some(answer) };
        self.hold.armed = false;
        let state = &self.hold.state;
        if self.hold.session.send(release).is_err() {
            return Err(Error::lost(state.loss(), false));
        }
        match answered.await {
            Ok(Released::Yes) => Ok(()),
            Ok(Released::NotHeld { maybe_released }) => {
                Err(Error::lost(state.loss(), maybe_released))
            }
            Ok(Released::Unconfirmed { held_for }) => Err(Error::unconfirmed(held_for)),
            Ok(Released::Refused(refusal)) => Err(Error::refused(refusal)),
            Err(_) => Err(Error::closed_meanwhile()),
        }
    }

    /// A token that is cancelled when the lock is lost, before the node may grant it to another.
    /// It costs no polling, and cancelling it has no effect on the lock.
    ///
    /// ```no_run
    /// # async fn work() {}
    /// # async fn example(client: lockring_client::Client) -> Result<(), lockring_client::Error> {
    /// let guard = client.lock("job").await?;
    /// if guard.lost_token().run_until_cancelled(work()).await.is_none() {
    ///     eprintln!("lost the lock; stopped");
    /// }
    /// # Ok(()) }
    /// ```
    pub fn lost_token(&self) -> CancellationToken {
        self.hold.state.token().child_token()
    }

    /// Ends when the lock is lost, as [`Guard::lost_token`] is cancelled: on any runtime, also when
    /// the client's own is gone.
    ///
    /// Cancel safe: a dropped future leaves nothing behind.
    ///
    /// ```no_run
    /// # async fn work() {}
    /// # async fn example(client: lockring_client::Client) -> Result<(), lockring_client::Error> {
    /// let guard = client.lock("job").await?;
    /// tokio::select! {
    ///     () = guard.lost() => eprintln!("lost the lock; stopped"),
    ///     () = work() => guard.release().await?,
    /// }
    /// # Ok(()) }
    /// ```
    pub fn lost(&self) -> impl Future<Output = ()> + Send + 'static {
        self.hold.state.token().clone().cancelled_owned()
    }

    /// Why the lock was lost; `None` while it is held, as far as is known here. A lease that is
    /// over by the clock is told as soon as it is noticed.
    ///
    /// ```no_run
    /// # async fn example(client: lockring_client::Client) -> Result<(), lockring_client::Error> {
    /// let guard = client.lock("job").await?;
    /// if let Some(reason) = guard.lost_reason() {
    ///     eprintln!("lost: {reason}");
    /// }
    /// # Ok(()) }
    /// ```
    pub fn lost_reason(&self) -> Option<Loss> {
        self.hold.state.loss()
    }

    /// Keeps the hold: it stays until its session ends. Whoever watches the guard is told.
    pub(crate) fn forget(mut self) {
        self.hold.armed = false;
        self.hold.state.lose(Loss::HandedOver);
    }
}

impl fmt::Debug for Guard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Guard")
            .field("key", &Shown(self.key()).to_string())
            .field("fence", &self.fence())
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Clock;
    use crate::hold::Lease;
    use crate::session::NotGranted;
    use crate::session::tests::held_claim;
    use lockring_proto::{Fence, Time};
    use tokio::sync::mpsc;

    /// An acquire under way, the way to answer it, and what its session is told.
    fn waiting() -> (Waiting, oneshot::Sender<Granted>, mpsc::UnboundedReceiver<SessionCommand>) {
        let (commands, told) = mpsc::unbounded_channel();
        let (answer, answered) = oneshot::channel();
        (Waiting::new(Commands::new(commands), 7, answered), answer, told)
    }

    fn grant() -> Grant {
        let lease = Lease::new(Clock::BootTime, Time(0));
        Grant { claim: held_claim(), hold: HoldState::new(Fence(3), lease) }
    }

    #[test]
    fn a_caller_that_goes_unanswered_leaves_the_queue() {
        let (waiting, answer, mut told) = waiting();
        drop(waiting);
        assert!(matches!(told.try_recv(), Ok(SessionCommand::Abandon { ticket: 7 })));
        assert!(answer.send(Ok(grant())).is_err(), "a later grant comes back");
    }

    #[test]
    fn a_grant_that_raced_its_caller_is_given_back() {
        let (waiting, answer, mut told) = waiting();
        answer.send(Ok(grant())).unwrap();
        drop(waiting);
        assert!(matches!(told.try_recv(), Ok(SessionCommand::Release { answer: None, .. })));
    }

    #[test]
    fn a_settled_claim_leaves_nothing_to_undo() {
        let (waiting, answer, mut told) = waiting();
        let denial = Denial { reason: NotGranted::Unreachable, trouble: None };
        answer.send(Err(denial)).unwrap();
        drop(waiting);
        assert!(told.try_recv().is_err());
    }

    #[tokio::test]
    async fn a_grant_that_is_taken_is_held_until_it_is_dropped() {
        let (waiting, answer, mut told) = waiting();
        answer.send(Ok(grant())).unwrap();
        let hold = waiting.granted().await.unwrap().unwrap();
        assert!(told.try_recv().is_err());
        drop(hold);
        assert!(matches!(told.try_recv(), Ok(SessionCommand::Release { answer: None, .. })));
    }

    #[tokio::test]
    async fn a_guard_that_becomes_a_token_tells_who_watches_and_keeps_the_hold() {
        let (waiting, answer, mut told) = waiting();
        answer.send(Ok(grant())).unwrap();
        let hold = waiting.granted().await.unwrap().unwrap();
        let guard = Guard::new(hold, Key::new(b"key"));
        let (lost, token) = (guard.lost(), guard.lost_token());
        guard.forget();
        lost.await;
        assert!(token.is_cancelled());
        assert!(told.try_recv().is_err(), "nothing is released");
    }
}
