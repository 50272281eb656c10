//! What the services need from the daemon: a port, so that they run unchanged over a simulated one. Pure.

use std::collections::BTreeMap;
use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use futures::stream::BoxStream;
use raft_store::apply::{Change, Command, Rejection};
use raft_store::model::{Network, NodeId, RequestId, State, UnixMillis};
use raft_store::plan::{Health, Report};
use raft_store::raft::{ProposeError, RaftStatus, ReadError};
use raft_store::seal::FleetKey;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::pki::Pki;

/// Why a call failed, before it is turned into a status.
#[derive(Clone, Debug, thiserror::Error)]
pub enum CallError {
    /// The state machine refused.
    #[error(transparent)]
    Rejected(Rejection),
    /// The command was not proposed, or its fate is not known.
    #[error(transparent)]
    Propose(ProposeError),
    /// The read could not be made linearizable.
    #[error(transparent)]
    Read(ReadError),
    /// There is no leader, or no majority behind it.
    #[error("{why}")]
    Unavailable {
        /// A word for programs: no_leader or no_quorum.
        reason: &'static str,
        /// Whether a change was asked for, rather than a look.
        write: bool,
        /// Who is missing, by name.
        why: String,
    },
    /// This node cannot serve the call yet.
    #[error("{0}")]
    NotReady(String),
}

/// State at an index.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// What was applied.
    pub state: Arc<State>,
    /// Up to where.
    pub applied: u64,
}

/// What the leader sees beside the state. Everything is unknown where there is no leader.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FleetView {
    /// Who leads.
    pub leader: Option<NodeId>,
    /// Raft's term.
    pub term: u64,
    /// Who votes.
    pub voters: Vec<NodeId>,
    /// Whether a majority of the voters answered lately.
    pub quorum: bool,
    /// How each node stands.
    pub nodes: BTreeMap<NodeId, NodeView>,
    /// Whether others refuse the answering node because it was removed.
    #[serde(default)]
    pub removed: bool,
}

/// What the leader sees of one node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeView {
    /// Whether it is heard.
    pub health: Health,
    /// How long it has been silent, in milliseconds, as far as that is known.
    #[serde(default)]
    pub silent_ms: Option<u64>,
    /// Its newest report.
    pub report: Option<Report>,
    /// How far its clock is ahead of the fleet's time, in milliseconds, as far as that is known.
    #[serde(default)]
    pub clock_ms: Option<i64>,
}

/// Where a node is reached, as the API hands it on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Whereabouts {
    /// Who.
    pub uuid: Uuid,
    /// Its Raft id.
    pub node: u64,
    /// Since which start of its daemon.
    pub incarnation: u64,
    /// Which change since then.
    pub seq: u64,
    /// Where, best first.
    pub addresses: Vec<SocketAddr>,
}

/// How a peer of an overlay stands, as the answering node's data plane sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerView {
    /// The network.
    pub network: String,
    /// The peer: a node, or a device.
    pub name: String,
    /// Its WireGuard key.
    pub public_key: String,
    /// Where it is reached.
    pub endpoint: Option<SocketAddr>,
    /// How long ago keys were agreed.
    pub handshake_age: Option<Duration>,
    /// Bytes of packets received from it.
    pub received: u64,
    /// Bytes of packets sent to it.
    pub sent: u64,
    /// The smoothed round trip through the tunnel.
    pub round_trip: Option<Duration>,
    /// How many of the last echo requests it did not answer, and how many those were.
    pub lost: Option<(u32, u32)>,
    /// The largest packet that passes without fragments, in bytes.
    pub path_mtu: Option<u16>,
}

/// A packet that passed through an overlay.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packet {
    /// When, in microseconds since 1970.
    pub at_us: u64,
    /// What it was; several of one flow may be in one piece.
    pub bytes: Vec<u8>,
    /// How many were missed so far.
    pub missed: u64,
}

/// The daemon, as the services use it. Every node answers every call.
pub trait Daemon: Send + Sync + 'static {
    /// Proposes a command through the leader.
    fn propose(
        &self,
        request: Option<RequestId>,
        by: &str,
        command: Command,
    ) -> impl Future<Output = Result<Change, CallError>> + Send;

    /// Reads state: linearizable, or (`stale`) what this node has.
    fn read(&self, stale: bool) -> impl Future<Output = Result<Snapshot, CallError>> + Send;

    /// Tells whether Raft still needs the vote of this removed node.
    fn quorum_needs(&self, removed: Uuid) -> bool;

    /// Returns what this node has applied.
    fn state(&self) -> Arc<State>;

    /// Waits until more than `after` is applied here.
    fn changed(&self, after: u64) -> impl Future<Output = ()> + Send;

    /// Asks the leader what it sees; never fails.
    fn view(&self) -> impl Future<Output = FleetView> + Send;

    /// Serves a frame from the node with this identity, which its certificate proves.
    fn frame(
        &self,
        from: Uuid,
        kind: u32,
        body: bytes::Bytes,
    ) -> impl Future<Output = Result<(u32, bytes::Bytes), CallError>> + Send;

    /// Returns how Raft stands on this node.
    fn raft(&self) -> RaftStatus;

    /// Returns this node's id.
    fn me(&self) -> NodeId;

    /// Returns the wall clock.
    fn wall(&self) -> UnixMillis;

    /// Returns random bytes.
    fn random(&self) -> [u8; 32];

    /// Returns what makes certificates.
    fn pki(&self) -> &dyn Pki;

    /// Returns the fleet's key, once this node has it.
    fn fleet_key(&self) -> Option<FleetKey>;

    /// Returns where all members are reached.
    fn whereabouts(&self) -> Vec<Whereabouts>;

    /// Remembers an address to try.
    fn add_endpoint(&self, address: SocketAddr);

    /// Returns the overlay device's name for a network.
    fn interface(&self, network: &Network) -> String;

    /// Rewrites K3s' kubeconfig so that it leads to `endpoint` and its entries are called `name`.
    ///
    /// # Errors
    /// When the kubeconfig is unreadable.
    fn kubeconfig(&self, kubeconfig: &str, endpoint: &str, name: &str) -> Result<String, String>;

    /// Returns more lines for `/metrics`, in the text format of Prometheus.
    fn metrics(&self) -> String;

    /// Returns how the peers of this node's overlays stand.
    fn peers(&self) -> Vec<PeerView>;

    /// Takes a round trip through the tunnel from this node to a peer; nothing if it was not answered.
    fn ping(
        &self,
        network: &str,
        peer: &str,
    ) -> impl Future<Output = Result<Option<Duration>, CallError>> + Send;

    /// Copies what passes through a network on this node from now on, until the stream is dropped.
    fn capture(
        &self,
        network: &str,
    ) -> impl Future<Output = Result<BoxStream<'static, Packet>, CallError>> + Send;
}

/// How long a write may take before it is answered as timed out.
pub const WRITE_DEADLINE: Duration = Duration::from_secs(8);
/// How long a linearizable read may take.
pub const READ_DEADLINE: Duration = Duration::from_secs(5);
