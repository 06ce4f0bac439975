//! Rules that no lint can say, over the whole tree. Each has its reason; none has exceptions but
//! those written here.

#![allow(clippy::unwrap_used, reason = "helpers of tests fail the test")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A file that needs more is two files: readers lose the thread before they lose patience.
const FILE_LINES_MAX: usize = 600;
/// A function fits a screen.
const FUNCTION_LINES_MAX: usize = 70;
/// What rustfmt is set to; it cannot break strings and comments.
const COLUMNS_MAX: usize = 100;

/// Words that mean unfinished or untested work, and what to do instead. They are put together
/// here so that this file does not contain them.
fn banned() -> Vec<(String, &'static str)> {
    let word = |parts: [&str; 2]| parts.concat();
    vec![
        (word(["to", "do!("]), "finish it, or leave it out"),
        (word(["unimpl", "emented!("]), "finish it, or leave it out"),
        (word(["dbg", "!("]), "use tracing"),
        (word(["FIX", "ME"]), "fix it"),
        (word(["XX", "X"]), "say what is wrong"),
        (word(["#[ign", "ore"]), "a test that does not run proves nothing; bound it"),
        (word(["Hash", "Map<SessionId"]), "session ids are secrets of fixed order: BTreeMap"),
        (word(["ask", "er"]), "RequestContext, context"),
        (word(["conten", "der"]), "TargetRun"),
        (word([" he", "ir "]), "successor"),
        (word(["enr", "ich"]), "expand"),
        (word([" in li", "ne "]), "queued"),
    ]
}

fn sources() -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut found = Vec::new();
    let mut open: Vec<PathBuf> =
        ["src", "ring", "node", "client", "bench"].map(|folder| root.join(folder)).into();
    while let Some(folder) = open.pop() {
        for entry in fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() && path.file_name().is_some_and(|name| name != "target") {
                open.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                found.push(path);
            }
        }
    }
    found.sort();
    assert!(found.len() > 50, "only {} sources found", found.len());
    found
}

/// Everything wrong with one file.
fn faults(name: &str, text: &str) -> Vec<String> {
    let mut faults = Vec::new();
    let lines: Vec<&str> = text.lines().collect();
    if lines.len() > FILE_LINES_MAX {
        faults.push(format!("{name}: {} lines, at most {FILE_LINES_MAX}", lines.len()));
    }
    if !text.starts_with("//!") {
        faults.push(format!("{name}: begins without saying what it is (//!)"));
    }
    for (number, line) in (1..).zip(&lines) {
        if line.chars().count() > COLUMNS_MAX {
            faults.push(format!("{name}:{number}: longer than {COLUMNS_MAX} columns"));
        }
        for (word, instead) in banned() {
            if line.contains(&word) {
                faults.push(format!("{name}:{number}: {word}: {instead}"));
            }
        }
    }
    faults.extend(long_functions(name, &lines));
    faults
}

/// Functions end, in formatted code, at the first closing brace in the column of their beginning.
fn long_functions(name: &str, lines: &[&str]) -> Vec<String> {
    let mut faults = Vec::new();
    for (at, line) in lines.iter().enumerate() {
        let code = line.trim_start();
        let indent = &line[..line.len() - code.len()];
        let visible = code.strip_prefix("pub").map_or(code, |rest| {
            rest.strip_prefix('(')
                .and_then(|rest| rest.split_once(") "))
                .map_or(rest, |(_, rest)| rest)
        });
        let words = ["const ", "async "];
        let bare = words
            .iter()
            .fold(visible.trim_start(), |code, word| code.strip_prefix(word).unwrap_or(code));
        if !bare.starts_with("fn ") {
            continue;
        }
        let close = format!("{indent}}}");
        // A declaration without a body ends with the line of its semicolon.
        let declared = format!("{indent}    ");
        let length = lines[at..]
            .iter()
            .position(|line| {
                *line == close
                    || (line.ends_with(';') && !line.starts_with(&declared))
                    || (line.ends_with('}') && *line == lines[at])
            })
            .map_or(1, |end| end + 1);
        if length > FUNCTION_LINES_MAX {
            faults.push(format!("{name}:{}: a function of {length} lines", at + 1));
        }
    }
    faults
}

#[test]
fn every_source_is_tidy() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut all = Vec::new();
    for path in sources() {
        let name = path.strip_prefix(root).unwrap().display().to_string();
        all.extend(faults(&name, &fs::read_to_string(&path).unwrap()));
    }
    assert!(all.is_empty(), "\n{}", all.join("\n"));
}

#[test]
fn the_rules_find_what_they_forbid() {
    let long_line = format!("//! {}", "x".repeat(COLUMNS_MAX));
    assert_eq!(faults("f", &long_line).len(), 1);
    assert_eq!(faults("f", "fn f() {}\n").len(), 1, "no head");
    let long_file = format!("//! f\n{}", "\n".repeat(FILE_LINES_MAX));
    assert_eq!(faults("f", &long_file).len(), 1);
    let body = "    a();\n".repeat(FUNCTION_LINES_MAX);
    let long_function = format!("//! f\npub(crate) async fn f() {{\n{body}}}\n");
    assert_eq!(faults("f", &long_function).len(), 1);
    let unfinished = ["//! f\nfn f() { to", "do!() }\n"].concat();
    assert_eq!(faults("f", &unfinished).len(), 1);
    assert!(faults("f", "//! f\nfn f() {\n    a();\n}\n").is_empty());
}

/// A promise of the README whose test is gone is one that nothing shows.
#[test]
fn the_tests_that_show_the_promises_are_there() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let text = fs::read_to_string(root.join("src/architecture.md")).unwrap();
    let (_, table) = text.split_once("## What is promised").unwrap();
    let (table, _) = table.split_once("\n## ").unwrap();
    let named: Vec<_> = table
        .split('`')
        .filter_map(|part| part.split_once("::").filter(|(file, _)| file.ends_with(".rs")))
        .collect();
    assert!(named.len() > 20, "{named:?}");
    for (file, test) in named {
        let source = fs::read_to_string(root.join(file)).unwrap_or_else(|_| panic!("no {file}"));
        assert!(source.contains(&format!("fn {test}(")), "{file} has no {test}");
    }
}

/// The packages of ours that a package depends on, by the lock file's resolution.
fn own_dependencies(arguments: &[&str]) -> Vec<String> {
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned());
    let output = Command::new(cargo)
        .args(["tree", "--offline", "--edges", "normal", "--prefix", "none", "--format", "{p}"])
        .args(arguments)
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let mut names: Vec<String> = String::from_utf8_lossy(&output.stdout)
        .lines()
        .filter_map(|line| line.split_whitespace().next())
        .map(str::to_owned)
        .collect();
    names.sort();
    names.dedup();
    names
}

fn ours(names: &[String]) -> Vec<&str> {
    names.iter().map(String::as_str).filter(|name| name.starts_with("lockring")).collect()
}

#[test]
fn the_library_alone_holds_no_server_code() {
    let tree = own_dependencies(&["-p", "lockring", "--no-default-features"]);
    assert_eq!(ours(&tree), ["lockring", "lockring-client", "lockring-proto", "lockring-ring"]);
    assert!(!tree.iter().any(|name| name == "clap" || name == "redb"), "{tree:?}");
}

#[test]
fn the_core_is_pure_by_its_manifest() {
    let tree = own_dependencies(&["-p", "lockring-core"]);
    assert_eq!(ours(&tree), ["lockring-core", "lockring-proto", "lockring-ring"]);
    for world in ["tokio", "quinn", "rustix", "rand", "getrandom", "libc"] {
        assert!(!tree.iter().any(|name| name == world), "the core depends on {world}");
    }
    assert_eq!(ours(&own_dependencies(&["-p", "lockring-ring"])), ["lockring-ring"]);
    let tree = own_dependencies(&["-p", "lockring-control"]);
    assert_eq!(ours(&tree), ["lockring-control", "lockring-proto", "lockring-ring"]);
    assert!(!tree.iter().any(|name| name == "tokio" || name == "redb"), "{tree:?}");
}

#[test]
fn the_load_generator_never_links_the_node() {
    let tree = own_dependencies(&["-p", "lockring-bench"]);
    assert!(
        !tree.iter().any(|name| name == "lockring-node" || name == "lockring-core"),
        "{tree:?}"
    );
}
