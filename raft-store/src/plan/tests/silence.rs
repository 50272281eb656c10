//! Silent nodes are told of, once; the leader wakes when silence begins to matter. Pure.

use super::fixture::{Leader, ms, report};
use crate::apply::Command;
use crate::apply::tests::fixture::World;
use crate::plan::{Health, WINDOW};

fn kinds(commands: &[Command]) -> Vec<&str> {
    let notes = commands.iter().map(|c| match c {
        Command::Note { kind, .. } => kind.as_str(),
        other => panic!("{other:?}"),
    });
    notes.collect()
}

#[test]
fn three_minutes_of_silence_are_told_once_and_so_is_the_return() {
    let mut l = Leader::new(World::fleet(2));
    l.hear_for(&["n1", "n2"], ms(500));
    l.hear_for(&["n1"], ms(179_900));
    assert_eq!(l.plan(), []);
    l.hear_for(&["n1"], ms(200));
    assert_eq!(kinds(&l.turn()), ["system.instance_silent"]);
    assert_eq!(l.plan(), []);
    l.hear(&["n2"], None);
    assert_eq!(kinds(&l.turn()), ["system.instance_recovered"]);
    assert_eq!(l.plan(), []);
}

#[test]
fn a_new_leader_waits_a_window_before_it_calls_anybody_lost() {
    let mut l = Leader::new(World::fleet(2));
    let id = l.world.id("n2");
    assert_eq!(l.seen.health(id, l.now), Health::Unknown);
    l.now += WINDOW;
    assert_eq!(l.seen.health(id, l.now), Health::Lost);
    l.seen.report(report(id, None), l.now);
    assert_eq!(l.seen.health(id, l.now), Health::Live);
    l.now += WINDOW;
    assert_eq!(l.seen.health(id, l.now), Health::Lost);
}

#[test]
fn a_gap_starts_the_time_of_being_heard_anew_and_readiness_ends_unreadiness() {
    let mut l = Leader::new(World::fleet(1));
    let id = l.world.id("n1");
    let first = l.now;
    l.hear(&["n1"], Some(false));
    l.now += ms(100);
    l.hear(&["n1"], Some(false));
    let seen = l.seen.seen(id).unwrap();
    assert_eq!((seen.live_since, seen.unready_since), (first, Some(first)));
    l.now += WINDOW;
    l.hear(&["n1"], Some(true));
    let seen = l.seen.seen(id).unwrap();
    assert_eq!((seen.live_since, seen.unready_since), (l.now, None));
}

#[test]
fn the_next_time_to_wake_is_never_past() {
    let mut l = Leader::new(World::fleet(2));
    let start = l.now;
    assert_eq!(l.seen.next_wake(l.now), Some(start + WINDOW));
    l.hear(&["n1"], None);
    let mut wakes = 0;
    while let Some(t) = l.seen.next_wake(l.now) {
        assert!(t > l.now);
        l.now = t;
        wakes += 1;
        assert!(wakes < 20, "it never comes to rest");
    }
    assert!(l.now >= start + ms(180_000));
}
