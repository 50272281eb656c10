//! Skein's data plane: a userspace WireGuard mesh over TUN.
//!
//! | module | what | pure |
//! |---|---|---|
//! | [`spec`] | what an overlay should look like here | yes |
//! | [`routing`], [`packet`], `icmp` | who answers for an address, addresses of a packet, messages about the way | yes |
//! | [`offload`] | many packets in one piece, as network cards do it | yes |
//! | [`session`] | one WireGuard session: a port, and boringtun behind it | but for boringtun's clock |
//! | [`tunnel`] | the core: packets and datagrams in and out, no I/O | yes |
//! | [`link`] | addresses and routes: what differs, and netlink | half |
//! | [`flows`] | TCP connections to hosts that are gone | half |
//! | [`io`] | TUN device, UDP sockets, the threads between them | no |
//! | [`overlay`] | all overlays of this host | no |

pub mod error;
pub mod flows;
mod handover;
mod icmp;
pub mod io;
pub mod link;
pub mod offload;
pub mod overlay;
pub mod packet;
pub mod routing;
pub mod session;
pub mod spec;
pub mod tunnel;

pub use error::ApplyError;
pub use flows::kill_flows;
pub use io::{Captured, Offloads, RoundTrip};
pub use offload::Joins;
pub use overlay::{MeshStatus, Overlay};
pub use spec::{Handover, InvalidKey, MeshSpec, PeerSpec, PrivateKey, PublicKey, interface_name};
pub use tunnel::{Drops, PeerStatus, Tunnel};
