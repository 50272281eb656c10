//! Requests for tickets: each is carried out once, and what was acknowledged stays. Pure.

use std::collections::BTreeSet;

use crate::chaos::invariant::acknowledged::Requests;

/// Requests, and the tickets that were there before them.
#[derive(Debug, Default)]
pub(super) struct Tally {
    before: BTreeSet<u64>,
    pub(super) requests: Requests,
}

impl Tally {
    /// Notes the tickets that are there before the first request.
    pub(super) fn begin(&mut self, there: &BTreeSet<u64>) {
        self.before.clone_from(there);
    }

    /// Judges by the tickets that there are in the end.
    ///
    /// # Errors
    /// When one was acknowledged and is not there, or a request was carried out twice.
    pub(super) fn judge(&self, there: &BTreeSet<u64>) -> Result<(), String> {
        if let Some(lost) = self.requests.lost(there) {
            return Err(format!("ticket {lost} was acknowledged, and is not there"));
        }
        self.requests.enough_for(there.difference(&self.before).count())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lost_ticket_and_a_second_one_are_found_and_an_unanswered_request_is_neither() {
        let mut tally = Tally::default();
        tally.begin(&[1].into());
        tally.requests.request(10);
        tally.requests.request(11);
        tally.requests.request(11);
        assert_eq!(tally.requests.ticket(10, 2), Ok(()));
        assert_eq!(tally.judge(&[1, 2].into()), Ok(()));
        assert_eq!(tally.judge(&[1, 2, 3].into()), Ok(()), "the other was carried out, too");
        assert!(tally.judge(&[1, 3].into()).is_err(), "2 is lost");
        assert!(tally.judge(&[1, 2, 3, 4].into()).is_err(), "one was carried out twice");
        assert!(tally.requests.ticket(11, 2).is_err(), "2 is another one's");
    }
}
