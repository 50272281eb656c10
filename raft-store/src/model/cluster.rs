//! Kubernetes clusters and their VIPs. Pure.

use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::id::{ClusterId, Generation, Name, NetworkId, NodeId, UnixMillis, VipId};
use super::key::Sealed;
use super::node::OverlayAddress;

/// How many past holders of a VIP are kept.
pub const HISTORY: usize = 50;

/// A K3s cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cluster {
    /// Names the cluster.
    pub id: ClusterId,
    /// What people call it.
    pub name: Name,
    /// The overlay that its members talk over.
    pub network: NetworkId,
    /// Its API endpoint's address, reserved at creation because certificates name it.
    pub vip: VipId,
    /// How far its control plane is.
    pub status: ClusterStatus,
    /// The one server that founds it.
    pub bootstrap: Option<NodeId>,
    /// The URL that kubeconfigs and workers use, once the release is known.
    pub endpoint: Option<String>,
    /// The container network plug-in; decided before the first install.
    pub cni: String,
    /// Pod ranges, IPv4 first.
    pub pods: Vec<IpNet>,
    /// Service ranges, IPv4 first.
    pub services: Vec<IpNet>,
    /// Captured at bootstrap, sealed for purpose `cluster-secrets`.
    pub secrets: Option<Sealed>,
    /// The Kubernetes version of its first server.
    pub version: Option<String>,
    /// Names of removed machines whose Kubernetes nodes are still to be deleted.
    pub ghosts: Vec<Name>,
    /// When it was made.
    pub at: UnixMillis,
}

/// The stored half of a cluster's status; `degraded` is seen, not stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ClusterStatus {
    /// No server works at it yet.
    Pending,
    /// The first server installs and starts.
    Bootstrapping,
    /// The API answers behind the VIP.
    Active,
    /// The first server failed for a reason that a retry will not cure.
    Error,
}

/// An address that moves between a cluster's servers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Vip {
    /// Names the VIP.
    pub id: VipId,
    /// What people call it: `<cluster>-api`.
    pub name: Name,
    /// The cluster whose API it leads to.
    pub cluster: ClusterId,
    /// The network that it belongs to.
    pub network: NetworkId,
    /// Its /128 and /32.
    pub address: OverlayAddress,
    /// Who answers for it; absent until bootstrap.
    pub holder: Option<NodeId>,
    /// Grows with each move; receivers obey only the newest.
    pub generation: Generation,
    /// A planned move that is being prepared: the next holder already has the address.
    pub next: Option<NextHolder>,
    /// Past and present holders, oldest first.
    pub history: Vec<Assumption>,
}

impl Vip {
    /// Returns both addresses, IPv6 first.
    pub fn addresses(&self) -> [IpAddr; 2] {
        [self.address.v6.into(), self.address.v4.into()]
    }
}

/// The holder-to-be of a planned move.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NextHolder {
    /// Who gets it.
    pub node: NodeId,
    /// Why.
    pub reason: MoveReason,
    /// When it was asked to prepare.
    pub at: UnixMillis,
}

/// One holder's time with a VIP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Assumption {
    /// Who held it.
    pub holder: NodeId,
    /// Under which generation.
    pub generation: Generation,
    /// Why it was given.
    pub reason: MoveReason,
    /// Since when.
    pub at: UnixMillis,
}

/// Why a VIP was given to a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MoveReason {
    /// First holder, at bootstrap.
    Initial,
    /// The old holder is drained, or gives up its role.
    Drain,
    /// The old holder was not heard of any more.
    Loss,
    /// The old holder's API was not ready.
    Unready,
    /// An operator asked for it.
    Manual,
}

impl MoveReason {
    /// Returns the reason's word in output.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Initial => "initial",
            Self::Drain => "drain",
            Self::Loss => "loss",
            Self::Unready => "unready",
            Self::Manual => "manual",
        }
    }
}
