//! Networks, addresses and plain devices. Pure.

use ipnet::{IpNet, Ipv4Net};
use serde_json::json;

use super::command::{Change, list};
use super::reject::{RejectCode, Rejection};
use super::{Applied, Context};
use crate::model::{
    DEFAULT_MTU, Device, FIRST_PORT, Name, Network, NetworkId, OverlayAddress, PublicKey, Severity,
    overlap,
};

/// The size of a network's IPv4 slice where the pool has room for several.
const SLICE: u8 = 20;
/// The least MTU that IPv6 allows (RFC 8200, section 5).
const MTU_MIN: u16 = 1280;

impl Context<'_> {
    pub(super) fn create_network(
        &mut self,
        name: &Name,
        v4: Option<Ipv4Net>,
        mtu: Option<u16>,
    ) -> Applied {
        let what = format!("network {name} was not made");
        if self.state.network_named(name).is_some() {
            let why = "a network of this name exists";
            return Err(Rejection::new(
                RejectCode::Exists,
                what,
                why,
                format!("skein net show {name}"),
            ));
        }
        let mtu = mtu.unwrap_or(DEFAULT_MTU);
        if !(MTU_MIN..=9000).contains(&mtu) {
            let why = format!("an MTU of {mtu} is outside {MTU_MIN} to 9000");
            return Err(Rejection::new(RejectCode::Invalid, what, why, "leave --mtu out for 1420"));
        }
        let fleet = self.state.fleet.clone().expect("the fleet is founded before its networks");
        let v4 = match v4 {
            Some(slice) => self.check_slice(&what, fleet.ipv4_pool, slice)?,
            None => self.next_slice(&what, fleet.ipv4_pool)?,
        };
        let number = (1..=4096u16)
            .find(|n| self.state.networks.values().all(|x| x.v6 != fleet.subnet(*n)))
            .ok_or_else(|| exhausted(&what, "all 4096 networks are taken"))?;
        let port = (FIRST_PORT..FIRST_PORT + 4096)
            .find(|p| self.state.networks.values().all(|x| x.port != *p))
            .ok_or_else(|| exhausted(&what, "all UDP ports are taken"))?;
        let id = NetworkId(self.index);
        let (v6, at) = (fleet.subnet(number), self.at);
        let devices = [].into();
        let net = Network { id, name: name.clone(), v6, v4, port, mtu, next_host: 1, devices, at };
        self.state.networks.insert(id, net);
        self.emit(
            "system.sdwan.network.created",
            Severity::Low,
            None,
            None,
            json!({
                "network": name, "v6": v6, "v4": v4, "port": port,
            }),
        );
        Ok(Change::Network { id })
    }

    fn next_slice(&self, what: &str, pool: Ipv4Net) -> Result<Ipv4Net, Rejection> {
        let len =
            if pool.prefix_len() <= SLICE - 2 { SLICE } else { (pool.prefix_len() + 2).min(28) };
        let len = len.max(pool.prefix_len());
        self.state.free_slice(pool, len).ok_or_else(|| {
            exhausted(what, &format!("no free /{len} is left in the IPv4 pool {pool}"))
        })
    }

    fn check_slice(&self, what: &str, pool: Ipv4Net, slice: Ipv4Net) -> Result<Ipv4Net, Rejection> {
        let invalid = |why: String| {
            let next = "leave --ipv4 out to have a free slice chosen";
            Rejection::new(RejectCode::Invalid, what, why, next)
        };
        let slice = slice.trunc();
        if !pool.contains(&slice) || slice.prefix_len() > 28 {
            return Err(invalid(format!(
                "{slice} is no part of the fleet's pool {pool}, or smaller than a /28"
            )));
        }
        let clash =
            self.state.networks.values().find(|n| overlap(&IpNet::V4(n.v4), &IpNet::V4(slice)));
        match clash {
            Some(n) => Err(invalid(format!("{slice} overlaps {} of network {}", n.v4, n.name))),
            None => Ok(slice),
        }
    }

    /// Finds a network by name; without one, the only network or the one called `default`.
    pub(super) fn network_or_default(&self, name: Option<&Name>) -> Result<NetworkId, Rejection> {
        let networks = &self.state.networks;
        let found = match name {
            Some(name) => self.state.network_named(name),
            None if networks.len() == 1 => networks.values().next(),
            None => networks.values().find(|n| n.name.as_str() == "default"),
        };
        found.map(|n| n.id).ok_or_else(|| {
            let known = list(networks.values().map(|n| &n.name));
            match name {
                Some(name) => Rejection::new(
                    RejectCode::NotFound,
                    format!("network {name} was not found"),
                    "there is no such network",
                    format!("networks are: {known}"),
                ),
                None => Rejection::new(
                    RejectCode::Ambiguous,
                    "no network was chosen",
                    format!("there are several: {known}"),
                    "name one with --network",
                ),
            }
        })
    }

    /// Takes a fresh host number; numbers of removed members are used only when no fresh one is left.
    pub(super) fn take_address(&mut self, id: NetworkId) -> Result<OverlayAddress, Rejection> {
        let Some(network) = self.state.networks.get_mut(&id) else {
            let why = "the network is gone";
            return Err(Rejection::new(
                RejectCode::NotFound,
                "no address was given",
                why,
                "skein net ls",
            ));
        };
        if network.next_host <= network.capacity() {
            let address = network.member_address(network.next_host);
            network.next_host += 1;
            return Ok(address);
        }
        let network = &self.state.networks[&id];
        let in_use = |a: &OverlayAddress| {
            let nodes = self.state.nodes.values().filter_map(|n| n.networks.get(&id));
            nodes.chain(network.devices.values().map(|d| &d.address)).any(|x| x == a)
        };
        (1..=network.capacity())
            .map(|host| network.member_address(host))
            .find(|a| !in_use(a))
            .ok_or_else(|| {
                let why = format!("network {} is full ({})", network.name, network.v4);
                exhausted("no address was given", &why)
            })
    }

    pub(super) fn attach_node(&mut self, node: &Name, network: &Name) -> Applied {
        let network = self.network_or_default(Some(network))?;
        let id = self.node_id(node)?;
        if self.state.nodes[&id].networks.contains_key(&network) {
            return Ok(Change::Nothing);
        }
        let address = self.take_address(network)?;
        if let Some(node) = self.state.node_mut(id) {
            node.networks.insert(network, address);
        }
        self.emit(
            "system.sdwan.peer.attached",
            Severity::Low,
            Some(id),
            None,
            json!({
                "network": self.state.networks[&network].name, "address": address,
            }),
        );
        self.adopt_waiting();
        Ok(Change::Nothing)
    }

    pub(super) fn device_key_taken(&self, key: &PublicKey) -> bool {
        let mut devices = self.state.networks.values().flat_map(|n| n.devices.values());
        devices.any(|d| d.key == *key)
    }

    pub(super) fn add_device(&mut self, network: &Name, name: &Name, key: &PublicKey) -> Applied {
        let id = self.network_or_default(Some(network))?;
        let what = format!("device {name} was not admitted");
        let net = &self.state.networks[&id];
        if let Some(known) = net.devices.get(name) {
            if known.key == *key {
                return Ok(Change::Nothing);
            }
            let why = format!("network {network} has a device of this name with another key");
            let next = format!("skein peer rm {name} --network {network}");
            return Err(Rejection::new(RejectCode::Exists, what, why, next));
        }
        let node_has_it = self.state.nodes.values().any(|n| n.wireguard == *key);
        if node_has_it || self.device_key_taken(key) {
            let why = "its key is in use by another member";
            return Err(Rejection::new(
                RejectCode::Exists,
                what,
                why,
                "make a fresh key with `wg genkey`",
            ));
        }
        let address = self.take_address(id)?;
        let device = Device { key: *key, address, at: self.at };
        if let Some(net) = self.state.networks.get_mut(&id) {
            net.devices.insert(name.clone(), device);
        }
        self.emit(
            "system.sdwan.device.added",
            Severity::Medium,
            None,
            None,
            json!({
                "network": network, "device": name, "address": address,
            }),
        );
        Ok(Change::Nothing)
    }

    pub(super) fn remove_device(&mut self, network: &Name, name: &Name) -> Applied {
        let id = self.network_or_default(Some(network))?;
        let removed = self.state.networks.get_mut(&id).and_then(|n| n.devices.remove(name));
        if removed.is_none() {
            let known = list(self.state.networks[&id].devices.keys());
            return Err(Rejection::new(
                RejectCode::NotFound,
                format!("device {name} was not removed"),
                format!("network {network} has no such device"),
                format!("its devices are: {known}"),
            ));
        }
        self.emit(
            "system.sdwan.device.removed",
            Severity::Medium,
            None,
            None,
            json!({
                "network": network, "device": name,
            }),
        );
        Ok(Change::Nothing)
    }
}

fn exhausted(what: &str, why: &str) -> Rejection {
    Rejection::new(
        RejectCode::Exhausted,
        what,
        why,
        "remove what is unused, or found a fleet with a larger --ipv4-pool",
    )
}
