//! A cluster that was active is never founded again, and its secrets never change by themselves: its workloads live in
//! the etcd that a second founding would begin anew. Pure.

use raft_store::model::ClusterStatus;

use super::{Applied, Invariant};

/// See the module.
#[derive(Default)]
pub struct NoWayBack;

impl Invariant for NoWayBack {
    fn name(&self) -> &'static str {
        "no_way_back"
    }

    fn applied(&mut self, a: &Applied<'_>) -> Result<(), String> {
        let Some(before) = a.before else { return Ok(()) };
        for old in before.clusters.values() {
            let Some(new) = a.state.clusters.get(&old.id) else { continue };
            // Its whole control plane was taken away by operators, which is told loudly.
            let since = before.events.last();
            if a.state.events.after(since).any(|e| e.kind == "system.k3s.cluster.lost") {
                continue;
            }
            let was = old.status == ClusterStatus::Active;
            if was && matches!(new.status, ClusterStatus::Pending | ClusterStatus::Bootstrapping) {
                return Err(format!("cluster {} went from active to {:?}", new.name, new.status));
            }
            if was && old.secrets.is_some() && new.secrets.is_none() {
                return Err(format!("cluster {} lost its secrets", new.name));
            }
        }
        Ok(())
    }
}
