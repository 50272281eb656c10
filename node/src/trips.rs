//! Round trips to other nodes, as exchanges between daemons take them. Pure.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use raft_store::model::{NodeId, State};

/// How many round trips to one node are kept.
const KEPT: usize = 16;

/// After this many rounds of exchanges each node that answers was asked often enough for its median to leave out the first
/// answer, which takes a handshake longer.
const ROUNDS: u32 = 2;

/// After this many rounds nobody is waited for who has not answered.
const ROUNDS_MAX: u32 = 6;

/// What exchanges with other nodes took lately.
#[derive(Clone, Debug, Default)]
pub struct Trips {
    lately: BTreeMap<NodeId, VecDeque<u32>>,
    rounds: u32,
}

impl Trips {
    /// Takes in how long a node took to answer.
    pub fn note(&mut self, node: NodeId, took: Duration) {
        let lately = self.lately.entry(node).or_default();
        if lately.len() == KEPT {
            lately.pop_front();
        }
        lately.push_back(u32::try_from(took.as_micros()).unwrap_or(u32::MAX));
    }

    /// Ends a round, and returns the medians of these nodes, in microseconds, once there were enough rounds for them.
    pub fn end_round(
        &mut self,
        fellows: Option<&BTreeSet<NodeId>>,
    ) -> Option<BTreeMap<NodeId, u32>> {
        self.rounds = fellows.map_or(0, |_| self.rounds.saturating_add(1));
        let fellows = fellows.filter(|_| self.rounds >= ROUNDS)?;
        let medians: BTreeMap<_, _> =
            fellows.iter().filter_map(|id| Some((*id, self.median(*id)?))).collect();
        let enough = medians.len() == fellows.len() || self.rounds >= ROUNDS_MAX;
        enough.then_some(medians)
    }

    fn median(&self, node: NodeId) -> Option<u32> {
        let mut sorted: Vec<u32> = self.lately.get(&node)?.iter().copied().collect();
        sorted.sort_unstable();
        // The lower one of two: the other may be the first answer.
        sorted.get(sorted.len().saturating_sub(1) / 2).copied()
    }
}

/// Returns the other servers of this node's cluster while its etcd's timers are still to be decided.
pub fn undecided_fellows(state: &State, me: NodeId) -> Option<BTreeSet<NodeId>> {
    let node = state.nodes.get(&me)?;
    let cluster = state.cluster_of(node).filter(|c| c.secrets.is_none() && c.etcd.is_none())?;
    node.server_in(cluster.id)?;
    Some(state.servers(cluster.id).iter().map(|(n, _)| n.id).filter(|id| *id != me).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_slow_answer_is_left_out_and_a_change_of_path_is_followed() {
        let (n2, mut trips) = (NodeId(2), Trips::default());
        let fellows = BTreeSet::from([n2, NodeId(3)]);
        let mut round = |us: u64| {
            trips.note(n2, Duration::from_micros(us));
            trips.end_round(Some(&fellows))
        };
        assert_eq!(round(90_000), None, "one answer says little");
        for _ in ROUNDS..ROUNDS_MAX {
            assert_eq!(round(1_000), None, "n3 has not answered yet");
        }
        assert_eq!(round(1_000), Some(BTreeMap::from([(n2, 1_000)])), "n3 never answered");
        for _ in 0..KEPT {
            round(40_000);
        }
        assert_eq!(round(40_000), Some(BTreeMap::from([(n2, 40_000)])));
        assert_eq!(trips.end_round(None), None);
        assert_eq!(trips.end_round(Some(&fellows)), None, "counted anew for the next cluster");
    }

    #[test]
    fn only_servers_of_an_undecided_cluster_have_fellows() {
        let mut state = crate::project::tests::lab();
        let (id, me) =
            state.clusters.values().map(|c| (c.id, c.bootstrap.unwrap())).next().unwrap();
        assert_eq!(undecided_fellows(&state, me), None, "founded long ago");
        state.clusters.get_mut(&id).unwrap().secrets = None;
        let others = undecided_fellows(&state, me).unwrap();
        assert!(others.len() == 2 && !others.contains(&me), "{others:?}");
        let worker = state.members(id, raft_store::model::Role::K3sAgent)[0].0.id;
        assert_eq!(undecided_fellows(&state, worker), None);
    }
}
