//! Nodes that are removed or leave: they are out everywhere, and the fleet goes on without them.

use std::time::Duration;

use serde_json::{Value, json};

use crate::common::{Lab, number, refused, texts, wait_for};

/// The overlay's IPv6 address of a node.
fn overlay(lab: &Lab, node: &str) -> String {
    let shown = lab.ask(node, &["node", "show", node]).unwrap();
    texts(&shown["overlay"]).first().expect("an overlay address").clone()
}

fn ping(lab: &Lab, from: &str, to: &str) -> bool {
    lab.exec(from, &["ping", "-c", "1", "-W", "1", to]).status.success()
}

/// The names of the fleet's nodes as `host` sees them.
fn nodes(lab: &Lab, host: &str) -> Result<Vec<String>, String> {
    let status = lab.ask(host, &["status"])?;
    let nodes = status["nodes"].as_array().ok_or("no nodes")?;
    Ok(nodes.iter().filter_map(|n| n["name"].as_str().map(str::to_owned)).collect())
}

fn voters(lab: &Lab, host: &str) -> Result<Vec<String>, String> {
    Ok(texts(&lab.ask(host, &["status"])?["voters"]))
}

fn wait_voters(lab: &Lab, host: &str, wanted: &[&str], seconds: u64) {
    wait_for(&format!("{wanted:?} vote"), seconds, || {
        let mut seen = voters(lab, host)?;
        seen.sort();
        if seen == wanted { Ok(()) } else { Err(format!("{seen:?} vote")) }
    });
}

/// What a node has applied, as it says itself.
fn applied(lab: &Lab, host: &str) -> u64 {
    number(&lab.ask(host, &["status", "--stale"]).unwrap()["applied"])
}

/// Calls another node's API with the very certificate of `host`, as a program on it could.
fn call_with_own_papers(lab: &Lab, host: &str, other: &str) -> std::process::Output {
    let state = lab.disk(host).join("var/lib/skein");
    let read = |name: &str| std::fs::read_to_string(state.join(name)).unwrap();
    let identity: Value = serde_json::from_str(&read("identity.json")).unwrap();
    let context = json!({
        "schema": 1,
        "fleet": identity["membership"]["fleet"],
        "endpoints": [format!("{}:7443", lab.host(other)["underlay"].as_str().unwrap())],
        "certificate": read("node.crt"),
        "key": read("keys/tls.key"),
        "authority": read("ca.crt"),
    });
    std::fs::write(state.join("papers.json"), context.to_string()).unwrap();
    lab.exec(host, &["skein", "--context", "/var/lib/skein/papers.json", "status"])
}

/// Checks that `gone` is out: of the API, of Raft and of the overlay, where `stays` sees it.
fn is_out(lab: &Lab, gone: &str, stays: &str, addresses: [&str; 2]) {
    wait_for("the others have forgotten it", 15, || {
        let left = nodes(lab, stays)?;
        if left.iter().any(|n| n == gone) { Err(format!("{left:?}")) } else { Ok(()) }
    });
    let papers = call_with_own_papers(lab, gone, stays);
    assert!(refused(&papers, 1).contains("removed from the fleet"), "{papers:?}");
    let read = lab.exec(gone, &["skein", "node", "ls"]);
    assert!(!read.status.success(), "a linear read is answered to a removed node: {read:?}");
    let write = lab.exec(gone, &["skein", "net", "create", "sneaked"]);
    assert!(!write.status.success(), "a removed node writes: {write:?}");

    let voting = voters(lab, stays).unwrap();
    assert!(!voting.iter().any(|v| v == gone) && voting.len() % 2 == 1, "{voting:?} vote");
    let before = (applied(lab, gone), applied(lab, stays));
    for i in 0..3 {
        lab.run(stays, &["skein", "net", "create", &format!("after-{gone}-{i}")]);
    }
    std::thread::sleep(Duration::from_secs(2));
    assert!(applied(lab, stays) >= before.1 + 3);
    assert_eq!(applied(lab, gone), before.0, "the log still reaches {gone}");

    let [to_gone, to_stays] = addresses;
    for (from, to) in [(stays, to_gone), (gone, to_stays)] {
        wait_for(&format!("{from} does not reach {to}"), 15, || {
            if ping(lab, from, to) { Err("it answers".into()) } else { Ok(()) }
        });
    }
}

#[test]
#[ignore = "makes hosts: ./check rehearsal"]
fn a_removed_node_is_refused_by_api_raft_and_overlay() {
    let Some(lab) = Lab::rehearsal("rm", 3, 1) else { return };
    let (theirs, ours) = (overlay(&lab, "n4"), overlay(&lab, "n1"));
    assert!(ping(&lab, "n1", &theirs) && ping(&lab, "n4", &ours), "they reach each other before");
    assert!(call_with_own_papers(&lab, "n4", "n1").status.success(), "it is served before");
    let out = lab.exec("n1", &["skein", "node", "rm", "n4"]);
    assert!(refused(&out, 4).contains("k3s-agent"), "{out:?}");

    lab.run("n1", &["skein", "node", "unassign", "n4"]);
    wait_for("n4 has no role", 60, || {
        let node = lab.ask("n1", &["node", "show", "n4"])?;
        if node["role"] == "" { Ok(()) } else { Err(node.to_string()) }
    });
    lab.run("n1", &["skein", "node", "rm", "n4"]);
    is_out(&lab, "n4", "n1", [&theirs, &ours]);

    lab.must(&["crash", "n4"]);
    lab.must(&["start", "n4"]);
    wait_for("its daemon answers again", 20, || lab.ask("n4", &["status", "--stale"]));
    std::thread::sleep(Duration::from_secs(2));
    assert_eq!(nodes(&lab, "n1").unwrap(), ["n1", "n2", "n3"], "a restart brings it back");
    assert!(!ping(&lab, "n1", &theirs), "a restart brings its overlay back");
    let status = lab.ask("n2", &["status"]).unwrap();
    assert_eq!(status["healthy"], true, "the others are well: {status}");
    lab.down();
}

#[test]
#[ignore = "makes hosts: ./check rehearsal"]
fn a_dead_server_is_removed_by_force_and_its_seat_is_filled() {
    let Some(lab) = Lab::rehearsal("rmdead", 3, 1) else { return };
    let leader = lab.leader("n4");
    let dead = ["n2", "n3"].into_iter().find(|n| *n != leader).unwrap();
    let rest: Vec<&str> = ["n1", "n2", "n3", "n4"].into_iter().filter(|n| *n != dead).collect();
    let address = overlay(&lab, dead);
    lab.must(&["kill", dead]);
    let out = lab.exec("n1", &["skein", "node", "rm", dead]);
    assert!(refused(&out, 4).contains("k3s-server"), "{out:?}");
    lab.run("n1", &["skein", "node", "rm", dead, "--force"]);
    assert_eq!(nodes(&lab, "n1").unwrap(), rest);
    wait_voters(&lab, "n1", &rest, 20);
    wait_for("the cluster goes on with two servers", 20, || {
        let cluster = lab.ask("n1", &["cluster", "show", "lab"])?;
        let servers = cluster["servers"].as_array().map(Vec::len);
        let fine = cluster["status"] == "active" && servers == Some(2);
        if fine { Ok(()) } else { Err(cluster.to_string()) }
    });
    let holder = lab.holder("n1");
    assert!(rest.contains(&holder.as_str()), "{holder} holds the VIP");

    lab.must(&["start", dead]);
    wait_for("its daemon answers again", 20, || lab.ask(dead, &["status", "--stale"]));
    is_out(&lab, dead, "n1", [&address, &overlay(&lab, "n1")]);
    lab.down();
}

#[test]
#[ignore = "makes hosts: ./check rehearsal"]
fn voters_stay_odd_in_number_while_the_fleet_shrinks() {
    let Some(lab) = Lab::up("shrink", 3, 1, &["--k3s", "rehearsal", "--no-cluster"]) else {
        return;
    };
    let leader = lab.leader("n4");
    let mut rest = lab.hosts();
    while rest.len() > 2 {
        let next = rest.iter().rposition(|n| *n != leader && n != "n4").unwrap();
        let gone = rest.remove(next);
        lab.run(&leader, &["skein", "node", "rm", &gone]);
        let wanted = if rest.len() == 3 { 3 } else { 1 };
        wait_for(&format!("{wanted} of {rest:?} vote"), 30, || {
            let seen = voters(&lab, &leader)?;
            let known = seen.iter().all(|v| rest.contains(v));
            if known && seen.len() == wanted { Ok(()) } else { Err(format!("{seen:?}")) }
        });
    }
    lab.run("n4", &["skein", "net", "create", "still-writable"]);
    lab.down();
}

#[test]
#[ignore = "makes hosts: ./check rehearsal"]
fn a_node_that_leaves_is_out() {
    let Some(lab) = Lab::up("leave", 3, 1, &["--k3s", "rehearsal", "--no-cluster"]) else {
        return;
    };
    let (theirs, ours) = (overlay(&lab, "n4"), overlay(&lab, "n1"));
    wait_for("they reach each other", 10, || {
        let both = ping(&lab, "n1", &theirs) && ping(&lab, "n4", &ours);
        both.then_some(()).ok_or_else(|| "not yet".to_owned())
    });
    lab.run("n4", &["skein", "node", "leave"]);
    is_out(&lab, "n4", "n1", [&theirs, &ours]);
    lab.down();
}

#[test]
#[ignore = "makes hosts: ./check rehearsal"]
fn the_leader_itself_may_leave() {
    let Some(lab) = Lab::up("lead-leave", 3, 1, &["--k3s", "rehearsal", "--no-cluster"]) else {
        return;
    };
    let leader = lab.leader("n4");
    let address = overlay(&lab, &leader);
    lab.run(&leader, &["skein", "node", "leave"]);
    // A new leader has heard of nobody at first; no answer says so.
    for _ in 0..20 {
        let status = lab.ask("n4", &["status"]).unwrap();
        let unheard = |n: &&Value| n["state"] == "unknown";
        let unheard = status["nodes"].as_array().into_iter().flatten().find(unheard);
        assert_eq!(unheard, None, "{status}");
    }
    let rest: Vec<String> = lab.hosts().into_iter().filter(|h| *h != leader).collect();
    let rest: Vec<&str> = rest.iter().map(String::as_str).collect();
    wait_voters(&lab, "n4", &rest, 30);
    is_out(&lab, &leader, "n4", [&address, &overlay(&lab, "n4")]);
    lab.down();
}

/// Of two nodes one votes. Takes that one out, and expects the other to go on alone.
fn the_other_goes_on(name: &str, from: &str, take_out: &[&str]) {
    let Some(lab) = Lab::up(name, 1, 1, &["--k3s", "rehearsal", "--no-cluster"]) else {
        return;
    };
    wait_for("both are ready, and n1 votes alone", 20, || {
        let status = lab.ask("n2", &["status"])?;
        let ready = status["nodes"].as_array().into_iter().flatten();
        let ready = ready.filter(|n| n["state"] == "ready").count();
        let fine = ready == 2 && texts(&status["voters"]) == ["n1"];
        if fine { Ok(()) } else { Err(status.to_string()) }
    });
    lab.run(from, take_out);
    wait_for("n2 is a fleet of one", 30, || {
        let status = lab.ask("n2", &["status"])?;
        let alone = texts(&status["voters"]) == ["n2"] && nodes(&lab, "n2")? == ["n2"];
        let works = status["quorum"] == true && status["leader"] == "n2";
        if alone && works { Ok(()) } else { Err(status.to_string()) }
    });
    lab.run("n2", &["skein", "net", "create", "alone"]);
    lab.must(&["crash", "n2"]);
    lab.must(&["start", "n2"]);
    wait_for("it is one after a restart, too", 30, || {
        let status = lab.ask("n2", &["status"])?;
        if status["leader"] == "n2" { Ok(()) } else { Err(status.to_string()) }
    });
    lab.run("n2", &["skein", "net", "show", "alone"]);
    lab.down();
}

#[test]
#[ignore = "makes hosts: ./check rehearsal"]
fn of_two_nodes_the_voter_may_be_removed() {
    the_other_goes_on("pair-rm", "n2", &["skein", "node", "rm", "n1"]);
}

#[test]
#[ignore = "makes hosts: ./check rehearsal"]
fn of_two_nodes_the_voter_may_leave() {
    the_other_goes_on("pair-leave", "n1", &["skein", "node", "leave"]);
}
