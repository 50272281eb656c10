//! Commands: every way in which replicated state can change. Pure.

use std::collections::BTreeMap;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::reject::Rejection;
use crate::model::{
    ClusterId, Digest, DrainStep, EtcdTimers, Generation, MoveReason, Name, NetworkId, NodeId,
    Phase, PublicKey, RequestId, Role, Sealed, TicketId, TicketRole, UnixMillis, VipId,
};

/// A command with what its proposer minted for it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Proposal {
    /// The same for each retry.
    pub request: RequestId,
    /// The proposer's wall clock.
    pub at: UnixMillis,
    /// Who asked, for the record: an operator's or a node's name.
    pub by: String,
    /// What to do.
    pub command: Command,
}

/// The public half of a machine that enters the fleet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NewNode {
    /// The identity in its certificate.
    pub uuid: Uuid,
    /// The name it asks for.
    pub name: Name,
    /// Its WireGuard key.
    pub wireguard: PublicKey,
    /// The key to which the fleet's key will be boxed.
    pub sealing: PublicKey,
}

/// What can be asked of the replicated state.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "snake_case")]
pub enum Command {
    /// Founds the fleet, its first node and its first network.
    FoundFleet(FoundFleet),
    /// Makes a join ticket.
    CreateTicket {
        digest: Digest,
        role: TicketRole,
        network: Option<Name>,
        expires: UnixMillis,
        uses: u32,
    },
    /// Withdraws a ticket.
    RevokeTicket { id: TicketId },
    /// Redeems a ticket: the machine becomes a node.
    AdmitNode { ticket: TicketId, digest: Digest, node: NewNode, replaces: Option<Name> },
    /// Gives a node the fleet's key, boxed to it.
    HandKey { node: NodeId, key_box: Sealed },
    /// Removes a node everywhere.
    RemoveNode { name: Name, force: bool },
    /// Admits an operator's certificate, replacing an earlier one of the name.
    AdmitOperator { name: Name, serial: Uuid },
    /// Withdraws an operator's certificate.
    RemoveOperator { name: Name },
    /// Makes a network.
    CreateNetwork { name: Name, v4: Option<Ipv4Net>, mtu: Option<u16> },
    /// Lets a node into one more network.
    AttachNode { node: Name, network: Name },
    /// Admits a plain WireGuard device.
    AddDevice { network: Name, name: Name, key: PublicKey },
    /// Removes a plain WireGuard device.
    RemoveDevice { network: Name, name: Name },
    /// Makes a cluster and assigns all its members at once.
    CreateCluster(CreateCluster),
    /// Gives a node a role.
    AssignRole { node: Name, role: Role, cluster: Option<Name> },
    /// Undoes a cluster: every member gives up its role, then the VIP is released.
    DecommissionCluster { name: Name },
    /// Takes a node out of the fleet, its role first.
    TerminateNode { name: Name },
    /// Takes a node's role away; the entry stays until its daemon has undone it.
    UnassignRole { node: Name, force: bool },
    /// A daemon reports how far its role is.
    ReportPhase(ReportPhase),
    /// A daemon reports the pod ranges of its Kubernetes node.
    ReportPods { node: NodeId, expect: Generation, cidrs: Vec<IpNet> },
    /// Starts to empty a node.
    Drain { node: Name, stop: bool, timeout_ms: u64, force: bool },
    /// A daemon finished a step of its drain, or says what it waits for.
    ReportDrain { node: NodeId, epoch: u64, step: DrainStep, done: bool, message: Option<String> },
    /// Takes a drained node back into service.
    Undrain { node: Name },
    /// Prepares a planned move: `to` takes the address, nobody lets go yet.
    PrepareVip { vip: VipId, expect: Generation, to: NodeId, reason: MoveReason },
    /// Moves a VIP.
    MoveVip { vip: VipId, expect: Generation, to: NodeId, reason: MoveReason },
    /// Decides how patient a cluster's etcd is, before its first start.
    SetEtcdTimers { cluster: ClusterId, timers: EtcdTimers },
    /// The Kubernetes node of a removed machine, and what hung on it, is gone.
    ForgetGhost { cluster: ClusterId, name: Name },
    /// Records something seen that changes nothing else.
    Note {
        kind: String,
        severity: crate::model::Severity,
        node: Option<NodeId>,
        cluster: Option<ClusterId>,
        payload: serde_json::Value,
    },
}

/// The founding of a fleet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FoundFleet {
    /// The fleet's identity.
    pub id: Uuid,
    /// The authority's certificate, PEM.
    pub ca_cert: String,
    /// The authority's key, sealed.
    pub ca_key: Sealed,
    /// The pool for overlay IPv4 addresses.
    pub ipv4_pool: Ipv4Net,
    /// The fleet's random /48 (RFC 4193, section 3.2).
    pub ula: Ipv6Net,
    /// How many voters to aim for.
    pub voters: u8,
    /// The first network's name.
    pub network: Name,
    /// The first node.
    pub node: NewNode,
    /// The fleet's key, boxed to the first node.
    pub key_box: Sealed,
}

/// A cluster to be made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CreateCluster {
    /// Its name.
    pub name: Name,
    /// Its network; the only or default one if absent.
    pub network: Option<Name>,
    /// Control-plane nodes, the founding one first.
    pub servers: Vec<Name>,
    /// Workers.
    pub workers: Vec<Name>,
}

/// How far a node's role is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReportPhase {
    /// The reporting node.
    pub node: NodeId,
    /// The assignment's order, so that a report about an earlier one is ignored.
    pub order: u64,
    /// The phase it is in.
    pub phase: Phase,
    /// What it waits for, or why it failed.
    pub message: Option<String>,
    /// The Kubernetes version it runs.
    pub version: Option<String>,
    /// The endpoint's URL, decided by the founding server from its release.
    pub endpoint: Option<String>,
    /// The cluster's secrets, sealed for purpose `cluster-secrets` (at `Bootstrapped`).
    pub secrets: Option<Sealed>,
}

/// What came of a command.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "outcome", rename_all = "snake_case")]
pub enum Outcome {
    /// It was carried out.
    Done { change: Change },
    /// An earlier copy of the same request was carried out; this is what came of it.
    Duplicate { change: Change },
    /// It was refused; nothing but events changed.
    Rejected { rejection: Rejection },
}

impl Outcome {
    /// Turns the outcome into what was made, or why not.
    ///
    /// # Errors
    /// When the command was refused.
    pub fn result(self) -> Result<Change, Rejection> {
        match self {
            Self::Done { change } | Self::Duplicate { change } => Ok(change),
            Self::Rejected { rejection } => Err(rejection),
        }
    }
}

/// What a command made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "made", rename_all = "snake_case")]
pub enum Change {
    /// Nothing that needs naming.
    Nothing,
    /// A ticket.
    Ticket { id: TicketId },
    /// A node.
    Node { id: NodeId },
    /// A network.
    Network { id: NetworkId },
    /// A cluster.
    Cluster { id: ClusterId },
    /// A drain, named by its epoch.
    Drain { epoch: u64 },
}

/// Names in messages: a list as people read it.
pub(crate) fn list<'a>(names: impl IntoIterator<Item = &'a Name>) -> String {
    let names: Vec<_> = names.into_iter().map(Name::as_str).collect();
    if names.is_empty() { "none".into() } else { names.join(", ") }
}

/// Counts how often each name occurs; a helper for checks of lists that operators type.
pub(crate) fn repeated(names: &[Name]) -> Option<&Name> {
    let mut seen: BTreeMap<&Name, u32> = BTreeMap::new();
    names.iter().find(|name| {
        let count = seen.entry(name).or_default();
        *count += 1;
        *count > 1
    })
}
