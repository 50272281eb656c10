//! The one seam to the outside: everything that is not pure enters the daemon through these ports.
//!
//! A [`Machine`] is what founding and joining need, before there is anybody to talk to; an [`Env`] is a member's world.

pub mod linux;

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use api::client::ApiError;
use api::daemon::Daemon;
use api::pki::Pki;
use api::proto::{RedeemRequest, RedeemResponse};
use api::ticket::JoinTicket;
use api::tls::Papers;
use bytes::Bytes;
use ipnet::Ipv4Net;
use raft_store::disk::Disks;
use raft_store::model::UnixMillis;
use raft_store::raft::TransportError;
use raft_store::rt::Scope;
use tokio::sync::{mpsc, oneshot};
use uuid::Uuid;

use crate::config::Config;
use crate::daemon::{DaemonError, Paths};

/// A frame on the wire: its kind and its bytes.
pub type Message = (u32, Bytes);

/// The wire between daemons.
pub trait Wire: Clone + Send + Sync + 'static {
    /// Sends a frame to the node `to`, known to be at one of `addresses`; never waits longer than `deadline`.
    fn call(
        &self,
        to: Uuid,
        addresses: &[SocketAddr],
        message: Message,
        deadline: Duration,
    ) -> impl Future<Output = Result<Message, TransportError>> + Send;

    /// Sends a frame to whichever node of the fleet is at `address`.
    fn call_at(
        &self,
        address: SocketAddr,
        message: Message,
        deadline: Duration,
    ) -> impl Future<Output = Result<Message, TransportError>> + Send;
}

/// The few files in which a machine keeps who and where it is, each put in place whole.
pub trait Files: Send + Sync + 'static {
    /// Returns a file's bytes.
    ///
    /// # Errors
    /// What the file system answered; a file that is not there is `NotFound`.
    fn read(&self, path: &Path) -> io::Result<Vec<u8>>;

    /// Puts a file in place so that a reader, or a power cut, sees the old one or the new one.
    ///
    /// # Errors
    /// What the file system answered.
    fn replace(&self, path: &Path, bytes: &[u8], mode: u32) -> io::Result<()>;

    /// Makes a folder that only its owner may enter, with its parents.
    ///
    /// # Errors
    /// What the file system answered.
    fn private_dir(&self, path: &Path) -> io::Result<()>;

    /// Removes a file, or a folder with all in it; one that is gone already is no error.
    ///
    /// # Errors
    /// What the file system answered.
    fn remove(&self, path: &Path) -> io::Result<()>;
}

/// What a machine has also before it is a member of a fleet.
pub trait Machine: Send + Sync + 'static {
    /// Returns its small files.
    fn files(&self) -> &dyn Files;

    /// Returns what Raft's log is kept on.
    fn disks(&self) -> &dyn Disks;

    /// Returns what makes keys and certificates.
    fn pki(&self) -> &dyn Pki;

    /// Returns the IPv4 routes of this host, without the default route and the overlay's own.
    fn routes(&self) -> Vec<Ipv4Net>;

    /// Returns the wall clock.
    fn wall(&self) -> UnixMillis;

    /// Returns random bytes.
    fn random(&self) -> [u8; 32];

    /// Takes a ticket to the members that it names.
    fn redeem(
        &self,
        ticket: &JoinTicket,
        request: RedeemRequest,
    ) -> impl Future<Output = Result<RedeemResponse, ApiError>> + Send;
}

/// What the daemon needs from the world.
pub trait Env: Machine {
    /// What serves the API of this daemon.
    type Server: Server;
    /// The wire between daemons.
    type Wire: Wire;
    /// The K3s of this host.
    type Host: k3s::Host;
    /// The overlay devices of this host.
    type Mesh: Mesh;
    /// A cluster's Kubernetes API.
    type Kube: k3s::KubeApi;
    /// The etcd member of this host's server.
    type Etcd: k3s::EtcdApi;

    /// Listens for callers; done before anything else, so that a second daemon ends at once.
    ///
    /// # Errors
    /// When the keys cannot be used, or an address cannot be listened on.
    fn listen(
        &self,
        config: &Config,
        paths: &Paths,
        papers: &Papers,
    ) -> impl Future<Output = Result<Self::Server, DaemonError>> + Send;

    /// Waits until the daemon is told to end.
    fn told_to_end(&self) -> impl Future<Output = ()> + Send;

    /// Makes the authorities of a new cluster. `now_s` is Unix time in seconds.
    ///
    /// # Errors
    /// When there is no randomness.
    fn make_cluster_ca(&self, cluster: &str, now_s: i64) -> Result<k3s::CaBundle, k3s::CaError>;

    /// Tells whether an etcd member's data lie under K3s' data folder.
    fn has_etcd_data(&self, data_dir: &Path) -> bool;

    /// Returns the wire.
    fn wire(&self) -> Self::Wire;

    /// Makes the handle on this host's K3s.
    fn host(&self) -> Self::Host;

    /// Makes the handle on this host's overlay devices.
    fn mesh(&self) -> Self::Mesh;

    /// Opens a cluster's Kubernetes API, at the kubeconfig's own server or at `endpoint`.
    ///
    /// # Errors
    /// When the kubeconfig cannot be used.
    fn kube(
        &self,
        kubeconfig: &k3s::Secret,
        endpoint: Option<&str>,
    ) -> Result<Self::Kube, k3s::KubeError>;

    /// Opens the etcd member of this host's server, whose data lie under `data_dir`.
    ///
    /// # Errors
    /// When there is none.
    fn etcd(&self, data_dir: &Path) -> Result<Self::Etcd, k3s::EtcdError>;

    /// Returns the addresses at which this host is reached, overlay and container interfaces left out.
    fn addresses(&self) -> Vec<std::net::IpAddr>;
}

/// What serves the API, once it is known what to serve.
pub trait Server: Send + 'static {
    /// Serves in tasks of `scope`, and says through `fatal` when one of them ends.
    fn serve<D: Daemon>(self, scope: &Scope, daemon: Arc<D>, fatal: mpsc::Sender<String>);
}

/// The overlay devices of a host.
pub trait Mesh: Send + Sync + 'static {
    /// Makes exactly these meshes exist; returns what could not be done, in words.
    fn apply(
        &mut self,
        specs: Vec<sdwan::MeshSpec>,
    ) -> impl Future<Output = Result<(), String>> + Send;

    /// Ends every TCP connection of this host to one of these addresses; returns how many there were.
    fn kill_flows(
        &self,
        to: Vec<std::net::IpAddr>,
    ) -> impl Future<Output = Result<usize, String>> + Send;

    /// Returns how the meshes stand.
    fn status(&self) -> impl Future<Output = Vec<sdwan::MeshStatus>> + Send;

    /// Takes a round trip through the tunnel to a peer of a network; nothing if there is no such peer. The answer is given up
    /// where the peer has no address that could be asked.
    fn ping(&self, network: &str, peer: &str) -> Option<oneshot::Receiver<sdwan::RoundTrip>>;

    /// Copies every packet of a network to `sink` until that is closed; false if there is no such network here.
    fn capture(&self, network: &str, sink: mpsc::Sender<sdwan::Captured>) -> bool;
}
