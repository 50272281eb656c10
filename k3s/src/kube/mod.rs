//! The Kubernetes API, as far as draining, joining and removing need it. Shell.

mod client;
mod drain;

pub use client::Kube;
pub(crate) use client::{chain, provide};
pub use drain::EvictProgress;

use std::net::IpAddr;

use ipnet::IpNet;

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
