//! A node votes once in a term, whatever restarts: with a second vote two leaders could win one term (Ongaro and
//! Ousterhout, 2014, section 5.2). Pure.

use std::collections::BTreeMap;

use super::Invariant;

/// See the module.
#[derive(Default)]
pub struct OneVote {
    votes: BTreeMap<(u64, u64), u64>,
}

impl OneVote {
    /// Takes in a vote that a node granted to a candidate in a term.
    ///
    /// # Errors
    /// In words, when it voted for another one in this term.
    pub fn granted(&mut self, voter: u64, term: u64, candidate: u64) -> Result<(), String> {
        let known = *self.votes.entry((voter, term)).or_insert(candidate);
        if known == candidate {
            return Ok(());
        }
        Err(format!("node {voter} voted for {known} and for {candidate} in term {term}"))
    }
}

impl Invariant for OneVote {
    fn name(&self) -> &'static str {
        "one_vote"
    }
}
