//! What should run on this host, in the driver's own words. Pure.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;

use crate::ca::CaBundle;
use crate::release::Release;
use crate::secret::Secret;

/// What K3s should be on this host.
#[derive(Debug, Clone, PartialEq)]
pub enum Spec {
    /// No role: stop, uninstall, remove what K3s left, but keep `/etc/rancher/node/password`.
    Absent,
    /// A role that cannot be started yet; a K3s of the same role that runs already is left alone.
    Waiting { reason: String },
    /// Run this.
    Run(Box<RunSpec>),
    /// Stopped on purpose; data stay.
    Stopped,
}

/// Everything that K3s on this host needs to know.
#[derive(Debug, Clone, PartialEq)]
pub struct RunSpec {
    /// The Kubernetes node name.
    pub node_name: String,
    /// The cluster's name, for messages.
    pub cluster: String,
    /// Names one life of this role on this host: when it changes, data of an older life are wiped before the start.
    pub incarnation: String,
    /// Server or agent, and whom it joins.
    pub role: Role,
    /// Where the binary comes from.
    pub release: Release,
    /// The overlay addresses of this node, each family at most once; they never change while etcd holds them.
    pub node_ips: Vec<IpAddr>,
    /// The overlay interface, which flannel uses.
    pub iface: String,
    /// The cluster's virtual addresses, which every server's certificate names.
    pub vips: Vec<IpAddr>,
    /// Further names and addresses for the servers' certificates.
    pub names: Vec<String>,
    /// Pod ranges; those of a family that the release does not honour are left out.
    pub cluster_cidr: Vec<IpNet>,
    /// Service ranges, of the same families.
    pub service_cidr: Vec<IpNet>,
    /// The server secret in K3s' short form, for a server that founds a cluster; K3s makes one where there is none.
    pub server_token: Option<Secret>,
    /// The agent secret (short form), the same on all servers.
    pub agent_token: Option<Secret>,
    /// The cluster's own certificate authority, laid before the first start of the founding server.
    pub ca: Option<CaBundle>,
    /// The pod network.
    pub cni: Cni,
    /// Whether K3s' own network policy controller runs; the same on all servers.
    pub network_policy: bool,
    /// Arguments for the embedded etcd, as `name=value`; the same on all servers.
    pub etcd_args: Vec<String>,
    /// Packaged components to leave out (`traefik`, `servicelb`, ...); the same on all servers.
    pub disable: Vec<String>,
    /// Further keys of K3s' configuration, as flag name and values; they win over those made here.
    pub extra: BTreeMap<String, Vec<String>>,
}

/// What this host is in its cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Role {
    /// A control plane node. Without `join` it founds the cluster.
    Server { join: Option<Join> },
    /// A worker.
    Agent { join: Join },
}

/// Where to register, and the token to show there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Join {
    /// The fixed registration address, as `https://VIP:6443`.
    pub url: String,
    /// The full token, as K3s wrote it (`K10<hash>::user:secret`).
    pub token: Secret,
}

/// The pod network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cni {
    /// K3s' flannel with host routes over the overlay.
    FlannelHostGw,
    /// None from K3s: another one is brought by the operator.
    None,
}

/// A role without its parameters.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, serde::Serialize, serde::Deserialize,
)]
#[serde(rename_all = "lowercase")]
pub enum RoleKind {
    /// A control plane node.
    Server,
    /// A worker.
    Agent,
}

impl Role {
    /// Which of the two it is.
    pub fn kind(&self) -> RoleKind {
        match self {
            Self::Server { .. } => RoleKind::Server,
            Self::Agent { .. } => RoleKind::Agent,
        }
    }
}

impl RoleKind {
    /// The unit's name without `.service`, as K3s' own installer has it.
    pub fn unit(self) -> &'static str {
        match self {
            Self::Server => "k3s",
            Self::Agent => "k3s-agent",
        }
    }

    /// The sub-command of `k3s`.
    pub fn verb(self) -> &'static str {
        match self {
            Self::Server => "server",
            Self::Agent => "agent",
        }
    }

    /// The other role.
    pub fn other(self) -> Self {
        match self {
            Self::Server => Self::Agent,
            Self::Agent => Self::Server,
        }
    }
}

impl fmt::Display for RoleKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.verb())
    }
}
