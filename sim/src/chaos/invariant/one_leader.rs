//! In one term at most one node leads: two would acknowledge different histories (Ongaro and Ousterhout, "In search
//! of an understandable consensus algorithm", 2014, section 5.2, election safety). Pure.

use std::collections::BTreeMap;

use super::{Invariant, Moment};

/// See the module.
#[derive(Default)]
pub struct OneLeader {
    leaders: BTreeMap<u64, u64>,
}

impl Invariant for OneLeader {
    fn name(&self) -> &'static str {
        "one_leader"
    }

    fn moment(&mut self, m: &Moment<'_>) -> Result<(), String> {
        for node in m.nodes.iter().filter(|n| n.raft.leader == Some(n.raft.id)) {
            let (term, id) = (node.raft.term, node.raft.id);
            let known = *self.leaders.entry(term).or_insert(id);
            if known != id {
                return Err(format!("nodes {known} and {id} both lead in term {term}"));
            }
        }
        Ok(())
    }
}
