//! One machine founds a cluster, whatever restarts and moves: two founders would be two clusters of one name, with two
//! authorities and two etcds. Pure.

use std::collections::BTreeMap;

use raft_store::model::{ClusterId, ClusterStatus, NodeId};

use super::{Applied, Invariant, Moment};

/// See the module.
#[derive(Default)]
pub struct OneFounder {
    winners: BTreeMap<ClusterId, NodeId>,
}

impl Invariant for OneFounder {
    fn name(&self) -> &'static str {
        "one_founder"
    }

    fn applied(&mut self, a: &Applied<'_>) -> Result<(), String> {
        // A node that is behind shows what was; others have seen it.
        if a.before.is_none() {
            return Ok(());
        }
        // One that lost its whole control plane begins anew, which `no_way_back` looks after.
        let anew = a.state.clusters.values().filter(|c| c.status != ClusterStatus::Active);
        for cluster in anew.filter(|c| c.secrets.is_none()) {
            self.winners.remove(&cluster.id);
        }
        let active = a.state.clusters.values().filter(|c| c.status == ClusterStatus::Active);
        for (cluster, founder) in active.filter_map(|c| Some((c, c.bootstrap?))) {
            let known = *self.winners.entry(cluster.id).or_insert(founder);
            if known != founder {
                let name = &cluster.name;
                return Err(format!(
                    "cluster {name} was founded by node {known}, now by {founder}"
                ));
            }
        }
        Ok(())
    }

    fn moment(&mut self, m: &Moment<'_>) -> Result<(), String> {
        match m.founders.iter().find(|(_, machines)| machines.len() > 1) {
            Some((cluster, machines)) => {
                Err(format!("cluster {cluster} was founded on machines {machines:?}"))
            }
            None => Ok(()),
        }
    }
}
