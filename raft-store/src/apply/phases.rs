//! Reports of daemons about their role: from an assignment to a working member, and back. Pure.

use serde_json::json;

use super::command::{Change, ReportPhase};
use super::reject::{RejectCode, Rejection};
use super::{Applied, Context};
use crate::model::{
    Assignment, Cluster, ClusterId, ClusterStatus, EtcdTimers, MoveReason, NodeId, Phase, Role,
    Severity, Vip, VipId,
};

impl Context<'_> {
    pub(super) fn report_phase(&mut self, r: &ReportPhase) -> Applied {
        let Some(before) = self.current(r.node, r.order) else {
            return Ok(Change::Nothing);
        };
        if before.leaving {
            if r.phase == Phase::Stopped {
                self.finish_leaving(r.node, &before);
                self.finish_termination(r.node)?;
            }
            return Ok(Change::Nothing);
        }
        let Some(cluster) = before.cluster else {
            return Ok(Change::Nothing);
        };
        // A member that once worked stays one: restarts of k3s are seen, not replicated.
        let founded = self.state.clusters.get(&cluster).is_some_and(|c| c.secrets.is_some());
        let going_back = before.phase == Phase::Ready
            && (founded || r.phase != Phase::Bootstrapped)
            && matches!(
                r.phase,
                Phase::Assigned | Phase::Installing | Phase::Bootstrapped | Phase::JoinRequested
            );
        let phase = if going_back { Phase::Ready } else { r.phase };
        let entered = phase != before.phase;
        if entered {
            self.enter_phase(r, &before, cluster)?;
        }
        let upgraded =
            phase == Phase::Ready && !entered && r.version.is_some() && r.version != before.version;
        let at = self.at;
        if let Some(a) = self.state.node_mut(r.node).and_then(|n| n.assignment.as_mut()) {
            a.phase = phase;
            a.message.clone_from(&r.message);
            if r.version.is_some() {
                a.version.clone_from(&r.version);
            }
            if entered {
                a.since = at;
            }
        }
        if upgraded {
            self.emit_ready(r, before.role, cluster);
        }
        Ok(Change::Nothing)
    }

    /// Only before the first start: members with different timers, or all restarted at once, would cost the quorum.
    pub(super) fn set_etcd_timers(&mut self, cluster: ClusterId, timers: EtcdTimers) -> Applied {
        if !timers.are_valid() {
            let why = "etcd takes a heartbeat above 0 and elections of 5 heartbeats to 50 s";
            let next = "report this as a bug";
            return Err(Rejection::new(
                RejectCode::Invalid,
                "etcd's timers were not set",
                why,
                next,
            ));
        }
        let undecided = |c: &&mut Cluster| c.secrets.is_none() && c.etcd.is_none();
        if let Some(c) = self.state.clusters.get_mut(&cluster).filter(undecided) {
            c.etcd = Some(timers);
        }
        Ok(Change::Nothing)
    }

    fn current(&self, node: NodeId, order: u64) -> Option<Assignment> {
        let a = self.state.nodes.get(&node)?.assignment.as_ref()?;
        (a.order == order).then(|| a.clone())
    }

    fn enter_phase(
        &mut self,
        r: &ReportPhase,
        before: &Assignment,
        cluster: ClusterId,
    ) -> Result<(), Rejection> {
        let name = self.state.name_of(r.node);
        let is_founder =
            self.state.clusters.get(&cluster).is_some_and(|c| c.bootstrap == Some(r.node));
        let founding = is_founder && before.role == Role::K3sServer;
        match r.phase {
            Phase::Assigned | Phase::Stopped => {}
            Phase::Installing => {
                self.emit(
                    "system.k3s.runtime.installing",
                    Severity::Low,
                    Some(r.node),
                    Some(cluster),
                    json!({ "instance": name, "role": before.role.module() }),
                );
                if founding {
                    self.start_founding(r, cluster);
                }
            }
            Phase::Bootstrapped => self.bootstrapped(r, cluster, founding)?,
            Phase::JoinRequested => {
                self.emit("system.k3s.handshake.join_request", Severity::Low, Some(r.node), Some(cluster), json!({
                    "instance": name, "requested": self.state.clusters.get(&cluster).map(|c| &c.name),
                    "role": before.role.module(),
                }));
                if self
                    .state
                    .clusters
                    .get(&cluster)
                    .is_some_and(|c| c.status == ClusterStatus::Active)
                {
                    self.emit_token_issued(r.node, cluster);
                }
            }
            Phase::Ready => {
                self.emit_ready(r, before.role, cluster);
                if before.role == Role::K3sServer {
                    self.activate(cluster);
                }
            }
            Phase::Failed => {
                self.emit(
                    "system.k3s.runtime.failed",
                    Severity::High,
                    Some(r.node),
                    Some(cluster),
                    json!({
                        "instance": name, "role": before.role.module(), "reason": r.message,
                    }),
                );
                if let Some(c) = self.state.clusters.get_mut(&cluster)
                    && founding
                    && c.status != ClusterStatus::Active
                {
                    c.status = ClusterStatus::Error;
                }
            }
        }
        Ok(())
    }

    fn start_founding(&mut self, r: &ReportPhase, cluster: ClusterId) {
        if let Some(c) = self.state.clusters.get_mut(&cluster)
            && c.status != ClusterStatus::Active
        {
            c.status = ClusterStatus::Bootstrapping;
            if c.endpoint.is_none() {
                c.endpoint.clone_from(&r.endpoint);
            }
        }
    }

    /// Records the secrets, gives the VIP its first holder and sets the endpoint, all at once.
    fn bootstrapped(
        &mut self,
        r: &ReportPhase,
        cluster: ClusterId,
        founding: bool,
    ) -> Result<(), Rejection> {
        let name = self.state.name_of(r.node);
        let refuse = |why: &str| {
            Rejection::new(
                RejectCode::Conflict,
                format!("the bootstrap by {name} was refused"),
                why,
                "skein cluster ls",
            )
        };
        let Some(c) = self.state.clusters.get_mut(&cluster) else {
            return Err(refuse("the cluster is gone"));
        };
        if !founding {
            return Err(refuse("another server founds this cluster"));
        }
        let (Some(secrets), Some(endpoint)) =
            (&r.secrets, r.endpoint.as_ref().or(c.endpoint.as_ref()))
        else {
            return Err(refuse("kubeconfig, tokens or endpoint are missing from the report"));
        };
        let endpoint = endpoint.clone();
        c.secrets = Some(secrets.clone());
        c.endpoint = Some(endpoint.clone());
        c.version.clone_from(&r.version);
        if c.status != ClusterStatus::Active {
            c.status = ClusterStatus::Bootstrapping;
        }
        let (vip, cni, cluster_name) = (c.vip, c.cni.clone(), c.name.clone());
        self.emit(
            "system.k3s.handshake.bootstrap",
            Severity::Low,
            Some(r.node),
            Some(cluster),
            json!({
                "instance": name, "version": r.version,
            }),
        );
        self.allocate_vip(r.node, cluster, vip);
        self.emit(
            "system.k3s.cluster.bootstrapped",
            Severity::Low,
            Some(r.node),
            Some(cluster),
            json!({
                "cluster": cluster_name, "api_endpoint": endpoint, "cni": cni,
            }),
        );
        Ok(())
    }

    /// Gives the VIP its first holder, or says that there is none and what that means.
    fn allocate_vip(&mut self, node: NodeId, cluster: ClusterId, vip: Option<VipId>) {
        let Some(c) = self.state.clusters.get(&cluster) else { return };
        let unfounded = c.status != ClusterStatus::Active;
        let (name, holder) = (c.name.clone(), self.state.name_of(node));
        let Some(vip) = vip else {
            let network = self.state.networks.get(&c.network).map(|n| n.name.clone());
            let payload = json!({
                "cluster": name, "api_endpoint": c.endpoint, "network": network,
                "why": "the network has no VIP left: the endpoint is one server's own address and does not move",
            });
            let kind = "system.sdwan.virtual_ip.fallback_active";
            self.emit(kind, Severity::High, Some(node), Some(cluster), payload);
            return;
        };
        // A founder that took over from one that was lost takes the VIP as well.
        let held = |v: &Vip| v.holder.is_some() && (!unfounded || v.holder == Some(node));
        if self.state.vips.get(&vip).is_none_or(held) {
            return;
        }
        self.give_vip(vip, node, MoveReason::Initial);
        let v = &self.state.vips[&vip];
        let payload = json!({
            "vip": v.address.v6, "vip_v4": v.address.v4, "name": v.name,
            "purpose": "k3s_api_endpoint", "cluster": name, "holder": holder,
        });
        self.emit(
            "system.sdwan.virtual_ip.allocated",
            Severity::Low,
            Some(node),
            Some(cluster),
            payload,
        );
    }

    fn activate(&mut self, cluster: ClusterId) {
        let Some(c) = self.state.clusters.get_mut(&cluster) else {
            return;
        };
        if c.status == ClusterStatus::Active || c.secrets.is_none() {
            return;
        }
        c.status = ClusterStatus::Active;
        let asked = |a: &Assignment| a.phase == Phase::JoinRequested;
        let waiting: Vec<NodeId> = self
            .state
            .nodes
            .values()
            .filter(|n| n.member_of(cluster).is_some_and(asked))
            .map(|n| n.id)
            .collect();
        for node in waiting {
            self.emit_token_issued(node, cluster);
        }
    }

    fn emit_ready(&mut self, r: &ReportPhase, role: Role, cluster: ClusterId) {
        let name = self.state.name_of(r.node);
        self.emit(
            "system.k3s.handshake.ready",
            Severity::Low,
            Some(r.node),
            Some(cluster),
            json!({
                "instance": name, "role": role.display(), "version": r.version,
            }),
        );
    }

    fn emit_token_issued(&mut self, node: NodeId, cluster: ClusterId) {
        let name = self.state.name_of(node);
        let of = self.state.clusters.get(&cluster).map(|c| c.name.clone());
        self.emit(
            "system.k3s.handshake.join_token_issued",
            Severity::Low,
            Some(node),
            Some(cluster),
            json!({
                "instance": name, "cluster": of,
            }),
        );
    }

    fn finish_leaving(&mut self, node: NodeId, a: &Assignment) {
        let name = self.state.name_of(node);
        self.emit(
            "system.k3s.runtime.stopped",
            Severity::Low,
            Some(node),
            a.cluster,
            json!({
                "instance": name, "role": a.role.module(),
            }),
        );
        if let Some(n) = self.state.node_mut(node) {
            n.assignment = None;
            let (name, networks) = (n.name.clone(), n.networks.clone());
            self.leave_ghost(&name, &networks, a);
        }
        if let Some(cluster) = a.cluster {
            self.settle_cluster(cluster);
        }
    }
}
