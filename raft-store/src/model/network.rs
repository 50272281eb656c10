//! Overlay networks, their address plan and plain WireGuard devices. Pure.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, Ipv6Addr};

use ipnet::{Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize};

use super::id::{Name, NetworkId, UnixMillis};
use super::key::PublicKey;
use super::node::OverlayAddress;

/// The first UDP port that networks take; the n-th network listens on the n-th port from here.
pub const FIRST_PORT: u16 = 51820;
/// The tunnel's MTU on a 1500-byte underlay: 1500 - 40 (IPv6) - 8 (UDP) - 32 (WireGuard).
pub const DEFAULT_MTU: u16 = 1420;
/// VIPs take the host numbers 0x100 to 0x1ff of the /64, so that members never meet them.
const VIP_HOSTS: u64 = 0x100;
/// How many VIPs a network can hold; the same number of addresses is kept at the slice's end.
pub const VIPS: u16 = 64;

/// An isolated overlay: members of different networks cannot reach each other.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Network {
    /// Names the network.
    pub id: NetworkId,
    /// What people call it.
    pub name: Name,
    /// Its /64.
    pub v6: Ipv6Net,
    /// Its slice of the fleet's IPv4 pool.
    pub v4: Ipv4Net,
    /// The UDP port on which every member listens for it.
    pub port: u16,
    /// The tunnel's MTU in bytes.
    pub mtu: u16,
    /// The host number that the next member gets; numbers are not reused while fresh ones are left.
    pub next_host: u32,
    /// Plain WireGuard devices that were admitted.
    pub devices: BTreeMap<Name, Device>,
    /// When it was made.
    pub at: UnixMillis,
}

/// A WireGuard device that runs no daemon.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Device {
    /// Its WireGuard key.
    pub key: PublicKey,
    /// Its addresses.
    pub address: OverlayAddress,
    /// When it was admitted.
    pub at: UnixMillis,
}

impl Network {
    /// Returns how many members and devices the IPv4 slice can hold.
    pub fn capacity(&self) -> u32 {
        let all = 1u64 << (32 - self.v4.prefix_len());
        let usable = all.saturating_sub(u64::from(self.vip_room()) + 2);
        u32::try_from(usable).unwrap_or(u32::MAX)
    }

    fn vip_room(&self) -> u16 {
        let all = 1u64 << (32 - self.v4.prefix_len());
        u16::try_from(all / 4).unwrap_or(VIPS).min(VIPS)
    }

    /// Returns the addresses of the member with host number `host` (1 or more).
    pub fn member_address(&self, host: u32) -> OverlayAddress {
        let host64 = u64::from(host);
        let suffix = if host64 < VIP_HOSTS { host64 } else { host64 + VIP_HOSTS };
        OverlayAddress {
            v6: Ipv6Addr::from(u128::from(self.v6.network()) | u128::from(suffix)),
            v4: Ipv4Addr::from(u32::from(self.v4.network()).saturating_add(host)),
        }
    }

    /// Returns the addresses of the VIP with number `n`, if the network has room for it.
    pub fn vip_address(&self, n: u16) -> Option<OverlayAddress> {
        (n < self.vip_room()).then(|| OverlayAddress {
            v6: Ipv6Addr::from(
                u128::from(self.v6.network()) | u128::from(VIP_HOSTS + u64::from(n)),
            ),
            v4: Ipv4Addr::from(u32::from(self.v4.broadcast()) - 1 - u32::from(n)),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn network(slice: &str) -> Network {
        Network {
            id: NetworkId(1),
            name: "default".parse().unwrap(),
            v6: "fd00:1:2:1::/64".parse().unwrap(),
            v4: slice.parse().unwrap(),
            port: FIRST_PORT,
            mtu: DEFAULT_MTU,
            next_host: 1,
            devices: BTreeMap::new(),
            at: UnixMillis(0),
        }
    }

    #[test]
    fn members_and_vips_never_share_an_address() {
        for slice in ["10.90.0.0/20", "10.90.0.0/24", "10.90.0.0/28"] {
            let net = network(slice);
            let vips: Vec<_> = (0..VIPS).map_while(|n| net.vip_address(n)).collect();
            assert!(!vips.is_empty());
            for host in 1..=net.capacity() {
                let a = net.member_address(host);
                assert!(net.v4.contains(&a.v4) && net.v6.contains(&a.v6), "{slice} {host}");
                assert!(a.v4 != net.v4.network() && a.v4 != net.v4.broadcast());
                assert!(vips.iter().all(|v| v.v4 != a.v4 && v.v6 != a.v6), "{slice} {host}");
            }
        }
        assert_eq!(
            network("10.90.0.0/20").vip_address(0).unwrap().v6.to_string(),
            "fd00:1:2:1::100"
        );
    }
}
