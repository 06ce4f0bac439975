//! Signals, as messages instead of deaths.

use super::super::exit::{self, Failure};
use super::tree;
use lockring_bench::is_ignored;
use nix::sys::signal::{SigSet, SigmaskHow, Signal, raise};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use std::thread;
use tokio::signal::unix::SignalKind;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

/// Signals that would end this process, and that a command may know what to do with.
const ENDING: [Signal; 12] = [
    Signal::SIGHUP,
    Signal::SIGINT,
    Signal::SIGQUIT,
    Signal::SIGTERM,
    Signal::SIGUSR1,
    Signal::SIGUSR2,
    Signal::SIGALRM,
    Signal::SIGVTALRM,
    Signal::SIGPROF,
    Signal::SIGIO,
    Signal::SIGPWR,
    Signal::SIGSTKFLT,
];

/// Signals that mean something else.
const OTHERS: [Signal; 4] = [Signal::SIGCHLD, Signal::SIGTSTP, Signal::SIGCONT, Signal::SIGWINCH];

/// A signal that has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Come {
    /// Which.
    pub signal: Signal,
    /// The kernel sent it, for the terminal: to a whole process group.
    pub from_terminal: bool,
}

impl Come {
    fn is_ending(self) -> bool {
        ENDING.contains(&self.signal)
    }
}

/// Signals that end a wait, and that a running command gets passed on.
#[derive(Debug)]
pub struct Signals {
    come: UnboundedReceiver<Come>,
    inherited: Mask,
}

/// Blocked signals, as bits: the lowest is that of signal 1, as in proc_pid_status(5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mask(pub u64);

impl Mask {
    fn bit(signal: Signal) -> u64 {
        1 << (signal as u32 - 1)
    }

    /// Sets it for this thread.
    ///
    /// # Errors
    /// None that is known: the mask is one that the system gave.
    pub fn set(self) -> nix::Result<()> {
        let blocked = Signal::iterator().filter(|&signal| self.0 & Self::bit(signal) != 0);
        blocked.collect::<SigSet>().thread_set_mask()
    }
}

impl Signals {
    /// From now on signals come here instead of ending the process. To be called before there are
    /// other threads. What was ignored when the process began stays ignored (nohup(1), and POSIX
    /// 2.11 for background jobs).
    pub fn new() -> Result<Self, Failure> {
        let failed = |error: std::io::Error| {
            Failure::new(exit::SOFTWARE, format!("signals cannot be received: {error}"))
        };
        let kept = |signal: &Signal| !is_ignored(SignalKind::from_raw(*signal as i32));
        let mask: SigSet = ENDING.into_iter().chain(OTHERS).filter(kept).collect();
        let before = mask.thread_swap_mask(SigmaskHow::SIG_BLOCK);
        let before = before.map_err(|error| failed(error.into()))?;
        let inherited = Mask(before.iter().map(Mask::bit).fold(0, |mask, bit| mask | bit));
        let queue = SignalFd::with_flags(&mask, SfdFlags::SFD_CLOEXEC);
        let queue = queue.map_err(|error| failed(error.into()))?;
        let (sender, come) = unbounded_channel();
        let receive = thread::Builder::new().name("signals".to_owned());
        receive.spawn(move || receive_from(&queue, &sender)).map_err(failed)?;
        Ok(Self { come, inherited })
    }

    /// What was blocked when the process began: a command begins like that.
    pub fn inherited(&self) -> Mask {
        self.inherited
    }

    /// The number of the next signal that ends a wait in which no command runs.
    pub async fn next(&mut self) -> i32 {
        loop {
            match self.any().await {
                come if come.is_ending() => return come.signal as i32,
                come if come.signal == Signal::SIGTSTP => stop(),
                _ => {}
            }
        }
    }

    /// The next signal of all that are received.
    pub async fn any(&mut self) -> Come {
        match self.come.recv().await {
            Some(come) => come,
            None => std::future::pending().await,
        }
    }
}

/// Receives signals for as long as the process lives. Takes leave of children that have ended, also
/// of those that others have left to the first process of a container.
fn receive_from(queue: &SignalFd, sender: &UnboundedSender<Come>) {
    while let Ok(info) = queue.read_signal() {
        let Some(info) = info else { continue };
        let Ok(signal) = Signal::try_from(info.ssi_signo as i32) else { continue };
        if signal == Signal::SIGCHLD {
            while let Ok(Some(_)) = tree::reap() {}
        } else if sender.send(Come { signal, from_terminal: info.ssi_code > 0 }).is_err() {
            return;
        }
    }
}

/// Stops this process as SIGTSTP does: not at all in a group that nobody could continue.
pub fn stop() {
    let mut mask = SigSet::empty();
    mask.add(Signal::SIGTSTP);
    let _goes_on_if_refused = mask.thread_unblock().and_then(|()| raise(Signal::SIGTSTP));
    let _as_before = mask.thread_block();
}
