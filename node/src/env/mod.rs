//! The one seam to the outside: everything that is not pure enters the daemon through these ports.

pub mod linux;

use std::future::Future;
use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use raft_store::model::UnixMillis;
use raft_store::raft::TransportError;
use uuid::Uuid;

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

/// What the daemon needs from the world.
pub trait Env: Send + Sync + 'static {
    /// The wire between daemons.
    type Wire: Wire;
    /// The K3s of this host.
    type Host: k3s::Host;
    /// The overlay devices of this host.
    type Mesh: Mesh;

    /// Returns the wire.
    fn wire(&self) -> Self::Wire;

    /// Makes the handle on this host's K3s.
    fn host(&self) -> Self::Host;

    /// Makes the handle on this host's overlay devices.
    fn mesh(&self) -> Self::Mesh;

    /// Returns the wall clock.
    fn wall(&self) -> UnixMillis;

    /// Returns random bytes.
    fn random(&self) -> [u8; 32];

    /// Returns the addresses at which this host is reached, overlay and container interfaces left out.
    fn addresses(&self) -> Vec<std::net::IpAddr>;
}

/// The overlay devices of a host.
pub trait Mesh: Send + 'static {
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

    /// Returns lines for `/metrics`.
    fn metrics(&self) -> String;
}
