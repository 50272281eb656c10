//! Stores that form a fleet: elections, forwarding, snapshots, restarts and changes of the membership.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use std::collections::BTreeSet;
use std::time::Duration;

use common::{Fleet, PATIENCE, Wire, eventually, note, times_applied, uuid_of};
use raft_store::apply::Outcome;
use raft_store::disk::OpenError;
use raft_store::raft::{ProposeError, ReadError, Store, StoreError, kind};
use tokio::time::{Instant, sleep};

/// What a caller may have to wait until it hears that there is no quorum.
const FAST: Duration = Duration::from_millis(4_800);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_write_on_a_follower_is_everywhere() {
    let fleet = Fleet::of(3).await;
    let leader = fleet.leader().await.status().id;
    let follower = fleet.store(if leader == 3 { 2 } else { 3 });
    let (index, outcome) = follower.propose(&note(1, 10), PATIENCE).await.unwrap();
    assert!(matches!(outcome, Outcome::Done { .. }), "{outcome:?}");
    assert_eq!(times_applied(&follower.state(), 1), 1, "the writer reads its own write");
    for store in fleet.stores() {
        let read = store.read_linear(PATIENCE).await.unwrap();
        assert!(read.index >= index);
        assert_eq!(times_applied(&read.state, 1), 1);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_retry_is_applied_once() {
    let fleet = Fleet::of(3).await;
    let leader = fleet.leader().await.status().id;
    let follower = fleet.store(if leader == 3 { 2 } else { 3 });
    // The leader carries the write out, but its answer gets lost.
    fleet.lose_answers(kind::PROPOSE, 1);
    let (index, outcome) = follower.propose(&note(1, 10), PATIENCE).await.unwrap();
    assert!(matches!(outcome, Outcome::Duplicate { .. }), "{outcome:?}");
    assert_eq!(times_applied(&*fleet.settled(index).await, 1), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writes_go_on_when_the_leader_dies_and_none_is_lost_or_doubled() {
    let fleet = Fleet::of(3).await;
    let old = fleet.leader().await.status().id;
    let via = fleet.store(if old == 3 { 2 } else { 3 });
    let writes = async {
        let mut last = 0;
        for number in 0..60 {
            last = fleet.write(&via, &note(number, 10)).await.0;
        }
        last
    };
    let death = async {
        sleep(Duration::from_millis(60)).await;
        fleet.kill(old).await;
    };
    let (last, ()) = futures::join!(writes, death);
    let state = fleet.settled(last).await;
    for number in 0..60 {
        assert_eq!(times_applied(&state, number), 1, "write {number}");
    }
    assert_ne!(fleet.leader().await.status().id, old);
    fleet.start(old).await;
    fleet.settled(last).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn five_nodes_bear_the_loss_of_two() {
    let fleet = Fleet::of(5).await;
    let leader = fleet.leader().await.status().id;
    let other = if leader == 5 { 4 } else { 5 };
    fleet.kill(leader).await;
    fleet.kill(other).await;
    let via = fleet.stores()[0].clone();
    let (index, _) = fleet.write(&via, &note(1, 10)).await;
    assert_eq!(times_applied(&*fleet.settled(index).await, 1), 1);
}

/// Makes a snapshot and drops the log up to `index`, once replication lets go of it.
async fn snapshot_and_purge(store: &Store<Wire>, index: u64) {
    store.snapshot().await.unwrap();
    eventually("the snapshot", || (store.status().snapshot >= index).then_some(())).await;
    let until = Instant::now() + PATIENCE;
    while store.status().purged < index {
        assert!(Instant::now() < until, "the log is not purged");
        store.purge(index).await.unwrap();
        sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_follower_far_behind_is_given_a_snapshot() {
    let fleet = Fleet::of(3).await;
    let leader = fleet.leader().await;
    let behind = if leader.status().id == 3 { 2 } else { 3 };
    fleet.kill(behind).await;
    let mut last = 0;
    for number in 0..80 {
        last = fleet.write(&leader, &note(number, 10_000)).await.0;
    }
    snapshot_and_purge(&leader, last).await;
    let carried = fleet.carried(kind::SNAPSHOT);
    fleet.start(behind).await;
    let state = fleet.settled(last).await;
    assert!((0..80).all(|number| times_applied(&state, number) == 1));
    assert!(fleet.carried(kind::SNAPSHOT) >= carried + 3, "it came in several pieces");
    // What was installed is on its disk: alone, it still knows it after a restart.
    fleet.kill(behind).await;
    let again = fleet.start(behind).await;
    assert_eq!(times_applied(&again.state(), 0), 1);
    fleet.settled(last).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fleet_that_was_off_comes_back_with_everything() {
    let fleet = Fleet::of(3).await;
    let leader = fleet.leader().await;
    let mut last = 0;
    for number in 0..20 {
        last = fleet.write(&leader, &note(number, 10)).await.0;
        if number == 10 {
            leader.snapshot().await.unwrap();
        }
    }
    drop(leader);
    let before = fleet.settled(last).await;
    for id in 1..=3 {
        fleet.kill(id).await;
    }
    for id in 1..=3 {
        fleet.start(id).await;
    }
    fleet.leader().await;
    assert_eq!(fleet.settled(last).await, before);
    let (index, _) = fleet.write(&fleet.store(2), &note(20, 10)).await;
    assert!(index > last);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wiped_node_comes_back_under_a_new_id_and_the_old_one_is_removed() {
    let fleet = Fleet::of(3).await;
    let leader = fleet.leader().await;
    let id = leader.status().id;
    let lost = if id == 3 { 2 } else { 3 };
    fleet.kill(lost).await;
    fleet.write(&leader, &note(1, 10)).await;
    fleet.start(30).await;
    leader.add_learners([(30, uuid_of(30))].into()).await.unwrap();
    let voters: BTreeSet<u64> = (1..=3).filter(|n| *n != lost).chain([30]).collect();
    leader.set_voters(voters.clone()).await.unwrap();
    leader.remove_learner(lost).await.unwrap();
    let status = leader.status();
    assert_eq!((status.voters, status.learners), (voters, BTreeSet::new()));
    let (index, _) = fleet.write(&fleet.store(30), &note(2, 10)).await;
    assert_eq!(times_applied(&*fleet.settled(index).await, 1), 1);
    // The removed one wakes up again, does not know that it is out, and must not disturb the others.
    let term = leader.status().term;
    let ghost = fleet.start(lost).await;
    sleep(Duration::from_millis(1_500)).await;
    assert_eq!((leader.status().term, leader.status().leader), (term, Some(id)));
    assert_eq!(times_applied(&ghost.state(), 2), 0, "nothing is replicated to it");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_quorum_calls_fail_fast_and_reads_of_old_state_go_on() {
    let fleet = Fleet::of(3).await;
    let leader = fleet.leader().await;
    fleet.write(&leader, &note(1, 10)).await;
    fleet.settled(leader.status().applied).await;
    let id = leader.status().id;
    let others: Vec<u64> = (1..=3).filter(|n| *n != id).collect();
    fleet.kill(others[0]).await;
    fleet.kill(others[1]).await;
    let begun = Instant::now();
    let refused = leader.propose(&note(2, 10), PATIENCE).await.unwrap_err();
    assert!(begun.elapsed() < FAST, "{:?}", begun.elapsed());
    let (ProposeError::NoQuorum { voters, missing } | ProposeError::NoLeader { voters, missing }) =
        &refused
    else {
        panic!("{refused}");
    };
    assert_eq!((voters, missing), (&vec![1, 2, 3], &others), "{refused}");
    let begun = Instant::now();
    let refused = leader.read_linear(PATIENCE).await.unwrap_err();
    assert!(begun.elapsed() < FAST, "{:?}", begun.elapsed());
    assert!(
        matches!(refused, ReadError::NoQuorum { .. } | ReadError::NoLeader { .. }),
        "{refused}"
    );
    assert_eq!(times_applied(&leader.state(), 1), 1);
    // A follower alone says the same.
    fleet.kill(id).await;
    let alone = fleet.start(others[0]).await;
    let begun = Instant::now();
    let refused = alone.propose(&note(3, 10), PATIENCE).await.unwrap_err();
    assert!(begun.elapsed() < FAST, "{:?}", begun.elapsed());
    assert!(
        matches!(refused, ProposeError::NoQuorum { .. } | ProposeError::NoLeader { .. }),
        "{refused}"
    );
    assert_eq!(times_applied(&alone.state(), 1), 1);
    // With the others back, everything goes on.
    fleet.start(others[1]).await;
    fleet.start(id).await;
    let (index, _) = fleet.write(&alone, &note(4, 10)).await;
    assert_eq!(times_applied(&*fleet.settled(index).await, 4), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_is_cut_off_serves_no_fresh_read_and_falls_in_line_again() {
    let fleet = Fleet::of(3).await;
    let old = fleet.leader().await;
    let id = old.status().id;
    let others: Vec<u64> = (1..=3).filter(|n| *n != id).collect();
    for other in &others {
        fleet.cut(id, *other);
        fleet.cut(*other, id);
    }
    let via = fleet.store(others[0]);
    let (index, _) = fleet.write(&via, &note(1, 10)).await;
    assert!(old.read_linear(Duration::from_secs(5)).await.is_err());
    assert_eq!(times_applied(&old.state(), 1), 0);
    fleet.heal();
    let state = fleet.settled(index).await;
    assert_eq!(times_applied(&state, 1), 1);
    assert!(old.read_linear(PATIENCE).await.unwrap().index >= index);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_hears_nothing_does_not_disturb_the_leader() {
    let fleet = Fleet::of(3).await;
    let leader = fleet.leader().await;
    let (id, term) = (leader.status().id, leader.status().term);
    let deaf = if id == 3 { 2 } else { 3 };
    for other in (1..=3).filter(|n| *n != deaf) {
        fleet.cut(other, deaf);
    }
    sleep(Duration::from_secs(2)).await;
    assert_eq!((leader.status().leader, leader.status().term), (Some(id), term));
    fleet.heal();
    let (index, _) = fleet.write(&leader, &note(1, 10)).await;
    fleet.settled(index).await;
    assert_eq!((leader.status().leader, leader.status().term), (Some(id), term));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_learner_that_never_answers_harms_nobody() {
    let fleet = Fleet::of(3).await;
    let leader = fleet.leader().await;
    let term = leader.status().term;
    leader.add_learners([(99, uuid_of(99))].into()).await.unwrap();
    assert_eq!(leader.status().learners, BTreeSet::from([99]));
    sleep(Duration::from_secs(1)).await;
    for number in 0..10 {
        fleet.write(&leader, &note(number, 10)).await;
    }
    assert_eq!((leader.status().leader, leader.status().term), (Some(leader.status().id), term));
    leader.remove_learner(99).await.unwrap();
    assert!(leader.status().learners.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leadership_can_be_handed_over() {
    let fleet = Fleet::of(3).await;
    let leader = fleet.leader().await;
    let next = leader.status().id % 3 + 1;
    leader.transfer_leader(next).await.unwrap();
    eventually("the new leader", || {
        (fleet.store(next).status().leader == Some(next)).then_some(())
    })
    .await;
    let (index, _) = fleet.write(&leader, &note(1, 10)).await;
    fleet.settled(index).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn founding_twice_changes_nothing() {
    let fleet = Fleet::of(1).await;
    let store = fleet.store(1);
    let before = store.status();
    store.found(uuid_of(1)).await.unwrap();
    assert_eq!((store.status().voters, store.status().term), (before.voters, before.term));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_follower_names_who_is_missing() {
    let fleet = Fleet::of(3).await;
    let leader = fleet.leader().await.status().id;
    let others: Vec<u64> = (1..=3).filter(|n| *n != leader).collect();
    fleet.kill(leader).await;
    fleet.kill(others[1]).await;
    let begun = Instant::now();
    let refused = fleet.store(others[0]).propose(&note(1, 10), PATIENCE).await.unwrap_err();
    assert!(begun.elapsed() < FAST, "{:?}", begun.elapsed());
    let ProposeError::NoLeader { missing, .. } = &refused else { panic!("{refused}") };
    assert_eq!(*missing, (1..=3).filter(|n| *n != others[0]).collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_membership_change_on_a_follower_or_beside_another_is_refused() {
    let fleet = Fleet::of(3).await;
    let leader = fleet.leader().await.status().id;
    let follower = fleet.store(if leader == 3 { 2 } else { 3 });
    let refused = follower.set_voters([1].into()).await.unwrap_err();
    assert!(matches!(refused, ProposeError::NotLeader), "{refused}");
    // Somebody who is no member at all cannot be made a voter.
    let refused = fleet.store(leader).set_voters([1, 2, 77].into()).await.unwrap_err();
    assert!(matches!(refused, ProposeError::Refused(_)), "{refused}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_without_a_whole_snapshot_does_not_come_back_with_half_a_state() {
    let fleet = Fleet::of(1).await;
    let store = fleet.store(1);
    let mut last = 0;
    for number in 0..10 {
        last = fleet.write(&store, &note(number, 10)).await.0;
    }
    snapshot_and_purge(&store, last).await;
    let snapshots = fleet.dir(1).join("store/snap");
    let file = eventually("the snapshot", || {
        let mut names = std::fs::read_dir(&snapshots).unwrap().map(|e| e.unwrap().path());
        names.find(|p| p.extension().is_some_and(|x| x == "snap"))
    })
    .await;
    drop(store);
    fleet.kill(1).await;
    let mut bytes = std::fs::read(&file).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(&file, bytes).unwrap();
    let refused = fleet.try_start(1).await.err().expect("it must not start");
    let StoreError::Open(OpenError::Damaged { quarantine, .. }) = &refused else {
        panic!("{refused}")
    };
    assert!(quarantine.join("snap").is_dir());
    let refused = fleet.try_start(1).await.err().expect("it must never start empty");
    assert!(matches!(refused, StoreError::Open(OpenError::Retired { .. })), "{refused}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn large_entries_travel_in_frames_of_a_bounded_size() {
    let fleet = Fleet::of(3).await;
    let leader = fleet.leader().await;
    let behind = if leader.status().id == 3 { 2 } else { 3 };
    fleet.kill(behind).await;
    let mut last = 0;
    for number in 0..30 {
        last = fleet.write(&leader, &note(number, 150_000)).await.0;
    }
    fleet.start(behind).await;
    let state = fleet.settled(last).await;
    assert!((0..30).all(|number| times_applied(&state, number) == 1));
    assert_eq!(fleet.carried(kind::SNAPSHOT), 0);
    assert!(fleet.largest() < 1_500_000, "{} bytes", fleet.largest());
    let refused = leader.propose(&note(99, 3_000_000), PATIENCE).await.unwrap_err();
    assert!(matches!(refused, ProposeError::Refused(_)), "{refused}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_follower_still_gets_its_entries() {
    let fleet = Fleet::of(3).await;
    let leader = fleet.leader().await;
    let term = leader.status().term;
    fleet.slow_down(Duration::from_millis(200));
    let mut last = 0;
    for number in 0..4 {
        last = leader.propose(&note(number, 5_000), PATIENCE).await.unwrap().0;
    }
    assert_eq!(times_applied(&*fleet.settled(last).await, 3), 1);
    assert_eq!(leader.status().term, term);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_gives_its_vote_away_to_the_only_other_voter_that_is_left() {
    let fleet = Fleet::of(3).await;
    let leader = fleet.leader().await;
    let me = leader.status().id;
    let others: Vec<u64> = (1..=3).filter(|id| *id != me).collect();
    fleet.kill(others[1]).await;
    let stays = fleet.store(others[0]);
    leader.set_voters(BTreeSet::from([others[0]])).await.unwrap();
    eventually("the other leads alone", || {
        (stays.status().leader == Some(others[0])).then_some(())
    })
    .await;
    stays.propose(&note(1, 10), PATIENCE).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fleet_that_is_late_is_not_one_without_a_quorum() {
    const LATE: Duration = Duration::from_secs(3);
    let fleet = Fleet::of(3).await;
    let leader = fleet.leader().await;
    let id = leader.status().id;
    let follower = fleet.store(id % 3 + 1);
    let late = async {
        fleet.slow_down(LATE);
        fleet.lose_answers(kind::READ_INDEX, u32::MAX);
        sleep(LATE).await;
        fleet.slow_down(Duration::ZERO);
        fleet.lose_answers(kind::READ_INDEX, 0);
    };
    let write = note(1, 2_000);
    let (written, read, ()) =
        tokio::join!(leader.propose(&write, PATIENCE), follower.read_linear(PATIENCE), late);
    written.unwrap();
    read.unwrap();
    let read = follower.read_linear(PATIENCE).await.unwrap();
    assert_eq!(times_applied(&read.state, 1), 1);
}
