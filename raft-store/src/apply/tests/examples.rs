//! One of each kind of value that is written, for the golden files. Pure.

use serde_json::json;
use uuid::Uuid;

use super::fixture::{SECRET, World, founding, key, machine, name, names};
use crate::apply::codec::{encode_outcome, encode_proposal, encode_state};
use crate::apply::{Change, Command, CreateCluster, Outcome, RejectCode, Rejection, ReportPhase};
use crate::model::{
    ClusterId, Digest, DrainStep, Generation, MoveReason, NetworkId, NodeId, Phase, Role, Sealed,
    Severity, TicketId, TicketRole, UnixMillis, VipId,
};

/// Returns every example as file name (without its ending) and bytes.
pub(crate) fn all() -> Vec<(String, Vec<u8>)> {
    let mut w = World::empty();
    w.now = 1_764_000_000_000;
    let commands = commands().into_iter().enumerate().map(|(i, c)| {
        let file = format!("command-{}", kind(&c));
        (file, encode_proposal(&w.propose(0x5ee_0000 + i as u128, c)))
    });
    let outcomes =
        outcomes().into_iter().map(|(file, o)| (format!("outcome-{file}"), encode_outcome(&o)));
    let state = ("state-lab".into(), encode_state(&lived_in().state));
    commands.chain(outcomes).chain([state]).collect()
}

/// Names a command's file. A new kind of command does not compile without a name here.
fn kind(c: &Command) -> &'static str {
    match c {
        Command::FoundFleet(_) => "found_fleet",
        Command::CreateTicket { .. } => "create_ticket",
        Command::RevokeTicket { .. } => "revoke_ticket",
        Command::AdmitNode { .. } => "admit_node",
        Command::HandKey { .. } => "hand_key",
        Command::RemoveNode { .. } => "remove_node",
        Command::AdmitOperator { .. } => "admit_operator",
        Command::RemoveOperator { .. } => "remove_operator",
        Command::CreateNetwork { .. } => "create_network",
        Command::AttachNode { .. } => "attach_node",
        Command::AddDevice { .. } => "add_device",
        Command::RemoveDevice { .. } => "remove_device",
        Command::CreateCluster(_) => "create_cluster",
        Command::AssignRole { .. } => "assign_role",
        Command::UnassignRole { .. } => "unassign_role",
        Command::DecommissionCluster { .. } => "decommission_cluster",
        Command::TerminateNode { .. } => "terminate_node",
        Command::ReportPhase(_) => "report_phase",
        Command::ReportPods { .. } => "report_pods",
        Command::Drain { .. } => "drain",
        Command::ReportDrain { .. } => "report_drain",
        Command::Undrain { .. } => "undrain",
        Command::PrepareVip { .. } => "prepare_vip",
        Command::MoveVip { .. } => "move_vip",
        Command::ForgetGhost { .. } => "forget_ghost",
        Command::SetEtcdTimers { .. } => "set_etcd_timers",
        Command::Note { .. } => "note",
    }
}

fn commands() -> Vec<Command> {
    let mut all = fleet_commands();
    all.extend(cluster_commands());
    // At the end, since the requests of those above are numbered in their golden files.
    all.push(Command::DecommissionCluster { name: name("lab") });
    all.push(Command::TerminateNode { name: name("n4") });
    all.push(Command::SetEtcdTimers {
        cluster: ClusterId(12),
        timers: crate::plan::etcd_timers(1_200, Some(7_000)),
    });
    all
}

fn fleet_commands() -> Vec<Command> {
    let secret = Digest::of(SECRET);
    vec![
        Command::FoundFleet(founding()),
        Command::CreateTicket {
            digest: secret.clone(),
            role: TicketRole::Voter,
            network: Some(name("default")),
            expires: UnixMillis(1_764_003_600_000),
            uses: 9,
        },
        Command::RevokeTicket { id: TicketId(7) },
        Command::AdmitNode {
            ticket: TicketId(7),
            digest: secret,
            node: machine("n2", 2),
            replaces: Some(name("n2")),
        },
        Command::HandKey { node: NodeId(8), key_box: Sealed(vec![0, 1, 2, 255]) },
        Command::RemoveNode { name: name("n2"), force: true },
        Command::AdmitOperator { name: name("ada"), serial: Uuid::from_u128(0xada) },
        Command::RemoveOperator { name: name("ada") },
        Command::CreateNetwork {
            name: name("two"),
            v4: Some("10.90.64.0/20".parse().unwrap()),
            mtu: Some(1380),
        },
        Command::AttachNode { node: name("n2"), network: name("two") },
        Command::AddDevice { network: name("default"), name: name("phone"), key: key(60) },
        Command::RemoveDevice { network: name("default"), name: name("phone") },
        Command::Note {
            kind: "system.instance_silent".into(),
            severity: Severity::High,
            node: Some(NodeId(8)),
            cluster: Some(ClusterId(12)),
            payload: json!({"instance": "n2", "age_s": 181, "share": 0.5, "seen": null}),
        },
    ]
}

fn cluster_commands() -> Vec<Command> {
    vec![
        Command::CreateCluster(CreateCluster {
            name: name("lab"),
            network: None,
            servers: names(&["n1", "n2", "n3"]),
            workers: names(&["n4"]),
        }),
        Command::AssignRole { node: name("n4"), role: Role::K3sAgent, cluster: Some(name("lab")) },
        Command::UnassignRole { node: name("n4"), force: false },
        Command::ReportPhase(ReportPhase {
            node: NodeId(1),
            order: 12 << 10,
            phase: Phase::Bootstrapped,
            message: Some("waits for kubeconfig".into()),
            version: Some("v1.34.1+k3s1".into()),
            endpoint: Some(super::fixture::ENDPOINT.into()),
            secrets: Some(Sealed(vec![9; 8])),
        }),
        Command::ReportPods {
            node: NodeId(1),
            expect: Generation(0),
            cidrs: vec!["10.42.0.0/24".parse().unwrap(), "fd5e:1:2:8000::/64".parse().unwrap()],
        },
        Command::Drain { node: name("n1"), stop: true, timeout_ms: 60_000, force: false },
        Command::ReportDrain {
            node: NodeId(1),
            epoch: 30,
            step: DrainStep::HandOver,
            done: true,
            message: None,
        },
        Command::Undrain { node: name("n1") },
        Command::PrepareVip {
            vip: VipId(12),
            expect: Generation(1),
            to: NodeId(8),
            reason: MoveReason::Drain,
        },
        Command::MoveVip {
            vip: VipId(12),
            expect: Generation(1),
            to: NodeId(8),
            reason: MoveReason::Loss,
        },
        Command::ForgetGhost { cluster: ClusterId(12), name: name("n2") },
    ]
}

fn outcomes() -> Vec<(&'static str, Outcome)> {
    let done = |change| Outcome::Done { change };
    let rejection = Rejection::new(
        RejectCode::Guarded,
        "node n1 was not drained",
        "it holds VIP lab-api and no other server can take it",
        "add a server, or accept the outage: skein drain n1 --force",
    );
    vec![
        ("nothing", done(Change::Nothing)),
        ("ticket", done(Change::Ticket { id: TicketId(7) })),
        ("node", done(Change::Node { id: NodeId(8) })),
        ("network", done(Change::Network { id: NetworkId(9) })),
        ("cluster", done(Change::Cluster { id: ClusterId(12) })),
        ("drain", done(Change::Drain { epoch: 30 })),
        ("duplicate", Outcome::Duplicate { change: Change::Node { id: NodeId(8) } }),
        ("rejected", Outcome::Rejected { rejection }),
    ]
}

/// A fleet in which every kind of record exists.
fn lived_in() -> World {
    let mut w = World::lab(3, 1);
    for command in fleet_commands().into_iter().skip(6) {
        w.run(command);
    }
    w.ok(Command::AdmitOperator { name: name("bob"), serial: Uuid::from_u128(0xb0b) });
    w.ok(Command::AddDevice { network: name("default"), name: name("phone"), key: key(60) });
    let pods = w.pods("n1", 0, &["10.42.0.0/24", "fd5e:1:2:8000::/64"]);
    w.ok(pods);
    w.replace("n4", 44);
    w.ok(World::drain("n1", false, false));
    let vip = w.vip("lab");
    let prepare = Command::PrepareVip {
        vip: vip.id,
        expect: vip.generation,
        to: w.id("n2"),
        reason: MoveReason::Drain,
    };
    w.ok(prepare);
    w.refused(World::undrain("n9"));
    w
}
