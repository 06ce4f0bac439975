//! What others made up, as people may read it: keys, labels, error texts.
//!
//! A terminal obeys control characters, a log and a table take a newline for the end of a row, and
//! invisible characters make two names look alike. So whatever a peer has written passes through
//! [`Shown`] where it is put into text for people; programs get it exactly.

use std::fmt::{self, Write};

/// Bytes that somebody else made up, printed on one line of visible characters. [`read_shown`]
/// reads what this prints, and gives the same bytes.
///
/// Printable text stays as it is. A byte is written `\xNN` where it is not UTF-8 or belongs to a
/// character that cannot be seen, steers a terminal, or turns the direction of writing; and a
/// backslash is written `\\`. So are two characters that are seen but misread: a space at either
/// end or after another (columns are apart by two), and a dash at the beginning (it would be taken
/// for an option).
///
/// ```
/// use lockring_proto::{Shown, read_shown};
///
/// assert_eq!(Shown("orders/42 für uns").to_string(), "orders/42 für uns");
/// assert_eq!(Shown(b"job\xff").to_string(), r"job\xff");
/// assert_eq!(Shown("\u{1b}[31m\n").to_string(), r"\x1b[31m\x0a");
/// assert_eq!(Shown(r"C:\temp").to_string(), r"C:\\temp");
/// assert_eq!(Shown("-x  y ").to_string(), r"\x2dx \x20y\x20");
/// assert_eq!(read_shown(br"job\xff").unwrap(), b"job\xff");
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Shown<T>(pub T);

impl<T: AsRef<[u8]>> fmt::Display for Shown<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bytes = self.0.as_ref();
        let last = bytes.len().saturating_sub(1);
        let mut at = 0;
        let mut after_space = true;
        for chunk in bytes.utf8_chunks() {
            for c in chunk.valid().chars() {
                let as_it_is = match c {
                    ' ' => !after_space && at != last,
                    '-' => at != 0,
                    '\\' => false,
                    _ => is_visible(c, at == 0),
                };
                match c {
                    _ if as_it_is => f.write_char(c)?,
                    '\\' => f.write_str("\\\\")?,
                    _ => write_bytes(f, c.encode_utf8(&mut [0; 4]).as_bytes())?,
                }
                after_space = c == ' ';
                at += c.len_utf8();
            }
            write_bytes(f, chunk.invalid())?;
            after_space &= chunk.invalid().is_empty();
            at += chunk.invalid().len();
        }
        Ok(())
    }
}

fn write_bytes(f: &mut fmt::Formatter<'_>, bytes: &[u8]) -> fmt::Result {
    bytes.iter().try_for_each(|byte| write!(f, "\\x{byte:02x}"))
}

/// Whether a reader sees a character as one of its own. The standard library knows what is
/// unassigned, private, a control or format character, or a space other than the common one; not
/// what is blank although it counts as a letter, mark or symbol.
fn is_visible(c: char, first: bool) -> bool {
    if c.is_ascii() {
        return !c.is_ascii_control();
    }
    let blank = matches!(c,
        '\u{34f}' | '\u{115f}' | '\u{1160}' | '\u{17b4}' | '\u{17b5}' | '\u{180b}'..='\u{180f}'
        | '\u{2800}' | '\u{3164}' | '\u{fe00}'..='\u{fe0f}' | '\u{ffa0}'
        | '\u{1d159}' | '\u{e0100}'..='\u{e01ef}');
    // A mark needs a letter before it: at the beginning it would fall on what stands there.
    let mut text = [0; 5];
    text[0] = b'a';
    let len = 1 + c.encode_utf8(&mut text[1..]).len();
    let from = usize::from(first);
    let escaped = std::str::from_utf8(&text[from..len]).map(|text| text.escape_debug().count());
    !blank && escaped == Ok(2 - from)
}

/// Bytes for JSON and its like, whose texts are UTF-8: exactly, as text; what is not UTF-8 as
/// [`Shown`] prints it, with its bytes in hexadecimal beside it.
///
/// ```
/// use lockring_proto::exact;
///
/// assert_eq!(exact(b"a\\\n"), ("a\\\n".to_owned(), None));
/// assert_eq!(exact(b"job\xff"), (r"job\xff".to_owned(), Some("6a6f62ff".to_owned())));
/// ```
pub fn exact(bytes: &[u8]) -> (String, Option<String>) {
    if let Ok(text) = std::str::from_utf8(bytes) {
        return (text.to_owned(), None);
    }
    let mut hex = String::with_capacity(2 * bytes.len());
    for byte in bytes {
        let _a_string_takes_all = write!(hex, "{byte:02x}");
    }
    (Shown(bytes).to_string(), Some(hex))
}

/// The same JSON text with what [`Shown`] would not print as it is escaped in JSON's own way, which
/// every reader of JSON undoes. JSON itself asks that only of the first 32 characters.
///
/// ```
/// use lockring_proto::visible_json;
///
/// let json = "[\"for \u{202e}\u{9b}31m \u{e0041}\"]";
/// assert_eq!(visible_json(json), r#"["for \u202e\u009b31m \udb40\udc41"]"#);
/// ```
pub fn visible_json(json: &str) -> String {
    let mut visible = String::with_capacity(json.len());
    for c in json.chars() {
        if is_visible(c, false) {
            visible.push(c);
            continue;
        }
        for unit in c.encode_utf16(&mut [0; 2]) {
            let _a_string_takes_all = write!(visible, "\\u{unit:04x}");
        }
    }
    visible
}

/// Why a text does not name bytes.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{} has a backslash that begins no escape: write \\\\ for a backslash, \\xNN for a byte",
    Shown(.text))]
pub struct ShownError {
    /// The text.
    pub text: Vec<u8>,
}

/// Reads what [`Shown`] has printed. All that is no escape stands for itself, also what would have
/// been printed as one.
///
/// ```
/// use lockring_proto::{ShownError, read_shown};
///
/// assert_eq!(read_shown(br"\x2dx\\y").unwrap(), br"-x\y");
/// assert_eq!(read_shown(b"job\xff").unwrap(), b"job\xff");
/// let error: ShownError = read_shown(br"C:\temp").unwrap_err();
/// assert!(error.to_string().contains(r"write \\ for a backslash"));
/// ```
///
/// # Errors
/// When a backslash is followed by neither a second one nor `x` and two hexadecimal digits.
pub fn read_shown(text: &[u8]) -> Result<Vec<u8>, ShownError> {
    let digit = |at: usize| text.get(at).and_then(|&byte| char::from(byte).to_digit(16));
    let mut bytes = Vec::with_capacity(text.len());
    let mut at = 0;
    while let Some(&byte) = text.get(at) {
        let (byte, len) = match (byte, text.get(at + 1), digit(at + 2), digit(at + 3)) {
            (b'\\', Some(b'\\'), ..) => (byte, 2),
            (b'\\', Some(b'x'), Some(high), Some(low)) => ((high << 4 | low) as u8, 4),
            (b'\\', ..) => return Err(ShownError { text: text.to_vec() }),
            _ => (byte, 1),
        };
        bytes.push(byte);
        at += len;
    }
    Ok(bytes)
}
