//! What the wrapper and the keeper of its command tell each other, over a pair of sockets. Either
//! learns of the other's end, however it came about, by the end of the line.

use lockring_client::proto::Time;
use rustix::io::{Errno, IoSlice, IoSliceMut, Result};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recv, recvmsg, send, sendmsg,
    socketpair,
};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

const BYTES: usize = 16;

/// What the wrapper tells the keeper.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// The lock is held until then at least.
    Until(Time),
    /// The lock is lost.
    Lost,
    /// A signal for the command. One from the terminal went to its foreground group by itself.
    Signal {
        /// Its number.
        number: i32,
        /// The terminal sent it.
        from_terminal: bool,
    },
}

/// What the keeper tells the wrapper, last of all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Report {
    /// How the command ended: a wait status, as waitpid(2) gives it.
    pub status: i32,
    /// It was ended, as the lock could not be kept.
    pub stopped: bool,
    /// This many processes could not be ended.
    pub left: u32,
}

/// One end of the line.
#[derive(Debug)]
pub struct Line(OwnedFd);

impl Line {
    /// Both ends.
    pub fn pair() -> Result<(Self, OwnedFd)> {
        let flags = SocketFlags::CLOEXEC;
        let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
        Ok((Self(ours), theirs))
    }

    /// The end that the keeper finds as its standard input.
    pub fn from_stdin() -> Result<Self> {
        rustix::io::fcntl_dupfd_cloexec(std::io::stdin(), 3).map(Self)
    }

    /// Gives an order. Who does not read has ended, or will be ended.
    pub fn order(&self, order: Order) -> Result<()> {
        self.put(encode(order))
    }

    /// Tells how the command ended.
    pub fn report(&self, report: Report) -> Result<()> {
        let mut bytes = [0; BYTES];
        bytes[0] = u8::from(report.stopped);
        bytes[4..8].copy_from_slice(&report.status.to_le_bytes());
        bytes[8..12].copy_from_slice(&report.left.to_le_bytes());
        self.put(bytes)
    }

    fn put(&self, bytes: [u8; BYTES]) -> Result<()> {
        send(&self.0, &bytes, SendFlags::NOSIGNAL | SendFlags::DONTWAIT).map(drop)
    }

    /// Gives an open file to the keeper.
    pub fn hand(&self, file: BorrowedFd<'_>) -> Result<()> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        let files = [file];
        ancillary.push(SendAncillaryMessage::ScmRights(&files));
        sendmsg(&self.0, &[IoSlice::new(&[0])], &mut ancillary, SendFlags::NOSIGNAL).map(drop)
    }

    /// Waits for the file that the wrapper gives first.
    pub fn handed(&self) -> Result<OwnedFd> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let mut byte = [0];
        let flags = RecvFlags::CMSG_CLOEXEC;
        recvmsg(&self.0, &mut [IoSliceMut::new(&mut byte)], &mut ancillary, flags)?;
        let file = ancillary.drain().find_map(|message| match message {
            RecvAncillaryMessage::ScmRights(mut files) => files.next(),
            _ => None,
        });
        file.ok_or(Errno::PROTO)
    }

    /// The next order; `None` when the wrapper has ended. `EAGAIN` when there is none yet.
    pub fn next_order(&self) -> Result<Option<Order>> {
        Ok(self.take()?.and_then(|bytes| decode(&bytes)))
    }

    /// The report; `None` when the keeper has ended without one. `EAGAIN` when there is none yet.
    pub fn next_report(&self) -> Result<Option<Report>> {
        Ok(self.take()?.map(|bytes| Report {
            status: i32::from_le_bytes(part(&bytes, 4)),
            stopped: bytes[0] != 0,
            left: u32::from_le_bytes(part(&bytes, 8)),
        }))
    }

    fn take(&self) -> Result<Option<[u8; BYTES]>> {
        let mut bytes = [0; BYTES];
        loop {
            match recv(&self.0, &mut bytes, RecvFlags::DONTWAIT) {
                Ok((BYTES, _)) => return Ok(Some(bytes)),
                Ok(_) => return Ok(None),
                // The other has ended without reading all it was told: its last words are there.
                Err(Errno::CONNRESET) => {}
                Err(error) => return Err(error),
            }
        }
    }
}

impl AsFd for Line {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

fn part<const N: usize>(bytes: &[u8; BYTES], at: usize) -> [u8; N] {
    std::array::from_fn(|offset| bytes[at + offset])
}

fn encode(order: Order) -> [u8; BYTES] {
    let mut bytes = [0; BYTES];
    match order {
        Order::Until(at) => bytes[8..].copy_from_slice(&at.0.to_le_bytes()),
        Order::Lost => bytes[0] = 1,
        Order::Signal { number, from_terminal } => {
            bytes[0] = 2;
            bytes[1] = u8::from(from_terminal);
            bytes[4..8].copy_from_slice(&number.to_le_bytes());
        }
    }
    bytes
}

fn decode(bytes: &[u8; BYTES]) -> Option<Order> {
    Some(match bytes[0] {
        0 => Order::Until(Time(u64::from_le_bytes(part(bytes, 8)))),
        1 => Order::Lost,
        2 => Order::Signal {
            number: i32::from_le_bytes(part(bytes, 4)),
            from_terminal: bytes[1] != 0,
        },
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_told_is_what_is_heard_and_the_end_is_noticed() {
        let (ours, theirs) = Line::pair().unwrap();
        let theirs = Line(theirs);
        assert_eq!(theirs.next_order(), Err(Errno::AGAIN));
        let orders = [
            Order::Until(Time(u64::MAX)),
            Order::Lost,
            Order::Signal { number: 15, from_terminal: false },
            Order::Signal { number: 2, from_terminal: true },
        ];
        ours.hand(std::io::stdin().as_fd()).unwrap();
        for order in orders {
            ours.order(order).unwrap();
        }
        theirs.handed().unwrap();
        for order in orders {
            assert_eq!(theirs.next_order(), Ok(Some(order)));
        }
        ours.order(Order::Lost).unwrap();
        let report = Report { status: 0x0f, stopped: true, left: 3 };
        theirs.report(report).unwrap();
        // With an order that it has not read.
        drop(theirs);
        assert_eq!(ours.next_report(), Ok(Some(report)));
        assert_eq!(ours.next_report(), Ok(None));
        assert!(ours.order(Order::Lost).is_err());
    }
}
