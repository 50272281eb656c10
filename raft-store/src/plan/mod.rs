//! The leader's decisions: given state and what is seen, what to propose next. Pure.
//!
//! Level-triggered: each call looks at everything anew, and once its commands are applied the next call
//! has nothing left to say.

mod clock;
mod etcd;
mod liveness;
mod vip;
mod voters;

pub use clock::{CLOCK_TOLERANCE, clock_offsets, fleet_offset};
pub use etcd::etcd_timers;
pub use liveness::{Health, Liveness, Pace, PreparedVip, Report, Seen, WINDOW};
pub use vip::{Candidate, best_candidate, candidates, unfit};
pub use voters::{Membership, MembershipChange, plan_membership, quorum_needs, voters_wanted};

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::apply::Command;
use crate::model::{Name, NodeId, Severity, State};

/// After this long without a report, operators are told.
const SILENT: Duration = Duration::from_secs(180);

/// After this long without a report nobody should wait for a node's answers any more: far more than a pause or
/// a hand-over takes, far less than TCP needs to give up by itself.
pub const UNANSWERED: Duration = Duration::from_secs(3);

/// Silences after which some decision changes.
const SPANS: [Duration; 3] = [WINDOW, voters::GONE, SILENT];

const SILENT_KIND: &str = "system.instance_silent";
const HEARD_KIND: &str = "system.instance_recovered";

/// Returns the commands that the leader should propose now.
pub fn plan(state: &State, seen: &Liveness, now: Instant) -> Vec<Command> {
    let vips = state.vips.values().filter_map(|v| vip::plan_vip(state, v, seen, now));
    let told = told_silent(state);
    let notes = state.nodes.keys().filter_map(|id| note_silence(state, *id, &told, seen, now));
    let timers = state.clusters.values().filter_map(|c| etcd::plan_timers(state, c, seen));
    vips.chain(notes).chain(timers).collect()
}

/// Returns the members that have been silent for so long that connections to them are worth nothing.
pub fn lost(state: &State, seen: &Liveness, now: Instant) -> BTreeSet<NodeId> {
    let silent = |id: &NodeId| seen.silent_for(*id, now).is_some_and(|age| age >= UNANSWERED);
    state.nodes.keys().copied().filter(silent).collect()
}

/// Returns the nodes whose silence was the last that was told of them. Once for all: a state has many nodes and events.
fn told_silent(state: &State) -> BTreeSet<&Name> {
    let mut told = BTreeSet::new();
    for event in state.events.after(0) {
        match (event.kind.as_str(), &event.node) {
            (SILENT_KIND, Some(node)) => told.insert(node),
            (HEARD_KIND, Some(node)) => told.remove(node),
            _ => continue,
        };
    }
    told
}

/// Records that a node fell silent, or was heard again, once per change.
fn note_silence(
    state: &State,
    id: NodeId,
    told: &BTreeSet<&Name>,
    seen: &Liveness,
    now: Instant,
) -> Option<Command> {
    let name = &state.nodes.get(&id)?.name;
    let told = told.contains(name);
    let (kind, severity) = match seen.silent_for(id, now) {
        Some(age) if age >= SILENT && !told => (SILENT_KIND, Severity::High),
        Some(age) if age < WINDOW && told => (HEARD_KIND, Severity::Low),
        _ => return None,
    };
    Some(Command::Note {
        kind: kind.into(),
        severity,
        node: Some(id),
        cluster: None,
        payload: json!({ "instance": name }),
    })
}

#[cfg(test)]
mod tests;
