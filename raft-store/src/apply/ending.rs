//! The end of clusters and of nodes: roles first, then what carried them. Pure.

use serde_json::json;

use super::command::{Change, list};
use super::reject::{RejectCode, Rejection};
use super::{Applied, Context};
use crate::model::{ClusterStatus, Name, NodeId, Severity, State};

impl Context<'_> {
    /// Lets every member of a cluster give up its role; the cluster and its VIP go with the last of them.
    ///
    /// Nobody is left to take servers out of etcd in order, nor anything in Kubernetes that would be worth it.
    pub(super) fn decommission(&mut self, name: &Name) -> Applied {
        let Some(cluster) = self.state.cluster_named(name) else {
            let known = list(self.state.clusters.values().map(|c| &c.name));
            return Err(Rejection::new(
                RejectCode::NotFound,
                format!("cluster {name} was not decommissioned"),
                "there is no such cluster",
                format!("clusters are: {known}"),
            ));
        };
        let id = cluster.id;
        if cluster.status == ClusterStatus::Decommissioning {
            return Ok(Change::Cluster { id });
        }
        if let Some(c) = self.state.clusters.get_mut(&id) {
            c.status = ClusterStatus::Decommissioning;
            c.bootstrap = None;
            c.ghosts.clear();
        }
        let members = self.state.nodes.values().filter(|n| n.member_of(id).is_some());
        let members: Vec<NodeId> = members.map(|n| n.id).collect();
        self.emit(
            "system.k3s.cluster.decommissioning",
            Severity::High,
            None,
            Some(id),
            json!({ "cluster": name, "members": members.len(), "by": self.by }),
        );
        for node in members {
            self.start_leaving(node);
        }
        self.settle_cluster(id);
        Ok(Change::Cluster { id })
    }

    /// Marks a node's role as to be undone, and says so.
    pub(super) fn start_leaving(&mut self, id: NodeId) {
        let at = self.at;
        let Some(a) = self.state.node_mut(id).and_then(|n| n.assignment.as_mut()) else {
            return;
        };
        a.leaving = true;
        a.since = at;
        let (cluster, module) = (a.cluster, a.role.module());
        let name = self.state.name_of(id);
        self.emit(
            "system.k3s.module.unassigned",
            Severity::Low,
            Some(id),
            cluster,
            json!({ "instance": name, "module": module }),
        );
    }

    /// Takes a node out of the fleet: at once where it has no role, else when its daemon has undone it.
    pub(super) fn terminate(&mut self, name: &Name) -> Applied {
        let id = self.node_id(name)?;
        departure_guard(self.state, id, "terminated", &|_| true)?;
        if self.state.nodes[&id].terminating {
            return Ok(Change::Nothing);
        }
        self.unassign_role(name, false)?;
        if let Some(node) = self.state.node_mut(id) {
            node.terminating = true;
        }
        self.emit(
            "system.node.terminating",
            Severity::Medium,
            Some(id),
            None,
            json!({ "node": name, "by": self.by }),
        );
        self.finish_termination(id)?;
        Ok(Change::Nothing)
    }

    /// Removes a node that is to leave and has no role any more.
    pub(super) fn finish_termination(&mut self, id: NodeId) -> Result<(), Rejection> {
        let done = self.state.nodes.get(&id).filter(|n| n.terminating && n.assignment.is_none());
        let Some(name) = done.map(|n| n.name.clone()) else {
            return Ok(());
        };
        self.retire(&name, "terminated").map(drop)
    }
}

/// Tells whether a node may leave the fleet: somebody must stay who can take over what the fleet knows.
///
/// The state machine counts who is a node; who may be there at all, only the leader's view tells.
///
/// # Errors
/// When nobody would stay, or nobody of whom `there` holds. `how` ends "node NAME was not ...".
pub fn departure_guard(
    state: &State,
    id: NodeId,
    how: &str,
    there: &dyn Fn(NodeId) -> bool,
) -> Result<(), Rejection> {
    let staying = || state.nodes.values().filter(|n| n.id != id);
    if staying().any(|n| there(n.id)) {
        return Ok(());
    }
    let name = state.name_of(id);
    let (why, next) = if staying().next().is_none() {
        let next = "to give the fleet up, stop the daemon and delete its state folder";
        ("it is the fleet's last node".to_owned(), next)
    } else {
        let next = "start one of them, or join another machine first: skein node ls";
        (
            format!("nobody would be left: {} do(es) not answer", list(staying().map(|n| &n.name))),
            next,
        )
    };
    Err(Rejection::new(RejectCode::Guarded, format!("node {name} was not {how}"), why, next))
}
