//! Sizes of memory on the command line.

use lockring_node::MemoryLimit;

/// Reads `512m`, `2g`, a bare number of bytes, `auto` or `none`.
pub fn limit(text: &str) -> Result<MemoryLimit, String> {
    let wrong = || format!("{text:?} is not a size: use 512m, 2g, bytes, auto or none");
    let shift = match text.as_bytes().last() {
        _ if text == "auto" => return Ok(MemoryLimit::Auto),
        _ if text == "none" => return Ok(MemoryLimit::Unlimited),
        Some(b'k' | b'K') => 10,
        Some(b'm' | b'M') => 20,
        Some(b'g' | b'G') => 30,
        Some(b't' | b'T') => 40,
        _ => 0,
    };
    let number = if shift == 0 { text } else { &text[..text.len() - 1] };
    let number: u64 = number.parse().map_err(|_| wrong())?;
    let bytes = number.checked_mul(1 << shift).filter(|&bytes| bytes > 0).ok_or_else(wrong)?;
    Ok(MemoryLimit::Bytes(bytes))
}

/// Writes what [`limit`] reads.
pub fn shown(limit: MemoryLimit) -> String {
    match limit {
        MemoryLimit::Auto => "auto".to_owned(),
        MemoryLimit::Unlimited => "none".to_owned(),
        MemoryLimit::Bytes(bytes) => bytes.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_units_and_words() {
        for (text, bytes) in [("1", 1), ("2k", 2048), ("512m", 512 << 20), ("3G", 3 << 30)] {
            assert_eq!(limit(text), Ok(MemoryLimit::Bytes(bytes)), "{text}");
        }
        assert_eq!(limit("auto"), Ok(MemoryLimit::Auto));
        assert_eq!(limit("none"), Ok(MemoryLimit::Unlimited));
        for text in ["", "0", "g", "-1", "1.5g", "2gb", "99999999999t", "\u{fc}"] {
            assert!(limit(text).is_err(), "{text}");
        }
    }

    #[test]
    fn what_is_shown_is_read() {
        for text in ["auto", "none", "1024"] {
            assert_eq!(limit(text).map(shown), Ok(text.to_owned()));
        }
    }
}
