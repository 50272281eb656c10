//! Machines that are not ready for Skein: each lack is named, and what to do about it.

use std::process::Output;

use crate::common::{Lab, have, refused, texts, wait_for};

/// Hosts on which no daemon was started yet.
pub(crate) fn bare(name: &str, servers: usize, workers: usize) -> Option<Lab> {
    Lab::up(name, servers, workers, &["--k3s", "rehearsal", "--no-daemons"])
}

pub(crate) fn sh(lab: &Lab, host: &str, script: &str) -> Output {
    lab.exec(host, &["sh", "-c", script])
}

/// Starts something in a host that goes on by itself; a daemon's words go to its log.
pub(crate) fn begin(lab: &Lab, host: &str, command: &str) {
    let script = format!("setsid {command} </dev/null >>/var/log/skein.log 2>&1 &");
    lab.run(host, &["sh", "-c", &script]);
}

pub(crate) fn next(out: &Output) -> String {
    let words = String::from_utf8_lossy(&out.stderr).into_owned();
    let lines = words.lines();
    lines.filter_map(|l| l.strip_prefix("next:")).next_back().unwrap_or_default().trim().to_owned()
}

/// Expects a refusal whose why and next hold these words.
#[track_caller]
pub(crate) fn says(out: &Output, code: i32, why: &str, what_next: &str) {
    let (said, then) = (refused(out, code), next(out));
    println!("    {said}\n      -> {then}");
    assert!(said.contains(why), "{why:?} in {said:?}");
    assert!(then.contains(what_next), "{what_next:?} in {then:?}");
}

fn init(lab: &Lab) {
    begin(lab, "n1", "skein init --foreground");
    wait_for("n1 answers", 20, || lab.ask("n1", &["status"]));
}

#[test]
#[ignore = "makes hosts: ./check rehearsal"]
fn a_machine_that_is_no_member_or_lacks_rights_is_told_so() {
    let Some(lab) = bare("rights", 1, 0) else { return };
    says(&lab.exec("n1", &["skein", "status"]), 1, "/run/skein/skein.sock", "skein init");
    says(&lab.exec("n1", &["skein", "daemon"]), 1, "belongs to no fleet", "skein join TICKET");
    lab.run(
        "n1",
        &["sh", "-c", "cp -L $(command -v skein) /run/skein-copy; chmod 755 /run/skein-copy"],
    );
    let nobody = "setpriv --reuid 65534 --regid 65534 --clear-groups /run/skein-copy";
    for command in ["init --foreground", "daemon", "join skein1.x"] {
        says(&sh(&lab, "n1", &format!("{nobody} {command}")), 1, "only root may", "sudo");
    }
    let fewer = "setpriv --bounding-set -net_admin --inh-caps -net_admin skein";
    for command in ["init --foreground", "daemon"] {
        says(&sh(&lab, "n1", &format!("{fewer} {command}")), 1, "CAP_NET_ADMIN", "NET_ADMIN");
    }
    let no_tun = "unshare -m sh -c 'mount -t tmpfs none /dev/net; exec skein";
    says(
        &sh(&lab, "n1", &format!("{no_tun} init --foreground'")),
        1,
        "/dev/net/tun",
        "modprobe tun",
    );
    assert!(!lab.disk("n1").join("var/lib/skein/identity.json").exists(), "nothing was begun");

    // Of a machine that is a member, the daemon runs all the same, and says what it lacks.
    init(&lab);
    lab.must(&["crash", "n1"]);
    lab.must(&["start", "n1"]);
    sh(&lab, "n1", "pkill -9 -x skein; ip link del $(basename /sys/class/net/wg-sdwan-*)");
    begin(&lab, "n1", &format!("{no_tun} daemon'"));
    wait_for("the daemon says what it lacks, and since when", 20, || {
        let node = lab.ask("n1", &["node", "show", "n1"])?;
        let waits = texts(&node["waiting_for"]).join(" ");
        let fine = waits.contains("no /dev/net/tun") && waits.contains("(for ");
        if fine { Ok(()) } else { Err(waits) }
    });
    let status = lab.run("n1", &["skein", "status"]);
    assert!(status.contains("tun"), "{status}");
    lab.down();
}

#[test]
#[ignore = "makes hosts: ./check rehearsal"]
fn whoever_has_a_port_is_named() {
    if !have(&["perl"]) {
        return;
    }
    let Some(lab) = bare("ports", 1, 0) else { return };
    let hold = |proto: &str, port: u16| {
        let listen = if proto == "tcp" { "Listen => 1," } else { "" };
        let script = format!(
            "use IO::Socket::INET; my $s = IO::Socket::INET->new(Proto => \"{proto}\", {listen} LocalAddr => \"127.0.0.1\", LocalPort => {port}) or die; sleep 300"
        );
        begin(&lab, "n1", &format!("perl -e '{script}'"));
        wait_for("the port is taken", 5, || {
            let seen = lab.run("n1", &["sh", "-c", "cat /proc/net/tcp /proc/net/udp"]);
            let is = seen.contains(&format!("0100007F:{port:04X}"));
            if is { Ok(()) } else { Err(seen) }
        });
    };
    let release = || {
        sh(&lab, "n1", "pkill -9 perl");
        std::thread::sleep(std::time::Duration::from_millis(300));
    };
    for port in [7443, 7480] {
        hold("tcp", port);
        let out = sh(
            &lab,
            "n1",
            "exec timeout 20 skein init --foreground 2>&1 >/dev/null | tail -n 3 >&2; exit 1",
        );
        says(&out, 1, &format!(":{port}: "), "ss -lnt");
        assert!(refused(&out, 1).contains("perl (process "), "{out:?}");
        release();
    }
    init(&lab);
    let twice = lab.exec("n1", &["skein", "daemon"]);
    says(&last_lines(&twice), 1, "skein (process ", "skein status");
    lab.ask("n1", &["status"]).expect("the first daemon is not disturbed");

    // Another daemon at other ports would take the socket away.
    let other = "printf 'listen = \"[::]:7444\"\\nhttp = \"127.0.0.1:7481\"\\n' >/run/other.toml; \
        exec skein init --name other --foreground --state-dir /run/other --config /run/other.toml";
    let out = sh(&lab, "n1", other);
    says(&last_lines(&out), 1, "/run/skein/skein.sock", "skein status");
    lab.ask("n1", &["status"]).expect("the first daemon has its socket still");

    // The daemon itself has the port until it ends.
    let off = "pkill -9 -x skein; sleep 0.5; ip link del $(basename /sys/class/net/wg-sdwan-*)";
    lab.run("n1", &["sh", "-c", off]);
    hold("udp", 51_820);
    begin(&lab, "n1", "skein daemon");
    wait_for("the overlay's port is named", 20, || {
        let waits = texts(&lab.ask("n1", &["node", "show", "n1"])?["waiting_for"]).join(" ");
        let fine = waits.contains("UDP port 51820")
            && waits.contains("perl (process ")
            && waits.contains("(for ");
        if fine { Ok(()) } else { Err(waits) }
    });
    release();
    wait_for("the overlay is as it should be", 20, || {
        let waits = texts(&lab.ask("n1", &["node", "show", "n1"])?["waiting_for"]).join(" ");
        if waits.is_empty() { Ok(()) } else { Err(waits) }
    });

    hold("tcp", 6443);
    lab.run("n1", &["skein", "cluster", "create", "lab", "--servers", "n1", "--no-wait"]);
    wait_for("the API's port is named", 30, || {
        let waits = texts(&lab.ask("n1", &["cluster", "show", "lab"])?["waiting_for"]).join(" ");
        let fine = waits.contains("it ended") && waits.contains("6443") && waits.contains("in use");
        if fine { Ok(()) } else { Err(waits) }
    });
    release();
    wait_for("it comes up once the port is free", 60, || {
        let cluster = lab.ask("n1", &["cluster", "show", "lab"])?;
        if cluster["status"] == "active" { Ok(()) } else { Err(cluster.to_string()) }
    });
    lab.down();
}

/// The refusal at the end of a daemon's log.
pub(crate) fn last_lines(out: &Output) -> Output {
    let words = String::from_utf8_lossy(&out.stderr).into_owned();
    let lines: Vec<&str> = words.lines().collect();
    let last = lines[lines.len().saturating_sub(3)..].join("\n");
    Output { status: out.status, stdout: out.stdout.clone(), stderr: last.into_bytes() }
}

#[test]
#[ignore = "makes hosts: ./check rehearsal"]
fn routes_that_clash_with_the_overlay_are_told_at_init_at_join_and_later() {
    let Some(lab) = bare("clash", 1, 1) else { return };
    lab.run("n1", &["ip", "route", "add", "10.66.0.0/16", "dev", "eth0"]);
    for (pool, why) in [
        ("10.66.0.0/16", "this host's route 10.66.0.0/16"),
        ("10.42.0.0/16", "K3s' own ranges"),
        ("10.91.0.0/30", "too small"),
    ] {
        let out = lab.exec("n1", &["skein", "init", "--foreground", "--ipv4-pool", pool]);
        says(&out, 1, why, "--ipv4-pool");
    }
    let wrong = "echo 'nmae = \"x\"' >/run/wrong.toml; exec skein init --config /run/wrong.toml";
    says(&sh(&lab, "n1", wrong), 2, "line 1", "mend the file");

    begin(&lab, "n1", "skein init --foreground --ipv4-pool 10.88.0.0/16");
    wait_for("n1 answers", 20, || lab.ask("n1", &["status"]));
    lab.run("n2", &["ip", "route", "add", "10.88.0.0/17", "dev", "eth0"]);
    let ticket = lab.run("n1", &["skein", "ticket", "create", "-q"]);
    begin(&lab, "n2", &format!("skein join {} --foreground", ticket.trim()));
    wait_for("n2 says that its route clashes", 20, || {
        let waits = texts(&lab.ask("n1", &["node", "show", "n2"])?["waiting_for"]).join(" ");
        if waits.contains("10.88.0.0/17") { Ok(()) } else { Err(waits) }
    });
    let log = lab.log("n2");
    assert!(log.contains("warning: its own route to 10.88.0.0/17 overlaps"), "{log}");
    lab.run("n2", &["ip", "route", "del", "10.88.0.0/17"]);
    wait_for("n2 waits for nothing", 20, || {
        let waits = texts(&lab.ask("n1", &["node", "show", "n2"])?["waiting_for"]).join(" ");
        if waits.is_empty() { Ok(()) } else { Err(waits) }
    });
    lab.down();
}
