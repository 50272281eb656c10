//! Every machine's K3s and every cluster of a run, behind one lock that is never held across an await. Shell.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use k3s::{EtcdError, KubeError, Secret};

use super::ca::trusted;
use super::cluster::Cluster;
use super::etcd::SimEtcd;
use super::kube::SimKube;
use super::machine::{Disk, SimK3s};
use super::{Reach, life};

/// All clusters of a run; clones share them.
#[derive(Clone)]
pub struct Kubernetes {
    pub(super) reach: Arc<dyn Reach>,
    state: Arc<Mutex<State>>,
}

pub(super) struct State {
    pub(super) machines: BTreeMap<usize, Disk>,
    /// In the order in which they were founded; none is ever forgotten.
    pub(super) clusters: Vec<Cluster>,
    pub(super) seed: u64,
    /// Whether servers that should join found a cluster instead: only in a flawed world.
    pub(super) founds_again: bool,
    /// Which authority each kubeconfig trusts: they are read again and again.
    trusted: BTreeMap<String, String>,
}

/// A cluster, for who judges.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClusterView {
    /// What people call it.
    pub name: String,
    /// The hash of its authority, as tokens carry it: the same for two clusters founded with one authority.
    pub authority: String,
    /// The machine that founded it.
    pub founder: usize,
    /// etcd's members.
    pub members: Vec<MemberView>,
    /// The Nodes.
    pub nodes: Vec<NodeView>,
    /// Where each evictable pod is; `None` while it waits for a place.
    pub pods: BTreeMap<String, Option<String>>,
    /// Whether some server has a majority of etcd's voters.
    pub quorum: bool,
}

/// An etcd member, for who judges.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemberView {
    /// The machine that it was added for.
    pub machine: usize,
    /// Its name, empty until it started for the first time.
    pub name: String,
    /// Whether it has no vote yet.
    pub learner: bool,
    /// Whether it leads.
    pub leader: bool,
}

/// A Node, for who judges.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeView {
    /// Its name.
    pub name: String,
    /// The machine that registered last under it.
    pub machine: usize,
    /// Whether it is a control plane node.
    pub server: bool,
    /// Whether new pods are kept away.
    pub cordoned: bool,
    /// Whether it was deleted and K3s has not let it go yet.
    pub deleting: bool,
}

impl Kubernetes {
    /// Makes a world without clusters.
    pub fn new(reach: Arc<dyn Reach>, seed: u64) -> Self {
        let (machines, clusters) = (BTreeMap::new(), Vec::new());
        let state =
            State { machines, clusters, seed, founds_again: false, trusted: BTreeMap::new() };
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
    /// When the kubeconfig cannot be used.
    pub fn kube(
        &self,
        machine: usize,
        kubeconfig: &Secret,
        endpoint: Option<&str>,
    ) -> Result<SimKube, KubeError> {
        let authority = self.authority(kubeconfig.expose()).map_err(KubeError::Kubeconfig)?;
        Ok(SimKube::new(self.clone(), machine, authority, endpoint))
    }

    /// Reads the authority that a kubeconfig trusts; the same few are asked for all the time.
    fn authority(&self, kubeconfig: &str) -> Result<String, String> {
        let mut state = self.lock();
        if let Some(authority) = state.trusted.get(kubeconfig) {
            return Ok(authority.clone());
        }
        let authority = trusted(kubeconfig)?;
        state.trusted.insert(kubeconfig.to_owned(), authority.clone());
        Ok(authority)
    }

    /// Opens the etcd member of a machine.
    ///
    /// # Errors
    /// When there is none.
    pub fn etcd(&self, machine: usize) -> Result<SimEtcd, EtcdError> {
        let none = || EtcdError::NoMember("/var/lib/rancher/k3s/server/tls/etcd".into());
        let state = self.lock();
        let seat = state.machines.get(&machine).and_then(|disk| disk.etcd);
        let cluster = seat.and_then(|(cluster, _)| state.clusters.get(cluster)).ok_or_else(none)?;
        Ok(SimEtcd::new(self.clone(), machine, cluster.server_ca.clone()))
    }

    /// Tells whether an etcd member's data lie on a machine.
    pub fn has_etcd_data(&self, machine: usize) -> bool {
        self.lock().machines.get(&machine).is_some_and(|disk| disk.etcd.is_some())
    }

    /// Returns for each authority that clusters were founded with its cluster's name and on which machines, once for each time.
    pub fn founders(&self) -> Vec<(String, Vec<usize>)> {
        let state = self.lock();
        let mut found: Vec<(&str, String, Vec<usize>)> = Vec::new();
        for cluster in &state.clusters {
            match found.iter_mut().find(|(hash, ..)| *hash == cluster.hash) {
                Some((_, _, machines)) => machines.push(cluster.founder),
                None => found.push((&cluster.hash, cluster.name.clone(), vec![cluster.founder])),
            }
        }
        found.into_iter().map(|(_, name, machines)| (name, machines)).collect()
    }

    /// Returns every cluster that was ever founded, in that order.
    pub fn clusters(&self) -> Vec<ClusterView> {
        let mut state = self.lock();
        let all = 0..state.clusters.len();
        all.filter_map(|cluster| {
            state.tend(&*self.reach, cluster);
            let quorum = state.leads(&*self.reach, cluster).is_some();
            state.clusters.get(cluster).map(|c| view(c, quorum))
        })
        .collect()
    }
}

fn view(cluster: &Cluster, quorum: bool) -> ClusterView {
    let members = cluster.members.iter().map(|m| MemberView {
        machine: m.machine,
        name: m.name.clone(),
        learner: m.learner,
        leader: cluster.leader == Some(m.id),
    });
    let nodes = cluster.nodes.iter().map(|(name, node)| NodeView {
        name: name.clone(),
        machine: node.machine,
        server: node.server,
        cordoned: node.cordoned,
        deleting: cluster.deleting.contains_key(name),
    });
    ClusterView {
        name: cluster.name.clone(),
        authority: cluster.hash.clone(),
        founder: cluster.founder,
        members: members.collect(),
        nodes: nodes.collect(),
        pods: cluster.pods.iter().map(|(name, pod)| (name.clone(), pod.node.clone())).collect(),
        quorum,
    }
}

impl State {
    pub(super) fn disk(&mut self, number: usize) -> &mut Disk {
        let seed = self.seed;
        self.machines.entry(number).or_insert_with(|| Disk::new(number, seed))
    }

    /// Brings a cluster to where it is now: its learners, its leader, its deleted Nodes.
    pub(super) fn tend(&mut self, reach: &dyn Reach, cluster: usize) {
        life::tend(self, reach, cluster);
    }
}
