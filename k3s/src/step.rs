//! The next actions on the way from what was seen to what should be. Pure.

use tokio::time::Instant;

use crate::observe::{Marker, Observed, Phase};
use crate::release::Release;
use crate::spec::{RoleKind, Spec};

/// One change of the machine; each may be repeated without harm.
#[derive(Debug, Clone, PartialEq)]
pub enum Action {
    /// Copy or download, check, and ask the binary for its version and flags; in the background.
    Fetch(Release),
    /// Remember this on disk, or forget.
    Mark(Option<Marker>),
    /// End the main process; pods live on.
    Stop(RoleKind),
}

/// What to do now, what to report, and when to look again.
#[derive(Debug, Clone, PartialEq)]
pub struct Step {
    /// In this order; the first that fails ends the round.
    pub actions: Vec<Action>,
    /// Where it is on its way.
    pub phase: Phase,
    /// What blocks, for people.
    pub waiting_for: Option<String>,
    /// Settings that were left out, each with its reason.
    pub left_out: Vec<String>,
    /// When to look again at the latest.
    pub wake: Instant,
}

/// The next actions.
pub fn step(_spec: &Spec, seen: &Observed, now: Instant) -> Step {
    Step {
        actions: Vec::new(),
        phase: Phase::Absent,
        waiting_for: seen.busy.clone(),
        left_out: Vec::new(),
        wake: now,
    }
}
