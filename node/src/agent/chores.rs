//! What this node does at the Kubernetes API and at etcd: its drain, its pod ranges, the removal of former nodes. Shell.

use std::path::PathBuf;
use std::time::Duration;

use raft_store::apply::Command;
use raft_store::model::{Cluster, Drain, DrainStep, Node, Phase, Role, State};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};

use super::Shared;
use crate::env::Env;

/// Without a change, things are looked at this often.
const PERIOD: Duration = Duration::from_secs(1);
/// Known pod ranges are checked this often.
const PODS_PERIOD: Duration = Duration::from_secs(20);
/// Between the VIP's move and the first eviction, so that clients have found the new holder.
const SETTLE: Duration = Duration::from_millis(500);
/// How long a leaving server waits to be out of etcd before it stops anyway.
const LEAVE_MAX: Duration = Duration::from_secs(40);

/// The agent for chores.
pub struct ChoresAgent<E: Env> {
    shared: Shared<E>,
    data_dir: PathBuf,
    left: watch::Sender<bool>,
    leaving_since: Option<Instant>,
    moved_at: Option<(u64, Instant)>,
    pods_at: Option<Instant>,
    uncordoned: bool,
}

impl<E: Env> ChoresAgent<E> {
    /// Makes the agent; it says through `left` when a leaving server is out of etcd.
    pub fn new(shared: Shared<E>, data_dir: PathBuf, left: watch::Sender<bool>) -> Self {
        Self {
            shared,
            data_dir,
            left,
            leaving_since: None,
            moved_at: None,
            pods_at: None,
            uncordoned: false,
        }
    }

    /// Runs until the daemon ends.
    pub async fn run(mut self) {
        loop {
            let published = self.shared.store.published();
            if let Some(node) = published.state.nodes.get(&self.shared.me) {
                self.look(&published.state, node).await;
            }
            sleep(Duration::from_millis(50)).await;
            let _ = timeout(PERIOD, self.shared.store.changed(published.index)).await;
        }
    }

    async fn look(&mut self, state: &State, node: &Node) {
        self.leave(state, node).await;
        match &node.drain {
            Some(drain) if drain.step != DrainStep::Done => {
                self.uncordoned = false;
                self.drain(state, node, drain).await;
            }
            Some(_) => {}
            None => self.undo_cordon(state, node).await,
        }
        self.pods(state, node).await;
        self.ghosts(state).await;
    }

    /// Opens the Kubernetes API: on a server its own, elsewhere through the VIP.
    fn kube(&self, cluster: &Cluster, local: bool) -> Option<k3s::Kube> {
        let secrets = self.shared.secrets(cluster)?;
        let kubeconfig = k3s::Secret::new(secrets.kubeconfig.clone());
        let endpoint = cluster.endpoint.as_deref().filter(|_| !local);
        match k3s::Kube::new(&kubeconfig, endpoint) {
            Ok(kube) => Some(kube),
            Err(e) => {
                tracing::warn!(cluster = %cluster.name, error = %e, "the Kubernetes API cannot be used");
                None
            }
        }
    }

    async fn drain(&mut self, state: &State, node: &Node, drain: &Drain) {
        let result = match drain.step {
            DrainStep::Cordon => self.cordon(state, node).await,
            DrainStep::HandOver => self.hand_over(state, node).await,
            DrainStep::MoveVip => {
                let holds: Vec<_> =
                    state.vips.values().filter(|v| v.holder == Some(node.id)).collect();
                match holds.first() {
                    None => Ok(None),
                    Some(v) if drain.force && !can_move(state, v) => Ok(None),
                    Some(v) => Err(format!("VIP {} to move to another server", v.name)),
                }
            }
            DrainStep::Evict => self.evict(state, node, drain).await,
            DrainStep::Stop => match &node.assignment {
                Some(a) if a.phase != Phase::Stopped => Err("its k3s to stop".into()),
                _ => Ok(None),
            },
            DrainStep::Done => return,
        };
        let (done, message) = match result {
            Ok(note) => (true, note),
            Err(waits) => (false, Some(waits)),
        };
        if done && drain.step == DrainStep::MoveVip {
            self.moved_at = Some((drain.epoch, Instant::now()));
        }
        if done || message != drain.message {
            let command = Command::ReportDrain {
                node: node.id,
                epoch: drain.epoch,
                step: drain.step,
                done,
                message,
            };
            self.shared.propose(command).await;
        }
    }

    async fn cordon(&self, state: &State, node: &Node) -> Result<Option<String>, String> {
        let Some((cluster, kube)) = self.working_member(state, node) else {
            return Ok(None);
        };
        let done = kube.cordon(node.name.as_str()).await;
        done.map(|()| None).map_err(|e| format!("cordon in cluster {}: {e}", cluster.name))
    }

    fn working_member<'a>(
        &self,
        state: &'a State,
        node: &Node,
    ) -> Option<(&'a Cluster, k3s::Kube)> {
        let a = node.assignment.as_ref().filter(|a| a.phase == Phase::Ready)?;
        let cluster = state.clusters.get(&a.cluster?)?;
        Some((cluster, self.kube(cluster, a.role == Role::K3sServer)?))
    }

    async fn hand_over(&self, state: &State, node: &Node) -> Result<Option<String>, String> {
        let Some(cluster) = state.cluster_of(node).filter(|c| node.server_in(c.id).is_some())
        else {
            return Ok(None);
        };
        let Ok(etcd) = k3s::Etcd::open(&self.data_dir) else {
            return Ok(Some("no etcd on this server".into()));
        };
        let drained = state.servers(cluster.id).into_iter().filter(|(n, _)| n.drain.is_some());
        let avoid: Vec<String> = drained.map(|(n, _)| n.name.to_string()).collect();
        match etcd.hand_over(&avoid).await {
            Ok(k3s::HandOver::Moved { to }) => Ok(Some(format!("etcd is led by {to} now"))),
            Ok(k3s::HandOver::NotLeader) => Ok(None),
            Ok(k3s::HandOver::NoCandidate) => Ok(Some("etcd has no other voter to lead".into())),
            Err(e) => Err(format!("etcd's leadership to move: {e}")),
        }
    }

    async fn evict(
        &self,
        state: &State,
        node: &Node,
        drain: &Drain,
    ) -> Result<Option<String>, String> {
        if let Some((epoch, at)) = self.moved_at
            && epoch == drain.epoch
        {
            sleep(SETTLE.saturating_sub(at.elapsed())).await;
        }
        let Some((_, kube)) = self.working_member(state, node) else {
            return Ok(None);
        };
        let waited = self.shared.env.wall().0.saturating_sub(drain.since.0);
        let over = waited >= drain.timeout_ms;
        match kube.evict(node.name.as_str()).await {
            Ok(progress) if progress.done() => Ok(None),
            Ok(progress) if over => {
                Ok(Some(format!("the time is over with pods left: {progress:?}")))
            }
            Ok(progress) => Err(format!("pods to leave: {progress:?}")),
            Err(e) if over => Ok(Some(format!("the time is over, eviction failed: {e}"))),
            Err(e) => Err(format!("eviction: {e}")),
        }
    }

    /// Undoes our own cordon, also one that an earlier life of this daemon left behind.
    async fn undo_cordon(&mut self, state: &State, node: &Node) {
        if self.uncordoned {
            return;
        }
        if let Some((_, kube)) = self.working_member(state, node) {
            self.uncordoned = kube.uncordon(node.name.as_str()).await.is_ok();
        }
    }

    async fn pods(&mut self, state: &State, node: &Node) {
        let Some(a) = node.assignment.as_ref().filter(|a| !a.leaving) else {
            return;
        };
        let known = !a.pods.cidrs.is_empty();
        if known && self.pods_at.is_some_and(|at| at.elapsed() < PODS_PERIOD) {
            return;
        }
        let Some(cluster) = state.cluster_of(node).filter(|c| c.secrets.is_some()) else {
            return;
        };
        let local = a.role == Role::K3sServer;
        let Some(kube) = self.kube(cluster, local) else {
            return;
        };
        let Ok(Some(info)) = kube.node(node.name.as_str()).await else {
            return;
        };
        self.pods_at = Some(Instant::now());
        if info.pod_cidrs != a.pods.cidrs && !info.pod_cidrs.is_empty() {
            let command = Command::ReportPods {
                node: node.id,
                expect: a.pods.generation,
                cidrs: info.pod_cidrs,
            };
            self.shared.propose(command).await;
        }
    }

    /// Takes a leaving server out of etcd while it still runs: afterwards etcd could lack the quorum for it.
    async fn leave(&mut self, state: &State, node: &Node) {
        let leaving = node.assignment.as_ref().filter(|a| a.leaving);
        let Some(a) = leaving else {
            self.leaving_since = None;
            self.left.send_if_modified(std::mem::take);
            return;
        };
        if *self.left.borrow() {
            return;
        }
        let since = *self.leaving_since.get_or_insert_with(Instant::now);
        let others = a.cluster.map(|c| state.servers(c)).unwrap_or_default();
        let others = others.iter().any(|(n, o)| n.id != node.id && o.phase == Phase::Ready);
        let holds = state.vips.values().any(|v| v.holder == Some(node.id));
        let over = since.elapsed() > LEAVE_MAX;
        let wait = others && !over;
        if wait && (holds || !self.out_of_kubernetes(state, node, a.role).await) {
            return;
        }
        self.left.send_replace(true);
    }

    async fn out_of_kubernetes(&self, state: &State, node: &Node, role: Role) -> bool {
        let Some(cluster) = state.cluster_of(node) else {
            return true;
        };
        let Some(kube) = self.kube(cluster, false) else {
            return true;
        };
        let name = node.name.as_str();
        if let Err(e) = kube.delete_node(name).await {
            tracing::info!(error = %e, "this node could not be taken out of Kubernetes yet");
            return false;
        }
        if role != Role::K3sServer {
            return true;
        }
        match k3s::Etcd::open(&self.data_dir) {
            Err(_) => true,
            Ok(etcd) => match etcd.members().await {
                Ok(members) => !members.iter().any(|m| m.is_node(name)),
                // A removed member's etcd stops answering.
                Err(_) => true,
            },
        }
    }

    /// The VIP's holder clears up after machines that are gone.
    async fn ghosts(&self, state: &State) {
        for cluster in state.clusters.values().filter(|c| !c.ghosts.is_empty()) {
            let holder = state.vips.get(&cluster.vip).and_then(|v| v.holder);
            if holder != Some(self.shared.me) {
                continue;
            }
            let Some(kube) = self.kube(cluster, true) else {
                continue;
            };
            for ghost in &cluster.ghosts {
                let name = ghost.as_str();
                let gone = match kube.delete_node(name).await {
                    Ok(()) => kube.delete_node_password(name).await,
                    Err(e) => Err(e),
                };
                match gone {
                    Ok(()) => {
                        let command =
                            Command::ForgetGhost { cluster: cluster.id, name: ghost.clone() };
                        self.shared.propose(command).await;
                    }
                    Err(e) => {
                        tracing::info!(node = name, error = %e, "a former node is not out of Kubernetes yet")
                    }
                }
            }
        }
    }
}

fn can_move(state: &State, vip: &raft_store::model::Vip) -> bool {
    state.nodes.values().any(|n| vip.holder != Some(n.id) && state.candidacy(vip, n).is_ok())
}
