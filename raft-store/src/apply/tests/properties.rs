//! Whatever is asked in whatever order, the invariants hold and replicas stay equal. Pure.

use std::collections::BTreeMap;

use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;

use super::fixture::World;
use super::generator::{aim, command};
use crate::apply::codec::{decode_proposal, decode_state, encode_proposal, encode_state};
use crate::apply::{Command, Outcome, apply};
use crate::model::Phase;

fn config() -> ProptestConfig {
    ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(256) }
}

fn start() -> impl Strategy<Value = World> {
    prop_oneof![
        Just(World::empty()),
        Just(World::fleet(3)),
        Just(World::fleet(7)),
        Just(World::lab(1, 1)),
        Just(World::lab(3, 2)),
    ]
}

/// A generator that is refused everything would prove nothing: each kind of command must succeed, and be
/// refused, and clusters, drains and moves must come about.
#[test]
fn the_generator_reaches_far() {
    let mut runner = TestRunner::deterministic();
    let all = (start(), prop::collection::vec(command(), 150));
    let mut reached: BTreeMap<String, u32> = BTreeMap::new();
    for _ in 0..150 {
        let (mut w, commands) = all.new_tree(&mut runner).unwrap().current();
        for command in commands {
            let command = in_time(aim(&w.state, command), w.now);
            let kind = serde_json::to_value(&command).unwrap()["do"].to_string();
            let last = w.state.events.last();
            let verdict = match w.run(command) {
                Outcome::Rejected { .. } => "refused",
                Outcome::Done { .. } | Outcome::Duplicate { .. } => "done",
            };
            *reached.entry(format!("{kind} {verdict}")).or_default() += 1;
            for kind in w.kinds(last) {
                *reached.entry(kind.to_owned()).or_default() += 1;
            }
        }
    }
    for wanted in [
        "node.replaced",
        "k3s.handshake.bootstrap",
        "k3s.cluster.lost",
        "k3s.cluster.removed",
        "k3s.handshake.join_target_ambiguous",
        "sdwan.virtual_ip.failover_completed",
        "instance.drained",
        "\"found_fleet\" done",
        "\"admit_node\" refused",
        "\"prepare_vip\" done",
        "\"move_vip\" refused",
        "\"report_pods\" done",
        "\"report_pods\" refused",
        "\"report_phase\" refused",
        "\"create_cluster\" done",
        "\"create_cluster\" refused",
        "\"drain\" refused",
        "\"note\" refused",
    ] {
        let times = reached.get(wanted).copied().unwrap_or(0);
        assert!(times >= 5, "{wanted}: only {times} times; {reached:#?}");
    }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn invariants_hold_after_any_commands(
        mut w in start(),
        commands in prop::collection::vec((command(), 0u64..4_000_000), 1..150),
    ) {
        for (command, later) in commands {
            w.now += if later % 10 == 0 { later } else { 10 };
            let command = in_time(aim(&w.state, command), w.now);
            w.run(command); // checks the invariants
        }
    }

    #[test]
    fn replicas_stay_equal_through_logs_and_snapshots(
        mut w in start(),
        commands in prop::collection::vec(command(), 1..60),
        snapshot_at in 0usize..60,
    ) {
        let mut replica = w.state.clone();
        for (i, command) in commands.into_iter().enumerate() {
            let command = in_time(aim(&w.state, command), w.now);
            let proposal = w.propose(u128::from(w.index + 1), command);
            let bytes = encode_proposal(&proposal);
            let read = decode_proposal(&bytes).unwrap();
            prop_assert_eq!(&read, &proposal);
            w.index += 1;
            let first = apply(&mut w.state, w.index, &proposal);
            prop_assert_eq!(apply(&mut replica, w.index, &read), first);
            if i == snapshot_at {
                replica = decode_state(&encode_state(&w.state)).unwrap();
            }
            prop_assert_eq!(&replica, &w.state);
        }
        prop_assert_eq!(replica.hash(), w.state.hash());
    }

    #[test]
    fn a_fleet_that_went_through_anything_can_still_make_a_cluster(
        mut w in start(),
        commands in prop::collection::vec(command(), 1..80),
    ) {
        for command in commands {
            let command = in_time(aim(&w.state, command), w.now);
            w.run(command);
        }
        if w.state.fleet.is_none() {
            w.ok(Command::FoundFleet(super::fixture::founding()));
        }
        let ticket = w.run(Command::CreateTicket {
            digest: crate::model::Digest::of(super::fixture::SECRET),
            role: crate::model::TicketRole::Any,
            network: Some(super::fixture::name("default")),
            expires: crate::model::UnixMillis(w.now + 60_000),
            uses: 1,
        });
        let Ok(crate::apply::Change::Ticket { id }) = ticket.result() else {
            return Err(TestCaseError::fail("no ticket"));
        };
        w.ok(World::admit(id, super::fixture::machine("fresh", 90), None));
        w.ok(World::assign("fresh", crate::model::Role::K3sServer, Some("fresh-k8s")));
        w.found_cluster("fresh");
        prop_assert_eq!(w.role("fresh").phase, Phase::Ready);
        let c = w.cluster("fresh-k8s");
        prop_assert_eq!(c.status, crate::model::ClusterStatus::Active);
    }
}

/// Makes a ticket's validity count from now, as its proposer does.
fn in_time(command: Command, now: u64) -> Command {
    match command {
        Command::CreateTicket { digest, role, network, expires, uses } => {
            Command::CreateTicket { digest, role, network, expires: expires.plus(now), uses }
        }
        other => other,
    }
}
