//! K3s in the simulated world: the K3s of each machine, and the clusters that they make. Shell.
//!
//! | module | what |
//! |---|---|
//! | `world` | every cluster and machine of a run, and the ways in |
//! | `cluster` | one cluster: Nodes, pods, etcd's members, node passwords |
//! | `quorum` | what needs a majority of etcd: serving, leading, letting go |
//! | `machine` | what K3s has on one machine, and the faults of it |
//! | `life` | how a started K3s founds, joins, comes back and stays |
//! | `host`, `kube`, `etcd` | the daemon's three ports |
//!
//! Nothing runs in the background: deadlines are kept, and at each look everything is as far as the time allows.

mod ca;
mod cluster;
mod etcd;
mod host;
mod kube;
mod life;
mod machine;
mod quorum;
mod world;

#[cfg(test)]
mod tests;

pub use ca::cluster_ca;
pub use etcd::SimEtcd;
pub use host::SimHost;
pub use kube::SimKube;
pub use machine::SimK3s;
pub use world::{ClusterView, Kubernetes, MemberView, NodeView};

use std::net::IpAddr;

/// Who answers at an address, as one machine sees it at this moment.
///
/// Both are asked while the world of K3s is locked, so neither may ask that world in turn.
pub trait Reach: Send + Sync + 'static {
    /// Returns the machine that answers at `to` for `from`, if packets get there and back.
    fn answers(&self, from: usize, to: IpAddr) -> Option<usize>;
    /// Tells whether machine `to` can be reached from machine `from` at its overlay addresses.
    fn connected(&self, from: usize, to: usize) -> bool;
}

/// Returns the address in a URL.
fn host_of(url: &str) -> Option<IpAddr> {
    let authority = url.split("://").nth(1)?.split('/').next()?;
    let host = authority.rsplit_once(':').map_or(authority, |(host, _)| host);
    host.trim_start_matches('[').trim_end_matches(']').parse().ok()
}
