//! What a client was told to be done is done, once, and stays: the API is linearizable (Herlihy and Wing,
//! "Linearizability: a correctness condition for concurrent objects", 1990). Pure.
//!
//! The object that is checked is a plain WireGuard device of the first network: its name is a register, its key the
//! value. Each name is a register of its own, and a history is linearizable when each register's is (their theorem 1).
//! Tickets show that a request is carried out once, however often it is repeated.

use std::collections::{BTreeMap, BTreeSet};

use raft_store::model::Digest;

use super::{Applied, Invariant};

/// What a client asked of a register.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ask {
    /// Put this key there; refused where another one is.
    Put(u32),
    /// Take away what is there; refused where nothing is.
    Remove,
    /// Say what is there.
    Read,
}

/// What it was told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Told {
    /// Done.
    Done,
    /// Refused, because of what is there.
    Refused,
    /// This is there.
    Value(Option<u32>),
}

/// A call of a client, from its beginning to its end. Without an end it may have been carried out at any time, or not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Call {
    /// What.
    pub ask: Ask,
    /// When it was made, in microseconds of virtual time.
    pub from_us: u64,
    /// When it was answered, and how.
    pub answer: Option<(u64, Told)>,
}

/// Names a call that was begun.
#[derive(Clone, Debug)]
pub struct Begun {
    register: String,
    number: usize,
}

/// Requests for tickets, and what they were answered.
#[derive(Debug, Default)]
pub struct Requests {
    made: BTreeSet<u128>,
    acknowledged: BTreeMap<u64, u128>,
}

impl Requests {
    /// Notes that a request is made; its repetition is the same request.
    pub fn request(&mut self, id: u128) {
        self.made.insert(id);
    }

    /// Notes that a request was answered with a ticket.
    ///
    /// # Errors
    /// When another request was answered with the same one.
    pub fn ticket(&mut self, request: u128, ticket: u64) -> Result<(), String> {
        match self.acknowledged.insert(ticket, request) {
            Some(other) if other != request => {
                Err(format!("ticket {ticket} was given to two requests"))
            }
            _ => Ok(()),
        }
    }

    /// Returns how many were answered.
    pub fn answered(&self) -> usize {
        self.acknowledged.len()
    }

    /// Returns a ticket that was acknowledged and is not among these.
    pub fn lost(&self, there: &BTreeSet<u64>) -> Option<u64> {
        self.acknowledged.keys().find(|id| !there.contains(id)).copied()
    }

    /// Judges how many tickets were made for them.
    ///
    /// # Errors
    /// When a request was carried out twice.
    pub fn enough_for(&self, made: usize) -> Result<(), String> {
        let asked = self.made.len();
        if made > asked {
            return Err(format!("{made} tickets were made for {asked} requests"));
        }
        Ok(())
    }
}

/// See the module.
#[derive(Default)]
pub struct Acknowledged {
    registers: BTreeMap<String, Vec<Call>>,
    requests: Requests,
    seen: BTreeSet<(u64, Digest)>,
}

impl Acknowledged {
    /// Notes that a call to a register begins: it may have its effect before it is answered, or without ever being so.
    pub fn begins(&mut self, register: &str, ask: Ask, from_us: u64) -> Begun {
        let calls = self.registers.entry(register.to_owned()).or_default();
        calls.push(Call { ask, from_us, answer: None });
        Begun { register: register.to_owned(), number: calls.len() - 1 }
    }

    /// Notes how a call was answered.
    pub fn ends(&mut self, begun: &Begun, at_us: u64, told: Told) {
        let calls = self.registers.get_mut(&begun.register);
        if let Some(call) = calls.and_then(|calls| calls.get_mut(begun.number)) {
            call.answer = Some((at_us, told));
        }
    }

    /// Notes that a request for a ticket was made; a repetition is the same request.
    pub fn request(&mut self, id: u128) {
        self.requests.request(id);
    }

    /// Notes that a request was answered with a ticket.
    ///
    /// # Errors
    /// When another request was answered with the same one.
    pub fn ticket(&mut self, request: u128, ticket: u64) -> Result<(), String> {
        self.requests.ticket(request, ticket)
    }

    /// Returns how many calls were noted.
    pub fn count(&self) -> usize {
        self.registers.values().map(Vec::len).sum::<usize>() + self.requests.answered()
    }

    /// Judges all that clients saw, at the end of a run.
    ///
    /// # Errors
    /// When no order of the calls to a register explains what was answered.
    pub fn judge(&self) -> Result<(), String> {
        let made: BTreeSet<u64> = self.seen.iter().map(|(id, _)| *id).collect();
        if let Some(lost) = self.requests.lost(&made) {
            return Err(format!("ticket {lost} was acknowledged, and no node has ever had it"));
        }
        for (name, calls) in &self.registers {
            if !linearizable(calls) {
                return Err(format!(
                    "no order of the calls to {name} explains the answers: {calls:?}"
                ));
            }
        }
        Ok(())
    }
}

impl Invariant for Acknowledged {
    fn name(&self) -> &'static str {
        "acknowledged"
    }

    fn applied(&mut self, a: &Applied<'_>) -> Result<(), String> {
        let tickets = a.state.tickets.values();
        self.seen.extend(tickets.map(|t| (t.id.0, t.digest.clone())));
        self.requests.enough_for(self.seen.len())
    }
}

/// The value of a register into which a call without an answer put a key that no read ever showed. All such keys are
/// alike, which keeps the search small.
const UNSEEN: u32 = u32::MAX;

/// Tells whether some order of the calls, each between its beginning and its end, explains all answers.
fn linearizable(calls: &[Call]) -> bool {
    let shown: BTreeSet<u32> = (calls.iter())
        .filter_map(|c| match c.answer {
            Some((_, Told::Value(value))) => value,
            _ => None,
        })
        .collect();
    let mut answered = Vec::new();
    let mut lost: BTreeMap<(bool, u32), Vec<u64>> = BTreeMap::new();
    for call in calls {
        match (&call.answer, &call.ask) {
            (Some(_), _) => answered.push(call.clone()),
            // Explains nothing and hinders nothing.
            (None, Ask::Read) => {}
            (None, Ask::Put(key)) => {
                let key = if shown.contains(key) { *key } else { UNSEEN };
                lost.entry((true, key)).or_default().push(call.from_us);
            }
            (None, Ask::Remove) => lost.entry((false, 0)).or_default().push(call.from_us),
        }
    }
    lost.values_mut().for_each(|begun| begun.sort_unstable());
    let lost: Vec<((bool, u32), Vec<u64>)> = lost.into_iter().collect();
    answered.sort_by_key(|c| c.from_us);
    let mut search = Search { answered: &answered, lost: &lost, tried: BTreeSet::new() };
    let begin = Place { done: BTreeSet::new(), first: 0, used: vec![0; lost.len()], value: None };
    search.explains(&begin)
}

/// How far an order has come.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Place {
    /// All answered calls before this one are in the order.
    first: usize,
    /// And these behind it.
    done: BTreeSet<usize>,
    /// How many calls of each kind without an answer are in it.
    used: Vec<usize>,
    value: Option<u32>,
}

struct Search<'a> {
    /// In the order of their beginnings.
    answered: &'a [Call],
    /// Calls without an answer that do the same, by what they do; when each began, in order.
    lost: &'a [((bool, u32), Vec<u64>)],
    tried: BTreeSet<Place>,
}

impl Search<'_> {
    fn explains(&mut self, place: &Place) -> bool {
        if place.first >= self.answered.len() {
            return true;
        }
        if !self.tried.insert(place.clone()) {
            return false;
        }
        let left = (place.first..self.answered.len()).filter(|i| !place.done.contains(i));
        let left: Vec<usize> = left.collect();
        let ends = |i: &usize| self.answered[*i].answer.as_ref().map_or(u64::MAX, |(at, _)| *at);
        // Nothing may come before a call that had ended when it began.
        let first_end = left.iter().map(ends).min().unwrap_or(u64::MAX);
        for i in left {
            let call = &self.answered[i];
            if call.from_us > first_end {
                break;
            }
            let Some(value) = step(call, place.value) else { continue };
            let mut next = Place { value, ..place.clone() };
            next.done.insert(i);
            while next.done.remove(&next.first) {
                next.first += 1;
            }
            if self.explains(&next) {
                return true;
            }
        }
        self.explains_with_lost(place, first_end)
    }

    /// Tries calls without an answer, as far as they change something.
    fn explains_with_lost(&mut self, place: &Place, first_end: u64) -> bool {
        for (kind, ((puts, key), begun)) in self.lost.iter().enumerate() {
            let began = begun.get(place.used[kind]).is_some_and(|at| *at <= first_end);
            let value = match (puts, place.value) {
                (true, None) => Some(*key),
                (false, Some(_)) => None,
                _ => continue,
            };
            if began {
                let mut next = Place { value, ..place.clone() };
                next.used[kind] += 1;
                if self.explains(&next) {
                    return true;
                }
            }
        }
        false
    }
}

/// What a register holds after a call, if its answer fits to what it held before.
fn step(call: &Call, value: Option<u32>) -> Option<Option<u32>> {
    let told = call.answer.as_ref().map(|(_, told)| told)?;
    let (does, after) = match call.ask {
        Ask::Read => return (*told == Told::Value(value)).then_some(value),
        Ask::Put(key) if value.is_none_or(|v| v == key) => (Told::Done, Some(key)),
        Ask::Remove if value.is_some() => (Told::Done, None),
        Ask::Put(_) | Ask::Remove => (Told::Refused, value),
    };
    (*told == does).then_some(after)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call(ask: Ask, from_us: u64, to_us: u64, told: Told) -> Call {
        Call { ask, from_us, answer: Some((to_us, told)) }
    }

    #[test]
    fn a_read_of_what_was_overwritten_before_it_began_is_found() {
        let put = call(Ask::Put(1), 0, 10, Told::Done);
        let fresh = call(Ask::Read, 20, 30, Told::Value(Some(1)));
        let stale = call(Ask::Read, 20, 30, Told::Value(None));
        assert!(linearizable(&[put.clone(), fresh]));
        assert!(!linearizable(&[put.clone(), stale]));
        let concurrent = call(Ask::Read, 5, 30, Told::Value(None));
        assert!(linearizable(&[put, concurrent]));
    }

    #[test]
    fn a_call_without_an_answer_may_count_late_or_never() {
        let lost = Call { ask: Ask::Put(7), from_us: 0, answer: None };
        let without = call(Ask::Read, 10, 20, Told::Value(None));
        let with = call(Ask::Read, 30, 40, Told::Value(Some(7)));
        assert!(linearizable(&[lost.clone(), without.clone(), with.clone()]));
        assert!(linearizable(&[lost.clone(), without.clone()]));
        let again = call(Ask::Read, 50, 60, Told::Value(None));
        assert!(!linearizable(&[lost, without, with, again]), "it went away by itself");
    }

    #[test]
    fn a_write_that_was_done_twice_is_found() {
        let put = call(Ask::Put(1), 0, 10, Told::Done);
        let removed = call(Ask::Remove, 20, 30, Told::Done);
        let read = call(Ask::Read, 40, 50, Told::Value(Some(1)));
        assert!(!linearizable(&[put, removed, read]));
    }
}
