//! Keys on the command line: any bytes, as they are or as they are printed.

use super::exit::{self, Failure};
use lockring_client::proto::{Shown, limits, read_shown};
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

/// Help of every argument that is a key.
pub const HELP: &str =
    "The key; \\xNN stands for a byte, \\\\ for a backslash, as keys are printed";

/// Reads a key.
pub fn read(argument: &OsStr) -> Result<Vec<u8>, Failure> {
    let key = read_prefix(argument)?;
    if key.is_empty() || key.len() > limits::KEY_BYTES_MAX {
        let (len, most) = (key.len(), limits::KEY_BYTES_MAX);
        return Err(Failure::new(exit::USAGE, format!("a key has 1 to {most} bytes, not {len}")));
    }
    Ok(key)
}

/// Reads the beginning of keys.
pub fn read_prefix(argument: &OsStr) -> Result<Vec<u8>, Failure> {
    read_shown(argument.as_bytes()).map_err(|error| Failure::new(exit::USAGE, error.to_string()))
}

/// A key in the environment of a command: its bytes; as printed if it has a zero byte, which no
/// environment can carry.
pub fn for_environment(key: &[u8]) -> OsString {
    if key.contains(&0) {
        return Shown(key).to_string().into();
    }
    OsString::from_vec(key.to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_environment_has_the_bytes_where_it_can() {
        assert_eq!(for_environment(b"job\xff\n\\").as_bytes(), b"job\xff\n\\");
        assert_eq!(for_environment(b"job\x00\xff").as_bytes(), br"job\x00\xff");
    }

    #[test]
    fn lengths_are_of_bytes() {
        let hex = r"\xff".repeat(limits::KEY_BYTES_MAX);
        assert_eq!(read(OsStr::new(&hex)).map(|key| key.len()).ok(), Some(limits::KEY_BYTES_MAX));
        for wrong in ["", &format!("{hex}a"), r"\"] {
            assert_eq!(read(OsStr::new(wrong)).err().map(|failure| failure.code), Some(64));
        }
    }
}
