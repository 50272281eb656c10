//! What the command line promises about events and moves of the VIP.

use std::io::{BufRead as _, BufReader};
use std::process::Stdio;
use std::sync::mpsc;
use std::time::Duration;

use serde_json::Value;

use crate::common::{Lab, number, refused};

fn events(lab: &Lab, host: &str, options: &[&str]) -> Vec<Value> {
    let full = [&["skein", "events", "-o", "json"], options].concat();
    let lines = lab.run(host, &full);
    lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
#[ignore = "makes hosts: ./check rehearsal"]
fn events_are_limited_to_the_newest() {
    let Some(lab) = Lab::up("limit", 1, 1, &["--k3s", "rehearsal", "--no-cluster"]) else {
        return;
    };
    for i in 0..5 {
        lab.run("n1", &["skein", "net", "create", &format!("net-{i}")]);
    }
    let all = events(&lab, "n2", &["--limit", "1000"]);
    for limit in [1, 3] {
        let some = events(&lab, "n2", &["--limit", &limit.to_string()]);
        assert_eq!(some, all[all.len() - limit..], "the newest {limit}, oldest first");
    }
    let prefix = "system.sdwan.network.";
    let nets: Vec<&Value> =
        all.iter().filter(|e| e["kind"].as_str().unwrap().starts_with(prefix)).collect();
    assert!(nets.len() >= 5 && nets.len() < all.len(), "{all:?}");
    let some = events(&lab, "n2", &["--limit", "2", "--prefix", prefix]);
    assert_eq!(some.iter().collect::<Vec<_>>(), nets[nets.len() - 2..]);
    lab.down();
}

#[test]
#[ignore = "makes hosts: ./check rehearsal"]
fn a_watch_shows_events_as_they_happen() {
    let Some(lab) = Lab::up("watch", 1, 1, &["--k3s", "rehearsal", "--no-cluster"]) else {
        return;
    };
    for name in ["one", "two"] {
        lab.run("n1", &["skein", "net", "create", name]);
    }
    let args = ["skein", "events", "--watch", "-o", "json", "--limit", "1"];
    let full = [&["exec", "n2", "--"], &args[..], &["--prefix", "system.sdwan.network."]].concat();
    let mut watch = lab.command(&full).stdout(Stdio::piped()).spawn().unwrap();
    let (tx, rx) = mpsc::channel::<Value>();
    let out = BufReader::new(watch.stdout.take().unwrap());
    let reader = std::thread::spawn(move || {
        for line in out.lines().map_while(Result::ok) {
            if tx.send(serde_json::from_str(&line).unwrap()).is_err() {
                return;
            }
        }
    });
    let next = |what: &str| {
        rx.recv_timeout(Duration::from_secs(5)).unwrap_or_else(|e| panic!("{what}: {e}"))
    };
    let name = |event: &Value| event["payload"].to_string();
    let known = next("the newest known event");
    assert!(name(&known).contains("two"), "{known}");
    assert!(rx.recv_timeout(Duration::from_secs(1)).is_err(), "the limit is one");

    for made in ["three", "four"] {
        // Of another kind, so that it is not to be seen.
        lab.run("n1", &["skein", "ticket", "create", "-q"]);
        lab.run("n1", &["skein", "net", "create", made]);
        let event = next(made);
        assert!(name(&event).contains(made), "{event}");
        assert!(number(&event["index"]) > number(&known["index"]));
    }
    assert!(rx.recv_timeout(Duration::from_secs(1)).is_err(), "each event is shown once");
    assert!(watch.try_wait().unwrap().is_none(), "the watch goes on");
    watch.kill().unwrap();
    watch.wait().unwrap();
    // The watch itself runs on in the host, and ends with it.
    lab.down();
    reader.join().unwrap();
}

#[test]
#[ignore = "makes hosts: ./check rehearsal"]
fn a_vip_moves_only_where_it_may_and_a_dry_run_moves_nothing() {
    let Some(lab) = Lab::rehearsal("moving", 3, 1) else { return };
    let vip = |rest: &[&str]| {
        let full = [&["skein", "vip", "move", "k3s_api_endpoint"], rest].concat();
        lab.exec("n4", &full)
    };
    let (old, generation) = (lab.holder("n4"), lab.generation("n4"));
    let to = ["n1", "n2", "n3"].into_iter().find(|n| *n != old).unwrap();

    let dry = vip(&["--to", to, "--dry-run", "-o", "json"]);
    assert!(dry.status.success(), "{dry:?}");
    let dry: Value = serde_json::from_slice(&dry.stdout).unwrap();
    assert_eq!((dry["holder"].as_str(), dry["next"].as_str()), (Some(&*old), Some(to)), "{dry}");
    std::thread::sleep(Duration::from_secs(2));
    let after = lab.vip("n4").unwrap();
    assert_eq!((after["holder"].as_str(), number(&after["generation"])), (Some(&*old), generation));
    assert_eq!(after["next"], "", "nothing is planned: {after}");

    let worker = vip(&["--to", "n4"]);
    assert!(refused(&worker, 3).contains("no server of this name"), "{worker:?}");
    let nobody = vip(&["--to", "n9"]);
    refused(&nobody, 3);
    lab.run("n4", &["skein", "drain", to]);
    let drained = vip(&["--to", to]);
    assert!(refused(&drained, 4).contains("drain"), "{drained:?}");
    lab.run("n4", &["skein", "undrain", to]);
    assert_eq!((lab.holder("n4"), lab.generation("n4")), (old.clone(), generation));

    lab.settled("n4", 20);
    let moved = vip(&["--to", to]);
    assert!(moved.status.success(), "{moved:?}");
    assert_eq!((lab.holder("n4"), lab.generation("n4")), (to.to_owned(), generation + 1));
    lab.one_bearer("n4");
    lab.down();
}
