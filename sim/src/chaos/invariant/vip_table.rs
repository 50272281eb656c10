//! Every node's table leads a VIP's packets to exactly the holder that the state names at the index from which the
//! table was made; a node that holds it has it on its own device. Pure.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use raft_store::model::State;
use sdwan::MeshSpec;

use super::{Applied, Invariant, Moment};

/// How many states are remembered to compare tables with.
const KEPT: usize = 512;

/// See the module.
#[derive(Default)]
pub struct VipTable {
    states: BTreeMap<u64, Arc<State>>,
}

impl Invariant for VipTable {
    fn name(&self) -> &'static str {
        "vip_table"
    }

    fn applied(&mut self, a: &Applied<'_>) -> Result<(), String> {
        if !a.state.vips.is_empty() {
            self.states.entry(a.index).or_insert_with(|| a.state.clone());
            if self.states.len() > KEPT {
                self.states.pop_first();
            }
        }
        Ok(())
    }

    fn moment(&mut self, m: &Moment<'_>) -> Result<(), String> {
        for node in m.nodes {
            for mesh in node.meshes.iter() {
                if let Some(state) = self.states.get(&mesh.generation) {
                    compare(state, mesh, node.node).map_err(|why| {
                        format!("machine {} at index {}: {why}", node.machine, mesh.generation)
                    })?;
                }
            }
        }
        Ok(())
    }
}

fn compare(state: &State, mesh: &MeshSpec, me: u64) -> Result<(), String> {
    let network = state.networks.values().find(|n| n.name.as_str() == mesh.network);
    let vips = state.vips.values().filter(|v| Some(v.network) == network.map(|n| n.id));
    for vip in vips {
        for ip in vip.addresses() {
            let lead = leads_to(mesh, ip);
            let holder = vip.holder.and_then(|id| state.nodes.get(&id));
            let wanted: Vec<String> =
                holder.filter(|n| n.id.0 != me).map(|n| n.name.to_string()).into_iter().collect();
            if lead != wanted {
                return Err(format!("VIP {ip} leads to {lead:?}, its holder is {wanted:?}"));
            }
            let holds = vip.holder.is_some_and(|id| id.0 == me);
            if holds && !mesh.held.contains(&ip) {
                return Err(format!("it holds VIP {ip} and lacks the address"));
            }
        }
    }
    Ok(())
}

fn leads_to(mesh: &MeshSpec, ip: IpAddr) -> Vec<String> {
    let full = if ip.is_ipv4() { 32 } else { 128 };
    let exact = |net: &ipnet::IpNet| net.prefix_len() == full && net.contains(&ip);
    let peers = mesh.peers.iter().filter(|p| p.allowed_ips.iter().any(exact));
    peers.map(|p| p.name.clone()).collect()
}
