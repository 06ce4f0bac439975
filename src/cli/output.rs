//! How data is printed.

use super::connect::Format;
use super::exit::{self, Failure};
use comfy_table::{Table, presets};
use serde::Serialize;

/// A key as text: bytes that are not printable ASCII are escaped.
pub fn shown(key: &[u8]) -> String {
    match std::str::from_utf8(key) {
        Ok(text) if !text.chars().any(char::is_control) => text.replace('\\', "\\\\"),
        _ => key.escape_ascii().to_string(),
    }
}

/// A text that somebody else made up, on one line: what steers a terminal is escaped.
pub fn plain(text: &str) -> String {
    let steers =
        |c: char| c.is_control() || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    let shown = |c: char| {
        let escaped = if steers(c) { Some(c.escape_default()) } else { None };
        (escaped.is_none().then_some(c)).into_iter().chain(escaped.into_iter().flatten())
    };
    text.chars().flat_map(shown).collect()
}

/// Prints rows: as a table with these columns, or as JSON.
pub fn print_rows<T: Serialize>(
    format: Format,
    columns: &[&str],
    rows: &[T],
    row: impl Fn(&T) -> Vec<String>,
) -> Result<(), Failure> {
    let failed = |error: serde_json::Error| Failure::new(exit::SOFTWARE, error.to_string());
    match format {
        Format::Json => println!("{}", serde_json::to_string(rows).map_err(failed)?),
        Format::Jsonl => {
            for one in rows {
                println!("{}", serde_json::to_string(one).map_err(failed)?);
            }
        }
        Format::Table => {
            let mut table = Table::new();
            table.load_preset(presets::NOTHING).set_header(columns);
            for one in rows {
                table.add_row(row(one));
            }
            for line in table.lines() {
                println!("{}", line.trim());
            }
        }
    }
    Ok(())
}

/// Milliseconds as people read them.
pub fn seconds(millis: u64) -> String {
    format!("{:.1}s", millis as f64 / 1000.0)
}
