//! Who no longer holds a VIP, and knows it, takes the address off its device soon: a second host with the address answers
//! whoever still knows the old way. Pure.

use std::collections::BTreeMap;
use std::net::IpAddr;

use super::{Invariant, Moment};

/// The bound, in microseconds: the address lingers for a second on purpose, and a look may come late.
const BOUND_US: u64 = 6_000_000;

/// See the module.
#[derive(Default)]
pub struct LetsGo {
    since: BTreeMap<(usize, IpAddr), u64>,
}

impl Invariant for LetsGo {
    fn name(&self) -> &'static str {
        "lets_go"
    }

    fn moment(&mut self, m: &Moment<'_>) -> Result<(), String> {
        let mut still = BTreeMap::new();
        for node in m.nodes.iter().filter(|n| !n.paused) {
            let state = &node.applied.1;
            let may = |ip: &IpAddr| {
                let mut vips = state.vips.values().filter(|v| v.addresses().contains(ip));
                vips.any(|v| {
                    let next = v.next.is_some_and(|n| n.node.0 == node.node);
                    v.holder.is_some_and(|h| h.0 == node.node) || next
                })
            };
            let extra = node.meshes.iter().flat_map(|s| &s.held).filter(|ip| !may(ip));
            for ip in extra {
                let key = (node.machine, *ip);
                let began = *self.since.get(&key).unwrap_or(&m.at_us);
                let ms = (m.at_us - began) / 1_000;
                if m.at_us - began > BOUND_US {
                    let machine = node.machine;
                    return Err(format!(
                        "machine {machine} has had {ip} for {ms} ms without holding it"
                    ));
                }
                still.insert(key, began);
            }
        }
        self.since = still;
        Ok(())
    }
}
