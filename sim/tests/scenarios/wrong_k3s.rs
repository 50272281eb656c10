//! K3s binaries that cannot be had, are wrong or do not stay up: the condition is named wherever one looks.

use std::time::Duration;

use crate::common::{Lab, number, texts, wait_for};

const GOOD: &str = "/run/skein-lab/bin/k3s";

/// Gives a host another K3s, and its daemon a new start.
fn take(lab: &Lab, k3s: &str) {
    let config = format!("[k3s]\n{k3s}\nmanager = \"process\"\n");
    std::fs::write(lab.disk("n1").join("etc/skein/skein.toml"), config).unwrap();
    lab.run("n1", &["pkill", "-9", "-x", "skein"]);
    lab.must(&["start", "n1"]);
}

/// Puts a K3s of a few lines on a host; whatever is not told apart in `cases` the rehearsal does.
fn script(lab: &Lab, name: &str, cases: &str) -> String {
    let text =
        format!("#!/bin/sh\ncase \"$1 $2\" in\n*--help) ;;\n{cases}\nesac\nexec {GOOD} \"$@\"\n");
    let path = lab.disk("n1").join("etc/skein").join(name);
    std::fs::write(&path, text).unwrap();
    std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    format!("binary = \"/etc/skein/{name}\"")
}

/// Waits until cluster, node and status all name a condition.
fn named(lab: &Lab, parts: &[&str]) {
    wait_for(&format!("{parts:?} is said everywhere"), 30, || {
        let cluster = texts(&lab.ask("n1", &["cluster", "show", "lab"])?["waiting_for"]).join(" ");
        let node = texts(&lab.ask("n1", &["node", "show", "n1"])?["waiting_for"]).join(" ");
        let status = lab.ask("n1", &["status"])?["nodes"][0]["waiting_for"].to_string();
        for place in [cluster, node, status] {
            let all = parts.iter().chain(&["(for "]).all(|part| place.contains(part));
            if !all {
                return Err(place);
            }
        }
        Ok(())
    });
}

#[test]
#[ignore = "makes hosts: ./check rehearsal"]
fn a_k3s_that_cannot_be_run_is_named_until_it_can() {
    let Some(lab) = Lab::up("badk3s", 1, 0, &["--k3s", "rehearsal", "--no-cluster"]) else {
        return;
    };
    take(&lab, "binary = \"/opt/none/k3s\"");
    lab.run("n1", &["skein", "cluster", "create", "lab", "--servers", "n1", "--no-wait"]);
    named(&lab, &["/opt/none/k3s", "No such file", "next try in"]);
    take(&lab, "binary = \"/etc/hosts\"");
    named(&lab, &["/etc/hosts is not an executable file"]);
    let wrong = format!("binary = \"{GOOD}\"\nsha256 = \"{}\"", "a".repeat(64));
    take(&lab, &wrong);
    named(&lab, &["its SHA-256 is", "instead of aaaa", "it was not used"]);
    take(&lab, &format!("binary = \"{GOOD}\"\nsha256 = \"abc\""));
    named(&lab, &["64 hexadecimal digits"]);
    // The daemon's own page serves as a download that is not what was meant.
    let url = |path: &str| {
        format!("url = \"http://127.0.0.1:7480{path}\"\nsha256 = \"{}\"", "b".repeat(64))
    };
    take(&lab, &url("/healthz"));
    named(&lab, &["its SHA-256 is", "instead of bbbb"]);
    take(&lab, &url("/nowhere"));
    named(&lab, &["cannot download http://127.0.0.1:7480/nowhere", "404"]);
    let old = script(&lab, "old", "--version*) echo 'k3s version v1.18.20+k3s1 (abc)'; exit;;");
    take(&lab, &old);
    named(&lab, &["it is v1.18.20+k3s1, and the oldest that is run is v1.21"]);

    let crash = "server*) date +%s >>/var/log/starts; \
        echo 'level=fatal msg=\"etcd found no disk\"' >&2; exit 7;;";
    take(&lab, &script(&lab, "crash", crash));
    named(&lab, &["it ended (exit status 7)", "restart(s) so far", "etcd found no disk"]);
    std::thread::sleep(Duration::from_secs(8));
    // After pauses of 1, 2, 4 and 8 seconds; the daemon needs a moment for each.
    let starts = lab.run("n1", &["cat", "/var/log/starts"]).lines().count();
    assert!((2..=5).contains(&starts), "{starts} starts");

    take(&lab, &format!("binary = \"{GOOD}\""));
    wait_for("it comes up with a K3s that works", 60, || {
        let cluster = lab.ask("n1", &["cluster", "show", "lab"])?;
        if cluster["status"] == "active" { Ok(()) } else { Err(cluster.to_string()) }
    });
    lab.down();
}

#[test]
#[ignore = "makes hosts: ./check rehearsal"]
fn a_k3s_that_ends_after_a_while_is_told_and_started_again() {
    let Some(lab) = Lab::up("ends", 1, 0, &["--k3s", "rehearsal", "--no-cluster"]) else {
        return;
    };
    let ends = format!(
        "server*) [ -e /run/stay ] || {{ timeout 6 {GOOD} \"$@\"; \
         echo 'level=error msg=\"the lease was lost\"' >&2; exit 3; }};;"
    );
    take(&lab, &script(&lab, "ends", &ends));
    lab.run("n1", &["skein", "cluster", "create", "lab", "--servers", "n1"]);
    named_unready(&lab);
    lab.run("n1", &["touch", "/run/stay"]);
    wait_for("it stays up", 60, || {
        let cluster = lab.ask("n1", &["cluster", "show", "lab"])?;
        let calm = texts(&cluster["waiting_for"]).is_empty();
        if cluster["status"] == "active" && calm { Ok(()) } else { Err(cluster.to_string()) }
    });
    let vip = lab.vip("n1").unwrap();
    assert_eq!(number(&vip["generation"]), 1, "nobody else could take it: {vip}");
    lab.down();
}

/// A server that was ready before says how it ended, too.
fn named_unready(lab: &Lab) {
    wait_for("the end is told with the log's last words", 30, || {
        let cluster = lab.ask("n1", &["cluster", "show", "lab"])?;
        let node = texts(&lab.ask("n1", &["node", "show", "n1"])?["waiting_for"]).join(" ");
        let waits = texts(&cluster["waiting_for"]).join(" ");
        let told = |s: &str| s.contains("it ended (exit status 3)") && s.contains("lease was lost");
        let fine = told(&node) && told(&waits) && cluster["status"] == "degraded";
        if fine { Ok(()) } else { Err(format!("{node} | {cluster}")) }
    });
}
