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
    /// Its API endpoint's address, reserved at creation because certificates name it; absent where the network
    /// had none left, so that the endpoint is the first server's own address.
    pub vip: Option<VipId>,
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
    /// How patient its etcd is: decided before the first start, and never changed under a running cluster. Absent
    /// until then, and in clusters that were founded with K3s' own timers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub etcd: Option<EtcdTimers>,
    /// The Kubernetes version of its first server.
    pub version: Option<String>,
    /// Removed machines that Kubernetes and etcd are still to be rid of.
    pub ghosts: Vec<Ghost>,
    /// When it was made.
    pub at: UnixMillis,
}

/// How patient a cluster's etcd is, the same on all servers, and what that was derived from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EtcdTimers {
    /// Pause between two heartbeats of etcd's leader, in milliseconds.
    pub heartbeat_ms: u32,
    /// How long a member waits for a heartbeat before it stands for election, in milliseconds.
    pub election_ms: u32,
    /// The slowest round trip between two servers when it was decided, in microseconds; 0 with one server.
    pub rtt_us: u32,
    /// The slowest durable write of a server's disk then, in microseconds; absent where it was not measured.
    pub sync_us: Option<u32>,
}

impl EtcdTimers {
    /// What K3s sets by itself, in milliseconds: heartbeat and election.
    pub const K3S: (u32, u32) = (500, 5_000);

    /// Tells whether these are K3s' own, so that nothing needs to be set.
    pub fn are_k3s_own(&self) -> bool {
        (self.heartbeat_ms, self.election_ms) == Self::K3S
    }

    /// Tells whether etcd starts with them: it refuses an election time-out of less than five heartbeats or of
    /// more than 50 s (etcd, `embed.Config.Validate`).
    pub fn are_valid(&self) -> bool {
        let least = self.heartbeat_ms.checked_mul(5);
        self.heartbeat_ms > 0
            && self.election_ms <= 50_000
            && least.is_some_and(|l| self.election_ms >= l)
    }
}

/// What a removed machine left behind in its cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "GhostForm", into = "GhostForm")]
pub struct Ghost {
    /// The name of its Kubernetes node.
    pub name: Name,
    /// Its addresses in the cluster's network, by which etcd knows it.
    pub addresses: Option<OverlayAddress>,
}

/// How a ghost is written: the first states had its name only.
#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum GhostForm {
    Name(Name),
    Whole { name: Name, addresses: OverlayAddress },
}

impl From<GhostForm> for Ghost {
    fn from(form: GhostForm) -> Self {
        match form {
            GhostForm::Name(name) => Self { name, addresses: None },
            GhostForm::Whole { name, addresses } => Self { name, addresses: Some(addresses) },
        }
    }
}

impl From<Ghost> for GhostForm {
    fn from(ghost: Ghost) -> Self {
        match ghost.addresses {
            None => Self::Name(ghost.name),
            Some(addresses) => Self::Whole { name: ghost.name, addresses },
        }
    }
}

impl Cluster {
    /// Tells whether a removed machine of this name still has to go.
    pub fn has_ghost(&self, name: &Name) -> bool {
        self.ghosts.iter().any(|g| g.name == *name)
    }
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
    /// Every member gives up its role; the cluster goes with the last of them.
    Decommissioning,
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ghosts_of_old_states_have_a_name_only() {
        let old = "\"n4\"";
        let read: Ghost = serde_json::from_str(old).unwrap();
        assert_eq!(read.addresses, None);
        assert_eq!(serde_json::to_string(&read).unwrap(), old);
        let addresses = OverlayAddress { v6: [0xfd5e; 8].into(), v4: [10, 90, 0, 4].into() };
        let whole = Ghost { addresses: Some(addresses), ..read };
        let text = serde_json::to_string(&whole).unwrap();
        assert_eq!(serde_json::from_str::<Ghost>(&text).unwrap(), whole);
        assert!(serde_json::from_str::<Ghost>("{\"name\":\"n4\"}").is_err());
    }
}
