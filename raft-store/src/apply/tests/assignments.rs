//! Which cluster a role belongs to. Pure.

use super::fixture::{World, name, names};
use crate::apply::{Command, CreateCluster, RejectCode};
use crate::model::{ClusterStatus, Phase, Role};

fn agent(node: &str, cluster: Option<&str>) -> Command {
    World::assign(node, Role::K3sAgent, cluster)
}

fn server(node: &str, cluster: Option<&str>) -> Command {
    World::assign(node, Role::K3sServer, cluster)
}

/// Two clusters, `lab` on n1 and `two` on n2; n3 and n4 are free.
fn two_clusters() -> World {
    let mut w = World::fleet(4);
    w.ok(server("n1", Some("lab")));
    w.ok(server("n2", Some("two")));
    w.found_cluster("n1");
    w.found_cluster("n2");
    w
}

#[test]
fn a_valid_target_is_joined_and_pinned() {
    let mut w = two_clusters();
    w.ok(agent("n3", Some("two")));
    assert_eq!(w.role("n3").cluster, Some(w.cluster("two").id));
    w.join_cluster("n3");
    assert_eq!(w.role("n3").cluster, Some(w.cluster("two").id));
    // Asking again changes nothing; asking for another cluster never moves a member.
    let hash = w.state.events.last();
    w.ok(agent("n3", Some("two")));
    assert_eq!(w.state.events.last(), hash);
    let moved = w.refused(agent("n3", Some("lab")));
    assert_eq!(moved.code, RejectCode::Conflict);
    assert!(moved.next.contains("unassign n3"), "{}", moved.next);
    assert_eq!(w.refused(server("n3", Some("two"))).code, RejectCode::Conflict);
}

#[test]
fn an_unknown_target_is_not_found_and_the_known_ones_are_listed() {
    let mut w = two_clusters();
    let r = w.refused(agent("n3", Some("tow")));
    assert_eq!(r.code, RejectCode::NotFound);
    assert!(r.why.contains("tow") && r.next.contains("lab, two"), "{r:?}");
    assert_eq!(w.refused(agent("n9", Some("lab"))).code, RejectCode::NotFound);
}

#[test]
fn a_target_in_error_is_a_conflict() {
    let mut w = World::fleet(4);
    w.ok(server("n1", Some("lab")));
    w.report("n1", Phase::Installing);
    w.report("n1", Phase::Failed);
    assert_eq!(w.cluster("lab").status, ClusterStatus::Error);
    for command in [agent("n3", Some("lab")), agent("n3", None), server("n3", Some("lab"))] {
        assert_eq!(w.refused(command).code, RejectCode::Conflict);
    }
    // With a sound cluster beside it, that one is the only target.
    w.ok(server("n2", Some("two")));
    w.ok(agent("n3", None));
    assert_eq!(w.role("n3").cluster, Some(w.cluster("two").id));
}

#[test]
fn a_founder_that_failed_may_try_again() {
    let mut w = World::fleet(1);
    w.ok(server("n1", Some("lab")));
    w.report("n1", Phase::Installing);
    w.report("n1", Phase::Failed);
    w.found_cluster("n1");
    assert_eq!(w.cluster("lab").status, ClusterStatus::Active);
}

#[test]
fn a_target_that_is_still_founded_makes_the_agent_wait() {
    let mut w = World::fleet(2);
    w.ok(server("n1", Some("lab")));
    w.ok(agent("n2", Some("lab")));
    let blocked = |w: &World| w.state.member_blocked_by(w.cluster("lab"), w.node("n2"));
    assert!(blocked(&w).is_some());
    w.report("n1", Phase::Installing);
    w.report("n1", Phase::Bootstrapped);
    assert!(blocked(&w).is_some(), "no token until the API answers");
    w.report("n1", Phase::Ready);
    assert_eq!(blocked(&w), None);
}

#[test]
fn without_a_name_the_only_cluster_is_taken() {
    let mut w = World::fleet(2);
    w.ok(server("n1", Some("lab")));
    w.ok(agent("n2", None));
    assert_eq!(w.role("n2").cluster, Some(w.cluster("lab").id));
}

#[test]
fn without_a_name_several_clusters_are_ambiguous() {
    let mut w = two_clusters();
    let mark = w.state.events.last();
    let r = w.refused(agent("n3", None));
    assert_eq!(r.code, RejectCode::Ambiguous);
    assert!(r.why.contains("lab, two"), "{r}");
    assert_eq!(w.kinds(mark), ["k3s.handshake.join_target_ambiguous"]);
    assert_eq!(w.node("n3").assignment, None);
}

#[test]
fn without_any_cluster_the_agent_waits_for_the_first() {
    let mut w = World::fleet(3);
    w.ok(agent("n2", None));
    assert_eq!(w.role("n2").cluster, None);
    w.ok(agent("n2", None));
    w.ok(server("n1", Some("lab")));
    assert_eq!(w.role("n2").cluster, Some(w.cluster("lab").id));
}

#[test]
fn a_waiting_agent_of_another_network_is_taken_once_it_is_attached() {
    let mut w = World::fleet(3);
    w.ok(agent("n2", None));
    w.ok(Command::CreateNetwork { name: name("other"), v4: None, mtu: None });
    let attach = |node| Command::AttachNode { node: name(node), network: name("other") };
    w.ok(attach("n1"));
    w.ok(Command::CreateCluster(CreateCluster {
        name: name("lab"),
        network: Some(name("other")),
        servers: names(&["n1"]),
        workers: vec![],
    }));
    assert_eq!(w.role("n2").cluster, None);
    w.ok(attach("n2"));
    assert_eq!(w.role("n2").cluster, Some(w.cluster("lab").id));
    let apart = w.refused(agent("n3", Some("lab")));
    assert_eq!(apart.code, RejectCode::Conflict);
    assert_eq!(apart.next, "skein net attach other n3");
}

#[test]
fn a_server_needs_a_name_and_an_unknown_one_founds() {
    let mut w = World::fleet(2);
    assert_eq!(w.refused(server("n1", None)).code, RejectCode::Invalid);
    w.ok(server("n1", Some("lab")));
    assert_eq!(w.cluster("lab").bootstrap, Some(w.id("n1")));
    w.ok(server("n2", Some("lab")));
    assert_eq!(w.cluster("lab").bootstrap, Some(w.id("n1")));
    assert_eq!(w.state.clusters.len(), 1);
    // A server that founds nothing because it cannot be assigned leaves no cluster behind.
    assert_eq!(w.refused(server("n2", Some("two"))).code, RejectCode::Conflict);
    assert_eq!(w.refused(server("n7", Some("two"))).code, RejectCode::NotFound);
    assert_eq!(w.state.clusters.len(), 1);
}

#[test]
fn a_cluster_is_made_whole_or_not_at_all() {
    let mut w = World::fleet(4);
    let make = |servers: &[&str], workers: &[&str]| {
        Command::CreateCluster(CreateCluster {
            name: name("lab"),
            network: None,
            servers: names(servers),
            workers: names(workers),
        })
    };
    assert_eq!(w.refused(make(&[], &["n1"])).code, RejectCode::Invalid);
    assert_eq!(w.refused(make(&["n1"], &["n1"])).code, RejectCode::Invalid);
    assert_eq!(w.refused(make(&["n1"], &["n8"])).code, RejectCode::NotFound);
    w.ok(make(&["n1", "n2", "n3"], &["n4"]));
    let order: Vec<_> = w.state.servers(w.cluster("lab").id);
    let order: Vec<_> = order.iter().map(|(n, _)| n.name.to_string()).collect();
    assert_eq!(order, ["n1", "n2", "n3"]);
    // Once more is fine; something else under its name is not.
    w.ok(make(&["n1", "n2", "n3"], &["n4"]));
    let other = w.refused(make(&["n1", "n2"], &["n3"]));
    assert_eq!(other.code, RejectCode::Exists);
}

#[test]
fn servers_join_one_at_a_time() {
    let mut w = World::fleet(3);
    w.create("lab", 3, 0);
    let blocked = |w: &World, node: &str| w.state.server_blocked_by(w.cluster("lab"), w.id(node));
    assert_eq!(blocked(&w, "n1"), None);
    assert!(blocked(&w, "n2").unwrap().contains("n1 to found"));
    w.found_cluster("n1");
    assert_eq!(blocked(&w, "n2"), None);
    assert!(blocked(&w, "n3").unwrap().contains("n2 to join first"));
    w.join_cluster("n2");
    assert_eq!(blocked(&w, "n3"), None);
}
