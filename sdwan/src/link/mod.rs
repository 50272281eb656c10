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
    /// Routes that lead over it.
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
}

/// Compares; link-local addresses and routes of others (pods' routes, say) are left alone.
pub fn diff(spec: &MeshSpec, has: &Device) -> Diff {
    let own = spec.addresses.iter().map(|ip| Address { ip: *ip, held: false });
    let held = spec.held.iter().map(|ip| Address { ip: *ip, held: true });
    let wanted: Vec<Address> = own.chain(held).collect();
    let ours = |ip: &IpAddr| spec.prefixes.iter().any(|p| p.contains(ip));
    Diff {
        remove: has
            .addresses
            .iter()
            .filter(|ip| ours(ip) && !wanted.iter().any(|w| w.ip == **ip))
            .copied()
            .collect(),
        add: wanted.into_iter().filter(|w| !has.addresses.contains(&w.ip)).collect(),
        routes: spec.prefixes.iter().filter(|p| !has.routes.contains(p)).copied().collect(),
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
            peers: Vec::new(),
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
    fn what_others_added_stays() {
        let mut has = Device::default();
        has.addresses.insert("fe80::1".parse().unwrap());
        has.routes.insert("10.42.1.0/24".parse().unwrap());
        assert!(diff(&spec(&[]), &has).remove.is_empty());
    }
}
