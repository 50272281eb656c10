//! Frames from other daemons, given to openraft. Shell; hostile bytes end as refusals.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use openraft::raft::{AppendEntriesResponse, TransferLeaderRequest};

use super::calls::{Attempt, PROPOSAL_MAX};
use super::net::{Frame, Transport, kind};
use super::store::Store;
use super::types::{Snapshot, Vote};
use super::wire::{
    self, WireAppend, WireChunk, WireError, WireReply, WireTransfer, WireVoteRequest,
};
use crate::rt;

/// No snapshot of ours comes near this; a sender that claims more is refused.
const SNAPSHOT_MAX: u64 = 512 * 1024 * 1024;

/// Snapshots that are arriving, by sender.
#[derive(Default)]
pub(crate) struct Arriving(Mutex<BTreeMap<u64, Partial>>);

struct Partial {
    vote: Vote,
    bytes: Vec<u8>,
}

/// Why an inbound frame was not served.
#[derive(Debug, thiserror::Error)]
pub enum InboundError {
    /// It was malformed.
    #[error(transparent)]
    Malformed(WireError),
    /// Raft has stopped on this node.
    #[error("raft has stopped on this node: {0}")]
    Stopped(String),
}

/// The caller's own deadline is no longer than this.
const FORWARDED_MAX: Duration = Duration::from_secs(2);

fn reply_of(done: Result<(u64, Vec<u8>), Attempt>) -> WireReply {
    let status = match &done {
        Ok(_) => 0,
        Err(Attempt::NotLeader) => 1,
        Err(Attempt::NoQuorum) => 2,
        Err(Attempt::Stopped(_)) => 3,
    };
    let (index, outcome) = done.unwrap_or_default();
    WireReply { status, index, outcome }
}

type Answer = Result<Frame, InboundError>;

fn malformed(e: WireError) -> InboundError {
    InboundError::Malformed(e)
}

fn stopped(e: impl std::fmt::Display) -> InboundError {
    InboundError::Stopped(e.to_string())
}

impl<T: Transport> Store<T> {
    /// Serves a frame of this crate's kinds from node `from`, whose membership the caller has checked.
    ///
    /// # Errors
    /// When the frame is malformed, or Raft has stopped here.
    pub async fn handle(&self, from: u64, frame: Frame) -> Answer {
        let body = &frame.body;
        match frame.kind {
            kind::APPEND => {
                let rpc = wire::decode::<WireAppend>(body, "append").map_err(malformed)?;
                let rpc = wire::get_append(rpc).map_err(malformed)?;
                let arrived = rt::now();
                let answer = self.raft().append_entries(rpc).await.map_err(stopped)?;
                // One of an earlier term does not put an election off.
                if !matches!(answer, AppendEntriesResponse::HigherVote(_)) {
                    self.heard().note(arrived);
                }
                Ok(Frame::of(kind::APPEND, &wire::put_appended(&answer)))
            }
            kind::VOTE | kind::PRE_VOTE => {
                let rpc = wire::decode::<WireVoteRequest>(body, "vote").map_err(malformed)?;
                let rpc = wire::get_vote_request(&rpc).map_err(malformed)?;
                let answer = if frame.kind == kind::VOTE {
                    self.raft().vote(rpc).await
                } else {
                    self.raft().pre_vote(rpc).await
                };
                Ok(Frame::of(frame.kind, &wire::put_vote_response(&answer.map_err(stopped)?)))
            }
            kind::SNAPSHOT => self.handle_chunk(from, body).await,
            kind::TRANSFER => {
                let t = wire::decode::<WireTransfer>(body, "transfer").map_err(malformed)?;
                let last = t.last.as_ref().map(wire::get_log_id).transpose().map_err(malformed)?;
                let from = wire::get_vote(&t.from).map_err(malformed)?;
                let request = TransferLeaderRequest::new(from, t.to, last);
                // A refusal by openraft is no failure of the frame: the ordinary election follows.
                let _ = self.raft().handle_transfer_leader(request).await.map_err(stopped)?;
                Ok(Frame::of(kind::TRANSFER, &WireReply::default()))
            }
            kind::PROPOSE if body.len() > PROPOSAL_MAX => {
                Err(malformed(WireError("command is larger than any command")))
            }
            kind::PROPOSE => {
                let done = self.propose_here(body.to_vec(), FORWARDED_MAX).await;
                Ok(Frame::of(kind::PROPOSE, &reply_of(done)))
            }
            kind::READ_INDEX => {
                let index = self.read_index_here(FORWARDED_MAX).await;
                let done = index.map(|index| (index, Vec::new()));
                Ok(Frame::of(kind::READ_INDEX, &reply_of(done)))
            }
            kind::PING => Ok(Frame::of(kind::PING, &WireReply::default())),
            _ => Err(malformed(WireError("frame of an unknown kind"))),
        }
    }

    async fn handle_chunk(&self, from: u64, body: &[u8]) -> Answer {
        let chunk = wire::decode::<WireChunk>(body, "snapshot").map_err(malformed)?;
        let vote = wire::get_vote(&chunk.vote).map_err(malformed)?;
        let whole = self.arriving().take(from, &chunk, vote).map_err(malformed)?;
        let answer = match whole {
            None => vote,
            Some(bytes) => {
                let meta = wire::get_meta(&chunk.meta).map_err(malformed)?;
                let snapshot = Snapshot { meta, snapshot: bytes };
                self.raft().install_full_snapshot(vote, snapshot).await.map_err(stopped)?.vote
            }
        };
        Ok(Frame::of(kind::SNAPSHOT, &wire::put_vote(&answer)))
    }
}

impl Arriving {
    /// Adds a piece; returns all bytes when it was the last one.
    fn take(&self, from: u64, chunk: &WireChunk, vote: Vote) -> Result<Option<Vec<u8>>, WireError> {
        if chunk.total > SNAPSHOT_MAX {
            return Err(WireError("snapshot is larger than any snapshot"));
        }
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if chunk.offset == 0 {
            all.insert(from, Partial { vote, bytes: Vec::new() });
        }
        let partial = all.get_mut(&from).ok_or(WireError("snapshot without a beginning"))?;
        let have = partial.bytes.len() as u64;
        let fits = have.saturating_add(chunk.data.len() as u64) <= chunk.total;
        if partial.vote != vote || have != chunk.offset || !fits {
            all.remove(&from);
            return Err(WireError("snapshot's pieces do not follow each other"));
        }
        partial.bytes.extend_from_slice(&chunk.data);
        if partial.bytes.len() as u64 == chunk.total {
            return Ok(all.remove(&from).map(|p| p.bytes));
        }
        Ok(None)
    }
}
