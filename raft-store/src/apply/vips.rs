//! VIPs: moved by compare-and-set on their generation, and only to a server that may hold them. Pure.

use serde_json::json;

use super::command::Change;
use super::reject::{RejectCode, Rejection};
use super::{Applied, Context};
use crate::model::cluster::HISTORY;
use crate::model::{Assumption, Generation, MoveReason, NextHolder, NodeId, Severity, VipId};

impl Context<'_> {
    pub(super) fn prepare_vip(
        &mut self,
        vip: VipId,
        expect: Generation,
        to: NodeId,
        reason: MoveReason,
    ) -> Applied {
        let at = self.at;
        if self.keeps(vip, expect, to) {
            return Ok(Change::Nothing);
        }
        self.check_move(vip, expect, to)?;
        if let Some(vip) = self.state.vips.get_mut(&vip) {
            vip.next = Some(NextHolder { node: to, reason, at });
        }
        Ok(Change::Nothing)
    }

    pub(super) fn move_vip(
        &mut self,
        vip: VipId,
        expect: Generation,
        to: NodeId,
        reason: MoveReason,
    ) -> Applied {
        if self.keeps(vip, expect, to) {
            return Ok(Change::Nothing);
        }
        self.check_move(vip, expect, to)?;
        let old = self.state.vips[&vip].holder;
        self.give_vip(vip, to, reason);
        let v = &self.state.vips[&vip];
        let (generation, name, cluster) = (v.generation, v.name.clone(), v.cluster);
        let old = old.map(|id| self.state.name_of(id));
        let severity = if reason == MoveReason::Loss { Severity::High } else { Severity::Medium };
        self.emit(
            "system.sdwan.virtual_ip.failover_completed",
            severity,
            Some(to),
            Some(cluster),
            json!({
                "vip": name, "old": old, "new": self.state.name_of(to),
                "reason": reason, "generation": generation,
            }),
        );
        Ok(Change::Nothing)
    }

    /// Cancels a planned move when the present holder is named as the next one.
    fn keeps(&mut self, vip: VipId, expect: Generation, to: NodeId) -> bool {
        let vip = self.state.vips.get_mut(&vip);
        let Some(vip) = vip.filter(|v| v.holder == Some(to) && v.generation == expect) else {
            return false;
        };
        vip.next = None;
        true
    }

    /// Makes `to` the holder under a new generation.
    pub(super) fn give_vip(&mut self, vip: VipId, to: NodeId, reason: MoveReason) {
        let at = self.at;
        let Some(vip) = self.state.vips.get_mut(&vip) else {
            return;
        };
        vip.generation = vip.generation.next();
        vip.holder = Some(to);
        vip.next = None;
        if vip.history.len() >= HISTORY {
            vip.history.remove(0);
        }
        vip.history.push(Assumption { holder: to, generation: vip.generation, reason, at });
    }

    fn check_move(&self, vip: VipId, expect: Generation, to: NodeId) -> Result<(), Rejection> {
        let Some(v) = self.state.vips.get(&vip) else {
            let why = "the VIP is gone";
            return Err(Rejection::new(
                RejectCode::NotFound,
                "no VIP was moved",
                why,
                "skein vip ls",
            ));
        };
        let what = format!("VIP {} was not moved", v.name);
        let next = format!("skein vip show {}", v.name);
        if v.generation != expect {
            let why =
                format!("it has moved since: generation {} instead of {expect}", v.generation);
            return Err(Rejection::new(RejectCode::Stale, what, why, next));
        }
        if v.holder.is_none() {
            let why = "nobody holds it yet: its cluster is not founded";
            return Err(Rejection::new(RejectCode::Conflict, what, why, next));
        }
        let Some(node) = self.state.nodes.get(&to) else {
            return Err(Rejection::new(RejectCode::NotFound, what, "the new holder is gone", next));
        };
        self.state.candidacy(v, node).map_err(|reason| {
            let why = format!("{} cannot hold it: it {reason}", node.name);
            Rejection::new(RejectCode::Conflict, what, why, next)
        })
    }
}
