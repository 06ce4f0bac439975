//! Runs of the load generator, for its tests.

#![allow(dead_code, reason = "not every test needs all of it")]

#[path = "../common/mod.rs"]
mod common;

use common::binary;
use serde_json::Value;
use std::fs;
use std::path::Path;
use std::process::{Command, Output};
use tempfile::TempDir;

/// How a command ended.
pub struct Ran {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

impl Ran {
    pub fn of(output: &Output) -> Self {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let code = output.status.code().unwrap_or(-1);
        Self { code, stdout: text(&output.stdout), stderr: text(&output.stderr) }
    }

    /// The reports: one array, on one line, and nothing else.
    pub fn reports(&self) -> Vec<Value> {
        assert_eq!(self.code, 0, "{}", self.stderr);
        assert_eq!(self.stdout.lines().count(), 1, "{}", self.stdout);
        match serde_json::from_str(&self.stdout).unwrap() {
            Value::Array(reports) => reports,
            other => panic!("not an array: {other}"),
        }
    }

    /// The only report.
    pub fn report(&self) -> Value {
        let mut reports = self.reports();
        assert_eq!(reports.len(), 1);
        reports.remove(0)
    }

    pub fn failed_with(&self, code: i32, hint: &str) {
        assert_eq!(self.code, code, "{}{}", self.stdout, self.stderr);
        assert!(self.stderr.contains(hint), "no {hint:?} in {}", self.stderr);
        assert_eq!(self.stdout, "");
    }
}

/// `bench` with a directory of its own for whatever it puts down.
pub fn bench(temporary: &TempDir, arguments: &[&str]) -> Command {
    let mut command = binary();
    command.arg("bench").args(arguments).env("TMPDIR", temporary.path());
    command
}

pub fn run(arguments: &[&str]) -> Ran {
    let temporary = TempDir::new().unwrap();
    let ran = Ran::of(&bench(&temporary, arguments).output().unwrap());
    assert_nothing_left(temporary.path());
    ran
}

/// No file of a run is left, and no process whose files they were.
pub fn assert_nothing_left(temporary: &Path) {
    let files: Vec<_> = fs::read_dir(temporary).unwrap().map(|entry| entry.unwrap()).collect();
    assert!(files.is_empty(), "{files:?}");
    let ours = temporary.to_str().unwrap();
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        // Processes come and go while the list is read.
        let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        assert!(!line.contains(ours), "still running: {line}");
    }
}

pub fn number(report: &Value, path: &str) -> f64 {
    let found = report.pointer(path).and_then(Value::as_f64);
    found.unwrap_or_else(|| panic!("no number at {path} in {report}"))
}

pub fn assert_safe(report: &Value) {
    for name in ["double_grants", "fence_regressions"] {
        assert_eq!(report["safety"][name], 0, "{report}");
    }
}
