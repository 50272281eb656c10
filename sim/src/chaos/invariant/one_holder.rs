//! A VIP has one holder in a generation, and its generation only grows: receivers take packets from the holder of the
//! newest generation that they know, so two holders of one generation would both be believed. Pure.

use std::collections::BTreeMap;

use raft_store::model::{NodeId, VipId};

use super::{Applied, Invariant};

/// See the module.
#[derive(Default)]
pub struct OneHolder {
    holders: BTreeMap<(VipId, u64), Option<NodeId>>,
    newest: BTreeMap<VipId, (u64, u64)>,
}

impl Invariant for OneHolder {
    fn name(&self) -> &'static str {
        "one_holder"
    }

    fn applied(&mut self, a: &Applied<'_>) -> Result<(), String> {
        for vip in a.state.vips.values() {
            let (id, generation) = (vip.id, vip.generation.0);
            let known = *self.holders.entry((id, generation)).or_insert(vip.holder);
            if known != vip.holder {
                let name = &vip.name;
                let holder = vip.holder;
                return Err(format!(
                    "VIP {name} has two holders in generation {generation}: {known:?} and {holder:?}"
                ));
            }
            let (index, newest) = self.newest.entry(id).or_insert((a.index, generation));
            if a.index >= *index && generation < *newest {
                let name = &vip.name;
                return Err(format!(
                    "VIP {name} went back from generation {newest} to {generation}"
                ));
            }
            if a.index >= *index {
                (*index, *newest) = (a.index, generation);
            }
        }
        Ok(())
    }
}
