//! The fleet's time: the middle of all clocks, so that one that is wrong stamps nothing, whoever leads. Pure.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::liveness::{Health, Liveness, Seen};
use crate::model::{NodeId, State};

/// A clock that is further from the fleet's time is a problem: certificates and tokens of Kubernetes begin to fail.
pub const CLOCK_TOLERANCE: Duration = Duration::from_secs(5);

/// Returns how far the clocks of live members are ahead of the leader's, in milliseconds; nothing before the leader
/// reported itself.
///
/// What a report took to come counts as an error of the clock: far less than the tolerance.
pub fn clock_offsets(
    state: &State,
    seen: &Liveness,
    leader: NodeId,
    now: Instant,
) -> BTreeMap<NodeId, i64> {
    let Some((mine, at)) = seen.seen(leader).and_then(stamp) else {
        return BTreeMap::new();
    };
    let offset = |(wall, heard): (i64, Instant)| {
        let later = signed(heard.saturating_duration_since(at))
            - signed(at.saturating_duration_since(heard));
        wall.saturating_sub(mine).saturating_sub(later)
    };
    let counts = |id: NodeId| state.nodes.contains_key(&id) && seen.health(id, now) == Health::Live;
    let heard = seen.all().filter(|(id, _)| counts(*id));
    heard.filter_map(|(id, s)| Some((id, offset(stamp(s)?)))).collect()
}

fn stamp(seen: &Seen) -> Option<(i64, Instant)> {
    Some((i64::try_from(seen.report.wall?.0).ok()?, seen.at))
}

fn signed(span: Duration) -> i64 {
    i64::try_from(span.as_millis()).unwrap_or(i64::MAX)
}

/// Returns how far the fleet's time is ahead of the leader's clock, in milliseconds: the middle one of all clocks, of two
/// middle ones the nearer to the leader's. Nothing before most of the `members` were heard: a leader that has just begun to
/// listen would take its own clock, or that of whoever came first, for everybody's.
pub fn fleet_offset(offsets: &BTreeMap<NodeId, i64>, members: usize) -> Option<i64> {
    if offsets.len() * 2 <= members {
        return None;
    }
    let mut sorted: Vec<i64> = offsets.values().copied().collect();
    sorted.sort_unstable();
    let n = sorted.len();
    let middle = sorted.get(n.saturating_sub(1) / 2..=n / 2).unwrap_or_default();
    middle.iter().copied().min_by_key(|ms| ms.unsigned_abs())
}
