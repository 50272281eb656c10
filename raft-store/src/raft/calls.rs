//! Calls on replicated state that need the leader, wherever it is: propose and linearizable reads. Shell.

use std::time::Duration;

use openraft::ReadPolicy;
use openraft::errors::{ClientWriteError, LinearizableReadError, RaftError};
use tokio::time::Instant;

use super::machine::Published;
use super::net::{Frame, Transport, TransportError, kind};
use super::store::Store;
use super::types::{Opaque, TypeConfig};
use super::wire::{self, WireReply};
use crate::apply::{Outcome, Proposal, codec};
use crate::rt::{self, sleep, timeout};

/// Without a leader for this long, a call asks whether a majority is there at all before it waits on.
const LEADERLESS_MAX: Duration = Duration::from_secs(2);
/// The longest that a leader waits for its quorum before whoever called asks for signs of life.
const QUORUM_MAX: Duration = Duration::from_secs(2);
/// How long a follower waits for the leader's answer, which itself may take [`QUORUM_MAX`].
const FORWARD_MAX: Duration = Duration::from_millis(2_500);
/// A change of the membership may have to wait for a newcomer's log.
const CHANGE_MAX: Duration = Duration::from_secs(10);
/// The largest command, in bytes; every follower keeps a copy and passes it on.
pub(crate) const PROPOSAL_MAX: usize = 2 * 1024 * 1024;
/// How often a call looks again for a leader.
const RETRY: Duration = Duration::from_millis(25);
/// Who does not answer within this is called missing.
const PING_MAX: Duration = Duration::from_millis(300);

/// Why a command was not proposed, or its fate is not known. A retry with the same request id is safe.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ProposeError {
    /// This node does not lead (only for calls that stay here).
    #[error("this node is not the leader")]
    NotLeader,
    /// Nobody leads.
    #[error("no leader: of the voters {voters:?}, {missing:?} do not answer")]
    NoLeader {
        /// Who votes.
        voters: Vec<u64>,
        /// Which of them this node cannot reach.
        missing: Vec<u64>,
    },
    /// The leader lacks a majority.
    #[error("no quorum: of the voters {voters:?}, {missing:?} do not answer")]
    NoQuorum {
        /// Who votes.
        voters: Vec<u64>,
        /// Which of them this node cannot reach.
        missing: Vec<u64>,
    },
    /// No answer in time.
    #[error("no answer within {0:?}")]
    Timeout(Duration),
    /// Raft refuses it: a second change of the membership while one is under way, or a command too large.
    #[error("raft refuses it: {0}")]
    Refused(String),
    /// Raft has stopped on this node.
    #[error("raft has stopped on this node: {0}")]
    Stopped(String),
}

/// Why a linearizable read failed; a stale one is always possible.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ReadError {
    /// Nobody leads.
    #[error("no leader: of the voters {voters:?}, {missing:?} do not answer")]
    NoLeader {
        /// Who votes.
        voters: Vec<u64>,
        /// Which of them this node cannot reach.
        missing: Vec<u64>,
    },
    /// The leader lacks a majority.
    #[error("no quorum: of the voters {voters:?}, {missing:?} do not answer")]
    NoQuorum {
        /// Who votes.
        voters: Vec<u64>,
        /// Which of them this node cannot reach.
        missing: Vec<u64>,
    },
    /// No answer in time.
    #[error("no answer within {0:?}")]
    Timeout(Duration),
}

/// What one attempt came to, before anybody was asked who is missing.
pub(crate) enum Attempt {
    /// Try again: leadership is moving, or the leader did not answer.
    NotLeader,
    NoQuorum,
    Stopped(String),
}

fn not_leading<R>(_: R) -> Attempt {
    Attempt::NotLeader
}

/// A call's time, and how long it has found no leader.
struct Patience {
    until: Instant,
    leaderless: Option<Instant>,
}

impl Patience {
    fn new(deadline: Duration) -> Self {
        Self { until: rt::now() + deadline, leaderless: None }
    }

    /// What is left; nothing once the deadline has passed.
    fn left(&self) -> Option<Duration> {
        let left = self.until.saturating_duration_since(rt::now());
        (!left.is_zero()).then_some(left)
    }

    async fn pause(&self) {
        sleep(RETRY.min(self.left().unwrap_or_default())).await;
    }

    /// Waits a little where another attempt is worth it; else returns the voters, and those that give no sign of life.
    async fn ends<T: Transport>(
        &mut self,
        store: &Store<T>,
        failed: &Attempt,
        begun: Instant,
    ) -> Option<(Vec<u64>, Vec<u64>)> {
        if matches!(failed, Attempt::NotLeader) {
            let since = *self.leaderless.get_or_insert(begun);
            if rt::elapsed(since) <= LEADERLESS_MAX {
                self.pause().await;
                return None;
            }
        }
        let roll = store.call_roll().await;
        if roll.majority() && !matches!(failed, Attempt::Stopped(_)) {
            self.leaderless = None;
            self.pause().await;
            return None;
        }
        Some((roll.voters, roll.missing))
    }
}

/// Who answered when all voters were asked for a sign of life.
struct Roll {
    voters: Vec<u64>,
    missing: Vec<u64>,
    /// How many answered that they do not talk to this node.
    refusing: usize,
}

impl Roll {
    /// Whether a majority is there: what failed was late or in between leaders, and is worth another attempt.
    fn majority(&self) -> bool {
        let there = self.voters.len().saturating_sub(self.missing.len() + self.refusing);
        there > self.voters.len() / 2
    }
}

impl<T: Transport> Store<T> {
    /// Proposes a command, through the leader wherever it is, and returns where it was applied and its outcome.
    ///
    /// # Errors
    /// When a majority of the voters is silent, or `deadline` passes.
    pub async fn propose(
        &self,
        p: &Proposal,
        deadline: Duration,
    ) -> Result<(u64, Outcome), ProposeError> {
        let bytes = codec::encode_proposal(p);
        if bytes.len() > PROPOSAL_MAX {
            return Err(ProposeError::Refused(format!(
                "a command of {} bytes is too large, {PROPOSAL_MAX} is the most",
                bytes.len()
            )));
        }
        let mut patience = Patience::new(deadline);
        while let Some(left) = patience.left() {
            let begun = rt::now();
            let attempt = match self.leader() {
                Some(me) if me == self.id() => self.propose_here(bytes.clone(), left).await,
                Some(leader) => self.propose_there(leader, &bytes, left).await,
                None => Err(Attempt::NotLeader),
            };
            match attempt {
                Ok((index, outcome)) => {
                    let outcome = codec::decode_outcome(&outcome)
                        .map_err(|e| ProposeError::Stopped(e.to_string()))?;
                    // The caller sees its own write in this node's state, as far as time allows.
                    let _ = timeout(left, self.changed(index.saturating_sub(1))).await;
                    return Ok((index, outcome));
                }
                Err(Attempt::Stopped(e)) => return Err(ProposeError::Stopped(e)),
                Err(attempt) => {
                    if let Some((voters, missing)) = patience.ends(self, &attempt, begun).await {
                        return Err(match attempt {
                            Attempt::NoQuorum => ProposeError::NoQuorum { voters, missing },
                            _ => ProposeError::NoLeader { voters, missing },
                        });
                    }
                }
            }
        }
        Err(ProposeError::Timeout(deadline))
    }

    /// Proposes at this node, which must lead.
    pub(crate) async fn propose_here(
        &self,
        bytes: Vec<u8>,
        left: Duration,
    ) -> Result<(u64, Vec<u8>), Attempt> {
        let write = self.raft().client_write(Opaque(bytes));
        match timeout(QUORUM_MAX.min(left), write).await {
            Err(_) => Err(Attempt::NoQuorum),
            Ok(Ok(done)) => Ok((done.log_id.index, done.data.0)),
            Ok(Err(RaftError::Fatal(e))) => Err(Attempt::Stopped(e.to_string())),
            // Discarded or not, the retry carries the same request id.
            Ok(Err(RaftError::APIError(_))) => Err(Attempt::NotLeader),
        }
    }

    async fn propose_there(
        &self,
        leader: u64,
        bytes: &[u8],
        left: Duration,
    ) -> Result<(u64, Vec<u8>), Attempt> {
        let reply = self.forward(leader, kind::PROPOSE, bytes.to_vec(), left).await?;
        Ok((reply.index, reply.outcome))
    }

    /// Asks the leader; one that does not answer may be dead, so another is looked for.
    async fn forward(
        &self,
        leader: u64,
        kind: u32,
        body: Vec<u8>,
        left: Duration,
    ) -> Result<WireReply, Attempt> {
        let frame = Frame { kind, body: body.into() };
        let deadline = left.min(FORWARD_MAX);
        let answer = self.transport().call(leader, frame, deadline).await;
        let answer = answer.map_err(not_leading)?;
        let reply: WireReply = wire::decode(&answer.body, "reply").map_err(not_leading)?;
        match reply.status {
            0 => Ok(reply),
            2 => Err(Attempt::NoQuorum),
            _ => Err(Attempt::NotLeader),
        }
    }

    /// Returns a state that contains every write acknowledged before the call.
    ///
    /// # Errors
    /// When a majority of the voters is silent, or `deadline` passes.
    pub async fn read_linear(&self, deadline: Duration) -> Result<Published, ReadError> {
        let mut patience = Patience::new(deadline);
        while let Some(left) = patience.left() {
            let begun = rt::now();
            let index = match self.leader() {
                Some(me) if me == self.id() => self.read_index_here(left).await,
                Some(leader) => self
                    .forward(leader, kind::READ_INDEX, Vec::new(), left)
                    .await
                    .map(|reply| reply.index),
                None => Err(Attempt::NotLeader),
            };
            match index {
                Ok(index) => {
                    return match timeout(left, self.changed(index.saturating_sub(1))).await {
                        Ok(_) => Ok(self.published()),
                        Err(_) => Err(ReadError::Timeout(deadline)),
                    };
                }
                Err(attempt) => {
                    if let Some((voters, missing)) = patience.ends(self, &attempt, begun).await {
                        return Err(match attempt {
                            Attempt::NoQuorum => ReadError::NoQuorum { voters, missing },
                            _ => ReadError::NoLeader { voters, missing },
                        });
                    }
                }
            }
        }
        Err(ReadError::Timeout(deadline))
    }

    /// Asks, at the leader, up to which index a read must wait.
    pub(crate) async fn read_index_here(&self, left: Duration) -> Result<u64, Attempt> {
        let read = self.raft().get_read_linearizer(ReadPolicy::ReadIndex);
        match timeout(QUORUM_MAX.min(left), read).await {
            Ok(Ok(linearizer)) => Ok(linearizer.read_log_id().index()),
            Ok(Err(RaftError::APIError(LinearizableReadError::QuorumNotEnough(_)))) | Err(_) => {
                Err(Attempt::NoQuorum)
            }
            Ok(Err(RaftError::APIError(LinearizableReadError::ForwardToLeader(_)))) => {
                Err(Attempt::NotLeader)
            }
            Ok(Err(RaftError::Fatal(e))) => Err(Attempt::Stopped(e.to_string())),
        }
    }

    /// Asks all voters for a sign of life.
    async fn call_roll(&self) -> Roll {
        let voters: Vec<u64> = self.voters().into_iter().collect();
        let others = voters.iter().filter(|id| **id != self.id());
        let asked = others.map(async |id| {
            let ping = Frame { kind: kind::PING, body: Vec::new().into() };
            (*id, self.transport().call(*id, ping, PING_MAX).await)
        });
        let (mut missing, mut refusing) = (Vec::new(), 0);
        for (id, answer) in futures::future::join_all(asked).await {
            match answer {
                Ok(_) => {}
                Err(TransportError::Refused(_)) => refusing += 1,
                Err(TransportError::Timeout(_) | TransportError::Unreachable(_)) => {
                    missing.push(id);
                }
            }
        }
        Roll { voters, missing, refusing }
    }

    /// Waits for a change of the membership.
    pub(crate) async fn change<R>(
        &self,
        change: impl Future<Output = Result<R, RaftError<TypeConfig, ClientWriteError<TypeConfig>>>>,
    ) -> Result<(), ProposeError> {
        match timeout(CHANGE_MAX, change).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(RaftError::Fatal(e))) => Err(ProposeError::Stopped(e.to_string())),
            Ok(Err(RaftError::APIError(ClientWriteError::ForwardToLeader(_)))) => {
                Err(ProposeError::NotLeader)
            }
            Ok(Err(RaftError::APIError(e))) => Err(ProposeError::Refused(e.to_string())),
            Err(_) => {
                let roll = self.call_roll().await;
                if roll.majority() {
                    return Err(ProposeError::Timeout(CHANGE_MAX));
                }
                Err(ProposeError::NoQuorum { voters: roll.voters, missing: roll.missing })
            }
        }
    }
}
