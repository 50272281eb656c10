//! What this node knows of itself and reports: shared by the loops that see it. Shell.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use raft_store::model::{NodeId, UnixMillis};
use raft_store::plan::{Pace, PreparedVip, Report};
use raft_store::rt::watch;

use crate::frames::Heard;

/// The fleet's time is followed in steps of more than this, in milliseconds.
const CLOCK_STEP_MS: u64 = 250;

/// What the loops of this node have seen.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Own {
    /// Whether the API server here answers; absent without one.
    pub api_ready: Option<bool>,
    /// What it lacks.
    pub api_detail: Option<String>,
    /// VIPs whose address is on the device.
    pub vips: Vec<PreparedVip>,
    /// What the K3s loop waits for.
    pub k3s_waits: Option<String>,
    /// Whether the cluster refuses this host's node password.
    pub password_rejected: bool,
    /// What the overlay loop could not do.
    pub overlay_waits: Option<String>,
    /// Which route of this host leads elsewhere with addresses of the overlay.
    pub route_clash: Option<String>,
    /// Why the pod ranges that Kubernetes dealt this node are not taken.
    pub pods_wait: Option<String>,
    /// Round trips to fellow servers, while their cluster is not founded.
    pub trips: Option<BTreeMap<NodeId, u32>>,
    /// What the disk under K3s was measured as, while the cluster is not founded.
    pub disk: Option<Disk>,
    /// Why this daemon is about to end.
    pub ending: Option<String>,
    /// Whether others refuse this node because it was removed.
    pub removed: bool,
    /// How far the fleet's time is ahead of this host's clock, in milliseconds, by the last word of a leader that knew.
    pub clock_ms: Option<i64>,
    /// Nodes of which the leader said last that they are lost; kept while there is no leader to ask.
    pub lost: BTreeSet<NodeId>,
}

/// How fast the disk under K3s is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Disk {
    /// A durable write takes this long, in microseconds.
    Sync(u32),
    /// It cannot be measured.
    Unmeasured,
}

impl Own {
    /// What etcd's timers are derived from, once both halves are measured.
    fn pace(&self) -> Option<Pace> {
        let sync_us = match self.disk? {
            Disk::Sync(us) => Some(us),
            Disk::Unmeasured => None,
        };
        Some(Pace { rtt_us: self.trips.clone()?, sync_us })
    }
}

fn signed(ms: u64) -> i64 {
    i64::try_from(ms).unwrap_or(i64::MAX)
}

/// Everybody's handle on it.
#[derive(Clone, Debug)]
pub struct OwnHandle(Arc<watch::Sender<Own>>);

impl Default for OwnHandle {
    fn default() -> Self {
        Self(Arc::new(watch::Sender::new(Own::default())))
    }
}

impl OwnHandle {
    /// Changes it; readers wake only if something differs.
    pub fn update(&self, change: impl FnOnce(&mut Own)) {
        self.0.send_if_modified(|own| {
            let before = own.clone();
            change(own);
            *own != before
        });
    }

    /// Takes in a leader's answer that came between two readings of this host's clock; nothing is learned from others.
    pub fn hear(&self, heard: Heard, (asked, answered): (UnixMillis, UnixMillis)) {
        if !heard.leader {
            return;
        }
        self.update(|own| {
            own.lost = heard.lost;
            if let Some(now) = heard.now {
                let here = asked.0.midpoint(answered.0);
                let ahead = signed(now.0).saturating_sub(signed(here));
                // Less is what the answer took to come, and not worth waking anybody.
                if own.clock_ms.is_none_or(|ms| ahead.abs_diff(ms) > CLOCK_STEP_MS) {
                    own.clock_ms = Some(ahead);
                }
            }
        });
    }

    /// Returns the fleet's time where this host's clock says `wall`; nothing before a leader told it.
    pub fn known_fleet_time(&self, wall: UnixMillis) -> Option<UnixMillis> {
        self.0.borrow().clock_ms.map(|ms| UnixMillis(wall.0.saturating_add_signed(ms)))
    }

    /// Returns the fleet's time where this host's clock says `wall`, or that itself where there is no better.
    pub fn fleet_time(&self, wall: UnixMillis) -> UnixMillis {
        self.known_fleet_time(wall).unwrap_or(wall)
    }

    /// Returns the nodes that the leader calls lost.
    pub fn lost(&self) -> BTreeSet<NodeId> {
        self.0.borrow().lost.clone()
    }

    /// Returns what is known of the disk under K3s.
    pub fn disk(&self) -> Option<Disk> {
        self.0.borrow().disk
    }

    /// Returns whether the cluster refuses this host's node password.
    pub fn password_rejected(&self) -> bool {
        self.0.borrow().password_rejected
    }

    /// Returns a reader.
    pub fn subscribe(&self) -> watch::Receiver<Own> {
        self.0.subscribe()
    }

    /// Returns whether others refuse this node because it was removed.
    pub fn removed(&self) -> bool {
        self.0.borrow().removed
    }

    /// Makes the report for the leader, where this host's clock says `wall`.
    pub fn report(&self, node: NodeId, applied: u64, wall: UnixMillis) -> Report {
        let own = self.0.borrow().clone();
        let pace = own.pace();
        Report {
            pace,
            wall: Some(wall),
            node,
            applied,
            api_ready: own.api_ready,
            api_detail: own.api_detail,
            vips: own.vips,
            overlay: own.overlay_waits.clone(),
            waiting_for: (own.overlay_waits.into_iter())
                .chain(own.route_clash)
                .chain(own.k3s_waits)
                .chain(own.pods_wait)
                .collect(),
            last_words: own.ending,
            version: crate::VERSION.into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fleets_time_is_followed_and_small_differences_are_not() {
        let own = OwnHandle::default();
        let at = UnixMillis;
        let heard = |now: u64| Heard { leader: true, now: Some(at(now)), ..Heard::default() };
        assert_eq!(own.fleet_time(at(9_000)), at(9_000));
        own.hear(heard(5_000_100), (at(1_000_000), at(1_000_200)));
        assert_eq!(own.fleet_time(at(1_000_300)), at(5_000_300));
        own.hear(heard(5_000_400), (at(1_000_300), at(1_000_300)));
        assert_eq!(own.fleet_time(at(1_000_300)), at(5_000_300), "a slow answer moves nothing");
        own.hear(Heard { leader: false, ..heard(7) }, (at(0), at(0)));
        assert_eq!(own.fleet_time(at(1_000_300)), at(5_000_300), "only a leader knows");
        own.hear(heard(1_000_400), (at(1_000_400), at(1_000_400)));
        assert_eq!(own.fleet_time(at(1_000_500)), at(1_000_500), "the clock was set right");
    }
}
