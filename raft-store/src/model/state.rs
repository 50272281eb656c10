//! The whole replicated state, and the questions that others ask of it. Pure.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::sync::Arc;

use ipnet::{IpNet, Ipv4Net};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::cluster::{Cluster, ClusterStatus, Vip};
use super::event::EventRing;
use super::fleet::{Fleet, Operator, Tickets};
use super::id::{ClusterId, Name, NetworkId, NodeId, VipId};
use super::network::Network;
use super::node::{Assignment, Node, Phase, Retired, Role};
use super::requests::Requests;

/// Everything that the daemons agree on.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct State {
    /// The newest format of commands that may be proposed.
    pub schema_level: u32,
    /// Absent until the fleet is founded.
    pub fleet: Option<Fleet>,
    /// Members; shared, since each change of the state copies them.
    pub nodes: BTreeMap<NodeId, Arc<Node>>,
    /// Removed members.
    pub retired: BTreeMap<NodeId, Retired>,
    /// Overlay networks.
    pub networks: BTreeMap<NetworkId, Network>,
    /// Clusters.
    pub clusters: BTreeMap<ClusterId, Cluster>,
    /// VIPs.
    pub vips: BTreeMap<VipId, Vip>,
    /// Join tickets.
    pub tickets: Tickets,
    /// Operators with a certificate.
    pub operators: BTreeMap<Name, Operator>,
    /// What happened.
    pub events: EventRing,
    /// Outcomes of the newest requests.
    pub requests: Requests,
}

impl State {
    /// Finds a node to change it.
    pub fn node_mut(&mut self, id: NodeId) -> Option<&mut Node> {
        self.nodes.get_mut(&id).map(Arc::make_mut)
    }

    /// Finds a node by name.
    pub fn node_named(&self, name: &Name) -> Option<&Node> {
        self.nodes.values().map(|n| &**n).find(|n| n.name == *name)
    }

    /// Finds a node by the identity in its certificate.
    pub fn node_by_uuid(&self, uuid: Uuid) -> Option<&Node> {
        self.nodes.values().map(|n| &**n).find(|n| n.uuid == uuid)
    }

    /// Tells whether the identity belonged to a node that was removed.
    pub fn is_retired(&self, uuid: Uuid) -> bool {
        self.retired.values().any(|r| r.uuid == uuid)
    }

    /// Finds a network by name.
    pub fn network_named(&self, name: &Name) -> Option<&Network> {
        self.networks.values().find(|n| n.name == *name)
    }

    /// Finds a cluster by name.
    pub fn cluster_named(&self, name: &Name) -> Option<&Cluster> {
        self.clusters.values().find(|c| c.name == *name)
    }

    /// Finds a VIP by name; `k3s_api_endpoint` means the only one, where there is only one.
    pub fn vip_named(&self, name: &str) -> Option<&Vip> {
        let alias = name == "k3s_api_endpoint" && self.vips.len() == 1;
        self.vips.values().find(|v| alias || v.name.as_str() == name)
    }

    /// Returns a cluster's VIP, if it has one.
    pub fn vip_of(&self, cluster: &Cluster) -> Option<&Vip> {
        self.vips.get(&cluster.vip?)
    }

    /// Returns who does what one server must do for the whole cluster: the VIP's holder, or the first ready server.
    pub fn spokesman(&self, cluster: &Cluster) -> Option<NodeId> {
        match self.vip_of(cluster) {
            Some(vip) => vip.holder,
            None => {
                let mut servers = self.servers(cluster.id).into_iter();
                servers.find(|(_, a)| a.phase == Phase::Ready).map(|(n, _)| n.id)
            }
        }
    }

    /// Returns a cluster's servers in the order of their assignment.
    pub fn servers(&self, cluster: ClusterId) -> Vec<(&Node, &Assignment)> {
        self.members(cluster, Role::K3sServer)
    }

    /// Returns a cluster's members of one role in the order of their assignment.
    pub fn members(&self, cluster: ClusterId, role: Role) -> Vec<(&Node, &Assignment)> {
        let mut found: Vec<_> = self
            .nodes
            .values()
            .filter_map(|n| n.member_of(cluster).map(|a| (&**n, a)))
            .filter(|(_, a)| a.role == role)
            .collect();
        found.sort_by_key(|(n, a)| (a.order, n.id));
        found
    }

    /// Says what a server must wait for before it may start; servers join etcd one at a time.
    pub fn server_blocked_by(&self, cluster: &Cluster, node: NodeId) -> Option<String> {
        if cluster.bootstrap == Some(node) {
            return None;
        }
        if cluster.status != ClusterStatus::Active {
            let first = cluster.bootstrap.and_then(|id| self.nodes.get(&id));
            let who = first.map_or("a first server".into(), |n| n.name.to_string());
            return Some(format!("{who} to found cluster {}", cluster.name));
        }
        let before = self.servers(cluster.id).into_iter().take_while(|(n, _)| n.id != node);
        before
            .filter(|(n, a)| n.drain.is_none() && a.phase < Phase::Ready)
            .map(|(n, _)| format!("server {} to join first", n.name))
            .next()
    }

    /// Says what keeps a member from starting, apart from the order of servers.
    pub fn member_blocked_by(&self, cluster: &Cluster, node: &Node) -> Option<String> {
        if cluster.has_ghost(&node.name) {
            return Some(format!(
                "the former {} to be removed from Kubernetes by cluster {}",
                node.name, cluster.name
            ));
        }
        let is_server = node.server_in(cluster.id).is_some();
        if is_server {
            return self.server_blocked_by(cluster, node.id);
        }
        let active = cluster.status == ClusterStatus::Active && cluster.secrets.is_some();
        (!active).then(|| format!("cluster {} to become active", cluster.name))
    }

    /// Tells whether replicated facts let `node` hold `vip`, or why not; liveness is not considered.
    ///
    /// # Errors
    /// The reason, as a phrase.
    pub fn candidacy(&self, vip: &Vip, node: &Node) -> Result<(), String> {
        let Some(a) = node.server_in(vip.cluster) else {
            return Err("is no server of the cluster".into());
        };
        if !node.networks.contains_key(&vip.network) {
            return Err("is not in the VIP's network".into());
        }
        if node.drain.is_some() {
            return Err("is drained".into());
        }
        match a.phase {
            Phase::Ready => Ok(()),
            other => Err(format!("its k3s is {}", other.as_str())),
        }
    }

    /// Returns the name of a present or former node.
    pub fn name_of(&self, id: NodeId) -> String {
        let present = self.nodes.get(&id).map(|n| &n.name);
        let former = self.retired.get(&id).map(|r| &r.name);
        present.or(former).map_or_else(|| format!("node {id}"), ToString::to_string)
    }

    /// Returns the overlay that a node's cluster uses, if it has a part in one.
    pub fn cluster_of(&self, node: &Node) -> Option<&Cluster> {
        self.clusters.get(&node.assignment.as_ref()?.cluster?)
    }

    /// Returns the lowest /`len` of the pool that no network uses.
    pub fn free_slice(&self, pool: Ipv4Net, len: u8) -> Option<Ipv4Net> {
        let taken: Vec<Ipv4Net> = self.networks.values().map(|n| n.v4).collect();
        pool.subnets(len).ok()?.find(|s| taken.iter().all(|t| !overlap4(*s, *t)))
    }

    /// Returns a digest of the canonical bytes: equal on all nodes at equal index.
    pub fn hash(&self) -> String {
        crate::model::Digest::of(&serde_json::to_vec(self).unwrap_or_default()).0
    }
}

/// Tells whether two IPv4 ranges share an address.
pub fn overlap4(a: Ipv4Net, b: Ipv4Net) -> bool {
    a.contains(&b.network()) || b.contains(&a.network())
}

/// Tells whether two ranges share an address.
pub fn overlap(a: &IpNet, b: &IpNet) -> bool {
    a.contains(&b.network()) || b.contains(&a.network())
}

/// Returns the default IPv4 pools, in order of preference: private /16s outside K3s' own ranges.
pub fn default_pools() -> impl Iterator<Item = Ipv4Net> {
    [90u8, 91, 92, 93, 190, 191, 192, 193, 200, 210, 220, 230]
        .into_iter()
        .filter_map(|b| Ipv4Net::new(Ipv4Addr::new(10, b, 0, 0), 16).ok())
}
