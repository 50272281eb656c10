//! Raft's messages as they travel: our own frames, translated to and from openraft's types. Pure.

use std::collections::{BTreeMap, BTreeSet};

use openraft::EntryPayload;
use openraft::impls::leader_id_adv::LeaderId;
use openraft::raft::{AppendEntriesRequest, AppendEntriesResponse, VoteRequest, VoteResponse};
use prost::Message;
use uuid::Uuid;

use super::types::{
    Entry, LogId, Member, Membership, Opaque, Payload, SnapshotMeta, StoredMembership, TypeConfig,
    Vote,
};
use crate::disk::Record;

/// No term or index comes near this; openraft adds to them without looking.
const NUMBER_MAX: u64 = u64::MAX / 2;

/// Why a frame was not understood.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("malformed frame: {0}")]
pub struct WireError(pub &'static str);

/// Decodes a message, naming it in the error.
pub(crate) fn decode<M: Message + Default>(
    bytes: &[u8],
    what: &'static str,
) -> Result<M, WireError> {
    M::decode(bytes).map_err(|_| WireError(what))
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct WireVote {
    #[prost(uint64, tag = "1")]
    pub term: u64,
    #[prost(uint64, tag = "2")]
    pub node: u64,
    #[prost(bool, tag = "3")]
    pub committed: bool,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct WireLogId {
    #[prost(uint64, tag = "1")]
    pub term: u64,
    #[prost(uint64, tag = "2")]
    pub node: u64,
    #[prost(uint64, tag = "3")]
    pub index: u64,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct WireAppend {
    #[prost(message, required, tag = "1")]
    pub vote: WireVote,
    #[prost(message, optional, tag = "2")]
    pub prev: Option<WireLogId>,
    #[prost(message, repeated, tag = "3")]
    pub entries: Vec<Record>,
    #[prost(message, optional, tag = "4")]
    pub commit: Option<WireLogId>,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct WireAppended {
    /// 1 success, 2 partial success, 3 conflict, 4 higher vote.
    #[prost(uint32, tag = "1")]
    pub kind: u32,
    #[prost(message, optional, tag = "2")]
    pub log_id: Option<WireLogId>,
    #[prost(message, optional, tag = "3")]
    pub vote: Option<WireVote>,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct WireVoteRequest {
    #[prost(message, required, tag = "1")]
    pub vote: WireVote,
    #[prost(message, optional, tag = "2")]
    pub last: Option<WireLogId>,
    #[prost(bool, tag = "3")]
    pub transfer: bool,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct WireVoteResponse {
    #[prost(message, required, tag = "1")]
    pub vote: WireVote,
    #[prost(bool, tag = "2")]
    pub granted: bool,
    #[prost(message, optional, tag = "3")]
    pub last: Option<WireLogId>,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct WireTransfer {
    #[prost(message, required, tag = "1")]
    pub from: WireVote,
    #[prost(uint64, tag = "2")]
    pub to: u64,
    #[prost(message, optional, tag = "3")]
    pub last: Option<WireLogId>,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct WireNode {
    #[prost(uint64, tag = "1")]
    pub id: u64,
    #[prost(bytes = "vec", tag = "2")]
    pub uuid: Vec<u8>,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct WireIds {
    #[prost(uint64, repeated, tag = "1")]
    pub ids: Vec<u64>,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct WireMembership {
    #[prost(message, repeated, tag = "1")]
    pub configs: Vec<WireIds>,
    #[prost(message, repeated, tag = "2")]
    pub nodes: Vec<WireNode>,
    #[prost(message, optional, tag = "3")]
    pub at: Option<WireLogId>,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct WireSnapshotMeta {
    #[prost(message, optional, tag = "1")]
    pub last: Option<WireLogId>,
    #[prost(message, required, tag = "2")]
    pub membership: WireMembership,
}

/// A snapshot with its description: what a snapshot file holds.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct WireSnapshot {
    #[prost(message, required, tag = "1")]
    pub meta: WireSnapshotMeta,
    #[prost(bytes = "vec", tag = "2")]
    pub state: Vec<u8>,
}

/// A piece of a snapshot on its way to a follower.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct WireChunk {
    #[prost(message, required, tag = "1")]
    pub vote: WireVote,
    #[prost(message, required, tag = "2")]
    pub meta: WireSnapshotMeta,
    #[prost(uint64, tag = "3")]
    pub offset: u64,
    #[prost(uint64, tag = "4")]
    pub total: u64,
    #[prost(bytes = "vec", tag = "5")]
    pub data: Vec<u8>,
}

/// A leader's answer to a forwarded proposal or read.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct WireReply {
    /// 0 done, 1 not the leader, 2 no quorum, 3 stopped.
    #[prost(uint32, tag = "1")]
    pub status: u32,
    #[prost(uint64, tag = "2")]
    pub index: u64,
    #[prost(bytes = "vec", tag = "3")]
    pub outcome: Vec<u8>,
}

pub(crate) fn put_vote(v: &Vote) -> WireVote {
    WireVote { term: v.leader_id.term, node: v.leader_id.node_id, committed: v.committed }
}

pub(crate) fn get_vote(v: &WireVote) -> Result<Vote, WireError> {
    let leader_id = get_leader_id(v.term, v.node)?;
    Ok(Vote { leader_id, committed: v.committed })
}

fn get_leader_id(term: u64, node_id: u64) -> Result<LeaderId<u64, u64>, WireError> {
    if term > NUMBER_MAX {
        return Err(WireError("term is larger than any term"));
    }
    Ok(LeaderId { term, node_id })
}

pub(crate) fn put_log_id(id: &LogId) -> WireLogId {
    WireLogId { term: id.leader_id.term, node: id.leader_id.node_id, index: id.index }
}

/// Returns the log index in a stored [`Committed`](crate::disk::MetaKey::Committed), for whoever watches a disk.
pub fn committed_index(bytes: &[u8]) -> Option<u64> {
    WireLogId::decode(bytes).ok().map(|id| id.index)
}

/// Returns the term and the candidate of a vote that was granted, for whoever watches the wire.
pub fn granted_vote(request: &[u8], answer: &[u8]) -> Option<(u64, u64)> {
    let asked = WireVoteRequest::decode(request).ok()?.vote;
    let granted = WireVoteResponse::decode(answer).ok()?.granted;
    granted.then_some((asked.term, asked.node))
}

pub(crate) fn get_log_id(id: &WireLogId) -> Result<LogId, WireError> {
    let leader_id = get_leader_id(id.term, id.node)?;
    if id.index > NUMBER_MAX {
        return Err(WireError("index is larger than any index"));
    }
    Ok(LogId { leader_id, index: id.index })
}

fn get_maybe_log_id(id: Option<&WireLogId>) -> Result<Option<LogId>, WireError> {
    id.map(get_log_id).transpose()
}

fn put_membership(m: &Membership, at: Option<&LogId>) -> WireMembership {
    let ids = |set: &BTreeSet<u64>| WireIds { ids: set.iter().copied().collect() };
    let node = |(id, n): (&u64, &Member)| WireNode { id: *id, uuid: n.uuid.as_bytes().to_vec() };
    WireMembership {
        configs: m.get_joint_config().iter().map(ids).collect(),
        nodes: m.nodes().map(node).collect(),
        at: at.map(put_log_id),
    }
}

fn get_membership(m: &WireMembership) -> Result<Membership, WireError> {
    let configs = m.configs.iter().map(|c| c.ids.iter().copied().collect()).collect();
    let nodes: Result<BTreeMap<u64, Member>, WireError> = m
        .nodes
        .iter()
        .map(|n| {
            let uuid = Uuid::from_slice(&n.uuid).map_err(|_| WireError("membership's node"))?;
            Ok((n.id, Member { uuid }))
        })
        .collect();
    Membership::new(configs, nodes?).map_err(|_| WireError("membership"))
}

pub(crate) fn put_entry(e: &Entry) -> Record {
    let (kind, payload) = match &e.payload {
        EntryPayload::Blank => (0, Vec::new()),
        EntryPayload::Normal(d) => (1, d.0.clone()),
        EntryPayload::Membership(m) => (2, put_membership(m, None).encode_to_vec()),
    };
    let LogId { leader_id, index } = e.log_id;
    Record { term: leader_id.term, leader: leader_id.node_id, kind, payload, index }
}

pub(crate) fn get_entry(r: Record) -> Result<Entry, WireError> {
    let payload: Payload = match r.kind {
        0 => EntryPayload::Blank,
        1 => EntryPayload::Normal(Opaque(r.payload)),
        2 => EntryPayload::Membership(get_membership(&decode(&r.payload, "membership entry")?)?),
        _ => return Err(WireError("entry of an unknown kind")),
    };
    let log_id = get_log_id(&WireLogId { term: r.term, node: r.leader, index: r.index })?;
    Ok(Entry { log_id, payload })
}

pub(crate) fn put_meta(m: &SnapshotMeta) -> WireSnapshotMeta {
    let stored = &m.last_membership;
    WireSnapshotMeta {
        last: m.last_log_id.as_ref().map(put_log_id),
        membership: put_membership(stored.membership(), stored.log_id().as_ref()),
    }
}

pub(crate) fn get_meta(m: &WireSnapshotMeta) -> Result<SnapshotMeta, WireError> {
    let at = get_maybe_log_id(m.membership.at.as_ref())?;
    let membership = if m.membership.configs.is_empty() {
        Membership::default()
    } else {
        get_membership(&m.membership)?
    };
    Ok(SnapshotMeta {
        last_log_id: get_maybe_log_id(m.last.as_ref())?,
        last_membership: StoredMembership::new(at, membership),
    })
}

pub(crate) fn put_append(r: &AppendEntriesRequest<TypeConfig>) -> WireAppend {
    WireAppend {
        vote: put_vote(&r.vote),
        prev: r.prev_log_id.as_ref().map(put_log_id),
        entries: r.entries.iter().map(put_entry).collect(),
        commit: r.leader_commit.as_ref().map(put_log_id),
    }
}

pub(crate) fn get_append(r: WireAppend) -> Result<AppendEntriesRequest<TypeConfig>, WireError> {
    let entries: Result<Vec<Entry>, WireError> = r.entries.into_iter().map(get_entry).collect();
    let entries = entries?;
    let prev_log_id = get_maybe_log_id(r.prev.as_ref())?;
    let first = prev_log_id.map_or(0, |p| p.index + 1);
    let gapless = entries.iter().zip(first..).all(|(e, index)| e.log_id.index == index);
    if !gapless {
        return Err(WireError("entries are not consecutive"));
    }
    Ok(AppendEntriesRequest {
        vote: get_vote(&r.vote)?,
        prev_log_id,
        entries,
        leader_commit: get_maybe_log_id(r.commit.as_ref())?,
    })
}

pub(crate) fn put_appended(r: &AppendEntriesResponse<TypeConfig>) -> WireAppended {
    let (kind, log_id, vote) = match r {
        AppendEntriesResponse::Success => (1, None, None),
        AppendEntriesResponse::PartialSuccess(id) => (2, id.as_ref().map(put_log_id), None),
        AppendEntriesResponse::Conflict => (3, None, None),
        AppendEntriesResponse::HigherVote(v) => (4, None, Some(put_vote(v))),
    };
    WireAppended { kind, log_id, vote }
}

pub(crate) fn get_appended(
    r: &WireAppended,
) -> Result<AppendEntriesResponse<TypeConfig>, WireError> {
    match (r.kind, &r.vote) {
        (1, _) => Ok(AppendEntriesResponse::Success),
        (2, _) => Ok(AppendEntriesResponse::PartialSuccess(get_maybe_log_id(r.log_id.as_ref())?)),
        (3, _) => Ok(AppendEntriesResponse::Conflict),
        (4, Some(v)) => Ok(AppendEntriesResponse::HigherVote(get_vote(v)?)),
        _ => Err(WireError("append answer of an unknown kind")),
    }
}

pub(crate) fn put_vote_request(r: &VoteRequest<TypeConfig>) -> WireVoteRequest {
    WireVoteRequest {
        vote: put_vote(&r.vote),
        last: r.last_log_id.as_ref().map(put_log_id),
        transfer: r.leadership_transfer,
    }
}

pub(crate) fn get_vote_request(r: &WireVoteRequest) -> Result<VoteRequest<TypeConfig>, WireError> {
    Ok(VoteRequest {
        vote: get_vote(&r.vote)?,
        last_log_id: get_maybe_log_id(r.last.as_ref())?,
        leadership_transfer: r.transfer,
    })
}

pub(crate) fn put_vote_response(r: &VoteResponse<TypeConfig>) -> WireVoteResponse {
    WireVoteResponse {
        vote: put_vote(&r.vote),
        granted: r.vote_granted,
        last: r.last_log_id.as_ref().map(put_log_id),
    }
}

pub(crate) fn get_vote_response(
    r: &WireVoteResponse,
) -> Result<VoteResponse<TypeConfig>, WireError> {
    Ok(VoteResponse {
        vote: get_vote(&r.vote)?,
        vote_granted: r.granted,
        last_log_id: get_maybe_log_id(r.last.as_ref())?,
    })
}
