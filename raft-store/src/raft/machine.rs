//! openraft's state machine over the pure `apply`: state in memory, snapshots in files. Shell.

use std::io;
use std::sync::Arc;

use crate::rt::watch;
use futures::{Stream, TryStreamExt as _};
use openraft::storage::{EntryResponder, RaftStateMachine};
use openraft::{EntryPayload, OptionalSend, RaftSnapshotBuilder};
use prost::Message as _;

use super::types::{LogId, Opaque, Snapshot, SnapshotMeta, StoredMembership, TypeConfig};
use super::wire::{self, WireSnapshot};
use crate::apply::{apply_bytes, codec};
use crate::disk::Snapshots;
use crate::model::State;

/// State at a log index, as readers see it.
#[derive(Clone, Debug, Default)]
pub struct Published {
    /// The last applied index.
    pub index: u64,
    /// The state there.
    pub state: Arc<State>,
}

/// The state machine of one node.
pub struct StateMachine {
    snapshots: Snapshots,
    applied: Option<LogId>,
    membership: StoredMembership,
    published: watch::Sender<Published>,
}

impl StateMachine {
    /// Starts from the newest snapshot, if there is one; the log is replayed by openraft.
    ///
    /// # Errors
    /// When the snapshot cannot be read.
    pub fn open(snapshots: Snapshots) -> io::Result<(Self, watch::Receiver<Published>)> {
        let (published, seen) = watch::channel(Published::default());
        let mut machine =
            Self { snapshots, applied: None, membership: StoredMembership::default(), published };
        if let Some(bytes) = machine.snapshots.newest().map_err(io::Error::other)? {
            let (meta, state) = decode(&bytes)?;
            machine.adopt(&meta, state);
        }
        Ok((machine, seen))
    }

    fn adopt(&mut self, meta: &SnapshotMeta, state: State) {
        self.applied = meta.last_log_id;
        self.membership = meta.last_membership.clone();
        let index = self.applied.map_or(0, |id| id.index);
        self.published.send_replace(Published { index, state: Arc::new(state) });
    }

    fn builder(&self) -> SnapshotBuilder {
        SnapshotBuilder {
            snapshots: self.snapshots.clone(),
            meta: SnapshotMeta {
                last_log_id: self.applied,
                last_membership: self.membership.clone(),
            },
            state: self.published.borrow().state.clone(),
        }
    }
}

/// Returns up to which index a snapshot reaches.
///
/// # Errors
/// When it cannot be decoded.
pub(crate) fn covered(bytes: &[u8]) -> io::Result<Option<u64>> {
    let (meta, _) = decode(bytes)?;
    Ok(meta.last_log_id.map(|id| id.index))
}

fn decode(bytes: &[u8]) -> io::Result<(SnapshotMeta, State)> {
    let invalid = |e: String| io::Error::new(io::ErrorKind::InvalidData, e);
    let snapshot = WireSnapshot::decode(bytes).map_err(|e| invalid(e.to_string()))?;
    let meta = wire::get_meta(&snapshot.meta).map_err(|e| invalid(e.to_string()))?;
    let state = codec::decode_state(&snapshot.state).map_err(|e| invalid(e.to_string()))?;
    Ok((meta, state))
}

impl RaftStateMachine<TypeConfig> for StateMachine {
    type SnapshotData = Vec<u8>;
    type SnapshotBuilder = SnapshotBuilder;

    async fn applied_state(&mut self) -> Result<(Option<LogId>, StoredMembership), io::Error> {
        Ok((self.applied, self.membership.clone()))
    }

    async fn apply<S>(&mut self, mut entries: S) -> Result<(), io::Error>
    where
        S: Stream<Item = Result<EntryResponder<TypeConfig>, io::Error>> + Unpin + OptionalSend,
    {
        let mut arrived = Vec::new();
        while let Some(entry) = entries.try_next().await? {
            arrived.push(entry);
        }
        let mut answers = Vec::new();
        let Self { published, applied, membership, .. } = self;
        published.send_modify(|published| {
            // Copied only while somebody still looks at the former state.
            let state = Arc::make_mut(&mut published.state);
            for (entry, responder) in arrived {
                let index = entry.log_id.index;
                let outcome = match entry.payload {
                    EntryPayload::Blank => Vec::new(),
                    EntryPayload::Normal(Opaque(bytes)) => apply_bytes(state, index, &bytes),
                    EntryPayload::Membership(m) => {
                        *membership = StoredMembership::new(Some(entry.log_id), m);
                        Vec::new()
                    }
                };
                *applied = Some(entry.log_id);
                answers.extend(responder.map(|r| (r, outcome)));
            }
            published.index = applied.map_or(0, |id| id.index);
        });
        // Answered after publication, so that a client that was answered reads its own write here.
        for (responder, outcome) in answers {
            responder.send(Opaque(outcome));
        }
        Ok(())
    }

    async fn get_snapshot_builder(&mut self) -> Self::SnapshotBuilder {
        self.builder()
    }

    async fn install_snapshot(
        &mut self,
        meta: &SnapshotMeta,
        bytes: Vec<u8>,
    ) -> Result<(), io::Error> {
        let (_, state) = decode(&bytes)?;
        write(&self.snapshots, meta, &bytes)?;
        self.adopt(meta, state);
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<Snapshot>, io::Error> {
        let Some(bytes) = self.snapshots.newest().map_err(io::Error::other)? else {
            return Ok(None);
        };
        let (meta, _) = decode(&bytes)?;
        Ok(Some(Snapshot { meta, snapshot: bytes }))
    }
}

/// Builds a snapshot from the state as it was when asked.
pub struct SnapshotBuilder {
    snapshots: Snapshots,
    meta: SnapshotMeta,
    state: Arc<State>,
}

impl RaftSnapshotBuilder<TypeConfig> for SnapshotBuilder {
    type SnapshotData = Vec<u8>;

    async fn build_snapshot(&mut self) -> Result<Snapshot, io::Error> {
        let bytes = WireSnapshot {
            meta: wire::put_meta(&self.meta),
            state: codec::encode_state(&self.state),
        }
        .encode_to_vec();
        write(&self.snapshots, &self.meta, &bytes)?;
        Ok(Snapshot { meta: self.meta.clone(), snapshot: bytes })
    }
}

fn write(snapshots: &Snapshots, meta: &SnapshotMeta, bytes: &[u8]) -> io::Result<()> {
    let (term, index) = meta.last_log_id.map_or((0, 0), |id| (id.leader_id.term, id.index));
    snapshots.write(term, index, bytes).map_err(io::Error::other)
}
