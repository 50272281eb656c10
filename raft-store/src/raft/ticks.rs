//! Lets openraft look at its timers only where one of them can be over. A pure decision and its shell.
//!
//! openraft looks five times in each heartbeat's interval, a hundred times a second, on every node: also on one without a
//! vote, and on one that has heard its leader a moment ago, where nothing can come of it. A follower stands for election
//! no earlier than the shortest election timeout after it last heard the leader (Ongaro and Ousterhout, "In Search of an
//! Understandable Consensus Algorithm", section 5.2), so until then its ticks are off. A leader's only timer is the next
//! heartbeat: it is asked for here when it is due, and no tick looks for it in between.

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
    /// It leads; so long ago, if ever, it was told to send heartbeats.
    Leads(Option<Duration>),
    /// It stands for election, or is the only voter and does not lead yet: its timers may be over at any time.
    Acts,
}

/// Whether a node votes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Vote {
    None,
    OneOfSeveral,
    Only,
}

/// Raft's timers, as far as they are looked at here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Timers {
    /// Between two heartbeats.
    pub heartbeat: Duration,
    /// The shortest election timeout.
    pub patience: Duration,
}

/// What is due, and after how long that is to be decided again, if nothing changes before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Due {
    ticks: bool,
    heartbeat: bool,
    again: Option<Duration>,
}

fn decide(standing: Standing, timers: Timers) -> Due {
    let Timers { heartbeat, patience } = timers;
    let rests = Due { ticks: false, heartbeat: false, again: None };
    match standing {
        Standing::Listens => rests,
        Standing::Acts => Due { ticks: true, ..rests },
        Standing::Leads(Some(ago)) if ago < heartbeat => {
            Due { again: Some(heartbeat.saturating_sub(ago)), ..rests }
        }
        Standing::Leads(_) => Due { heartbeat: true, again: Some(heartbeat), ..rests },
        Standing::Follows(Some(ago)) if ago < patience => {
            Due { again: Some(patience.saturating_sub(ago)), ..rests }
        }
        Standing::Follows(_) => Due { ticks: true, again: Some(patience), ..rests },
    }
}

/// How long ago it was, if ever.
#[derive(Clone, Copy, Debug, Default)]
struct Since {
    /// That the leader was heard.
    heard: Option<Duration>,
    /// That heartbeats were asked for.
    beaten: Option<Duration>,
}

fn standing(raft: &RaftServerMetrics<TypeConfig>, since: Since) -> Standing {
    let effective = raft.membership_config.membership();
    let committed = raft.committed_membership_config.membership();
    let has = |m: &Membership<_, _>| m.voter_ids().any(|id| id == raft.id);
    let vote = match has(effective) || has(committed) {
        false => Vote::None,
        true if effective.voter_ids().eq([raft.id]) => Vote::Only,
        true => Vote::OneOfSeveral,
    };
    stands(raft.state, vote, since)
}

fn stands(state: ServerState, vote: Vote, since: Since) -> Standing {
    match (state, vote) {
        // Also one whose vote was given to another node.
        (ServerState::Leader, _) => Standing::Leads(since.beaten),
        (ServerState::Candidate, _) | (_, Vote::Only) => Standing::Acts,
        (_, Vote::None) => Standing::Listens,
        (_, Vote::OneOfSeveral) => Standing::Follows(since.heard),
    }
}

/// Decides again whenever something changes, turns ticks on or off and asks for heartbeats, until Raft ends.
pub(super) async fn keep<T: Transport>(store: Weak<Inner<T>>, timers: Timers) {
    let Some(mut seen) = store.upgrade().map(|s| s.raft.server_metrics()) else { return };
    let mut beaten: Option<Instant> = None;
    loop {
        let Some(inner) = store.upgrade() else { return };
        let at = now();
        let ago = beaten.map(|then| at.saturating_duration_since(then));
        let since = Since { heard: inner.heard.ago(at), beaten: ago };
        let standing = standing(&seen.borrow_and_update(), since);
        if !matches!(standing, Standing::Leads(_)) {
            // Whoever leads again begins with a heartbeat.
            beaten = None;
        }
        let due = decide(standing, timers);
        inner.raft.runtime_config().tick(due.ticks);
        if due.heartbeat {
            beaten = Some(at);
            // Only a full queue makes it wait; what is in the queue then are entries, which are heard as well.
            let asked = timeout(timers.heartbeat, inner.raft.trigger().heartbeat()).await;
            if asked.is_ok_and(|a| a.is_err()) {
                return;
            }
        }
        // Only while something is decided: who drops the last handle ends Raft.
        drop(inner);
        let ended = match due.again {
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
    const TIMERS: Timers = Timers { heartbeat: Duration::from_millis(50), patience: PATIENCE };
    const RESTS: Due = Due { ticks: false, heartbeat: false, again: None };

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn who_may_have_to_act_ticks() {
        assert!(decide(Standing::Acts, TIMERS).ticks);
        assert!(decide(Standing::Follows(None), TIMERS).ticks, "never heard a leader");
        assert!(decide(Standing::Follows(Some(PATIENCE)), TIMERS).ticks, "heard it too long ago");
    }

    #[test]
    fn who_heard_its_leader_rests_until_an_election_may_begin() {
        let heard = decide(Standing::Follows(Some(ms(40))), TIMERS);
        assert_eq!(heard, Due { again: Some(ms(110)), ..RESTS });
        assert_eq!(decide(Standing::Listens, TIMERS), RESTS);
    }

    #[test]
    fn a_leader_beats_at_once_and_then_in_its_interval() {
        let beats = Due { heartbeat: true, again: Some(ms(50)), ..RESTS };
        for ago in [None, Some(ms(50)), Some(ms(4_000))] {
            assert_eq!(decide(Standing::Leads(ago), TIMERS), beats);
        }
        // Woken early by a change, it does not beat twice.
        let early = decide(Standing::Leads(Some(ms(20))), TIMERS);
        assert_eq!(early, Due { again: Some(ms(30)), ..RESTS });
    }

    #[test]
    fn a_leader_beats_although_it_has_lost_its_vote() {
        let never = Since::default();
        let heard = Since { heard: Some(ms(1)), ..never };
        for vote in [Vote::None, Vote::OneOfSeveral, Vote::Only] {
            let beaten = Since { beaten: Some(ms(7)), ..never };
            let leads = stands(ServerState::Leader, vote, beaten);
            assert_eq!(leads, Standing::Leads(Some(ms(7))));
            assert_eq!(stands(ServerState::Candidate, vote, never), Standing::Acts);
        }
        assert_eq!(stands(ServerState::Learner, Vote::None, heard), Standing::Listens);
        // Whose removal is not committed yet may still be needed for an election.
        let removed = stands(ServerState::Learner, Vote::OneOfSeveral, never);
        assert_eq!(removed, Standing::Follows(None));
        assert_eq!(stands(ServerState::Follower, Vote::Only, heard), Standing::Acts);
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
