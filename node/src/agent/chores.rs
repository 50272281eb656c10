//! What this node does at the Kubernetes API and at etcd: its drain, its pod ranges, the removal of former nodes. Shell.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use k3s::{EtcdApi, KubeApi};
use raft_store::apply::Command;
use raft_store::model::{Cluster, Drain, DrainStep, Ghost, Name, Node, Phase, Role, State};
use raft_store::raft::Published;
use raft_store::rt::watch;
use raft_store::rt::{self, sleep, timeout};
use tokio::time::Instant;

use super::Shared;
use super::password::Password;
use super::pods::Pods;
use crate::env::Env;

/// Without a change, things are looked at this often.
const PERIOD: Duration = Duration::from_secs(1);
/// Between the VIP's move and the first eviction, so that clients have found the new holder.
const SETTLE: Duration = Duration::from_millis(500);
/// How long a leaving server waits to be out of etcd before it stops anyway.
const LEAVE_MAX: Duration = Duration::from_secs(40);
/// How long a leaving server tries to give etcd's leadership away before it leaves with it.
const LEAD_MAX: Duration = Duration::from_secs(10);

/// The agent for chores.
pub struct ChoresAgent<E: Env> {
    shared: Shared<E>,
    data_dir: PathBuf,
    left: watch::Sender<bool>,
    leaving_since: Option<Instant>,
    moved_at: Option<(u64, Instant)>,
    pods: Pods,
    password: Password,
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
            pods: Pods::default(),
            password: Password::default(),
            uncordoned: false,
        }
    }

    /// Runs until the daemon ends.
    pub async fn run(mut self) {
        loop {
            let Published { index, state } = self.shared.store.published();
            if let Some(node) = state.nodes.get(&self.shared.me) {
                self.look(&state, node).await;
            }
            drop(state);
            sleep(Duration::from_millis(50)).await;
            let _ = timeout(PERIOD, self.shared.store.changed(index)).await;
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
        let member = self.shared.own_cluster(state).filter(|c| node.member_of(c.id).is_some());
        if let Some(cluster) = member.filter(|_| self.password.is_due(&self.shared.own)) {
            self.password.forget(self.kube(cluster, false), &node.name).await;
        }
        self.ghosts(state).await;
    }

    /// Opens the Kubernetes API: on a server its own, elsewhere through the VIP.
    fn kube(&self, cluster: &Cluster, local: bool) -> Option<E::Kube> {
        let secrets = self.shared.secrets(cluster)?;
        let kubeconfig = k3s::Secret::new(secrets.kubeconfig.clone());
        let endpoint = cluster.endpoint.as_deref().filter(|_| !local);
        match self.shared.env.kube(&kubeconfig, endpoint) {
            Ok(kube) => Some(kube),
            Err(e) => {
                tracing::warn!(cluster = %cluster.name, error = %e, "the Kubernetes API cannot be used");
                None
            }
        }
    }

    async fn pods(&mut self, state: &State, node: &Node) {
        if !self.pods.is_due(node, rt::now()) {
            self.shared.own.update(|own| own.pods_wait = self.pods.refused());
            return;
        }
        let Some(cluster) = state.cluster_of(node).filter(|c| c.secrets.is_some()) else {
            return;
        };
        let Some(kube) = self.kube(cluster, node.server_in(cluster.id).is_some()) else {
            return;
        };
        let Ok(Some(info)) = kube.node(node.name.as_str()).await else {
            return;
        };
        let report = self.pods.report(state, node, info.pod_cidrs, rt::now());
        self.shared.own.update(|own| own.pods_wait = self.pods.refused());
        if let Some(command) = report {
            self.shared.propose(command).await;
        }
    }

    async fn drain(&mut self, state: &State, node: &Node, drain: &Drain) {
        let over = self.shared.known_time().is_some_and(|now| overdue(drain, now.0));
        let result = match drain.step {
            DrainStep::Cordon => go_on(self.cordon(state, node).await, drain.force || over),
            DrainStep::HandOver => go_on(self.hand_over(state, node).await, drain.force || over),
            DrainStep::MoveVip => {
                let holds: Vec<_> =
                    state.vips.values().filter(|v| v.holder == Some(node.id)).collect();
                match holds.first() {
                    None => Ok(None),
                    Some(v) if drain.force && (over || !can_move(state, v)) => Ok(None),
                    Some(v) => Err(format!("VIP {} to move to another server", v.name)),
                }
            }
            DrainStep::Evict => self.evict(state, node, drain, over).await,
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
            self.moved_at = Some((drain.epoch, rt::now()));
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

    fn working_member<'a>(&self, state: &'a State, node: &Node) -> Option<(&'a Cluster, E::Kube)> {
        let a = node.assignment.as_ref().filter(|a| a.phase == Phase::Ready)?;
        let cluster = state.clusters.get(&a.cluster?)?;
        Some((cluster, self.kube(cluster, a.role == Role::K3sServer)?))
    }

    async fn hand_over(&self, state: &State, node: &Node) -> Result<Option<String>, String> {
        let Some(cluster) = state.cluster_of(node).filter(|c| node.server_in(c.id).is_some())
        else {
            return Ok(None);
        };
        let Ok(etcd) = self.shared.env.etcd(&self.data_dir) else {
            return Ok(Some("no etcd on this server".into()));
        };
        match etcd.hand_over(&not_to_lead(state, cluster)).await {
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
        over: bool,
    ) -> Result<Option<String>, String> {
        if let Some((epoch, at)) = self.moved_at
            && epoch == drain.epoch
        {
            sleep(SETTLE.saturating_sub(rt::elapsed(at))).await;
        }
        let Some((_, kube)) = self.working_member(state, node) else {
            return Ok(None);
        };
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
        let since = *self.leaving_since.get_or_insert_with(rt::now);
        let others = a.cluster.map(|c| state.servers(c)).unwrap_or_default();
        let others = others.iter().any(|(n, o)| n.id != node.id && o.phase == Phase::Ready);
        let holds = state.vips.values().any(|v| v.holder == Some(node.id));
        let over = rt::elapsed(since) > LEAVE_MAX;
        // One whose data are gone, such as after a wipe that was interrupted, has left already.
        let joined = a.role != Role::K3sServer || self.shared.env.has_etcd_data(&self.data_dir);
        let wait = others && joined && !over;
        if wait && (holds || !self.out_of_kubernetes(state, node, a.role, since).await) {
            return;
        }
        self.left.send_replace(true);
    }

    async fn out_of_kubernetes(
        &self,
        state: &State,
        node: &Node,
        role: Role,
        since: Instant,
    ) -> bool {
        let Some(cluster) = state.cluster_of(node) else {
            return true;
        };
        let Some(kube) = self.kube(cluster, false) else {
            return true;
        };
        let etcd = (role == Role::K3sServer).then(|| self.shared.env.etcd(&self.data_dir).ok());
        let etcd = etcd.flatten();
        let outcome = match &etcd {
            Some(etcd) => match lead_no_more(state, cluster, etcd, &kube, node, since).await {
                Ok(()) => out_of_both(state, cluster, etcd, &kube, node).await,
                Err(why) => Err(why),
            },
            None => node_gone(&kube, &node.name).await,
        };
        if let Err(why) = &outcome {
            tracing::info!(%why, "this node is not out of Kubernetes yet");
        }
        outcome.is_ok()
    }

    /// The VIP's holder clears up after machines that are gone.
    async fn ghosts(&self, state: &State) {
        for cluster in state.clusters.values().filter(|c| !c.ghosts.is_empty()) {
            if state.spokesman(cluster) != Some(self.shared.me) {
                continue;
            }
            let Some(kube) = self.kube(cluster, true) else {
                continue;
            };
            for ghost in &cluster.ghosts {
                match self.lay_ghost(state, cluster, &kube, ghost).await {
                    Ok(()) => {
                        let name = ghost.name.clone();
                        let command = Command::ForgetGhost { cluster: cluster.id, name };
                        self.shared.propose(command).await;
                    }
                    Err(why) => {
                        tracing::info!(node = %ghost.name, %why, "a former node is not out of Kubernetes yet");
                    }
                }
            }
        }
    }

    async fn lay_ghost(
        &self,
        state: &State,
        cluster: &Cluster,
        kube: &impl KubeApi,
        ghost: &Ghost,
    ) -> Result<(), String> {
        node_gone(kube, &ghost.name).await?;
        if let Ok(etcd) = self.shared.env.etcd(&self.data_dir) {
            let addresses = ghost.addresses.iter().flat_map(|a| a.both()).collect();
            let identity = k3s::Identity { node: ghost.name.to_string(), addresses };
            member_gone(state, cluster, &etcd, &ghost.name, &identity).await?;
        }
        // Last: with it a machine of this name could join, while the old one still counts in etcd.
        kube.delete_node_password(ghost.name.as_str()).await.map_err(|e| e.to_string())
    }
}

/// Gives etcd's leadership away, as long as the node is in Kubernetes and there is time.
async fn lead_no_more(
    state: &State,
    cluster: &Cluster,
    etcd: &impl EtcdApi,
    kube: &impl KubeApi,
    node: &Node,
    since: Instant,
) -> Result<(), String> {
    let found = kube.node(node.name.as_str()).await.map_err(|e| e.to_string())?;
    if found.is_none() || rt::elapsed(since) > LEAD_MAX {
        return Ok(());
    }
    let moved = etcd.hand_over(&not_to_lead(state, cluster)).await;
    moved.map(drop).map_err(|e| format!("etcd's leadership to move: {e}"))
}

/// Takes a server out of Kubernetes and etcd. That its own etcd is silent proves nothing, so the others are asked then.
async fn out_of_both(
    state: &State,
    cluster: &Cluster,
    etcd: &impl EtcdApi,
    kube: &impl KubeApi,
    node: &Node,
) -> Result<(), String> {
    node_gone(kube, &node.name).await?;
    member_gone(state, cluster, etcd, &node.name, &identity(cluster, node)).await
}

/// Deletes a Node. K3s keeps it until it has taken its member out of etcd, so an accepted request proves nothing.
async fn node_gone(kube: &impl KubeApi, name: &Name) -> Result<(), String> {
    let asked = async {
        kube.delete_node(name.as_str()).await?;
        kube.node(name.as_str()).await
    };
    match asked.await {
        Ok(None) => Ok(()),
        Ok(Some(_)) => Err("K3s to let its Node go".into()),
        Err(e) => Err(e.to_string()),
    }
}

/// Takes a member out of etcd that K3s left there: it looks for one under the Node's name, which old releases do not give it.
async fn member_gone(
    state: &State,
    cluster: &Cluster,
    etcd: &impl EtcdApi,
    name: &Name,
    identity: &k3s::Identity,
) -> Result<(), String> {
    let others = state.servers(cluster.id).into_iter();
    let others = others.filter(|(n, a)| n.name != *name && a.phase == Phase::Ready);
    let others: Vec<IpAddr> =
        others.filter_map(|(n, _)| Some(n.networks.get(&cluster.network)?.v4.into())).collect();
    let view = etcd.members_anywhere(&others).await.map_err(|e| e.to_string())?;
    match identity.find(&unclaimed(state, cluster, name, &view.members)) {
        None => Ok(()),
        Some(member) => {
            etcd.remove(&view, member).await.map_err(|e| e.to_string())?;
            Err("its etcd member was taken out; to be seen to be gone".into())
        }
    }
}

/// The members that do not lie at the address of a node of another name.
fn unclaimed(
    state: &State,
    cluster: &Cluster,
    name: &Name,
    members: &[k3s::Member],
) -> Vec<k3s::Member> {
    let others = state.nodes.values().filter(|n| n.name != *name);
    let claimed: Vec<IpAddr> = others
        .filter_map(|n| n.networks.get(&cluster.network))
        .flat_map(raft_store::model::OverlayAddress::both)
        .collect();
    let free = |m: &&k3s::Member| !m.addresses.iter().any(|ip| claimed.contains(ip));
    members.iter().filter(free).cloned().collect()
}

/// How etcd knows a node.
fn identity(cluster: &Cluster, node: &Node) -> k3s::Identity {
    let own = node.networks.get(&cluster.network);
    let addresses = own.into_iter().flat_map(raft_store::model::OverlayAddress::both).collect();
    k3s::Identity { node: node.name.to_string(), addresses }
}

/// Servers that will not stay, and should not lead etcd.
fn not_to_lead(state: &State, cluster: &Cluster) -> Vec<k3s::Identity> {
    let going = |n: &Node| {
        let a = n.assignment.as_ref().filter(|a| a.cluster == Some(cluster.id));
        a.is_some_and(|a| a.role == Role::K3sServer && (a.leaving || n.drain.is_some()))
    };
    state.nodes.values().filter(|n| going(n)).map(|n| identity(cluster, n)).collect()
}

/// Tells whether a drain's time is over.
fn overdue(drain: &Drain, now_ms: u64) -> bool {
    now_ms.saturating_sub(drain.since.0) >= drain.timeout_ms
}

/// What a failed step comes to: a drain that is overdue or forced goes on, and says what it left behind.
fn go_on(result: Result<Option<String>, String>, anyway: bool) -> Result<Option<String>, String> {
    match result {
        Err(waits) if anyway => Ok(Some(format!("not waited for: {waits}"))),
        other => other,
    }
}

fn can_move(state: &State, vip: &raft_store::model::Vip) -> bool {
    state.nodes.values().any(|n| vip.holder != Some(n.id) && state.candidacy(vip, n).is_ok())
}

#[cfg(test)]
mod tests {
    use raft_store::model::{NodeId, UnixMillis};

    use super::*;
    use crate::project::tests::lab;

    #[test]
    fn an_overdue_or_forced_step_is_left_out_with_a_note() {
        let failed = || Err("etcd's leadership to move: no answer".to_owned());
        assert_eq!(go_on(failed(), false), failed());
        let note = go_on(failed(), true).unwrap().unwrap();
        assert!(note.contains("no answer"), "{note}");
        assert_eq!(go_on(Ok(None), true), Ok(None));
        let drain = lab().nodes[&NodeId(1)].drain.clone().unwrap();
        let begun = drain.since.0;
        assert!(!overdue(&drain, begun + drain.timeout_ms - 1));
        assert!(overdue(&drain, begun + drain.timeout_ms));
        assert!(!overdue(&Drain { since: UnixMillis(begun + 9), ..drain }, begun));
    }

    #[test]
    fn a_member_at_the_address_of_another_node_is_never_taken_for_a_ghost() {
        let state = lab();
        let cluster = state.clusters.values().next().unwrap();
        let member = |id: u64, name: &str, address: &str| k3s::Member {
            id,
            name: name.into(),
            learner: false,
            addresses: vec![address.parse().unwrap()],
            client_urls: Vec::new(),
            leader: false,
            local: false,
        };
        let name: Name = "n9".parse().unwrap();
        // n2 runs on a machine whose own name is that of the ghost.
        let members =
            [member(1, "n9-0a1b2c3d", "10.90.0.2"), member(2, "n9-4e5f6a7b", "10.90.0.9")];
        let gone = k3s::Identity { node: "n9".into(), addresses: Vec::new() };
        let found = |members: &[k3s::Member]| {
            gone.find(&unclaimed(&state, cluster, &name, members)).map(|m| m.id)
        };
        assert_eq!(found(&members), Some(2));
        assert_eq!(found(&members[..1]), None);
    }

    #[test]
    fn leadership_goes_to_servers_that_stay() {
        let mut state = lab();
        let node = state.node_mut(NodeId(5)).unwrap();
        node.assignment.as_mut().unwrap().leaving = true;
        let cluster = state.clusters.values().next().unwrap();
        let avoided: Vec<String> =
            not_to_lead(&state, cluster).into_iter().map(|i| i.node).collect();
        assert_eq!(avoided, ["n1", "n3"]);
    }
}
