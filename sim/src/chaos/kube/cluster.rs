//! The simulated Kubernetes clusters, and what each machine's K3s is to them. Shell: one lock, never held across an await.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use k3s::Secret;
use tokio::time::Instant;

use super::Reach;
use super::host::{Machine, SimK3s};
use super::kubeapi::{SimEtcd, SimKube};
use crate::chaos::draw::Draw;

/// All clusters of a run. Clones share them.
#[derive(Clone)]
pub struct Kubernetes {
    pub(super) reach: Arc<dyn Reach>,
    pub(super) state: Arc<Mutex<State>>,
}

pub(super) struct State {
    pub(super) machines: BTreeMap<usize, Machine>,
    pub(super) clusters: Vec<Cluster>,
    pub(super) seed: u64,
    /// Whether servers that should join found a cluster of their own: only in a flawed world.
    pub(super) founds_again: bool,
}

/// A cluster.
#[derive(Debug, Default)]
pub(super) struct Cluster {
    /// What people call it, from the founder's spec.
    pub(super) name: String,
    pub(super) hash: String,
    pub(super) server_secret: String,
    pub(super) agent_secret: String,
    pub(super) founders: Vec<usize>,
    pub(super) members: Vec<Member>,
    pub(super) leader: Option<usize>,
    pub(super) nodes: BTreeMap<String, Node>,
    /// Node passwords by node name.
    pub(super) passwords: BTreeMap<String, u64>,
    pub(super) next_pods: u8,
}

/// An etcd member.
#[derive(Clone, Debug)]
pub(super) struct Member {
    pub(super) id: u64,
    pub(super) machine: usize,
    pub(super) name: String,
    pub(super) addresses: Vec<IpAddr>,
    pub(super) learner: bool,
}

/// A Node object.
#[derive(Clone, Debug)]
pub(super) struct Node {
    pub(super) machine: usize,
    pub(super) server: bool,
    pub(super) addresses: Vec<IpAddr>,
    pub(super) cordoned: bool,
    pub(super) cordoned_by_us: bool,
    pub(super) pods: u8,
    /// Pods that were asked to go, and until when they take.
    pub(super) evicted_until: Option<Instant>,
    pub(super) running_pods: u8,
}

impl Kubernetes {
    /// Makes a world without clusters.
    pub fn new(reach: Arc<dyn Reach>, seed: u64) -> Self {
        let state =
            State { machines: BTreeMap::new(), clusters: Vec::new(), seed, founds_again: false };
        Self { reach, state: Arc::new(Mutex::new(state)) }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets servers that should join found clusters of their own, as no K3s may.
    pub fn found_again(&self) {
        self.lock().founds_again = true;
    }

    /// Returns the K3s of a machine.
    pub fn machine(&self, number: usize) -> SimK3s {
        SimK3s::new(self.clone(), number)
    }

    /// Opens the Kubernetes API that a kubeconfig names, from a machine: at an endpoint, or on the machine itself.
    ///
    /// # Errors
    /// When the kubeconfig names no cluster.
    pub fn kube(
        &self,
        machine: usize,
        kubeconfig: &Secret,
        endpoint: Option<&str>,
    ) -> Result<SimKube, k3s::KubeError> {
        let number = kubeconfig.expose().trim().strip_prefix("cluster ");
        let cluster = number.and_then(|n| n.parse().ok());
        let unknown = || k3s::KubeError::Kubeconfig("it names no cluster".into());
        let cluster = cluster.ok_or_else(unknown)?;
        Ok(SimKube::new(self.clone(), machine, cluster, endpoint.map(str::to_owned)))
    }

    /// Opens the etcd member of a machine.
    ///
    /// # Errors
    /// When there is none.
    pub fn etcd(&self, machine: usize) -> Result<SimEtcd, k3s::EtcdError> {
        if !self.has_etcd_data(machine) {
            return Err(k3s::EtcdError::NoMember("/var/lib/rancher/k3s".into()));
        }
        Ok(SimEtcd::new(self.clone(), machine))
    }

    /// Tells whether an etcd member's data lie on a machine.
    pub fn has_etcd_data(&self, machine: usize) -> bool {
        self.lock().machines.get(&machine).is_some_and(|m| m.etcd.is_some())
    }

    /// Returns for each cluster's name on which machines one of its name was founded.
    pub fn founders(&self) -> Vec<(String, Vec<usize>)> {
        let state = self.lock();
        let founded = state.clusters.iter().filter(|c| !c.founders.is_empty());
        founded.map(|c| (c.name.clone(), c.founders.clone())).collect()
    }
}

/// Returns the address in a URL.
pub(super) fn host_of(url: &str) -> Option<IpAddr> {
    let rest = url.strip_prefix("https://")?;
    let host = rest.rsplit_once(':').map_or(rest, |(host, _)| host);
    host.trim_matches(['[', ']']).parse().ok()
}

impl State {
    pub(super) fn machine(&mut self, number: usize) -> &mut Machine {
        let seed = self.seed;
        self.machines.entry(number).or_insert_with(|| Machine::new(number, seed))
    }

    /// Tells whether K3s runs on a machine as a part of a cluster, ready or not.
    pub(super) fn runs(&self, number: usize, cluster: usize) -> bool {
        self.machines.get(&number).is_some_and(|m| m.runs_in(cluster))
    }

    /// Tells whether etcd has a majority, as the member on a machine sees it.
    pub(super) fn has_quorum(&self, reach: &dyn Reach, cluster: usize, from: usize) -> bool {
        let Some(found) = self.clusters.get(cluster) else { return false };
        let voters = found.members.iter().filter(|m| !m.learner);
        let all = voters.clone().count();
        let up =
            voters.filter(|m| self.runs(m.machine, cluster) && reach.connected(from, m.machine));
        up.count() * 2 > all
    }

    /// Tells whether the API server on a machine answers.
    pub(super) fn serves(&self, reach: &dyn Reach, number: usize, cluster: usize) -> bool {
        let Some(machine) = self.machines.get(&number) else { return false };
        let member = |m: &Member| m.machine == number && !m.learner;
        let joined = self.clusters.get(cluster).is_some_and(|c| c.members.iter().any(member));
        machine.is_server()
            && machine.runs_in(cluster)
            && joined
            && !machine.never_ready
            && self.has_quorum(reach, cluster, number)
    }

    /// Finds the cluster that a token belongs to.
    pub(super) fn by_token(&self, token: &str) -> Option<(usize, bool)> {
        let secret = token.rsplit(':').next()?;
        self.clusters.iter().enumerate().find_map(|(i, c)| {
            let full = token.contains(&c.hash);
            let server = secret == c.server_secret;
            (full && (server || secret == c.agent_secret)).then_some((i, server))
        })
    }

    /// Keeps etcd's leadership with a member that runs.
    pub(super) fn elect(&mut self, reach: &dyn Reach, cluster: usize) {
        let Some(found) = self.clusters.get(cluster) else { return };
        let up = |m: usize| self.runs(m, cluster) && self.has_quorum(reach, cluster, m);
        if found.leader.is_some_and(up) {
            return;
        }
        let voters: BTreeSet<usize> =
            found.members.iter().filter(|m| !m.learner).map(|m| m.machine).collect();
        let next = voters.into_iter().find(|m| up(*m));
        if let Some(found) = self.clusters.get_mut(cluster) {
            found.leader = next;
        }
    }
}

/// Draws a new cluster's hash.
pub(super) fn cluster_hash(seed: u64, number: usize) -> String {
    hex::encode(Draw::new(seed, "cluster", &[number as u64]).bytes())
}
