//! Clocks that are wrong. Pure.

use std::collections::BTreeMap;

use super::fixture::{Leader, ms, report};
use crate::apply::tests::fixture::World;
use crate::model::UnixMillis;
use crate::plan::{clock_offsets, fleet_offset};

const HOUR: i64 = 3_600_000;
const NOW: i64 = 1_764_000_000_000;

/// Hears nodes whose clocks are off by so many milliseconds, one 30 ms after the other.
fn heard(off: &[(&str, i64)]) -> Leader {
    let mut leader = Leader::new(World::fleet(5));
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

fn fleet(leader: &Leader, me: &str) -> i64 {
    fleet_offset(&clock_offsets(&leader.seen, leader.world.id(me)))
}

#[test]
fn one_wrong_clock_of_three_stamps_nothing_even_when_it_leads() {
    let leader = heard(&[("n1", HOUR), ("n2", 3), ("n3", 0)]);
    assert_eq!(fleet(&leader, "n1"), 3 - HOUR);
    assert_eq!(fleet(&leader, "n2"), 0);
    assert_eq!(fleet(&leader, "n3"), 3);
    let offsets = clock_offsets(&leader.seen, leader.world.id("n2"));
    assert_eq!(offsets[&leader.world.id("n1")], HOUR - 3);
}

#[test]
fn of_two_clocks_the_leaders_counts_and_without_any_its_own() {
    let leader = heard(&[("n1", -HOUR), ("n2", 0)]);
    assert_eq!((fleet(&leader, "n1"), fleet(&leader, "n2")), (0, 0));
    assert_eq!(fleet(&leader, "n3"), 0, "it has not reported itself yet");
    assert_eq!(fleet_offset(&BTreeMap::new()), 0);
}

#[test]
fn nonsense_clocks_never_panic() {
    let mut leader = heard(&[("n1", 0)]);
    for (node, wall) in [("n2", u64::MAX), ("n3", 0), ("n4", u64::MAX / 2)] {
        let mut r = report(leader.world.id(node), None);
        r.wall = Some(UnixMillis(wall));
        leader.seen.report(r, leader.now);
    }
    assert!(fleet(&leader, "n1").abs() <= NOW);
    fleet(&leader, "n4");
}
