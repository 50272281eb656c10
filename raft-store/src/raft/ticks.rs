//! Lets openraft look at its timers only where one of them can be over. A pure decision and its shell.
//!
//! openraft looks five times in each heartbeat's interval, a hundred times a second, on every node: also on one without a
//! vote, and on one that has heard its leader a moment ago, where nothing can come of it. A follower stands for election
//! no earlier than the shortest election timeout after it last heard the leader (Ongaro and Ousterhout, "In Search of an
//! Understandable Consensus Algorithm", section 5.2), so until then its ticks are off.

use std::sync::{Mutex, PoisonError, Weak};
use std::time::Duration;

use openraft::metrics::RaftServerMetrics;
use openraft::{Membership, ServerState};
use tokio::time::Instant;

use super::net::Transport;
use super::store::Inner;
use super::types::TypeConfig;
use crate::rt::{now, timeout};

/// When the leader was heard last.
#[derive(Debug, Default)]
pub(crate) struct Heard(Mutex<Option<Instant>>);

impl Heard {
    /// Notes that what arrived at this time was accepted as the leader's.
    pub(crate) fn note(&self, arrived: Instant) {
        let mut heard = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *heard = (*heard).max(Some(arrived));
    }

    fn ago(&self, now: Instant) -> Option<Duration> {
        let heard = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        heard.map(|at| now.saturating_duration_since(at))
    }
}

/// How a node stands in Raft, as far as its timers go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Standing {
    /// It has no vote: no timer of its own.
    Listens,
    /// It has a vote and follows; its leader was heard so long ago, if ever.
    Follows(Option<Duration>),
    /// It leads, stands for election, or is the only voter: its timers may be over at any time.
    Acts,
}

/// Whether a node votes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Vote {
    None,
    OneOfSeveral,
    Only,
}

/// Whether ticks are on, and after how long that is to be decided again, if nothing changes before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Ticks {
    on: bool,
    again: Option<Duration>,
}

fn decide(standing: Standing, patience: Duration) -> Ticks {
    match standing {
        Standing::Listens => Ticks { on: false, again: None },
        Standing::Acts => Ticks { on: true, again: None },
        Standing::Follows(Some(ago)) if ago < patience => {
            Ticks { on: false, again: Some(patience.saturating_sub(ago)) }
        }
        Standing::Follows(_) => Ticks { on: true, again: Some(patience) },
    }
}

fn standing(raft: &RaftServerMetrics<TypeConfig>, heard: Option<Duration>) -> Standing {
    let effective = raft.membership_config.membership();
    let committed = raft.committed_membership_config.membership();
    let has = |m: &Membership<_, _>| m.voter_ids().any(|id| id == raft.id);
    let vote = match has(effective) || has(committed) {
        false => Vote::None,
        true if effective.voter_ids().eq([raft.id]) => Vote::Only,
        true => Vote::OneOfSeveral,
    };
    stands(raft.state, vote, heard)
}

fn stands(state: ServerState, vote: Vote, heard: Option<Duration>) -> Standing {
    match (state, vote) {
        // A leader whose vote was given to another node goes on leading, and its ticks are its heartbeats.
        (ServerState::Leader | ServerState::Candidate, _) | (_, Vote::Only) => Standing::Acts,
        (_, Vote::None) => Standing::Listens,
        (_, Vote::OneOfSeveral) => Standing::Follows(heard),
    }
}

/// Decides again whenever something changes, until Raft ends. `patience` is the shortest election timeout.
pub(super) async fn keep<T: Transport>(store: Weak<Inner<T>>, patience: Duration) {
    let Some(mut seen) = store.upgrade().map(|s| s.raft.server_metrics()) else { return };
    loop {
        let Some(inner) = store.upgrade() else { return };
        let standing = standing(&seen.borrow_and_update(), inner.heard.ago(now()));
        let ticks = decide(standing, patience);
        inner.raft.runtime_config().tick(ticks.on);
        // Only while something is decided: who drops the last handle ends Raft.
        drop(inner);
        let ended = match ticks.again {
            Some(again) => timeout(again, seen.changed()).await.is_ok_and(|c| c.is_err()),
            None => seen.changed().await.is_err(),
        };
        if ended {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Duration = Duration::from_millis(150);

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn who_may_have_to_act_ticks() {
        assert!(decide(Standing::Acts, PATIENCE).on);
        assert!(decide(Standing::Follows(None), PATIENCE).on, "never heard a leader");
        assert!(decide(Standing::Follows(Some(PATIENCE)), PATIENCE).on, "heard it too long ago");
    }

    #[test]
    fn who_heard_its_leader_rests_until_an_election_may_begin() {
        let heard = decide(Standing::Follows(Some(ms(40))), PATIENCE);
        assert_eq!(heard, Ticks { on: false, again: Some(ms(110)) });
        assert_eq!(decide(Standing::Listens, PATIENCE), Ticks { on: false, again: None });
    }

    #[test]
    fn a_leader_ticks_although_it_has_lost_its_vote() {
        for vote in [Vote::None, Vote::OneOfSeveral, Vote::Only] {
            assert_eq!(stands(ServerState::Leader, vote, None), Standing::Acts);
            assert_eq!(stands(ServerState::Candidate, vote, None), Standing::Acts);
        }
        assert_eq!(stands(ServerState::Learner, Vote::None, Some(ms(1))), Standing::Listens);
        // Whose removal is not committed yet may still be needed for an election.
        let removed = stands(ServerState::Learner, Vote::OneOfSeveral, None);
        assert_eq!(removed, Standing::Follows(None));
        assert_eq!(stands(ServerState::Follower, Vote::Only, Some(ms(1))), Standing::Acts);
    }

    #[test]
    fn what_is_heard_late_does_not_count_for_more() {
        let heard = Heard::default();
        let start = Instant::now();
        heard.note(start + ms(20));
        heard.note(start);
        assert_eq!(heard.ago(start + ms(50)), Some(ms(30)));
    }
}
