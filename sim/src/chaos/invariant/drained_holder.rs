//! A holder that is being drained gives its VIP away within a bound, as long as somebody eligible is heard by a leader
//! that has a majority: a drain that keeps the address would cut everybody off at its end. Pure.

use raft_store::model::{Phase, State, Vip};

use super::overdue::Overdue;
use super::{Invariant, Moment};

/// The bound, in microseconds: the move itself, which waits for a newly elected leader's window and for reports.
const BOUND_US: u64 = 15_000_000;

/// See the module.
#[derive(Default)]
pub struct DrainedHolder {
    since: Overdue,
}

impl Invariant for DrainedHolder {
    fn name(&self) -> &'static str {
        "drained_holder"
    }

    fn moment(&mut self, m: &Moment<'_>) -> Result<(), String> {
        let Some(state) = m.newest else { return Ok(()) };
        match self.since.look(m, BOUND_US, |vip| stuck(state, vip, m)) {
            None => Ok(()),
            Some((vip, lasts_us)) => Err(format!(
                "VIP {} is held by {:?}, which has been drained for {} s though others could take it",
                vip.name,
                vip.holder,
                lasts_us / 1_000_000
            )),
        }
    }
}

/// Whether a VIP's holder is being drained while all that a move needs is there.
fn stuck(state: &State, vip: &Vip, m: &Moment<'_>) -> bool {
    let holder = vip.holder.and_then(|id| state.nodes.get(&id));
    let drained = holder.is_some_and(|n| n.drain.is_some());
    let up = |id: u64| m.nodes.iter().find(|n| n.node == id);
    let cluster = state.clusters.values().find(|c| c.vip == Some(vip.id));
    let candidate = cluster.is_some_and(|c| {
        state.servers(c.id).iter().any(|(n, a)| {
            Some(n.id) != vip.holder
                && n.drain.is_none()
                && a.phase == Phase::Ready
                && up(n.id.0).is_some_and(|s| s.api_ready)
        })
    });
    m.settled && drained && candidate
}
