//! How patient etcd is made. Pure.

use proptest::prelude::*;

use super::fixture::{Leader, report};
use crate::apply::Command;
use crate::apply::tests::fixture::World;
use crate::model::EtcdTimers;
use crate::plan::{Pace, etcd_timers};

#[test]
fn timers_follow_the_slower_of_network_and_disk_up_to_k3s_own() {
    let chosen = |rtt_us, sync_us| {
        let t = etcd_timers(rtt_us, Some(sync_us));
        (t.heartbeat_ms, t.election_ms)
    };
    assert_eq!(chosen(0, 0), (100, 1_000));
    assert_eq!(chosen(66_000, 99_000), (100, 1_000));
    assert_eq!(chosen(67_000, 5_000), (150, 1_500));
    assert_eq!(chosen(1_000, 180_000), (200, 2_000));
    assert_eq!(chosen(150_000, 5_000), (300, 3_000));
    assert_eq!(chosen(260_000, 5_000), (400, 4_000));
    assert_eq!(chosen(300_000, 5_000), EtcdTimers::K3S);
    assert_eq!(chosen(9_000_000, 5_000), EtcdTimers::K3S);
    let unmeasured = etcd_timers(0, None);
    assert!(unmeasured.are_k3s_own());
}

proptest! {
    #[test]
    fn etcd_starts_with_any_and_none_is_less_patient_than_it_should_be(rtt: u32, sync: Option<u32>) {
        let t = etcd_timers(rtt, sync);
        prop_assert!(t.are_valid());
        let (heartbeat_us, election_us) = (u64::from(t.heartbeat_ms) * 1_000, u64::from(t.election_ms) * 1_000);
        if !t.are_k3s_own() {
            prop_assert!(heartbeat_us + 1_000 >= u64::from(rtt) * 3 / 2);
            prop_assert!(election_us >= 10 * u64::from(rtt) && election_us >= 10 * u64::from(sync.unwrap_or(0)));
        }
        prop_assert!((100..=500).contains(&t.heartbeat_ms));
    }
}

fn paced(leader: &mut Leader, node: &str, trips: &[(&str, u32)], sync_us: Option<u32>) {
    let id = leader.world.id(node);
    let rtt_us = trips.iter().map(|(to, us)| (leader.world.id(to), *us)).collect();
    let mut r = report(id, None);
    r.pace = Some(Pace { rtt_us, sync_us });
    leader.seen.report(r, leader.now);
}

fn decided(leader: &Leader) -> Option<EtcdTimers> {
    leader.plan().into_iter().find_map(|c| match c {
        Command::SetEtcdTimers { timers, .. } => Some(timers),
        _ => None,
    })
}

#[test]
fn the_slowest_of_all_servers_counts_and_only_the_founder_is_waited_for() {
    let mut world = World::fleet(4);
    world.create("lab", 2, 0);
    let mut leader = Leader::new(world);
    paced(&mut leader, "n2", &[("n1", 120_000)], Some(3_000));
    assert_eq!(decided(&leader), None, "the founder has not measured yet");
    paced(&mut leader, "n1", &[("n2", 90_000), ("n4", 400_000)], Some(8_000));
    let timers = decided(&leader).unwrap();
    assert_eq!((timers.rtt_us, timers.sync_us), (120_000, Some(8_000)), "n4 is no server");
    assert_eq!(timers.heartbeat_ms, 200);
    for command in leader.plan() {
        leader.world.ok(command);
    }
    assert_eq!(leader.world.cluster("lab").etcd, Some(timers));
    paced(&mut leader, "n1", &[("n2", 1_000)], Some(1_000));
    assert_eq!(decided(&leader), None, "decided once");
}

#[test]
fn a_server_that_nobody_reached_leaves_k3s_own_timers() {
    let mut world = World::fleet(3);
    world.create("lab", 3, 0);
    let mut leader = Leader::new(world);
    paced(&mut leader, "n1", &[("n2", 1_000)], Some(2_000));
    assert!(decided(&leader).unwrap().are_k3s_own(), "nobody knows how far n3 is");
    paced(&mut leader, "n3", &[("n1", 1_500)], Some(2_000));
    assert_eq!(decided(&leader).unwrap().heartbeat_ms, 100, "n3 knows");
}

#[test]
fn timers_of_a_founded_cluster_are_never_changed_and_bad_ones_are_refused() {
    let mut w = World::fleet(3);
    w.create("lab", 3, 0);
    w.bring_up("lab");
    let cluster = w.cluster("lab").id;
    let set = |heartbeat_ms, election_ms| Command::SetEtcdTimers {
        cluster,
        timers: EtcdTimers { heartbeat_ms, election_ms, rtt_us: 0, sync_us: None },
    };
    w.ok(set(100, 1_000));
    assert_eq!(w.cluster("lab").etcd, None, "it runs with K3s' own");
    for (heartbeat, election) in [(0, 1_000), (300, 1_400), (100, 50_001), (u32::MAX, u32::MAX)] {
        let refused = w.refused(set(heartbeat, election));
        assert!(refused.why.contains("heartbeat"), "{refused}");
    }
}
