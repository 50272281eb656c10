//! Nodes: looking them up, and taking them out everywhere. Pure.

use serde_json::json;

use super::command::{Change, list};
use super::reject::{RejectCode, Rejection};
use super::{Applied, Context};
use crate::model::{
    Assignment, ClusterId, ClusterStatus, Name, NodeId, Phase, PodRanges, Retired, Severity,
};

impl Context<'_> {
    /// Finds a node by name.
    pub(super) fn node_id(&self, name: &Name) -> Result<NodeId, Rejection> {
        self.state.node_named(name).map(|n| n.id).ok_or_else(|| {
            Rejection::new(
                RejectCode::NotFound,
                format!("node {name} was not found"),
                "no member has this name",
                format!(
                    "nodes are: {}",
                    list(self.state.nodes.values().map(|n| &n.name))
                ),
            )
        })
    }

    pub(super) fn remove_node(&mut self, name: &Name, force: bool) -> Applied {
        let id = self.node_id(name)?;
        let what = format!("node {name} was not removed");
        if self.state.nodes.len() == 1 {
            let why = "it is the fleet's last node";
            let next = "to give the fleet up, stop the daemon and delete its state folder";
            return Err(Rejection::new(RejectCode::Guarded, what, why, next));
        }
        if let Some(a) = &self.state.nodes[&id].assignment
            && !force
        {
            let why = format!("it is a {} still", a.role.module());
            let next = format!(
                "skein node unassign {name}, or, if the machine is lost, skein node rm {name} --force"
            );
            return Err(Rejection::new(RejectCode::Guarded, what, why, next));
        }
        self.retire(name, "removed")?;
        Ok(Change::Nothing)
    }

    /// Takes a node out of state; its identity stays refused, its Kubernetes node becomes a ghost.
    ///
    /// A node that replaces it later under its name starts with a fresh copy of its role.
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
        let retired = Retired {
            uuid: node.uuid,
            name: node.name.clone(),
            at: self.at,
        };
        self.state.retired.insert(id, retired);
        for vip in self.state.vips.values_mut() {
            vip.next = vip.next.filter(|n| n.node != id);
        }
        let Some(old) = node.assignment else {
            return Ok(None);
        };
        if let Some(cluster) = old.cluster.and_then(|c| self.state.clusters.get_mut(&c)) {
            let known_to_kubernetes =
                cluster.secrets.is_some() && old.phase >= Phase::JoinRequested;
            if known_to_kubernetes && !cluster.ghosts.contains(name) {
                cluster.ghosts.push(name.clone());
            }
            let cluster = cluster.id;
            self.settle_cluster(cluster);
        }
        Ok(Some(Assignment {
            order: self.index,
            phase: Phase::Assigned,
            message: None,
            version: None,
            since: self.at,
            pods: PodRanges::default(),
            leaving: false,
            ..old
        }))
    }

    /// Mends a cluster that lost a member: another founder, or no cluster at all.
    pub(super) fn settle_cluster(&mut self, id: ClusterId) {
        let members = |c: &Self| {
            c.state
                .nodes
                .values()
                .any(|n| n.assignment.as_ref().is_some_and(|a| a.cluster == Some(id)))
        };
        if !members(self) {
            self.delete_cluster(id);
            return;
        }
        let first = self.state.servers(id).first().map(|(n, _)| n.id);
        let Some(cluster) = self.state.clusters.get_mut(&id) else {
            return;
        };
        let founder_left = cluster.bootstrap.is_none_or(|b| {
            self.state
                .nodes
                .get(&b)
                .is_none_or(|n| n.server_in(id).is_none())
        });
        if founder_left && cluster.secrets.is_none() {
            cluster.bootstrap = first;
            cluster.status = ClusterStatus::Pending;
        }
    }

    fn delete_cluster(&mut self, id: ClusterId) {
        let Some(cluster) = self.state.clusters.get(&id) else {
            return;
        };
        let (name, vip) = (cluster.name.clone(), cluster.vip);
        if let Some(vip) = self.state.vips.remove(&vip) {
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
        c.ghosts.retain(|g| g != name);
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
