//! Networks, slices, membership and plain devices. Pure.

use super::fixture::{World, founding, key, name};
use crate::apply::{Change, Command, RejectCode};

fn network(called: &str, v4: Option<&str>, mtu: Option<u16>) -> Command {
    Command::CreateNetwork { name: name(called), v4: v4.map(|s| s.parse().unwrap()), mtu }
}

fn device(called: &str, seed: u8) -> Command {
    Command::AddDevice { network: name("default"), name: name(called), key: key(seed) }
}

#[test]
fn networks_take_slices_prefixes_and_ports_apart() {
    let mut w = World::fleet(1);
    let Change::Network { id } = w.ok(network("two", None, None)) else { unreachable!() };
    let two = &w.state.networks[&id];
    assert_eq!(two.v4.to_string(), "10.90.16.0/20");
    assert_eq!(two.v6.to_string(), "fd5e:1:2:2::/64");
    assert_eq!((two.port, two.mtu), (51_821, 1420));
    w.ok(network("three", Some("10.90.200.7/24"), Some(1380)));
    let three = w.state.network_named(&name("three")).unwrap();
    assert_eq!((three.v4.to_string().as_str(), three.mtu), ("10.90.200.0/24", 1380));
}

#[test]
fn bad_networks_are_refused() {
    let mut w = World::fleet(1);
    assert_eq!(w.refused(network("default", None, None)).code, RejectCode::Exists);
    for bad in ["10.90.0.0/24", "10.90.0.0/16", "10.91.0.0/24", "10.90.64.0/29"] {
        let r = w.refused(network("x", Some(bad), None));
        assert_eq!(r.code, RejectCode::Invalid, "{bad}");
    }
    for mtu in [0, 1279, 9001] {
        let r = w.refused(network("x", None, Some(mtu)));
        assert_eq!(r.code, RejectCode::Invalid);
    }
}

#[test]
fn a_pool_runs_out_with_a_word() {
    let mut w = World::fleet(1);
    for i in 0..15 {
        w.ok(network(&format!("net{i}"), None, None));
    }
    assert_eq!(w.refused(network("more", None, None)).code, RejectCode::Exhausted);
}

#[test]
fn a_full_network_refuses_and_reuses_numbers_only_then() {
    let mut w = World::empty();
    let mut small = founding();
    small.ipv4_pool = "10.90.0.0/26".parse().unwrap();
    w.ok(Command::FoundFleet(small));
    let room = w.state.networks.values().next().unwrap().capacity();
    for i in 1..room {
        w.ok(device(&format!("d{i}"), 100 + i as u8));
    }
    let full = w.refused(device("more", 99));
    assert_eq!(full.code, RejectCode::Exhausted);
    let freed = w.state.networks.values().next().unwrap().devices[&name("d3")].address;
    w.ok(Command::RemoveDevice { network: name("default"), name: name("d3") });
    w.ok(device("more", 99));
    let net = w.state.networks.values().next().unwrap();
    assert_eq!(net.devices[&name("more")].address, freed);
}

#[test]
fn nodes_enter_further_networks_once() {
    let mut w = World::fleet(2);
    w.ok(network("two", None, None));
    let attach = |node: &str, network: &str| Command::AttachNode {
        node: name(node),
        network: name(network),
    };
    w.ok(attach("n2", "two"));
    let first = w.node("n2").networks.clone();
    assert_eq!(first.len(), 2);
    w.ok(attach("n2", "two"));
    assert_eq!(w.node("n2").networks, first);
    assert_eq!(w.refused(attach("n2", "ten")).code, RejectCode::NotFound);
    assert_eq!(w.refused(attach("n9", "two")).code, RejectCode::NotFound);
}

#[test]
fn devices_have_keys_of_their_own() {
    let mut w = World::fleet(1);
    w.ok(device("phone", 60));
    let mark = w.state.events.last();
    w.ok(device("phone", 60));
    assert!(w.kinds(mark).is_empty(), "asked for twice, made once");
    assert_eq!(w.refused(device("phone", 61)).code, RejectCode::Exists);
    assert_eq!(w.refused(device("laptop", 60)).code, RejectCode::Exists);
    assert_eq!(w.refused(device("laptop", 1)).code, RejectCode::Exists);
    let gone = Command::RemoveDevice { network: name("default"), name: name("tablet") };
    let r = w.refused(gone);
    assert_eq!(r.code, RejectCode::NotFound);
    assert!(r.next.contains("phone"));
}

#[test]
fn a_ticket_without_a_network_needs_a_default() {
    let mut w = World::fleet(1);
    w.ok(network("two", None, None));
    w.ticket(1);
    let mut f = founding();
    f.network = name("alpha");
    let mut w = World::empty();
    w.ok(Command::FoundFleet(f));
    w.ticket(1);
    w.ok(network("beta", None, None));
    let r = w.refused(Command::CreateTicket {
        digest: crate::model::Digest::of(b"x"),
        role: crate::model::TicketRole::Any,
        network: None,
        expires: crate::model::UnixMillis(u64::MAX),
        uses: 1,
    });
    assert_eq!(r.code, RejectCode::Ambiguous);
}
