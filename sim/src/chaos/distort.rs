//! Wrong variants of `apply`: what its states would look like, made of the right ones. Pure; only flawed worlds use it.

use std::sync::Arc;

use raft_store::model::{ClusterStatus, Generation, State};

use super::flaw::Flaw;

/// Returns the state that an `apply` with this flaw would have made.
pub fn distort(flaw: Option<Flaw>, state: &Arc<State>) -> Arc<State> {
    match flaw {
        Some(Flaw::DoubledAddress) => Arc::new(doubled(state)),
        Some(Flaw::RevivedFounding) => Arc::new(revived(state)),
        Some(Flaw::StuckGeneration) => Arc::new(stuck(state)),
        Some(Flaw::EndlessTicket) => Arc::new(endless(state)),
        _ => state.clone(),
    }
}

/// Returns how far a node in its `life` would be that, started anew, replays nothing of its log.
pub fn rewound(flaw: Option<Flaw>, life: u64, applied: (u64, Arc<State>)) -> (u64, Arc<State>) {
    match flaw {
        Some(Flaw::UnreplayedLog) if life > 1 => (0, applied.1),
        _ => applied,
    }
}

/// Gives the newest node of a network the address of the one before it.
fn doubled(state: &State) -> State {
    let mut wrong = state.clone();
    for network in state.networks.keys() {
        let mut inside = state.nodes.values().filter(|n| n.networks.contains_key(network)).rev();
        if let (Some(last), Some(other)) = (inside.next(), inside.next())
            && let Some(address) = other.networks.get(network)
            && let Some(node) = wrong.node_mut(last.id)
        {
            node.networks.insert(*network, *address);
        }
    }
    wrong
}

/// Sends an active cluster back to its founding while a server of it is being drained.
fn revived(state: &State) -> State {
    let mut wrong = state.clone();
    for cluster in wrong.clusters.values_mut() {
        let drained = state.servers(cluster.id).iter().any(|(n, _)| n.drain.is_some());
        if drained && cluster.status == ClusterStatus::Active {
            cluster.status = ClusterStatus::Bootstrapping;
        }
    }
    wrong
}

/// Moves VIPs without another generation.
fn stuck(state: &State) -> State {
    let mut wrong = state.clone();
    for vip in wrong.vips.values_mut().filter(|v| v.holder.is_some()) {
        vip.generation = Generation(1);
    }
    wrong
}

/// Leaves every ticket as it was made.
fn endless(state: &State) -> State {
    let mut wrong = state.clone();
    wrong.tickets.values_mut().for_each(|t| t.uses_left = t.uses);
    wrong
}
