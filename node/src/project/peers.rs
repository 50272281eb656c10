//! The other members of a network, as the data plane is told of them. Pure.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use ipnet::IpNet;
use raft_store::model::{Device, Name, Network, Node, State, Vip};
use sdwan::{PeerSpec, PublicKey};

use super::Local;

/// Keeps mappings of routers between us open, in seconds.
const KEEPALIVE_S: u16 = 25;

/// Returns the peers in a network. They are those of `before` themselves where nothing about them changed, which most changes of
/// the state are not about: what is shared is compared and copied in no time, however many they are.
pub(super) fn peers(
    state: &State,
    net: &Network,
    local: &Local<'_>,
    before: Option<&Arc<Vec<PeerSpec>>>,
) -> Arc<Vec<PeerSpec>> {
    let of = Of { state, net, local };
    let same = |before: &&Arc<Vec<PeerSpec>>| {
        let mut known = before.iter();
        of.members().all(|m| known.next().is_some_and(|spec| of.is(&m, spec)))
            && known.next().is_none()
    };
    match before.filter(same) {
        Some(before) => before.clone(),
        None => Arc::new(of.members().map(|m| of.spec(&m)).collect()),
    }
}

/// Where members are looked up.
#[derive(Clone, Copy)]
struct Of<'a> {
    state: &'a State,
    net: &'a Network,
    local: &'a Local<'a>,
}

/// A member of a network.
enum Member<'a> {
    Node(&'a Node),
    /// A plain WireGuard device, which dials us.
    Device(&'a Name, &'a Device),
}

impl<'a> Of<'a> {
    fn members(self) -> impl Iterator<Item = Member<'a>> {
        let (me, net) = (self.local.me, self.net);
        let nodes = self.state.nodes.values();
        let nodes = nodes.filter(move |n| n.id != me && n.networks.contains_key(&net.id));
        let devices = net.devices.iter().map(|(name, d)| Member::Device(name, d));
        nodes.map(|n| Member::Node(n)).chain(devices)
    }

    fn name(self, member: &Member<'a>) -> &'a str {
        match member {
            Member::Node(n) => n.name.as_str(),
            Member::Device(name, _) => name.as_str(),
        }
    }

    fn key(self, member: &Member<'a>) -> PublicKey {
        match member {
            Member::Node(n) => PublicKey(n.wireguard.0),
            Member::Device(_, d) => PublicKey(d.key.0),
        }
    }

    fn keepalive(self, member: &Member<'a>) -> Option<u16> {
        matches!(member, Member::Node(_)).then_some(KEEPALIVE_S)
    }

    fn endpoints(self, member: &Member<'a>) -> impl Iterator<Item = SocketAddr> {
        let hosts = match member {
            Member::Node(n) => self.local.hosts.get(&n.uuid),
            Member::Device(..) => None,
        };
        hosts.into_iter().flatten().map(move |ip| SocketAddr::new(*ip, self.net.port))
    }

    /// What a member answers for: its own addresses, VIPs that it holds, its pods.
    fn allowed(self, member: &Member<'a>) -> impl Iterator<Item = IpNet> {
        let (own, node) = match member {
            Member::Node(n) => (n.networks.get(&self.net.id), Some(*n)),
            Member::Device(_, d) => (Some(&d.address), None),
        };
        let own = own.into_iter().flat_map(|a| [IpAddr::V6(a.v6), a.v4.into()]);
        own.map(IpNet::from).chain(node.into_iter().flat_map(move |n| self.carried(n)))
    }

    fn carried(self, node: &'a Node) -> impl Iterator<Item = IpNet> {
        let held = move |v: &&Vip| v.network == self.net.id && v.holder == Some(node.id);
        let vips = self.state.vips.values().filter(held).flat_map(Vip::addresses);
        vips.map(IpNet::from).chain(self.pods(node))
    }

    /// A node's pod ranges, if its cluster lives on this network.
    fn pods(self, node: &'a Node) -> impl Iterator<Item = IpNet> {
        let here = self.state.cluster_of(node).is_some_and(|c| c.network == self.net.id);
        let assigned = node.assignment.iter().filter(move |_| here);
        assigned.flat_map(|a| a.pods.cidrs.iter().copied())
    }

    fn is(self, member: &Member<'a>, spec: &PeerSpec) -> bool {
        let PeerSpec { name, public_key, endpoints, allowed_ips, keepalive } = spec;
        self.key(member) == *public_key
            && self.name(member) == name
            && self.keepalive(member) == *keepalive
            && self.endpoints(member).eq(endpoints.iter().copied())
            && self.allowed(member).eq(allowed_ips.iter().copied())
    }

    fn spec(self, member: &Member<'a>) -> PeerSpec {
        PeerSpec {
            name: self.name(member).to_owned(),
            public_key: self.key(member),
            endpoints: self.endpoints(member).collect(),
            allowed_ips: self.allowed(member).collect(),
            keepalive: self.keepalive(member),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use raft_store::model::NodeId;
    use uuid::Uuid;

    use super::super::tests::lab;
    use super::*;

    type Hosts = BTreeMap<Uuid, Vec<IpAddr>>;

    fn of(state: &State, hosts: &Hosts, before: Option<&Arc<Vec<PeerSpec>>>) -> Arc<Vec<PeerSpec>> {
        let me = *state.nodes.keys().next().unwrap();
        let local = Local { me, wireguard: &[1; 32], hosts, former: &BTreeMap::new() };
        peers(state, state.networks.values().next().unwrap(), &local, before)
    }

    /// Whatever changes about a peer must come through, and nothing else may cost anything.
    #[test]
    fn peers_are_shared_until_something_about_them_changes() {
        let (mut state, mut hosts) = (lab(), Hosts::new());
        let mut before = of(&state, &hosts, None);
        assert!(before.len() > 1);
        let node = *state.nodes.keys().nth(1).unwrap();
        let mut changed = |what: &str, change: &dyn Fn(&mut State, &mut Hosts)| {
            change(&mut state, &mut hosts);
            let (again, anew) = (of(&state, &hosts, Some(&before)), of(&state, &hosts, None));
            assert_eq!(again, anew, "{what}");
            let shared = Arc::ptr_eq(&again, &before);
            before = again;
            !shared
        };
        let at = |state: &mut State, id: NodeId| state.nodes[&id].uuid;
        assert!(!changed("nothing", &|_, _| {}));
        assert!(!changed("its version", &|s, _| {
            let node = s.node_mut(node).unwrap();
            node.assignment.as_mut().unwrap().version = Some("v9".into());
        }));
        assert!(changed("its host", &|s, h| {
            h.insert(at(s, node), vec!["192.0.2.1".parse().unwrap()]);
        }));
        assert!(changed("a VIP", &|s, _| {
            let vip = s.vips.values_mut().next().unwrap();
            vip.holder = if vip.holder == Some(node) { None } else { Some(node) };
        }));
        assert!(changed("its pods", &|s, _| {
            let node = s.node_mut(node).unwrap();
            let pods = &mut node.assignment.as_mut().unwrap().pods;
            pods.cidrs.push("10.42.250.0/24".parse().unwrap());
        }));
        assert!(changed("its key", &|s, _| s.node_mut(node).unwrap().wireguard.0 = [9; 32]));
        assert!(changed("a device", &|s, _| {
            let net = s.networks.values_mut().next().unwrap();
            let address = s.nodes.values().next().unwrap().networks[&net.id];
            let key = raft_store::model::PublicKey([8; 32]);
            let at = raft_store::model::UnixMillis(0);
            net.devices.insert("phone".parse().unwrap(), Device { key, address, at });
        }));
        assert!(changed("its end", &|s, _| s
            .networks
            .values_mut()
            .next()
            .unwrap()
            .devices
            .clear()));
        assert!(changed("the last one", &|s, _| {
            let last = *s.nodes.keys().last().unwrap();
            s.node_mut(last).unwrap().networks.clear();
        }));
    }
}
