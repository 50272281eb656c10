//! Where VIPs go: losses at once, planned moves make before break, never to a worse holder. Pure.

use super::fixture::{Leader, ms};
use crate::apply::Command;
use crate::apply::tests::fixture::World;
use crate::model::{DrainStep, MoveReason, Phase, Severity};
use crate::plan::{WINDOW, best_candidate, candidates};

const ALL: [&str; 3] = ["n1", "n2", "n3"];

/// Three servers, n1 holds the VIP, all heard and ready.
fn three() -> Leader {
    let mut l = Leader::new(World::lab(3, 1));
    l.hear_for(&ALL, ms(600));
    l.hear(&["n4"], None);
    l
}

fn drained_to(l: &mut Leader, node: &str, step: DrainStep) {
    l.world.ok(World::drain(node, false, true));
    while l.world.node(node).drain.as_ref().unwrap().step < step {
        let d = l.world.node(node).drain.clone().unwrap();
        let report = Command::ReportDrain {
            node: l.world.id(node),
            epoch: d.epoch,
            step: d.step,
            done: true,
            message: None,
        };
        l.world.ok(report);
    }
}

fn moves_to(l: &Leader, to: &str, because: MoveReason) -> bool {
    let id = l.world.id(to);
    matches!(l.plan().as_slice(), [Command::MoveVip { to, reason, .. }] if *to == id && *reason == because)
}

fn prepares(l: &Leader, to: &str, because: MoveReason) -> bool {
    let id = l.world.id(to);
    matches!(l.plan().as_slice(), [Command::PrepareVip { to, reason, .. }] if *to == id && *reason == because)
}

#[test]
fn all_is_well_and_nothing_is_planned() {
    assert_eq!(three().plan(), []);
}

#[test]
fn a_new_leader_plans_nothing_while_it_knows_nothing() {
    let mut l = Leader::new(World::lab(3, 1));
    assert_eq!(l.plan(), []);
    l.now += WINDOW - ms(1);
    assert_eq!(l.plan(), []);
    // Even for a drained holder that is heard: the others may speak up yet.
    drained_to(&mut l, "n1", DrainStep::MoveVip);
    l.hear(&["n1"], Some(true));
    assert_eq!(l.plan(), []);
    // A removed holder is certainly gone, but nobody is known to be better.
    l.world.replace("n1", 21);
    assert_eq!(l.plan(), []);
}

#[test]
fn an_unheard_next_holder_is_not_given_up_before_the_window_is_over() {
    let mut l = three();
    drained_to(&mut l, "n1", DrainStep::MoveVip);
    l.turn();
    let mut fresh = Leader::new(l.world.clone());
    fresh.hear(&["n1", "n3"], Some(true));
    assert_eq!(fresh.plan(), []);
}

#[test]
fn a_loss_moves_at_once_to_the_next_in_join_order() {
    let mut l = three();
    l.hear_for(&["n2", "n3"], WINDOW - ms(100));
    assert_eq!(l.plan(), []);
    l.hear_for(&["n2", "n3"], ms(100));
    assert!(moves_to(&l, "n2", MoveReason::Loss));
    l.turn();
    assert_eq!(l.world.holder(), "n2");
    assert_eq!(l.plan(), []);
    // The lost one comes back and gets nothing back.
    l.hear(&ALL, Some(true));
    assert_eq!(l.plan(), []);
}

#[test]
fn a_lost_or_unready_or_drained_server_is_passed_over() {
    let mut l = three();
    l.hear_for(&["n3"], WINDOW);
    assert!(moves_to(&l, "n3", MoveReason::Loss));
    l.hear(&["n2"], Some(false));
    assert!(moves_to(&l, "n3", MoveReason::Loss));
    l.hear(&["n2"], Some(true));
    l.world.ok(World::drain("n2", false, false));
    assert!(moves_to(&l, "n3", MoveReason::Loss));
    let vip = l.world.vip("lab").clone();
    let said: Vec<_> = candidates(&l.world.state, &vip, &l.seen, l.now)
        .into_iter()
        .map(|c| c.reason.unwrap_or_else(|| "fine".into()))
        .collect();
    assert_eq!(said, ["is not heard of", "is drained", "fine"]);
    let best = best_candidate(&l.world.state, &vip, &l.seen, l.now);
    assert_eq!(best, Some(l.world.id("n3")));
}

#[test]
fn a_drain_makes_before_it_breaks() {
    let mut l = three();
    drained_to(&mut l, "n1", DrainStep::HandOver);
    assert_eq!(l.plan(), [], "not before its turn");
    drained_to_next(&mut l);
    assert!(prepares(&l, "n2", MoveReason::Drain));
    l.turn();
    assert_eq!(l.plan(), [], "n2 has not said that it has the address");
    l.hear_prepared("n2", 0);
    assert_eq!(l.plan(), [], "nor that it is of this generation");
    l.hear_prepared("n2", 1);
    assert!(moves_to(&l, "n2", MoveReason::Drain));
    l.turn();
    assert_eq!((l.world.holder(), l.plan()), ("n2".into(), vec![]));
}

fn drained_to_next(l: &mut Leader) {
    let d = l.world.node("n1").drain.clone().unwrap();
    let report = Command::ReportDrain {
        node: l.world.id("n1"),
        epoch: d.epoch,
        step: d.step,
        done: true,
        message: None,
    };
    l.world.ok(report);
}

#[test]
fn a_holder_lost_in_a_planned_move_loses_it_to_the_planned_one() {
    let mut l = three();
    drained_to(&mut l, "n1", DrainStep::MoveVip);
    l.turn();
    l.hear_for(&["n2", "n3"], WINDOW);
    assert!(moves_to(&l, "n2", MoveReason::Loss));
}

#[test]
fn a_planned_holder_that_drops_out_is_replaced_or_the_plan_is_cancelled() {
    let mut l = three();
    drained_to(&mut l, "n1", DrainStep::MoveVip);
    l.turn();
    l.hear(&["n2"], Some(false));
    assert!(prepares(&l, "n3", MoveReason::Drain));

    let mut l = three();
    let (vip, expect) = (l.world.vip("lab").id, l.world.vip("lab").generation);
    l.world.ok(Command::PrepareVip {
        vip,
        expect,
        to: l.world.id("n2"),
        reason: MoveReason::Manual,
    });
    l.hear(&["n2"], Some(false));
    assert!(prepares(&l, "n1", MoveReason::Manual));
    l.turn();
    assert_eq!(l.world.vip("lab").next, None);
    assert_eq!(l.plan(), []);
}

#[test]
fn a_holder_that_stays_unready_loses_it_to_a_better_one_only() {
    let mut l = three();
    for _ in 0..29 {
        l.now += ms(100);
        l.hear(&["n1"], Some(false));
        l.hear(&["n2", "n3"], Some(true));
        assert_eq!(l.plan(), []);
    }
    l.now += ms(200);
    l.hear(&["n1"], Some(false));
    l.hear(&["n2", "n3"], Some(true));
    assert!(prepares(&l, "n2", MoveReason::Unready));
    l.hear(&["n2", "n3"], Some(false));
    assert_eq!(l.plan(), [], "nobody is better");
    // In a drain too, an unready holder need not wait for the drain's turn.
    l.world.ok(World::drain("n1", false, false));
    l.hear(&["n3"], Some(true));
    assert!(prepares(&l, "n3", MoveReason::Unready));
}

#[test]
fn a_server_that_gives_up_its_role_hands_the_vip_over() {
    let mut l = three();
    l.world.ok(World::unassign("n1"));
    assert!(prepares(&l, "n2", MoveReason::Drain));
}

#[test]
fn a_removed_holder_is_followed_at_once() {
    let mut l = three();
    l.world.replace("n1", 21);
    assert!(moves_to(&l, "n2", MoveReason::Loss));
}

#[test]
fn without_a_candidate_it_is_said_once() {
    let mut l = Leader::new(World::lab(1, 1));
    l.now += WINDOW;
    let planned = l.turn();
    let [Command::Note { kind, severity, .. }] = planned.as_slice() else { panic!("{planned:?}") };
    assert_eq!(kind, "system.sdwan.virtual_ip.failover_failed");
    assert_eq!(*severity, Severity::Critical);
    assert_eq!(l.plan(), []);
}

#[test]
fn a_cluster_without_a_holder_is_left_alone() {
    let mut w = World::fleet(2);
    w.create("lab", 2, 0);
    w.report("n1", Phase::Installing);
    let mut l = Leader::new(w);
    l.now += WINDOW * 4;
    assert_eq!(l.plan(), []);
}
