//! Clusters, kubeconfigs and VIPs. Shell.

use raft_store::apply::{Command, CreateCluster};
use raft_store::model::{Cluster, MoveReason, State, Vip};
use tonic::{Code, Request, Response, Status};

use super::{Api, list, name, names, optional_name};
use crate::daemon::{CallError, Daemon};
use crate::proto;
use crate::proto::clusters_server::Clusters;
use crate::proto::vips_server::Vips;
use crate::secrets::{CLUSTER_SECRETS, ClusterSecrets};
use crate::status::{detail, from_call, not_found, status};

type Answer<T> = Result<Response<T>, Status>;

fn find<'a>(state: &'a State, text: &str) -> Result<&'a Cluster, Status> {
    let found = text.parse().ok().and_then(|name| state.cluster_named(&name));
    found.ok_or_else(|| not_found("cluster", text, &list(state.clusters.values().map(|c| &c.name))))
}

fn find_vip<'a>(state: &'a State, text: &str) -> Result<&'a Vip, Status> {
    let known = || list(state.vips.values().map(|v| &v.name));
    state.vip_named(text).ok_or_else(|| not_found("VIP", text, &known()))
}

#[tonic::async_trait]
impl<D: Daemon> Clusters for Api<D> {
    async fn create(
        &self,
        request: Request<proto::CreateClusterRequest>,
    ) -> Answer<proto::Cluster> {
        let r = request.get_ref();
        let command = Command::CreateCluster(CreateCluster {
            name: name(&r.name)?,
            network: optional_name(&r.network)?,
            servers: names(&r.servers)?,
            workers: names(&r.workers)?,
        });
        self.propose(&request, &r.request_id, command).await?;
        let read = self.scene(Some(&proto::Read { stale: true })).await?;
        let cluster = find(read.state(), &r.name)?;
        Ok(Response::new(read.scene().cluster(cluster)))
    }

    async fn list(
        &self,
        request: Request<proto::ListClustersRequest>,
    ) -> Answer<proto::ListClustersResponse> {
        let read = self.scene(request.get_ref().read.as_ref()).await?;
        let scene = read.scene();
        let clusters = read.state().clusters.values().map(|c| scene.cluster(c)).collect();
        Ok(Response::new(proto::ListClustersResponse { clusters, applied: read.applied() }))
    }

    async fn get(&self, request: Request<proto::GetClusterRequest>) -> Answer<proto::Cluster> {
        let r = request.get_ref();
        let read = self.scene(r.read.as_ref()).await?;
        let cluster = find(read.state(), &r.name)?;
        Ok(Response::new(read.scene().cluster(cluster)))
    }

    async fn get_kubeconfig(
        &self,
        request: Request<proto::GetKubeconfigRequest>,
    ) -> Answer<proto::Kubeconfig> {
        let read = self.scene(Some(&proto::Read { stale: true })).await?;
        let cluster = find(read.state(), &request.get_ref().cluster)?;
        let (Some(sealed), Some(endpoint)) = (&cluster.secrets, &cluster.endpoint) else {
            let why = format!("the cluster is {} still", read.scene().cluster_word(cluster));
            let next = format!("skein cluster show {}", cluster.name);
            let detail = detail("not_available", "there is no kubeconfig yet", why, next);
            return Err(status(Code::FailedPrecondition, detail));
        };
        let not_ready = |why: String| from_call(CallError::NotReady(why));
        let key = self.daemon.fleet_key();
        let key = key
            .ok_or_else(|| not_ready("this node has not been handed the fleet's key yet".into()))?;
        let opened = key.open(CLUSTER_SECRETS, sealed).map_err(|e| not_ready(e.to_string()))?;
        let secrets: ClusterSecrets = serde_json::from_slice(opened.expose())
            .map_err(|e| not_ready(format!("the cluster's secrets are unreadable: {e}")))?;
        let kubeconfig =
            self.daemon.kubeconfig(&secrets.kubeconfig, endpoint, cluster.name.as_str());
        let kubeconfig = kubeconfig.map_err(not_ready)?;
        Ok(Response::new(proto::Kubeconfig { kubeconfig, api_endpoint: endpoint.clone() }))
    }

    async fn decommission(
        &self,
        request: Request<proto::DecommissionRequest>,
    ) -> Answer<proto::DecommissionResponse> {
        let command = Command::DecommissionCluster { name: name(&request.get_ref().name)? };
        self.propose(&request, "", command).await?;
        Ok(Response::new(proto::DecommissionResponse {}))
    }
}

#[tonic::async_trait]
impl<D: Daemon> Vips for Api<D> {
    async fn list(
        &self,
        request: Request<proto::ListVipsRequest>,
    ) -> Answer<proto::ListVipsResponse> {
        let read = self.scene(request.get_ref().read.as_ref()).await?;
        let scene = read.scene();
        let vips = read.state().vips.values().map(|v| scene.vip(v)).collect();
        Ok(Response::new(proto::ListVipsResponse { vips, applied: read.applied() }))
    }

    async fn get(&self, request: Request<proto::GetVipRequest>) -> Answer<proto::Vip> {
        let r = request.get_ref();
        let read = self.scene(r.read.as_ref()).await?;
        let vip = find_vip(read.state(), &r.name)?;
        Ok(Response::new(read.scene().vip(vip)))
    }

    async fn r#move(&self, request: Request<proto::MoveVipRequest>) -> Answer<proto::Vip> {
        let r = request.get_ref();
        let read = self.scene(None).await?;
        let vip = find_vip(read.state(), &r.name)?;
        let candidates = read.scene().candidates(vip);
        let wanted = candidates.iter().find(|(id, c)| {
            if r.to.is_empty() { c.eligible && vip.holder != Some(*id) } else { c.node == r.to }
        });
        let refused = |why: String| {
            let next = format!("skein vip show {}", vip.name);
            let detail = detail("guarded", format!("VIP {} was not moved", vip.name), why, next);
            status(Code::FailedPrecondition, detail)
        };
        let (to, candidate) = match wanted {
            Some(found) => found,
            None if r.to.is_empty() => {
                let reasons = candidates.iter().filter(|(id, _)| vip.holder != Some(*id));
                let reasons: Vec<String> =
                    reasons.map(|(_, c)| format!("{} {}", c.node, c.reason)).collect();
                let why = if reasons.is_empty() {
                    "it is the cluster's only server".into()
                } else {
                    reasons.join("; ")
                };
                return Err(refused(format!("no other server can hold it: {why}")));
            }
            None => {
                return Err(not_found(
                    "server",
                    &r.to,
                    &candidates.iter().map(|(_, c)| c.node.clone()).collect::<Vec<_>>(),
                ));
            }
        };
        if !candidate.eligible {
            return Err(refused(format!(
                "{} cannot hold it: it {}",
                candidate.node, candidate.reason
            )));
        }
        let mut answer = read.scene().vip(vip);
        answer.next.clone_from(&candidate.node);
        if r.dry_run || vip.holder == Some(*to) {
            return Ok(Response::new(answer));
        }
        let command = Command::PrepareVip {
            vip: vip.id,
            expect: vip.generation,
            to: *to,
            reason: MoveReason::Manual,
        };
        self.propose(&request, "", command).await?;
        Ok(Response::new(answer))
    }
}
