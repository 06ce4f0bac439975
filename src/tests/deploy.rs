//! What is in `deploy/` works with this very binary.

#![allow(clippy::unwrap_used, reason = "helpers of tests fail the test")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

fn deploy(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy").join(name)
}

fn check(config: &Path, more: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_lockring"))
        .env_clear()
        .args(["server", "--check", "--config"])
        .arg(config)
        .args(more)
        .output()
        .unwrap()
}

fn said(output: &Output) -> String {
    let text = [output.stdout.as_slice(), output.stderr.as_slice()].concat();
    String::from_utf8_lossy(&text).into_owned()
}

#[test]
fn the_example_config_is_read_and_its_comments_state_the_defaults() {
    let example = deploy("node.example.toml");
    let output = check(&example, &[]);
    assert!(output.status.success(), "{}", said(&output));
    let shown = said(&output);
    let defaults = [
        "data_dir /var/lib/lockring",
        "listen 0.0.0.0:7420",
        "admin 127.0.0.1:7421",
        "drain 10s",
        "max_ttl 600s",
        "memory_limit auto",
        "handshakes 200",
        "handshakes_per_source 100",
        "admin_hosts []",
    ];
    for line in defaults {
        assert!(shown.contains(line), "{line} is not in {shown}");
    }
    // With every commented setting switched on it is still a legal file, and the defaults hold.
    let text = fs::read_to_string(&example).unwrap();
    let on: String = text
        .lines()
        .map(|line| match line.strip_prefix("# ") {
            Some(setting) if setting.contains(" = ") => format!("{setting}\n"),
            _ => format!("{line}\n"),
        })
        .collect();
    let folder = tempfile::tempdir().unwrap();
    let all = folder.path().join("all.toml");
    fs::write(&all, on).unwrap();
    let output = check(&all, &[]);
    assert!(output.status.success(), "{}", said(&output));
    assert!(said(&output).contains("admin 127.0.0.1:7421\ndrain 10s"), "{}", said(&output));
    assert!(said(&output).contains("workers 4\n"), "{}", said(&output));
    assert!(said(&output).contains("max_ttl of batch 3600s\n"), "{}", said(&output));
    let all_set = said(&output);
    for line in &defaults[4..] {
        assert!(all_set.contains(line), "{line} is not the default that the file states");
    }
    // A flag wins over the file.
    let output = check(&all, &["--workers", "2", "--admin", "none"]);
    assert!(said(&output).contains("workers 2\nadmin none"), "{}", said(&output));
}

#[test]
fn a_typo_in_a_config_is_an_error_that_names_it() {
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("node.toml");
    for (text, words) in [
        ("data_dir = '/x'\nworker = 2\n", "worker"),
        ("data_dir = '/x'\ndrain = 'soon'\n", "drain"),
        ("data_dir = '/x'\nmax_ttl = '2h'\n", "1s to 1h"),
        ("data_dir = '/x'\nnamespaces = { a = { max_ttl = '1d' } }\n", "namespaces.a"),
        ("data_dir = '/x'\nnamespaces = { 'a/b' = { max_ttl = '1h' } }\n", "namespaces.a/b"),
        ("data_dir = '/x'\nnamespaces = { a = { ttl = '1h' } }\n", "ttl"),
        ("data_dir = '/x'\nmemory_limit = 'lots'\n", "memory_limit"),
        ("data_dir = '/x'\nhandshakes = 0\n", "handshakes"),
        ("data_dir = '/x'\nquotas = { sessions = 0 }\n", "quotas: sessions"),
        ("listen = '0.0.0.0:7420'\n", "data directory"),
    ] {
        fs::write(&config, text).unwrap();
        let output = check(&config, &[]);
        assert!(matches!(output.status.code(), Some(64 | 78)), "{text}: {}", said(&output));
        assert!(said(&output).contains(words), "{text}: {}", said(&output));
    }
}

#[test]
fn the_unit_runs_what_exists_and_keeps_its_hardening() {
    let unit = fs::read_to_string(deploy("systemd/lockring.service")).unwrap();
    let value = |name: &str| {
        let line = unit.lines().find_map(|line| line.strip_prefix(&format!("{name}=")));
        line.unwrap_or_else(|| panic!("no {name}")).to_owned()
    };
    let start = value("ExecStart");
    let arguments: Vec<&str> = start.split_whitespace().collect();
    assert_eq!(arguments[0], "/usr/local/bin/lockring");
    let config = arguments.iter().position(|argument| *argument == "--config").unwrap() + 1;
    // The same arguments, with the example in place of the installed config.
    let output = Command::new(env!("CARGO_BIN_EXE_lockring"))
        .env_clear()
        .args(&arguments[1..config])
        .arg(deploy("node.example.toml"))
        .args(&arguments[config + 1..])
        .arg("--check")
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", said(&output));
    assert_eq!(value("ExecStartPre"), format!("{start} --check"));
    // Ready is told, not guessed; and the state directory is the one of the example.
    assert_eq!(value("Type"), "notify");
    assert_eq!(format!("/var/lib/{}", value("StateDirectory")), "/var/lib/lockring");
    for (name, wanted) in [
        ("DynamicUser", "yes"),
        ("NoNewPrivileges", "yes"),
        ("CapabilityBoundingSet", ""),
        ("ProtectSystem", "strict"),
        ("MemoryDenyWriteExecute", "yes"),
        ("RestrictAddressFamilies", "AF_INET AF_INET6 AF_UNIX"),
        ("SystemCallFilter", "@system-service"),
        ("PrivateDevices", "yes"),
        ("LimitCORE", "0"),
    ] {
        assert_eq!(value(name), wanted, "{name}");
    }
}
