//! The rules of the house that a compiler does not know: who may import whom, what is pure, how long a file may be.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test that meets what it did not expect ends"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

/// Each crate and the crates of this workspace that it may use.
const EDGES: &[(&str, &[&str])] = &[
    ("raft-store", &[]),
    ("sdwan", &[]),
    ("k3s", &[]),
    ("api", &["raft-store"]),
    ("node", &["api", "k3s", "raft-store", "sdwan"]),
    ("sim", &["api", "k3s", "node", "raft-store", "sdwan"]),
];

/// Pure modules: a file, or a folder and everything in it; and what it may name all the same, since only as a type.
const PURE: &[(&str, &[&str])] = &[
    ("api/src/auth.rs", &[]),
    ("api/src/daemon.rs", &[]),
    ("api/src/secrets.rs", &[]),
    ("api/src/status.rs", &[]),
    ("api/src/ticket.rs", &[]),
    ("api/src/view.rs", &[]),
    ("k3s/src/kubeconfig.rs", &[]),
    ("k3s/src/observe.rs", &["tokio"]),
    ("k3s/src/release.rs", &[]),
    ("k3s/src/render.rs", &[]),
    ("k3s/src/secret.rs", &[]),
    ("k3s/src/spec.rs", &[]),
    ("k3s/src/step.rs", &["tokio"]),
    ("k3s/src/token.rs", &[]),
    ("k3s/src/unit.rs", &[]),
    ("node/src/frames.rs", &[]),
    ("node/src/metrics.rs", &[]),
    ("node/src/project", &[]),
    ("node/src/trips.rs", &[]),
    ("raft-store/src/apply", &[]),
    ("raft-store/src/disk/record.rs", &[]),
    ("raft-store/src/model", &[]),
    ("raft-store/src/plan", &[]),
    ("raft-store/src/raft/wire.rs", &["openraft"]),
    ("raft-store/src/seal.rs", &[]),
    ("sdwan/src/handover.rs", &[]),
    ("sdwan/src/icmp.rs", &[]),
    ("sdwan/src/link/mod.rs", &[]),
    ("sdwan/src/offload/checksum.rs", &[]),
    ("sdwan/src/offload/coalesce.rs", &[]),
    ("sdwan/src/offload/mod.rs", &[]),
    ("sdwan/src/offload/split.rs", &[]),
    ("sdwan/src/offload/virtio.rs", &[]),
    ("sdwan/src/packet.rs", &[]),
    ("sdwan/src/routing.rs", &[]),
    ("sdwan/src/spec.rs", &[]),
    ("sdwan/src/tunnel/inbound.rs", &[]),
    ("sdwan/src/tunnel/mod.rs", &[]),
    ("sdwan/src/tunnel/outbound.rs", &[]),
    ("sdwan/src/tunnel/outbox.rs", &[]),
    ("sdwan/src/tunnel/probe.rs", &[]),
    ("sdwan/src/tunnel/shard.rs", &[]),
    ("sdwan/src/tunnel/status.rs", &[]),
    ("sim/src/bench/consensus/figures.rs", &[]),
    ("sim/src/bench/consensus/table.rs", &[]),
    ("sim/src/bench/dataplane/figures.rs", &[]),
    ("sim/src/bench/dataplane/plot.rs", &[]),
    ("sim/src/bench/dataplane/table.rs", &[]),
    ("sim/src/bench/footprint/figures.rs", &[]),
    ("sim/src/bench/footprint/table.rs", &[]),
    ("sim/src/bench/plot.rs", &[]),
    ("sim/src/bench/proc.rs", &[]),
    ("sim/src/bench/record.rs", &[]),
    ("sim/src/bench/stats.rs", &[]),
    ("sim/src/bench/table.rs", &[]),
    ("sim/src/bench/trial.rs", &[]),
    ("sim/src/bench/turns.rs", &[]),
    ("sim/src/bench/verdict.rs", &[]),
    ("sim/src/chaos/distort.rs", &[]),
    ("sim/src/chaos/draw.rs", &[]),
    ("sim/src/chaos/flaw.rs", &[]),
    ("sim/src/chaos/invariant", &[]),
    ("sim/src/chaos/report.rs", &[]),
    ("sim/src/chaos/schedule/draw.rs", &[]),
    ("sim/src/chaos/schedule/profile.rs", &[]),
    ("sim/src/chaos/shrink.rs", &[]),
    ("sim/src/chaos/story.rs", &[]),
    ("sim/src/chaos/world/session.rs", &[]),
    ("sim/src/chaos/world/tcp.rs", &[]),
    ("sim/src/lab/chaos/checks.rs", &[]),
    ("sim/src/lab/chaos/logs.rs", &[]),
    ("sim/src/lab/chaos/plan.rs", &[]),
    ("sim/src/lab/chaos/tally.rs", &[]),
    ("sim/src/lab/chaos/view.rs", &[]),
    ("sim/src/mortal/steps.rs", &[]),
    ("sim/src/picture/film.rs", &[]),
    ("sim/src/picture/screen.rs", &[]),
    ("sim/src/picture/svg.rs", &[]),
    ("sim/src/rehearsal/table.rs", &[]),
    ("sim/src/tutorial/matching.rs", &[]),
    ("sim/src/tutorial/parse.rs", &[]),
    ("sim/src/tutorial/walk.rs", &[]),
];

/// What a pure module does not name outside its tests.
const IMPURE: &[&str] = &[
    "tokio",
    "openraft",
    "sled",
    "std::fs",
    "std::net::TcpStream",
    "std::net::UdpSocket",
    "std::process",
    "Instant::now",
    "SystemTime",
    "HashMap",
    "HashSet",
    "rand::rng",
];

/// Lines of a file: above the first it is time to split it, above the second it must be.
const LINES_WANTED: usize = 500;
const LINES_MAX: usize = 700;

fn root() -> PathBuf {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
    manifest.parent().expect("sim lies in the workspace").to_owned()
}

fn sources_under(dir: &Path, found: &mut Vec<PathBuf>) {
    let Ok(entries) = std::fs::read_dir(dir) else {
        return;
    };
    for path in entries.map(|entry| entry.unwrap().path()) {
        if path.is_dir() {
            sources_under(&path, found);
        } else if path.extension().is_some_and(|e| e == "rs") {
            found.push(path);
        }
    }
}

/// Every Rust file of the workspace as (path from the root, text), in order.
fn sources() -> Vec<(String, String)> {
    let root = root();
    let mut found = Vec::new();
    for (crate_, _) in EDGES {
        for part in ["src", "tests", "examples", "benches"] {
            sources_under(&root.join(crate_).join(part), &mut found);
        }
    }
    found.sort();
    let name = |path: &Path| path.strip_prefix(&root).unwrap().display().to_string();
    found.iter().map(|path| (name(path), std::fs::read_to_string(path).unwrap())).collect()
}

/// The code of a file without comments, texts and spaces, up to its tests.
fn code_of(text: &str) -> String {
    let shipped = text.split("#[cfg(test)]").next().unwrap_or_default();
    let mut code = String::new();
    let mut rest = shipped.chars().peekable();
    while let Some(c) = rest.next() {
        match c {
            '/' if rest.peek() == Some(&'/') => while rest.next_if(|&c| c != '\n').is_some() {},
            '"' => {
                while let Some(c) = rest.next() {
                    match c {
                        '\\' => drop(rest.next()),
                        '"' => break,
                        _ => {}
                    }
                }
                code.push_str("\"\"");
            }
            c if c.is_whitespace() => {
                let between_words =
                    code.ends_with(is_word) && rest.peek().copied().is_some_and(is_word);
                if between_words {
                    code.push(' ');
                }
            }
            c => code.push(c),
        }
    }
    code
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// Is `path` named in `code`, whole or as part of a `use std::{..}`?
fn names(code: &str, path: &str) -> bool {
    let whole = |code: &str, word: &str| {
        code.match_indices(word).any(|(at, _)| {
            !code[..at].ends_with(is_word) && !code[at + word.len()..].starts_with(is_word)
        })
    };
    let grouped = |(parent, leaf): (&str, &str)| {
        code.split(&format!("{parent}::{{")).skip(1).any(|group| {
            let end = group.find(';').unwrap_or(group.len());
            whole(&group[..end], leaf)
        })
    };
    whole(code, path) || path.rsplit_once("::").is_some_and(grouped)
}

fn entry_of(path: &str) -> Option<&'static [&'static str]> {
    PURE.iter()
        .find(|(entry, _)| {
            path == *entry || path.strip_prefix(entry).is_some_and(|rest| rest.starts_with('/'))
        })
        .map(|(_, allowed)| *allowed)
}

fn is_test(path: &str) -> bool {
    path.contains("/tests/") || path.ends_with("tests.rs")
}

fn fail_with(broken: &[String], rule: &str) {
    assert!(broken.is_empty(), "{rule}:\n  {}\n", broken.join("\n  "));
}

#[test]
fn crates_import_only_whom_they_may() {
    let out = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version", "1", "--no-deps", "--offline", "--locked"])
        .current_dir(root())
        .output()
        .unwrap();
    assert!(out.status.success(), "cargo metadata: {}", String::from_utf8_lossy(&out.stderr));
    let metadata: Value = serde_json::from_slice(&out.stdout).unwrap();
    let name = |value: &Value| value["name"].as_str().unwrap().to_owned();
    let seen: BTreeMap<String, BTreeSet<String>> = metadata["packages"]
        .as_array()
        .unwrap()
        .iter()
        .map(|package| {
            let ours = package["dependencies"]
                .as_array()
                .unwrap()
                .iter()
                .filter(|d| d["path"].is_string());
            (name(package), ours.map(name).collect())
        })
        .collect();
    let expected: BTreeSet<&str> = EDGES.iter().map(|(name, _)| *name).collect();
    let members: BTreeSet<&str> = seen.keys().map(String::as_str).collect();
    assert_eq!(members, expected, "the workspace has exactly these crates");
    let broken: Vec<String> = EDGES
        .iter()
        .flat_map(|(from, allowed)| seen[*from].iter().map(move |to| (from, to, allowed)))
        .filter(|(_, to, allowed)| !allowed.contains(&to.as_str()))
        .map(|(from, to, _)| format!("{from} uses {to}"))
        .collect();
    fail_with(&broken, "edges that the house does not have (see EDGES)");
}

#[test]
fn pure_modules_name_nothing_impure() {
    let mut broken = Vec::new();
    for (path, text) in sources().iter().filter(|(path, _)| !is_test(path)) {
        let Some(allowed) = entry_of(path) else {
            continue;
        };
        let code = code_of(text);
        let named = IMPURE.iter().filter(|word| !allowed.contains(word) && names(&code, word));
        broken.extend(named.map(|word| format!("{path} names {word}")));
    }
    fail_with(&broken, "pure modules with something impure (pass it in, or move it to a shell)");
}

#[test]
fn every_file_says_what_it_is_and_pure_ones_are_listed() {
    let mut broken = Vec::new();
    for (path, text) in &sources() {
        let head = text.lines().next().unwrap_or_default();
        if !head.starts_with("//! ") {
            broken.push(format!("{path} does not open with a `//!` line that says what it is"));
        } else if !is_test(path) && head.ends_with(" Pure.") && entry_of(path).is_none() {
            broken.push(format!("{path} says that it is pure, but is not in PURE"));
        }
    }
    for (entry, _) in PURE {
        if !root().join(entry).exists() {
            broken.push(format!("{entry} is in PURE, but not in the tree"));
        }
    }
    fail_with(&broken, "first lines");
}

#[test]
fn files_are_short() {
    let count = |(path, text): &(String, String)| (path.clone(), text.lines().count());
    let sizes: Vec<(String, usize)> = sources().iter().map(count).collect();
    for (path, lines) in
        sizes.iter().filter(|(_, lines)| (LINES_WANTED + 1..=LINES_MAX).contains(lines))
    {
        println!("{path} has {lines} lines: time to split it");
    }
    let long = sizes.iter().filter(|(_, lines)| *lines > LINES_MAX);
    let broken: Vec<String> =
        long.map(|(path, lines)| format!("{path} has {lines} lines")).collect();
    fail_with(&broken, &format!("files above {LINES_MAX} lines"));
}

#[test]
fn the_product_does_not_know_whether_it_is_tested() {
    let shipped =
        sources().into_iter().filter(|(path, _)| path.contains("/src/") && !is_test(path));
    let broken: Vec<String> = shipped
        .filter(|(_, text)| {
            let code = code_of(text);
            code.contains("cfg!(test)") || code.contains("cfg(not(test))")
        })
        .map(|(path, _)| path)
        .collect();
    fail_with(&broken, "branches for tests");
}

#[test]
fn functions_are_held_short_by_clippy() {
    let clippy = std::fs::read_to_string(root().join("clippy.toml")).unwrap();
    assert!(clippy.lines().any(|line| line.trim() == "too-many-lines-threshold = 70"));
    let workspace = std::fs::read_to_string(root().join("Cargo.toml")).unwrap();
    assert!(workspace.lines().any(|line| line.trim() == "too_many_lines = \"warn\""));
}

#[test]
fn the_reader_of_sources_sees_what_it_should() {
    let code = code_of(
        "use std::{fmt, fs};\n// tokio\nlet a = \"sled\"; let HashMapper = b;\n#[cfg(test)]\nopenraft",
    );
    assert!(names(&code, "std::fs"));
    for absent in ["tokio", "sled", "HashMap", "openraft", "std::process"] {
        assert!(!names(&code, absent), "{absent} in {code}");
    }
    assert!(names(&code_of("let t = Instant :: now();"), "Instant::now"));
}

/// The daemon's loops take the time and wait by their node's clock, and watch in the order in which they came.
#[test]
fn the_daemon_waits_by_the_clock_of_its_node() {
    const LOOPS: [&str; 7] = [
        "node/src/agent/",
        "node/src/daemon.rs",
        "node/src/enter.rs",
        "node/src/gossip.rs",
        "node/src/leader.rs",
        "node/src/reporter.rs",
        "raft-store/src/raft/",
    ];
    const FOREIGN: [&str; 5] = [
        "Instant::now",
        "tokio::time::sleep",
        "tokio::time::sleep_until",
        "tokio::time::timeout",
        "tokio::sync::watch",
    ];
    let mut looked = 0;
    for (path, text) in sources() {
        if !LOOPS.iter().any(|l| path.starts_with(l)) || is_test(&path) {
            continue;
        }
        looked += 1;
        let code = code_of(&text);
        for foreign in FOREIGN {
            assert!(!names(&code, foreign), "{path} names {foreign}: take it from raft_store::rt");
        }
    }
    assert!(looked > 15, "only {looked} files were found");
}
