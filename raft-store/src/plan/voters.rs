//! Who votes: 1, 3 or 5 nodes, replaced only when a replacement is ready. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use uuid::Uuid;

use super::liveness::{Health, Liveness};
use crate::model::{Node, NodeId, Role, State, TicketRole};

/// A learner further behind than this is not promoted.
const LAG_MAX: u64 = 100;
/// A voter that is silent for this long is replaced, if there is a replacement.
pub(super) const GONE: Duration = Duration::from_secs(30);
/// Once the target size was reached, a learner must have been heard for this long to be promoted.
pub(super) const SETTLED: Duration = Duration::from_secs(60);

/// Raft's membership as the leader sees it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Membership {
    /// The leader itself.
    pub me: Option<NodeId>,
    /// Who votes.
    pub voters: BTreeSet<NodeId>,
    /// While a majority of the former and of the next voters must agree (Ongaro, "Consensus: Bridging Theory and
    /// Practice", 2014, section 4.3): the next ones.
    pub joint: Option<BTreeSet<NodeId>>,
    /// Who only listens.
    pub learners: BTreeSet<NodeId>,
    /// The leader's last log index.
    pub last_log: u64,
    /// How far each follower's log matches.
    pub matched: BTreeMap<NodeId, u64>,
}

/// One change of membership.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MembershipChange {
    /// Start to replicate to nodes that were admitted, all at once: a fleet may join in one moment.
    AddLearners(BTreeMap<NodeId, Uuid>),
    /// Stop replicating to a learner that was removed.
    Remove(NodeId),
    /// Let exactly these vote.
    SetVoters(BTreeSet<NodeId>),
    /// Give up leadership, because this node was removed.
    Transfer(NodeId),
}

/// Returns how many voters a fleet of `nodes` should have: `min(limit, largest odd number <= nodes)`.
pub fn voters_wanted(nodes: usize, limit: u8) -> usize {
    let odd = if nodes.is_multiple_of(2) { nodes.saturating_sub(1) } else { nodes };
    odd.clamp(1, usize::from(limit.max(1)))
}

/// Tells whether Raft still needs the vote of a node that was removed from the fleet.
///
/// The vote of a removed node ends with a change of membership, which a majority of the present voters must
/// accept. Which of the others are alive is not known here, so it is heard until its vote is gone: a moment where
/// they are a majority, and where they are none there would be no end to it.
pub fn quorum_needs(state: &State, voters: &BTreeSet<NodeId>, removed: Uuid) -> bool {
    let votes = |id: &NodeId| state.retired.get(id).is_some_and(|r| r.uuid == removed);
    voters.iter().any(votes)
}

/// Decides the next change of Raft's membership, if any is due.
pub fn plan_membership(
    state: &State,
    raft: &Membership,
    seen: &Liveness,
    now: Instant,
) -> Option<MembershipChange> {
    let fleet = state.fleet.as_ref()?;
    // A change stays half made when whoever made it gave up in between, or led no more.
    if let Some(next) = &raft.joint {
        return Some(MembershipChange::SetVoters(next.clone()));
    }
    let known = |n: &Node| raft.voters.contains(&n.id) || raft.learners.contains(&n.id);
    let missing = state.nodes.values().filter(|n| !known(n));
    let missing: BTreeMap<NodeId, Uuid> = missing.map(|n| (n.id, n.uuid)).collect();
    if !missing.is_empty() {
        return Some(MembershipChange::AddLearners(missing));
    }
    if let Some(gone) = raft.learners.iter().find(|id| !state.nodes.contains_key(id)) {
        return Some(MembershipChange::Remove(*gone));
    }
    let wanted = voters_wanted(state.nodes.len(), fleet.voters);
    let set = choose(state, raft, seen, now, wanted);
    if set == raft.voters || set.is_empty() {
        return None;
    }
    // Voters of whom no majority is there could never agree on anything again, not even on other voters.
    let there = set.iter().filter(|id| is_there(raft, seen, now, **id)).count();
    if there * 2 <= set.len() {
        return None;
    }
    match raft.me {
        // A leader that leaves hands over first, so that nobody waits for an election.
        Some(me) if !set.contains(&me) => set
            .iter()
            .find(|id| raft.voters.contains(id) && seen.health(**id, now) == Health::Live)
            .map(|id| MembershipChange::Transfer(*id))
            .or(Some(MembershipChange::SetVoters(set))),
        _ => Some(MembershipChange::SetVoters(set)),
    }
}

/// Chooses the voters: those that vote and still should, then the best learners, always an odd number.
fn choose(
    state: &State,
    raft: &Membership,
    seen: &Liveness,
    now: Instant,
    wanted: usize,
) -> BTreeSet<NodeId> {
    let silent = |id: &NodeId| seen.silent_for(*id, now).is_some_and(|age| age >= GONE);
    let gone = |id: &NodeId| Some(*id) != raft.me && silent(id);
    let members = || raft.voters.iter().filter(|id| state.nodes.contains_key(id)).copied();
    let grown = members().count() >= wanted;
    let (lost, kept): (Vec<NodeId>, Vec<NodeId>) = members().partition(gone);
    let mut fresh: Vec<&Node> = raft
        .learners
        .iter()
        .filter_map(|id| state.nodes.get(id).map(|n| &**n))
        .filter(|n| ready(raft, seen, now, n.id, grown))
        .collect();
    // Who is settled comes before who has just come, or a voter that is heard would yield to make room for both.
    let settled = |n: &Node| ready(raft, seen, now, n.id, true);
    fresh.sort_by_cached_key(|n| {
        let (did_not_ask, no_server, id) = preference(n);
        (did_not_ask, !settled(n), no_server, id)
    });
    let mut kept_sorted: Vec<&Node> =
        kept.iter().filter_map(|id| state.nodes.get(id).map(|n| &**n)).collect();
    // Where the fleet shrinks, the leader stays, then those that are heard, then those that are preferred.
    let heard = |id: NodeId| is_there(raft, seen, now, id);
    kept_sorted.sort_by_key(|n| (Some(n.id) != raft.me, !heard(n.id), preference(n)));
    let mut seats: Vec<&Node> =
        kept_sorted.into_iter().chain(fresh.iter().copied()).take(wanted).collect();
    // A silent voter keeps its seat until somebody can take it: shrinking would lower what is tolerated.
    let mut lost: Vec<NodeId> = lost.into_iter().take(wanted - seats.len()).collect();
    if (seats.len() + lost.len()).is_multiple_of(2) && lost.pop().is_none() {
        seats.pop();
    }
    prefer_asked(&mut seats, &fresh, raft.me, settled);
    seats.into_iter().map(|n| n.id).chain(lost).collect()
}

/// Gives who came with a voter's ticket, and is settled, the seat of who did not. The leader keeps its own; one that leaves gives
/// no seat away, since it hands over to whoever votes already.
fn prefer_asked<'n>(
    seats: &mut [&'n Node],
    fresh: &[&'n Node],
    leader: Option<NodeId>,
    settled: impl Fn(&Node) -> bool,
) {
    if !seats.iter().any(|n| Some(n.id) == leader) {
        return;
    }
    let asked = |n: &Node| n.ticket_role == TicketRole::Voter;
    let seated: BTreeSet<NodeId> = seats.iter().map(|n| n.id).collect();
    let unseated = fresh.iter().filter(|n| asked(n) && !seated.contains(&n.id) && settled(n));
    let yielding = seats.iter_mut().rev().filter(|n| !asked(n) && Some(n.id) != leader);
    for (seat, node) in yielding.zip(unseated) {
        *seat = node;
    }
}

fn is_there(raft: &Membership, seen: &Liveness, now: Instant, id: NodeId) -> bool {
    raft.me == Some(id) || seen.health(id, now) == Health::Live
}

fn preference(n: &Node) -> (bool, bool, NodeId) {
    let server = n.assignment.as_ref().is_some_and(|a| a.role == Role::K3sServer);
    (n.ticket_role != TicketRole::Voter, !server, n.id)
}

fn ready(raft: &Membership, seen: &Liveness, now: Instant, id: NodeId, grown: bool) -> bool {
    let behind = raft.matched.get(&id).map(|m| raft.last_log.saturating_sub(*m));
    let caught_up = behind.is_some_and(|b| b < LAG_MAX);
    let settled = seen
        .seen(id)
        .is_some_and(|s| !grown || now.saturating_duration_since(s.live_since) >= SETTLED);
    caught_up && settled && seen.health(id, now) == Health::Live
}
