//! The Kubernetes API and etcd's, as a daemon asks them. Shell.

use std::net::IpAddr;
use std::time::Duration;

use ipnet::IpNet;
use k3s::etcd::{EtcdApi, EtcdError, HandOver, Identity, View};
use k3s::kube::{EvictProgress, KubeApi, KubeError, NodeInfo};
use raft_store::rt::now;

use super::cluster::{Cluster, Kubernetes, host_of};

/// How long a pod takes to go.
const EVICTION: Duration = Duration::from_secs(2);

/// A cluster's API, from a machine.
pub struct SimKube {
    all: Kubernetes,
    from: usize,
    cluster: usize,
    endpoint: Option<String>,
}

impl SimKube {
    pub(super) fn new(
        all: Kubernetes,
        from: usize,
        cluster: usize,
        endpoint: Option<String>,
    ) -> Self {
        Self { all, from, cluster, endpoint }
    }

    /// Does something at the API, if a server answers.
    fn at<T>(&self, act: impl FnOnce(&mut Cluster) -> T) -> Result<T, KubeError> {
        let url = self.endpoint.clone().unwrap_or_else(|| "https://127.0.0.1:6443".into());
        let silent =
            |detail: &str| KubeError::Unreachable { url: url.clone(), detail: detail.into() };
        let server = match &self.endpoint {
            None => self.from,
            Some(endpoint) => {
                let address = host_of(endpoint).ok_or_else(|| silent("no address"))?;
                let found = self.all.reach.answers(self.from, address);
                found.ok_or_else(|| silent("connection timed out"))?
            }
        };
        let ready = self.all.machine(server).is_ready();
        let mut state = self.all.lock();
        let serves = ready && state.serves(&*self.all.reach, server, self.cluster);
        let cluster = state.clusters.get_mut(self.cluster).filter(|_| serves);
        cluster.map(act).ok_or_else(|| silent("connection refused"))
    }
}

impl KubeApi for SimKube {
    async fn node(&self, name: &str) -> Result<Option<NodeInfo>, KubeError> {
        self.at(|cluster| {
            let node = cluster.nodes.get(name)?;
            let pods: Option<IpNet> = format!("10.42.{}.0/24", node.pods).parse().ok();
            Some(NodeInfo {
                name: name.to_owned(),
                ready: true,
                detail: String::new(),
                cordoned: node.cordoned,
                cordoned_by_us: node.cordoned_by_us,
                pod_cidrs: pods.into_iter().collect(),
                addresses: node.addresses.clone(),
                server: node.server,
                version: "v1.33.5+k3s1".into(),
            })
        })
    }

    async fn cordon(&self, name: &str) -> Result<(), KubeError> {
        self.at(|cluster| {
            if let Some(node) = cluster.nodes.get_mut(name).filter(|n| !n.cordoned) {
                (node.cordoned, node.cordoned_by_us) = (true, true);
            }
        })
    }

    async fn uncordon(&self, name: &str) -> Result<bool, KubeError> {
        self.at(|cluster| {
            let ours = cluster.nodes.get_mut(name).filter(|n| n.cordoned_by_us);
            ours.is_some_and(|node| {
                (node.cordoned, node.cordoned_by_us, node.running_pods) = (false, false, 2);
                true
            })
        })
    }

    async fn evict(&self, node: &str) -> Result<EvictProgress, KubeError> {
        self.at(|cluster| {
            let mut progress = EvictProgress { staying: 1, ..EvictProgress::default() };
            let Some(node) = cluster.nodes.get_mut(node) else { return progress };
            if node.running_pods > 0 {
                let until = *node.evicted_until.get_or_insert_with(|| now() + EVICTION);
                if until <= now() {
                    (node.running_pods, node.evicted_until) = (0, None);
                } else {
                    let pods = (0..node.running_pods).map(|n| format!("default/pod-{n}"));
                    progress.leaving = pods.collect();
                }
            }
            progress
        })
    }

    async fn delete_node(&self, name: &str) -> Result<(), KubeError> {
        self.at(|cluster| {
            if let Some(node) = cluster.nodes.remove(name) {
                // K3s takes the member along.
                let alone = cluster.members.len() == 1;
                cluster.members.retain(|m| m.machine != node.machine || alone);
            }
        })
    }

    async fn delete_node_password(&self, name: &str) -> Result<(), KubeError> {
        self.at(|cluster| {
            cluster.passwords.remove(name);
        })
    }
}

/// etcd, from a server.
pub struct SimEtcd {
    all: Kubernetes,
    from: usize,
}

impl SimEtcd {
    pub(super) fn new(all: Kubernetes, from: usize) -> Self {
        Self { all, from }
    }

    fn at<T>(
        &self,
        call: &'static str,
        act: impl FnOnce(&mut Cluster) -> T,
    ) -> Result<T, EtcdError> {
        let failed = |detail: &str| EtcdError::Call {
            endpoint: "https://127.0.0.1:2379".into(),
            call,
            detail: detail.into(),
        };
        let mut state = self.all.lock();
        let data = state.machines.get(&self.from).and_then(|m| m.etcd);
        let (cluster, _) = data.ok_or_else(|| failed("no data"))?;
        let reach = &*self.all.reach;
        state.elect(reach, cluster);
        let up = state.runs(self.from, cluster) && state.has_quorum(reach, cluster, self.from);
        let found = state.clusters.get_mut(cluster).filter(|_| up);
        found.map(act).ok_or_else(|| failed("etcdserver: request timed out"))
    }
}

impl EtcdApi for SimEtcd {
    async fn members_anywhere(&self, _: &[IpAddr]) -> Result<View, EtcdError> {
        let from = self.from;
        self.at("MemberList", |cluster| {
            let listed = |m: &super::cluster::Member| k3s::Member {
                id: m.id,
                name: m.name.clone(),
                learner: m.learner,
                addresses: m.addresses.clone(),
                client_urls: Vec::new(),
                leader: cluster.leader == Some(m.machine),
                local: m.machine == from,
            };
            View::new(cluster.members.iter().map(listed).collect(), String::new())
        })
    }

    async fn hand_over(&self, avoid: &[Identity]) -> Result<HandOver, EtcdError> {
        let from = self.from;
        self.at("MoveLeader", |cluster| {
            if cluster.leader != Some(from) {
                return HandOver::NotLeader;
            }
            let avoided = |m: &super::cluster::Member| {
                avoid.iter().any(|id| id.addresses.iter().any(|a| m.addresses.contains(a)))
            };
            let others = cluster.members.iter().filter(|m| m.machine != from && !m.learner);
            match others.clone().find(|m| !avoided(m)).or_else(|| others.clone().next()) {
                Some(next) => {
                    let to = next.name.clone();
                    cluster.leader = Some(next.machine);
                    HandOver::Moved { to }
                }
                None => HandOver::NoCandidate,
            }
        })
    }

    async fn remove(&self, _: &View, member: &k3s::Member) -> Result<(), EtcdError> {
        self.at("MemberRemove", |cluster| cluster.members.retain(|m| m.id != member.id))
    }
}
