//! A disk that fails under a running store: nothing is acknowledged any more, and Raft says that it has stopped.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use common::{FLEET, Fleet, PATIENCE, eventually, founding, note, times_applied, uuid_of};
use raft_store::disk::{Durability, Fdatasync, SledDisk, SledOptions, Snapshots};
use raft_store::raft::{LogStore, Profile, Store, StoreConfig};

#[derive(Default)]
struct Failing(AtomicBool);

impl Durability for Failing {
    fn sync(&self, file: &File, path: &Path) -> io::Result<()> {
        if self.0.load(Ordering::SeqCst) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        Fdatasync.sync(file, path)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_stops_raft_instead_of_lying() {
    let fleet = Fleet::empty();
    let failing = Arc::new(Failing::default());
    let dir = fleet.dir(1).join("store");
    std::fs::create_dir_all(fleet.dir(1)).unwrap();
    let mut options = SledOptions::new(&dir, &format!("fleet={FLEET} node=1"));
    options.durability = failing.clone();
    let (disk, loaded) = SledDisk::open(&options).unwrap();
    let log = LogStore::new(Arc::new(disk), loaded).unwrap();
    let snapshots = Snapshots::open(&dir.join("snap")).unwrap();
    let config = StoreConfig { id: 1, fleet: FLEET, profile: Profile::Lan };
    let store = Store::start(&config, log, snapshots, fleet.wire(1)).await.unwrap();
    store.found(uuid_of(1)).await.unwrap();
    store.propose(&founding(), PATIENCE).await.unwrap();
    store.propose(&note(1, 10), PATIENCE).await.unwrap();
    failing.0.store(true, Ordering::SeqCst);
    let refused = store.propose(&note(2, 10), Duration::from_secs(5)).await;
    assert!(refused.is_err(), "{refused:?}");
    let why = eventually("raft to stop", || store.status().stopped).await;
    assert!(why.contains("disk failed"), "{why}");
    store.stop().await;
    drop(store);
    // With room on the disk again, all that was acknowledged is there.
    let again = fleet.start(1).await;
    let read = again.read_linear(PATIENCE).await.unwrap();
    assert_eq!(times_applied(&read.state, 1), 1);
}
