//! Addresses that change, and traffic between hosts over the overlay.

use serde_json::Value;

use crate::common::Lab;

fn underlay(lab: &Lab, host: &str) -> String {
    lab.host(host)["underlay"].as_str().unwrap().to_owned()
}

fn overlay(lab: &Lab, host: &str, v6: bool) -> String {
    let status = lab.host(host);
    let addresses = status["overlay"].as_array().unwrap().iter().filter_map(Value::as_str);
    let vips = [lab.vip_address(host, true), lab.vip_address(host, false)];
    let mut own = addresses.filter(|a| {
        a.contains(':') == v6 && !a.starts_with("fe80") && !vips.iter().any(|v| v == a)
    });
    own.next().unwrap_or_else(|| panic!("an overlay address in {status}")).to_owned()
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
                lab.run(&from, &["ping", "-c", "1", "-W", "2", &overlay(&lab, to, v6)]);
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
    let before = (underlay(&lab, "n2"), overlay(&lab, "n2", true));
    lab.must(&["readdress", "n2"]);
    assert_ne!(underlay(&lab, "n2"), before.0);
    lab.settled("n1", 60);
    assert_eq!(overlay(&lab, "n2", true), before.1, "its overlay address stays");
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
