//! Ports that do what those behind them do, and count what changed something. Shell.

use std::io;
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use api::client::ApiError;
use api::pki::Pki;
use api::proto::{RedeemRequest, RedeemResponse};
use api::ticket::JoinTicket;
use api::tls::Papers;
use ipnet::Ipv4Net;
use k3s::etcd::{EtcdApi, EtcdError, HandOver, Identity, Member, View};
use k3s::kube::{EvictProgress, KubeApi, KubeError, NodeInfo};
use k3s::observe::Observed;
use k3s::{Action, HostError, Spec};
use node::config::Config;
use node::daemon::{DaemonError, Paths};
use node::env::{Env, Machine};
use raft_store::model::UnixMillis;
use tokio::sync::{mpsc, oneshot};

use super::Mortal;
use super::ledger::Ledger;
use super::steps::{Step, name_file, variant};

/// The files of a machine.
pub(super) struct Files<T> {
    inner: Arc<T>,
    ledger: Arc<Ledger>,
}

impl<T> Files<T> {
    pub(super) fn new(inner: Arc<T>, ledger: Arc<Ledger>) -> Self {
        Self { inner, ledger }
    }

    fn step(&self, path: &Path, deed: &str) {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        self.ledger.step(&Step::new("file", format!("{}{deed}", name_file(&name))));
    }
}

impl<T: Machine> node::env::Files for Files<T> {
    fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        self.inner.files().read(path)
    }

    fn replace(&self, path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
        self.inner.files().replace(path, bytes, mode)?;
        self.step(path, "");
        Ok(())
    }

    fn private_dir(&self, path: &Path) -> io::Result<()> {
        self.inner.files().private_dir(path)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.inner.files().remove(path)?;
        self.step(path, " removed");
        Ok(())
    }
}

impl<T: Machine> Machine for Mortal<T> {
    fn files(&self) -> &dyn node::env::Files {
        &self.files
    }

    fn disks(&self) -> &dyn raft_store::disk::Disks {
        &self.disks
    }

    fn pki(&self) -> &dyn Pki {
        self.inner.pki()
    }

    fn routes(&self) -> Vec<Ipv4Net> {
        self.inner.routes()
    }

    fn wall(&self) -> UnixMillis {
        self.inner.wall()
    }

    fn random(&self) -> [u8; 32] {
        self.inner.random()
    }

    async fn redeem(
        &self,
        ticket: &JoinTicket,
        request: RedeemRequest,
    ) -> Result<RedeemResponse, ApiError> {
        let answer = self.inner.redeem(ticket, request).await?;
        self.ledger.step(&Step::new("redeem", "answered"));
        Ok(answer)
    }
}

impl<T: Env> Env for Mortal<T> {
    type Server = T::Server;
    type Wire = T::Wire;
    type Host = Counted<T::Host>;
    type Mesh = Mesh<T::Mesh>;
    type Kube = Counted<T::Kube>;
    type Etcd = Counted<T::Etcd>;

    async fn listen(
        &self,
        config: &Config,
        paths: &Paths,
        papers: &Papers,
    ) -> Result<T::Server, DaemonError> {
        self.inner.listen(config, paths, papers).await
    }

    async fn told_to_end(&self) {
        self.inner.told_to_end().await;
    }

    fn make_cluster_ca(&self, cluster: &str, now_s: i64) -> Result<k3s::CaBundle, k3s::CaError> {
        self.inner.make_cluster_ca(cluster, now_s)
    }

    fn has_etcd_data(&self, data_dir: &Path) -> bool {
        self.inner.has_etcd_data(data_dir)
    }

    fn wire(&self) -> T::Wire {
        self.inner.wire()
    }

    fn host(&self) -> Self::Host {
        self.counted(self.inner.host())
    }

    fn mesh(&self) -> Self::Mesh {
        Mesh { inner: self.inner.mesh(), ledger: self.ledger.clone(), last: Vec::new() }
    }

    fn kube(
        &self,
        kubeconfig: &k3s::Secret,
        endpoint: Option<&str>,
    ) -> Result<Self::Kube, KubeError> {
        self.inner.kube(kubeconfig, endpoint).map(|kube| self.counted(kube))
    }

    fn etcd(&self, data_dir: &Path) -> Result<Self::Etcd, EtcdError> {
        self.inner.etcd(data_dir).map(|etcd| self.counted(etcd))
    }

    fn addresses(&self) -> Vec<IpAddr> {
        self.inner.addresses()
    }
}

/// A port whose changes are counted.
pub struct Counted<P> {
    inner: P,
    ledger: Arc<Ledger>,
}

impl<T> Mortal<T> {
    fn counted<P>(&self, inner: P) -> Counted<P> {
        Counted { inner, ledger: self.ledger.clone() }
    }
}

impl<P> Counted<P> {
    fn step(&self, kind: &'static str, what: &str) {
        self.ledger.step(&Step::new(kind, what));
    }
}

impl<H: k3s::Host> k3s::Host for Counted<H> {
    async fn observe(&self, spec: &Spec) -> Result<Observed, HostError> {
        self.inner.observe(spec).await
    }

    async fn perform(&self, action: &Action) -> Result<(), HostError> {
        self.inner.perform(action).await?;
        self.step("host", &variant(action));
        Ok(())
    }

    async fn durable_write(&self) -> Result<Duration, HostError> {
        self.inner.durable_write().await
    }
}

impl<K: KubeApi> KubeApi for Counted<K> {
    async fn node(&self, name: &str) -> Result<Option<NodeInfo>, KubeError> {
        self.inner.node(name).await
    }

    async fn cordon(&self, name: &str) -> Result<(), KubeError> {
        self.inner.cordon(name).await?;
        self.step("kube", "cordon");
        Ok(())
    }

    async fn uncordon(&self, name: &str) -> Result<bool, KubeError> {
        let undone = self.inner.uncordon(name).await?;
        if undone {
            self.step("kube", "uncordon");
        }
        Ok(undone)
    }

    async fn evict(&self, node: &str) -> Result<EvictProgress, KubeError> {
        let progress = self.inner.evict(node).await?;
        self.step("kube", "evict");
        Ok(progress)
    }

    async fn delete_node(&self, name: &str) -> Result<(), KubeError> {
        self.inner.delete_node(name).await?;
        self.step("kube", "delete_node");
        Ok(())
    }

    async fn delete_node_password(&self, name: &str) -> Result<(), KubeError> {
        self.inner.delete_node_password(name).await?;
        self.step("kube", "delete_node_password");
        Ok(())
    }
}

impl<P: EtcdApi> EtcdApi for Counted<P> {
    async fn members_anywhere(&self, others: &[IpAddr]) -> Result<View, EtcdError> {
        self.inner.members_anywhere(others).await
    }

    async fn hand_over(&self, avoid: &[Identity]) -> Result<HandOver, EtcdError> {
        let outcome = self.inner.hand_over(avoid).await?;
        if matches!(outcome, HandOver::Moved { .. }) {
            self.step("etcd", "hand_over");
        }
        Ok(outcome)
    }

    async fn remove(&self, view: &View, member: &Member) -> Result<(), EtcdError> {
        self.inner.remove(view, member).await?;
        self.step("etcd", "remove");
        Ok(())
    }
}

/// Devices whose changes are counted.
pub struct Mesh<M> {
    inner: M,
    ledger: Arc<Ledger>,
    last: Vec<sdwan::MeshSpec>,
}

impl<M: node::env::Mesh> node::env::Mesh for Mesh<M> {
    async fn apply(&mut self, specs: Vec<sdwan::MeshSpec>) -> Result<(), String> {
        // Each commit makes another generation, most often of the same.
        let plain = specs.iter().map(|spec| sdwan::MeshSpec { generation: 0, ..spec.clone() });
        let plain: Vec<_> = plain.collect();
        self.inner.apply(specs).await?;
        if plain != self.last {
            self.last = plain;
            self.ledger.step(&Step::new("mesh", "apply"));
        }
        Ok(())
    }

    async fn kill_flows(&self, to: Vec<IpAddr>) -> Result<usize, String> {
        self.inner.kill_flows(to).await
    }

    async fn status(&self) -> Vec<sdwan::MeshStatus> {
        self.inner.status().await
    }

    fn ping(&self, network: &str, peer: &str) -> Option<oneshot::Receiver<sdwan::RoundTrip>> {
        self.inner.ping(network, peer)
    }

    fn capture(&self, network: &str, sink: mpsc::Sender<sdwan::Captured>) -> bool {
        self.inner.capture(network, sink)
    }
}
