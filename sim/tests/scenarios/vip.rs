//! The VIP stays in service whatever becomes of its holder.

use std::time::Duration;

use crate::common::{Lab, wait_for};

/// What is promised to people from a loss until the VIP answers again.
const LOSS_MAX: Duration = Duration::from_secs(10);
/// A planned move has no such wait in it.
const PLANNED_MAX: Duration = Duration::from_millis(1_000);

/// A server that is neither of these.
fn other_server(lab: &Lab, not: &[&str]) -> String {
    let hosts = lab.hosts();
    let servers = hosts.iter().filter(|h| h.as_str() != "n4" || hosts.len() > 4);
    servers
        .into_iter()
        .find(|h| !not.contains(&h.as_str()))
        .expect("there are three servers")
        .clone()
}

#[test]
#[ignore = "makes hosts: ./check rehearsal"]
fn drain_and_undrain() {
    let Some(lab) = Lab::rehearsal("drain", 3, 1) else {
        return;
    };
    let (old, generation) = (lab.holder("n4"), lab.generation("n4"));
    let probe = lab.probe("n4", true, 8);
    lab.must(&["drain", &old]);
    let new = lab.moved_from("n4", &old, 1);
    assert_eq!(lab.generation("n4"), generation + 1);
    let gap = probe.end();
    println!("    drain: {gap:?}");
    assert!(gap.longest < PLANNED_MAX, "{gap:?}");
    lab.one_bearer("n4");
    let status = lab.ask("n4", &["node", "show", &old]).unwrap();
    assert!(status.to_string().contains("drain"), "{status}");
    lab.run("n4", &["skein", "undrain", &old]);
    lab.settled("n4", 20);
    assert_eq!(lab.holder("n4"), new, "undrain does not take the VIP back");
    lab.down();
}

#[test]
#[ignore = "makes hosts: ./check rehearsal"]
fn the_only_server_cannot_be_drained() {
    let Some(lab) = Lab::rehearsal("guard", 1, 1) else {
        return;
    };
    let out = lab.exec("n2", &["skein", "drain", "n1"]);
    assert_eq!(out.status.code(), Some(4), "{out:?}");
    lab.down();
}

#[test]
#[ignore = "makes hosts: ./check rehearsal"]
fn kill_the_holder() {
    lose_the_holder("kill");
}

#[test]
#[ignore = "makes hosts: ./check rehearsal"]
fn crash_the_holder() {
    lose_the_holder("crash");
}

fn lose_the_holder(verb: &str) {
    let Some(lab) = Lab::rehearsal(verb, 3, 1) else {
        return;
    };
    let (old, generation) = (lab.holder("n4"), lab.generation("n4"));
    let probe = lab.probe("n4", true, 14);
    lab.must(&[verb, &old]);
    let new = lab.moved_from("n4", &old, 12);
    let gap = probe.end();
    println!("    {verb} the holder: {gap:?}");
    assert!(gap.longest < LOSS_MAX, "{gap:?}");
    lab.one_bearer("n4");
    assert_eq!(lab.generation("n4"), generation + 1);
    lab.must(&["start", &old]);
    lab.settled("n4", 60);
    assert_eq!(lab.holder("n4"), new, "the VIP stays where it is when the old holder is back");
    lab.one_bearer(&old);
    lab.down();
}

#[test]
#[ignore = "makes hosts: ./check rehearsal"]
fn kill_leader_and_holder_together() {
    let Some(lab) = Lab::rehearsal("both", 5, 1) else {
        return;
    };
    let leader = lab.leader("n6");
    let mut holder = lab.holder("n6");
    if holder == leader {
        let servers: Vec<String> = (1..=5).map(|i| format!("n{i}")).collect();
        let to = servers.iter().find(|s| **s != leader).unwrap();
        lab.run("n6", &["skein", "vip", "move", "k3s_api_endpoint", "--to", to]);
        holder = lab.moved_from("n6", &leader, 10);
    }
    let probe = lab.probe("n6", true, 16);
    let mut verbs = [lab.command(&["kill", &leader]), lab.command(&["kill", &holder])];
    let running = verbs.each_mut().map(|verb| verb.spawn().unwrap());
    for mut verb in running {
        assert!(verb.wait().unwrap().success());
    }
    let new = lab.moved_from("n6", &holder, 14);
    assert_ne!(new, leader);
    let gap = probe.end();
    println!("    kill leader and holder: {gap:?}");
    assert!(gap.longest < LOSS_MAX, "{gap:?}");
    lab.one_bearer("n6");
    for host in [leader, holder] {
        lab.must(&["start", &host]);
    }
    lab.settled("n6", 60);
    assert_eq!(lab.holder("n6"), new);
    lab.down();
}

#[test]
#[ignore = "makes hosts: ./check rehearsal"]
fn cut_the_holder_and_heal() {
    cut_the_holder("cut", &[]);
}

#[test]
#[ignore = "makes hosts: ./check rehearsal"]
fn cut_the_holder_one_way() {
    cut_the_holder("oneway", &["--one-way"]);
}

fn cut_the_holder(name: &str, options: &[&str]) {
    let Some(lab) = Lab::rehearsal(name, 3, 1) else {
        return;
    };
    let old = lab.holder("n4");
    let probe = lab.probe("n4", true, 14);
    let mut args = vec!["cut", old.as_str()];
    args.extend(options);
    lab.must(&args);
    let new = lab.moved_from("n4", &old, 12);
    let gap = probe.end();
    println!("    {name} the holder: {gap:?}");
    assert!(gap.longest < LOSS_MAX, "{gap:?}");
    let gap = lab.probe("n4", true, 2).end();
    assert!(gap.longest < PLANNED_MAX, "the cut-off one does not disturb: {gap:?}");
    lab.must(&["heal"]);
    lab.settled("n4", 60);
    assert_eq!(lab.holder("n4"), new);
    lab.one_bearer(&old);
    lab.down();
}

#[test]
#[ignore = "makes hosts: ./check rehearsal"]
fn a_cut_follower_changes_nothing() {
    let Some(lab) = Lab::rehearsal("follower", 3, 1) else {
        return;
    };
    let (leader, holder, generation) = (lab.leader("n4"), lab.holder("n4"), lab.generation("n4"));
    let follower = other_server(&lab, &[&leader, &holder]);
    let probe = lab.probe("n4", false, 8);
    lab.must(&["cut", &follower]);
    let term = lab.ask(&leader, &["status"]).unwrap()["term"].clone();
    std::thread::sleep(Duration::from_secs(4));
    lab.must(&["heal"]);
    let gap = probe.end();
    assert!(gap.longest < PLANNED_MAX, "{gap:?}");
    lab.settled("n4", 60);
    assert_eq!(lab.generation("n4"), generation);
    let after = lab.ask(&leader, &["status"]).unwrap();
    println!("    terms: {term} before the cut, {} after it", after["term"]);
    lab.down();
}

#[test]
#[ignore = "makes hosts: ./check rehearsal"]
fn pause_the_holders_daemon() {
    let Some(lab) = Lab::rehearsal("pause", 3, 1) else {
        return;
    };
    let old = lab.holder("n4");
    let probe = lab.probe("n4", true, 14);
    lab.must(&["pause", &old]);
    assert_eq!(lab.host(&old)["state"], "paused");
    lab.moved_from("n4", &old, 12);
    let gap = probe.end();
    println!("    pause the holder's daemon: {gap:?}");
    assert!(gap.longest < LOSS_MAX, "{gap:?}");
    lab.must(&["resume", &old]);
    lab.settled("n4", 60);
    lab.one_bearer(&old);
    lab.down();
}

#[test]
#[ignore = "makes hosts: ./check rehearsal"]
fn a_daemons_death_is_not_the_death_of_k3s() {
    let Some(lab) = Lab::rehearsal("daemon", 3, 1) else {
        return;
    };
    let server = other_server(&lab, &[&lab.holder("n4"), &lab.leader("n4")]);
    let k3s = |lab: &Lab| {
        lab.run(&server, &["sh", "-c", "pgrep -f '[k]3s server' | sort | tr '\\n' ' '"])
    };
    let before = k3s(&lab);
    assert!(!before.trim().is_empty(), "K3s runs");
    lab.run(&server, &["sh", "-c", "kill -9 $(pgrep -x skein)"]);
    assert_eq!(k3s(&lab), before, "K3s goes on without the daemon");
    lab.must(&["start", &server]);
    lab.settled("n4", 30);
    assert_eq!(k3s(&lab), before, "and with the next one");
    lab.down();
}

#[test]
#[ignore = "makes hosts: ./check rehearsal"]
fn without_quorum_writes_fail_at_once_and_the_overlay_goes_on() {
    let Some(lab) = Lab::rehearsal("quorum", 3, 1) else {
        return;
    };
    let left = lab.holder("n4");
    let vip = lab.vip_address("n4", true);
    for host in ["n1", "n2", "n3"].iter().filter(|h| **h != left) {
        lab.must(&["kill", host]);
    }
    wait_for("the loss of quorum is told", 20, || {
        let out = lab.exec("n4", &["skein", "net", "create", "other"]);
        let words = String::from_utf8_lossy(&out.stderr).into_owned();
        if out.status.code() == Some(5) {
            Ok(words)
        } else {
            Err(format!("{:?}: {words}", out.status))
        }
    });
    lab.run("n4", &["ping", "-c", "2", "-W", "1", &vip]);
    let gap = lab.probe_address("n4", &format!("[{vip}]:6443"), 2).end();
    assert!(gap.longest < PLANNED_MAX, "the holder keeps serving: {gap:?}");
    for host in ["n1", "n2", "n3"].iter().filter(|h| **h != left) {
        lab.must(&["start", host]);
    }
    lab.settled("n4", 60);
    lab.down();
}
