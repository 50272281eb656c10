//! From an assignment to a working member: events in order, one founder, pod ranges. Pure.

use super::fixture::{ENDPOINT, World, name, names};
use crate::apply::{Command, CreateCluster, RejectCode};
use crate::model::{ClusterStatus, Phase, Role};

#[test]
fn a_clean_bootstrap_tells_its_story_in_order() {
    let mut w = World::fleet(1);
    let mark = w.state.events.last();
    w.create("lab", 1, 0);
    assert_eq!(w.cluster("lab").status, ClusterStatus::Pending);
    w.report("n1", Phase::Installing);
    assert_eq!(w.cluster("lab").status, ClusterStatus::Bootstrapping);
    w.report("n1", Phase::Bootstrapped);
    assert_eq!(w.cluster("lab").status, ClusterStatus::Bootstrapping);
    w.report("n1", Phase::Ready);
    assert_eq!(w.cluster("lab").status, ClusterStatus::Active);
    assert_eq!(
        w.kinds(mark),
        [
            "k3s.module.assigned",
            "k3s.runtime.installing",
            "k3s.handshake.bootstrap",
            "sdwan.virtual_ip.allocated",
            "k3s.cluster.bootstrapped",
            "k3s.handshake.ready",
        ]
    );
    let cluster = w.cluster("lab");
    assert_eq!(cluster.endpoint.as_deref(), Some(ENDPOINT));
    assert_eq!(cluster.version.as_deref(), Some("v1.34.1+k3s1"));
    let allocated = w.state.events.after(mark).nth(3).unwrap();
    assert_eq!(allocated.payload["purpose"], "k3s_api_endpoint");
    assert_eq!(allocated.payload["holder"], "n1");
    assert_eq!(allocated.payload["cluster"], "lab");
    let all = serde_json::to_string(&w.state.events).unwrap();
    assert!(!all.contains("CQkJCQkJCQk="), "an event tells a secret");
}

#[test]
fn a_join_tells_its_story_in_order() {
    let mut w = World::fleet(2);
    w.create("lab", 1, 0);
    w.found_cluster("n1");
    let mark = w.state.events.last();
    w.ok(World::assign("n2", Role::K3sAgent, Some("lab")));
    w.join_cluster("n2");
    assert_eq!(
        w.kinds(mark),
        [
            "k3s.module.assigned",
            "k3s.runtime.installing",
            "k3s.handshake.join_request",
            "k3s.handshake.join_token_issued",
            "k3s.handshake.ready",
        ]
    );
}

#[test]
fn a_worker_that_asked_early_gets_its_token_when_the_cluster_is_active() {
    let mut w = World::fleet(2);
    w.create("lab", 1, 1);
    w.report("n2", Phase::JoinRequested);
    let mark = w.state.events.last();
    w.report("n1", Phase::Installing);
    w.report("n1", Phase::Bootstrapped);
    assert!(!w.kinds(mark).contains(&"k3s.handshake.join_token_issued"));
    w.report("n1", Phase::Ready);
    let last = w.kinds(mark).pop().map(str::to_owned);
    assert_eq!(last.as_deref(), Some("k3s.handshake.join_token_issued"));
}

#[test]
fn the_vip_is_reserved_at_creation_without_an_event() {
    let mut w = World::fleet(1);
    let mark = w.state.events.last();
    w.create("lab", 1, 0);
    let vip = w.vip("lab");
    assert_eq!(vip.address.v6.to_string(), "fd5e:1:2:1::100");
    assert_eq!((vip.holder, vip.generation.0), (None, 0));
    assert_eq!(vip.name, name("lab-api"));
    assert_eq!(w.kinds(mark), ["k3s.module.assigned"]);
    assert!(w.state.vip_named("k3s_api_endpoint").is_some());
}

#[test]
fn only_one_server_founds() {
    let mut w = World::fleet(2);
    w.create("lab", 2, 0);
    w.report("n2", Phase::Installing);
    assert_eq!(w.cluster("lab").status, ClusterStatus::Pending);
    let second = w.phase("n2", Phase::Bootstrapped);
    assert_eq!(w.refused(second.clone()).code, RejectCode::Conflict);
    w.found_cluster("n1");
    assert_eq!(w.refused(second).code, RejectCode::Conflict);
    assert_eq!(w.holder(), "n1");
}

#[test]
fn a_bootstrap_without_its_secrets_is_refused() {
    let mut w = World::fleet(1);
    w.create("lab", 1, 0);
    let Command::ReportPhase(mut r) = w.phase("n1", Phase::Bootstrapped) else { unreachable!() };
    r.secrets = None;
    assert_eq!(w.refused(Command::ReportPhase(r.clone())).code, RejectCode::Conflict);
    // Even a founder that says it is ready first can hand them in later.
    w.report("n1", Phase::Ready);
    assert_ne!(w.cluster("lab").status, ClusterStatus::Active);
    w.report("n1", Phase::Bootstrapped);
    w.report("n1", Phase::Ready);
    assert_eq!(w.cluster("lab").status, ClusterStatus::Active);
}

#[test]
fn an_active_cluster_and_a_ready_member_never_go_back() {
    let mut w = World::lab(2, 1);
    let before = w.cluster("lab").clone();
    for phase in [Phase::Assigned, Phase::Installing, Phase::Bootstrapped, Phase::JoinRequested] {
        for node in ["n1", "n2", "n3"] {
            let mark = w.state.events.last();
            w.report(node, phase);
            assert_eq!(w.role(node).phase, Phase::Ready);
            assert!(w.kinds(mark).is_empty());
        }
    }
    assert_eq!(*w.cluster("lab"), before);
    w.report("n1", Phase::Failed);
    w.report("n1", Phase::Installing);
    assert_eq!(w.cluster("lab").status, ClusterStatus::Active);
}

#[test]
fn ready_is_told_again_only_for_another_version() {
    let mut w = World::lab(1, 0);
    let mark = w.state.events.last();
    w.report("n1", Phase::Ready);
    assert!(w.kinds(mark).is_empty());
    let Command::ReportPhase(mut r) = w.phase("n1", Phase::Ready) else { unreachable!() };
    r.version = Some("v1.34.2+k3s1".into());
    w.ok(Command::ReportPhase(r));
    assert_eq!(w.kinds(mark), ["k3s.handshake.ready"]);
    assert_eq!(w.role("n1").version.as_deref(), Some("v1.34.2+k3s1"));
}

#[test]
fn reports_about_an_earlier_assignment_are_ignored() {
    let mut w = World::fleet(1);
    w.create("lab", 1, 0);
    let Command::ReportPhase(mut r) = w.phase("n1", Phase::Installing) else { unreachable!() };
    r.order -= 1;
    let mark = w.state.events.last();
    w.ok(Command::ReportPhase(r));
    assert_eq!(w.role("n1").phase, Phase::Assigned);
    assert!(w.kinds(mark).is_empty());
}

#[test]
fn pod_ranges_are_facts_by_compare_and_set() {
    let mut w = World::lab(1, 1);
    let first = w.pods("n1", 0, &["10.42.0.7/24"]);
    w.ok(first.clone());
    let shown = w.role("n1").pods.cidrs[0].to_string();
    assert_eq!(shown, "10.42.0.0/24", "host bits have no meaning");
    assert_eq!(w.role("n1").pods.generation.0, 1);
    assert_eq!(w.refused(first).code, RejectCode::Stale);
    let outside = w.pods("n2", 0, &["10.90.0.0/24"]);
    assert_eq!(w.refused(outside).code, RejectCode::Invalid);
    let clash = w.pods("n2", 0, &["10.42.1.0/24", "10.42.0.128/25"]);
    assert_eq!(w.refused(clash).code, RejectCode::Conflict);
    let fine = w.pods("n2", 0, &["10.42.1.0/24", "fd5e:1:2:8001::/64"]);
    w.ok(fine);
    // The same ranges again change nothing.
    let same = w.pods("n1", 1, &["10.42.0.0/24"]);
    w.ok(same);
    assert_eq!(w.role("n1").pods.generation.0, 1);
}

#[test]
fn clusters_get_ranges_apart_from_each_other_and_from_the_overlay() {
    let mut w = World::fleet(3);
    for (cluster, node) in [("a", "n1"), ("b", "n2"), ("c", "n3")] {
        w.ok(Command::CreateCluster(CreateCluster {
            name: name(cluster),
            network: None,
            servers: names(&[node]),
            workers: vec![],
        }));
    }
    let shown: Vec<_> = ["a", "b", "c"].map(|c| w.cluster(c).pods[0].to_string()).into();
    assert_eq!(shown, ["10.42.0.0/16", "10.44.0.0/16", "10.46.0.0/16"]);
    assert_eq!(w.cluster("a").services[0].to_string(), "10.43.0.0/16");
}
