//! K3s in the simulated world: the K3s of each machine, and the clusters that they make. Shell.
//!
//! It keeps to K3s' contract as far as Skein sees it: who founds, who joins through which address with which token, one
//! etcd learner at a time, a node's password, and that a deleted Node takes its member along. Pods and networks are none
//! of its business.

mod cluster;
mod host;
mod kubeapi;

pub use cluster::Kubernetes;
pub use host::{SimHost, SimK3s};
pub use kubeapi::{SimEtcd, SimKube};

use std::net::IpAddr;

use crate::chaos::draw::Draw;

/// Who answers at an address, as one machine sees it at this moment.
pub trait Reach: Send + Sync + 'static {
    /// Returns the machine that answers at `to` for `from`, if packets get there and back.
    fn answers(&self, from: usize, to: IpAddr) -> Option<usize>;
    /// Tells whether packets get from one machine to another and back.
    fn connected(&self, from: usize, to: usize) -> bool;
}

/// Makes stand-ins for a cluster's authorities.
pub fn cluster_ca(cluster: &str, random: [u8; 32]) -> k3s::CaBundle {
    let seed = u64::from_le_bytes(std::array::from_fn(|i| random[i]));
    let mut draw = Draw::new(seed, "cluster ca", &[]);
    let mut key = || k3s::Secret::new(hex::encode(draw.bytes()));
    let authority = |name: &str, key| k3s::ca::Authority {
        name: name.to_owned(),
        key,
        chain: format!("{name} of {cluster}, chained\n"),
        alone: format!("{name} of {cluster}\n"),
    };
    let names = ["server-ca", "client-ca", "request-header-ca", "etcd/server-ca", "etcd/peer-ca"];
    k3s::CaBundle {
        authorities: names.into_iter().map(|name| authority(name, key())).collect(),
        root_certificate: format!("root of {cluster} {}\n", hex::encode(&random[..8])),
        root_key: key(),
    }
}
