//! Commands that are killed in the middle: the same command again completes what was begun. Daemons: see `killed`.

use crate::common::{Lab, wait_for};
use crate::wrong_host::sh;

/// Runs a command of skein again that may have been completed by its first, killed, try.
fn again(lab: &Lab, host: &str, command: &str) {
    let out = sh(lab, host, &format!("exec timeout 150 skein {command}"));
    let done = out.status.success();
    // What is gone already is not found.
    let gone = command.contains("decommission") && out.status.code() == Some(3);
    assert!(done || gone, "{command}: {out:?}");
}

const CREATE: &str = "cluster create lab --servers n1,n2,n3 --workers n4";
const DECOMMISSION: &str = "cluster decommission lab --yes";

fn no_cluster(lab: &Lab) {
    wait_for("cluster and roles are gone", 60, || {
        let status = lab.ask("n4", &["status"])?;
        let nodes = status["nodes"].as_array().cloned().unwrap_or_default();
        let free = nodes.iter().all(|n| n["role"] == "");
        let none = status["clusters"].as_array().is_some_and(Vec::is_empty);
        if free && none { Ok(()) } else { Err(status.to_string()) }
    });
}

#[test]
#[ignore = "makes hosts: ./check rehearsal"]
fn commands_that_are_killed_are_completed_by_the_same_command() {
    let Some(lab) = Lab::up("killedcli", 3, 1, &["--k3s", "rehearsal", "--no-cluster"]) else {
        return;
    };
    let cut_short = |command: &str, moment: u64| {
        let seconds = format!("{}.{:03}", moment / 1000, moment % 1000);
        let out = sh(&lab, "n4", &format!("timeout -s KILL {seconds} skein {command}"));
        println!("    {command}: {:?} after {moment} ms", out.status.code());
    };
    waits_are_ended_by_an_interrupt(&lab);
    for moment in [15, 400, 2_000] {
        cut_short(CREATE, moment);
        again(&lab, "n4", CREATE);
        lab.settled("n4", 30);
        cut_short("drain n2", moment);
        again(&lab, "n4", "drain n2");
        let node = lab.ask("n4", &["node", "show", "n2"]).unwrap();
        assert_eq!(node["drain"], "done", "{node}");
        again(&lab, "n4", "undrain n2");
        lab.settled("n4", 60);
        cut_short(DECOMMISSION, moment);
        again(&lab, "n4", DECOMMISSION);
        no_cluster(&lab);
    }
    lab.down();
}

/// Ctrl-C in each command that waits: it says that things go on, and how to follow them.
fn waits_are_ended_by_an_interrupt(lab: &Lab) {
    let interrupted = |command: &str| {
        // Where everything was done before the signal came, there was nothing to interrupt.
        let script = format!("timeout --preserve-status -s INT 0.3 skein {command}");
        let out = sh(lab, "n4", &script);
        let said = String::from_utf8_lossy(&out.stderr).into_owned();
        match out.status.code() {
            Some(130) => {
                assert!(said.contains("goes on by itself"), "{said}");
                assert!(said.contains("the same command waits again"), "{said}");
                true
            }
            Some(0) => false,
            code => panic!("{command}: {code:?}: {said}"),
        }
    };
    assert!(interrupted(CREATE), "three servers take longer");
    again(lab, "n4", CREATE);
    lab.settled("n4", 30);
    let drain = interrupted("drain n2");
    again(lab, "n4", "drain n2");
    assert_eq!(lab.ask("n4", &["node", "show", "n2"]).unwrap()["state"], "drained");
    again(lab, "n4", "undrain n2");
    lab.settled("n4", 60);
    let decommission = interrupted(DECOMMISSION);
    println!("    interrupted: create, drain {drain}, decommission {decommission}");
    again(lab, "n4", DECOMMISSION);
    no_cluster(lab);
}
