//! How patient a cluster's etcd should be: from what its servers measured before the first start. Pure.

use std::collections::BTreeSet;

use super::liveness::Liveness;
use crate::apply::Command;
use crate::model::{Cluster, EtcdTimers, NodeId, State};

/// Heartbeats to choose from, in milliseconds: below the first one a busy machine looks like a dead one, the last one is K3s' own.
const HEARTBEATS_MS: [u32; 6] = [100, 150, 200, 300, 400, 500];

/// Heartbeats that may stay away before an election (etcd's tuning guide: at least ten).
const ELECTION: u32 = 10;

/// Derives etcd's timers from the slowest round trip between two servers and the slowest durable write, both in microseconds.
///
/// etcd's tuning guide asks for a heartbeat of 0.5 to 1.5 round trips, and for elections of at least ten round trips; we take
/// the patient end. A disk that answers later than a heartbeat holds answers up by as much, so that it counts alike. Without
/// a measured disk K3s' own timers stay.
pub fn etcd_timers(rtt_us: u32, sync_us: Option<u32>) -> EtcdTimers {
    let (k3s, election) = EtcdTimers::K3S;
    let needs = |sync: u32| (rtt_us.saturating_add(rtt_us / 2)).max(sync).div_ceil(1_000);
    let fits = sync_us.map(needs).and_then(|ms| HEARTBEATS_MS.into_iter().find(|h| *h >= ms));
    let heartbeat_ms = fits.unwrap_or(k3s);
    let election_ms = if heartbeat_ms == k3s { election } else { heartbeat_ms * ELECTION };
    EtcdTimers { heartbeat_ms, election_ms, rtt_us, sync_us }
}

/// Decides the timers of a cluster that has a founder which measured, and none yet.
///
/// The founder alone is waited for: a server that is not heard of must not keep a cluster from coming up.
pub(super) fn plan_timers(state: &State, cluster: &Cluster, seen: &Liveness) -> Option<Command> {
    if cluster.etcd.is_some() || cluster.secrets.is_some() {
        return None;
    }
    let pace = |id: NodeId| seen.seen(id)?.report.pace.as_ref();
    let founder = pace(cluster.bootstrap?)?;
    let servers: BTreeSet<NodeId> = state.servers(cluster.id).iter().map(|(n, _)| n.id).collect();
    let paces = servers.iter().filter_map(|id| pace(*id));
    let trips = paces.clone().flat_map(|p| p.rtt_us.iter().filter(|(to, _)| servers.contains(to)));
    let rtt = trips.map(|(_, rtt)| *rtt).max().unwrap_or(0);
    let sync = founder.sync_us.and(paces.filter_map(|p| p.sync_us).max());
    // A way that was not measured may be any: then K3s' own timers are right, as for a disk that was not.
    let reached = |id: &NodeId| {
        let asked = pace(*id).is_some_and(|p| p.rtt_us.keys().any(|to| servers.contains(to)));
        asked || servers.iter().filter_map(|s| pace(*s)).any(|p| p.rtt_us.contains_key(id))
    };
    let sync = sync.filter(|_| servers.len() == 1 || servers.iter().all(reached));
    Some(Command::SetEtcdTimers { cluster: cluster.id, timers: etcd_timers(rtt, sync) })
}
