//! Nodes: looking them up, and taking them out everywhere. Pure.

use std::collections::BTreeMap;

use serde_json::json;

use super::command::{Change, list};
use super::ending::departure_guard;
use super::reject::{RejectCode, Rejection};
use super::{Applied, Context};
use crate::model::{
    Assignment, ClusterId, ClusterStatus, Ghost, Name, NetworkId, NodeId, OverlayAddress, Phase,
    Retired, Role, Severity,
};

impl Context<'_> {
    /// Finds a node by name.
    pub(super) fn node_id(&self, name: &Name) -> Result<NodeId, Rejection> {
        self.state.node_named(name).map(|n| n.id).ok_or_else(|| {
            Rejection::new(
                RejectCode::NotFound,
                format!("node {name} was not found"),
                "no member has this name",
                format!("nodes are: {}", list(self.state.nodes.values().map(|n| &n.name))),
            )
        })
    }

    pub(super) fn remove_node(&mut self, name: &Name, force: bool) -> Applied {
        let id = self.node_id(name)?;
        let what = format!("node {name} was not removed");
        departure_guard(self.state, id, "removed", &|_| true)?;
        if let Some(a) = &self.state.nodes[&id].assignment
            && !force
        {
            let why = format!("it is a {} still", a.role.module());
            let next = format!(
                "skein node unassign {name}, or, if the machine is lost, skein node rm {name} --force"
            );
            return Err(Rejection::new(RejectCode::Guarded, what, why, next));
        }
        let old = self.retire(name, "removed")?;
        if let Some(cluster) = old.and_then(|a| a.cluster) {
            self.settle_cluster(cluster);
        }
        Ok(Change::Nothing)
    }

    /// Takes a node out of state; its identity stays refused, its Kubernetes node becomes a ghost.
    ///
    /// Returns the role it had. The caller settles that cluster, once it has given the role away.
    pub(super) fn retire(
        &mut self,
        name: &Name,
        how: &str,
    ) -> Result<Option<Assignment>, Rejection> {
        let id = self.node_id(name)?;
        self.emit(
            &format!("system.node.{how}"),
            Severity::Medium,
            Some(id),
            None,
            json!({
                "node": name, "by": self.by,
            }),
        );
        let Some(node) = self.state.nodes.remove(&id) else {
            return Ok(None);
        };
        let retired = Retired { uuid: node.uuid, name: node.name.clone(), at: self.at };
        self.state.retired.insert(id, retired);
        for vip in self.state.vips.values_mut() {
            vip.next = vip.next.filter(|n| n.node != id);
        }
        if let Some(old) = &node.assignment {
            self.leave_ghost(name, &node.networks, old);
        }
        Ok(node.assignment.clone())
    }

    /// Remembers that Kubernetes still has a node of this name, and etcd perhaps a member.
    pub(super) fn leave_ghost(
        &mut self,
        name: &Name,
        networks: &BTreeMap<NetworkId, OverlayAddress>,
        old: &Assignment,
    ) {
        let Some(cluster) = old.cluster.and_then(|c| self.state.clusters.get_mut(&c)) else {
            return;
        };
        let joined = matches!(
            old.phase,
            Phase::Bootstrapped
                | Phase::JoinRequested
                | Phase::Ready
                | Phase::Failed
                | Phase::Stopped
        );
        let lasts = cluster.status != ClusterStatus::Decommissioning;
        if lasts && cluster.secrets.is_some() && joined && !cluster.has_ghost(name) {
            let addresses = networks.get(&cluster.network).copied();
            cluster.ghosts.push(Ghost { name: name.clone(), addresses });
        }
    }

    /// Mends a cluster that lost a member: another founder, a new beginning, or no cluster at all.
    pub(super) fn settle_cluster(&mut self, id: ClusterId) {
        let entries = || {
            let all = self.state.nodes.values().filter_map(|n| n.assignment.as_ref());
            all.filter(|a| a.cluster == Some(id))
        };
        if entries().next().is_none() {
            self.delete_cluster(id);
            return;
        }
        let Some(cluster) = self.state.clusters.get(&id) else {
            return;
        };
        if cluster.status == ClusterStatus::Decommissioning {
            return;
        }
        let active = cluster.status == ClusterStatus::Active;
        let founder = cluster.bootstrap.and_then(|b| self.state.nodes.get(&b));
        let founder_stays = founder.is_some_and(|n| n.server_in(id).is_some());
        let has_etcd = |a: &Assignment| {
            let started = a.phase >= Phase::Bootstrapped && a.phase != Phase::JoinRequested;
            a.role == Role::K3sServer && started
        };
        let first = self.state.servers(id).first().map(|(n, _)| n.id);
        let least = if active { Phase::JoinRequested } else { Phase::Ready };
        let worker_joined = entries().any(|a| a.role == Role::K3sAgent && a.phase >= least);
        if active && entries().any(has_etcd) {
            // Founded is founded: no server may ever found it a second time, not even the same one.
            if !founder_stays {
                self.set_founder(id, None);
            }
            return;
        }
        if founder_stays {
            return;
        }
        let lost = cluster.secrets.is_some() && worker_joined;
        let name = cluster.name.clone();
        if active {
            self.emit(
                "system.k3s.cluster.lost",
                Severity::Critical,
                None,
                Some(id),
                json!({ "cluster": name, "founded_again": !lost }),
            );
        }
        if lost {
            self.set_founder(id, None);
            if let Some(c) = self.state.clusters.get_mut(&id) {
                c.status = ClusterStatus::Error;
            }
        } else {
            self.found_again(id, first);
        }
    }

    fn set_founder(&mut self, id: ClusterId, founder: Option<NodeId>) {
        if let Some(c) = self.state.clusters.get_mut(&id) {
            c.bootstrap = founder;
        }
    }

    /// Forgets what a founder left behind that nobody shares: tokens, endpoint, Kubernetes nodes.
    fn found_again(&mut self, id: ClusterId, founder: Option<NodeId>) {
        if let Some(c) = self.state.clusters.get_mut(&id) {
            c.bootstrap = founder;
            c.status = ClusterStatus::Pending;
            c.secrets = None;
            c.endpoint = None;
            c.version = None;
            // Measured on a machine that is gone.
            c.etcd = None;
            c.ghosts.clear();
        }
    }

    fn delete_cluster(&mut self, id: ClusterId) {
        let Some(cluster) = self.state.clusters.get(&id) else {
            return;
        };
        let (name, vip) = (cluster.name.clone(), cluster.vip);
        if let Some(vip) = vip.and_then(|id| self.state.vips.remove(&id)) {
            self.emit(
                "system.sdwan.virtual_ip.released",
                Severity::Medium,
                None,
                Some(id),
                json!({
                    "vip": vip.address.v6, "name": vip.name, "cluster": name,
                }),
            );
        }
        self.emit(
            "system.k3s.cluster.removed",
            Severity::Medium,
            None,
            Some(id),
            json!({
                "cluster": name,
            }),
        );
        self.state.clusters.remove(&id);
    }

    pub(super) fn forget_ghost(&mut self, cluster: ClusterId, name: &Name) -> Applied {
        let Some(c) = self.state.clusters.get_mut(&cluster) else {
            return Ok(Change::Nothing);
        };
        let before = c.ghosts.len();
        c.ghosts.retain(|g| g.name != *name);
        if c.ghosts.len() < before {
            self.emit(
                "system.k3s.node.removed",
                Severity::Low,
                None,
                Some(cluster),
                json!({
                    "node": name,
                }),
            );
        }
        Ok(Change::Nothing)
    }
}
