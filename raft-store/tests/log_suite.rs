//! openraft's conformance tests on the durable log. Every read is answered by a store just opened from its files.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::fmt::Debug;
use std::io;
use std::ops::RangeBounds;
use std::path::PathBuf;
use std::sync::Arc;

use openraft::alias::{LogIdOf, VoteOf};
use openraft::storage::{IOFlushed, RaftLogStorage, RaftLogStorageExt as _};
use openraft::testing::log::{StoreBuilder, Suite};
use openraft::testing::{blank_ent, log_id};
use openraft::{LogState, OptionalSend, RaftLogReader, RaftTypeConfig, StorageError};
use raft_store::disk::{SledDisk, SledOptions, Snapshots};
use raft_store::raft::{LogStore, StateMachine, TypeConfig};
use raft_store::rt::NodeRt;
use tempfile::TempDir;
use tokio::sync::Mutex;

type Entry = <TypeConfig as RaftTypeConfig>::Entry;
type LogId = LogIdOf<TypeConfig>;
type Vote = VoteOf<TypeConfig>;

/// A log that is closed and opened again before every read.
#[derive(Clone)]
struct Reopening {
    dir: PathBuf,
    open: Arc<Mutex<Option<LogStore>>>,
}

impl Reopening {
    fn load(&self) -> LogStore {
        let options = SledOptions::new(&self.dir, "fleet=a node=0");
        let (disk, loaded) = SledDisk::open(&options).unwrap();
        LogStore::new(Arc::new(disk), loaded).unwrap()
    }

    async fn reopened<R>(&self, read: impl AsyncFnOnce(&mut LogStore) -> R) -> R {
        let mut open = self.open.lock().await;
        drop(open.take());
        read(open.insert(self.load())).await
    }

    async fn current<R>(&self, write: impl AsyncFnOnce(&mut LogStore) -> R) -> R {
        let mut open = self.open.lock().await;
        write(open.get_or_insert_with(|| self.load())).await
    }
}

impl RaftLogReader<TypeConfig> for Reopening {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: RB,
    ) -> Result<Vec<Entry>, io::Error> {
        self.reopened(async |log| log.try_get_log_entries(range).await).await
    }

    async fn read_vote(&mut self) -> Result<Option<Vote>, io::Error> {
        self.reopened(async |log| log.read_vote().await).await
    }
}

impl RaftLogStorage<TypeConfig> for Reopening {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> Result<LogState<TypeConfig>, io::Error> {
        self.reopened(async |log| log.get_log_state().await).await
    }

    async fn get_log_reader(&mut self) -> Self {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> Result<(), io::Error> {
        self.current(async |log| log.save_vote(vote).await).await
    }

    async fn save_committed(&mut self, committed: Option<LogId>) -> Result<(), io::Error> {
        self.current(async |log| log.save_committed(committed).await).await
    }

    async fn read_committed(&mut self) -> Result<Option<LogId>, io::Error> {
        self.reopened(async |log| log.read_committed().await).await
    }

    async fn append<I>(&mut self, entries: I, done: IOFlushed<TypeConfig>) -> Result<(), io::Error>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        self.current(async |log| {
            // Raft never appends without a vote, and a log without one counts as damaged; these tests do.
            if log.read_vote().await?.is_none() {
                log.save_vote(&Vote::new(0, 0)).await?;
            }
            log.append(entries, done).await
        })
        .await
    }

    async fn truncate_after(&mut self, last: Option<LogId>) -> Result<(), io::Error> {
        self.current(async |log| log.truncate_after(last).await).await
    }

    async fn purge(&mut self, to: LogId) -> Result<(), io::Error> {
        self.current(async |log| log.purge(to).await).await
    }
}

struct Builder;

impl StoreBuilder<TypeConfig, Reopening, StateMachine, TempDir> for Builder {
    async fn build(&self) -> Result<(TempDir, Reopening, StateMachine), StorageError<TypeConfig>> {
        let temp = tempfile::tempdir().unwrap();
        let log = Reopening { dir: temp.path().join("store"), open: Arc::default() };
        let snapshots = Snapshots::open(&temp.path().join("snap")).unwrap();
        let (machine, _) = StateMachine::open(snapshots).unwrap();
        Ok((temp, log, machine))
    }
}

#[test]
fn the_log_is_what_openraft_expects() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(Suite::test_all(Builder)).unwrap();
}

#[test]
fn the_runtime_is_what_openraft_expects() {
    openraft_rt::testing::Suite::<NodeRt>::test_all();
}

/// What is committed is noted without waiting, so that a power cut may take entries and leave the note.
#[test]
fn a_note_of_what_is_committed_that_outlives_its_entries_is_bounded_by_them() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let dir = TempDir::new().unwrap();
        let mut store = Reopening { dir: dir.path().to_owned(), open: Arc::default() };
        let entries = [0, 1].map(|index| blank_ent::<TypeConfig>(1, 1, index));
        store.blocking_append(entries).await.unwrap();
        let ahead = Some(log_id::<TypeConfig>(1, 1, 5));
        store.save_committed(ahead).await.unwrap();
        let found = store.read_committed().await.unwrap();
        assert_eq!(found, Some(log_id::<TypeConfig>(1, 1, 1)));
    });
}
