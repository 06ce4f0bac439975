//! Every public type of the client, and every function a user calls, is shown in an example that
//! is compiled; so is what the README shows. Prose goes stale unseen; an example that calls a
//! function breaks with it, and shows its use before its rules are read.

#![allow(clippy::unwrap_used, reason = "helpers of tests fail the test")]

use std::fs;
use std::path::Path;

/// Fences of examples that rustdoc compiles.
const COMPILED: [&str; 4] = ["```", "```rust", "```no_run", "```should_panic"];

/// An example: its visible lines, and the type at which it stands (none: at the head of its file,
/// or at a function of no type).
#[derive(Debug)]
struct Example {
    file: String,
    owner: Option<String>,
    lines: Vec<String>,
}

/// Something public. A function has the type it belongs to, if any.
#[derive(Debug)]
enum Item {
    Type { name: String },
    Function { owner: Option<String>, name: String },
}

/// What one file, or all of them, holds.
#[derive(Debug, Default)]
struct Found {
    examples: Vec<Example>,
    items: Vec<(String, Item)>,
}

fn identifier(text: &str) -> String {
    text.chars().take_while(|&c| c.is_alphanumeric() || c == '_').collect()
}

/// What a line of code declares as public, within `owner`.
fn declared(code: &str, owner: Option<&String>) -> Option<Item> {
    // A type of the wire that users of the client get as its own.
    if let Some(name) = code.strip_prefix("pub use lockring_proto::") {
        return Some(Item::Type { name: identifier(name) });
    }
    let rest = code.strip_prefix("pub ")?;
    if let Some(name) = rest.strip_prefix("struct ").or_else(|| rest.strip_prefix("enum ")) {
        return Some(Item::Type { name: identifier(name) });
    }
    let words = ["const ", "async "];
    let bare = words.iter().fold(rest, |rest, word| rest.strip_prefix(word).unwrap_or(rest));
    let name = identifier(bare.strip_prefix("fn ")?);
    Some(Item::Function { owner: owner.cloned(), name })
}

/// The type of `impl<..> Type<..> {` or `impl Trait for Type {`.
fn implemented(line: &str) -> Option<String> {
    let line = line.strip_prefix("impl")?.strip_suffix('{')?;
    let after_generics = if line.starts_with('<') { line.split_once("> ")?.1 } else { line };
    let name = after_generics.split_once(" for ").map_or(after_generics, |(_, name)| name);
    Some(identifier(name.trim()))
}

/// The compiled examples among the lines of one comment, without what rustdoc hides.
fn examples(comment: &[&str]) -> Vec<Vec<String>> {
    let mut all = Vec::new();
    let mut lines = comment.iter();
    while let Some(fence) = lines.find(|line| line.starts_with("```")) {
        let inside: Vec<String> = (&mut lines)
            .take_while(|line| !line.starts_with("```"))
            .filter(|line| **line != "#" && !line.starts_with("# "))
            .map(|line| (*line).to_owned())
            .collect();
        if COMPILED.contains(fence) {
            all.push(inside);
        }
    }
    all
}

/// The text of a line of documentation.
fn documentation<'a>(line: &'a str, mark: &str) -> Option<&'a str> {
    let text = line.trim_start().strip_prefix(mark)?;
    Some(text.strip_prefix(' ').unwrap_or(text))
}

/// Everything public in one file, and its examples. Tests stand at the end of a file; what only
/// the tests of this workspace have, no user calls.
fn read(file: &str, text: &str) -> Found {
    let mut found = Found::default();
    let keep = |owner: Option<&String>, comment: &[&str]| {
        let all = examples(comment).into_iter();
        all.map(|lines| Example { file: file.to_owned(), owner: owner.cloned(), lines }).collect()
    };
    let lines: Vec<&str> = text.lines().take_while(|line| *line != "#[cfg(test)]").collect();
    let head: Vec<&str> = lines.iter().filter_map(|line| documentation(line, "//!")).collect();
    let at_head: Vec<Example> = keep(None, &head);
    found.examples.extend(at_head);
    let (mut owner, mut comment, mut testing) = (None, Vec::new(), false);
    for line in lines {
        let code = line.trim_start();
        if let Some(text) = documentation(line, "///") {
            comment.push(text);
            continue;
        }
        if code.starts_with("#[") {
            testing |= code.contains("feature = \"testing\"");
            continue;
        }
        owner = implemented(line).or(owner.filter(|_| line != "}"));
        if let Some(item) = declared(code, owner.as_ref()) {
            let at = match &item {
                Item::Type { name } => Some(name),
                Item::Function { owner, .. } => owner.as_ref(),
            };
            let here: Vec<Example> = keep(at, &comment);
            found.examples.extend(here);
            if !testing {
                found.items.push((file.to_owned(), item));
            }
        }
        comment.clear();
        testing = false;
    }
    found
}

/// Whether a line, apart from its comment, has a word, with `after` following at once.
fn names(line: &str, word: &str, after: &str) -> bool {
    // Not any two slashes: addresses have them too.
    let code = line.split(" //").next().unwrap_or_default();
    let part_of_word = |c: char| c.is_alphanumeric() || c == '_';
    !code.starts_with("//")
        && code.match_indices(word).any(|(at, _)| {
            let rest = &code[at + word.len()..];
            !code[..at].ends_with(part_of_word)
                && !rest.starts_with(part_of_word)
                && rest.starts_with(after)
        })
}

impl Found {
    /// Everything that no example shows. A type may be named in any; a function must be called
    /// where its reader looks, at its type or at the head of its file: `key` of one type says
    /// nothing of `key` of another.
    fn faults(&self) -> Vec<String> {
        let shown = |file: &str, item: &Item| {
            self.examples.iter().any(|example| match item {
                Item::Type { name } => example.lines.iter().any(|line| names(line, name, "")),
                Item::Function { owner, name } => {
                    let near = example.owner.is_none() || example.owner == *owner;
                    let calls = example.lines.iter().any(|line| names(line, name, "("));
                    example.file == file && near && calls
                }
            })
        };
        let missing = self.items.iter().filter(|(file, item)| !shown(file, item));
        let fault = |(file, item): &(String, Item)| match item {
            Item::Type { name } => format!("{file}: no compiled example names {name}"),
            Item::Function { owner: Some(owner), name } => {
                format!("{file}: no compiled example at {owner} calls {owner}::{name}")
            }
            Item::Function { owner: None, name } => {
                format!("{file}: no compiled example calls {name}")
            }
        };
        missing.map(fault).collect()
    }

    fn add(&mut self, mut other: Self) {
        self.examples.append(&mut other.examples);
        self.items.append(&mut other.items);
    }
}

/// The client's sources, by their path in its folder.
fn client() -> Found {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("client/src");
    let mut found = Found::default();
    let mut open = vec![root.clone()];
    while let Some(folder) = open.pop() {
        for entry in fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                open.push(path);
                continue;
            }
            let name = path.strip_prefix(&root).unwrap().display().to_string();
            found.add(read(&name, &fs::read_to_string(&path).unwrap()));
        }
    }
    // A session's functions are for those who drive one by hand; the example at its head goes
    // through a whole life of a claim instead.
    let of_session = |item: &Item, file: &str| {
        let parts = ["session/", "link/", "claims/"];
        parts.iter().any(|part| file.starts_with(part)) && matches!(item, Item::Function { .. })
    };
    found.items.retain(|(file, item)| !of_session(item, file));
    found
}

#[test]
fn everything_of_the_client_is_shown_in_an_example() {
    let client = client();
    assert!(client.items.len() > 80, "only {} items found", client.items.len());
    assert!(client.examples.len() > 40, "only {} examples found", client.examples.len());
    let faults = client.faults();
    assert!(faults.is_empty(), "\n{}", faults.join("\n"));
}

const SHOWN: &str = "\
//! A file.
//!
//! ```
//! let thing: Thing = make(1);
//! ```

/// A thing.
///
/// ```no_run
/// thing.turn(); // and never stop()
/// ```
#[derive(Debug)]
pub struct Thing;

impl Thing {
    /// Turns.
    pub async fn turn(&self) {}
    pub(crate) fn inner(&self) {}
}

/// Makes.
pub fn make(n: u32) -> Thing {}

#[cfg(feature = \"testing\")]
pub fn broken() {}

#[cfg(test)]
mod tests {
    pub fn helper() {}
}
";

#[test]
fn what_no_example_shows_is_refused() {
    let faults = |text: &str| read("f.rs", text).faults();
    assert_eq!(faults(SHOWN), [""; 0]);
    let (fence, uncompiled) = ("/// ```no_run", "/// ```text");
    let turn = "f.rs: no compiled example at Thing calls Thing::turn";
    assert_eq!(faults(&SHOWN.replace(fence, uncompiled)), [turn]);
    assert_eq!(faults(&SHOWN.replace("thing.turn()", "# thing.turn()")), [turn], "hidden");
    assert_eq!(faults(&SHOWN.replace("thing.turn()", "thing.returns()")), [turn]);
    assert_eq!(
        faults(&SHOWN.replace("fn inner", "fn inner_thing").replace("pub(crate)", "pub")),
        ["f.rs: no compiled example at Thing calls Thing::inner_thing"]
    );
    let stop = SHOWN.replace("async fn turn", "fn stop");
    let stop = faults(&stop);
    assert_eq!(stop, ["f.rs: no compiled example at Thing calls Thing::stop"], "only a comment");
    assert_eq!(
        faults(&SHOWN.replace("let thing: Thing = make(1);", "let other = Thingy;")),
        ["f.rs: no compiled example names Thing", "f.rs: no compiled example calls make"]
    );
    let elsewhere = format!("{SHOWN}\nimpl Other {{\n    pub fn turn(&self) {{}}\n}}\n");
    let elsewhere = elsewhere.replace("#[cfg(test)]\n", "");
    let faults = faults(&elsewhere);
    assert!(faults.contains(&turn.replace("Thing", "Other")), "{faults:?}");
}

/// The README's code is not compiled where it stands: there, what the compiler needs around it
/// would be in the way. It is the visible part of the root crate's example.
#[test]
fn the_readme_shows_the_compiled_example() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let readme = fs::read_to_string(root.join("README.md")).unwrap();
    let lines: Vec<&str> = readme.lines().collect();
    let rust: Vec<&str> = lines
        .split(|line| *line == "```rust")
        .skip(1)
        .flat_map(|after| after.iter().take_while(|line| **line != "```").copied())
        .collect();
    let library = read("lib.rs", &fs::read_to_string(root.join("src/lib.rs")).unwrap());
    assert_eq!(rust, library.examples[0].lines, "README.md and src/lib.rs part ways");
}
