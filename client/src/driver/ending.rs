//! How a session's task ends: closed in order, or dropped with its runtime.

use super::{Driver, SessionCommand};
use crate::session::Loss;
use lockring_proto::Time;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};

/// How long closing waits for the nodes' word.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

/// How long the last words of a session whose runtime ended may take; then its lease ends it.
const FAREWELL_TIMEOUT: Duration = Duration::from_millis(750);

/// Who has been silent for this long gets no farewell.
const HEARD_WITHIN: Duration = Duration::from_secs(5);

impl Driver {
    /// Closes the session. What was asked earlier is sent first; whoever still waits is told.
    pub(super) fn close(&mut self, now: Time, goodbye: bool, done: Option<oneshot::Sender<()>>) {
        if self.session.is_closing() {
            return;
        }
        self.fate.end_leases(Loss::Closed);
        self.session.close(now, (goodbye, CLOSE_TIMEOUT), Loss::Closed);
        self.closer = done;
    }
}

impl Drop for Driver {
    /// The runtime has ended while the session lived on: everybody is told, and what was released,
    /// or has no owner any more, is given back over last connections of its own.
    fn drop(&mut self) {
        self.fate.end_leases(Loss::RuntimeEnded);
        if self.over || self.is_last {
            return;
        }
        let now = self.clock.now();
        self.carry_out(now);
        let mut goodbye = self.session.ends_with_goodbye();
        while let Some(command) = self.queue.try_next() {
            match command {
                SessionCommand::Release { .. } | SessionCommand::Abandon { .. } => {
                    self.command(now, command);
                }
                // A goodbye says it all, and who leaves asked for what came before.
                SessionCommand::Close { goodbye: false, .. } => {
                    goodbye = false;
                    break;
                }
                _ => {}
            }
        }
        self.bid_farewell(now, goodbye);
    }
}

impl Driver {
    /// Says what is unsaid from a thread with a runtime of its own, and waits for it: the process
    /// may end next.
    fn bid_farewell(&mut self, now: Time, goodbye: bool) {
        let mut session = self.session.take_over(now);
        for link in session.links() {
            session.down(now, link);
        }
        session.close(now, (goodbye, FAREWELL_TIMEOUT), Loss::RuntimeEnded);
        if !session.has_last_words(now, goodbye, HEARD_WITHIN) {
            return;
        }
        let (pool, fate) = (Arc::clone(&self.pool), Arc::clone(&self.fate));
        let say = move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            let Ok(runtime) = runtime else { return };
            runtime.block_on(async {
                let nobody = mpsc::unbounded_channel().1;
                let mut last = Self::new(pool, fate, nobody, session, None);
                last.is_last = true;
                let words = last.say_and_close();
                let _the_lease_ends_it_otherwise =
                    tokio::time::timeout(FAREWELL_TIMEOUT, words).await;
            });
            // A name that is being looked up is not waited for.
            runtime.shutdown_background();
        };
        if let Ok(thread) = std::thread::Builder::new().name("lockring-bye".to_owned()).spawn(say) {
            // It ends by itself within its time.
            let _a_panic_there_is_told_already = thread.join();
        }
    }

    async fn say_and_close(&mut self) {
        self.serve().await;
        for wire in self.lines.iter().filter_map(|line| line.wire.as_ref()) {
            wire.drained().await;
        }
    }
}
