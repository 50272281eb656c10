//! Disks that are full, damaged, of another time or another fleet: nothing is lost, and the way back is what is said.

use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::common::{Lab, texts, wait_for};
use crate::wrong_host::{bare, begin, last_lines, next, says, sh};

fn members(name: &str, servers: usize, workers: usize) -> Option<Lab> {
    Lab::up(name, servers, workers, &["--k3s", "rehearsal", "--no-cluster"])
}

fn ready(lab: &Lab, host: &str, node: &str) {
    wait_for(&format!("{node} is ready"), 60, || {
        let shown = lab.ask(host, &["node", "show", node])?;
        if shown["state"] == "ready" { Ok(()) } else { Err(shown.to_string()) }
    });
}

fn names(lab: &Lab, host: &str) -> Result<Vec<String>, String> {
    let list = lab.ask(host, &["node", "ls"])?;
    let nodes = list["nodes"].as_array().cloned().unwrap_or_default();
    Ok(nodes.iter().filter_map(|n| n["name"].as_str().map(str::to_owned)).collect())
}

fn stop(lab: &Lab, host: &str) {
    lab.run(host, &["pkill", "-9", "-x", "skein"]);
    wait_for("the daemon is gone", 5, || {
        let runs = sh(lab, host, "pgrep -x skein").status.success();
        if runs { Err("it runs".to_owned()) } else { Ok(()) }
    });
}

fn replace(path: &Path, text: &str) -> String {
    let before = std::fs::read_to_string(path).unwrap();
    std::fs::write(path, text).unwrap();
    before
}

#[test]
#[ignore = "makes hosts: ./check rehearsal"]
fn state_of_another_version_or_fleet_is_left_as_it_is() {
    let Some(lab) = members("versions", 1, 1) else { return };
    ready(&lab, "n1", "n2");
    stop(&lab, "n2");
    let state = lab.disk("n2").join("var/lib/skein");
    let daemon = || lab.exec("n2", &["skein", "daemon"]);

    let format = state.join("store/FORMAT");
    let before = replace(&format, "9\n");
    says(&last_lines(&daemon()), 1, "has format 9, this skein knows 1", "install the newer skein");
    std::fs::write(&format, before).unwrap();

    let owner = state.join("store/IDENTITY");
    let before = replace(&owner, "fleet=00000000-0000-0000-0000-000000000001 node=7\n");
    says(&last_lines(&daemon()), 1, "belongs to fleet=0000", "state folder");
    std::fs::write(&owner, before).unwrap();

    let identity = state.join("identity.json");
    let before = replace(&identity, r#"{"version":99}"#);
    says(&daemon(), 1, "newer skein (format 99", "install the newer skein");
    let ticket = lab.run("n1", &["skein", "ticket", "create", "-q"]);
    let join = lab.exec("n2", &["skein", "join", ticket.trim(), "--foreground"]);
    says(&join, 1, "format 99", "install the newer skein");
    says(&lab.exec("n2", &["skein", "init", "--foreground"]), 1, "format 99", "newer skein");
    std::fs::write(&identity, "{").unwrap();
    says(&daemon(), 1, "identity.json is damaged", "--replaces");
    std::fs::write(&identity, before).unwrap();
    says(
        &lab.exec("n2", &["skein", "init", "--name", "x", "--foreground"]),
        1,
        "n2 in a fleet",
        "leave",
    );

    lab.must(&["start", "n2"]);
    ready(&lab, "n1", "n2");
    lab.down();
}

/// The files of the current generation of a store, largest first.
fn store_files(state: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut look = vec![state.join("store")];
    while let Some(dir) = look.pop() {
        for entry in std::fs::read_dir(dir).unwrap().flatten() {
            let path = entry.path();
            if path.is_dir() {
                look.push(path);
            } else if path.to_string_lossy().contains("/gen-") {
                found.push(path);
            }
        }
    }
    found.sort_by_key(|p| std::cmp::Reverse(std::fs::metadata(p).unwrap().len()));
    found
}

#[test]
#[ignore = "makes hosts: ./check rehearsal"]
fn a_damaged_store_is_put_aside_and_what_is_said_brings_the_node_back() {
    let Some(lab) = members("damage", 3, 0) else { return };
    ready(&lab, "n1", "n3");
    stop(&lab, "n3");
    let state = lab.disk("n3").join("var/lib/skein");
    let file = std::fs::OpenOptions::new().write(true).open(&store_files(&state)[0]).unwrap();
    let length = file.metadata().unwrap().len();
    for at in (0..length).step_by(97) {
        file.write_all_at(&[0xa5], at).unwrap();
    }
    let first = last_lines(&lab.exec("n3", &["skein", "daemon"]));
    says(&first, 1, "is damaged", "skein join TICKET --replaces n3");
    let again = last_lines(&lab.exec("n3", &["skein", "daemon"]));
    says(&again, 1, "put aside earlier", "skein join TICKET --replaces n3");
    wait_for("the others say why it is gone, and since when", 20, || {
        let status = lab.ask("n1", &["status"])?;
        let problems = texts(&status["problems"]).join(" ");
        let told = problems.contains("n3")
            && problems.contains("its daemon ended: ")
            && problems.contains("put aside earlier")
            && problems.contains("(for ");
        if told { Ok(()) } else { Err(problems) }
    });

    let ticket = lab.run("n1", &["skein", "ticket", "create", "-q"]);
    let line = next(&again).rsplit_once("here: ").unwrap().1.replace("TICKET", ticket.trim());
    begin(&lab, "n3", &format!("{line} --foreground"));
    ready(&lab, "n1", "n3");
    wait_for("there are three again, and all vote", 60, || {
        let status = lab.ask("n1", &["status"])?;
        let (names, voters) = (names(&lab, "n1")?, texts(&status["voters"]));
        if names.len() == 3 && voters.len() == 3 { Ok(()) } else { Err(status.to_string()) }
    });
    lab.down();
}

#[test]
#[ignore = "makes hosts: ./check rehearsal"]
fn a_machine_that_was_removed_while_it_was_off_is_told_and_joins_anew() {
    let Some(lab) = members("returns", 1, 1) else { return };
    ready(&lab, "n1", "n2");
    lab.must(&["kill", "n2"]);
    wait_for("its silence is noticed, and since when", 20, || {
        let status = lab.ask("n1", &["status"])?;
        let problems = texts(&status["problems"]).join(" ");
        let fine = problems.contains("n2 is not heard of") && problems.contains("(for ");
        if fine { Ok(()) } else { Err(problems) }
    });
    lab.run("n1", &["skein", "node", "rm", "n2", "--force"]);
    lab.must(&["start", "n2"]);
    wait_for("it says that it was removed", 30, || {
        let out = lab.exec("n2", &["skein", "status", "--stale"]);
        let words = String::from_utf8_lossy(&out.stdout).into_owned();
        let told = words.contains("was removed") && words.contains("skein join TICKET");
        if told { Ok(()) } else { Err(format!("{words} {out:?}")) }
    });
    let ticket = lab.run("n1", &["skein", "ticket", "create", "-q"]);
    let join = ["skein", "join", ticket.trim(), "--foreground"];
    says(&lab.exec("n2", &join), 1, "still runs here", "systemctl stop skein");
    stop(&lab, "n2");
    begin(&lab, "n2", &join.join(" "));
    ready(&lab, "n1", "n2");
    assert_eq!(names(&lab, "n1").unwrap(), ["n1", "n2"]);
    lab.down();
}

/// Lays a small file system over a host's state folder.
fn small(lab: &Lab, host: &str) {
    let mount = ["mount", "-t", "tmpfs", "-o", "size=24m", "none", "/var/lib/skein"];
    lab.run(host, &mount);
}

const FILL: &str = "dd if=/dev/zero of=/var/lib/skein/filler bs=4k 2>/dev/null; true";

#[test]
#[ignore = "makes hosts: ./check rehearsal"]
fn a_full_disk_is_told_here_and_elsewhere_and_room_brings_the_node_back() {
    let Some(lab) = bare("full", 3, 0) else { return };
    small(&lab, "n3");
    lab.run("n3", &["sh", "-c", FILL]);
    let out = lab.exec("n3", &["skein", "init", "--foreground"]);
    says(&out, 1, "No space left", "free space");
    lab.run("n3", &["sh", "-c", "rm -rf /var/lib/skein/*"]);

    begin(&lab, "n1", "skein init --foreground");
    wait_for("n1 answers", 20, || lab.ask("n1", &["status"]));
    for host in ["n2", "n3"] {
        let ticket = lab.run("n1", &["skein", "ticket", "create", "--role", "voter", "-q"]);
        begin(&lab, host, &format!("skein join {} --foreground", ticket.trim()));
        ready(&lab, "n1", host);
    }
    wait_for("three vote", 30, || {
        let status = lab.ask("n1", &["status"])?;
        if texts(&status["voters"]).len() == 3 { Ok(()) } else { Err(status.to_string()) }
    });
    lab.run("n3", &["sh", "-c", FILL]);
    let mut acknowledged = Vec::new();
    wait_for("the others say why n3 ended", 120, || {
        let name = format!("net{}", acknowledged.len());
        if lab.exec("n1", &["skein", "net", "create", &name]).status.success() {
            acknowledged.push(name);
        }
        // What the log has allocated takes some hundred entries more, which one call after the other are long in coming.
        let many =
            "for i in 1 2 3 4 5 6 7 8; do skein ticket create -q >/dev/null 2>&1 & done; wait";
        lab.exec("n1", &["sh", "-c", many]);
        let status = lab.ask("n1", &["status"])?;
        let problems = texts(&status["problems"]).join(" ");
        let told = problems.contains("its daemon ended") && problems.contains("No space left");
        if told && problems.contains("(for ") { Ok(()) } else { Err(problems) }
    });
    let log = lab.log("n3");
    for part in ["nothing is acknowledged any more", "why:", "next:  free space"] {
        assert!(log.contains(part), "{part} in {log}");
    }
    lab.run("n3", &["rm", "/var/lib/skein/filler"]);
    begin(&lab, "n3", "skein daemon");
    ready(&lab, "n1", "n3");
    wait_for("n3 has everything that was acknowledged", 30, || {
        let list = lab.ask("n3", &["net", "ls", "--stale"])?;
        let all = list["networks"].as_array().cloned().unwrap_or_default();
        let has = |name: &String| all.iter().any(|n: &Value| n["name"] == name.as_str());
        if acknowledged.iter().all(has) { Ok(()) } else { Err(list.to_string()) }
    });
    lab.down();
}
