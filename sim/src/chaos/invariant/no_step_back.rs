//! What a node has applied never goes back: at no moment while its daemon lives, and over a restart only until it listens
//! to a leader again. Nor does a VIP's generation in it. Else a host would take back an address, a role or a member that it
//! has seen given away. Pure.
//!
//! Raft lets a node forget how much is committed (Ongaro and Ousterhout, "In Search of an Understandable Consensus
//! Algorithm", 2014, figure 2: volatile state), so that it may come back with a little less than it had; a leader's first message
//! tells it the rest.

use std::collections::BTreeMap;
use std::time::Duration;

use raft_store::model::{Generation, State, VipId};

use super::{Invariant, Moment, Standing};

/// How long a node may listen to a leader until it is where it was, in microseconds: what it lacks is sent again.
const BOUND_US: u64 = 5_000_000;
/// A leader that has not heard from a majority for this long may not know what is committed either; its clock may be wrong
/// by one in a hundred.
const QUORUM: Duration = Duration::from_secs(2);

/// See the module.
#[derive(Default)]
pub struct NoStepBack {
    /// By machine and node: one that joined anew is another node.
    known: BTreeMap<(usize, u64), Known>,
    /// Since when, by machine and life, one has listened to a leader without being where it was.
    behind: BTreeMap<(usize, u64), u64>,
}

/// How far a node ever was.
#[derive(Default)]
struct Known {
    index: u64,
    generations: BTreeMap<VipId, Generation>,
    /// Its life, and how far that one is.
    life: (u64, u64),
}

impl Known {
    /// Returns whether the node is where it was.
    fn look(&mut self, node: &Standing) -> Result<bool, String> {
        let (index, state) = &node.applied;
        let (life, before) = self.life;
        if life == node.life && *index < before {
            return Err(format!("had applied {before} entries, and {index} a moment later"));
        }
        self.life = (node.life, *index);
        let whole = *index >= self.index;
        if whole {
            self.goes_on(*index, state)?;
        }
        Ok(whole)
    }

    fn goes_on(&mut self, index: u64, state: &State) -> Result<(), String> {
        for vip in state.vips.values() {
            if let Some(known) = self.generations.get(&vip.id).filter(|g| **g > vip.generation) {
                return Err(format!(
                    "knew generation {} of VIP {}, and now says {}",
                    known.0, vip.name, vip.generation.0
                ));
            }
        }
        if index > self.index {
            self.index = index;
            self.generations = state.vips.values().map(|v| (v.id, v.generation)).collect();
        }
        Ok(())
    }
}

/// Whether a leader that has a majority sends to a node. Once an address has changed, nobody can tell who still finds whom.
fn listens(m: &Moment<'_>, node: &Standing) -> bool {
    let leads = |l: &&Standing| l.raft.leads() && !l.paused && l.raft.term == node.raft.term;
    m.net_settled
        && !m.moved
        && !node.paused
        && m.nodes.iter().find(leads).is_some_and(|leader| {
            let raft = &leader.raft;
            let alone = raft.voters.iter().eq([&leader.node]);
            let majority = alone || raft.quorum_acked.is_some_and(|ago| ago < QUORUM);
            majority && (raft.voters.contains(&node.node) || raft.learners.contains(&node.node))
        })
}

impl Invariant for NoStepBack {
    fn name(&self) -> &'static str {
        "no_step_back"
    }

    fn moment(&mut self, m: &Moment<'_>) -> Result<(), String> {
        let mut still = BTreeMap::new();
        for node in m.nodes {
            let (machine, index) = (node.machine, node.applied.0);
            let known = self.known.entry((machine, node.node)).or_default();
            let whole = known.look(node).map_err(|why| format!("machine {machine} {why}"))?;
            if whole || !listens(m, node) {
                continue;
            }
            let key = (machine, node.life);
            let since = *self.behind.get(&key).unwrap_or(&m.at_us);
            let (lasts_us, known) = (m.at_us.saturating_sub(since), known.index);
            if lasts_us > BOUND_US {
                let ms = lasts_us / 1_000;
                return Err(format!(
                    "machine {machine} had applied {known} entries before it was started anew, and only {index} after listening for {ms} ms"
                ));
            }
            still.insert(key, since);
        }
        self.behind = still;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use raft_store::raft::RaftStatus;

    use super::*;

    fn standing(life: u64, index: u64) -> Standing {
        let voters = [1].into();
        Standing {
            machine: 0,
            node: 1,
            life,
            raft: RaftStatus { id: 1, leader: Some(1), term: 1, voters, ..RaftStatus::default() },
            applied: (index, Arc::default()),
            meshes: Arc::default(),
            paused: false,
            api_ready: false,
        }
    }

    fn look(
        invariant: &mut NoStepBack,
        at_s: u64,
        nodes: impl IntoIterator<Item = Standing>,
    ) -> Result<(), String> {
        let nodes: Vec<Standing> = nodes.into_iter().collect();
        invariant.moment(&Moment {
            at_us: at_s * 1_000_000,
            nodes: &nodes,
            founders: &[],
            settled: true,
            net_settled: true,
            moved: false,
            newest: None,
        })
    }

    #[test]
    fn a_life_makes_no_step_back() {
        let mut invariant = NoStepBack::default();
        look(&mut invariant, 0, [standing(1, 7)]).unwrap();
        look(&mut invariant, 1, [standing(1, 7)]).unwrap();
        assert!(look(&mut invariant, 2, [standing(1, 6)]).is_err());
    }

    #[test]
    fn a_restart_may_make_one_and_must_make_up_for_it() {
        let mut invariant = NoStepBack::default();
        look(&mut invariant, 0, [standing(1, 7)]).unwrap();
        look(&mut invariant, 1, [standing(2, 5)]).unwrap();
        look(&mut invariant, 5, [standing(2, 6)]).unwrap();
        let mut deaf = standing(2, 6);
        deaf.raft.leader = None;
        look(&mut invariant, 9, [deaf]).unwrap();
        look(&mut invariant, 10, [standing(2, 6)]).unwrap();
        assert!(look(&mut invariant, 16, [standing(2, 6)]).is_err(), "it has listened for 6 s");
        look(&mut invariant, 17, [standing(2, 7)]).unwrap();
    }

    #[test]
    fn each_life_has_its_own_time() {
        let mut invariant = NoStepBack::default();
        look(&mut invariant, 0, [standing(1, 7)]).unwrap();
        look(&mut invariant, 1, [standing(2, 6)]).unwrap();
        look(&mut invariant, 20, [standing(3, 6)]).unwrap();
        look(&mut invariant, 21, []).unwrap();
        look(&mut invariant, 40, [standing(3, 6)]).unwrap();
    }

    #[test]
    fn a_vips_generation_only_grows() {
        let text = include_str!("../../../../raft-store/tests/golden/v1/state-lab.json");
        let envelope: serde_json::Value = serde_json::from_str(text).unwrap();
        let state: State = serde_json::from_value(envelope["body"].clone()).unwrap();
        let at = |index, generation| {
            let mut state = state.clone();
            state.vips.values_mut().next().unwrap().generation = Generation(generation);
            [Standing { applied: (index, Arc::new(state)), ..standing(1, 0) }]
        };
        let mut invariant = NoStepBack::default();
        look(&mut invariant, 0, at(7, 2)).unwrap();
        look(&mut invariant, 1, at(8, 3)).unwrap();
        assert!(look(&mut invariant, 2, at(9, 2)).is_err());
    }
}
