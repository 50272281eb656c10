//! What happened, as one number: equal for equal seeds, so that a run can be told to have been repeated. Shell.

use std::fmt::Write as _;
use std::hash::{DefaultHasher, Hasher as _};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::time::Instant;

/// Takes in every message, disk write, life and answer of a run, in order.
#[derive(Debug, Default)]
pub struct Trace(Mutex<Inner>);

#[derive(Debug, Default)]
struct Inner {
    hash: u64,
    steps: u64,
    /// The steps in words, if they are wanted.
    text: Option<Vec<String>>,
}

impl Trace {
    /// Makes a trace that also keeps its steps in words.
    pub fn with_text() -> Self {
        Self(Mutex::new(Inner { text: Some(Vec::new()), ..Inner::default() }))
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes in a step at a virtual time, in microseconds: what it was, its numbers, and its bytes.
    pub fn note(&self, at_us: u64, what: &'static str, numbers: &[u64], bytes: &[u8]) {
        let mut inner = self.lock();
        let mut hasher = DefaultHasher::new();
        hasher.write_u64(inner.hash);
        hasher.write_u64(at_us);
        hasher.write(what.as_bytes());
        numbers.iter().for_each(|n| hasher.write_u64(*n));
        hasher.write(bytes);
        inner.hash = hasher.finish();
        inner.steps += 1;
        let hash = inner.hash;
        if let Some(text) = &mut inner.text {
            let mut line = format!("{:>12.6} {what}", seconds(at_us));
            for number in numbers {
                let _ = write!(line, " {number}");
            }
            let shown: String = String::from_utf8_lossy(bytes).chars().take(160).collect();
            let shown = shown.replace(|c: char| c.is_control(), ".");
            let _ = write!(line, " [{}] {shown} => {hash:016x}", bytes.len());
            text.push(line);
        }
    }

    /// Returns the number, in hexadecimal.
    pub fn hash(&self) -> String {
        format!("{:016x}", self.lock().hash)
    }

    /// Returns how many steps there were.
    pub fn steps(&self) -> u64 {
        self.lock().steps
    }

    /// Returns the steps in words, if they were kept.
    pub fn text(&self) -> Vec<String> {
        self.lock().text.clone().unwrap_or_default()
    }
}

/// A trace, and the clock whose readings go with its steps. Clones share them.
#[derive(Clone, Debug)]
pub struct Recorder {
    trace: Arc<Trace>,
    began: Instant,
}

impl Recorder {
    /// Takes in steps from now on.
    pub fn new(trace: Arc<Trace>) -> Self {
        Self { trace, began: Instant::now() }
    }

    /// Returns how much virtual time has passed, in microseconds.
    pub fn now_us(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_micros()).unwrap_or(u64::MAX)
    }

    /// Takes in a step.
    pub fn note(&self, what: &'static str, numbers: &[u64], bytes: &[u8]) {
        self.trace.note(self.now_us(), what, numbers, bytes);
    }

    /// Returns the trace.
    pub fn trace(&self) -> &Trace {
        &self.trace
    }
}

#[expect(clippy::cast_precision_loss, reason = "for people")]
fn seconds(us: u64) -> f64 {
    us as f64 / 1e6
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_part_of_a_step_and_their_order_count() {
        let hash = |steps: &[(u64, &'static str, &[u64], &[u8])]| {
            let trace = Trace::default();
            steps.iter().for_each(|(at, what, n, b)| trace.note(*at, what, n, b));
            trace.hash()
        };
        let (a, b): ((u64, &'static str, &[u64], &[u8]), _) =
            ((1, "call", &[1, 2], b"x"), (2, "disk", &[1][..], &b"y"[..]));
        assert_eq!(hash(&[a, b]), hash(&[a, b]));
        assert_ne!(hash(&[a, b]), hash(&[b, a]));
        for other in [
            (9, "call", &[1, 2][..], &b"x"[..]),
            (1, "call", &[1, 3], b"x"),
            (1, "call", &[1, 2], b"z"),
        ] {
            assert_ne!(hash(&[a]), hash(&[other]));
        }
    }
}
