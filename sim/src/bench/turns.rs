//! Whether two hosts answered one client in turns. Pure.

use super::record::Sample;

/// An answer that must not have come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Turn {
    /// Who answered.
    pub by: String,
    /// Whom the client had been answered by already.
    pub after: String,
    /// When the answered attempt began, in microseconds since the observer started.
    pub at: u64,
}

/// Looks for an answer of a host that the VIP had left.
///
/// `holders` are those of the VIP from before the fault on, in the order of its generations. Once a later
/// holder has answered, attempts that begin after that must not be answered by an earlier one, until
/// the VIP moves again. Attempts under way at the same time may end in any order.
pub fn first_turn(answers: &[&Sample], holders: &[String]) -> Option<Turn> {
    let (mut position, mut since) = (None, 0);
    for answer in answers {
        let Some(by) = answer.by.as_deref() else { continue };
        let from = position.unwrap_or(0);
        if position.is_some() && holders.get(from).is_some_and(|h| h == by) {
            continue;
        }
        if answer.at < since && holders.iter().take(from).any(|h| h == by) {
            continue;
        }
        match holders.iter().enumerate().skip(from).find(|(_, h)| *h == by) {
            Some((later, _)) => {
                position = Some(later);
                since = answer.done();
            }
            None => {
                let after = holders.get(from).cloned().unwrap_or_default();
                return Some(Turn { by: by.to_owned(), after, at: answer.at });
            }
        }
    }
    None
}

/// The names in the order in which they answered, each once for each time in a row.
pub fn sequence(answers: &[&Sample]) -> Vec<String> {
    let mut names: Vec<String> = answers.iter().filter_map(|a| a.by.clone()).collect();
    names.dedup();
    names
}

#[cfg(test)]
mod tests {
    use super::super::record::Clock;
    use super::*;

    fn answer(at: u64, took: u64, by: &str) -> Sample {
        Sample { clock: Clock::Vip, at, took, by: Some(by.into()), error: None }
    }

    fn turn(answers: &[(u64, u64, &str)], holders: &[&str]) -> Option<Turn> {
        let answers: Vec<Sample> =
            answers.iter().map(|(at, took, by)| answer(*at, *took, by)).collect();
        let holders: Vec<String> = holders.iter().map(|h| (*h).to_owned()).collect();
        first_turn(&answers.iter().collect::<Vec<_>>(), &holders)
    }

    #[test]
    fn a_move_is_seen_once() {
        let seen = [(0, 1, "a"), (20, 1, "a"), (40, 1, "b"), (60, 1, "b")];
        assert_eq!(turn(&seen, &["a", "b"]), None);
    }

    #[test]
    fn the_old_name_after_the_new_one_is_a_turn() {
        let seen = [(0, 1, "a"), (20, 1, "b"), (40, 1, "a"), (60, 1, "b")];
        let expected = Turn { by: "a".into(), after: "b".into(), at: 40 };
        assert_eq!(turn(&seen, &["a", "b"]), Some(expected));
    }

    #[test]
    fn a_second_move_may_bring_the_old_name_back() {
        let seen = [(0, 1, "a"), (20, 1, "b"), (40, 1, "a")];
        assert_eq!(turn(&seen, &["a", "b", "a"]), None);
        let again = [(0, 1, "a"), (20, 1, "b"), (40, 1, "a"), (60, 1, "b")];
        assert!(turn(&again, &["a", "b", "a"]).is_some(), "but only once");
    }

    #[test]
    fn attempts_under_way_together_may_end_in_any_order() {
        let seen = [(0, 1, "a"), (20, 30, "b"), (40, 1, "a"), (60, 1, "b")];
        assert_eq!(turn(&seen, &["a", "b"]), None, "a answered before b's first answer was there");
    }

    #[test]
    fn a_host_that_never_held_the_address_is_a_turn_at_once() {
        assert!(turn(&[(0, 1, "c")], &["a", "b"]).is_some());
    }

    #[test]
    fn a_holder_that_never_answered_is_none() {
        assert_eq!(turn(&[(0, 1, "a"), (20, 1, "c")], &["a", "b", "c"]), None);
        assert_eq!(turn(&[(0, 1, "b")], &["a", "b"]), None, "the first answer may come late");
    }
}
