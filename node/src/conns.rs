//! The connections of a worker, and what is to be sent on each.

use lockring_core::{CloseReason, ConnId, LinkIndex};
use std::rc::Rc;
use tokio::sync::Notify;

/// What others may cause to be sent on one connection before it is closed: grants of queued claims
/// and pushes, which a peer that reads has long taken by then. Its own requests are not read
/// meanwhile, and its link lives on.
const UNSENT_MAX: usize = 1 << 20;

/// What is to be sent on one connection.
#[derive(Default)]
pub struct Outbox {
    /// Frames for the request stream.
    pub replies: Vec<u8>,
    /// Frames for the push stream.
    pub pushes: Vec<u8>,
    /// The link it belongs to, once welcomed.
    pub link: Option<LinkIndex>,
    /// Nothing of it is read or run: its next request waits for what the worker is to be told.
    pub paused: bool,
    /// To be closed once the replies are sent.
    pub close: Option<Ending>,
}

/// Why a connection ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// The machine says so.
    Core(CloseReason),
    /// Its hello was refused; the refusal says why.
    Refused,
    /// The node stops.
    Stopping,
    /// It does not read what others cause to be sent.
    Slow,
}

struct Conn {
    id: ConnId,
    outbox: Outbox,
    wake: Rc<Notify>,
}

/// How many low bits of a [`ConnId`] are its slot.
const SLOT_BITS: u32 = 24;

fn slot_of(id: ConnId) -> u32 {
    (id.0 & ((1 << SLOT_BITS) - 1)) as u32
}

/// The connections of a worker.
#[derive(Default)]
pub struct Conns {
    /// By slot; the low bits of a [`ConnId`] are its slot.
    slots: Vec<Option<Conn>>,
    free: Vec<u32>,
    serial: u64,
    /// Some wait, as nothing more of any is to be run.
    held_up: bool,
}

impl Conns {
    /// Number of open connections.
    pub fn count(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// Enters a new connection.
    pub fn open(&mut self) -> (ConnId, Rc<Notify>) {
        let slot = self.free.pop().unwrap_or_else(|| {
            self.slots.push(None);
            (self.slots.len() - 1) as u32
        });
        self.serial += 1;
        // Ascending for some thirty years of a thousand connections a second.
        let id = ConnId(self.serial << SLOT_BITS | u64::from(slot));
        let wake = Rc::new(Notify::new());
        let conn = Conn { id, outbox: Outbox::default(), wake: Rc::clone(&wake) };
        self.slots[slot as usize] = Some(conn);
        (id, wake)
    }

    /// Forgets an open connection; says which link it had.
    pub fn close(&mut self, id: ConnId) -> Option<LinkIndex> {
        let conn = self.slots[slot_of(id) as usize].take()?;
        self.free.push(slot_of(id));
        conn.outbox.link
    }

    /// The outbox of a connection, if it is open.
    pub fn outbox(&mut self, id: ConnId) -> Option<&mut Outbox> {
        self.conn(id).map(|conn| &mut conn.outbox)
    }

    fn conn(&mut self, id: ConnId) -> Option<&mut Conn> {
        self.slots.get_mut(slot_of(id) as usize)?.as_mut().filter(|conn| conn.id == id)
    }

    /// Somebody waits until all go on.
    pub fn hold_up(&mut self) {
        self.held_up = true;
    }

    /// Whether somebody does.
    pub fn are_held_up(&self) -> bool {
        self.held_up
    }

    /// All go on.
    pub fn go_on(&mut self) {
        self.held_up = false;
        self.slots.iter().flatten().for_each(|conn| conn.wake.notify_one());
    }

    /// Has every connection closed, as the node stops.
    pub fn end_all(&mut self) {
        for conn in self.slots.iter_mut().flatten() {
            conn.outbox.close.get_or_insert(Ending::Stopping);
            conn.wake.notify_one();
        }
    }

    /// Changes the outbox of a connection that may be gone, and has its task flush it.
    pub fn post(&mut self, id: ConnId, change: impl FnOnce(&mut Outbox)) {
        let Some(conn) = self.conn(id) else { return };
        let outbox = &mut conn.outbox;
        if outbox.close != Some(Ending::Slow) {
            change(outbox);
            if outbox.replies.len() + outbox.pushes.len() > UNSENT_MAX {
                (outbox.replies, outbox.pushes) = (Vec::new(), Vec::new());
                outbox.close = Some(Ending::Slow);
            }
        }
        conn.wake.notify_one();
    }
}
