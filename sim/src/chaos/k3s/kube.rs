//! The Kubernetes API of a cluster, as a daemon asks it. Shell.

use std::time::Duration;

use k3s::{EvictProgress, KubeApi, KubeError, NodeInfo};
use raft_store::rt::{now, sleep};

use super::host_of;
use super::machine::Stage;
use super::world::{Kubernetes, State};

/// How long a caller waits for somebody who does not answer.
const CONNECT: Duration = Duration::from_secs(3);
/// Where K3s' own kubeconfig leads.
const LOCAL: &str = "https://127.0.0.1:6443";

/// A cluster's API, from a machine.
pub struct SimKube {
    all: Kubernetes,
    from: usize,
    /// In PEM: who else answers is not believed.
    authority: String,
    url: String,
}

enum Failed {
    /// Nobody answers, so the caller waits.
    Silence,
    Refused(&'static str),
}

impl SimKube {
    pub(super) fn new(
        all: Kubernetes,
        from: usize,
        authority: String,
        endpoint: Option<&str>,
    ) -> Self {
        let url = endpoint.unwrap_or(LOCAL).trim_end_matches('/').to_owned();
        Self { all, from, authority, url }
    }

    /// Does something at the API, if a server of the cluster answers and is ready.
    async fn at<T>(
        &self,
        act: impl FnOnce(&mut State, &Place) -> Result<T, KubeError>,
    ) -> Result<T, KubeError> {
        let outcome = {
            let mut state = self.all.lock();
            self.find(&mut state).map(|place| act(&mut state, &place))
        };
        let detail = match outcome {
            Ok(done) => return done,
            Err(Failed::Refused(why)) => why,
            Err(Failed::Silence) => {
                sleep(CONNECT).await;
                "operation timed out"
            }
        };
        Err(KubeError::Unreachable { url: self.url.clone(), detail: detail.into() })
    }

    fn find(&self, state: &mut State) -> Result<Place, Failed> {
        let reach = &*self.all.reach;
        let server = if self.url == LOCAL {
            self.from
        } else {
            let address = host_of(&self.url).ok_or(Failed::Refused("no address"))?;
            reach.answers(self.from, address).ok_or(Failed::Silence)?
        };
        state.go_on(reach, server);
        let cluster = state.serves(reach, server).ok_or(Failed::Refused("connection refused"))?;
        state.tend(reach, cluster);
        let known = state.clusters.get(cluster).is_some_and(|c| c.server_ca == self.authority);
        let stranger = Failed::Refused("invalid peer certificate: UnknownIssuer");
        known.then_some(Place { cluster, server }).ok_or(stranger)
    }

    /// Tells whether a Node's kubelet is in touch with the API now.
    fn linked(&self, state: &mut State, place: &Place, name: &str) -> bool {
        let reach = &*self.all.reach;
        let found = state.clusters.get(place.cluster).and_then(|c| c.nodes.get(name));
        let Some(machine) = found.map(|n| n.machine) else { return false };
        state.go_on(reach, machine);
        let runs = state.machines.get(&machine).filter(|d| !d.never_ready);
        let Some(run) = runs.and_then(|d| d.run.as_ref()) else { return false };
        let part = match run.stage {
            Stage::Member(cluster) => cluster == place.cluster && run.registered,
            Stage::Worker(cluster) => cluster == place.cluster && run.ready_at <= now(),
            _ => false,
        };
        let near = machine == place.server || reach.connected(machine, place.server);
        part && (near || state.served_by(reach, place.cluster, machine).is_some())
    }
}

/// Where a call arrived.
struct Place {
    cluster: usize,
    server: usize,
}

impl Place {
    fn cluster<'a>(&self, state: &'a mut State) -> Option<&'a mut super::cluster::Cluster> {
        state.clusters.get_mut(self.cluster)
    }
}

impl KubeApi for SimKube {
    async fn node(&self, name: &str) -> Result<Option<NodeInfo>, KubeError> {
        let read = |state: &mut State, place: &Place| {
            let linked = self.linked(state, place, name);
            Ok(place.cluster(state).and_then(|c| c.info(name, linked, now())))
        };
        self.at(read).await
    }

    async fn cordon(&self, name: &str) -> Result<(), KubeError> {
        let absent = || KubeError::Refused {
            what: format!("PATCH /api/v1/nodes/{name}"),
            status: 404,
            message: format!("nodes \"{name}\" not found"),
        };
        self.at(|state, place| place.cluster(state).and_then(|c| c.cordon(name)).ok_or_else(absent))
            .await
    }

    async fn uncordon(&self, name: &str) -> Result<bool, KubeError> {
        self.at(|state, place| Ok(place.cluster(state).is_some_and(|c| c.uncordon(name, now()))))
            .await
    }

    async fn evict(&self, node: &str) -> Result<EvictProgress, KubeError> {
        self.at(|state, place| {
            Ok(place.cluster(state).map(|c| c.evict(node, now())).unwrap_or_default())
        })
        .await
    }

    async fn delete_node(&self, name: &str) -> Result<(), KubeError> {
        self.at(|state, place| {
            if let Some(cluster) = place.cluster(state) {
                cluster.delete(name, now());
            }
            Ok(())
        })
        .await
    }

    async fn delete_node_password(&self, name: &str) -> Result<(), KubeError> {
        self.at(|state, place| {
            if let Some(cluster) = place.cluster(state) {
                cluster.passwords.remove(name);
            }
            Ok(())
        })
        .await
    }
}
