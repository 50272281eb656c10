//! Roles given up, members lost, and what becomes of their cluster. Pure.

use super::fixture::{World, name};
use crate::apply::{Command, RejectCode};
use crate::model::{ClusterStatus, Phase, Role};

fn remove(node: &str) -> Command {
    Command::RemoveNode { name: name(node), force: true }
}

#[test]
fn a_cluster_goes_with_its_last_member_and_so_does_its_vip() {
    let mut w = World::lab(1, 1);
    let last = w.refused(World::unassign("n1"));
    assert_eq!(last.code, RejectCode::Guarded);
    w.ok(World::unassign("n2"));
    w.report("n2", Phase::Stopped);
    w.ok(World::unassign("n1"));
    assert!(w.role("n1").leaving, "the daemon undoes it first");
    let mark = w.state.events.last();
    w.report("n1", Phase::Stopped);
    assert_eq!(
        w.kinds(mark),
        ["k3s.runtime.stopped", "sdwan.virtual_ip.released", "k3s.cluster.removed"]
    );
    assert!(w.state.clusters.is_empty() && w.state.vips.is_empty());
    assert_eq!(w.node("n1").assignment, None);
}

#[test]
fn unassigning_twice_or_for_nothing_is_fine() {
    let mut w = World::lab(2, 1);
    w.ok(World::unassign("n3"));
    let mark = w.state.events.last();
    w.ok(World::unassign("n3"));
    assert!(w.kinds(mark).is_empty());
    let early = w.refused(World::assign("n3", Role::K3sAgent, Some("lab")));
    assert!(early.why.contains("giving up"), "{early}");
    w.report("n3", Phase::Stopped);
    w.ok(World::unassign("n3"));
    assert_eq!(w.ghosts("lab"), [name("n3")]);
    w.ok(World::assign("n3", Role::K3sAgent, Some("lab")));
    assert!(w.state.member_blocked_by(w.cluster("lab"), w.node("n3")).is_some());
}

#[test]
fn a_founder_that_leaves_before_the_bootstrap_is_followed_by_another() {
    let mut w = World::fleet(2);
    w.create("lab", 2, 0);
    w.report("n1", Phase::Installing);
    w.ok(World::unassign("n1"));
    assert_eq!(w.cluster("lab").bootstrap, Some(w.id("n2")));
    assert_eq!(w.cluster("lab").status, ClusterStatus::Pending);
    w.report("n1", Phase::Stopped);
    w.found_cluster("n2");
    assert_eq!(w.holder(), "n2");
}

#[test]
fn a_founder_lost_between_bootstrap_and_ready_is_followed_by_another() {
    let mut w = World::fleet(3);
    w.create("lab", 2, 1);
    w.report("n1", Phase::Installing);
    w.report("n1", Phase::Bootstrapped);
    w.report("n3", Phase::JoinRequested);
    assert_eq!(w.holder(), "n1");
    w.ok(remove("n1"));
    let lab = w.cluster("lab");
    assert_eq!(lab.bootstrap, Some(w.id("n2")));
    assert_eq!((lab.status, &lab.secrets), (ClusterStatus::Pending, &None));
    assert!(lab.ghosts.is_empty(), "nobody else ever joined");
    w.found_cluster("n2");
    assert_eq!(w.cluster("lab").status, ClusterStatus::Active);
    assert_eq!((w.holder(), w.vip("lab").generation.0), ("n2".into(), 2));
}

#[test]
fn nobody_founds_an_active_cluster_again() {
    let mut w = World::lab(2, 1);
    let go = w.move_vip("n2");
    w.ok(go);
    w.ok(World::unassign("n1"));
    assert_eq!(w.cluster("lab").bootstrap, None);
    w.report("n1", Phase::Stopped);
    w.ok(World::assign("n1", Role::K3sServer, Some("lab")));
    assert_eq!(w.cluster("lab").bootstrap, None, "it joins this time");
    let again = w.phase("n1", Phase::Bootstrapped);
    assert_eq!(w.refused(again).code, RejectCode::Conflict);
    w.join_cluster("n1");
    assert_eq!(w.cluster("lab").status, ClusterStatus::Active);
}

#[test]
fn a_lone_server_that_is_replaced_founds_its_cluster_anew() {
    let mut w = World::lab(1, 0);
    let (id, address) = (w.cluster("lab").id, w.vip("lab").address);
    let mark = w.state.events.last();
    let new = w.replace("n1", 21);
    assert!(w.kinds(mark).contains(&"k3s.cluster.lost"));
    assert_eq!(w.cluster("lab").id, id);
    assert_eq!(w.cluster("lab").bootstrap, Some(new));
    assert_eq!(w.cluster("lab").status, ClusterStatus::Pending);
    assert!(w.state.member_blocked_by(w.cluster("lab"), w.node("n1")).is_none());
    w.found_cluster("n1");
    assert_eq!(w.vip("lab").address, address);
    assert_eq!(w.vip("lab").holder, Some(new));
}

#[test]
fn a_cluster_that_lost_its_control_plane_under_its_workers_is_in_error() {
    let mut w = World::lab(1, 2);
    w.replace("n1", 21);
    assert_eq!(w.cluster("lab").status, ClusterStatus::Error);
    let more = w.refused(World::assign("n1", Role::K3sServer, Some("two")));
    assert_eq!(more.code, RejectCode::Conflict);
    // It ends when all have left it.
    for node in ["n2", "n3", "n1"] {
        w.ok(Command::UnassignRole { node: name(node), force: true });
        w.report(node, Phase::Stopped);
    }
    assert!(w.state.clusters.is_empty());
}

#[test]
fn a_lost_worker_leaves_a_ghost_only_if_kubernetes_knew_it() {
    let mut w = World::fleet(3);
    w.create("lab", 1, 2);
    w.ok(remove("n3"));
    w.found_cluster("n1");
    assert!(w.cluster("lab").ghosts.is_empty());
    w.join_cluster("n2");
    let own = w.node("n2").networks.values().next().copied();
    w.ok(remove("n2"));
    assert_eq!(w.cluster("lab").ghosts[0].addresses, own, "etcd knows it by its address");
    assert_eq!(w.ghosts("lab"), [name("n2")]);
    let cluster = w.cluster("lab").id;
    let mark = w.state.events.last();
    let forget = || Command::ForgetGhost { cluster, name: name("n2") };
    w.ok(forget());
    w.ok(forget());
    assert_eq!(w.kinds(mark), ["k3s.node.removed"]);
}
