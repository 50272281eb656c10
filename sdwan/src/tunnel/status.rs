//! How a tunnel and its peers stand, for operators. Pure.

use std::net::SocketAddr;
use std::time::Duration;

use crate::spec::PublicKey;

/// Why packets were dropped, counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Drops {
    /// No peer answers for the destination.
    pub unroutable: u64,
    /// The peer's address is not known.
    pub no_endpoint: u64,
    /// The datagram was refused: unknown, replayed, or forged.
    pub refused: u64,
    /// The source is not the sending peer's.
    pub spoofed: u64,
    /// No IP packet.
    pub malformed: u64,
    /// The way to the peer has a smaller MTU; the sender was told.
    pub too_big: u64,
    /// The way was congested, and the packet's sender cannot be told otherwise (RFC 6040).
    pub congested: u64,
    /// It was another packet thread's, which had no room for it.
    pub overrun: u64,
}

impl Drops {
    /// Adds what another tunnel of the same overlay dropped.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        Self {
            unroutable: self.unroutable + other.unroutable,
            no_endpoint: self.no_endpoint + other.no_endpoint,
            refused: self.refused + other.refused,
            spoofed: self.spoofed + other.spoofed,
            malformed: self.malformed + other.malformed,
            too_big: self.too_big + other.too_big,
            congested: self.congested + other.congested,
            overrun: self.overrun + other.overrun,
        }
    }
}

/// How one peer stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerStatus {
    /// Its name.
    pub name: String,
    /// Its key.
    pub key: PublicKey,
    /// Where it is reached.
    pub endpoint: Option<SocketAddr>,
    /// How long ago keys were agreed.
    pub handshake_age: Option<Duration>,
    /// Bytes of packets received from it.
    pub rx_bytes: u64,
    /// Bytes of packets sent to it.
    pub tx_bytes: u64,
    /// The smoothed round trip through the tunnel, once it answered an echo request.
    pub round_trip: Option<Duration>,
    /// How many of the last echo requests it did not answer, and how many those were; nothing of one that answers none.
    pub lost: Option<(u32, u32)>,
    /// The largest packet that passes without fragments, in bytes, once that is known.
    pub path_mtu: Option<u16>,
}
