//! What an observer saw: the lines that it prints, one JSON object each. Pure.

use serde::{Deserialize, Serialize};

/// What is asked again and again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Clock {
    /// A fresh TCP connection is answered by a responder, which names its host.
    Vip,
    /// The API's port completes a TLS handshake.
    Tls,
    /// The Kubernetes API creates a `ConfigMap`.
    Write,
}

impl Clock {
    /// All of them, in the order of columns.
    pub const ALL: [Self; 3] = [Self::Vip, Self::Tls, Self::Write];

    /// What a reader calls it.
    pub fn title(self) -> &'static str {
        match self {
            Self::Vip => "VIP",
            Self::Tls => "API port",
            Self::Write => "API write",
        }
    }
}

/// One attempt; times are microseconds since the observer started.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sample {
    /// What was asked.
    pub clock: Clock,
    /// When it began.
    pub at: u64,
    /// How long it took.
    pub took: u64,
    /// Who answered; absent if nobody did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by: Option<String>,
    /// Why it failed; absent if it did not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

impl Sample {
    /// Whether it was answered.
    pub fn good(&self) -> bool {
        self.error.is_none()
    }

    /// When it was over.
    pub fn done(&self) -> u64 {
        self.at + self.took
    }
}

/// A connection that was open before the fault and is used all the time.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Held {
    /// When it ended, if it did.
    pub broke: Option<u64>,
    /// The longest time that one echo took, in microseconds.
    pub silence: u64,
}

/// A line of an observer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Line {
    /// An attempt is over.
    Sample(Sample),
    /// Somebody said that something happens now.
    Mark {
        /// What.
        name: String,
        /// When, in microseconds since the observer started.
        at: u64,
    },
    /// What became of a connection that was open before.
    Held(Held),
}

/// Everything that one observer printed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Record {
    /// In the order of completion.
    pub samples: Vec<Sample>,
    /// What was said to happen, and when.
    pub marks: Vec<(String, u64)>,
    /// The connections that were open before.
    pub held: Vec<Held>,
}

impl Record {
    /// Adds a line.
    pub fn add(&mut self, line: Line) {
        match line {
            Line::Sample(sample) => self.samples.push(sample),
            Line::Mark { name, at } => self.marks.push((name, at)),
            Line::Held(held) => self.held.push(held),
        }
    }

    /// Returns when something was said to happen.
    pub fn mark(&self, name: &str) -> Option<u64> {
        self.marks.iter().find(|(n, _)| n == name).map(|(_, at)| *at)
    }

    /// Returns one clock's attempts by when they began.
    pub fn of(&self, clock: Clock) -> Vec<&Sample> {
        let mut samples: Vec<&Sample> = self.samples.iter().filter(|s| s.clock == clock).collect();
        samples.sort_by_key(|s| (s.at, s.took));
        samples
    }

    /// Tells whether all clocks have been answered, and nothing failed, for `quiet` microseconds.
    pub fn calm(&self, clocks: &[Clock], quiet: u64) -> bool {
        let Some(now) = self.samples.iter().map(Sample::done).max() else { return false };
        let since = now.saturating_sub(quiet);
        clocks.iter().all(|clock| {
            let of = || self.samples.iter().filter(|s| s.clock == *clock);
            of().any(|s| s.good() && s.at >= since) && of().all(|s| s.good() || s.done() < since)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(at: u64, good: bool) -> Sample {
        let error = (!good).then(|| "refused".to_owned());
        Sample { clock: Clock::Vip, at, took: 1, by: None, error }
    }

    #[test]
    fn calm_is_a_quiet_time_with_answers_in_it() {
        let mut record = Record::default();
        assert!(!record.calm(&[Clock::Vip], 100), "nothing was asked yet");
        record.samples = vec![sample(0, true), sample(50, false), sample(200, true)];
        assert!(record.calm(&[Clock::Vip], 100));
        assert!(!record.calm(&[Clock::Vip], 180), "the failure is not long enough ago");
        assert!(!record.calm(&[Clock::Vip, Clock::Tls], 100), "the other clock said nothing");
    }

    #[test]
    fn a_line_reads_back_as_it_was_written() {
        for line in [
            Line::Sample(sample(3, false)),
            Line::Mark { name: "fault".into(), at: 7 },
            Line::Held(Held { broke: Some(9), silence: 1 }),
        ] {
            let text = serde_json::to_string(&line).expect("it is JSON");
            assert_eq!(serde_json::from_str::<Line>(&text).expect("it reads"), line);
        }
    }
}
