//! Drawn faults on real daemons: a sound fleet survives them, and what is wrong is found.

use std::path::Path;

use crate::common::Lab;

/// Runs a short plan; returns the exit code and what it said.
fn chaos(lab: &Lab, seed: &str, folder: &Path, more: &[&str]) -> (Option<i32>, String) {
    let folder = folder.to_str().expect("its name is text");
    let mut args = vec!["chaos", "--seed", seed, "--minutes", "0.5", "--report", folder];
    args.extend(more);
    let run = lab.verb(&args);
    let said = [&run.stdout[..], &run.stderr[..]].concat();
    (run.status.code(), String::from_utf8_lossy(&said).into_owned())
}

fn has_page(folder: &Path) -> bool {
    let files = std::fs::read_dir(folder).expect("the report's folder");
    files.flatten().any(|f| f.path().extension().is_some_and(|x| x == "html"))
}

#[test]
#[ignore = "makes hosts: ./check rehearsal"]
fn a_fleet_survives_drawn_faults() {
    let Some(lab) = Lab::reserve("chaos") else { return };
    let folder = tempfile::tempdir().expect("a folder");
    let (code, said) = chaos(&lab, "1", folder.path(), &[]);
    assert_eq!(code, Some(0), "{said}");
    assert!(has_page(folder.path()), "{said}");
    lab.down();
}

#[test]
#[ignore = "makes hosts: ./check rehearsal"]
fn a_write_that_was_acknowledged_and_is_lost_is_found() {
    let Some(lab) = Lab::reserve("chaoslost") else { return };
    let folder = tempfile::tempdir().expect("a folder");
    let (code, said) = chaos(&lab, "2", folder.path(), &["--plant", "lost-write"]);
    assert_eq!(code, Some(2), "{said}");
    assert!(said.contains("violated: acknowledged"), "{said}");
    assert!(has_page(folder.path()), "{said}");
    lab.down();
}
