//! Clocks that are wrong. Pure.

use std::collections::BTreeMap;

use super::fixture::{Leader, ms, report};
use crate::apply::tests::fixture::World;
use crate::model::{NodeId, UnixMillis};
use crate::plan::{clock_offsets, fleet_offset};

const HOUR: i64 = 3_600_000;
const NOW: i64 = 1_764_000_000_000;

/// Hears nodes of a fleet whose clocks are off by so many milliseconds, one 30 ms after the other.
fn heard(members: u8, off: &[(&str, i64)]) -> Leader {
    let mut leader = Leader::new(World::fleet(members));
    for (i, (node, off)) in off.iter().enumerate() {
        let id = leader.world.id(node);
        let mut r = report(id, None);
        let passed = 30 * i64::try_from(i).unwrap();
        r.wall = Some(UnixMillis(u64::try_from(NOW + passed + off).unwrap()));
        leader.seen.report(r, leader.now);
        leader.now += ms(30);
    }
    leader
}

fn offsets(leader: &Leader, me: &str) -> BTreeMap<NodeId, i64> {
    clock_offsets(&leader.world.state, &leader.seen, leader.world.id(me), leader.now)
}

fn fleet(leader: &Leader, me: &str) -> Option<i64> {
    fleet_offset(&offsets(leader, me), leader.world.state.nodes.len())
}

#[test]
fn one_wrong_clock_of_three_stamps_nothing_even_when_it_leads() {
    let leader = heard(3, &[("n1", HOUR), ("n2", 3), ("n3", 0)]);
    assert_eq!(fleet(&leader, "n1"), Some(3 - HOUR));
    assert_eq!(fleet(&leader, "n2"), Some(0));
    assert_eq!(fleet(&leader, "n3"), Some(3));
    assert_eq!(offsets(&leader, "n2")[&leader.world.id("n1")], HOUR - 3);
}

#[test]
fn of_two_clocks_the_leaders_counts_and_without_any_its_own() {
    let leader = heard(2, &[("n1", -HOUR), ("n2", 0)]);
    assert_eq!((fleet(&leader, "n1"), fleet(&leader, "n2")), (Some(0), Some(0)));
    let leader = heard(3, &[("n1", HOUR), ("n2", 0)]);
    assert_eq!(fleet(&leader, "n3"), None, "it has not reported itself yet");
    assert_eq!(
        fleet(&heard(3, &[("n1", HOUR)]), "n1"),
        None,
        "a new leader knows its own clock only"
    );
    assert_eq!(fleet_offset(&BTreeMap::new(), 0), None);
}

#[test]
fn clocks_of_the_lost_the_removed_and_of_strangers_do_not_count() {
    let mut leader = heard(3, &[("n3", HOUR)]);
    leader.now += ms(600);
    for node in ["n1", "n2"] {
        let mut r = report(leader.world.id(node), None);
        r.wall = Some(UnixMillis(u64::try_from(NOW + 630).unwrap()));
        leader.seen.report(r, leader.now);
    }
    let mut stranger = report(NodeId(99), None);
    stranger.wall = Some(UnixMillis(7));
    leader.seen.report(stranger, leader.now);
    assert_eq!(offsets(&leader, "n1").len(), 2, "n3 is lost, 99 is nobody");
    assert_eq!(fleet(&leader, "n1"), Some(0));
}

#[test]
fn nonsense_clocks_never_panic() {
    let mut leader = heard(4, &[("n1", 0)]);
    for (node, wall) in [("n2", u64::MAX), ("n3", 0), ("n4", u64::MAX / 2)] {
        let mut r = report(leader.world.id(node), None);
        r.wall = Some(UnixMillis(wall));
        leader.seen.report(r, leader.now);
    }
    assert!(fleet(&leader, "n1").unwrap().abs() <= NOW);
    fleet(&leader, "n4");
}
