//! What people mistype or ask for at the wrong time: refused in three lines, with its own reason, and nothing changes.

use serde_json::Value;

use crate::common::{Lab, refused, texts, wait_for};
use crate::wrong_host::last_lines;

/// Runs a command of skein that must be refused; returns the why.
fn no(lab: &Lab, host: &str, command: &[&str], code: i32) -> String {
    let out = lab.exec(host, &[&["skein"], command].concat());
    // Before it, a command that waits says what for.
    let waits = command.starts_with(&["cluster", "create"]) && out.stderr.starts_with(b" ");
    let why = refused(&if waits { last_lines(&out) } else { out }, code);
    println!("    skein {}: {why}", command.join(" "));
    why
}

/// What the operator is told to run next.
fn next(lab: &Lab, host: &str, command: &[&str]) -> String {
    let out = lab.exec(host, &[&["skein"], command].concat());
    let words = String::from_utf8_lossy(&out.stderr).into_owned();
    words.lines().find_map(|l| l.strip_prefix("next:")).unwrap_or_default().trim().to_owned()
}

fn has(why: &str, part: &str) {
    assert!(why.contains(part), "{part:?} in {why:?}");
}

#[test]
#[ignore = "makes hosts: ./check rehearsal"]
fn what_was_mistyped_is_refused_and_changes_nothing() {
    let Some(lab) = Lab::up("mistyped", 1, 1, &["--k3s", "rehearsal", "--no-cluster"]) else {
        return;
    };
    let net = lab.ask("n1", &["net", "show", "default"]).unwrap();
    let taken = net["ipv4"].as_str().unwrap().to_owned();
    let before = lab.ask("n1", &["status"]).unwrap()["applied"].clone();
    let cases: &[(&[&str], i32, &str)] = &[
        (&["net", "create", "a", "--ipv4", "nonsense"], 2, "is no prefix"),
        (&["net", "create", "a", "--ipv4", "192.168.0.0/20"], 2, "no part of the fleet's pool"),
        (&["net", "create", "a", "--ipv4", &taken], 2, "overlaps"),
        (&["net", "create", "a", "--mtu", "100"], 2, "MTU of 100"),
        (&["net", "create", "A B"], 2, "A B"),
        (&["net", "create", "default"], 1, "exists"),
        (&["net", "show", "nope"], 3, "no network"),
        (&["net", "attach", "nope", "n1"], 3, "no such network"),
        (&["cluster", "create", "c", "--servers", "n9"], 3, "no member"),
        (&["cluster", "create", "c", "--servers", "n1,n2,n1"], 2, "twice"),
        (&["cluster", "create", "c", "--servers", "n1", "--network", "nope"], 3, "no such network"),
        (&["cluster", "show", "nope"], 3, "no "),
        (&["cluster", "decommission", "nope", "--yes"], 3, "no "),
        (&["kubeconfig", "nope"], 3, "no "),
        (&["vip", "show", "nope"], 3, "no "),
        (&["node", "show", "n9"], 3, "no "),
        (&["drain", "n9"], 3, "no "),
        (&["node", "rm", "n9"], 3, "no "),
        (&["node", "assign", "n1", "k3s-server"], 2, "needs a cluster"),
        (&["node", "assign", "n1", "k4s", "--cluster", "c"], 2, "k4s"),
        (&["node", "assign", "n1", "k3s-agent", "--cluster", "nope"], 3, "no cluster nope"),
        (&["net", "creat", "a"], 2, "creat"),
        (&["init", "--ipv4-pool", "nonsense"], 2, "nonsense"),
        (&["ticket", "create", "--expires", "soon"], 2, "soon"),
    ];
    for (command, code, part) in cases {
        has(&no(&lab, "n1", command, *code), part);
    }
    assert_eq!(next(&lab, "n1", &["net", "creat", "a"]), "skein net --help");
    has(&next(&lab, "n1", &["node", "show", "n9"]), "n1, n2");
    let after = lab.ask("n1", &["status"]).unwrap();
    assert_eq!(after["clusters"].as_array().map(Vec::len), Some(0), "{after}");
    let nets = lab.ask("n1", &["net", "ls"]).unwrap();
    assert_eq!(nets["networks"].as_array().map(Vec::len), Some(1), "{before} {nets}");

    // A node that is not in the cluster's network.
    lab.run("n1", &["skein", "net", "create", "far"]);
    let far = ["cluster", "create", "c", "--servers", "n1", "--network", "far"];
    has(&no(&lab, "n1", &far, 1), "not in the cluster's network far");
    assert_eq!(next(&lab, "n1", &far), "skein net attach far n1");

    // Two machines with one name.
    let ticket = lab.run("n1", &["skein", "ticket", "create", "-q"]);
    let twin = ["join", ticket.trim(), "--name", "n1", "--foreground", "--state-dir", "/run/twin"];
    has(&no(&lab, "n2", &twin, 1), "n1");
    has(&next(&lab, "n2", &twin), "--replaces");
    lab.down();
}

#[test]
#[ignore = "makes hosts: ./check rehearsal"]
fn a_role_without_a_clear_target_is_refused_and_one_that_must_wait_says_for_what() {
    let Some(lab) = Lab::up("target", 1, 3, &["--k3s", "rehearsal", "--no-cluster"]) else {
        return;
    };
    // A K3s that cannot be had keeps the first cluster from coming up.
    let script =
        "echo '[k3s]\nbinary = \"/nonexistent/k3s\"' >/etc/skein/skein.toml; pkill -9 -x skein";
    lab.run("n1", &["sh", "-c", script]);
    lab.must(&["start", "n1"]);
    wait_for("n1 is back", 20, || lab.ask("n2", &["net", "ls"]));
    lab.run("n2", &["skein", "cluster", "create", "one", "--servers", "n1", "--no-wait"]);
    lab.run("n2", &["skein", "node", "assign", "n3", "k3s-agent"]);
    wait_for("the worker says what it waits for, and since when", 20, || {
        let node = lab.ask("n2", &["node", "show", "n3"])?;
        let waits = texts(&node["waiting_for"]).join(" ");
        if waits.contains("one") && waits.contains("(for ") { Ok(()) } else { Err(waits) }
    });
    wait_for("the cluster names what its server lacks", 20, || {
        let waits = texts(&lab.ask("n2", &["cluster", "show", "one"])?["waiting_for"]).join(" ");
        let named = waits.contains("n1: ") && waits.contains("/nonexistent/k3s");
        if named && waits.contains("(for ") { Ok(()) } else { Err(waits) }
    });
    has(&no(&lab, "n2", &["kubeconfig", "one"], 1), "bootstrapping");
    let members = ["cluster", "create", "one", "--servers", "n2", "--no-wait"];
    has(&no(&lab, "n2", &members, 1), "exists with other members");
    // What is there already may be asked for again.
    lab.run("n2", &["skein", "cluster", "create", "one", "--servers", "n1", "--no-wait"]);
    let late = ["cluster", "create", "one", "--servers", "n1", "--timeout", "2s"];
    has(&no(&lab, "n2", &late, 6), "/nonexistent/k3s");

    lab.run("n2", &["skein", "cluster", "create", "two", "--servers", "n2"]);
    let why = no(&lab, "n2", &["node", "assign", "n4", "k3s-agent"], 1);
    has(&why, "one, two");
    has(&next(&lab, "n2", &["node", "assign", "n4", "k3s-agent"]), "--cluster NAME");
    has(&no(&lab, "n2", &["node", "assign", "n2", "k3s-agent", "--cluster", "one"], 1), "already");
    let node: Value = lab.ask("n2", &["node", "show", "n4"]).unwrap();
    assert_eq!(node["role"], "", "{node}");
    lab.down();
}

#[test]
#[ignore = "makes hosts: ./check rehearsal"]
fn a_cluster_in_error_takes_no_members_and_says_why_until_it_is_mended() {
    let Some(lab) = Lab::up("broken", 1, 1, &["--k3s", "rehearsal", "--no-cluster"]) else {
        return;
    };
    // A K3s of somebody else: Skein leaves it alone.
    let script =
        "mkdir -p /var/lib/rancher/k3s/server/db && echo x >/var/lib/rancher/k3s/server/token";
    lab.run("n1", &["sh", "-c", script]);
    let why = no(&lab, "n2", &["cluster", "create", "one", "--servers", "n1"], 1);
    has(&why, "n1");
    has(&why, "did not install");
    let cluster = lab.ask("n2", &["cluster", "show", "one"]).unwrap();
    assert_eq!(cluster["status"], "error", "{cluster}");
    has(&no(&lab, "n2", &["node", "assign", "n2", "k3s-agent", "--cluster", "one"], 1), "in error");
    lab.run("n1", &["rm", "-r", "/var/lib/rancher/k3s/server"]);
    wait_for("it comes up once that is gone", 30, || {
        let cluster = lab.ask("n2", &["cluster", "show", "one"])?;
        if cluster["status"] == "active" { Ok(()) } else { Err(cluster.to_string()) }
    });
    lab.down();
}
