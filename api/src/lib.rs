//! Skein's API: gRPC services that every node serves, the transport between daemons, the client, and the PKI.
//!
//! | module | what | pure |
//! |---|---|---|
//! | [`proto`] | messages and services, made from `proto/` | yes |
//! | [`daemon`] | what the services need from the daemon | yes |
//! | [`view`] | answers assembled from state and what is seen | yes |
//! | [`ticket`] | join tickets as text | yes |
//! | [`auth`] | who may call what | yes |
//! | [`status`] | refusals as gRPC status, in one table | yes |
//! | [`pki`] | certificates, their makers and readers | yes, given keys |
//! | [`tls`] | who trusts whom on the wire | no |
//! | [`service`] | the services | no |
//! | [`server`], [`http`] | listeners | no |
//! | [`transport`], [`client`] | callers | no |

pub mod auth;
pub mod client;
pub mod daemon;
pub mod http;
pub mod pki;
pub mod secrets;
pub mod server;
pub mod service;
pub mod status;
pub mod ticket;
pub mod tls;
pub mod transport;
pub mod view;

/// Messages and services of `skein.v1`.
#[allow(missing_docs, unreachable_pub, unused_qualifications, clippy::all, clippy::too_many_lines)]
pub mod proto {
    tonic::include_proto!("skein.v1");

    /// The protocol's description, for reflection.
    pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/skein.bin"));
}
