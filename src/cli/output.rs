//! How data is printed: on stdout, and what is said about it on stderr. Nothing here panics where
//! an output is closed or full, and nothing else in the binary prints.

use super::exit::{self, Failure};
use clap::ValueEnum;
use comfy_table::{Table, presets};
use lockring_client::proto::{Shown, exact, visible_json};
use serde::ser::SerializeStruct;
use serde::{Serialize, Serializer};
use std::fmt;
use std::io::{self, Write};
use std::process::ExitCode;

/// How data is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For people
    Table,
    /// One JSON array
    Json,
    /// One JSON object a line
    Jsonl,
}

/// Why standard output has not taken something.
#[derive(Debug)]
pub struct Unwritten(pub io::Error);

impl fmt::Display for Unwritten {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cannot write to standard output: {}", self.0)
    }
}

impl From<Unwritten> for Failure {
    fn from(unwritten: Unwritten) -> Self {
        match unwritten.0.kind() {
            // The reader has seen enough: as quietly as the tools that SIGPIPE ends.
            io::ErrorKind::BrokenPipe => Self::new(exit::READER_GONE, ""),
            _ => Self::new(exit::IO, unwritten.to_string()),
        }
    }
}

/// Writes a line to stdout, whole and at once.
pub fn line(text: impl fmt::Display) -> Result<(), Unwritten> {
    raw(format!("{text}\n").as_bytes())
}

/// Writes bytes to stdout, whole and at once.
pub fn raw(bytes: &[u8]) -> Result<(), Unwritten> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(bytes).and_then(|()| stdout.flush()).map_err(Unwritten)
}

/// Says something on stderr, under the program's name. Whoever has closed it does not want to know.
pub fn say(text: impl fmt::Display) {
    let _nobody_may_read_it = write_stderr(format_args!("lockring: {text}\n"));
}

/// Adds a line on stderr to what was printed.
pub fn remark(text: impl fmt::Display) {
    let _nobody_may_read_it = write_stderr(format_args!("{text}\n"));
}

/// Writes to stderr at once.
pub fn write_stderr(text: fmt::Arguments<'_>) -> io::Result<()> {
    io::stderr().write_all(text.to_string().as_bytes())
}

/// Whether what is written to stdout is kept by nobody: it is the null device, which it also is for
/// a program that was started with a closed one.
pub fn is_discarded() -> bool {
    use std::os::unix::fs::MetadataExt;
    let Ok(null) = std::fs::metadata("/dev/null") else { return false };
    rustix::fs::fstat(io::stdout()).is_ok_and(|stat| {
        (stat.st_dev, stat.st_ino, stat.st_rdev) == (null.dev(), null.ino(), null.rdev())
    })
}

/// Prints rows: as a table with these columns, or as JSON. A table shows what others made up
/// escaped; JSON carries it exactly.
pub fn print_rows<T: Serialize>(
    format: Format,
    columns: &[&str],
    rows: &[T],
    row: impl Fn(&T) -> Vec<String>,
) -> Result<(), Failure> {
    let mut lines = Vec::new();
    match format {
        Format::Json => lines.push(json(rows)?),
        Format::Jsonl => {
            for one in rows {
                lines.push(json(one)?);
            }
        }
        Format::Table => {
            let mut table = Table::new();
            table.load_preset(presets::NOTHING).set_header(columns);
            for one in rows {
                table.add_row(row(one));
            }
            lines.extend(table.lines().map(|line| line.trim().to_owned()));
        }
    }
    if lines.is_empty() {
        return Ok(());
    }
    Ok(line(lines.join("\n"))?)
}

fn json(value: &(impl Serialize + ?Sized)) -> Result<String, Failure> {
    let failed = |error: serde_json::Error| Failure::new(exit::SOFTWARE, error.to_string());
    Ok(visible_json(&serde_json::to_string(value).map_err(failed)?))
}

/// A key in a row: `key` in JSON, exactly. One that is not UTF-8 is no text: `key` is then as
/// [`Shown`] prints it, and `key_hex`, which no other key has, its bytes.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct KeyField(pub Vec<u8>);

impl KeyField {
    /// For a table.
    pub fn shown(&self) -> String {
        Shown(&self.0).to_string()
    }
}

impl Serialize for KeyField {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let (key, hex) = exact(&self.0);
        let mut fields = serializer.serialize_struct("KeyField", 1 + usize::from(hex.is_some()))?;
        fields.serialize_field("key", &key)?;
        if let Some(hex) = hex {
            fields.serialize_field("key_hex", &hex)?;
        }
        fields.end()
    }
}

/// Milliseconds as people read them.
pub fn seconds(millis: u64) -> String {
    format!("{:.1}s", millis as f64 / 1000.0)
}

/// Prints a failure and turns it into the process's exit code.
pub fn report(failure: &Failure) -> ExitCode {
    if !failure.message.is_empty() {
        say(failure);
    }
    ExitCode::from(failure.code)
}
