//! Refusals: replicated values that say what failed, why, and what to run next. Pure.

use serde::{Deserialize, Serialize};

/// The kind of a refusal; the API and the command line map it to their codes in one place each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RejectCode {
    /// What was named does not exist.
    NotFound,
    /// A name or key is taken.
    Exists,
    /// The request does not fit the state it meets.
    Conflict,
    /// Several things fit and none was named.
    Ambiguous,
    /// The request is malformed.
    Invalid,
    /// A safety guard says no; `--force` overrides it.
    Guarded,
    /// No address is left.
    Exhausted,
    /// Somebody moved it since it was looked at.
    Stale,
    /// No ticket has this id and secret.
    TicketUnknown,
    /// The ticket was redeemed as often as it may be.
    TicketUsed,
    /// The ticket's time is over.
    TicketExpired,
    /// The ticket was withdrawn.
    TicketRevoked,
    /// The fleet is not founded yet, or founded already.
    Fleet,
}

/// A refused command, in three parts for people and a code for programs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{what}: {why}")]
pub struct Rejection {
    /// The kind.
    pub code: RejectCode,
    /// What failed.
    pub what: String,
    /// Why.
    pub why: String,
    /// What to run next.
    pub next: String,
}

impl Rejection {
    /// Builds a refusal.
    pub fn new(
        code: RejectCode,
        what: impl Into<String>,
        why: impl Into<String>,
        next: impl Into<String>,
    ) -> Self {
        Self { code, what: what.into(), why: why.into(), next: next.into() }
    }
}
