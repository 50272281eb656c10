//! Addresses that change, and traffic between hosts over the overlay.

use crate::common::{Lab, have, wait_for};

fn underlay(lab: &Lab, host: &str) -> String {
    lab.host(host)["underlay"].as_str().unwrap().to_owned()
}

fn members_only(name: &str, servers: usize, workers: usize) -> Option<Lab> {
    Lab::up(name, servers, workers, &["--k3s", "rehearsal", "--no-cluster"])
}

fn pings(lab: &Lab, from: &str, to: &str) -> bool {
    lab.exec(from, &["ping", "-c", "1", "-W", "1", to]).status.success()
}

#[test]
#[ignore = "makes hosts: ./check rehearsal"]
fn every_host_reaches_every_other_over_the_overlay() {
    let Some(lab) = Lab::rehearsal("mesh", 3, 1) else {
        return;
    };
    for from in lab.hosts() {
        for to in lab.hosts().iter().filter(|to| **to != from) {
            for v6 in [true, false] {
                lab.run(&from, &["ping", "-c", "1", "-W", "2", &lab.overlay(to, v6)]);
            }
        }
    }
    lab.down();
}

#[test]
#[ignore = "makes hosts: ./check rehearsal"]
fn one_host_with_a_new_address() {
    let Some(lab) = Lab::rehearsal("move", 3, 1) else {
        return;
    };
    let before = (underlay(&lab, "n2"), lab.overlay("n2", true));
    lab.must(&["readdress", "n2"]);
    assert_ne!(underlay(&lab, "n2"), before.0);
    lab.settled("n1", 60);
    assert_eq!(lab.overlay("n2", true), before.1, "its overlay address stays");
    lab.run("n4", &["ping", "-c", "1", "-W", "2", &before.1]);
    lab.down();
}

#[test]
#[ignore = "makes hosts: ./check rehearsal"]
fn all_hosts_with_new_addresses_at_once() {
    let Some(lab) = Lab::rehearsal("moveall", 3, 1) else {
        return;
    };
    for host in lab.hosts() {
        lab.must(&["kill", &host]);
    }
    for host in lab.hosts() {
        lab.must(&["readdress", &host]);
    }
    // Everybody is told of one: what they say to it leads them to each other.
    let contact = format!("{}:7443", underlay(&lab, "n1"));
    for host in ["n2", "n3", "n4"] {
        lab.run(host, &["skein", "endpoint", "add", &contact]);
    }
    lab.settled("n1", 90);
    lab.one_bearer("n1");
    lab.down();
}

#[test]
#[ignore = "makes hosts: ./check rehearsal"]
fn a_cut_from_one_host_leaves_the_others() {
    let Some(lab) = members_only("cutfrom", 1, 2) else {
        return;
    };
    let at: Vec<String> = ["n1", "n2", "n3"].iter().map(|h| underlay(&lab, h)).collect();
    lab.must(&["cut", "n2", "--from", "n1"]);
    assert!(!pings(&lab, "n2", &at[0]) && !pings(&lab, "n1", &at[1]));
    assert!(pings(&lab, "n2", &at[2]) && pings(&lab, "n3", &at[0]));
    lab.must(&["heal"]);
    assert!(pings(&lab, "n2", &at[0]));
    lab.must(&["cut", "n2", "--from", "n1", "--one-way"]);
    assert!(!pings(&lab, "n1", &at[1]));
    lab.must(&["heal"]);
    lab.refused(&["cut", "n2", "--from", "n2"]);
    assert_eq!(lab.verb(&["cut", "n2", "--from", "n9"]).status.code(), Some(1));
    lab.must(&["kill", "n3"]);
    lab.refused(&["cut", "n3"]);
    lab.down();
}

#[test]
#[ignore = "makes hosts: ./check rehearsal"]
fn packets_of_full_size_cross_whole() {
    let Some(lab) = members_only("mtu", 1, 1) else {
        return;
    };
    if !have(&["ping"]) {
        return;
    }
    lab.overlay("n1", true);
    let mtu = lab.run("n1", &["sh", "-c", "cat /sys/class/net/wg-sdwan-*/mtu"]);
    let mtu: usize = mtu.trim().parse().unwrap();
    // The headers of IP and of an ICMP echo.
    for (v6, headers) in [(true, 48), (false, 28)] {
        let to = lab.overlay("n2", v6);
        let send = |size: usize| {
            let size = size.to_string();
            lab.exec("n1", &["ping", "-M", "do", "-c", "2", "-W", "2", "-s", &size, &to])
        };
        assert!(send(mtu - headers).status.success(), "{mtu} bytes to {to}");
        assert!(!send(mtu - headers + 1).status.success(), "more than fits to {to}");
    }
    lab.down();
}

#[test]
#[ignore = "makes hosts: ./check rehearsal"]
fn a_device_is_made_whole_without_ipv6_by_default_and_remnants_go() {
    let Some(lab) = members_only("remnants", 1, 1) else {
        return;
    };
    let before = [true, false].map(|v6| lab.overlay("n2", v6));
    let script = "kill -9 $(pgrep -x skein); echo 1 >/proc/sys/net/ipv6/conf/default/disable_ipv6; \
        ip link del $(basename /sys/class/net/wg-sdwan-*); ip tuntap add wg-sdwan-abcdef mode tun";
    lab.run("n2", &["sh", "-c", script]);
    lab.must(&["start", "n2"]);
    wait_for("both addresses, and no remnant", 15, || {
        let links = lab.run("n2", &["ip", "-o", "addr"]);
        let whole = before.iter().all(|a| links.contains(&format!(" {a}/")));
        let gone = !lab.run("n2", &["ls", "/sys/class/net"]).contains("wg-sdwan-abcdef");
        if whole && gone { Ok(()) } else { Err(links) }
    });
    let script = "d=$(basename /sys/class/net/wg-sdwan-*); ip addr add fd99::1/128 dev $d; \
        ip addr add 10.99.0.1/32 dev $d; ip route add 10.99.0.0/24 dev $d proto static; \
        ip route add 10.98.0.0/24 dev $d";
    lab.run("n2", &["sh", "-c", script]);
    wait_for("stale addresses and routes to go, and routes of others to stay", 10, || {
        let seen = lab.run("n2", &["sh", "-c", "ip -o addr; ip route"]);
        let stays = seen.contains("10.98.0.0/24");
        if stays && !seen.contains("fd99::1") && !seen.contains("10.99.0.") {
            Ok(())
        } else {
            Err(seen)
        }
    });
    lab.down();
}
