//! Clusters and roles: creation, assignment, unassignment, and which cluster a role belongs to. Pure.

use std::net::Ipv4Addr;
use std::sync::Arc;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use serde_json::json;

use super::command::{Change, CreateCluster, list, repeated};
use super::reject::{RejectCode, Rejection};
use super::{Applied, Context};
use crate::model::{
    Assignment, Cluster, ClusterId, ClusterStatus, Generation, Name, NetworkId, NodeId,
    OverlayAddress, Phase, PodRanges, Role, Severity, Vip, VipId, fleet::subnet, overlap,
};

/// Pods of the first cluster take 10.42.0.0/16 and services 10.43.0.0/16, as K3s' defaults do.
const FIRST_PODS: u8 = 42;
/// Where IPv6 subnets of pods begin in the fleet's /48, far above those of networks.
const FIRST_PODS_V6: u16 = 0x8000;
/// Where IPv6 subnets of services begin.
const FIRST_SERVICES_V6: u16 = 0xf000;

impl Context<'_> {
    pub(super) fn create_cluster(&mut self, c: &CreateCluster) -> Applied {
        let what = format!("cluster {} was not made", c.name);
        let all: Vec<Name> = c.servers.iter().chain(&c.workers).cloned().collect();
        if c.servers.is_empty() {
            let next = format!("skein cluster create {} --servers NODE", c.name);
            return Err(Rejection::new(
                RejectCode::Invalid,
                what,
                "it needs at least one server",
                next,
            ));
        }
        if let Some(twice) = repeated(&all) {
            let why = format!("node {twice} is named twice");
            return Err(Rejection::new(RejectCode::Invalid, what, why, "name each node once"));
        }
        if let Some(existing) = self.state.cluster_named(&c.name) {
            return self.same_cluster(existing.id, c, what);
        }
        let wanted = c.servers.iter().map(|n| (n, Role::K3sServer));
        let wanted: Vec<_> = wanted.chain(c.workers.iter().map(|n| (n, Role::K3sAgent))).collect();
        let network = self.cluster_network(c.network.as_ref(), &c.servers[0])?;
        for (name, _) in &wanted {
            self.check_assignable(name, network, None)?;
        }
        let id = self.insert_cluster(&c.name, network, &what)?;
        for (offset, (name, role)) in wanted.into_iter().enumerate() {
            self.put_assignment(name, role, Some(id), offset as u64)?;
        }
        Ok(Change::Cluster { id })
    }

    /// Answers a repeated creation: fine when it asks for what is there.
    fn same_cluster(&self, id: ClusterId, c: &CreateCluster, what: String) -> Applied {
        let is = |name: &Name, role| {
            self.state
                .node_named(name)
                .and_then(|n| n.member_of(id))
                .is_some_and(|a| a.role == role)
        };
        let same = c.servers.iter().all(|n| is(n, Role::K3sServer))
            && c.workers.iter().all(|n| is(n, Role::K3sAgent));
        let ending =
            self.state.clusters.get(&id).map(|c| c.status) == Some(ClusterStatus::Decommissioning);
        if ending {
            let next = format!("wait until it is gone: skein cluster show {}", c.name);
            let why = "the former cluster of this name is being decommissioned";
            return Err(Rejection::new(RejectCode::Conflict, what, why, next));
        }
        if same {
            return Ok(Change::Cluster { id });
        }
        Err(Rejection::new(
            RejectCode::Exists,
            what,
            "a cluster of this name exists with other members",
            format!("add nodes with: skein node assign NODE k3s-agent --cluster {}", c.name),
        ))
    }

    /// Chooses the network: the named one, the only one, or the one that the first server is in.
    fn cluster_network(&self, name: Option<&Name>, first: &Name) -> Result<NetworkId, Rejection> {
        if name.is_none() {
            let node = &self.state.nodes[&self.node_id(first)?];
            if node.networks.len() == 1
                && let Some(only) = node.networks.keys().next()
            {
                return Ok(*only);
            }
        }
        self.network_or_default(name)
    }

    fn insert_cluster(
        &mut self,
        name: &Name,
        network: NetworkId,
        what: &str,
    ) -> Result<ClusterId, Rejection> {
        let exhausted = |why: &str| {
            Rejection::new(RejectCode::Exhausted, what, why, "remove a cluster that is not needed")
        };
        let net = &self.state.networks[&network];
        let in_use = |a| self.state.vips.values().any(|v| v.address == a);
        let mut free = (0..crate::model::network::VIPS).map_while(|n| net.vip_address(n));
        // A network without a free one does not keep the cluster from coming up; it is told of at its bootstrap.
        let address = free.find(|a| !in_use(*a));
        let fleet = self.state.fleet.as_ref().expect("founded before any cluster");
        let (pods, services) =
            free_ranges(self.state.clusters.values(), fleet.ipv4_pool, fleet.ula)
                .ok_or_else(|| exhausted("no pod range is left"))?;
        let id = ClusterId(self.index);
        let vip = address.map(|address| self.reserve_vip(name, id, network, address));
        self.state.clusters.insert(
            id,
            Cluster {
                id,
                name: name.clone(),
                network,
                vip,
                status: ClusterStatus::Pending,
                bootstrap: None,
                endpoint: None,
                cni: "flannel".into(),
                pods,
                services,
                secrets: None,
                etcd: None,
                version: None,
                ghosts: Vec::new(),
                at: self.at,
            },
        );
        Ok(id)
    }

    fn reserve_vip(
        &mut self,
        cluster_name: &Name,
        cluster: ClusterId,
        network: NetworkId,
        address: OverlayAddress,
    ) -> VipId {
        let id = VipId(self.index);
        let name = format!("{cluster_name}-api").parse().unwrap_or_else(|_| cluster_name.clone());
        let vip = Vip {
            id,
            name,
            cluster,
            network,
            address,
            holder: None,
            generation: Generation(0),
            next: None,
            history: Vec::new(),
        };
        self.state.vips.insert(id, vip);
        id
    }

    pub(super) fn assign_role(
        &mut self,
        node: &Name,
        role: Role,
        cluster: Option<&Name>,
    ) -> Applied {
        let id = self.node_id(node)?;
        let target = match role {
            Role::K3sServer => self.server_target(node, id, cluster)?,
            Role::K3sAgent => self.agent_target(node, id, cluster)?,
        };
        let assigned = self.state.nodes[&id].assignment.as_ref();
        if assigned.is_some_and(|a| a.role == role && !a.leaving && (a.cluster == target)) {
            return Ok(Change::Nothing);
        }
        if let Some(target) = target {
            let network = self.state.clusters[&target].network;
            self.check_assignable(node, network, None)?;
        } else {
            self.check_free(node)?;
        }
        self.put_assignment(node, role, target, 0)?;
        Ok(Change::Nothing)
    }

    fn server_target(
        &mut self,
        node: &Name,
        id: NodeId,
        cluster: Option<&Name>,
    ) -> Result<Option<ClusterId>, Rejection> {
        let what = format!("{node} was not made a k3s-server");
        let Some(name) = cluster else {
            let next = format!("skein node assign {node} k3s-server --cluster NAME");
            let why = "a server needs a cluster; an unknown name founds a new one";
            return Err(Rejection::new(RejectCode::Invalid, what, why, next));
        };
        if let Some(known) = self.state.cluster_named(name) {
            return self.joinable(node, known, what).map(Some);
        }
        let network = self.cluster_network(None, node)?;
        self.check_assignable(node, network, Some(id))?;
        self.insert_cluster(name, network, &what).map(Some)
    }

    /// Chooses an agent's cluster: never a guess (404 unknown, 409 ambiguous or broken).
    fn agent_target(
        &mut self,
        node: &Name,
        id: NodeId,
        cluster: Option<&Name>,
    ) -> Result<Option<ClusterId>, Rejection> {
        let what = format!("{node} was not made a k3s-agent");
        let known = list(self.state.clusters.values().map(|c| &c.name));
        let found = match cluster {
            Some(name) => Some(self.state.cluster_named(name).ok_or_else(|| {
                let why = format!("there is no cluster {name}");
                Rejection::new(
                    RejectCode::NotFound,
                    what.clone(),
                    why,
                    format!("clusters are: {known}"),
                )
            })?),
            None => {
                let only = self.only_target(node, id)?;
                only.and_then(|c| self.state.clusters.get(&c))
            }
        };
        found.map(|c| self.joinable(node, c, what)).transpose()
    }

    /// Returns the only cluster that is not broken, or else a broken one, so that its refusal tells why.
    fn only_target(&mut self, node: &Name, id: NodeId) -> Result<Option<ClusterId>, Rejection> {
        let sound = |c: &&Cluster| {
            !matches!(c.status, ClusterStatus::Error | ClusterStatus::Decommissioning)
        };
        let candidates: Vec<Name> =
            self.state.clusters.values().filter(sound).map(|c| c.name.clone()).collect();
        if candidates.len() > 1 {
            self.emit(
                "system.k3s.handshake.join_target_ambiguous",
                Severity::High,
                Some(id),
                None,
                json!({
                    "instance": node, "candidates": candidates,
                }),
            );
            let known = list(&candidates);
            return Err(Rejection::new(
                RejectCode::Ambiguous,
                format!("{node} was not made a k3s-agent"),
                format!("there are several clusters ({known}) and none was named"),
                format!("skein node assign {node} k3s-agent --cluster NAME"),
            ));
        }
        let clusters = || self.state.clusters.values();
        let only = clusters().find(sound).or_else(|| clusters().next());
        Ok(only.map(|c| c.id))
    }

    /// Refuses new members to a broken cluster; those that are in it already stay.
    fn joinable(&self, node: &Name, c: &Cluster, what: String) -> Result<ClusterId, Rejection> {
        let member = self.state.node_named(node).and_then(|n| n.member_of(c.id));
        if c.status == ClusterStatus::Decommissioning {
            return Err(Rejection::new(
                RejectCode::Conflict,
                what,
                format!("cluster {} is being decommissioned", c.name),
                format!("skein cluster show {}", c.name),
            ));
        }
        if c.status == ClusterStatus::Error && member.is_none() {
            return Err(Rejection::new(
                RejectCode::Conflict,
                what,
                format!("cluster {} is in error", c.name),
                format!("skein cluster show {}", c.name),
            ));
        }
        Ok(c.id)
    }

    /// Checks that a node is in the network and has no part in a cluster yet.
    fn check_assignable(
        &self,
        node: &Name,
        network: NetworkId,
        founding: Option<NodeId>,
    ) -> Result<(), Rejection> {
        let id = founding.map_or_else(|| self.node_id(node), Ok)?;
        if !self.state.nodes[&id].networks.contains_key(&network) {
            let network = &self.state.networks[&network].name;
            return Err(Rejection::new(
                RejectCode::Conflict,
                format!("{node} got no role"),
                format!("it is not in the cluster's network {network}"),
                format!("skein net attach {network} {node}"),
            ));
        }
        self.check_free(node)
    }

    fn check_free(&self, node: &Name) -> Result<(), Rejection> {
        let id = self.node_id(node)?;
        if self.state.nodes[&id].terminating {
            let (what, why) = (format!("{node} got no role"), "it is leaving the fleet");
            return Err(Rejection::new(RejectCode::Conflict, what, why, "choose another node"));
        }
        let Some(a) = &self.state.nodes[&id].assignment else {
            return Ok(());
        };
        let cluster = a.cluster.and_then(|c| self.state.clusters.get(&c));
        let of = cluster.map_or_else(String::new, |c| format!(" of cluster {}", c.name));
        let (why, next) = if a.leaving {
            ("it is still giving up its former role".to_owned(), format!("skein node show {node}"))
        } else {
            (
                format!("it is a {}{of} already", a.role.module()),
                format!("skein node unassign {node}"),
            )
        };
        Err(Rejection::new(RejectCode::Conflict, format!("{node} got no role"), why, next))
    }

    /// Records the role; `offset` orders members that one command assigns.
    pub(super) fn put_assignment(
        &mut self,
        node: &Name,
        role: Role,
        cluster: Option<ClusterId>,
        offset: u64,
    ) -> Result<(), Rejection> {
        let id = self.node_id(node)?;
        let (at, order) = (self.at, (self.index << 10) + offset);
        if let Some(node) = self.state.node_mut(id) {
            node.assignment = Some(Assignment {
                role,
                cluster,
                order,
                phase: Phase::Assigned,
                message: None,
                version: None,
                since: at,
                pods: PodRanges::default(),
                leaving: false,
            });
        }
        let name = cluster.and_then(|c| self.state.clusters.get(&c)).map(|c| c.name.clone());
        self.emit(
            "system.k3s.module.assigned",
            Severity::Low,
            Some(id),
            cluster,
            json!({
                "instance": node, "module": role.module(), "target_cluster_id": name,
            }),
        );
        if let Some(c) = cluster.and_then(|c| self.state.clusters.get_mut(&c))
            && role == Role::K3sServer
            && c.secrets.is_none()
        {
            c.bootstrap.get_or_insert(id);
        }
        self.adopt_waiting();
        Ok(())
    }

    /// Gives agents that wait for a first cluster the only one there is.
    pub(super) fn adopt_waiting(&mut self) {
        let lasting = |c: &&Cluster| c.status != ClusterStatus::Decommissioning;
        let mut clusters = self.state.clusters.values().filter(lasting);
        let (Some(only), None) = (clusters.next(), clusters.next()) else {
            return;
        };
        let (cluster, network) = (only.id, only.network);
        let waits = |n: &crate::model::Node| {
            let free = n.assignment.as_ref().is_some_and(|a| a.cluster.is_none() && !a.leaving);
            free && n.networks.contains_key(&network)
        };
        for node in self.state.nodes.values_mut().filter(|n| waits(n)) {
            if let Some(a) = &mut Arc::make_mut(node).assignment {
                a.cluster = Some(cluster);
            }
        }
    }

    pub(super) fn unassign_role(&mut self, node: &Name, force: bool) -> Applied {
        let id = self.node_id(node)?;
        let what = format!("{node} keeps its role");
        let Some(a) = self.state.nodes[&id].assignment.clone() else {
            return Ok(Change::Nothing);
        };
        if a.leaving {
            return Ok(Change::Nothing);
        }
        if let (Some(cluster), Role::K3sServer, false) = (a.cluster, a.role, force) {
            let others = self.state.servers(cluster).iter().filter(|(n, _)| n.id != id).count();
            let workers = self.state.members(cluster, Role::K3sAgent).len();
            if others == 0 && workers > 0 {
                let why = format!("it is the last server of a cluster with {workers} worker(s)");
                let next =
                    format!("unassign the workers first, or skein node unassign {node} --force");
                return Err(Rejection::new(RejectCode::Guarded, what, why, next));
            }
        }
        self.start_leaving(id);
        if let Some(cluster) = a.cluster {
            self.settle_cluster(cluster);
        }
        Ok(Change::Nothing)
    }
}

/// Finds the first pair of pod and service ranges that meets no cluster's and no overlay's.
pub(super) fn free_ranges<'a>(
    clusters: impl Iterator<Item = &'a Cluster> + Clone,
    pool: Ipv4Net,
    ula: Ipv6Net,
) -> Option<(Vec<IpNet>, Vec<IpNet>)> {
    let v4 = |b: u8| {
        let net = Ipv4Net::new(Ipv4Addr::new(10, b, 0, 0), 16);
        net.ok().map(IpNet::V4)
    };
    let taken = |r: &IpNet| {
        let mut theirs = clusters.clone().flat_map(|c| c.pods.iter().chain(&c.services));
        overlap(r, &IpNet::V4(pool)) || theirs.any(|t| overlap(t, r))
    };
    (0..80u8).find_map(|k| {
        let (pods, services) = (v4(FIRST_PODS + 2 * k)?, v4(FIRST_PODS + 1 + 2 * k)?);
        if taken(&pods) || taken(&services) {
            return None;
        }
        let pods6 = subnet(ula, FIRST_PODS_V6 + 0x100 * u16::from(k)).network();
        let services6 = subnet(ula, FIRST_SERVICES_V6 + u16::from(k)).network();
        let pods6 = IpNet::V6(Ipv6Net::new(pods6, 56).ok()?);
        let services6 = IpNet::V6(Ipv6Net::new(services6, 112).ok()?);
        Some((vec![pods, pods6], vec![services, services6]))
    })
}
