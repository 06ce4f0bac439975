//! The bytes of what is agreed: entries as the log keeps them, the state that they make as a
//! snapshot keeps it, and what control planes tell each other.
//!
//! Each begins with the number of its format, and is then encoded by bincode from types of this
//! module alone: what the rest of the program calls its fields, and in which order, is not in it.
//! What is kept on a disk ends with a checksum. Bytes of another program, of a later format or of a
//! bad disk are an error that says so, and no state: a node must not act on what it half knows.

mod entry;
mod message;
pub(super) mod parts;
pub(super) mod unreadable;

pub use unreadable::Unreadable;

use super::entry::Entry;
use super::message::Message;
use super::state::{State, StoredState};
use bincode::{Decode, Encode};
use unreadable::FORMAT;
use xxhash_rust::xxh3::xxh3_64;

/// Of a message, with the entry that it may have.
const MESSAGE_BYTES_MAX: usize = 1 << 20;

/// An entry as the log keeps it.
pub fn entry_to_bytes(entry: &Entry) -> Vec<u8> {
    sealed(&entry::Stored::from(entry))
}

/// The entry that was kept.
///
/// # Errors
/// When the bytes are not those of an entry.
pub fn entry_from_bytes(bytes: &[u8]) -> Result<Entry, Unreadable> {
    Ok(unsealed::<entry::Stored>(bytes)?.into())
}

/// A state as a snapshot keeps it.
pub fn state_to_bytes(state: &State) -> Vec<u8> {
    sealed(&StoredState::from(state))
}

/// The state that was kept.
///
/// # Errors
/// When the bytes are not those of a state that entries can have made.
pub fn state_from_bytes(bytes: &[u8]) -> Result<State, Unreadable> {
    unsealed::<StoredState>(bytes)?.try_into()
}

/// A message for another node. The connection sees to it that it comes as it was sent.
pub fn message_to_bytes(message: &Message) -> Vec<u8> {
    formatted(&message::Stored::from(message))
}

/// The message that another node has sent.
///
/// # Errors
/// When the bytes are not those of a message.
pub fn message_from_bytes(bytes: &[u8]) -> Result<Message, Unreadable> {
    if bytes.len() > MESSAGE_BYTES_MAX {
        return Err(Unreadable::Unsound("a message of more than a megabyte"));
    }
    Ok(unformatted::<message::Stored>(bytes)?.into())
}

fn formatted(value: &impl Encode) -> Vec<u8> {
    let mut bytes = vec![FORMAT];
    let config = bincode::config::standard();
    let written = bincode::encode_into_std_write(value, &mut bytes, config);
    written.expect("memory takes everything");
    bytes
}

fn unformatted<T: Decode<()>>(bytes: &[u8]) -> Result<T, Unreadable> {
    let (&format, body) = bytes.split_first().ok_or(Unreadable::Garbled)?;
    if format != FORMAT {
        return Err(Unreadable::Format(format));
    }
    // No length in it can claim more memory than this.
    let config = bincode::config::standard().with_limit::<{ 64 << 20 }>();
    match bincode::decode_from_slice(body, config) {
        Ok((value, read)) if read == body.len() => Ok(value),
        _ => Err(Unreadable::Garbled),
    }
}

fn sealed(value: &impl Encode) -> Vec<u8> {
    let mut bytes = formatted(value);
    bytes.extend_from_slice(&xxh3_64(&bytes).to_le_bytes());
    bytes
}

fn unsealed<T: Decode<()>>(bytes: &[u8]) -> Result<T, Unreadable> {
    let (body, seal) = bytes.split_last_chunk::<8>().ok_or(Unreadable::Garbled)?;
    if xxh3_64(body).to_le_bytes() != *seal {
        return Err(Unreadable::Garbled);
    }
    unformatted(body)
}

#[cfg(test)]
mod tests;
