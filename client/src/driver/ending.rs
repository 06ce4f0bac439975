//! How a link's task ends: closed in order, or dropped with its runtime.

use super::{Caller, Command, Driver, Uplink};
use crate::link::{Link, Loss, Outcome, Query};
use crate::wire::{Wire, WireError, WireEvent};
use lockring_proto::{Time, clock};
use std::future::Future;
use std::pin::Pin;
use std::sync::{Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;
use tokio::sync::oneshot;

/// How long closing waits for the node's word.
pub(crate) const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

/// The last words of a session whose runtime ended may take so long; then its lease ends it.
const FAREWELL_TIMEOUT: Duration = Duration::from_millis(750);

/// Who was not heard for so long is not worth a farewell.
const HEARD_WITHIN: Duration = Duration::from_secs(5);

/// A link that is being closed.
pub(super) struct Closing {
    goodbye: bool,
    said: bool,
    pub(super) until: Time,
    done: Option<oneshot::Sender<()>>,
}

impl<U: Uplink> Driver<U> {
    /// Closes the link. What was asked before is sent before; who still waits gets to know.
    pub(super) fn close(&mut self, now: Time, goodbye: bool, done: oneshot::Sender<()>) {
        if self.closing.is_some() {
            return;
        }
        self.lease.end(Loss::Closed);
        self.link.give_up_waiting(now, Loss::Closed);
        let until = now.after(CLOSE_TIMEOUT);
        self.closing = Some(Closing { goodbye, said: false, until, done: Some(done) });
    }

    pub(super) fn said_goodbye(&mut self) {
        if let Some(closing) = &mut self.closing {
            (closing.goodbye, closing.said) = (false, false);
        }
    }

    /// Whether nothing is left to be done. Says the goodbye when it can be said.
    pub(super) fn is_closed(&mut self, now: Time) -> bool {
        let Some(closing) = &mut self.closing else { return false };
        let was_never_there = self.link.incarnation() == 0 && !self.link.is_owed_answers();
        let left = closing.goodbye || self.link.is_owed_answers();
        if !left || now >= closing.until || was_never_there {
            if let Some(done) = closing.done.take() {
                let _closer_may_be_gone = done.send(());
            }
            return true;
        }
        if !self.link.is_up() {
            // A goodbye on a connection that broke is said again on the next.
            closing.said = false;
        } else if closing.goodbye && !closing.said {
            closing.said = true;
            let token = self.internal(Caller::Goodbye);
            self.link.query(now, token, Query::Goodbye);
        }
        false
    }
}

impl<U: Uplink> Drop for Driver<U> {
    /// The runtime has ended while the session lived on: everybody is told, and what was released,
    /// or is nobody's any more, is given back by a last connection of its own.
    fn drop(&mut self) {
        self.lease.end(Loss::RuntimeEnded);
        if self.over {
            return;
        }
        let now = self.clock.now();
        self.carry_out(now);
        let goodbye = self.closing.as_ref().is_none_or(|closing| closing.goodbye);
        while let Ok(command) = self.commands.try_recv() {
            match command {
                Command::Release { .. } | Command::Abandon { .. } => self.command(now, command),
                // A goodbye says it all, and who leaves asked for what came before.
                Command::Close { goodbye: false, .. } => return self.bid_farewell(now, false),
                _ => {}
            }
        }
        self.bid_farewell(now, goodbye);
    }
}

impl<U: Uplink> Driver<U> {
    fn bid_farewell(&mut self, now: Time, goodbye: bool) {
        let heard = self.link.was_heard_within(now, HEARD_WITHIN);
        let Some(farewells) = self.farewells.take().filter(|_| heard) else { return };
        if !goodbye && !self.link.is_owed_answers() {
            return;
        }
        let mut link = self.link.take_over(now);
        link.down(now);
        link.give_up_waiting(now, Loss::RuntimeEnded);
        let incarnation = self.incarnation.max(link.incarnation()).saturating_add(1);
        let uplink = std::sync::Arc::clone(&self.uplink);
        let say = move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            let Ok(runtime) = runtime else { return };
            runtime.block_on(async {
                let words = last_words(link, incarnation, goodbye, uplink.connect_anew());
                let _the_lease_ends_it_otherwise =
                    tokio::time::timeout(FAREWELL_TIMEOUT, words).await;
            });
            // A name that is being looked up is not waited for.
            runtime.shutdown_background();
        };
        if let Ok(thread) = std::thread::Builder::new().name("lockring-bye".to_owned()).spawn(say) {
            farewells.add(thread);
        }
    }
}

type Connect = Pin<Box<dyn Future<Output = Result<Wire, WireError>> + Send>>;

/// Says what is unsaid on a connection of its own, and waits for the node's word.
async fn last_words(
    mut link: Link,
    incarnation: u64,
    goodbye: bool,
    connect: Connect,
) -> Result<(), WireError> {
    let mut wire = connect.await?;
    link.greet(clock::now(), incarnation);
    let mut unsaid = goodbye;
    loop {
        let up =
            std::mem::take(link.outcomes()).iter().any(|outcome| matches!(outcome, Outcome::Up(_)));
        if up && std::mem::take(&mut unsaid) {
            link.query(clock::now(), 0, Query::Goodbye);
        }
        if link.is_up() && !unsaid && !link.is_owed_answers() {
            wire.close();
            wire.drained().await;
            return Ok(());
        }
        wire.send(link.outgoing());
        if wire.next().await? == WireEvent::Replies {
            let taken = link.receive(clock::now(), wire.replies.bytes());
            wire.replies.consume(taken.map_err(|error| WireError::Ended(error.to_string()))?);
        }
    }
}

/// The last words of a session that are being said, one thread a link. Dropped with the last of the
/// session's links, which waits for them: the process may end next.
#[derive(Default)]
pub(crate) struct Farewells {
    threads: Mutex<Vec<JoinHandle<()>>>,
}

impl Farewells {
    fn add(&self, thread: JoinHandle<()>) {
        self.threads.lock().unwrap_or_else(PoisonError::into_inner).push(thread);
    }
}

impl Drop for Farewells {
    fn drop(&mut self) {
        let threads =
            std::mem::take(self.threads.get_mut().unwrap_or_else(PoisonError::into_inner));
        for thread in threads {
            // Each ends by itself within its time.
            let _a_panic_there_is_told_already = thread.join();
        }
    }
}
