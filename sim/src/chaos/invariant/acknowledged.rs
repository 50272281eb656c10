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

/// See the module.
#[derive(Default)]
pub struct Acknowledged {
    registers: BTreeMap<String, Vec<Call>>,
    requests: BTreeSet<u128>,
    acknowledged: BTreeMap<u64, u128>,
    seen: BTreeSet<(u64, Digest)>,
}

impl Acknowledged {
    /// Notes a finished call to a register.
    pub fn call(&mut self, register: &str, call: Call) {
        self.registers.entry(register.to_owned()).or_default().push(call);
    }

    /// Notes that a request for a ticket was made; a repetition is the same request.
    pub fn request(&mut self, id: u128) {
        self.requests.insert(id);
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

    /// Returns how many calls were noted.
    pub fn count(&self) -> usize {
        self.registers.values().map(Vec::len).sum::<usize>() + self.acknowledged.len()
    }

    /// Judges all that clients saw, at the end of a run.
    ///
    /// # Errors
    /// When no order of the calls to a register explains what was answered.
    pub fn judge(&self) -> Result<(), String> {
        let made: BTreeSet<u64> = self.seen.iter().map(|(id, _)| *id).collect();
        if let Some(lost) = self.acknowledged.keys().find(|id| !made.contains(id)) {
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
        let (made, asked) = (self.seen.len(), self.requests.len());
        if made > asked {
            return Err(format!("{made} tickets were made for {asked} requests"));
        }
        Ok(())
    }
}

/// Tells whether some order of the calls, each between its beginning and its end, explains all answers.
fn linearizable(calls: &[Call]) -> bool {
    // A read that nobody saw the answer of explains nothing and hinders nothing.
    let telling = calls.iter().filter(|c| c.answer.is_some() || c.ask != Ask::Read);
    let telling: Vec<Call> = telling.cloned().collect();
    let mut tried = BTreeSet::new();
    search(&telling, &mut vec![false; telling.len()], None, &mut tried)
}

fn search(
    calls: &[Call],
    done: &mut Vec<bool>,
    value: Option<u32>,
    tried: &mut BTreeSet<(Vec<bool>, Option<u32>)>,
) -> bool {
    let answered = |i: usize| calls[i].answer.is_some();
    if (0..calls.len()).all(|i| done[i] || !answered(i)) {
        return true;
    }
    if !tried.insert((done.clone(), value)) {
        return false;
    }
    // Nothing may come before a call that had ended when it began.
    let ends = |i: usize| calls[i].answer.as_ref().map_or(u64::MAX, |(at, _)| *at);
    let first_end = (0..calls.len()).filter(|i| !done[*i]).map(ends).min().unwrap_or(u64::MAX);
    for i in 0..calls.len() {
        if done[i] || calls[i].from_us > first_end {
            continue;
        }
        let Some(after) = step(&calls[i], value) else { continue };
        done[i] = true;
        if search(calls, done, after, tried) {
            return true;
        }
        done[i] = false;
    }
    false
}

/// What a register holds after a call, if its answer fits to what it held before.
fn step(call: &Call, value: Option<u32>) -> Option<Option<u32>> {
    let told = call.answer.as_ref().map(|(_, told)| told);
    let (does, after) = match call.ask {
        Ask::Read => return told.is_none_or(|t| *t == Told::Value(value)).then_some(value),
        Ask::Put(key) if value.is_none_or(|v| v == key) => (Told::Done, Some(key)),
        Ask::Remove if value.is_some() => (Told::Done, None),
        Ask::Put(_) | Ask::Remove => (Told::Refused, value),
    };
    told.is_none_or(|t| *t == does).then_some(after)
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
