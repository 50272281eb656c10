//! Who was heard of lately: the leader's memory of reports. Never replicated. Pure.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::model::{Generation, NodeId, UnixMillis, VipId};

/// Without a report for this long, a node counts as lost.
pub const WINDOW: Duration = Duration::from_millis(500);

/// What a node tells the leader each 100 ms.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// Who reports.
    pub node: NodeId,
    /// The log index that it has applied.
    pub applied: u64,
    /// Whether the API server on it answers `/readyz`; absent on nodes without one.
    pub api_ready: Option<bool>,
    /// What the API server lacks, in words.
    pub api_detail: Option<String>,
    /// VIPs whose address it has on its device.
    pub vips: Vec<PreparedVip>,
    /// What keeps its overlay from being as it should be, in words.
    #[serde(default)]
    pub overlay: Option<String>,
    /// What the daemon waits for, in words, most important first.
    pub waiting_for: Vec<String>,
    /// Why its daemon is about to end, in words.
    #[serde(default)]
    pub last_words: Option<String>,
    /// Its wall clock when it reported.
    #[serde(default)]
    pub wall: Option<UnixMillis>,
    /// What etcd's timers are derived from; only from servers of a cluster that is not founded yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pace: Option<Pace>,
    /// The daemon's version.
    pub version: String,
}

/// How fast a server's disk is, and the way to its fellow servers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pace {
    /// The median round trip to each of them, in microseconds.
    pub rtt_us: BTreeMap<NodeId, u32>,
    /// The 95th percentile of the time that a durable write takes, in microseconds; absent where none succeeded.
    pub sync_us: Option<u32>,
}

/// A VIP that a node could answer for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PreparedVip {
    /// Which one.
    pub vip: VipId,
    /// The generation at which its address was put on the device.
    pub generation: Generation,
}

/// How a node stands, as far as this leader knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Health {
    /// Not heard yet, and not listened for long enough to say more.
    Unknown,
    /// Heard within the window.
    Live,
    /// Not heard for longer than the window.
    Lost,
}

/// The newest report of a node, and when it came.
#[derive(Clone, Debug)]
pub struct Seen {
    /// When it came.
    pub at: Instant,
    /// Since when its API server has been unready without a break.
    pub unready_since: Option<Instant>,
    /// Since when it has been heard without a gap.
    pub live_since: Instant,
    /// What it said.
    pub report: Report,
}

/// All that a leader has heard since it began to listen.
#[derive(Clone, Debug)]
pub struct Liveness {
    since: Instant,
    seen: BTreeMap<NodeId, Seen>,
}

impl Liveness {
    /// Begins to listen at `now`, knowing nothing.
    pub fn new(now: Instant) -> Self {
        Self { since: now, seen: BTreeMap::new() }
    }

    /// Takes in a report.
    pub fn report(&mut self, report: Report, now: Instant) {
        let before = self.seen.get(&report.node);
        let was_unready = before.and_then(|s| s.unready_since);
        let unready_since = match report.api_ready {
            Some(true) => None,
            Some(false) => was_unready.or(Some(now)),
            // A node that cannot say takes nothing back.
            None => was_unready,
        };
        let unbroken = before.filter(|s| now.saturating_duration_since(s.at) < WINDOW);
        let live_since = unbroken.map_or(now, |s| s.live_since);
        self.seen.insert(report.node, Seen { at: now, unready_since, live_since, report });
    }

    /// Returns a node's newest report.
    pub fn seen(&self, node: NodeId) -> Option<&Seen> {
        self.seen.get(&node)
    }

    /// Returns all newest reports.
    pub fn all(&self) -> impl Iterator<Item = (NodeId, &Seen)> {
        self.seen.iter().map(|(id, s)| (*id, s))
    }

    /// Returns how long a node has been silent; absent while listening has not lasted a window.
    pub fn silent_for(&self, node: NodeId, now: Instant) -> Option<Duration> {
        match self.seen.get(&node) {
            Some(seen) => Some(now.saturating_duration_since(seen.at)),
            None => {
                let listened = now.saturating_duration_since(self.since);
                (listened >= WINDOW).then_some(listened)
            }
        }
    }

    /// Judges a node.
    pub fn health(&self, node: NodeId, now: Instant) -> Health {
        match self.silent_for(node, now) {
            None => Health::Unknown,
            Some(silence) if silence < WINDOW => Health::Live,
            Some(_) => Health::Lost,
        }
    }

    /// Returns the first time after `now` at which silence alone changes what is to be planned.
    ///
    /// Each span that a decision waits for counts from a node's last report, or from when listening
    /// began; spans that are over already do not, so that a caller who sleeps until then never spins.
    pub fn next_wake(&self, now: Instant) -> Option<Instant> {
        let of = |s: &Seen| {
            let silence = super::SPANS.map(|span| s.at + span);
            let unready = s.unready_since.map(|t| t + super::vip::UNREADY);
            let settled = s.live_since + super::voters::SETTLED;
            silence.into_iter().chain(unready).chain([settled])
        };
        let unheard = super::SPANS.map(|span| self.since + span);
        let all = self.seen.values().flat_map(of).chain(unheard);
        all.filter(|t| *t > now).min()
    }

    /// Returns when the first of the nodes heard so far counts, or counted, as lost; may be in the past.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.seen.values().map(|s| s.at + WINDOW).min()
    }
}
