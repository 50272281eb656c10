//! Raft's messages over the daemon's transport: one port, frames of opaque bytes. Shell.

use std::future::Future;
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt as _;
use openraft::errors::{NetworkError, RPCError, ReplicationClosed, StreamingError, Unreachable};
use openraft::network::RPCOption;
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, TransferLeaderRequest,
    VoteRequest, VoteResponse,
};
use openraft::{OptionalSend, RaftNetworkFactory, RaftNetworkV2};
use prost::Message;

use super::types::{Member, Snapshot, TypeConfig, Vote};
use super::wire::{
    self, WireAppended, WireChunk, WireReply, WireTransfer, WireVote, WireVoteResponse,
};

/// Kinds of frames. 1 to 31 are this crate's, the daemon's own begin at 32.
pub mod kind {
    /// Append entries, and heartbeats.
    pub const APPEND: u32 = 1;
    /// Request for a vote.
    pub const VOTE: u32 = 2;
    /// Question whether a vote would be granted.
    pub const PRE_VOTE: u32 = 3;
    /// A piece of a snapshot.
    pub const SNAPSHOT: u32 = 4;
    /// Request to take leadership over.
    pub const TRANSFER: u32 = 5;
    /// A command for the leader.
    pub const PROPOSE: u32 = 6;
    /// Question up to which index a read must wait.
    pub const READ_INDEX: u32 = 7;
    /// Sign of life; answered at once by every node.
    pub const PING: u32 = 8;
    /// The last kind of this crate.
    pub const LAST: u32 = 31;
}

/// The size of a piece of a snapshot.
const CHUNK: usize = 256 * 1024;

/// How long a follower may take to make entries durable.
const APPEND_MAX: Duration = Duration::from_secs(1);

/// What daemons send each other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// What it is (see [`kind`]).
    pub kind: u32,
    /// Its bytes.
    pub body: Bytes,
}

impl Frame {
    /// Makes a frame of a message.
    pub(crate) fn of(kind: u32, message: &impl Message) -> Self {
        Self { kind, body: message.encode_to_vec().into() }
    }
}

/// Why a call to another daemon failed.
#[derive(Clone, Debug, thiserror::Error)]
pub enum TransportError {
    /// No answer within the deadline.
    #[error("no answer within {0:?}")]
    Timeout(Duration),
    /// It could not be reached.
    #[error("unreachable: {0}")]
    Unreachable(String),
    /// It was reached, and refused.
    #[error("refused: {0}")]
    Refused(String),
}

/// The only wire between daemons. A node is named by its Raft id; where it is, is the daemon's business.
pub trait Transport: Clone + Send + Sync + 'static {
    /// Sends a frame and returns the answer; never waits longer than `deadline`.
    fn call(
        &self,
        to: u64,
        frame: Frame,
        deadline: Duration,
    ) -> impl Future<Output = Result<Frame, TransportError>> + Send;
}

/// Makes connections for openraft.
#[derive(Clone)]
pub(crate) struct Network<T>(pub(crate) T);

/// The connection to one node.
pub(crate) struct Peer<T> {
    transport: T,
    to: u64,
}

impl<T: Transport> RaftNetworkFactory<TypeConfig> for Network<T> {
    type Network = Peer<T>;

    async fn new_client(&mut self, to: u64, _node: &Member) -> Peer<T> {
        Peer { transport: self.0.clone(), to }
    }
}

type Rpc<R> = Result<R, RPCError<TypeConfig>>;

fn rpc_error(e: &TransportError) -> RPCError<TypeConfig> {
    match e {
        TransportError::Timeout(_) => RPCError::Network(NetworkError::new(e)),
        TransportError::Unreachable(_) | TransportError::Refused(_) => {
            RPCError::Unreachable(Unreachable::new(e))
        }
    }
}

fn malformed(e: wire::WireError) -> RPCError<TypeConfig> {
    RPCError::Network(NetworkError::new(&e))
}

impl<T: Transport> Peer<T> {
    async fn ask<R: Message + Default>(&self, frame: Frame, deadline: Duration) -> Rpc<R> {
        let answer =
            self.transport.call(self.to, frame, deadline).await.map_err(|e| rpc_error(&e))?;
        wire::decode(&answer.body, "answer").map_err(malformed)
    }

    async fn ask_vote(
        &self,
        kind: u32,
        rpc: VoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> Rpc<VoteResponse<TypeConfig>> {
        let frame = Frame::of(kind, &wire::put_vote_request(&rpc));
        let answer: WireVoteResponse = self.ask(frame, option.hard_ttl()).await?;
        wire::get_vote_response(&answer).map_err(malformed)
    }

    async fn send_snapshot(
        &self,
        vote: Vote,
        snapshot: Snapshot,
        per_chunk: Duration,
    ) -> Rpc<Vote> {
        let total = snapshot.snapshot.len() as u64;
        let meta = wire::put_meta(&snapshot.meta);
        let mut offset = 0u64;
        loop {
            let from = usize::try_from(offset).unwrap_or(usize::MAX).min(snapshot.snapshot.len());
            let to = (from + CHUNK).min(snapshot.snapshot.len());
            let data = snapshot.snapshot[from..to].to_vec();
            let chunk =
                WireChunk { vote: wire::put_vote(&vote), meta: meta.clone(), offset, total, data };
            let answer: WireVote = self.ask(Frame::of(kind::SNAPSHOT, &chunk), per_chunk).await?;
            let answered = wire::get_vote(&answer).map_err(malformed)?;
            offset = to as u64;
            if offset >= total || answered > vote {
                return Ok(answered);
            }
        }
    }
}

impl<T: Transport> RaftNetworkV2<TypeConfig> for Peer<T> {
    type SnapshotData = Vec<u8>;

    async fn append_entries(
        &mut self,
        rpc: AppendEntriesRequest<TypeConfig>,
        option: RPCOption,
    ) -> Rpc<AppendEntriesResponse<TypeConfig>> {
        // Entries must cross the wire and reach a disk, which a beat's time does not cover.
        let deadline = if rpc.entries.is_empty() {
            option.hard_ttl()
        } else {
            option.hard_ttl().max(APPEND_MAX)
        };
        let frame = Frame::of(kind::APPEND, &wire::put_append(&rpc));
        let answer: WireAppended = self.ask(frame, deadline).await?;
        wire::get_appended(&answer).map_err(malformed)
    }

    async fn vote(
        &mut self,
        rpc: VoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> Rpc<VoteResponse<TypeConfig>> {
        self.ask_vote(kind::VOTE, rpc, option).await
    }

    async fn pre_vote(
        &mut self,
        rpc: VoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> Rpc<VoteResponse<TypeConfig>> {
        self.ask_vote(kind::PRE_VOTE, rpc, option).await
    }

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: Snapshot,
        cancel: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        option: RPCOption,
    ) -> Result<SnapshotResponse<TypeConfig>, StreamingError<TypeConfig>> {
        let send = self.send_snapshot(vote, snapshot, option.hard_ttl()).fuse();
        futures::pin_mut!(send);
        let cancel = cancel.fuse();
        futures::pin_mut!(cancel);
        futures::select_biased! {
            closed = cancel => Err(StreamingError::Closed(closed)),
            sent = send => match sent {
                Ok(vote) => Ok(SnapshotResponse::new(vote)),
                Err(RPCError::Unreachable(e)) => Err(StreamingError::Unreachable(e)),
                Err(RPCError::Network(e)) => Err(StreamingError::Network(e)),
                Err(RPCError::Timeout(e)) => Err(StreamingError::Timeout(e)),
                Err(e @ RPCError::RemoteError(_)) => Err(StreamingError::Network(NetworkError::from_string(e))),
            },
        }
    }

    async fn transfer_leader(
        &mut self,
        req: TransferLeaderRequest<TypeConfig>,
        option: RPCOption,
    ) -> Rpc<openraft::raft::TransferLeaderResponse<TypeConfig>> {
        let message = WireTransfer {
            from: wire::put_vote(req.from_leader()),
            to: *req.to_node_id(),
            last: req.last_log_id().map(wire::put_log_id),
        };
        // A refusal is followed by the ordinary election, so its detail is not carried.
        let _: WireReply = self.ask(Frame::of(kind::TRANSFER, &message), option.hard_ttl()).await?;
        Ok(Ok(()))
    }
}
