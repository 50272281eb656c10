//! Who votes: growth by two, replacement before demotion, removal, and a leader that leaves. Pure.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::fixture::{Leader, ms, report};
use crate::apply::Command;
use crate::apply::tests::fixture::{World, founding, name};
use crate::model::{NodeId, TicketRole};
use crate::plan::{Membership, MembershipChange, plan_membership, quorum_needs, voters_wanted};

/// A fleet of nodes n1 to n`count` with a target of `limit` voters, all heard just now.
fn fleet(count: u8, limit: u8) -> Leader {
    let mut w = World::empty();
    let mut f = founding();
    f.voters = limit;
    w.ok(Command::FoundFleet(f));
    for i in 2..=count {
        w.join(&format!("n{i}"), i);
    }
    let mut l = Leader::new(w);
    hear_all(&mut l, &[]);
    l
}

fn hear_all(l: &mut Leader, except: &[&str]) {
    let ids: Vec<NodeId> = l
        .world
        .state
        .nodes
        .values()
        .filter(|n| !except.contains(&n.name.as_str()))
        .map(|n| n.id)
        .collect();
    for id in ids {
        l.seen.report(report(id, None), l.now);
    }
}

fn ids(l: &Leader, nodes: &[&str]) -> BTreeSet<NodeId> {
    nodes.iter().map(|n| l.world.id(n)).collect()
}

fn raft(l: &Leader, voters: &[&str], learners: &[&str]) -> Membership {
    let (voters, learners) = (ids(l, voters), ids(l, learners));
    let all = voters.iter().chain(&learners);
    Membership {
        me: Some(NodeId(1)),
        last_log: 500,
        matched: all.map(|id| (*id, 500)).collect(),
        voters,
        joint: None,
        learners,
    }
}

fn next(l: &Leader, m: &Membership) -> Option<MembershipChange> {
    plan_membership(&l.world.state, m, &l.seen, l.now)
}

fn remove(l: &mut Leader, node: &str) -> NodeId {
    let id = l.world.id(node);
    l.world.ok(Command::RemoveNode { name: name(node), force: true });
    id
}

#[test]
fn the_target_is_odd_and_bounded() {
    let wanted = (1..=8).map(|n| voters_wanted(n, 5));
    assert_eq!(wanted.collect::<Vec<_>>(), [1, 1, 3, 3, 5, 5, 5, 5]);
    assert_eq!(voters_wanted(0, 0), 1);
}

#[test]
fn a_change_that_was_given_up_half_way_is_finished_before_all_else() {
    let l = fleet(4, 3);
    let mut m = raft(&l, &["n1", "n2"], &["n3"]);
    m.joint = Some(ids(&l, &["n2"]));
    // n4 is not even listened to; that comes later.
    assert_eq!(next(&l, &m), Some(MembershipChange::SetVoters(ids(&l, &["n2"]))));
    m.joint = None;
    assert!(matches!(next(&l, &m), Some(MembershipChange::AddLearners(_))));
}

#[test]
fn a_fleet_grows_from_one_to_three_to_five_voters() {
    let l = fleet(2, 5);
    let m = raft(&l, &["n1"], &[]);
    let added = |l: &Leader, names: &[&str]| {
        let of = |name: &&str| (l.world.id(name), l.world.node(name).uuid);
        Some(MembershipChange::AddLearners(names.iter().map(of).collect()))
    };
    assert_eq!(next(&l, &m), added(&l, &["n2"]));
    assert_eq!(next(&l, &raft(&l, &["n1"], &["n2"])), None);

    let l = fleet(5, 5);
    let m = raft(&l, &["n1"], &["n2"]);
    assert_eq!(
        next(&l, &m),
        added(&l, &["n3", "n4", "n5"]),
        "whoever joins at once is added at once"
    );
    let m = raft(&l, &["n1"], &["n2", "n3", "n4", "n5"]);
    let all = ids(&l, &["n1", "n2", "n3", "n4", "n5"]);
    assert_eq!(next(&l, &m), Some(MembershipChange::SetVoters(all)));
    let l = fleet(3, 5);
    let m = raft(&l, &["n1"], &["n2", "n3"]);
    let three = ids(&l, &["n1", "n2", "n3"]);
    assert_eq!(next(&l, &m), Some(MembershipChange::SetVoters(three)));
}

#[test]
fn learners_that_lag_or_are_silent_are_not_promoted() {
    let mut l = fleet(3, 3);
    let mut m = raft(&l, &["n1"], &["n2", "n3"]);
    m.matched.insert(l.world.id("n3"), 400);
    assert_eq!(next(&l, &m), None, "two voters are no better than one");
    m.matched.insert(l.world.id("n3"), 401);
    assert!(next(&l, &m).is_some());
    l.now += ms(500);
    hear_all(&mut l, &["n3"]);
    assert_eq!(next(&l, &m), None);
}

#[test]
fn a_fleet_that_shrinks_never_leaves_the_vote_to_the_dead() {
    // n1 has died a moment ago, n3 leads and was removed: of n1 and n2 one must vote alone.
    let mut l = fleet(3, 5);
    let mut m = raft(&l, &["n1", "n2", "n3"], &[]);
    m.me = Some(l.world.id("n3"));
    remove(&mut l, "n3");
    l.now += ms(600);
    hear_all(&mut l, &["n1"]);
    let n2 = l.world.id("n2");
    assert_eq!(next(&l, &m), Some(MembershipChange::Transfer(n2)));
    m.me = Some(n2);
    assert_eq!(next(&l, &m), Some(MembershipChange::SetVoters(BTreeSet::from([n2]))));
    m.me = Some(NodeId(999));
    l.now += ms(600);
    assert_eq!(next(&l, &m), None, "nobody is heard who could vote");
}

#[test]
fn a_silent_voter_keeps_its_seat_until_another_can_take_it() {
    let mut l = fleet(4, 3);
    let m = raft(&l, &["n1", "n2", "n3"], &["n4"]);
    let quiet = |l: &mut Leader, span: u64, except: &[&str]| {
        for _ in 0..span / 100 {
            l.now += ms(100);
            hear_all(l, except);
        }
    };
    quiet(&mut l, 29_900, &["n3"]);
    assert_eq!(next(&l, &m), None);
    quiet(&mut l, 200, &["n3"]);
    assert_eq!(next(&l, &m), None, "n4 has not been heard for long enough");
    quiet(&mut l, 30_000, &["n3"]);
    let swapped = ids(&l, &["n1", "n2", "n4"]);
    assert_eq!(next(&l, &m), Some(MembershipChange::SetVoters(swapped)));
    quiet(&mut l, 500, &["n3", "n4"]);
    assert_eq!(next(&l, &m), None, "nobody is left to take the seat");
}

#[test]
fn a_leader_that_hears_nothing_of_itself_does_not_depose_itself() {
    let mut l = Leader::new(World::fleet(4));
    for _ in 0..700 {
        l.now += ms(100);
        hear_all(&mut l, &["n1"]);
    }
    let m = raft(&l, &["n1", "n2", "n3"], &["n4"]);
    assert_eq!(next(&l, &m), None);
}

#[test]
fn removed_nodes_leave_and_are_replaced_without_waiting() {
    let mut l = fleet(4, 3);
    let m = raft(&l, &["n1", "n2", "n3"], &["n4"]);
    remove(&mut l, "n3");
    let three = ids(&l, &["n1", "n2", "n4"]);
    assert_eq!(next(&l, &m), Some(MembershipChange::SetVoters(three)));

    let mut l = fleet(3, 3);
    let m = raft(&l, &["n1", "n2", "n3"], &[]);
    remove(&mut l, "n3");
    let one = ids(&l, &["n1"]);
    assert_eq!(next(&l, &m), Some(MembershipChange::SetVoters(one)));

    let mut l = fleet(2, 3);
    let m = raft(&l, &["n1"], &["n2"]);
    let gone = remove(&mut l, "n2");
    assert_eq!(next(&l, &m), Some(MembershipChange::Remove(gone)));
}

#[test]
fn a_leader_that_was_removed_hands_over_first() {
    let mut l = fleet(3, 3);
    let m = raft(&l, &["n1", "n2", "n3"], &[]);
    remove(&mut l, "n1");
    let Some(MembershipChange::Transfer(to)) = next(&l, &m) else { panic!("{:?}", next(&l, &m)) };
    assert!(to == l.world.id("n2") || to == l.world.id("n3"));

    // The only voter has nobody to hand over to: the others are made voters, and elect.
    let mut l = fleet(4, 3);
    let m = raft(&l, &["n1"], &["n2", "n3", "n4"]);
    remove(&mut l, "n1");
    let rest = ids(&l, &["n2", "n3", "n4"]);
    assert_eq!(next(&l, &m), Some(MembershipChange::SetVoters(rest)));
}

#[test]
fn machines_with_a_voters_ticket_and_servers_are_preferred() {
    let mut l = fleet(5, 3);
    l.world.create("lab", 1, 0);
    let assign = World::assign("n5", crate::model::Role::K3sServer, Some("lab"));
    l.world.ok(assign);
    let m = raft(&l, &["n1"], &["n2", "n3", "n4", "n5"]);
    let set = ids(&l, &["n1", "n2", "n5"]);
    assert_eq!(next(&l, &m), Some(MembershipChange::SetVoters(set)));
}

#[test]
fn a_voters_ticket_takes_the_seat_of_who_had_none_once_it_is_settled() {
    let mut l = fleet(4, 3);
    let n4 = l.world.id("n4");
    l.world.state.node_mut(n4).unwrap().ticket_role = TicketRole::Voter;
    let m = raft(&l, &["n1", "n2", "n3"], &["n4"]);
    for _ in 0..599 {
        l.now += ms(100);
        hear_all(&mut l, &[]);
        assert_eq!(next(&l, &m), None, "n4 is not settled");
    }
    l.now += ms(100);
    hear_all(&mut l, &[]);
    let swapped = ids(&l, &["n1", "n2", "n4"]);
    assert_eq!(next(&l, &m), Some(MembershipChange::SetVoters(swapped)));
    // Whoever leads keeps its seat, so that no preference costs an election.
    let mut led = raft(&l, &["n1", "n2", "n3"], &["n4"]);
    led.me = Some(l.world.id("n3"));
    let swapped = ids(&l, &["n1", "n3", "n4"]);
    assert_eq!(next(&l, &led), Some(MembershipChange::SetVoters(swapped)));
    // Nobody yields to a machine that is not heard.
    l.now += ms(500);
    hear_all(&mut l, &["n4"]);
    assert_eq!(next(&l, &m), None);
}

fn asked_to_vote(l: &mut Leader, nodes: &[&str]) {
    for id in ids(l, nodes) {
        l.world.state.node_mut(id).unwrap().ticket_role = TicketRole::Voter;
    }
}

/// Lets time pass in which all others are heard.
fn pass(l: &mut Leader, seconds: u64, except: &[&str]) {
    for _ in 0..seconds * 10 {
        l.now += ms(100);
        hear_all(l, except);
    }
}

#[test]
fn a_newcomer_takes_a_free_seat_and_nobodys_before_it_is_settled() {
    let mut l = fleet(5, 3);
    asked_to_vote(&mut l, &["n4", "n5"]);
    let m = raft(&l, &["n1", "n2", "n3"], &["n4", "n5"]);
    pass(&mut l, 10, &[]);
    remove(&mut l, "n3");
    let free = ids(&l, &["n1", "n2", "n4"]);
    assert_eq!(next(&l, &m), Some(MembershipChange::SetVoters(free)));
    pass(&mut l, 50, &[]);
    let all = ids(&l, &["n1", "n4", "n5"]);
    assert_eq!(next(&l, &m), Some(MembershipChange::SetVoters(all)));
}

#[test]
fn a_free_seat_is_first_for_who_is_settled() {
    let mut l = fleet(5, 3);
    asked_to_vote(&mut l, &["n4", "n5"]);
    let m = raft(&l, &["n1", "n2", "n3"], &["n4", "n5"]);
    pass(&mut l, 40, &["n4"]);
    pass(&mut l, 22, &[]);
    remove(&mut l, "n3");
    // With n4 in the free seat, n5 would have taken that of n2, though n4 has just come.
    let settled = ids(&l, &["n1", "n2", "n5"]);
    assert_eq!(next(&l, &m), Some(MembershipChange::SetVoters(settled)));
}

#[test]
fn a_leader_that_leaves_hands_over_before_seats_are_given_away() {
    let mut l = fleet(6, 3);
    asked_to_vote(&mut l, &["n4", "n5", "n6"]);
    let m = raft(&l, &["n1", "n2", "n3"], &["n4", "n5", "n6"]);
    pass(&mut l, 61, &[]);
    remove(&mut l, "n1");
    let handed = next(&l, &m);
    let voters = ["n2", "n3"].map(|n| Some(MembershipChange::Transfer(l.world.id(n))));
    assert!(voters.contains(&handed), "{handed:?}");
}

#[test]
fn an_odd_number_is_kept_without_losing_who_asked_to_vote() {
    let mut l = fleet(5, 5);
    asked_to_vote(&mut l, &["n5"]);
    // n4 never comes up, so that four could vote, and three do.
    let m = raft(&l, &["n1", "n2", "n3"], &["n4", "n5"]);
    pass(&mut l, 61, &["n4"]);
    let set = ids(&l, &["n1", "n2", "n5"]);
    assert_eq!(next(&l, &m), Some(MembershipChange::SetVoters(set)));
}

/// How many of these members are heard.
fn there(l: &Leader, of: &BTreeSet<NodeId>) -> usize {
    let live = |id: &NodeId| {
        l.world.state.nodes.contains_key(id)
            && l.seen.health(*id, l.now) == crate::plan::Health::Live
    };
    of.iter().filter(|id| live(id)).count()
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(1024) })]

    /// Whatever is heard of whom, changes come to an end, and no step leaves an even number of voters.
    #[test]
    fn membership_settles_and_stays_odd(
        limit in prop::sample::select(vec![1u8, 3, 5]),
        silent in prop::collection::vec(any::<bool>(), 8),
        voting in prop::collection::vec(any::<bool>(), 8),
        removed in prop::collection::vec(prop::bool::weighted(0.2), 8),
        asked in prop::collection::vec(any::<bool>(), 8),
        young in prop::collection::vec(any::<bool>(), 8),
        lag in prop::collection::vec(0u64..200, 8),
    ) {
        let mut l = fleet(8, limit);
        let all: Vec<NodeId> = l.world.state.nodes.keys().copied().collect();
        for (id, _) in all.iter().zip(&asked).skip(1).filter(|(_, a)| **a) {
            l.world.state.node_mut(*id).unwrap().ticket_role = TicketRole::Voter;
        }
        let names: Vec<String> =
            l.world.state.nodes.values().map(|n| n.name.to_string()).collect();
        let quiet: Vec<&str> = names.iter().zip(&silent).skip(1)
            .filter(|(_, s)| **s).map(|(n, _)| n.as_str()).collect();
        let newcomers: BTreeSet<NodeId> =
            all.iter().zip(&young).skip(1).filter(|(_, y)| **y).map(|(id, _)| *id).collect();
        let absent: Vec<&str> = names.iter().zip(&all)
            .filter(|(_, id)| newcomers.contains(id)).map(|(n, _)| n.as_str())
            .chain(quiet.iter().copied()).collect();
        pass(&mut l, 40, &absent);
        pass(&mut l, 22, &quiet);
        let mut m = raft(&l, &["n1"], &[]);
        m.voters.extend(all.iter().zip(&voting).filter(|(_, v)| **v).map(|(id, _)| *id));
        if m.voters.len().is_multiple_of(2) {
            let last = *m.voters.last().unwrap();
            m.voters.remove(&last);
        }
        m.learners = all.iter().copied().filter(|id| !m.voters.contains(id)).collect();
        m.matched = all.iter().zip(&lag).map(|(id, lag)| (*id, 500 - lag)).collect();
        for (n, _) in names.iter().zip(&removed).skip(1).filter(|(_, r)| **r) {
            remove(&mut l, n);
        }
        for _ in 0..20 {
            let Some(change) = next(&l, &m) else {
                let wanted = voters_wanted(l.world.state.nodes.len(), limit);
                if there(&l, &m.voters) * 2 <= wanted {
                    // Nothing could be agreed on.
                    return Ok(());
                }
                prop_assert!(m.voters.len() <= wanted);
                prop_assert!(m.voters.iter().all(|v| l.world.state.nodes.contains_key(v)));
                return Ok(());
            };
            match change {
                MembershipChange::SetVoters(set) => {
                    prop_assert!(set.len() % 2 == 1, "{:?}", set);
                    prop_assert!(there(&l, &set) * 2 > set.len(), "{:?} are dead", set);
                    let dropped = m.voters.difference(&set);
                    let members: Vec<_> = dropped
                        .filter(|id| l.world.state.nodes.contains_key(id)).collect();
                    let wanted = voters_wanted(l.world.state.nodes.len(), limit);
                    let gone = m.voters.iter().any(|v| !l.world.state.nodes.contains_key(v));
                    prop_assert!(
                        members.is_empty() || set.len() >= m.voters.len() || gone
                            || m.voters.len() > wanted,
                        "{:?} lost a voter without need: {:?}", m.voters, set
                    );
                    // Who is heard and may stay yields to nobody who has just come.
                    let newer = set.difference(&m.voters).filter(|id| newcomers.contains(id));
                    let heard = m.voters.difference(&set).filter(|id| {
                        l.world.state.nodes.contains_key(id)
                            && l.seen.health(**id, l.now) == crate::plan::Health::Live
                    });
                    prop_assert!(
                        newer.count() == 0 || heard.count() == 0,
                        "{:?} became {:?}, of whom {:?} have just come", m.voters, set, newcomers
                    );
                    m.learners.extend(m.voters.difference(&set));
                    m.learners.retain(|id| !set.contains(id));
                    m.voters = set;
                }
                MembershipChange::Remove(id) => {
                    prop_assert!(m.learners.remove(&id));
                }
                other => prop_assert!(false, "{other:?}"),
            }
        }
        prop_assert!(false, "never settles: {:?}", m);
    }
}

#[test]
fn a_removed_voter_is_heard_until_its_vote_is_gone() {
    let mut l = fleet(4, 3);
    let (one, all) = (ids(&l, &["n1"]), ids(&l, &["n1", "n2", "n3"]));
    let with_successor = ids(&l, &["n1", "n2"]);
    let uuid = l.world.node("n1").uuid;
    let learner = l.world.node("n4").uuid;
    assert!(!quorum_needs(&l.world.state, &one, uuid), "a member needs no exception");
    let other = l.world.node("n3").uuid;
    remove(&mut l, "n1");
    remove(&mut l, "n4");
    assert!(quorum_needs(&l.world.state, &one, uuid), "nobody else could end its vote");
    assert!(quorum_needs(&l.world.state, &with_successor, uuid));
    assert!(quorum_needs(&l.world.state, &all, uuid), "of the other two one may be dead");
    let without = ids(&l, &["n2", "n3"]);
    assert!(!quorum_needs(&l.world.state, &without, uuid), "its vote is gone");
    assert!(!quorum_needs(&l.world.state, &one, learner), "a learner has no vote to end");
    remove(&mut l, "n3");
    assert!(quorum_needs(&l.world.state, &all, uuid) && quorum_needs(&l.world.state, &all, other));
}
