//! Drains: the order of steps, the guards, and the way back. Pure.

use super::fixture::World;
use crate::apply::{Change, Command, RejectCode, drain_guard};
use crate::model::{DrainStep, Phase};

fn step_done(w: &World, node: &str, step: DrainStep) -> Command {
    let n = w.node(node);
    Command::ReportDrain {
        node: n.id,
        epoch: n.drain.as_ref().unwrap().epoch,
        step,
        done: true,
        message: None,
    }
}

fn step(w: &World, node: &str) -> DrainStep {
    w.node(node).drain.as_ref().unwrap().step
}

fn finish(w: &mut World, node: &str, at: DrainStep) {
    let report = step_done(w, node, at);
    w.ok(report);
}

#[test]
fn the_steps_follow_each_other_and_the_vip_leaves_before_the_pods() {
    let mut w = World::lab(3, 1);
    let mark = w.state.events.last();
    w.ok(World::drain("n1", true, false));
    finish(&mut w, "n1", DrainStep::Cordon);
    finish(&mut w, "n1", DrainStep::Cordon);
    assert_eq!(step(&w, "n1"), DrainStep::HandOver, "a late report counts once");
    finish(&mut w, "n1", DrainStep::HandOver);
    finish(&mut w, "n1", DrainStep::MoveVip);
    assert_eq!(step(&w, "n1"), DrainStep::MoveVip, "it holds the VIP still");
    let go = w.move_vip("n2");
    w.ok(go);
    finish(&mut w, "n1", DrainStep::MoveVip);
    finish(&mut w, "n1", DrainStep::Evict);
    assert_eq!(step(&w, "n1"), DrainStep::Stop);
    finish(&mut w, "n1", DrainStep::Stop);
    assert_eq!(step(&w, "n1"), DrainStep::Done);
    finish(&mut w, "n1", DrainStep::Done);
    assert_eq!(
        w.kinds(mark),
        ["instance.drain_initiated", "sdwan.virtual_ip.failover_completed", "instance.drained",]
    );
}

#[test]
fn without_stop_the_eviction_is_the_last_step() {
    let mut w = World::lab(2, 1);
    w.ok(World::drain("n3", false, false));
    for at in [DrainStep::Cordon, DrainStep::HandOver, DrainStep::MoveVip, DrainStep::Evict] {
        assert_eq!(step(&w, "n3"), at);
        finish(&mut w, "n3", at);
    }
    assert_eq!(step(&w, "n3"), DrainStep::Done);
}

#[test]
fn a_drain_asked_for_twice_is_one_drain() {
    let mut w = World::lab(3, 0);
    let Change::Drain { epoch } = w.ok(World::drain("n1", false, false)) else { unreachable!() };
    assert_eq!(w.ok(World::drain("n1", false, false)), Change::Drain { epoch });
    // To stop as well is more than was asked for: it starts anew, and late reports do not count.
    let old = step_done(&w, "n1", DrainStep::Cordon);
    let again = w.ok(World::drain("n1", true, false));
    assert_ne!(again, Change::Drain { epoch });
    w.ok(old);
    assert_eq!(step(&w, "n1"), DrainStep::Cordon);
    assert_eq!(w.ok(World::drain("n1", false, false)), again);
}

#[test]
fn a_drain_that_leaves_no_holder_is_refused_unless_forced() {
    let mut one = World::lab(1, 1);
    let r = one.refused(World::drain("n1", false, false));
    assert_eq!(r.code, RejectCode::Guarded);
    assert!(r.next.contains("skein drain n1 --force"), "{}", r.next);
    one.ok(World::drain("n2", false, false));
    one.ok(World::drain("n1", false, true));

    let mut two = World::lab(2, 0);
    two.ok(World::drain("n2", false, false));
    let r = two.refused(World::drain("n1", false, false));
    assert_eq!(r.code, RejectCode::Guarded);

    // A server that is not ready cannot take the VIP either, nor one that is silent.
    let mut unready = World::lab(2, 0);
    unready.report("n2", Phase::Failed);
    assert_eq!(unready.refused(World::drain("n1", false, false)).code, RejectCode::Guarded);
    let w = World::lab(2, 0);
    let (n1, n2) = (w.id("n1"), w.id("n2"));
    assert!(drain_guard(&w.state, n1, false, &|_| true).is_ok());
    assert!(drain_guard(&w.state, n1, false, &|id| id != n2).is_err());
}

#[test]
fn stopping_never_takes_the_quorum_of_etcd_unless_forced() {
    let mut one = World::lab(1, 0);
    assert_eq!(one.refused(World::drain("n1", true, false)).code, RejectCode::Guarded);
    let mut two = World::lab(2, 0);
    for node in ["n1", "n2"] {
        let r = two.refused(World::drain(node, true, false));
        assert_eq!(r.code, RejectCode::Guarded);
        assert!(r.why.contains("needs 2") && r.why.contains("have 1"), "{r}");
    }
    two.ok(World::drain("n2", true, true));
    let mut three = World::lab(3, 0);
    three.ok(World::drain("n1", true, false));
    for node in ["n2", "n3"] {
        let r = three.refused(World::drain(node, true, false));
        assert_eq!(r.code, RejectCode::Guarded);
    }
    three.ok(World::drain("n3", false, false));
    three.ok(World::undrain("n1"));
}

#[test]
fn failed_servers_count_as_members_of_etcd() {
    let mut w = World::lab(5, 0);
    w.report("n4", Phase::Failed);
    w.report("n5", Phase::Failed);
    let r = w.refused(World::drain("n3", true, false));
    assert!(r.why.contains("needs 3") && r.why.contains("have 2"), "{r}");
}

#[test]
fn a_forced_drain_ends_although_nobody_takes_the_vip() {
    let mut w = World::lab(1, 0);
    w.ok(World::drain("n1", false, true));
    for at in [DrainStep::Cordon, DrainStep::HandOver, DrainStep::MoveVip, DrainStep::Evict] {
        finish(&mut w, "n1", at);
    }
    assert_eq!(step(&w, "n1"), DrainStep::Done);
    assert_eq!(w.holder(), "n1");

    // Where a taker exists on paper, its time is awaited first.
    let mut w = World::lab(2, 0);
    w.ok(World::drain("n1", false, true));
    finish(&mut w, "n1", DrainStep::Cordon);
    finish(&mut w, "n1", DrainStep::HandOver);
    finish(&mut w, "n1", DrainStep::MoveVip);
    assert_eq!(step(&w, "n1"), DrainStep::MoveVip);
    w.now += 60_000;
    finish(&mut w, "n1", DrainStep::MoveVip);
    assert_eq!(step(&w, "n1"), DrainStep::Evict);
}

#[test]
fn undrain_does_not_take_the_vip_back_but_keeps_what_is_held() {
    let mut w = World::lab(3, 0);
    w.ok(World::drain("n1", false, false));
    let go = w.move_vip("n2");
    w.ok(go);
    w.ok(World::undrain("n1"));
    assert_eq!(w.holder(), "n2");
    assert!(w.node("n1").drain.is_none());
    let mark = w.state.events.last();
    w.ok(World::undrain("n1"));
    assert!(w.kinds(mark).is_empty());

    w.ok(World::drain("n2", false, false));
    let (vip, expect) = (w.vip("lab").id, w.vip("lab").generation);
    w.ok(Command::PrepareVip {
        vip,
        expect,
        to: w.id("n3"),
        reason: crate::model::MoveReason::Drain,
    });
    w.ok(World::undrain("n2"));
    assert_eq!(w.vip("lab").next, None);
    assert_eq!(w.holder(), "n2");
}

#[test]
fn unknown_nodes_and_stale_epochs() {
    let mut w = World::lab(2, 0);
    assert_eq!(w.refused(World::drain("n9", false, false)).code, RejectCode::NotFound);
    assert_eq!(w.refused(World::undrain("n9")).code, RejectCode::NotFound);
    w.ok(World::drain("n2", false, false));
    let old = step_done(&w, "n2", DrainStep::Cordon);
    w.ok(World::undrain("n2"));
    w.ok(World::drain("n2", false, false));
    w.ok(old);
    assert_eq!(step(&w, "n2"), DrainStep::Cordon);
}
