//! The Kubernetes API, as far as draining, joining and removing need it. Shell.

mod client;
mod drain;

pub use client::Kube;
pub(crate) use client::{chain, provide};
pub use drain::EvictProgress;

use std::future::Future;
use std::net::IpAddr;

use ipnet::IpNet;

/// What a daemon asks of a cluster's Kubernetes API; [`Kube`] says what each call does.
pub trait KubeApi: Send + Sync + 'static {
    /// One node, `None` where there is none of that name.
    fn node(&self, name: &str) -> impl Future<Output = Result<Option<NodeInfo>, KubeError>> + Send;
    /// Keeps new pods away from a node.
    fn cordon(&self, name: &str) -> impl Future<Output = Result<(), KubeError>> + Send;
    /// Undoes a cordon of ours; says whether there was one.
    fn uncordon(&self, name: &str) -> impl Future<Output = Result<bool, KubeError>> + Send;
    /// Asks every pod of a node to go that may, once.
    fn evict(&self, node: &str) -> impl Future<Output = Result<EvictProgress, KubeError>> + Send;
    /// Deletes the Node object.
    fn delete_node(&self, name: &str) -> impl Future<Output = Result<(), KubeError>> + Send;
    /// Deletes the secret that ties a name to its node password.
    fn delete_node_password(
        &self,
        name: &str,
    ) -> impl Future<Output = Result<(), KubeError>> + Send;
}

impl KubeApi for Kube {
    async fn node(&self, name: &str) -> Result<Option<NodeInfo>, KubeError> {
        Kube::node(self, name).await
    }

    async fn cordon(&self, name: &str) -> Result<(), KubeError> {
        Kube::cordon(self, name).await
    }

    async fn uncordon(&self, name: &str) -> Result<bool, KubeError> {
        Kube::uncordon(self, name).await
    }

    async fn evict(&self, node: &str) -> Result<EvictProgress, KubeError> {
        Kube::evict(self, node).await
    }

    async fn delete_node(&self, name: &str) -> Result<(), KubeError> {
        Kube::delete_node(self, name).await
    }

    async fn delete_node_password(&self, name: &str) -> Result<(), KubeError> {
        Kube::delete_node_password(self, name).await
    }
}

/// What is known of a Node object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeInfo {
    /// Its name.
    pub name: String,
    /// Whether its condition `Ready` is true.
    pub ready: bool,
    /// Why not, in Kubernetes' words.
    pub detail: String,
    /// Whether new pods are kept away.
    pub cordoned: bool,
    /// Whether that was done by [`Kube::cordon`].
    pub cordoned_by_us: bool,
    /// Its pod ranges.
    pub pod_cidrs: Vec<IpNet>,
    /// Its internal addresses.
    pub addresses: Vec<IpAddr>,
    /// Whether it is a control plane node.
    pub server: bool,
    /// kubelet's version.
    pub version: String,
}

/// Why the Kubernetes API did not do it.
#[derive(Debug, thiserror::Error)]
pub enum KubeError {
    /// The kubeconfig cannot be used.
    #[error("the kubeconfig cannot be used: {0}")]
    Kubeconfig(String),
    /// No answer.
    #[error("{url} does not answer: {detail}")]
    Unreachable { url: String, detail: String },
    /// An answer that says no.
    #[error("{what} was refused with {status}: {message}")]
    Refused { what: String, status: u16, message: String },
    /// An answer that is not understood.
    #[error("the answer to {what} cannot be read: {detail}")]
    Answer { what: String, detail: String },
}
