//! What operators see of the overlay: peers, round trips, the way's MTU, and packets.

use serde_json::Value;

use crate::common::{Lab, number, wait_for};

/// How `host` sees its peer.
fn seen(lab: &Lab, host: &str, peer: &str) -> Result<Value, String> {
    let all = lab.ask(host, &["peer", "ls", "--network", "default"])?;
    let peers = all["peers"].as_array().cloned().unwrap_or_default();
    let found = peers.iter().find(|p| p["name"] == peer).cloned();
    found.ok_or_else(|| format!("{host} has no peer {peer}: {all}"))
}

fn wait_mtu(lab: &Lab, from: &str, to: &str, wanted: std::ops::RangeInclusive<u64>) {
    wait_for(&format!("an MTU of {wanted:?} on the way from {from} to {to}"), 60, || {
        let peer = seen(lab, from, to)?;
        let mtu = peer["path_mtu"].as_u64();
        let found = mtu.is_some_and(|mtu| wanted.contains(&mtu));
        if found { Ok(()) } else { Err(peer.to_string()) }
    });
}

#[test]
#[ignore = "makes hosts: ./check rehearsal"]
fn operators_see_the_way_to_each_peer() {
    let Some(lab) = Lab::up("way", 1, 1, &["--k3s", "rehearsal", "--no-cluster"]) else {
        return;
    };
    wait_mtu(&lab, "n1", "n2", 1420..=1420);
    let peer = seen(&lab, "n1", "n2").unwrap();
    assert!(number(&peer["round_trip_us"]) > 0 && number(&peer["asked"]) > 0, "{peer}");
    assert!(peer["endpoint"].as_str().is_some_and(|at| at.contains(':')), "{peer}");
    let table = lab.run("n1", &["skein", "peer", "ls"]);
    assert!(table.contains("RTT") && table.contains("1420"), "{table}");

    let said = lab.run("n1", &["skein", "ping", "n2", "-c", "2"]);
    assert!(said.contains("2 of 2 answered"), "{said}");
    let pinged = lab.ask("n1", &["ping", "n2", "-c", "1"]).unwrap();
    assert!(pinged["round_trips_us"][0].as_u64().is_some(), "{pinged}");
    let unknown = lab.exec("n1", &["skein", "ping", "n9"]);
    assert!(!unknown.status.success());

    let overlay = lab.overlay("n2", false);
    let both = format!(
        "ping -c 20 -i 0.2 {overlay} >/dev/null & skein capture default -w /tmp/a.pcap --packets 4 --seconds 10"
    );
    lab.run("n1", &["sh", "-c", &both]);
    let file = lab.exec("n1", &["cat", "/tmp/a.pcap"]).stdout;
    // A file's head, and four echoes of 84 bytes with a head each.
    assert_eq!((&file[..4], file.len()), (&[0xd4, 0xc3, 0xb2, 0xa1][..], 24 + 4 * (16 + 84)));

    // The way becomes narrow: n1 knows it from its own device, but what n2 sends is lost without a word.
    lab.run("n1", &["ip", "link", "set", "eth0", "mtu", "1400"]);
    lab.exec("n1", &["ping", "-c", "150", "-i", "0.01", "-s", "1300", &overlay]);
    // 1400 without the headers of IPv6 and UDP, and WireGuard's own 32 bytes.
    wait_mtu(&lab, "n1", "n2", 1316..=1320);
    // A veth lets four bytes more in, for a VLAN tag.
    wait_mtu(&lab, "n2", "n1", 1316..=1324);
    let large = lab.exec("n1", &["ping", "-c", "2", "-W", "1", "-M", "do", "-s", "1350", &overlay]);
    let words = String::from_utf8_lossy(&large.stdout).into_owned();
    assert!(!large.status.success() && words.contains("mtu = 13"), "{words}");

    lab.must(&["crash", "n2"]);
    let silent = lab.exec("n1", &["skein", "ping", "n2", "-c", "1"]);
    let words = String::from_utf8_lossy(&silent.stderr).into_owned();
    assert!(!silent.status.success() && words.contains("n2 does not answer"), "{words}");
    lab.down();
}

/// What a flow of packets through the overlay came to.
fn pinged(lab: &Lab, from: &str, to: &str, count: u32) -> String {
    let count = count.to_string();
    let out = lab.exec(from, &["ping", "-q", "-i", "0.005", "-c", &count, "-W", "2", to]);
    let words = String::from_utf8_lossy(&out.stdout).into_owned();
    words
        .lines()
        .find(|l| l.contains("packets transmitted"))
        .unwrap_or("nothing was sent")
        .to_owned()
}

#[test]
#[ignore = "makes hosts: ./check rehearsal"]
fn peers_that_a_change_does_not_touch_lose_no_packet() {
    const PACKETS: u32 = 3_000;
    let Some(lab) = Lab::up("untouched", 3, 1, &["--k3s", "rehearsal", "--no-cluster"]) else {
        return;
    };
    let to = [false, true].map(|v6| lab.overlay("n2", v6));
    for at in &to {
        wait_for(&format!("n1 reaches {at}"), 20, || {
            let out = lab.exec("n1", &["ping", "-c", "1", "-W", "1", at]);
            out.status.success().then_some(()).ok_or_else(|| "no answer".to_owned())
        });
    }
    let changes = std::thread::scope(|scope| {
        let flows = to.each_ref().map(|at| scope.spawn(|| pinged(&lab, "n1", at, PACKETS)));
        let mut changes = 0;
        while !flows.iter().all(std::thread::ScopedJoinHandle::is_finished) {
            // Every node gets a peer in the very network that the packets go through, and loses each second one again.
            let add = format!(
                "skein peer add d{changes} --network default --public-key $(head -c 32 /dev/urandom | base64)"
            );
            lab.run("n3", &["sh", "-c", &add]);
            if changes % 2 == 1 {
                let name = format!("d{changes}");
                lab.run("n3", &["skein", "peer", "rm", &name, "--network", "default"]);
            }
            changes += 1;
        }
        for flow in flows {
            let said = flow.join().unwrap();
            println!("    {said}, beside {changes} changes of its peers");
            let whole =
                format!("{PACKETS} packets transmitted, {PACKETS} received, 0% packet loss");
            assert!(said.starts_with(&whole), "{said}");
        }
        changes
    });
    assert!(changes >= 5, "only {changes} changes were made meanwhile");
    lab.down();
}
