//! A key as the client keeps it while a claim lives: short ones cost no allocation.

const INLINE: usize = 38;

/// Owned key bytes.
#[derive(Clone)]
pub(crate) enum Key {
    Short { len: u8, bytes: [u8; INLINE] },
    Long(Box<[u8]>),
}

impl Key {
    pub(crate) fn new(key: &[u8]) -> Self {
        if key.len() > INLINE {
            return Self::Long(key.into());
        }
        let mut bytes = [0; INLINE];
        bytes[..key.len()].copy_from_slice(key);
        Self::Short { len: key.len() as u8, bytes }
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        match self {
            Self::Short { len, bytes } => &bytes[..*len as usize],
            Self::Long(bytes) => bytes,
        }
    }
}
