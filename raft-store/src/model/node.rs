//! Nodes: identity, overlay membership, role and drain. Pure.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::fleet::TicketRole;
use super::id::{ClusterId, Generation, Name, NetworkId, NodeId, UnixMillis};
use super::key::{PublicKey, Sealed};

/// A machine that has joined.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Node {
    /// Its Raft id.
    pub id: NodeId,
    /// Its identity in the API and in its certificate.
    pub uuid: Uuid,
    /// Its name, unique in the fleet.
    pub name: Name,
    /// Its WireGuard key.
    pub wireguard: PublicKey,
    /// The key to which the fleet's key is boxed for it.
    pub sealing: PublicKey,
    /// The fleet's key, boxed to `sealing`; absent until the leader hands it over.
    pub key_box: Option<Sealed>,
    /// Whether it is preferred as a voter.
    pub ticket_role: TicketRole,
    /// Its addresses in each network.
    pub networks: BTreeMap<NetworkId, OverlayAddress>,
    /// Its part in a cluster.
    pub assignment: Option<Assignment>,
    /// Set while it is being, or has been, emptied.
    pub drain: Option<Drain>,
    /// Set when it is to leave the fleet as soon as its role is undone.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub terminating: bool,
    /// When it was admitted.
    pub at: UnixMillis,
}

/// A member's addresses in one network; they never change.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OverlayAddress {
    /// The /128 in the network's /64.
    pub v6: Ipv6Addr,
    /// The /32 in the network's IPv4 slice.
    pub v4: Ipv4Addr,
}

impl OverlayAddress {
    /// Returns both addresses, IPv6 first.
    pub fn both(&self) -> [IpAddr; 2] {
        [self.v6.into(), self.v4.into()]
    }
}

/// What a node does in a cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// Control plane: API server, scheduler, etcd member.
    K3sServer,
    /// Worker.
    K3sAgent,
}

impl Role {
    /// Returns the module's name, as operators assign it.
    pub fn module(self) -> &'static str {
        match self {
            Self::K3sServer => "k3s-server",
            Self::K3sAgent => "k3s-agent",
        }
    }

    /// Returns the word that lists of cluster members show.
    pub fn display(self) -> &'static str {
        match self {
            Self::K3sServer => "control-plane",
            Self::K3sAgent => "worker",
        }
    }
}

/// A role as data: committed by an operator, carried out by the node's daemon.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Assignment {
    /// Server or agent.
    pub role: Role,
    /// The cluster; absent while an agent without a target waits for the first one.
    pub cluster: Option<ClusterId>,
    /// The log index of the assignment: servers join in this order.
    pub order: u64,
    /// How far the daemon is.
    pub phase: Phase,
    /// What it waits for, or why it failed.
    pub message: Option<String>,
    /// The Kubernetes version it runs, once known.
    pub version: Option<String>,
    /// When the phase was entered.
    pub since: UnixMillis,
    /// The pod ranges of its Kubernetes node.
    pub pods: PodRanges,
    /// Set while the role is being undone; the entry goes when the daemon reports `Stopped`.
    pub leaving: bool,
}

/// Pod ranges as committed facts: they become AllowedIPs on every node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodRanges {
    /// Grows with each change.
    pub generation: Generation,
    /// The node's pod CIDRs, in both families where the cluster has both.
    pub cidrs: Vec<IpNet>,
}

/// The steps from an assignment to a working member (and back).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// Committed; the daemon has not acted yet.
    Assigned,
    /// K3s is being fetched and configured.
    Installing,
    /// The first server has its kubeconfig and tokens.
    Bootstrapped,
    /// A later server or a worker asks for endpoint and token.
    JoinRequested,
    /// The member works.
    Ready,
    /// Gave up for a reason that a retry will not cure.
    Failed,
    /// K3s is stopped.
    Stopped,
}

impl Phase {
    /// Returns the phase's word in output.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Assigned => "assigned",
            Self::Installing => "installing",
            Self::Bootstrapped => "bootstrapping",
            Self::JoinRequested => "joining",
            Self::Ready => "ready",
            Self::Failed => "failed",
            Self::Stopped => "stopped",
        }
    }
}

/// A node's emptying, step by step; each step is finished before the next one starts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Drain {
    /// Tells this drain from an earlier one: the log index of its start.
    pub epoch: u64,
    /// Whether K3s is stopped at the end.
    pub stop: bool,
    /// Whether it goes on when nobody can take its VIPs.
    pub force: bool,
    /// How long eviction may take, in milliseconds.
    pub timeout_ms: u64,
    /// The step in progress.
    pub step: DrainStep,
    /// What it waits for.
    pub message: Option<String>,
    /// When the drain was asked for.
    pub since: UnixMillis,
}

/// The order of a drain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DrainStep {
    /// The Kubernetes node takes no new pods.
    Cordon,
    /// etcd's leadership goes to another server.
    HandOver,
    /// VIPs go to other servers.
    MoveVip,
    /// Pods are evicted, until the deadline.
    Evict,
    /// K3s stops (only when asked for).
    Stop,
    /// Nothing is left to do.
    Done,
}

impl DrainStep {
    /// Returns the step's word in output.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Cordon => "cordon",
            Self::HandOver => "hand-over",
            Self::MoveVip => "move-vip",
            Self::Evict => "evict",
            Self::Stop => "stop",
            Self::Done => "done",
        }
    }

    /// Returns the step after this one; the last one is its own successor.
    #[must_use]
    pub fn next(self, stop: bool) -> Self {
        match self {
            Self::Cordon => Self::HandOver,
            Self::HandOver => Self::MoveVip,
            Self::MoveVip => Self::Evict,
            Self::Evict if stop => Self::Stop,
            Self::Evict | Self::Stop | Self::Done => Self::Done,
        }
    }
}

/// What is kept of a node that was removed, so that it stays refused.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Retired {
    /// The identity in its certificate.
    pub uuid: Uuid,
    /// The name it had.
    pub name: Name,
    /// When it was removed.
    pub at: UnixMillis,
}

impl Node {
    /// Returns the assignment if it is a server's in `cluster` that is not being undone.
    pub fn server_in(&self, cluster: ClusterId) -> Option<&Assignment> {
        self.member_of(cluster).filter(|a| a.role == Role::K3sServer)
    }

    /// Returns the assignment if it belongs to `cluster` and is not being undone.
    pub fn member_of(&self, cluster: ClusterId) -> Option<&Assignment> {
        self.assignment.as_ref().filter(|a| a.cluster == Some(cluster) && !a.leaving)
    }
}
