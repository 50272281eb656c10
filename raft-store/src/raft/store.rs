//! The daemon's handle on replicated state: propose, read, watch, and change the membership. Shell.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use openraft::errors::{ClientWriteError, LinearizableReadError, RaftError};
use openraft::async_runtime::{Instant as _, WatchReceiver as _};
use openraft::{ChangeMembers, Config, Raft, ReadPolicy, SnapshotPolicy};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};
use uuid::Uuid;

use super::inbound::Arriving;
use super::log::LogStore;
use super::machine::{Published, StateMachine};
use super::net::{Frame, Network, Transport, kind};
use super::types::{Member, Opaque, TypeConfig};
use super::wire::{self, WireReply};
use crate::apply::{Outcome, Proposal, codec};
use crate::disk::{Disk, OpenError, SledDisk, SledOptions, Snapshots};
use crate::model::State;

/// Without a leader for this long, calls are answered instead of waiting on.
const LEADERLESS_MAX: Duration = Duration::from_secs(2);
/// The longest that a leader waits for its quorum.
const QUORUM_MAX: Duration = Duration::from_secs(2);
/// How often a call looks again for a leader.
const RETRY: Duration = Duration::from_millis(25);

/// Raft's timers, by the round trip between voters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Profile {
    /// Heartbeat 25 ms, election 80 to 120 ms after the lease.
    Fast,
    /// Heartbeat 50 ms, election 150 to 250 ms after the lease.
    #[default]
    Lan,
    /// Heartbeat 150 ms, election 500 to 800 ms after the lease.
    Wan,
}

impl Profile {
    fn timers(self) -> (u64, u64, u64) {
        match self {
            Self::Fast => (25, 80, 120),
            Self::Lan => (50, 150, 250),
            Self::Wan => (150, 500, 800),
        }
    }
}

/// What a store needs to know to open.
#[derive(Clone, Debug)]
pub struct StoreConfig {
    /// This node's Raft id.
    pub id: u64,
    /// The fleet's identity: a store of another fleet is refused.
    pub fleet: Uuid,
    /// Raft's timers.
    pub profile: Profile,
}

/// Why a store could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The disk part.
    #[error(transparent)]
    Open(OpenError),
    /// Snapshot or log do not decode.
    #[error("the store's content is not usable: {0}")]
    Content(String),
    /// openraft refused to start.
    #[error("raft did not start: {0}")]
    Raft(String),
}

/// Why a command was not proposed, or its fate is not known. A retry with the same request id is safe.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ProposeError {
    /// This node does not lead (only for calls that stay here).
    #[error("this node is not the leader")]
    NotLeader,
    /// Nobody leads.
    #[error("no leader: the voters {voters:?} have not elected one")]
    NoLeader {
        /// Who votes.
        voters: Vec<u64>,
    },
    /// The leader lacks a majority.
    #[error("no quorum: a majority of the voters {voters:?} does not answer")]
    NoQuorum {
        /// Who votes.
        voters: Vec<u64>,
    },
    /// No answer in time.
    #[error("no answer within {0:?}")]
    Timeout(Duration),
    /// Raft has stopped on this node.
    #[error("raft has stopped on this node: {0}")]
    Stopped(String),
}

/// Why a linearizable read failed; a stale one is always possible.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ReadError {
    /// Nobody leads.
    #[error("no leader: the voters {voters:?} have not elected one")]
    NoLeader {
        /// Who votes.
        voters: Vec<u64>,
    },
    /// The leader lacks a majority.
    #[error("no quorum: a majority of the voters {voters:?} does not answer")]
    NoQuorum {
        /// Who votes.
        voters: Vec<u64>,
    },
    /// No answer in time.
    #[error("no answer within {0:?}")]
    Timeout(Duration),
}

/// How Raft stands on this node.
#[derive(Clone, Debug, Default)]
pub struct RaftStatus {
    /// This node.
    pub id: u64,
    /// Who leads, as far as this node knows.
    pub leader: Option<u64>,
    /// The current term.
    pub term: u64,
    /// The last log index.
    pub last_log: u64,
    /// The last applied index.
    pub applied: u64,
    /// Who votes.
    pub voters: BTreeSet<u64>,
    /// Who only listens.
    pub learners: BTreeSet<u64>,
    /// On the leader: how long ago a majority last answered.
    pub quorum_acked: Option<Duration>,
    /// On the leader: how far each follower's log matches.
    pub matched: BTreeMap<u64, u64>,
    /// On the leader: whether a membership change is under way.
    pub changing: bool,
    /// Why Raft has stopped here, if it has.
    pub stopped: Option<String>,
}

/// A node's handle on replicated state. Clones share it.
pub struct Store<T: Transport> {
    inner: Arc<Inner<T>>,
}

impl<T: Transport> Clone for Store<T> {
    fn clone(&self) -> Self {
        Self { inner: self.inner.clone() }
    }
}

struct Inner<T> {
    id: u64,
    raft: Raft<TypeConfig, StateMachine>,
    transport: T,
    published: watch::Receiver<Published>,
    arriving: Arriving,
}

fn raft_config(profile: Profile) -> Result<Config, StoreError> {
    let (heartbeat, min, max) = profile.timers();
    let config = Config {
        cluster_name: "skein".into(),
        heartbeat_interval: heartbeat,
        election_timeout_min: min,
        election_timeout_max: max,
        snapshot_policy: SnapshotPolicy::LogsSinceLast(5_000),
        max_in_snapshot_log_to_keep: 1_000,
        purge_batch_size: 256,
        replication_lag_threshold: 8_000,
        install_snapshot_timeout: 2_000,
        enable_pre_vote: Some(true),
        ..Config::default()
    };
    config.validate().map_err(|e| StoreError::Raft(e.to_string()))
}

impl<T: Transport> Store<T> {
    /// Opens the store in `dir` on sled and starts Raft on it.
    ///
    /// # Errors
    /// When the disk's content cannot be used, or Raft does not start.
    pub async fn open(dir: &Path, config: &StoreConfig, transport: T) -> Result<Self, StoreError> {
        let owner = format!("fleet={} node={}", config.fleet, config.id);
        let options = SledOptions::new(&dir.join("store"), &owner);
        let (disk, loaded) = SledDisk::open(&options).map_err(StoreError::Open)?;
        let content = |e: std::io::Error| StoreError::Content(e.to_string());
        let disk: Arc<dyn Disk> = Arc::new(disk);
        let log = LogStore::new(disk, loaded).map_err(content)?;
        let snapshots =
            Snapshots::open(&dir.join("snap")).map_err(|e| StoreError::Content(e.to_string()))?;
        Self::start(config, log, snapshots, transport).await
    }

    /// Starts Raft on a log and snapshots that are open already.
    ///
    /// # Errors
    /// When the snapshot cannot be used, or Raft does not start.
    pub async fn start(
        config: &StoreConfig,
        log: LogStore,
        snapshots: Snapshots,
        transport: T,
    ) -> Result<Self, StoreError> {
        let (machine, published) =
            StateMachine::open(snapshots).map_err(|e| StoreError::Content(e.to_string()))?;
        let network = Network(transport.clone());
        let raft_config = Arc::new(raft_config(config.profile)?);
        let raft = Raft::new(config.id, raft_config, network, log, machine)
            .await
            .map_err(|e| StoreError::Raft(e.to_string()))?;
        let arriving = Arriving::default();
        let inner = Inner { id: config.id, raft, transport, published, arriving };
        Ok(Self { inner: Arc::new(inner) })
    }

    pub(crate) fn raft(&self) -> &Raft<TypeConfig, StateMachine> {
        &self.inner.raft
    }

    pub(crate) fn arriving(&self) -> &Arriving {
        &self.inner.arriving
    }

    /// Makes this node the first and only voter; fine if that has happened already.
    ///
    /// # Errors
    /// When Raft refuses.
    pub async fn found(&self, uuid: Uuid) -> Result<(), StoreError> {
        let raft = self.raft();
        let error = |e: String| StoreError::Raft(e);
        if raft.is_initialized().await.map_err(|e| error(e.to_string()))? {
            return Ok(());
        }
        let members = BTreeMap::from([(self.inner.id, Member { uuid })]);
        raft.initialize(members).await.map_err(|e| error(e.to_string()))
    }

    /// Returns the state that this node has applied, and its index.
    pub fn published(&self) -> Published {
        self.inner.published.borrow().clone()
    }

    /// Returns the state that this node has applied.
    pub fn state(&self) -> Arc<State> {
        self.inner.published.borrow().state.clone()
    }

    /// Waits until more than `after` is applied; returns the new index.
    pub async fn changed(&self, after: u64) -> u64 {
        let mut published = self.inner.published.clone();
        match published.wait_for(|p| p.index > after).await {
            Ok(p) => p.index,
            // Raft has stopped: nothing will change any more, and the daemon ends by itself.
            Err(_) => std::future::pending().await,
        }
    }

    /// Proposes a command, through the leader wherever it is, and returns where it was applied and its outcome.
    ///
    /// # Errors
    /// When there is no leader or no quorum, or `deadline` passes.
    pub async fn propose(&self, p: &Proposal, deadline: Duration) -> Result<(u64, Outcome), ProposeError> {
        let bytes = codec::encode_proposal(p);
        let until = Instant::now() + deadline;
        let mut leaderless: Option<Instant> = None;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(ProposeError::Timeout(deadline));
            }
            let attempt = match self.status().leader {
                Some(me) if me == self.inner.id => self.propose_here(bytes.clone()).await,
                Some(leader) => self.propose_there(leader, &bytes, left).await,
                None => Err(ProposeError::NotLeader),
            };
            match attempt {
                Ok((index, outcome)) => {
                    let outcome = codec::decode_outcome(&outcome)
                        .map_err(|e| ProposeError::Stopped(e.to_string()))?;
                    // The caller sees its own write in this node's state, as far as time allows.
                    let _ = timeout(left, self.changed(index.saturating_sub(1))).await;
                    return Ok((index, outcome));
                }
                Err(ProposeError::NotLeader) => {
                    let since = *leaderless.get_or_insert_with(Instant::now);
                    if since.elapsed() > LEADERLESS_MAX {
                        return Err(ProposeError::NoLeader { voters: self.voters() });
                    }
                    sleep(RETRY.min(left)).await;
                }
                Err(e) => return Err(e),
            }
        }
    }

    fn voters(&self) -> Vec<u64> {
        self.status().voters.into_iter().collect()
    }

    /// Proposes at this node, which must lead.
    pub(crate) async fn propose_here(&self, bytes: Vec<u8>) -> Result<(u64, Vec<u8>), ProposeError> {
        let write = self.raft().client_write(Opaque(bytes));
        match timeout(QUORUM_MAX, write).await {
            Err(_) => Err(ProposeError::NoQuorum { voters: self.voters() }),
            Ok(Ok(done)) => Ok((done.log_id.index, done.data.0)),
            Ok(Err(RaftError::Fatal(e))) => Err(ProposeError::Stopped(e.to_string())),
            Ok(Err(RaftError::APIError(ClientWriteError::ForwardToLeader(_)))) => {
                Err(ProposeError::NotLeader)
            }
            // Discarded or not, the retry carries the same request id.
            Ok(Err(RaftError::APIError(_))) => Err(ProposeError::NotLeader),
        }
    }

    async fn propose_there(&self, leader: u64, bytes: &[u8], left: Duration) -> Result<(u64, Vec<u8>), ProposeError> {
        let frame = Frame { kind: kind::PROPOSE, body: bytes.to_vec().into() };
        let deadline = left.min(QUORUM_MAX + Duration::from_millis(500));
        let answer = self.inner.transport.call(leader, frame, deadline).await;
        // A leader that does not answer may be dead: look again for one.
        let Ok(answer) = answer else { return Err(ProposeError::NotLeader) };
        let reply: WireReply = wire::decode(&answer.body, "reply").map_err(|_| ProposeError::NotLeader)?;
        match reply.status {
            0 => Ok((reply.index, reply.outcome)),
            2 => Err(ProposeError::NoQuorum { voters: self.voters() }),
            _ => Err(ProposeError::NotLeader),
        }
    }

    /// Returns a state that contains every write acknowledged before the call.
    ///
    /// # Errors
    /// When there is no leader or no quorum, or `deadline` passes.
    pub async fn read_linear(&self, deadline: Duration) -> Result<Published, ReadError> {
        let until = Instant::now() + deadline;
        let mut leaderless: Option<Instant> = None;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(ReadError::Timeout(deadline));
            }
            let index = match self.status().leader {
                Some(me) if me == self.inner.id => self.read_index_here().await,
                Some(leader) => self.read_index_there(leader, left).await,
                None => Err(ReadError::NoLeader { voters: self.voters() }),
            };
            match index {
                Ok(index) => {
                    return match timeout(left, self.changed(index.saturating_sub(1))).await {
                        Ok(_) => Ok(self.published()),
                        Err(_) => Err(ReadError::Timeout(deadline)),
                    };
                }
                Err(e @ ReadError::NoLeader { .. }) => {
                    let since = *leaderless.get_or_insert_with(Instant::now);
                    if since.elapsed() > LEADERLESS_MAX {
                        return Err(e);
                    }
                    sleep(RETRY.min(left)).await;
                }
                Err(e) => return Err(e),
            }
        }
    }

    pub(crate) async fn read_index_here(&self) -> Result<u64, ReadError> {
        let read = self.raft().get_read_linearizer(ReadPolicy::ReadIndex);
        match timeout(QUORUM_MAX, read).await {
            Ok(Ok(linearizer)) => Ok(linearizer.read_log_id().index()),
            Ok(Err(RaftError::APIError(LinearizableReadError::QuorumNotEnough(_)))) | Err(_) => {
                Err(ReadError::NoQuorum { voters: self.voters() })
            }
            Ok(Err(_)) => Err(ReadError::NoLeader { voters: self.voters() }),
        }
    }

    async fn read_index_there(&self, leader: u64, left: Duration) -> Result<u64, ReadError> {
        let frame = Frame { kind: kind::READ_INDEX, body: Vec::new().into() };
        let no_leader = || ReadError::NoLeader { voters: self.voters() };
        let deadline = left.min(QUORUM_MAX + Duration::from_millis(500));
        let answer = self.inner.transport.call(leader, frame, deadline).await.map_err(|_| no_leader())?;
        let reply: WireReply = wire::decode(&answer.body, "reply").map_err(|_| no_leader())?;
        match reply.status {
            0 => Ok(reply.index),
            2 => Err(ReadError::NoQuorum { voters: self.voters() }),
            _ => Err(no_leader()),
        }
    }

    /// Returns how Raft stands on this node.
    pub fn status(&self) -> RaftStatus {
        let receiver = self.raft().metrics();
        let m = receiver.borrow_watched();
        let membership = m.membership_config.membership();
        let acked = m.last_quorum_acked.as_ref();
        let matched = m.replication.iter().flatten();
        RaftStatus {
            id: self.inner.id,
            leader: m.current_leader,
            term: m.current_term,
            last_log: m.last_log_index.unwrap_or(0),
            applied: self.inner.published.borrow().index,
            voters: membership.voter_ids().collect(),
            learners: membership.learner_ids().collect(),
            quorum_acked: acked.map(|at| at.elapsed()),
            matched: matched.filter_map(|(id, log)| Some((*id, log.as_ref()?.index))).collect(),
            changing: membership.get_joint_config().len() > 1
                || m.membership_config != m.committed_membership_config,
            stopped: m.running_state.as_ref().err().map(ToString::to_string),
        }
    }

    /// Starts to replicate to a node, without a vote for it. Only at the leader.
    ///
    /// # Errors
    /// When Raft refuses, or does not answer in time.
    pub async fn add_learner(&self, id: u64, uuid: Uuid) -> Result<(), ProposeError> {
        self.change(self.raft().add_learner(id, Member { uuid }, false)).await
    }

    /// Lets exactly these nodes vote; those that stop voting go on listening. Only at the leader.
    ///
    /// # Errors
    /// When Raft refuses, or does not answer in time.
    pub async fn set_voters(&self, voters: BTreeSet<u64>) -> Result<(), ProposeError> {
        self.change(self.raft().change_membership(ChangeMembers::ReplaceAllVoters(voters), true)).await
    }

    /// Stops replicating to a learner. Only at the leader.
    ///
    /// # Errors
    /// When Raft refuses, or does not answer in time.
    pub async fn remove_learner(&self, id: u64) -> Result<(), ProposeError> {
        self.change(self.raft().change_membership(ChangeMembers::RemoveNodes([id].into()), true)).await
    }

    async fn change<R, E: std::fmt::Display>(
        &self,
        change: impl Future<Output = Result<R, E>>,
    ) -> Result<(), ProposeError> {
        match timeout(QUORUM_MAX * 5, change).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(e)) => Err(ProposeError::Stopped(e.to_string())),
            Err(_) => Err(ProposeError::NoQuorum { voters: self.voters() }),
        }
    }

    /// Hands leadership to another voter. Only at the leader; the election follows at once.
    ///
    /// # Errors
    /// When Raft has stopped.
    pub async fn transfer_leader(&self, to: u64) -> Result<(), ProposeError> {
        let done = self.raft().trigger().transfer_leader(to).await;
        done.map_err(|e| ProposeError::Stopped(e.to_string()))
    }

    /// Makes a snapshot now.
    ///
    /// # Errors
    /// When Raft has stopped.
    pub async fn snapshot(&self) -> Result<(), ProposeError> {
        self.raft().trigger().snapshot().await.map_err(|e| ProposeError::Stopped(e.to_string()))
    }

    /// Drops log entries up to `index` that a snapshot covers.
    ///
    /// # Errors
    /// When Raft has stopped.
    pub async fn purge(&self, index: u64) -> Result<(), ProposeError> {
        self.raft().trigger().purge_log(index).await.map_err(|e| ProposeError::Stopped(e.to_string()))
    }

    /// Stops Raft on this node and closes its log.
    pub async fn stop(&self) {
        // An error means that it had stopped already.
        let _ = self.raft().shutdown().await;
    }
}
