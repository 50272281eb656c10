//! Requests for tickets: each is carried out once, and what was acknowledged stays. Pure.

use std::collections::{BTreeMap, BTreeSet};

/// Requests, and what they were answered.
#[derive(Debug, Default)]
pub(super) struct Tally {
    /// Tickets that were there before.
    before: BTreeSet<u64>,
    requests: BTreeSet<u128>,
    acknowledged: BTreeMap<u64, u128>,
}

impl Tally {
    /// Notes the tickets that are there before the first request.
    pub(super) fn begin(&mut self, there: &BTreeSet<u64>) {
        self.before.clone_from(there);
    }

    /// Notes that a request is made; its repetition is the same request.
    pub(super) fn request(&mut self, id: u128) {
        self.requests.insert(id);
    }

    /// Notes that a request was answered with a ticket.
    ///
    /// # Errors
    /// When another request was answered with the same one.
    pub(super) fn ticket(&mut self, request: u128, ticket: u64) -> Result<(), String> {
        match self.acknowledged.insert(ticket, request) {
            Some(other) if other != request => {
                Err(format!("ticket {ticket} was given to two requests"))
            }
            _ => Ok(()),
        }
    }

    /// Returns how many requests were answered.
    pub(super) fn answered(&self) -> usize {
        self.acknowledged.len()
    }

    /// Judges by the tickets that there are in the end.
    ///
    /// # Errors
    /// When one was acknowledged and is not there, or a request was carried out twice.
    pub(super) fn judge(&self, there: &BTreeSet<u64>) -> Result<(), String> {
        if let Some(lost) = self.acknowledged.keys().find(|id| !there.contains(id)) {
            return Err(format!("ticket {lost} was acknowledged, and is not there"));
        }
        let made = there.difference(&self.before).count();
        let asked = self.requests.len();
        if made > asked {
            return Err(format!("{made} tickets were made for {asked} requests"));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lost_ticket_and_a_second_one_are_found_and_an_unanswered_request_is_neither() {
        let mut tally = Tally::default();
        tally.begin(&[1].into());
        tally.request(10);
        tally.request(11);
        tally.request(11);
        assert_eq!(tally.ticket(10, 2), Ok(()));
        assert_eq!(tally.judge(&[1, 2].into()), Ok(()));
        assert_eq!(tally.judge(&[1, 2, 3].into()), Ok(()), "the other was carried out, too");
        assert!(tally.judge(&[1, 3].into()).is_err(), "2 is lost");
        assert!(tally.judge(&[1, 2, 3, 4].into()).is_err(), "one was carried out twice");
        assert!(tally.ticket(11, 2).is_err(), "2 is another one's");
    }
}
