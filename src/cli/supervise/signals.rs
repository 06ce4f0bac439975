//! Signals, as messages instead of deaths.

use super::super::exit::{self, Failure};
use super::tree;
use lockring_bench::is_ignored;
use nix::sys::signal::{SigSet, SigmaskHow, Signal, raise};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use rustix::event::{PollFd, PollFlags, poll};
use std::sync::{Arc, Mutex, PoisonError};
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

/// What a terminal sends to its foreground process group.
const OF_TERMINALS: [Signal; 6] = [
    Signal::SIGINT,
    Signal::SIGQUIT,
    Signal::SIGTSTP,
    Signal::SIGWINCH,
    Signal::SIGHUP,
    Signal::SIGCONT,
];

/// A signal that has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Come {
    /// Which.
    pub signal: Signal,
    /// The kernel sent it, for the terminal: to a whole process group.
    pub from_terminal: bool,
}

impl Come {
    /// By what the kernel says of a signal: whether it sent it itself is told by the code. An alarm
    /// and the like are for one process alone; so is a terminal's hang-up for a session leader.
    fn of(signal: Signal, code: i32, leads_session: bool) -> Self {
        let is_for_group = OF_TERMINALS.contains(&signal)
            && !(leads_session && matches!(signal, Signal::SIGHUP | Signal::SIGCONT));
        Self { signal, from_terminal: code > 0 && is_for_group }
    }

    fn is_ending(self) -> bool {
        ENDING.contains(&self.signal)
    }
}

/// Signals that end a wait, and that a running command gets passed on.
#[derive(Debug)]
pub struct Signals {
    queue: Arc<Queue>,
    come: UnboundedReceiver<Come>,
    inherited: Mask,
}

/// Where signals come from, and go to.
#[derive(Debug)]
struct Queue {
    file: SignalFd,
    /// Held while signals are on the way from one to the other.
    on_the_way: Mutex<UnboundedSender<Come>>,
    leads_session: bool,
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
        let file = SignalFd::with_flags(&mask, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK);
        let file = file.map_err(|error| failed(error.into()))?;
        let (sender, come) = unbounded_channel();
        let leads_session = tree::leads_session();
        let queue = Arc::new(Queue { file, on_the_way: Mutex::new(sender), leads_session });
        let (receive, from) = (thread::Builder::new().name("signals".to_owned()), queue.clone());
        receive.spawn(move || from.receive()).map_err(failed)?;
        Ok(Self { queue, come, inherited })
    }

    /// Leaves aside what has come until now.
    pub fn forget(&mut self) {
        self.queue.take_up();
        while self.come.try_recv().is_ok() {}
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

impl Queue {
    /// Receives signals for as long as the process lives.
    fn receive(&self) {
        loop {
            let mut files = [PollFd::new(&self.file, PollFlags::IN)];
            // Whatever interrupts it, there is something to read or not.
            let _looked_at = poll(&mut files, None);
            self.take_up();
        }
    }

    /// Takes leave of children that have ended, also of those that others have left to the first
    /// process of a container.
    fn take_up(&self) {
        let sender = self.on_the_way.lock().unwrap_or_else(PoisonError::into_inner);
        while let Ok(Some(info)) = self.file.read_signal() {
            let Ok(signal) = Signal::try_from(info.ssi_signo as i32) else { continue };
            if signal == Signal::SIGCHLD {
                while let Ok(Some(_)) = tree::reap() {}
                continue;
            }
            // Without a receiver the process is about to end.
            let _heard_or_late = sender.send(Come::of(signal, info.ssi_code, self.leads_session));
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_terminal_sends_what_reaches_the_whole_group() {
        let (by_kernel, by_process) = (0x80, 0);
        for (signal, of_member, of_leader) in [
            (Signal::SIGINT, true, true),
            (Signal::SIGTSTP, true, true),
            (Signal::SIGHUP, true, false),
            (Signal::SIGCONT, true, false),
            (Signal::SIGALRM, false, false),
            (Signal::SIGPROF, false, false),
        ] {
            for (leads_session, expected) in [(false, of_member), (true, of_leader)] {
                let come = Come::of(signal, by_kernel, leads_session);
                assert_eq!(come.from_terminal, expected, "{signal}, {leads_session}");
                assert!(!Come::of(signal, by_process, leads_session).from_terminal, "{signal}");
            }
        }
    }
}
