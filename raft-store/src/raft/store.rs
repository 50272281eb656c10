//! The daemon's handle on replicated state: open, watch, and change the membership. Shell.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use crate::rt::{NodeRt, watch};
use openraft::AsyncRuntime as _;
use openraft::async_runtime::Instant as _;
use openraft::{ChangeMembers, Config, Raft, SnapshotPolicy};
use uuid::Uuid;

use super::calls::ProposeError;
use super::inbound::Arriving;
use super::log::LogStore;
use super::machine::{self, Published, StateMachine};
use super::net::{Network, Transport};
use super::ticks::{self, Heard, Timers};
use super::types::{Member, TypeConfig};
use crate::disk::{Disk, Disks, Loaded, OpenError, Sled, SledOptions, SnapshotError, Snapshots};
use crate::model::State;

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
    /// The last index that a snapshot of this node covers.
    pub snapshot: u64,
    /// The last index that was purged from this node's log.
    pub purged: u64,
    /// Who votes.
    pub voters: BTreeSet<u64>,
    /// Who only listens.
    pub learners: BTreeSet<u64>,
    /// On the leader: how long ago a majority last answered.
    pub quorum_acked: Option<Duration>,
    /// On the leader: how far each follower's log matches.
    pub matched: BTreeMap<u64, u64>,
    /// On the leader: whether a membership change is not committed yet.
    pub changing: bool,
    /// While a majority of the former and of the next voters must agree: the next ones.
    pub joint: Option<BTreeSet<u64>>,
    /// Why Raft has stopped here, if it has.
    pub stopped: Option<String>,
}

impl RaftStatus {
    /// Tells whether this node leads, as far as it knows itself.
    pub fn leads(&self) -> bool {
        self.leader == Some(self.id)
    }
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

pub(super) struct Inner<T> {
    id: u64,
    pub(super) raft: Raft<TypeConfig, StateMachine>,
    transport: T,
    published: watch::Receiver<Published>,
    arriving: Arriving,
    pub(super) heard: Heard,
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
        // A leader may have sent entries that its own disk then lost; going on in the same term it would give their
        // indexes, and so their log ids, to others.
        enable_leader_restore: Some(false),
        ..Config::default()
    };
    config.validate().map_err(|e| StoreError::Raft(e.to_string()))
}

/// Why log and snapshots cannot be used.
enum Unusable {
    /// For now, or by this release: they are left alone.
    Content(String),
    /// They are not what was written.
    Damaged(String),
}

fn open_parts(
    disks: &dyn Disks,
    (disk, loaded): (Arc<dyn Disk>, Loaded),
    dir: &Path,
) -> Result<(LogStore, Snapshots), Unusable> {
    let content = |e: &dyn std::error::Error| Unusable::Content(e.to_string());
    let log = LogStore::new(disk, loaded).map_err(|e| content(&e))?;
    // Inside the store's folder, so that they are put aside with it and never read by another node's daemon.
    let snapshots = disks.snapshots(&dir.join("snap")).map_err(|e| content(&e))?;
    let newest = snapshots.newest().map_err(|e| match e {
        SnapshotError::Damaged(_) => Unusable::Damaged(e.to_string()),
        SnapshotError::Io { .. } => content(&e),
    })?;
    let covered = newest.map(|bytes| machine::covered(&bytes)).transpose();
    let covered = covered.map_err(|e| content(&e))?.flatten();
    match log.purged() {
        Some(purged) if covered.is_none_or(|index| index < purged) => Err(Unusable::Damaged(
            format!("its snapshots end before entry {purged}, up to which the log was purged"),
        )),
        _ => Ok((log, snapshots)),
    }
}

/// How a store's folder names its owner.
fn owner(fleet: Uuid, id: u64) -> String {
    format!("fleet={fleet} node={id}")
}

/// Tells whether the store in `dir` of this node was damaged and put aside: its id must not come back.
///
/// # Errors
/// When the folder cannot be read.
pub fn is_put_aside(disks: &dyn Disks, dir: &Path, fleet: Uuid, id: u64) -> std::io::Result<bool> {
    disks.is_put_aside(&dir.join("store"), &owner(fleet, id))
}

/// Tells whether a daemon has the store in `dir` open.
pub fn is_in_use(disks: &dyn Disks, dir: &Path) -> bool {
    disks.is_in_use(&dir.join("store"))
}

impl StoreError {
    /// What to do about it, on the machine of node `name`.
    pub fn next(&self, name: &str) -> String {
        match self {
            Self::Open(OpenError::InUse(_)) => {
                "see `skein status`; to start it anew: systemctl restart skein".into()
            }
            Self::Open(OpenError::Newer { .. }) => {
                "install the newer skein on this machine again; the store was left as it is".into()
            }
            Self::Open(OpenError::Damaged { .. } | OpenError::Retired { .. }) => format!(
                "skein ticket create on another member, then here: skein join TICKET --replaces {name}"
            ),
            Self::Open(OpenError::Foreign { .. }) => {
                "put that fleet's state folder back, or empty this one and join with a ticket"
                    .into()
            }
            Self::Open(OpenError::Io { .. }) => {
                "free space or mend the disk, then start the daemon again: systemctl start skein"
                    .into()
            }
            Self::Content(_) | Self::Raft(_) => format!(
                "see the log; to give up what lies here: empty the state folder, then skein join TICKET --replaces {name}"
            ),
        }
    }
}

impl<T: Transport> Store<T> {
    /// Opens the store in `dir` on sled and starts Raft on it.
    ///
    /// # Errors
    /// When the disk's content cannot be used, or Raft does not start.
    pub async fn open(dir: &Path, config: &StoreConfig, transport: T) -> Result<Self, StoreError> {
        Self::open_on(&Sled, dir, config, transport).await
    }

    /// Opens the store in `dir` with its log on one of these disks, and starts Raft on it.
    ///
    /// # Errors
    /// When the disk's content cannot be used, or Raft does not start.
    pub async fn open_on(
        disks: &dyn Disks,
        dir: &Path,
        config: &StoreConfig,
        transport: T,
    ) -> Result<Self, StoreError> {
        let options = SledOptions::new(&dir.join("store"), &owner(config.fleet, config.id));
        let opened = disks.open(&options).map_err(StoreError::Open)?;
        match open_parts(disks, opened, &options.dir) {
            Ok((log, snapshots)) => Self::start(config, log, snapshots, transport).await,
            Err(Unusable::Content(why)) => Err(StoreError::Content(why)),
            Err(Unusable::Damaged(why)) => Err(StoreError::Open(disks.put_aside(&options, why))),
        }
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
        let (arriving, heard) = (Arriving::default(), Heard::default());
        let inner = Inner { id: config.id, raft, transport, published, arriving, heard };
        let inner = Arc::new(inner);
        let (heartbeat, patience, _) = config.profile.timers();
        let [heartbeat, patience] = [heartbeat, patience].map(Duration::from_millis);
        let ticks = ticks::keep(Arc::downgrade(&inner), Timers { heartbeat, patience });
        // A task of the node, which ends with Raft.
        drop(NodeRt::spawn(ticks));
        Ok(Self { inner })
    }

    pub(crate) fn raft(&self) -> &Raft<TypeConfig, StateMachine> {
        &self.inner.raft
    }

    pub(crate) fn id(&self) -> u64 {
        self.inner.id
    }

    pub(crate) fn transport(&self) -> &T {
        &self.inner.transport
    }

    pub(crate) fn heard(&self) -> &Heard {
        &self.inner.heard
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
        let seen = published.wait_for(|p| p.index > after).await.map(|p| p.index);
        match seen {
            Ok(index) => index,
            // Raft has stopped: nothing will change any more, and the daemon ends by itself.
            Err(_) => std::future::pending().await,
        }
    }

    /// Returns who leads, as far as this node knows: all of [`Self::status`] that hot paths want, without its copies.
    pub fn leader(&self) -> Option<u64> {
        self.raft().metrics().borrow().current_leader
    }

    /// Returns the term in which this node leads, if it does.
    pub fn leads(&self) -> Option<u64> {
        let receiver = self.raft().metrics();
        let m = receiver.borrow();
        (m.current_leader == Some(self.inner.id)).then_some(m.current_term)
    }

    /// Returns who votes, in any of the configurations that are in force.
    pub fn voters(&self) -> BTreeSet<u64> {
        self.raft().metrics().borrow().membership_config.membership().voter_ids().collect()
    }

    /// Returns why Raft has stopped on this node, if it has.
    pub fn stopped(&self) -> Option<String> {
        self.raft().metrics().borrow().running_state.as_ref().err().map(ToString::to_string)
    }

    /// Returns how Raft stands on this node.
    pub fn status(&self) -> RaftStatus {
        let receiver = self.raft().metrics();
        let m = receiver.borrow();
        let membership = m.membership_config.membership();
        let configs = membership.get_joint_config();
        let acked = m.last_quorum_acked.as_ref();
        let matched = m.replication.iter().flatten();
        RaftStatus {
            id: self.inner.id,
            leader: m.current_leader,
            term: m.current_term,
            last_log: m.last_log_index.unwrap_or(0),
            applied: self.inner.published.borrow().index,
            snapshot: m.snapshot.as_ref().map_or(0, |id| id.index),
            purged: m.purged.as_ref().map_or(0, |id| id.index),
            voters: membership.voter_ids().collect(),
            learners: membership.learner_ids().collect(),
            quorum_acked: acked.map(|at| at.elapsed()),
            matched: matched.filter_map(|(id, log)| Some((*id, log.as_ref()?.index))).collect(),
            changing: m.membership_config != m.committed_membership_config,
            joint: (configs.len() > 1).then(|| configs.last().cloned().unwrap_or_default()),
            stopped: m.running_state.as_ref().err().map(ToString::to_string),
        }
    }

    /// Starts to replicate to these nodes, without votes for them. Only at the leader.
    ///
    /// # Errors
    /// When Raft refuses, or does not answer in time.
    pub async fn add_learners(&self, nodes: BTreeMap<u64, Uuid>) -> Result<(), ProposeError> {
        let nodes = nodes.into_iter().map(|(id, uuid)| (id, Member { uuid })).collect();
        self.change(self.raft().change_membership(ChangeMembers::AddNodes(nodes), true)).await
    }

    /// Lets exactly these nodes vote; those that stop voting go on listening. Only at the leader.
    ///
    /// # Errors
    /// When Raft refuses, or does not answer in time.
    pub async fn set_voters(&self, voters: BTreeSet<u64>) -> Result<(), ProposeError> {
        self.change(self.raft().change_membership(ChangeMembers::ReplaceAllVoters(voters), true))
            .await
    }

    /// Stops replicating to a learner. Only at the leader.
    ///
    /// # Errors
    /// When Raft refuses, or does not answer in time.
    pub async fn remove_learner(&self, id: u64) -> Result<(), ProposeError> {
        self.change(self.raft().change_membership(ChangeMembers::RemoveNodes([id].into()), true))
            .await
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
        self.raft()
            .trigger()
            .purge_log(index)
            .await
            .map_err(|e| ProposeError::Stopped(e.to_string()))
    }

    /// Stops Raft on this node and closes its log.
    pub async fn stop(&self) {
        // An error means that it had stopped already.
        let _ = self.raft().shutdown().await;
    }
}
