//! A disk that fails, and that crashes with what was not synced there, or not, or in part.

use redb::StorageBackend;
use std::io;
use std::sync::{Arc, Mutex};
use xxhash_rust::xxh3::xxh3_64_with_seed;

#[derive(Debug, Default)]
struct Content {
    /// As whoever writes sees it.
    now: Vec<u8>,
    /// As it surely is after a crash.
    synced: Vec<u8>,
    /// What was written since.
    unsynced: Vec<Write>,
    /// Writes and syncs until it fails.
    left: u64,
}

#[derive(Clone, Debug)]
enum Write {
    Len(usize),
    Bytes(usize, Vec<u8>),
}

impl Write {
    fn go(&self, to: &mut Vec<u8>) {
        match self {
            Self::Len(len) => to.resize(*len, 0),
            Self::Bytes(at, bytes) => {
                let end = at + bytes.len();
                to.resize(to.len().max(end), 0);
                to[*at..end].copy_from_slice(bytes);
            }
        }
    }
}

#[derive(Clone, Debug)]
pub(super) struct Disk(Arc<Mutex<Content>>);

impl Default for Disk {
    fn default() -> Self {
        Self(Arc::new(Mutex::new(Content { left: u64::MAX, ..Content::default() })))
    }
}

impl Disk {
    /// From then on every write fails.
    pub(super) fn fails_after(&self, writes: u64) {
        self.0.lock().unwrap().left = writes;
    }

    /// What is there after a crash: of what was not synced, any part.
    pub(super) fn after_a_crash(&self, seed: u64) -> Self {
        let content = self.0.lock().unwrap();
        let mut now = content.synced.clone();
        for (at, write) in (0_u64..).zip(&content.unsynced) {
            if seed > 0 && xxh3_64_with_seed(&at.to_le_bytes(), seed).is_multiple_of(2) {
                write.go(&mut now);
            }
        }
        let (synced, left) = (now.clone(), u64::MAX);
        Self(Arc::new(Mutex::new(Content { now, synced, unsynced: Vec::new(), left })))
    }

    fn write(&self, write: Write) -> io::Result<()> {
        let mut content = self.0.lock().unwrap();
        content.left = content.left.checked_sub(1).ok_or_else(full)?;
        write.go(&mut content.now);
        content.unsynced.push(write);
        Ok(())
    }
}

fn full() -> io::Error {
    io::Error::from(io::ErrorKind::StorageFull)
}

impl StorageBackend for Disk {
    fn len(&self) -> io::Result<u64> {
        Ok(self.0.lock().unwrap().now.len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let content = self.0.lock().unwrap();
        let at = offset as usize;
        let bytes = content.now.get(at..at + out.len()).ok_or(io::ErrorKind::UnexpectedEof)?;
        out.copy_from_slice(bytes);
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.write(Write::Len(len as usize))
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut content = self.0.lock().unwrap();
        content.left = content.left.checked_sub(1).ok_or_else(full)?;
        content.synced = content.now.clone();
        content.unsynced.clear();
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.write(Write::Bytes(offset as usize, data.to_vec()))
    }
}
