//! VIPs: compare-and-set, eligible holders only, history. Pure.

use super::fixture::World;
use crate::apply::{Command, RejectCode};
use crate::model::cluster::HISTORY;
use crate::model::{Generation, MoveReason, NodeId, Phase, Role, VipId};

fn prepare(w: &World, to: &str) -> Command {
    let vip = w.vip("lab");
    Command::PrepareVip {
        vip: vip.id,
        expect: vip.generation,
        to: w.id(to),
        reason: MoveReason::Manual,
    }
}

#[test]
fn a_move_is_a_compare_and_set() {
    let mut w = World::lab(3, 1);
    assert_eq!((w.holder(), w.vip("lab").generation.0), ("n1".into(), 1));
    let (to_n2, to_n3) = (w.move_vip("n2"), w.move_vip("n3"));
    w.ok(to_n2.clone());
    assert_eq!((w.holder(), w.vip("lab").generation.0), ("n2".into(), 2));
    assert_eq!(w.refused(to_n3).code, RejectCode::Stale);
    assert_eq!(w.refused(to_n2).code, RejectCode::Stale);
    assert_eq!(w.holder(), "n2");
    let gone = Command::MoveVip {
        vip: VipId(999),
        expect: Generation(0),
        to: NodeId(1),
        reason: MoveReason::Manual,
    };
    assert_eq!(w.refused(gone).code, RejectCode::NotFound);
}

#[test]
fn only_an_eligible_server_gets_it() {
    let mut w = World::lab(3, 1);
    let worker = w.move_vip("n4");
    assert_eq!(w.refused(worker).code, RejectCode::Conflict);
    w.ok(World::drain("n2", false, false));
    let drained = w.move_vip("n2");
    assert_eq!(w.refused(drained).code, RejectCode::Conflict);
    w.report("n3", Phase::Stopped);
    let stopped = prepare(&w, "n3");
    let r = w.refused(stopped);
    assert!(r.why.contains("its k3s is stopped"), "{r}");
    w.report("n3", Phase::Ready);
    let fine = w.move_vip("n3");
    w.ok(fine);
    w.ok(World::undrain("n2"));
    w.ok(World::unassign("n2"));
    let leaving = w.move_vip("n2");
    assert_eq!(w.refused(leaving).code, RejectCode::Conflict);
}

#[test]
fn nobody_holds_it_before_the_bootstrap() {
    let mut w = World::fleet(2);
    w.create("lab", 2, 0);
    w.report("n2", Phase::Ready);
    for command in [w.move_vip("n2"), prepare(&w, "n2")] {
        assert_eq!(w.refused(command).code, RejectCode::Conflict);
    }
}

#[test]
fn a_prepared_move_is_finished_overtaken_or_cancelled() {
    let mut w = World::lab(3, 0);
    let p = prepare(&w, "n2");
    w.ok(p);
    assert_eq!(w.vip("lab").next.map(|n| n.node), Some(w.id("n2")));
    assert_eq!(w.holder(), "n1", "nobody lets go yet");
    let keep = prepare(&w, "n1");
    w.ok(keep);
    assert_eq!(w.vip("lab").next, None, "the present holder stays");

    let p = prepare(&w, "n2");
    w.ok(p);
    let p = prepare(&w, "n3");
    w.ok(p);
    let go = w.move_vip("n3");
    w.ok(go);
    assert_eq!((w.holder(), w.vip("lab").next), ("n3".into(), None));

    // The holder keeps it even if it could not be given it now.
    let p = prepare(&w, "n1");
    w.ok(p);
    w.ok(World::drain("n3", false, false));
    let keep = prepare(&w, "n3");
    w.ok(keep);
    assert_eq!(w.vip("lab").next, None);
}

#[test]
fn a_removed_node_is_no_longer_the_next_holder() {
    let mut w = World::lab(3, 0);
    let p = prepare(&w, "n2");
    w.ok(p);
    w.replace("n2", 22);
    assert_eq!(w.vip("lab").next, None);
}

#[test]
fn the_history_is_kept_and_bounded() {
    let mut w = World::lab(2, 0);
    for i in 0..60 {
        let go = w.move_vip(if i % 2 == 0 { "n2" } else { "n1" });
        w.ok(go);
    }
    let vip = w.vip("lab");
    assert_eq!(vip.history.len(), HISTORY);
    assert_eq!(vip.generation.0, 61);
    assert_eq!(vip.history.last().unwrap().generation, vip.generation);
    assert_eq!(w.kinds(0).last(), Some(&"sdwan.virtual_ip.failover_completed"));
}

#[test]
fn clusters_of_one_network_have_addresses_of_their_own() {
    let mut w = World::fleet(2);
    w.ok(World::assign("n1", Role::K3sServer, Some("lab")));
    w.ok(World::assign("n2", Role::K3sServer, Some("two")));
    assert_ne!(w.vip("lab").address, w.vip("two").address);
    assert!(w.state.vip_named("k3s_api_endpoint").is_none());
    let freed = w.vip("lab").address;
    w.ok(World::unassign("n1"));
    w.report("n1", Phase::Stopped);
    w.ok(World::assign("n1", Role::K3sServer, Some("three")));
    assert_eq!(w.vip("three").address, freed, "the lowest free one is taken");
}
