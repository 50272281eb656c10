//! The step: each phase, and that a host which dies between any two actions still arrives.
#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "a test fails by panicking, and may talk"
)]

mod common;

use common::{Fake, founder, join, spec};
use k3s::observe::{Binary, Marker, Probe, Unit};
use k3s::{Action, Phase, Role, RoleKind, RunSpec, Secret, Spec, step};
use proptest::prelude::*;
use tokio::time::{Duration, Instant};

fn run(spec: RunSpec) -> Spec {
    Spec::Run(Box::new(spec))
}

/// Turns until nothing changes any more; gives the phases passed.
fn settle(fake: &mut Fake, spec: &Spec, now: &mut Instant) -> Vec<Phase> {
    let mut phases = Vec::new();
    for _ in 0..60 {
        let next = step(spec, &fake.seen, *now);
        if phases.last() != Some(&next.phase) {
            phases.push(next.phase.clone());
        }
        for action in &next.actions {
            fake.apply(action, *now);
        }
        *now = next.wake.max(*now + Duration::from_millis(500));
        fake.tick();
    }
    assert!(step(spec, &fake.seen, *now).actions.is_empty(), "never comes to rest");
    phases
}

#[test]
fn a_founding_server_passes_its_phases_in_order() {
    let (mut fake, mut now) = (Fake::new(), Instant::now());
    let phases = settle(&mut fake, &run(spec(founder())), &mut now);
    assert_eq!(phases, [Phase::Installing, Phase::Starting, Phase::Bootstrapped, Phase::Ready]);
    assert_eq!(fake.started(), 1);
    assert!(fake.marker().is_some_and(|marker| marker.established));
}

#[test]
fn joining_servers_and_workers_pass_theirs() {
    for role in [Role::Server { join: Some(join("server")) }, Role::Agent { join: join("node") }] {
        let (mut fake, mut now) = (Fake::new(), Instant::now());
        let phases = settle(&mut fake, &run(spec(role)), &mut now);
        assert_eq!(phases, [Phase::Installing, Phase::Joining, Phase::Ready]);
    }
}

#[test]
fn a_restart_of_k3s_is_normal_and_bounded() {
    let (mut fake, mut now) = (Fake::new(), Instant::now());
    let wanted = run(spec(Role::Server { join: Some(join("server")) }));
    settle(&mut fake, &wanted, &mut now);
    fake.end(now);
    fake.seen.log_tail =
        vec!["level=fatal msg=\"no joinsecret today\u{1b}[2J\"".into(), "more".into()];
    let next = step(&wanted, &fake.seen, now);
    assert_eq!(next.phase, Phase::Degraded);
    assert!(next.actions.is_empty(), "the backoff is kept");
    let said = next.waiting_for.unwrap();
    assert!(
        said.contains("exit status 1")
            && said.contains("level=fatal")
            && said.contains("1 restart"),
        "{said}"
    );
    assert!(!said.contains("joinsecret") && !said.contains('\u{1b}'), "{said}");
    settle(&mut fake, &wanted, &mut now);
    assert_eq!(fake.started(), 2);
}

#[test]
fn only_what_k3s_reads_at_its_start_restarts_it() {
    let (mut fake, mut now) = (Fake::new(), Instant::now());
    let mut wanted = spec(founder());
    settle(&mut fake, &run(wanted.clone()), &mut now);
    wanted.role = Role::Server { join: Some(join("server")) };
    wanted.server_token = None;
    settle(&mut fake, &run(wanted.clone()), &mut now);
    assert_eq!(fake.started(), 1, "who is joined matters only to a server that has not joined");
    wanted.etcd_args.push("quota-backend-bytes=1".into());
    settle(&mut fake, &run(wanted.clone()), &mut now);
    assert_eq!(fake.started(), 2);
}

#[test]
fn a_founder_without_its_data_founds_no_second_cluster() {
    let (mut fake, mut now) = (Fake::new(), Instant::now());
    let wanted = run(spec(founder()));
    settle(&mut fake, &wanted, &mut now);
    fake.seen.etcd_data = false;
    fake.seen.unit = Unit::Stopped;
    let next = step(&wanted, &fake.seen, now);
    assert!(matches!(&next.phase, Phase::Failed { reason } if reason.contains("second cluster")));
    assert!(next.actions.is_empty());
}

#[test]
fn a_k3s_of_somebody_else_is_left_alone() {
    let mut fake = Fake::new();
    fake.seen.foreign = Some("there is a K3s on this host (/x)".into());
    fake.seen.unit = Unit::Running { role: RoleKind::Server, fingerprint: None };
    let now = Instant::now();
    for wanted in [Spec::Absent, Spec::Stopped, run(spec(founder()))] {
        assert!(step(&wanted, &fake.seen, now).actions.is_empty(), "{wanted:?}");
    }
    assert!(matches!(step(&run(spec(founder())), &fake.seen, now).phase, Phase::Failed { .. }));
}

#[test]
fn stopped_keeps_data_and_absent_wipes_them() {
    let (mut fake, mut now) = (Fake::new(), Instant::now());
    settle(&mut fake, &run(spec(founder())), &mut now);
    assert_eq!(settle(&mut fake, &Spec::Stopped, &mut now), [Phase::Stopping, Phase::Stopped]);
    assert!(fake.seen.etcd_data && fake.marker().is_some());
    settle(&mut fake, &run(spec(founder())), &mut now);
    assert_eq!(fake.started(), 2);
    assert_eq!(settle(&mut fake, &Spec::Absent, &mut now), [Phase::Stopping, Phase::Absent]);
    assert!(!fake.seen.etcd_data && fake.marker().is_none() && fake.seen.files.is_empty());
}

#[test]
fn a_k3s_that_does_not_end_is_killed() {
    let mut fake = Fake::new();
    let now = Instant::now();
    fake.seen.marker = Some(Marker {
        incarnation: "lab-1".into(),
        role: RoleKind::Server,
        established: true,
        iface: String::new(),
        pods: Vec::new(),
    });
    fake.seen.unit = Unit::Stopping { role: RoleKind::Server, since: now };
    assert!(step(&Spec::Stopped, &fake.seen, now + Duration::from_secs(29)).actions.is_empty());
    let late = step(&Spec::Stopped, &fake.seen, now + Duration::from_secs(31));
    assert_eq!(late.actions, [Action::Kill(RoleKind::Server)]);
}

#[test]
fn a_fetch_that_failed_waits_and_says_why() {
    let mut fake = Fake::new();
    let now = Instant::now();
    let next_try = Some(now + Duration::from_secs(5));
    fake.seen.binary =
        Binary::Missing { last_error: Some("its SHA-256 is wrong".into()), next_try };
    let next = step(&run(spec(founder())), &fake.seen, now);
    assert!(next.actions.is_empty());
    let said = next.waiting_for.unwrap();
    assert!(said.contains("SHA-256") && said.contains("next try in"), "{said}");
    let later = step(&run(spec(founder())), &fake.seen, now + Duration::from_secs(6));
    assert!(matches!(later.actions[..], [Action::Fetch(_)]));
}

#[test]
fn answering_without_credentials_is_not_ready_yet() {
    let (mut fake, mut now) = (Fake::new(), Instant::now());
    settle(&mut fake, &run(spec(founder())), &mut now);
    fake.seen.credentials.server_token = None;
    assert_eq!(fake.seen.probe, Probe::Ready);
    assert_eq!(step(&run(spec(founder())), &fake.seen, now).phase, Phase::Degraded);
}

#[test]
fn waiting_leaves_what_runs() {
    let (mut fake, mut now) = (Fake::new(), Instant::now());
    settle(&mut fake, &run(spec(founder())), &mut now);
    let next = step(&Spec::Waiting { reason: "the cluster to be active".into() }, &fake.seen, now);
    assert!(next.actions.is_empty());
    assert_eq!(next.waiting_for.as_deref(), Some("the cluster to be active"));
}

#[derive(Debug, Clone)]
enum Fault {
    DieAfter(usize),
    K3sEnds,
    Spec(u8),
    Quiet,
}

fn specs(which: u8) -> Spec {
    let mut other = spec(founder());
    other.incarnation = "lab-2".into();
    other.server_token = Some(Secret::new("another"));
    match which % 5 {
        0 => run(spec(founder())),
        1 => run(other),
        2 => run(spec(Role::Agent { join: join("node") })),
        3 => Spec::Absent,
        _ => Spec::Stopped,
    }
}

fn fault() -> impl Strategy<Value = Fault> {
    prop_oneof![
        (0usize..4).prop_map(Fault::DieAfter),
        Just(Fault::K3sEnds),
        any::<u8>().prop_map(Fault::Spec),
        Just(Fault::Quiet),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// A daemon that dies after any action, K3s that ends at any time, roles that change at any time: the last spec is reached,
    /// K3s of an older life never runs under a newer marker, and nothing is wiped while K3s runs.
    #[test]
    fn every_interruption_reaches_the_goal(faults in prop::collection::vec(fault(), 0..40), last in any::<u8>()) {
        let (mut fake, mut now) = (Fake::new(), Instant::now());
        let mut wanted = specs(0);
        for fault in faults {
            let mut limit = usize::MAX;
            match fault {
                Fault::DieAfter(actions) => limit = actions,
                Fault::K3sEnds => fake.end(now),
                Fault::Spec(which) => wanted = specs(which),
                Fault::Quiet => {}
            }
            let next = step(&wanted, &fake.seen, now);
            for action in next.actions.iter().take(limit) {
                if matches!(action, Action::Wipe) {
                    prop_assert_eq!(&fake.seen.unit, &Unit::Stopped);
                }
                fake.apply(action, now);
            }
            now += Duration::from_millis(700);
            fake.tick();
        }
        let wanted = specs(last);
        settle(&mut fake, &wanted, &mut now);
        let end = step(&wanted, &fake.seen, now).phase;
        match &wanted {
            Spec::Run(run) => {
                prop_assert_eq!(end, Phase::Ready);
                let marker = fake.marker().unwrap();
                prop_assert_eq!(&marker.incarnation, &run.incarnation);
                prop_assert_eq!(marker.role, run.role.kind());
            }
            Spec::Absent => {
                prop_assert_eq!(end, Phase::Absent);
                prop_assert_eq!(common::paths(&fake.seen.files), Vec::<String>::new());
            }
            Spec::Stopped | Spec::Waiting { .. } => {
                prop_assert_eq!(end, Phase::Stopped);
                prop_assert_eq!(&fake.seen.unit, &Unit::Stopped);
            }
        }
    }
}
