//! A node never grants a vote that is less than one it granted before, whatever restarts: else a leader that was
//! overtaken could still find a majority. Pure.
//!
//! A vote is a term and a candidate, ordered by both: openraft lets a later candidate of the same term overtake an earlier
//! one, and names both in each log id.

use std::collections::BTreeMap;

use super::Invariant;

/// See the module.
#[derive(Default)]
pub struct VotesGrow {
    votes: BTreeMap<u64, (u64, u64)>,
}

impl VotesGrow {
    /// Takes in a vote that a node granted to a candidate in a term.
    ///
    /// # Errors
    /// In words, when it had granted a greater one.
    pub fn granted(&mut self, voter: u64, term: u64, candidate: u64) -> Result<(), String> {
        let vote = (term, candidate);
        let known = self.votes.entry(voter).or_insert(vote);
        if vote < *known {
            let (term, other) = *known;
            return Err(format!(
                "node {voter} voted for {candidate} in term {}, after it had voted for {other} in term {term}",
                vote.0
            ));
        }
        *known = vote;
        Ok(())
    }
}

impl Invariant for VotesGrow {
    fn name(&self) -> &'static str {
        "votes_grow"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_older_vote_is_a_step_back() {
        let mut votes = VotesGrow::default();
        for (term, candidate) in [(1, 5), (1, 5), (1, 9), (2, 1)] {
            votes.granted(3, term, candidate).unwrap();
        }
        assert!(votes.granted(3, 1, 9).is_err());
        assert!(votes.granted(4, 1, 9).is_ok(), "another voter");
    }
}
