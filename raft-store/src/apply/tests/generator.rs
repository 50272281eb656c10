//! Arbitrary commands over a small universe of names and ids, so that they meet each other. Pure.

use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use serde_json::json;
use uuid::Uuid;

use super::fixture::{founding, key, name};
use crate::apply::{
    Change, Command, CreateCluster, NewNode, Outcome, RejectCode, Rejection, ReportPhase,
};
use crate::model::{
    ClusterId, Digest, DrainStep, Generation, MoveReason, Name, NetworkId, NodeId, Phase, Role,
    Sealed, Severity, State, TicketId, TicketRole, UnixMillis, VipId,
};

/// A command whose ids are small numbers, to be turned into existing ids by [`aim`] (or left as nonsense).
pub(crate) fn command() -> impl Strategy<Value = Command> {
    prop_oneof![
        4 => admission(),
        2 => networks(),
        4 => clusters(),
        12 => reports(),
        8 => moves(),
        1 => odds(),
    ]
}

/// Points numbers at what exists: `n % 8`-th node and so on; one number in eight stays nonsense.
pub(crate) fn aim(state: &State, command: Command) -> Command {
    let mut c = command;
    let pick = |n: u64, ids: Vec<u64>| match ids.len() {
        0 => n,
        _ if n % 8 == 7 => n + 10_000,
        len => ids[n as usize % len],
    };
    let nodes = || state.nodes.keys().map(|n| n.0).collect();
    let vips = || state.vips.keys().map(|v| v.0).collect();
    let aim_node = |n: &mut NodeId| n.0 = pick(n.0, nodes());
    match &mut c {
        Command::RevokeTicket { id } | Command::AdmitNode { ticket: id, .. } => {
            id.0 = pick(id.0, state.tickets.keys().rev().map(|t| t.0).collect());
        }
        Command::HandKey { node, .. } => aim_node(node),
        Command::ReportPhase(r) => {
            aim_node(&mut r.node);
            let a = state.nodes.get(&r.node).and_then(|n| n.assignment.as_ref());
            if let Some(a) = a.filter(|_| r.order > 0) {
                r.order = a.order;
            }
        }
        Command::ReportPods { node, expect, .. } => {
            aim_node(node);
            let a = state.nodes.get(node).and_then(|n| n.assignment.as_ref());
            expect.0 += a.map_or(0, |a| a.pods.generation.0);
        }
        Command::ReportDrain { node, epoch, step, .. } => {
            let drained = state.nodes.values().filter(|n| n.drain.is_some());
            node.0 = pick(node.0, drained.map(|n| n.id.0).collect());
            let d = state.nodes.get(node).and_then(|n| n.drain.as_ref());
            if let Some(d) = d.filter(|_| *epoch > 0) {
                (*epoch, *step) = (d.epoch, d.step);
            }
        }
        Command::PrepareVip { vip, expect, to, .. } | Command::MoveVip { vip, expect, to, .. } => {
            vip.0 = pick(vip.0, vips());
            aim_node(to);
            expect.0 += state.vips.get(vip).map_or(0, |v| v.generation.0);
        }
        Command::ForgetGhost { cluster, .. } => {
            cluster.0 = pick(cluster.0, state.clusters.keys().map(|c| c.0).collect());
        }
        _ => {}
    }
    c
}

fn node_name() -> impl Strategy<Value = Name> {
    (1u8..=7).prop_map(|i| name(&format!("n{i}")))
}

fn any_name() -> impl Strategy<Value = Name> {
    prop_oneof![Just(name("default")), Just(name("two")), Just(name("lab")), Just(name("x")),]
}

fn digest() -> impl Strategy<Value = Digest> {
    prop_oneof![
        9 => Just(Digest::of(super::fixture::SECRET)),
        1 => Just(Digest("nonsense".into())),
    ]
}

fn new_node() -> impl Strategy<Value = NewNode> {
    (node_name(), 1u8..40, prop::bool::weighted(0.1)).prop_map(|(name, seed, odd)| NewNode {
        uuid: Uuid::from_u128(u128::from(seed)),
        name,
        wireguard: key(if odd { 200 } else { seed }),
        sealing: key(seed),
    })
}

fn ticket_role() -> impl Strategy<Value = TicketRole> {
    prop_oneof![Just(TicketRole::Voter), Just(TicketRole::Any)]
}

fn admission() -> impl Strategy<Value = Command> {
    let ticket = (digest(), ticket_role(), option::of(any_name()), 0u64..9, 0u32..9);
    let ticket = ticket.prop_map(|(digest, role, network, hours, uses)| Command::CreateTicket {
        digest,
        role,
        network,
        expires: UnixMillis(hours * 3_600_000),
        uses,
    });
    let admit = (0u64..8, digest(), new_node(), option::weighted(0.3, node_name()));
    let admit = admit.prop_map(|(t, digest, node, replaces)| Command::AdmitNode {
        ticket: TicketId(t),
        digest,
        node,
        replaces,
    });
    let remove = (node_name(), any::<bool>());
    prop_oneof![
        6 => ticket,
        12 => admit,
        1 => (0u64..8).prop_map(|t| Command::RevokeTicket { id: TicketId(t) }),
        1 => remove.prop_map(|(name, force)| Command::RemoveNode { name, force }),
        1 => (0u64..8).prop_map(|n| Command::HandKey { node: NodeId(n), key_box: Sealed(vec![1]) }),
    ]
}

fn networks() -> impl Strategy<Value = Command> {
    let slices = ["10.90.0.0/20", "10.90.64.0/24", "10.90.65.3/28", "10.0.0.0/8", "10.90.1.1/32"];
    let slice = prop::sample::select(slices.to_vec()).prop_map(|s| s.parse().unwrap());
    let create = (any_name(), option::of(slice), option::of(any::<u16>()));
    let device = (any_name(), node_name(), 1u8..40);
    prop_oneof![
        create.prop_map(|(name, v4, mtu)| Command::CreateNetwork { name, v4, mtu }),
        (node_name(), any_name()).prop_map(|(node, network)| Command::AttachNode { node, network }),
        device.prop_map(|(network, name, k)| Command::AddDevice { network, name, key: key(k) }),
        (any_name(), node_name())
            .prop_map(|(network, name)| Command::RemoveDevice { network, name }),
    ]
}

fn role() -> impl Strategy<Value = Role> {
    prop_oneof![Just(Role::K3sServer), Just(Role::K3sAgent)]
}

fn clusters() -> impl Strategy<Value = Command> {
    let members = || vec(node_name(), 0..4);
    let create = (any_name(), option::weighted(0.3, any_name()), members(), members());
    let create = create.prop_map(|(name, network, servers, workers)| {
        Command::CreateCluster(CreateCluster { name, network, servers, workers })
    });
    let assign = (node_name(), role(), option::weighted(0.8, any_name()));
    let unassign = (node_name(), any::<bool>());
    let ghost = (0u64..8, node_name());
    prop_oneof![
        8 => create,
        16 => assign.prop_map(|(node, role, cluster)| Command::AssignRole { node, role, cluster }),
        4 => unassign.prop_map(|(node, force)| Command::UnassignRole { node, force }),
        1 => any_name().prop_map(|name| Command::DecommissionCluster { name }),
        1 => node_name().prop_map(|name| Command::TerminateNode { name }),
        4 => ghost.prop_map(|(c, name)| Command::ForgetGhost { cluster: ClusterId(c), name }),
    ]
}

pub(crate) fn phase() -> impl Strategy<Value = Phase> {
    prop_oneof![
        1 => Just(Phase::Assigned),
        3 => Just(Phase::Installing),
        4 => Just(Phase::Bootstrapped),
        3 => Just(Phase::JoinRequested),
        6 => Just(Phase::Ready),
        1 => Just(Phase::Failed),
        2 => Just(Phase::Stopped),
    ]
}

fn reports() -> impl Strategy<Value = Command> {
    let report = (0u64..8, 0u64..9, phase(), prop::bool::weighted(0.9), option::of("[a-z ]{0,9}"));
    let report = report.prop_map(|(node, order, phase, whole, message)| {
        Command::ReportPhase(ReportPhase {
            node: NodeId(node),
            order,
            phase,
            message,
            version: whole.then(|| "v1.34.1+k3s1".into()),
            endpoint: whole.then(|| super::fixture::ENDPOINT.into()),
            secrets: whole.then(|| Sealed(vec![7])),
        })
    });
    let cidr = (0u8..6, 20u8..28, any::<bool>()).prop_map(|(third, len, inside)| {
        let second = if inside { 42 } else { 90 };
        format!("10.{second}.{third}.0/{len}").parse().unwrap()
    });
    let pods = (0u64..8, 0u64..2, vec(cidr, 0..3));
    let pods = pods.prop_map(|(node, expect, cidrs)| Command::ReportPods {
        node: NodeId(node),
        expect: Generation(expect),
        cidrs,
    });
    prop_oneof![5 => report, 1 => pods]
}

fn reason() -> impl Strategy<Value = MoveReason> {
    prop_oneof![
        Just(MoveReason::Drain),
        Just(MoveReason::Loss),
        Just(MoveReason::Unready),
        Just(MoveReason::Manual),
    ]
}

fn moves() -> impl Strategy<Value = Command> {
    let step =
        prop_oneof![Just(DrainStep::Cordon), Just(DrainStep::MoveVip), Just(DrainStep::Done)];
    let drain = (node_name(), any::<bool>(), any::<u32>(), any::<bool>());
    let report = (0u64..8, 0u64..9, step, prop::bool::weighted(0.8), option::of("[a-z]{0,9}"));
    let to = || (0u64..8, prop_oneof![9 => Just(0u64), 1 => 1u64..4], 0u64..8, reason());
    prop_oneof![
        2 => drain.prop_map(|(node, stop, ms, force)| Command::Drain {
            node, stop, timeout_ms: u64::from(ms), force,
        }),
        9 => report.prop_map(|(node, epoch, step, done, message)| Command::ReportDrain {
            node: NodeId(node), epoch, step, done, message,
        }),
        1 => node_name().prop_map(|node| Command::Undrain { node }),
        2 => to().prop_map(|(v, g, n, reason)| Command::PrepareVip {
            vip: VipId(v), expect: Generation(g), to: NodeId(n), reason,
        }),
        3 => to().prop_map(|(v, g, n, reason)| Command::MoveVip {
            vip: VipId(v), expect: Generation(g), to: NodeId(n), reason,
        }),
    ]
}

fn odds() -> impl Strategy<Value = Command> {
    let note = ("test[.][abc]", 0u64..8, any::<i64>(), 0usize..40);
    let note = note.prop_map(|(kind, n, value, depth)| Command::Note {
        kind,
        severity: Severity::Medium,
        node: Some(NodeId(n)),
        cluster: None,
        payload: (0..depth).fold(json!(value), |inner, _| json!([inner])),
    });
    prop_oneof![
        note,
        Just(Command::FoundFleet(founding())),
        (any_name(), any::<u128>())
            .prop_map(|(name, n)| Command::AdmitOperator { name, serial: Uuid::from_u128(n) }),
        any_name().prop_map(|name| Command::RemoveOperator { name }),
        (0u64..30, any::<u32>(), option::of(any::<u32>())).prop_map(|(id, rtt, sync)| {
            Command::SetEtcdTimers {
                cluster: ClusterId(id),
                timers: crate::plan::etcd_timers(rtt, sync),
            }
        }),
    ]
}

/// Any outcome that could be answered.
pub(crate) fn outcome() -> impl Strategy<Value = Outcome> {
    let change = prop_oneof![
        Just(Change::Nothing),
        any::<u64>().prop_map(|n| Change::Ticket { id: TicketId(n) }),
        any::<u64>().prop_map(|n| Change::Node { id: NodeId(n) }),
        any::<u64>().prop_map(|n| Change::Network { id: NetworkId(n) }),
        any::<u64>().prop_map(|n| Change::Cluster { id: ClusterId(n) }),
        any::<u64>().prop_map(|epoch| Change::Drain { epoch }),
    ];
    (change, 0u8..3, ".{0,20}").prop_map(|(change, kind, text)| match kind {
        0 => Outcome::Done { change },
        1 => Outcome::Duplicate { change },
        _ => Outcome::Rejected {
            rejection: Rejection::new(RejectCode::Stale, text.clone(), text.clone(), text),
        },
    })
}
