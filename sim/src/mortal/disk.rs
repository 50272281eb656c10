//! Raft's log on a disk whose batches are counted once they are durable. Shell.

use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use node::env::Machine;
use raft_store::disk::{
    Disk, Done, Loaded, MetaKey, OpenError, SledOptions, SnapshotError, Snapshots, Write,
};

use super::ledger::Ledger;
use super::steps::Watched;

/// The disks of a machine.
pub(super) struct Disks<T> {
    inner: Arc<T>,
    ledger: Arc<Ledger>,
}

impl<T> Disks<T> {
    pub(super) fn new(inner: Arc<T>, ledger: Arc<Ledger>) -> Self {
        Self { inner, ledger }
    }
}

impl<T: Machine> raft_store::disk::Disks for Disks<T> {
    fn open(&self, options: &SledOptions) -> Result<(Arc<dyn Disk>, Loaded), OpenError> {
        let (inner, loaded) = self.inner.disks().open(options)?;
        let watched = Mutex::new(Watched::new(&options.owner, &loaded));
        Ok((Arc::new(Counted { inner, watched, ledger: self.ledger.clone() }), loaded))
    }

    fn snapshots(&self, dir: &Path) -> Result<Snapshots, SnapshotError> {
        self.inner.disks().snapshots(dir)
    }

    fn put_aside(&self, options: &SledOptions, why: String) -> OpenError {
        self.inner.disks().put_aside(options, why)
    }

    fn is_in_use(&self, dir: &Path) -> bool {
        self.inner.disks().is_in_use(dir)
    }

    fn is_put_aside(&self, dir: &Path, owner: &str) -> io::Result<bool> {
        self.inner.disks().is_put_aside(dir, owner)
    }
}

struct Counted {
    inner: Arc<dyn Disk>,
    watched: Mutex<Watched>,
    ledger: Arc<Ledger>,
}

impl Disk for Counted {
    fn commit(&self, batch: Vec<Write>, done: Done) {
        let mut watched = self.watched.lock().unwrap_or_else(PoisonError::into_inner);
        let steps = watched.steps(&batch);
        let ledger = self.ledger.clone();
        // Handed over under the lock, so that batches are named in the order in which they become durable.
        self.inner.commit(
            batch,
            Box::new(move |result| {
                if result.is_ok() {
                    steps.iter().for_each(|step| ledger.step(step));
                }
                done(result);
            }),
        );
    }

    fn note(&self, key: MetaKey, value: Vec<u8>) {
        let mut watched = self.watched.lock().unwrap_or_else(PoisonError::into_inner);
        let steps = watched.steps(&[Write::Meta(key, value.clone())]);
        self.inner.note(key, value);
        // When it becomes durable is nobody's to know.
        steps.iter().for_each(|step| self.ledger.step(step));
    }
}
