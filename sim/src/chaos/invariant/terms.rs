//! What a node promised survives its restart: its term never goes back, else it could vote twice in one and make two
//! leaders. Pure.

use std::collections::BTreeMap;

use super::{Invariant, Moment};

/// See the module.
#[derive(Default)]
pub struct Terms {
    terms: BTreeMap<u64, u64>,
}

impl Invariant for Terms {
    fn name(&self) -> &'static str {
        "terms"
    }

    fn moment(&mut self, m: &Moment<'_>) -> Result<(), String> {
        for node in m.nodes {
            let term = node.raft.term;
            let known = self.terms.entry(node.node).or_insert(term);
            if term < *known {
                let id = node.node;
                return Err(format!("node {id} is in term {term}, and was in term {known} before"));
            }
            *known = term;
        }
        Ok(())
    }
}
