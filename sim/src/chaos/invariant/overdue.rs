//! For how long something has been so of a VIP in one generation. Pure.

use std::collections::BTreeMap;

use raft_store::model::{Vip, VipId};

use super::Moment;

/// Since when, by VIP; a new generation begins anew.
#[derive(Default)]
pub(super) struct Overdue(BTreeMap<VipId, (u64, u64)>);

impl Overdue {
    /// Looks at all VIPs; returns one of which `is_so` has been true for longer than the bound, and for how long, in
    /// microseconds.
    pub(super) fn look<'a>(
        &mut self,
        m: &Moment<'a>,
        bound_us: u64,
        is_so: impl Fn(&Vip) -> bool,
    ) -> Option<(&'a Vip, u64)> {
        let state = m.newest?;
        let mut still = BTreeMap::new();
        for vip in state.vips.values().filter(|vip| is_so(vip)) {
            let began = match self.0.get(&vip.id) {
                Some((generation, at)) if *generation == vip.generation.0 => *at,
                _ => m.at_us,
            };
            let lasts_us = m.at_us.saturating_sub(began);
            if lasts_us > bound_us {
                return Some((vip, lasts_us));
            }
            still.insert(vip.id, (vip.generation.0, began));
        }
        self.0 = still;
        None
    }
}
