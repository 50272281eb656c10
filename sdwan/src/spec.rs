//! What an overlay should look like on this host, in the data plane's own words. Pure.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ipnet::IpNet;
use sha2::{Digest as _, Sha256};
use zeroize::{Zeroize, ZeroizeOnDrop};

/// A WireGuard private key.
#[derive(Clone, PartialEq, Eq, Zeroize, ZeroizeOnDrop)]
pub struct PrivateKey([u8; 32]);

impl PrivateKey {
    /// Takes a key into custody.
    pub fn new(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// Shows the bytes to the one place that needs them.
    pub fn expose(&self) -> &[u8; 32] {
        &self.0
    }

    /// Returns the public half (RFC 7748, section 6.1).
    pub fn public(&self) -> PublicKey {
        let secret = x25519_dalek::StaticSecret::from(self.0);
        PublicKey(x25519_dalek::PublicKey::from(&secret).to_bytes())
    }
}

impl fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PrivateKey(redacted)")
    }
}

/// A WireGuard public key.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PublicKey(pub [u8; 32]);

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&STANDARD.encode(self.0))
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Says why a text is no key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a WireGuard key: 32 bytes in base64 are wanted")]
pub struct InvalidKey;

impl FromStr for PublicKey {
    type Err = InvalidKey;

    fn from_str(s: &str) -> Result<Self, InvalidKey> {
        let bytes = STANDARD.decode(s.trim()).map_err(|_| InvalidKey)?;
        bytes.try_into().map(Self).map_err(|_| InvalidKey)
    }
}

/// One overlay network on this host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MeshSpec {
    /// Of the replicated state that it was made from; an older one than the last is ignored.
    pub generation: u64,
    /// The network's name, for messages.
    pub network: String,
    /// The device's name, at most 15 characters.
    pub interface: String,
    /// This host's key.
    pub private_key: PrivateKey,
    /// The UDP port to listen on.
    pub listen_port: u16,
    /// The device's MTU in bytes.
    pub mtu: u16,
    /// This host's own addresses in the network.
    pub addresses: Vec<IpAddr>,
    /// On-link routes over the device: the network's ranges. Pod ranges are none of them, flannel adds those.
    pub prefixes: Vec<IpNet>,
    /// VIPs that this host answers for: on the device, never chosen as a source.
    pub held: Vec<IpAddr>,
    /// The other members; shared, since a spec is copied and compared far more often than they change. In a `Vec`, since an
    /// `Arc` of a slice compares all of it, even with itself.
    pub peers: Arc<Vec<PeerSpec>>,
    /// Addresses that moved a moment ago, as planned: connections that were begun before stay with the former holder.
    pub handovers: Vec<Handover>,
}

/// An address whose former holder finishes what it began.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Handover {
    /// The address.
    pub address: IpAddr,
    /// Who held it before.
    pub from: PublicKey,
}

/// Another member of a network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerSpec {
    /// Its name, for messages.
    pub name: String,
    /// Its key.
    pub public_key: PublicKey,
    /// Where it may be reached, best first; empty for a device that dials us.
    pub endpoints: Vec<SocketAddr>,
    /// What it answers for: its own addresses, VIPs that it holds, its pods.
    pub allowed_ips: Vec<IpNet>,
    /// Seconds between keepalives; none without.
    pub keepalive: Option<u16>,
}

/// How the names of all overlay devices begin.
pub(crate) const DEVICE_PREFIX: &str = "wg-sdwan-";

/// Returns the device's name for a network: `wg-sdwan-` and six hexadecimal digits of its name's SHA-256.
pub fn interface_name(network: &str) -> String {
    let digest = Sha256::digest(network.as_bytes());
    format!("{DEVICE_PREFIX}{}", &hex::encode(digest)[..6])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn device_names_fit_the_kernel() {
        let name = interface_name("default");
        assert_eq!(name.len(), 15);
        assert_ne!(name, interface_name("other"));
    }

    #[test]
    fn keys_round_trip_and_stay_hidden() {
        let key = PrivateKey::new([5; 32]);
        assert_eq!(key.public().to_string().parse(), Ok(key.public()));
        assert!(!format!("{key:?}").contains('5'));
        assert!("AAAA".parse::<PublicKey>().is_err());
    }
}
