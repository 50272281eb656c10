//! Makes a failing schedule shorter while it fails in the same way. Pure, given who runs it.
//!
//! Delta debugging (Zeller and Hildebrandt, "Simplifying and isolating failure-inducing input", 2002, section 3):
//! events are left out in ever smaller parts; then what is left is made to last less long.

use super::schedule::{Event, Schedule};

/// What came of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shrunk {
    /// The shorter schedule.
    pub schedule: Schedule,
    /// How many runs that took.
    pub runs: usize,
}

/// Makes a schedule shorter. `fails` says whether one still fails in the same way; it is asked at most `runs_max` times.
pub fn shrink(
    schedule: &Schedule,
    runs_max: usize,
    fails: impl FnMut(&Schedule) -> bool,
) -> Shrunk {
    let mut search = Search { best: schedule.clone(), fails, runs: 0, runs_max };
    search.without_parts();
    search.earlier_end();
    search.shorter_faults();
    search.fewer_machines();
    search.without_parts();
    Shrunk { schedule: search.best, runs: search.runs }
}

struct Search<F> {
    best: Schedule,
    fails: F,
    runs: usize,
    runs_max: usize,
}

impl<F: FnMut(&Schedule) -> bool> Search<F> {
    /// Takes a schedule for the best one if it still fails.
    fn accept(&mut self, candidate: Schedule) -> bool {
        if self.runs >= self.runs_max || candidate == self.best {
            return false;
        }
        self.runs += 1;
        let fails = (self.fails)(&candidate);
        if fails {
            self.best = candidate;
        }
        fails
    }

    fn without_parts(&mut self) {
        let mut parts = 2;
        while !self.best.events.is_empty() && self.runs < self.runs_max {
            let len = self.best.events.len();
            let size = len.div_ceil(parts);
            let mut from = 0;
            let mut shorter = false;
            while from < self.best.events.len() {
                let mut candidate = self.best.clone();
                let to = (from + size).min(candidate.events.len());
                candidate.events.drain(from..to);
                if self.accept(candidate) {
                    shorter = true;
                } else {
                    from += size;
                }
            }
            if size == 1 && !shorter {
                return;
            }
            parts = if shorter { parts.max(2) } else { (parts * 2).min(len) };
        }
    }

    fn earlier_end(&mut self) {
        let ends = |e: &Event| e.at_ms + e.act.for_ms().unwrap_or(0);
        let last = self.best.events.iter().map(ends).max().unwrap_or(0);
        for until_ms in [last + 1_000, last + 5_000, last + 20_000] {
            if until_ms < self.best.until_ms {
                let candidate = Schedule { until_ms, ..self.best.clone() };
                if self.accept(candidate) {
                    return;
                }
            }
        }
    }

    fn shorter_faults(&mut self) {
        for i in 0..self.best.events.len() {
            while let Some(ms) = self.best.events[i].act.for_ms().filter(|ms| *ms > 200) {
                let mut candidate = self.best.clone();
                if let Some(lasts) = candidate.events[i].act.for_ms_mut() {
                    *lasts = ms / 2;
                }
                if !self.accept(candidate) {
                    break;
                }
            }
        }
    }

    /// Leaves machines out that nothing names any more, from the last one on.
    fn fewer_machines(&mut self) {
        while self.best.sites.len() > 1 {
            let last = self.best.sites.len() - 1;
            let text = |e: &Event| serde_json::to_value(&e.act).unwrap_or_default();
            if self.best.events.iter().any(|e| names(&text(e), last as u64)) {
                return;
            }
            let mut candidate = self.best.clone();
            candidate.sites.pop();
            candidate.founders = candidate.founders.min(last);
            if !self.accept(candidate) {
                return;
            }
        }
    }
}

/// Tells whether an act names a machine: under one of these keys.
fn names(act: &serde_json::Value, machine: u64) -> bool {
    ["machine", "via", "to", "from", "servers", "workers", "clients"].iter().any(|key| {
        match &act[*key] {
            serde_json::Value::Array(all) => all.iter().any(|v| v.as_u64() == Some(machine)),
            one => one.as_u64() == Some(machine),
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chaos::schedule::Profile;

    #[test]
    fn two_events_that_must_meet_are_all_that_is_left() {
        let drawn = Schedule::from_seed(11, Profile::Default);
        let kinds = |s: &Schedule| -> Vec<&str> { s.events.iter().map(|e| e.act.kind()).collect() };
        let (first, last) = (drawn.events[2].clone(), drawn.events[drawn.events.len() - 3].clone());
        let has = |s: &Schedule, e: &Event| {
            s.events.iter().any(|x| x.at_ms == e.at_ms && x.act.kind() == e.act.kind())
        };
        let shrunk = shrink(&drawn, 10_000, |s| has(s, &first) && has(s, &last));
        assert_eq!(kinds(&shrunk.schedule), [first.act.kind(), last.act.kind()]);
        assert!(shrunk.schedule.sites.len() <= drawn.sites.len());
    }

    #[test]
    fn no_more_runs_are_made_than_allowed() {
        let drawn = Schedule::from_seed(12, Profile::Default);
        let mut runs = 0;
        shrink(&drawn, 7, |_| {
            runs += 1;
            false
        });
        assert_eq!(runs, 7);
    }
}
