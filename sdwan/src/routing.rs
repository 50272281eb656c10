//! AllowedIPs: which peer answers for an address, by longest prefix (WireGuard's cryptokey routing). Pure.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;

/// Prefixes and whom they lead to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AllowedIps<T> {
    v4: Table<T>,
    v6: Table<T>,
}

/// Networks by descending prefix length, so that the first hit is the longest.
type Table<T> = BTreeMap<std::cmp::Reverse<u8>, BTreeMap<u128, T>>;

fn bits(ip: IpAddr) -> u128 {
    match ip {
        IpAddr::V4(v4) => u128::from(u32::from(v4)),
        IpAddr::V6(v6) => u128::from(v6),
    }
}

fn mask(bits: u128, len: u8, width: u8) -> u128 {
    let host = u32::from(width - len.min(width));
    bits.checked_shr(host).and_then(|b| b.checked_shl(host)).unwrap_or(0)
}

impl<T: Copy> AllowedIps<T> {
    /// Makes an empty table.
    pub fn new() -> Self {
        Self { v4: BTreeMap::new(), v6: BTreeMap::new() }
    }

    /// Leads a prefix to `to`; the last one to claim it has it.
    pub fn insert(&mut self, net: IpNet, to: T) {
        let (table, width) = match net {
            IpNet::V4(_) => (&mut self.v4, 32),
            IpNet::V6(_) => (&mut self.v6, 128),
        };
        let len = net.prefix_len();
        let key = mask(bits(net.addr()), len, width);
        table.entry(std::cmp::Reverse(len)).or_default().insert(key, to);
    }

    /// Returns whom the longest prefix around `ip` leads to.
    pub fn get(&self, ip: IpAddr) -> Option<T> {
        let (table, width) = if ip.is_ipv4() { (&self.v4, 32) } else { (&self.v6, 128) };
        let ip = bits(ip);
        table.iter().find_map(|(len, nets)| nets.get(&mask(ip, len.0, width)).copied())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn naive(nets: &[(IpNet, usize)], ip: IpAddr) -> Option<usize> {
        let mut best: Option<(u8, usize)> = None;
        for (net, to) in nets {
            if net.contains(&ip) && best.is_none_or(|(len, _)| net.prefix_len() >= len) {
                best = Some((net.prefix_len(), *to));
            }
        }
        best.map(|(_, to)| to)
    }

    fn v4() -> impl Strategy<Value = IpAddr> {
        // Few distinct bits, so that prefixes meet.
        (0u32..4, 0u32..4).prop_map(|(a, b)| IpAddr::V4((0x0a00_0000 | (a << 22) | b).into()))
    }

    fn v6() -> impl Strategy<Value = IpAddr> {
        (0u128..4, 0u128..4)
            .prop_map(|(a, b)| IpAddr::V6(((0xfdu128 << 120) | (a << 66) | b).into()))
    }

    proptest! {
        #[test]
        fn finds_what_a_plain_search_finds(
            nets in proptest::collection::vec((prop_oneof![v4(), v6()], any::<u8>()), 0..20),
            ips in proptest::collection::vec(prop_oneof![v4(), v6()], 1..20),
        ) {
            let nets: Vec<(IpNet, usize)> = nets.into_iter().enumerate().map(|(i, (ip, len))| {
                let width = if ip.is_ipv4() { 33 } else { 129 };
                (IpNet::new(ip, u8::try_from(u32::from(len) % width).unwrap()).unwrap().trunc(), i)
            }).collect();
            let mut table = AllowedIps::new();
            for (net, to) in &nets {
                table.insert(*net, *to);
            }
            for ip in ips {
                prop_assert_eq!(table.get(ip), naive(&nets, ip));
            }
        }
    }
}
