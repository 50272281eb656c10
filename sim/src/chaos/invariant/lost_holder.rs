//! A VIP whose holder is lost moves within a bound, as long as a leader with a majority hears somebody who can take it:
//! this is what operators are promised without lifting a finger. Pure.

use raft_store::model::{ClusterStatus, Phase, State, Vip};

use super::overdue::Overdue;
use super::{Invariant, Moment};

/// The bound, in microseconds. The promise is two seconds; here leaders may fall at the same time, and a leader that was
/// just elected listens for one window first.
const BOUND_US: u64 = 10_000_000;

/// See the module.
#[derive(Default)]
pub struct LostHolder {
    since: Overdue,
}

impl Invariant for LostHolder {
    fn name(&self) -> &'static str {
        "lost_holder"
    }

    fn moment(&mut self, m: &Moment<'_>) -> Result<(), String> {
        let Some(state) = m.newest else { return Ok(()) };
        match self.since.look(m, BOUND_US, |vip| is_lost(state, vip, m)) {
            None => Ok(()),
            Some((vip, _)) => Err(format!(
                "VIP {} stays with {:?}, which has been gone for 10 s",
                vip.name, vip.holder
            )),
        }
    }
}

fn is_lost(state: &State, vip: &Vip, m: &Moment<'_>) -> bool {
    let Some(cluster) = state.clusters.get(&vip.cluster) else { return false };
    let active = cluster.status == ClusterStatus::Active;
    let Some(holder) = vip.holder.filter(|_| active && m.net_settled) else { return false };
    let up = |id: u64| m.nodes.iter().find(|n| n.node == id && !n.paused);
    if up(holder.0).is_some() {
        return false;
    }
    let leads = |n: &&super::Standing| n.raft.leads() && !n.paused;
    let Some(leader) = m.nodes.iter().find(leads) else { return false };
    let voters = leader.raft.voters.iter().filter(|v| up(**v).is_some()).count();
    let majority = voters * 2 > leader.raft.voters.len();
    let candidate = state.servers(cluster.id).iter().any(|(n, a)| {
        n.id != holder
            && n.drain.is_none()
            && !a.leaving
            && a.phase == Phase::Ready
            && up(n.id.0).is_some_and(|s| s.api_ready)
    });
    majority && candidate
}
