//! Messages between workers of different nodes.

use super::frame::{Malformed, Reader, put};
use lockring_ring::{AttachId, CellId, Epoch};

/// Why a copy has not taken what a frame says of a cell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// It cannot take it yet, and says so when it can.
    Later,
    /// It needs the whole cell.
    NeedsWhole,
    /// The log has gone on since.
    Stale,
}

/// A frame as it was sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FrameId {
    /// By which connection: whatever is not acknowledged is sent again by the next, and from then
    /// on only frames of that, and what they lead to, count.
    pub(crate) connection: u64,
    pub(crate) number: u64,
}

/// What is sent to a peer.
#[derive(Debug)]
pub(crate) enum Message<'a> {
    /// From an owner.
    Frame(FrameId, Reader<'a>),
    /// From a copy: a frame has come, but for the cells at these positions.
    Ack(FrameId, Vec<(u16, Refusal)>),
    /// From a copy: it can take this cell now.
    Ready(CellId, Epoch, AttachId),
}

const FRAME: u8 = 0;
const ACK: u8 = 1;
const READY: u8 = 2;

/// A frame with these records.
pub(crate) fn frame(id: FrameId, records: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(records.len() + 21);
    out.push(FRAME);
    put(&mut out, id.connection);
    put(&mut out, id.number);
    out.extend_from_slice(records);
    out
}

/// The answer to a frame.
pub(crate) fn ack(id: FrameId, refused: &[(u16, Refusal)]) -> Vec<u8> {
    let mut out = vec![ACK];
    put(&mut out, id.connection);
    put(&mut out, id.number);
    put(&mut out, refused.len() as u64);
    for &(position, why) in refused {
        put(&mut out, u64::from(position));
        out.push(why as u8);
    }
    out
}

pub(crate) fn ready(cell: CellId, epoch: Epoch, attach: AttachId) -> Vec<u8> {
    let mut out = vec![READY];
    out.extend_from_slice(&cell.0.to_le_bytes());
    put(&mut out, u64::from(epoch.0));
    put(&mut out, attach.0);
    out
}

fn frame_id(reader: &mut Reader<'_>) -> Result<FrameId, Malformed> {
    Ok(FrameId { connection: reader.number()?, number: reader.number()? })
}

/// Reads a message.
pub(crate) fn message(bytes: &[u8]) -> Result<Message<'_>, Malformed> {
    let mut reader = Reader::new(bytes);
    match reader.byte()? {
        FRAME => Ok(Message::Frame(frame_id(&mut reader)?, reader)),
        ACK => {
            let id = frame_id(&mut reader)?;
            let count = reader.number()?;
            let mut refused = Vec::new();
            for _ in 0..count {
                let position = u16::try_from(reader.number()?).map_err(|_| Malformed)?;
                let why = match reader.byte()? {
                    0 => Refusal::Later,
                    1 => Refusal::NeedsWhole,
                    2 => Refusal::Stale,
                    _ => return Err(Malformed),
                };
                refused.push((position, why));
            }
            if reader.is_empty() { Ok(Message::Ack(id, refused)) } else { Err(Malformed) }
        }
        READY => {
            let cell = reader.cell()?;
            let (epoch, attach) = (reader.epoch()?, AttachId(reader.number()?));
            if reader.is_empty() { Ok(Message::Ready(cell, epoch, attach)) } else { Err(Malformed) }
        }
        _ => Err(Malformed),
    }
}
