//! Overlay addresses belong to one member of a network at a time, and a node id to one machine for ever: Raft, WireGuard
//! and etcd all know a node by one of them. Pure.

use std::collections::BTreeMap;
use std::net::IpAddr;

use raft_store::model::{NodeId, State};
use uuid::Uuid;

use super::{Applied, Invariant};

/// See the module.
#[derive(Default)]
pub struct Addresses {
    ids: BTreeMap<NodeId, Uuid>,
}

impl Invariant for Addresses {
    fn name(&self) -> &'static str {
        "addresses"
    }

    fn applied(&mut self, a: &Applied<'_>) -> Result<(), String> {
        let retired = a.state.retired.iter().map(|(id, r)| (*id, r.uuid));
        for (id, uuid) in a.state.nodes.values().map(|n| (n.id, n.uuid)).chain(retired) {
            let known = *self.ids.entry(id).or_insert(uuid);
            if known != uuid {
                return Err(format!("node id {id} was {known}'s and is {uuid}'s now"));
            }
        }
        if a.before.is_some() { unique(a.state) } else { Ok(()) }
    }
}

fn unique(state: &State) -> Result<(), String> {
    for network in state.networks.values() {
        let mut owners: BTreeMap<IpAddr, String> = BTreeMap::new();
        let nodes = state.nodes.values().filter_map(|n| Some((n, n.networks.get(&network.id)?)));
        let nodes = nodes.map(|(n, a)| (n.name.to_string(), a.both().to_vec()));
        let devices =
            network.devices.iter().map(|(n, d)| (n.to_string(), d.address.both().to_vec()));
        let vips = state.vips.values().filter(|v| v.network == network.id);
        let vips = vips.map(|v| (format!("VIP {}", v.name), v.addresses().into_iter().collect()));
        for (owner, ips) in nodes.chain(devices).chain(vips) {
            for ip in ips {
                if let Some(other) = owners.insert(ip, owner.clone()) {
                    let network = &network.name;
                    return Err(format!("{other} and {owner} both have {ip} in {network}"));
                }
            }
        }
    }
    Ok(())
}
