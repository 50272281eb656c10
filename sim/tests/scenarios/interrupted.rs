//! Commands and daemons that are killed in the middle: the same command again completes what was begun.

use std::time::Duration;

use crate::common::{Lab, texts, wait_for};
use crate::wrong_host::{bare, begin, sh};

const MOMENTS: [u64; 6] = [10, 40, 90, 180, 350, 700];

fn kill(lab: &Lab, host: &str) {
    sh(lab, host, "pkill -9 -x skein");
    wait_for("nothing of skein runs", 5, || {
        let runs = sh(lab, host, "pgrep -x skein").status.success();
        if runs { Err("it runs".to_owned()) } else { Ok(()) }
    });
}

fn sleep(ms: u64) {
    std::thread::sleep(Duration::from_millis(ms));
}

fn names(lab: &Lab, host: &str) -> Result<Vec<String>, String> {
    let status = lab.ask(host, &["status"])?;
    let nodes = status["nodes"].as_array().cloned().unwrap_or_default();
    Ok(nodes.iter().filter_map(|n| n["name"].as_str().map(str::to_owned)).collect())
}

#[test]
#[ignore = "makes hosts: ./check rehearsal"]
fn init_and_join_that_are_killed_are_completed_by_the_same_command() {
    let Some(lab) = bare("halfway", 1, 1) else { return };
    for (i, moment) in MOMENTS.into_iter().enumerate() {
        let init = format!("skein init --foreground --state-dir /run/init-{i}");
        begin(&lab, "n1", &init);
        sleep(moment);
        kill(&lab, "n1");
        begin(&lab, "n1", &init);
        wait_for(&format!("init killed after {moment} ms is completed"), 20, || {
            let status = lab.ask("n1", &["status"])?;
            if status["healthy"] == true { Ok(()) } else { Err(status.to_string()) }
        });
        assert_eq!(names(&lab, "n1").unwrap(), ["n1"]);
        if i + 1 < MOMENTS.len() {
            kill(&lab, "n1");
        }
    }
    for (i, moment) in MOMENTS.into_iter().enumerate() {
        let ticket = lab.run("n1", &["skein", "ticket", "create", "-q"]);
        let join = format!(
            "skein join {} --name j{i} --foreground --state-dir /run/join-{i}",
            ticket.trim()
        );
        begin(&lab, "n2", &join);
        sleep(moment);
        kill(&lab, "n2");
        begin(&lab, "n2", &join);
        wait_for(&format!("join killed after {moment} ms is completed"), 30, || {
            let node = lab.ask("n1", &["node", "show", &format!("j{i}")])?;
            if node["state"] == "ready" { Ok(()) } else { Err(node.to_string()) }
        });
        assert_eq!(names(&lab, "n1").unwrap(), ["n1".to_owned(), format!("j{i}")]);
        kill(&lab, "n2");
        lab.run("n1", &["skein", "node", "rm", &format!("j{i}"), "--force"]);
    }
    lab.down();
}

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

#[test]
#[ignore = "makes hosts: ./check rehearsal"]
fn daemons_that_are_killed_in_the_middle_go_on_where_they_were() {
    let Some(lab) = Lab::up("killeddaemon", 3, 1, &["--k3s", "rehearsal", "--no-cluster"]) else {
        return;
    };
    let hit = |command: &str, victim: &str, moment: u64| {
        begin(&lab, "n4", &format!("skein {command}"));
        sleep(moment);
        kill(&lab, victim);
        lab.must(&["start", victim]);
        wait_for("there is a quorum", 30, || {
            let status = lab.ask("n4", &["status"])?;
            if status["quorum"] == true { Ok(()) } else { Err(status.to_string()) }
        });
        again(&lab, "n4", command);
    };
    for (victim, moment) in [("n1", 100), ("n2", 700), ("n3", 1_500)] {
        hit(CREATE, victim, moment);
        lab.settled("n4", 60);
        hit(&format!("drain {victim}"), victim, moment / 2);
        again(&lab, "n4", &format!("undrain {victim}"));
        lab.settled("n4", 60);
        lab.one_bearer("n4");
        hit(DECOMMISSION, victim, moment / 2);
        no_cluster(&lab);
        let left = sh(&lab, victim, "find /var/lib/rancher /var/lib/kubelet -type f");
        assert!(left.stdout.is_empty(), "{left:?}");
        let voters = texts(&lab.ask("n4", &["status"]).unwrap()["voters"]);
        assert_eq!(voters.len(), 3, "{voters:?}");
    }
    lab.down();
}
