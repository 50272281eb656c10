//! From nothing to a cluster, hosts that come back or are replaced, and a lab that leaves nothing behind.

use std::process::Stdio;
use std::time::Duration;

use crate::common::{Lab, wait_for};

#[test]
#[ignore = "makes hosts: ./check rehearsal"]
fn create_and_join() {
    let Some(lab) = Lab::rehearsal("create", 3, 1) else {
        return;
    };
    assert_eq!(lab.hosts(), ["n1", "n2", "n3", "n4"]);
    lab.settled("n4", 20);
    let status = lab.ask("n4", &["status"]).unwrap();
    assert_eq!(status["schema"], 1);
    assert_eq!(status["voters"].as_array().map(Vec::len), Some(3), "{status}");
    let cluster = lab.ask("n4", &["cluster", "show", "lab"]).unwrap();
    assert_eq!(cluster["servers"].as_array().map(Vec::len), Some(3), "{cluster}");
    assert_eq!(cluster["workers"].as_array().map(Vec::len), Some(1), "{cluster}");
    assert!(cluster.to_string().contains("rehearsal"), "it says what it is: {cluster}");
    lab.one_bearer("n1");
    for host in lab.hosts() {
        for v6 in [true, false] {
            let gap = lab.probe(&host, v6, 1).end();
            assert!(gap.longest < Duration::from_millis(900), "{host} reaches the VIP: {gap:?}");
        }
    }
    let kubeconfig = lab.run("n4", &["skein", "kubeconfig", "lab"]);
    let vip = lab.vip_address("n4", true);
    assert!(
        kubeconfig.contains(&vip) || kubeconfig.contains(&lab.vip_address("n4", false)),
        "{kubeconfig}"
    );
    let ready = lab.run("n1", &["kubectl", "get", "--raw", "/readyz"]);
    assert_eq!(ready.trim(), "ok");
    lab.down();
}

#[test]
#[ignore = "makes hosts: ./check rehearsal"]
fn events_come_in_the_order_of_things() {
    let Some(lab) = Lab::rehearsal("events", 1, 1) else {
        return;
    };
    let lines = lab.run("n2", &["skein", "events", "-o", "json"]);
    let kinds: Vec<String> = lines
        .lines()
        .map(|line| {
            serde_json::from_str::<serde_json::Value>(line).unwrap()["kind"]
                .as_str()
                .unwrap()
                .to_owned()
        })
        .collect();
    let place = |kind: &str| {
        kinds
            .iter()
            .position(|k| k == kind)
            .unwrap_or_else(|| panic!("{kind} is not among {kinds:?}"))
    };
    let story = [
        "system.k3s.module.assigned",
        "system.k3s.handshake.bootstrap",
        "system.sdwan.virtual_ip.allocated",
        "system.k3s.cluster.bootstrapped",
        "system.k3s.handshake.ready",
        "system.k3s.handshake.join_request",
        "system.k3s.handshake.join_token_issued",
    ];
    let places = story.map(place);
    assert!(places.is_sorted(), "{kinds:?}");
    let some = lab.run("n2", &["skein", "events", "-o", "json", "--prefix", "system.sdwan."]);
    assert!(
        !some.is_empty() && some.lines().all(|line| line.contains("\"system.sdwan.")),
        "{some}"
    );
    lab.down();
}

#[test]
#[ignore = "makes hosts: ./check rehearsal"]
fn a_host_comes_back_on_its_disk() {
    let Some(lab) = Lab::rehearsal("rejoin", 3, 1) else {
        return;
    };
    for (host, verb) in [("n4", "kill"), ("n3", "crash")] {
        lab.must(&[verb, host]);
        assert_eq!(lab.host(host)["state"], "down");
        wait_for("its silence is noticed", 20, || {
            let node = lab.ask("n1", &["node", "show", host])?;
            if node["state"] == "down" || node["node"]["state"] == "down" {
                Ok(())
            } else {
                Err(node.to_string())
            }
        });
        lab.must(&["start", host]);
        lab.settled("n1", 60);
        assert_eq!(lab.host(host)["state"], "up");
    }
    lab.one_bearer("n2");
    lab.down();
}

#[test]
#[ignore = "makes hosts: ./check rehearsal"]
fn all_hosts_come_back_after_a_power_cut() {
    let Some(lab) = Lab::rehearsal("cold", 3, 1) else {
        return;
    };
    let (holder, generation) = (lab.holder("n4"), lab.generation("n4"));
    for host in lab.hosts() {
        lab.must(&["kill", &host]);
    }
    for host in lab.hosts() {
        lab.must(&["start", &host]);
    }
    lab.settled("n4", 90);
    lab.one_bearer("n4");
    let moved = lab.generation("n4") - generation;
    assert!(moved == 0 && lab.holder("n4") == holder || moved > 0, "a generation has one holder");
    lab.down();
}

#[test]
#[ignore = "makes hosts: ./check rehearsal"]
fn a_wiped_host_takes_its_own_place_again() {
    let Some(lab) = Lab::rehearsal("wipe", 3, 1) else {
        return;
    };
    let uuid = |lab: &Lab| {
        lab.run("n1", &["sh", "-c", "skein node show n3 -o json | grep -o '\"uuid\": *\"[^\"]*\"'"])
    };
    let before = uuid(&lab);
    lab.must(&["wipe", "n3"]);
    wait_for("n3 is somebody else", 60, || {
        let now = uuid(&lab);
        if now == before { Err(now) } else { Ok(()) }
    });
    wait_for("it votes again", 60, || {
        let status = lab.ask("n1", &["status"])?;
        let votes = status["voters"]
            .as_array()
            .is_some_and(|v| v.len() == 3 && v.iter().any(|x| x == "n3"));
        if votes { Ok(()) } else { Err(status.to_string()) }
    });
    lab.settled("n1", 60);
    let nodes = lab.ask("n1", &["status"]).unwrap();
    assert_eq!(nodes["nodes"].as_array().map(Vec::len), Some(4), "the old one is retired: {nodes}");
    lab.down();
}

#[test]
#[ignore = "makes hosts: ./check rehearsal"]
fn a_ticket_is_good_for_one_machine() {
    let Some(lab) = Lab::rehearsal("ticket", 1, 1) else {
        return;
    };
    let ticket = lab.run("n1", &["skein", "ticket", "create", "-q"]);
    lab.must(&["kill", "n2"]);
    lab.must(&["start", "n2"]);
    let join = |name: &str| {
        let script = format!(
            "timeout 10 skein join {} --name {name} --foreground --state-dir /run/{name} --config /dev/null",
            ticket.trim()
        );
        lab.exec("n2", &["sh", "-c", &script])
    };
    join("other");
    let again = join("another");
    assert!(!again.status.success());
    let words = String::from_utf8_lossy(&again.stderr).to_lowercase();
    assert!(words.contains("ticket") && words.contains("used"), "{words}");
    lab.down();
}

#[test]
#[ignore = "makes hosts: ./check rehearsal"]
fn nothing_is_left_when_up_is_killed() {
    for millis in [150, 400, 1_000, 2_500, 5_000] {
        let Some(lab) = Lab::reserve("killed") else {
            return;
        };
        let mut command =
            lab.command(&["up", "--servers", "3", "--workers", "1", "--k3s", "rehearsal"]);
        let mut up = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        std::thread::sleep(Duration::from_millis(millis));
        up.kill().unwrap();
        up.wait().unwrap();
        lab.down();
    }
}

#[test]
#[ignore = "makes hosts: ./check rehearsal"]
fn nothing_is_left_when_the_records_are_damaged() {
    let Some(lab) = Lab::rehearsal("damaged", 1, 1) else { return };
    let dir = lab.host("n1")["dir"].as_str().unwrap().to_owned();
    std::fs::write(std::path::Path::new(&dir).with_file_name("lab.json"), "{").unwrap();
    lab.down();
}

#[test]
#[ignore = "makes hosts: ./check rehearsal"]
fn up_goes_on_where_it_was_interrupted() {
    let Some(lab) = Lab::reserve("resumed") else {
        return;
    };
    let args = ["up", "--servers", "1", "--workers", "1", "--k3s", "rehearsal"];
    let mut up = lab.command(&args).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    std::thread::sleep(Duration::from_millis(1_500));
    up.kill().unwrap();
    up.wait().unwrap();
    lab.must(&args);
    lab.settled("n2", 5);
    lab.must(&args);
    lab.down();
}

#[test]
#[ignore = "makes hosts: ./check rehearsal"]
fn a_second_up_takes_no_other_options_and_wakes_a_paused_daemon() {
    let options = ["--k3s", "rehearsal", "--no-cluster"];
    let Some(lab) = Lab::up("again", 1, 1, &options) else {
        return;
    };
    for other in [["--servers", "2"], ["--workers", "0"], ["--k3s", "build"]] {
        let words = lab.refused(&["up", other[0], other[1]]);
        assert!(words.contains("down") && words.contains(other[0]), "{words}");
    }
    lab.refused(&["up", "--images", "/nonexistent"]);
    lab.must(&["pause", "n1"]);
    lab.must(&["up", "--no-cluster"]);
    assert_eq!(lab.host("n1")["state"], "up");
    lab.must(&["up"]);
    lab.settled("n2", 20);
    lab.refused(&["up", "--no-cluster"]);
    lab.down();
}

#[test]
#[ignore = "makes hosts: ./check rehearsal"]
fn what_would_change_nothing_is_refused() {
    let Some(lab) = Lab::up("idle", 1, 0, &["--k3s", "rehearsal", "--no-cluster"]) else {
        return;
    };
    for verb in ["start", "resume", "wipe"] {
        lab.refused(&[verb, "n1"]);
    }
    lab.must(&["pause", "n1"]);
    for verb in ["pause", "start"] {
        lab.refused(&[verb, "n1"]);
    }
    lab.must(&["resume", "n1"]);
    lab.must(&["kill", "n1"]);
    for verb in ["kill", "crash", "pause", "resume", "cut", "wipe"] {
        lab.refused(&[verb, "n1"]);
    }
    lab.must(&["start", "n1"]);
    lab.ask("n1", &["status"]).expect("it answers as soon as `start` has ended");
    lab.down();
}

#[test]
#[ignore = "makes hosts: ./check rehearsal"]
fn two_labs_live_and_go_apart() {
    let Some(one) = Lab::up("one", 1, 1, &["--k3s", "rehearsal", "--no-cluster"]) else {
        return;
    };
    let two = one.beside("two");
    two.must(&["up", "--servers", "1", "--workers", "1", "--k3s", "rehearsal", "--no-cluster"]);
    assert_ne!(one.host("n1")["underlay"], two.host("n1")["underlay"]);
    one.must(&["kill", "n2"]);
    assert_eq!(two.host("n2")["state"], "up");
    one.must(&["down"]);
    let to = two.overlay("n2", true);
    two.run("n1", &["ping", "-c", "1", "-W", "2", &to]);
    two.must(&["kill", "n2"]);
    two.must(&["start", "n2"]);
    two.must(&["down"]);
    two.down();
    one.down();
}

#[test]
#[ignore = "makes hosts: ./check rehearsal"]
fn servers_alone_and_even_in_number_come_up() {
    let Some(lab) = Lab::up("four", 4, 0, &["--k3s", "rehearsal", "--no-cluster"]) else {
        return;
    };
    lab.down();
}
