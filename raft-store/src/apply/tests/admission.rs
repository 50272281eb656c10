//! Founding, tickets, admission, replacement and refusal of nodes. Pure.

use super::fixture::{World, founding, key, machine, name};
use crate::apply::{Change, Command, Outcome, RejectCode};
use crate::model::{Digest, FOUNDER, Phase, Role, Sealed, State, TicketId, TicketRole, UnixMillis};

#[test]
fn nothing_works_before_the_founding_and_there_is_one_only() {
    let mut w = World::empty();
    let early = w.refused(World::undrain("n1"));
    assert_eq!(early.code, RejectCode::Fleet);
    assert_eq!(w.ok(Command::FoundFleet(founding())), Change::Node { id: FOUNDER });
    assert_eq!(w.node("n1").key_box, Some(Sealed(vec![4, 5])));
    assert_eq!(w.refused(Command::FoundFleet(founding())).code, RejectCode::Fleet);
}

#[test]
fn a_refused_founding_leaves_nothing_behind() {
    let bad_pool = |pool: &str| {
        let mut f = founding();
        f.ipv4_pool = pool.parse().unwrap();
        f
    };
    let mut even = founding();
    even.voters = 2;
    let mut wide = founding();
    wide.ula = "fd5e::/32".parse().unwrap();
    let mut public = founding();
    public.ula = "2001:db8:1::/48".parse().unwrap();
    let pools = ["10.90.0.0/31", "10.90.0.0/32", "10.0.0.0/8", "0.0.0.0/0"];
    for f in pools.map(bad_pool).into_iter().chain([even, wide, public]) {
        let mut w = World::empty();
        assert_eq!(w.refused(Command::FoundFleet(f)).code, RejectCode::Invalid);
        assert!(w.state.fleet.is_none() && w.state.networks.is_empty());
        w.ok(Command::FoundFleet(founding()));
    }
}

#[test]
fn each_refused_ticket_has_its_own_code() {
    let mut w = World::fleet(1);
    let ticket = w.ticket(1);
    let enter = |t, seed| World::admit(t, machine(&format!("m{seed}"), seed), None);
    assert_eq!(w.refused(enter(TicketId(999), 50)).code, RejectCode::TicketUnknown);
    let guessed = Command::AdmitNode {
        ticket,
        digest: Digest::of(b"a guess"),
        node: machine("m50", 50),
        replaces: None,
    };
    assert_eq!(w.refused(guessed).code, RejectCode::TicketUnknown);
    w.ok(enter(ticket, 51));
    assert_eq!(w.refused(enter(ticket, 52)).code, RejectCode::TicketUsed);

    let ticket = w.ticket(5);
    w.ok(Command::RevokeTicket { id: ticket });
    assert_eq!(w.refused(enter(ticket, 53)).code, RejectCode::TicketRevoked);

    let ticket = w.ticket(5);
    w.now += 3_600_001;
    let late = w.refused(enter(ticket, 54));
    assert_eq!(late.code, RejectCode::TicketExpired);
    assert!(late.why.starts_with("it expired"), "{late}");
    let unknown = Command::RevokeTicket { id: TicketId(999) };
    assert_eq!(w.refused(unknown).code, RejectCode::NotFound);
}

#[test]
fn tickets_must_be_usable() {
    let mut w = World::fleet(1);
    let ticket = |uses, expires| Command::CreateTicket {
        digest: Digest::of(b"x"),
        role: TicketRole::Voter,
        network: None,
        expires: UnixMillis(expires),
        uses,
    };
    let later = w.now + 60_000;
    assert_eq!(w.refused(ticket(0, later)).code, RejectCode::Invalid);
    assert_eq!(w.refused(ticket(1001, later)).code, RejectCode::Invalid);
    assert_eq!(w.refused(ticket(1, w.now)).code, RejectCode::Invalid);
}

#[test]
fn a_repeated_request_is_answered_with_the_first_outcome() {
    let mut w = World::fleet(1);
    let ticket = w.ticket(1);
    let enter = World::admit(ticket, machine("n2", 2), None);
    let first = w.run_as(77, enter.clone());
    let Outcome::Done { change } = first else { panic!("{first:?}") };
    let hash = w.state.hash();
    let again = w.run_as(77, enter.clone());
    assert_eq!(again, Outcome::Duplicate { change });
    // Even another command under the same request is not carried out.
    let other = w.run_as(77, World::drain("n2", false, false));
    assert_eq!(other, again);
    assert_eq!(w.state.hash(), hash);

    let refused = w.run_as(78, World::admit(ticket, machine("n3", 3), None));
    assert!(matches!(refused, Outcome::Rejected { .. }));
    assert_eq!(w.run_as(78, World::admit(ticket, machine("n3", 3), None)), refused);
}

#[test]
fn outcomes_are_forgotten_oldest_first() {
    let mut w = World::fleet(1);
    let box_ = || Command::HandKey { node: FOUNDER, key_box: Sealed(vec![]) };
    let mut state: State = w.state.clone();
    for i in 0..4_200u128 {
        let p = w.propose(10_000 + i, box_());
        crate::apply::apply(&mut state, 100 + i as u64, &p);
    }
    assert_eq!(state.requests.len(), crate::model::requests::REMEMBERED);
    let newest = w.propose(14_199, box_());
    assert!(state.requests.get(&newest.request).is_some());
    w.state = state;
    assert!(matches!(w.run_as(10_000, box_()), Outcome::Done { .. }));
}

#[test]
fn an_admission_asked_for_again_stands_even_when_the_ticket_is_used_up() {
    let mut w = World::fleet(1);
    let ticket = w.ticket(1);
    let first = w.ok(World::admit(ticket, machine("n2", 2), None));
    w.now += 7_200_000;
    assert_eq!(w.ok(World::admit(ticket, machine("n2", 2), None)), first);
    assert_eq!(w.state.nodes.len(), 2);
    // The keys alone are public: without the ticket's secret they admit nobody.
    let thief = Command::AdmitNode {
        ticket,
        digest: Digest::of(b"a guess"),
        node: machine("n2", 2),
        replaces: None,
    };
    assert_eq!(w.refused(thief).code, RejectCode::TicketUnknown);
    w.ok(Command::RevokeTicket { id: ticket });
    let again = World::admit(ticket, machine("n2", 2), None);
    assert_eq!(w.refused(again).code, RejectCode::TicketRevoked);
}

#[test]
fn names_and_keys_that_are_taken_are_refused() {
    let mut w = World::fleet(2);
    let ticket = w.ticket(9);
    let namesake = w.refused(World::admit(ticket, machine("n2", 30), None));
    assert_eq!(namesake.code, RejectCode::Exists);
    assert!(namesake.next.contains("--replaces n2"), "{}", namesake.next);
    let copied = w.refused(World::admit(ticket, machine("n9", 2), None));
    assert_eq!(copied.code, RejectCode::Exists);
    w.ok(Command::AddDevice { network: name("default"), name: name("phone"), key: key(40) });
    let as_device = w.refused(World::admit(ticket, machine("n9", 40), None));
    assert_eq!(as_device.code, RejectCode::Exists);
    assert_eq!(w.state.tickets[&ticket].uses_left, 9);
    let nobody = World::admit(ticket, machine("n9", 41), Some("n8"));
    assert_eq!(w.refused(nobody).code, RejectCode::NotFound);
}

#[test]
fn a_replacement_inherits_the_role_afresh_and_leaves_a_ghost() {
    let mut w = World::lab(3, 1);
    let old = w.id("n2");
    let pods = w.pods("n2", 0, &["10.42.1.0/24"]);
    w.ok(pods);
    let ticket = w.ticket(1);
    w.ok(World::admit(ticket, machine("n2", 22), Some("n2")));
    assert_ne!(w.id("n2"), old);
    let role = w.role("n2").clone();
    assert_eq!(role.role, Role::K3sServer);
    assert_eq!(role.phase, Phase::Assigned);
    assert!(role.pods.cidrs.is_empty() && role.version.is_none());
    assert_eq!(w.ghosts("lab"), [name("n2")]);
    // It waits for its ghost, and joins last.
    let (cluster, node) = (w.cluster("lab"), w.node("n2"));
    let why = w.state.member_blocked_by(cluster, node).unwrap();
    assert!(why.contains("former n2"), "{why}");
    let id = w.cluster("lab").id;
    w.ok(Command::ForgetGhost { cluster: id, name: name("n2") });
    let (cluster, node) = (w.cluster("lab"), w.node("n2"));
    assert_eq!(w.state.member_blocked_by(cluster, node), None);
    let last = w.state.servers(id).last().map(|(n, _)| n.name.clone());
    assert_eq!(last, Some(name("n2")));
    w.join_cluster("n2");
}

#[test]
fn a_role_that_was_being_given_up_is_not_inherited() {
    let mut w = World::lab(3, 1);
    w.ok(World::unassign("n2"));
    w.replace("n2", 22);
    assert_eq!(w.node("n2").assignment, None);
}

#[test]
fn a_replacement_may_take_another_name_but_not_the_old_identity() {
    let mut w = World::lab(3, 1);
    let ticket = w.ticket(3);
    let mut reborn = machine("n4", 4);
    reborn.wireguard = key(44);
    let refused = w.refused(World::admit(ticket, reborn, Some("n4")));
    assert_eq!(refused.code, RejectCode::Exists);
    w.ok(World::admit(ticket, machine("n5", 45), Some("n4")));
    assert_eq!(w.role("n5").role, Role::K3sAgent);
    assert_eq!(w.ghosts("lab"), [name("n4")]);
}

#[test]
fn a_removed_node_is_refused_for_ever() {
    let mut w = World::fleet(3);
    let uuid = w.node("n3").uuid;
    w.ok(Command::RemoveNode { name: name("n3"), force: false });
    assert!(w.state.is_retired(uuid) && w.state.node_by_uuid(uuid).is_none());
    let ticket = w.ticket(1);
    let back = w.refused(World::admit(ticket, machine("n3", 3), None));
    assert_eq!(back.code, RejectCode::Exists);
    w.ok(World::admit(ticket, machine("n3", 33), None));
}

#[test]
fn members_with_a_role_and_the_last_node_are_not_removed_lightly() {
    let mut w = World::lab(3, 1);
    let remove = |node, force| Command::RemoveNode { name: name(node), force };
    assert_eq!(w.refused(remove("n2", false)).code, RejectCode::Guarded);
    assert_eq!(w.refused(remove("n7", true)).code, RejectCode::NotFound);
    for node in ["n2", "n3", "n4"] {
        w.ok(remove(node, true));
    }
    assert_eq!(w.refused(remove("n1", true)).code, RejectCode::Guarded);
}

#[test]
fn operators_come_and_go() {
    let mut w = World::fleet(1);
    let serial = uuid::Uuid::from_u128(5);
    w.ok(Command::AdmitOperator { name: name("ada"), serial });
    assert_eq!(w.state.operators[&name("ada")].serial, serial);
    let remove = || Command::RemoveOperator { name: name("ada") };
    w.ok(remove());
    assert_eq!(w.refused(remove()).code, RejectCode::NotFound);
}
