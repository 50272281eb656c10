//! The fleet itself: its certificate authority, address pools, join tickets and operators. Pure.

use std::collections::BTreeMap;
use std::net::Ipv6Addr;

use ipnet::{Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::id::{Name, NetworkId, TicketId, UnixMillis};
use super::key::{Digest, Sealed};

/// What all nodes share: founded once by `skein init`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fleet {
    /// Names the fleet; server certificates and tickets carry it.
    pub id: Uuid,
    /// The certificate authority's certificate, PEM.
    pub ca_cert: String,
    /// The authority's private key (PKCS #8 PEM), sealed for purpose `ca-key`.
    pub ca_key: Sealed,
    /// Networks take their IPv4 slices from here.
    pub ipv4_pool: Ipv4Net,
    /// The fleet's unique local prefix, a /48 (RFC 4193).
    pub ula: Ipv6Net,
    /// How many voters the leader aims for: 1, 3 or 5.
    pub voters: u8,
    /// When the fleet was founded.
    pub at: UnixMillis,
}

impl Fleet {
    /// Returns the /64 with the given subnet number (the fourth group of the address).
    pub fn subnet(&self, number: u16) -> Ipv6Net {
        subnet(self.ula, number)
    }
}

/// Returns the /64 of a /48 with the given subnet number (the fourth group of the address).
pub(crate) fn subnet(ula: Ipv6Net, number: u16) -> Ipv6Net {
    let addr = Ipv6Addr::from(u128::from(ula.network()) | (u128::from(number) << 64));
    Ipv6Net::new(addr, 64).expect("64 is a prefix length")
}

/// Who a ticket lets in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TicketRole {
    /// The node is preferred when voters are chosen.
    Voter,
    /// The node may become a voter when no preferred one is left.
    Any,
}

/// An invitation to join, of which state knows only the secret's digest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ticket {
    /// Names the ticket.
    pub id: TicketId,
    /// SHA-256 of the secret.
    pub digest: Digest,
    /// What the joiner becomes.
    pub role: TicketRole,
    /// The network that the joiner enters.
    pub network: NetworkId,
    /// From then on it is refused.
    pub expires: UnixMillis,
    /// How many more nodes it admits.
    pub uses_left: u32,
    /// How many it was made for.
    pub uses: u32,
    /// Set when an operator withdrew it.
    pub revoked: bool,
    /// When it was made.
    pub at: UnixMillis,
    /// Who made it.
    pub by: String,
}

impl Ticket {
    /// Returns how the ticket stands at `now`: `valid`, `used`, `expired` or `revoked`.
    pub fn standing(&self, now: UnixMillis) -> &'static str {
        if self.revoked {
            "revoked"
        } else if self.uses_left == 0 {
            "used"
        } else if now >= self.expires {
            "expired"
        } else {
            "valid"
        }
    }
}

/// A person or program with a client certificate of the fleet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Operator {
    /// Names the operator; the certificate carries it.
    pub name: Name,
    /// Names this very certificate, so that a new one replaces the old.
    pub serial: Uuid,
    /// When it was admitted.
    pub at: UnixMillis,
}

/// Tickets by id.
pub type Tickets = BTreeMap<TicketId, Ticket>;
