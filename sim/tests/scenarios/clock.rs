//! Wall clocks that are an hour off: the fleet's time is the middle of all clocks, and the wrong one is named.

use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use crate::common::{Lab, number, skip, texts, wait_for};
use crate::wrong_host::{bare, begin};

/// A library that tells a program another time of day; time that passes is not touched.
fn faketime() -> Option<PathBuf> {
    let of = |triple: std::io::Result<std::fs::DirEntry>| {
        let library = triple.ok()?.path().join("faketime/libfaketimeMT.so.1");
        library.exists().then_some(library)
    };
    std::fs::read_dir(Path::new("/usr/lib")).ok()?.find_map(of)
}

/// A command of skein on a host whose clock is off.
fn off(library: &Path, by: &str, command: &str) -> String {
    let library = library.display();
    format!("env LD_PRELOAD={library} FAKETIME={by} FAKETIME_DONT_FAKE_MONOTONIC=1 {command}")
}

fn unix_s() -> u64 {
    #[expect(
        clippy::disallowed_methods,
        reason = "what the daemons stamp is held against the true time"
    )]
    let now = SystemTime::now();
    now.duration_since(UNIX_EPOCH).unwrap().as_secs()
}

fn ticket(lab: &Lab, host: &str, options: &[&str]) -> String {
    let made = lab.ask(host, &[&["ticket", "create"], options].concat()).unwrap();
    made["ticket"].as_str().unwrap().to_owned()
}

fn joined(lab: &Lab, host: &str) {
    wait_for(&format!("{host} is ready"), 30, || {
        let node = lab.ask("n1", &["node", "show", host])?;
        if node["state"] == "ready" { Ok(()) } else { Err(node.to_string()) }
    });
}

fn problem(lab: &Lab, words: &[&str]) {
    wait_for(&format!("status tells of {words:?}"), 20, || {
        let problems = texts(&lab.ask("n2", &["status"])?["problems"]);
        let told = problems.iter().any(|p| words.iter().all(|w| p.contains(w)));
        if told { Ok(()) } else { Err(format!("{problems:?}")) }
    });
}

#[test]
#[ignore = "makes hosts: ./check rehearsal"]
fn a_clock_an_hour_off_is_named_and_stamps_nothing() {
    let Some(library) = faketime() else {
        return skip("libfaketime is missing: apt-get install libfaketime");
    };
    let Some(lab) = bare("clock", 3, 1) else { return };
    begin(&lab, "n1", &off(&library, "+1h", "skein init --foreground"));
    wait_for("n1 answers", 20, || lab.ask("n1", &["status"]));
    for host in ["n2", "n3"] {
        let ticket = ticket(&lab, "n1", &["--role", "voter", "--expires", "10m"]);
        begin(&lab, host, &format!("skein join {ticket} --foreground"));
        joined(&lab, host);
    }
    problem(&lab, &["clock of n1 is 3", " s ahead of", "timedatectl"]);
    wait_for("n1 has heard the fleet's time", 10, || {
        let made = lab.ask("n1", &["ticket", "create", "--expires", "10m"])?;
        let life = number(&made["expires_at"]).saturating_sub(unix_s() * 1_000);
        if life < 700_000 {
            Ok(())
        } else {
            Err(format!("a ticket of ten minutes lives {life} ms: {made}"))
        }
    });
    // Made by the wrong clock's node and redeemed at all of them, on a machine whose own clock is behind.
    let ticket = ticket(&lab, "n1", &["--expires", "10m"]);
    begin(&lab, "n4", &off(&library, "-1h", &format!("skein join {ticket} --foreground")));
    joined(&lab, "n4");
    problem(&lab, &["clock of n4 is 3", " s behind"]);
    problem(&lab, &["clock of n1"]);
    let events = lab.run("n1", &["skein", "events", "-o", "json"]);
    let newest: serde_json::Value = serde_json::from_str(events.lines().last().unwrap()).unwrap();
    let at = number(&newest["at"]) / 1_000;
    assert!(at.abs_diff(unix_s()) < 120, "the newest event is stamped {at}: {newest}");
    // A machine without a clock chip starts in the past. Its first call there is older than its last: who refuses it
    // must call itself.
    for host in ["n1", "n3"] {
        lab.run(host, &["ping", "-c", "1", "-W", "2", &lab.overlay("n2", false)]);
    }
    assert!(lab.kill_daemon("n2"));
    begin(&lab, "n2", &off(&library, "-40d", "skein daemon"));
    for host in ["n1", "n3"] {
        let to = lab.overlay("n2", false);
        wait_for(&format!("{host} reaches n2 again"), 20, || {
            let out = lab.exec(host, &["ping", "-c", "1", "-W", "1", &to]);
            out.status.success().then_some(()).ok_or_else(|| "no answer".to_owned())
        });
    }
    lab.down();
}
