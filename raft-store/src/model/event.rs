//! What happened, for operators: a bounded ring in replicated state. Pure.

use std::collections::VecDeque;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::id::{Name, UnixMillis};

/// How many events are kept.
pub const KEPT: usize = 2_000;

/// How much an event matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    /// Routine.
    Low,
    /// Worth a look.
    Medium,
    /// Something works worse than it should.
    High,
    /// Something does not work.
    Critical,
}

impl Severity {
    /// Returns the severity's word in output.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Low => "low",
            Self::Medium => "medium",
            Self::High => "high",
            Self::Critical => "critical",
        }
    }
}

/// One thing that happened. Payloads never hold secrets.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// Counts events from 1 without gaps; a watcher resumes after the last one it saw.
    pub index: u64,
    /// When its cause was proposed.
    pub at: UnixMillis,
    /// Dotted kind, such as `system.k3s.handshake.ready`.
    pub kind: String,
    /// How much it matters.
    pub severity: Severity,
    /// The node concerned.
    pub node: Option<Name>,
    /// The cluster concerned.
    pub cluster: Option<Name>,
    /// Facts of this kind of event.
    pub payload: Value,
}

/// The newest events, oldest first.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventRing {
    last: u64,
    /// Shared, since each change of the state copies it.
    events: VecDeque<Arc<Event>>,
}

impl EventRing {
    /// Adds an event under the next index, dropping the oldest when the ring is full.
    pub fn push(&mut self, mut event: Event) {
        self.last += 1;
        event.index = self.last;
        if self.events.len() == KEPT {
            self.events.pop_front();
        }
        self.events.push_back(Arc::new(event));
    }

    /// Returns the newest event's index, 0 if there was none.
    pub fn last(&self) -> u64 {
        self.last
    }

    /// Iterates from oldest to newest over kept events with an index above `after`.
    pub fn after(&self, after: u64) -> impl DoubleEndedIterator<Item = &Event> {
        let skip = self.events.partition_point(|e| e.index <= after);
        self.events.range(skip..).map(|e| &**e)
    }
}
