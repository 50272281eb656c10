//! Decommissioned clusters, terminated nodes, and clusters whose network had no VIP left. Pure.

use super::fixture::{World, name};
use crate::apply::{Command, RejectCode, departure_guard, drain_guard, unassign_guard};
use crate::model::{ClusterStatus, Phase, Role};

fn decommission(cluster: &str) -> Command {
    Command::DecommissionCluster { name: name(cluster) }
}

fn terminate(node: &str) -> Command {
    Command::TerminateNode { name: name(node) }
}

#[test]
fn a_decommissioned_cluster_goes_with_its_last_member_and_frees_the_rest() {
    let mut w = World::lab(3, 1);
    let mark = w.state.events.last();
    w.ok(decommission("lab"));
    assert_eq!(w.cluster("lab").status, ClusterStatus::Decommissioning);
    assert!(["n1", "n2", "n3", "n4"].iter().all(|n| w.role(n).leaving));
    assert_eq!(w.state.vips.len(), 1, "it is released when nobody is left to answer for it");
    w.ok(decommission("lab"));
    for node in ["n4", "n1", "n2"] {
        w.report(node, Phase::Stopped);
        assert!(w.node(node).assignment.is_none());
        assert!(w.ghosts("lab").is_empty(), "there is no Kubernetes to clear up");
    }
    w.report("n3", Phase::Stopped);
    assert!(w.state.clusters.is_empty() && w.state.vips.is_empty());
    let kinds = w.kinds(mark);
    assert_eq!(kinds.first().copied(), Some("k3s.cluster.decommissioning"));
    let end = ["sdwan.virtual_ip.released", "k3s.cluster.removed"];
    assert!(kinds.ends_with(&end), "{kinds:?}");
    w.create("lab", 3, 1);
    w.bring_up("lab");
}

#[test]
fn a_cluster_that_ends_takes_nobody_in_and_is_no_target() {
    let mut w = World::lab(1, 1);
    w.join("n3", 3);
    w.ok(decommission("lab"));
    let named = w.refused(World::assign("n3", Role::K3sAgent, Some("lab")));
    assert_eq!(named.code, RejectCode::Conflict);
    let server = w.refused(World::assign("n3", Role::K3sServer, Some("lab")));
    assert_eq!(server.code, RejectCode::Conflict);
    assert_eq!(w.refused(decommission("other")).code, RejectCode::NotFound);
    // A machine that never comes back does not keep the cluster's name for ever.
    w.report("n1", Phase::Stopped);
    w.ok(Command::RemoveNode { name: name("n2"), force: true });
    assert!(w.state.clusters.is_empty());
}

#[test]
fn a_terminated_node_is_out_when_its_role_is_undone() {
    let mut w = World::lab(3, 1);
    let (uuid, server) = (w.node("n4").uuid, w.id("n3"));
    w.ok(terminate("n4"));
    w.ok(terminate("n4"));
    assert!(w.role("n4").leaving && w.node("n4").terminating);
    w.report("n4", Phase::Stopped);
    assert!(w.state.is_retired(uuid), "out, for good");
    assert_eq!(w.ghosts("lab"), [name("n4")]);
    w.ok(terminate("n3"));
    w.report("n3", Phase::Stopped);
    assert!(!w.state.nodes.contains_key(&server));
}

#[test]
fn a_node_without_a_role_is_terminated_at_once_but_never_the_last_one() {
    let mut w = World::fleet(2);
    w.ok(terminate("n2"));
    assert_eq!(w.state.nodes.len(), 1);
    assert_eq!(w.refused(terminate("n1")).code, RejectCode::Guarded);
    let mut w = World::lab(1, 1);
    assert_eq!(w.refused(terminate("n1")).code, RejectCode::Guarded, "its worker needs it");
    assert!(!w.node("n1").terminating);
}

#[test]
fn a_node_that_is_terminated_gets_no_role() {
    let mut w = World::lab(3, 1);
    w.ok(terminate("n4"));
    let again = w.refused(World::assign("n4", Role::K3sAgent, Some("lab")));
    assert!(again.why.contains("leaving"), "{again}");
}

/// A fleet of five whose second network has room for four VIPs.
fn narrow() -> World {
    let mut w = World::fleet(5);
    let v4 = Some("10.90.64.0/28".parse().unwrap());
    w.ok(Command::CreateNetwork { name: name("narrow"), v4, mtu: None });
    for node in ["n1", "n2", "n3", "n4", "n5"] {
        w.ok(Command::AttachNode { node: name(node), network: name("narrow") });
    }
    w
}

fn create(cluster: &str, server: &str) -> Command {
    Command::CreateCluster(crate::apply::CreateCluster {
        name: name(cluster),
        network: Some(name("narrow")),
        servers: vec![name(server)],
        workers: vec![],
    })
}

#[test]
fn a_cluster_without_a_vip_comes_up_and_says_so() {
    let mut w = narrow();
    for (cluster, node) in [("one", "n1"), ("two", "n2"), ("three", "n3"), ("four", "n4")] {
        w.ok(create(cluster, node));
        assert!(w.cluster(cluster).vip.is_some());
    }
    w.ok(create("five", "n5"));
    assert_eq!(w.cluster("five").vip, None);
    let mark = w.state.events.last();
    w.found_cluster("n5");
    assert_eq!(w.cluster("five").status, ClusterStatus::Active);
    let kinds = w.kinds(mark);
    assert!(kinds.contains(&"sdwan.virtual_ip.fallback_active"), "{kinds:?}");
    assert!(!kinds.contains(&"sdwan.virtual_ip.allocated"), "{kinds:?}");
    assert_eq!(w.state.spokesman(w.cluster("five")), Some(w.id("n5")));
}

#[test]
fn servers_that_do_not_answer_do_not_count_for_etcd() {
    let w = World::lab(3, 0);
    let (n1, n2) = (w.id("n1"), w.id("n2"));
    let all = |_| true;
    let alone = |id| id == n1;
    let two = |id| id == n1 || id == n2;
    assert!(unassign_guard(&w.state, n1, &all).is_ok());
    assert!(unassign_guard(&w.state, n1, &two).is_err(), "one of the two that stay would answer");
    assert!(unassign_guard(&w.state, w.id("n3"), &two).is_ok(), "the dead one may go");
    assert_eq!(drain_guard(&w.state, n1, false, &alone).unwrap_err().code, RejectCode::Guarded);
    assert!(drain_guard(&w.state, n1, false, &two).is_ok());
    assert!(drain_guard(&w.state, n1, true, &two).is_err(), "etcd would have one of three");
}

#[test]
fn a_drain_asked_for_again_with_force_is_hurried() {
    let mut w = World::lab(3, 0);
    w.ok(World::drain("n1", false, false));
    let epoch = w.node("n1").drain.as_ref().unwrap().epoch;
    w.ok(World::drain("n1", false, true));
    let drain = w.node("n1").drain.as_ref().unwrap();
    assert!(drain.force && drain.epoch == epoch);
}

#[test]
fn whoever_leaves_a_fleet_leaves_it_to_somebody() {
    let w = World::fleet(3);
    let (n1, n2) = (w.id("n1"), w.id("n2"));
    let leaves =
        |id, there: &[_]| departure_guard(&w.state, id, "removed", &|n| there.contains(&n));
    assert!(leaves(n1, &[n1, n2]).is_ok());
    assert!(leaves(n2, &[n1]).is_ok(), "a machine that is lost may go");
    let refused = leaves(n1, &[n1]).unwrap_err();
    assert_eq!(refused.code, RejectCode::Guarded);
    assert!(refused.why.contains("n2, n3"), "{refused}");
}
