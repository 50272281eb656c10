//! openraft's log storage over the durable disk: live entries in memory, changes through the writer. Shell.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::io;
use std::ops::{Bound, RangeBounds};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use openraft::storage::{IOFlushed, RaftLogStorage};
use openraft::{EntryPayload, LogState, OptionalSend, RaftLogReader};
use prost::Message as _;

use super::types::{Entry, LogId, Opaque, TypeConfig, Vote};
use super::wire::{self, WireLogId, WireVote};
use crate::disk::{Disk, Done, Loaded, MetaKey, Record, Write};

/// How much of the log travels in one frame, in bytes, unless a single entry is larger.
const FRAME_BYTES: usize = 1024 * 1024;

/// The log of one node. Clones share it.
#[derive(Clone)]
pub struct LogStore {
    disk: Arc<dyn Disk>,
    live: Arc<Mutex<Live>>,
}

/// The part that is read: entries may be here a moment before they are durable, as Raft allows.
#[derive(Default)]
struct Live {
    log: BTreeMap<u64, Entry>,
    vote: Option<Vote>,
    committed: Option<LogId>,
    purged: Option<LogId>,
}

fn invalid(e: impl std::error::Error + Send + Sync + 'static) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, e)
}

impl LogStore {
    /// Starts from what the disk holds.
    ///
    /// # Errors
    /// When intact bytes do not decode: they were written by something else.
    pub fn new(disk: Arc<dyn Disk>, loaded: Loaded) -> io::Result<Self> {
        let mut live = Live::default();
        for (index, bytes) in loaded.log {
            let record = Record::from_bytes(&bytes).map_err(invalid)?;
            live.log.insert(index, wire::get_entry(record).map_err(invalid)?);
        }
        let log_id = |key| -> io::Result<Option<LogId>> {
            let bytes = loaded.meta.get(&key);
            let found =
                bytes.map(|b| WireLogId::decode(b.as_slice()).map_err(invalid)).transpose()?;
            found.as_ref().map(wire::get_log_id).transpose().map_err(invalid)
        };
        live.purged = log_id(MetaKey::Purged)?;
        // It is noted without waiting, so that it may outlive a power cut that takes the entries up to it; those were
        // never acknowledged, and what is left of the log is committed.
        let last = live.log.last_key_value().map(|(_, e)| e.log_id).or(live.purged);
        let noted = log_id(MetaKey::Committed)?;
        live.committed = noted.and_then(|id| if Some(id) > last { last } else { Some(id) });
        if let Some(bytes) = loaded.meta.get(&MetaKey::Vote) {
            let vote = WireVote::decode(bytes.as_slice()).map_err(invalid)?;
            live.vote = Some(wire::get_vote(&vote).map_err(invalid)?);
        }
        Ok(Self { disk, live: Arc::new(Mutex::new(live)) })
    }

    /// Up to where the log was purged.
    pub(crate) fn purged(&self) -> Option<u64> {
        self.live().purged.map(|id| id.index)
    }

    fn live(&self) -> MutexGuard<'_, Live> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn commit(&self, batch: Vec<Write>) -> io::Result<()> {
        let (tx, rx) = tokio::sync::oneshot::channel();
        let done: Done = Box::new(move |result| {
            // The waiter is gone only when the daemon stops.
            let _ = tx.send(result);
        });
        self.disk.commit(batch, done);
        rx.await.map_err(io::Error::other)?.map_err(io::Error::other)
    }
}

fn size_of_payload(e: &Entry) -> usize {
    match &e.payload {
        EntryPayload::Normal(Opaque(bytes)) => bytes.len(),
        EntryPayload::Blank | EntryPayload::Membership(_) => 0,
    }
}

impl RaftLogReader<TypeConfig> for LogStore {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: RB,
    ) -> Result<Vec<Entry>, io::Error> {
        // A map panics at a range that ends before it begins.
        let from = match range.start_bound() {
            Bound::Included(from) => *from,
            Bound::Excluded(before) => before.saturating_add(1),
            Bound::Unbounded => 0,
        };
        let live = self.live();
        let entries = live.log.range(from..).map(|(_, e)| e);
        Ok(entries.take_while(|e| range.contains(&e.log_id.index)).cloned().collect())
    }

    /// Bounded in bytes, as what follows travels in one frame; at least one entry.
    async fn limited_get_log_entries(
        &mut self,
        start: u64,
        end: u64,
    ) -> Result<Vec<Entry>, io::Error> {
        let mut entries = self.try_get_log_entries(start..end).await?;
        let mut sum = 0;
        let fitting = entries.iter().take_while(|e| {
            sum += size_of_payload(e);
            sum <= FRAME_BYTES
        });
        let fitting = fitting.count().max(1);
        entries.truncate(fitting);
        Ok(entries)
    }

    async fn read_vote(&mut self) -> Result<Option<Vote>, io::Error> {
        Ok(self.live().vote)
    }
}

impl RaftLogStorage<TypeConfig> for LogStore {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> Result<LogState<TypeConfig>, io::Error> {
        let live = self.live();
        let last = live.log.last_key_value().map(|(_, e)| e.log_id);
        Ok(LogState { last_purged_log_id: live.purged, last_log_id: last.or(live.purged) })
    }

    async fn get_log_reader(&mut self) -> Self::LogReader {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> Result<(), io::Error> {
        self.commit(vec![Write::Meta(MetaKey::Vote, wire::put_vote(vote).encode_to_vec())]).await?;
        self.live().vote = Some(*vote);
        Ok(())
    }

    /// Not waited for: a lost value only means that the leader has to say again what is committed.
    async fn save_committed(&mut self, committed: Option<LogId>) -> Result<(), io::Error> {
        self.live().committed = committed;
        if let Some(id) = committed {
            self.disk.note(MetaKey::Committed, wire::put_log_id(&id).encode_to_vec());
        }
        Ok(())
    }

    async fn read_committed(&mut self) -> Result<Option<LogId>, io::Error> {
        Ok(self.live().committed)
    }

    async fn append<I>(
        &mut self,
        entries: I,
        callback: IOFlushed<TypeConfig>,
    ) -> Result<(), io::Error>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let entries: Vec<Entry> = entries.into_iter().collect();
        let write = |e: &Entry| Write::Append {
            index: e.log_id.index,
            bytes: wire::put_entry(e).to_bytes(),
        };
        let batch = entries.iter().map(write).collect();
        self.live().log.extend(entries.into_iter().map(|e| (e.log_id.index, e)));
        let done: Done =
            Box::new(move |result| callback.io_completed(result.map_err(io::Error::other)));
        self.disk.commit(batch, done);
        Ok(())
    }

    async fn truncate_after(&mut self, last: Option<LogId>) -> Result<(), io::Error> {
        let from = last.map_or(0, |id| id.index + 1);
        self.live().log.split_off(&from);
        self.commit(vec![Write::TruncateFrom(from)]).await
    }

    async fn purge(&mut self, to: LogId) -> Result<(), io::Error> {
        {
            let mut live = self.live();
            live.purged = live.purged.max(Some(to));
            live.log = live.log.split_off(&(to.index + 1));
        }
        let purged = Write::Meta(MetaKey::Purged, wire::put_log_id(&to).encode_to_vec());
        self.commit(vec![purged, Write::PurgeTo(to.index)]).await
    }
}
