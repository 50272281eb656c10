//! Addresses and routes of a device: what it should have, what it has, what to change. Pure; netlink does it.

pub mod netlink;

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;

use crate::spec::MeshSpec;

/// An address on a device. VIPs are held, never used as a source.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Address {
    /// The address; its prefix is always its full length.
    pub ip: IpAddr,
    /// Whether it is a VIP.
    pub held: bool,
}

/// What a device has, or should have.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Device {
    /// Its addresses.
    pub addresses: BTreeSet<IpAddr>,
    /// On-link routes over it that are made as ours are; pods' routes, which lead over a gateway, are none of them.
    pub routes: BTreeSet<IpNet>,
}

/// What brings a device from what it has to what it should have.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Diff {
    /// Addresses to add: own ones first, since the kernel prefers the first one as a source.
    pub add: Vec<Address>,
    /// Addresses to remove.
    pub remove: Vec<IpAddr>,
    /// Routes to add.
    pub routes: Vec<IpNet>,
    /// Routes to remove.
    pub stale: Vec<IpNet>,
}

/// Compares. The device is ours, so whatever global address it has beside the wanted ones is a remnant;
/// link-local addresses are left alone.
pub fn diff(spec: &MeshSpec, has: &Device) -> Diff {
    let own = spec.addresses.iter().map(|ip| Address { ip: *ip, held: false });
    let held = spec.held.iter().map(|ip| Address { ip: *ip, held: true });
    let wanted: Vec<Address> = own.chain(held).collect();
    let global = |ip: &IpAddr| match ip {
        IpAddr::V4(v4) => !v4.is_link_local(),
        IpAddr::V6(v6) => !v6.is_unicast_link_local(),
    };
    Diff {
        remove: has
            .addresses
            .iter()
            .filter(|ip| global(ip) && !wanted.iter().any(|w| w.ip == **ip))
            .copied()
            .collect(),
        add: wanted.into_iter().filter(|w| !has.addresses.contains(&w.ip)).collect(),
        routes: spec.prefixes.iter().filter(|p| !has.routes.contains(p)).copied().collect(),
        stale: has.routes.iter().filter(|p| !spec.prefixes.contains(p)).copied().collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::PrivateKey;

    fn spec(held: &[&str]) -> MeshSpec {
        MeshSpec {
            generation: 1,
            network: "n".into(),
            interface: "wg-sdwan-000000".into(),
            private_key: PrivateKey::new([1; 32]),
            listen_port: 1,
            mtu: 1420,
            addresses: vec!["fd00::1".parse().unwrap(), "10.90.0.1".parse().unwrap()],
            prefixes: vec!["fd00::/64".parse().unwrap(), "10.90.0.0/20".parse().unwrap()],
            held: held.iter().map(|ip| ip.parse().unwrap()).collect(),
            handovers: Vec::new(),
            peers: Vec::new().into(),
        }
    }

    #[test]
    fn once_applied_nothing_is_left_to_do() {
        let mut has = Device::default();
        let steps = [spec(&["fd00::100"]), spec(&[]), spec(&["10.90.15.254"])];
        for spec in steps {
            let d = diff(&spec, &has);
            has.addresses.extend(d.add.iter().map(|a| a.ip));
            for ip in d.remove {
                has.addresses.remove(&ip);
            }
            has.routes.extend(d.routes);
            assert_eq!(diff(&spec, &has), Diff::default());
            assert_eq!(has.addresses.len(), 2 + spec.held.len());
        }
    }

    #[test]
    fn remnants_of_another_range_go_and_link_local_addresses_stay() {
        let mut has = Device::default();
        has.addresses
            .extend(["fe80::1", "fd99::1", "10.91.0.1"].map(|ip| ip.parse::<IpAddr>().unwrap()));
        has.routes.insert("10.91.0.0/20".parse().unwrap());
        let todo = diff(&spec(&[]), &has);
        let gone: Vec<String> = todo.remove.iter().map(IpAddr::to_string).collect();
        assert_eq!(gone, ["10.91.0.1", "fd99::1"]);
        assert_eq!(todo.stale, ["10.91.0.0/20".parse().unwrap()]);
    }
}
