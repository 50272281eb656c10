//! The durable log: a port for batches that are on disk before they are acknowledged, and its sled form.

mod generation;
mod place;
mod record;
mod sled;
mod snapshots;
mod tail;

pub use self::sled::{Durability, Fdatasync, Roll, Sled, SledDisk, SledOptions};
pub use place::OpenError;
pub use record::{Record, RecordError};
pub use snapshots::{SnapshotError, SnapshotFiles, Snapshots};

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::sync::Arc;

/// One change of the log store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Write {
    /// Puts a log entry.
    Append {
        /// Its index.
        index: u64,
        /// Its record, opaque here.
        bytes: Vec<u8>,
    },
    /// Removes all entries from this index on.
    TruncateFrom(u64),
    /// Removes all entries up to and including this index.
    PurgeTo(u64),
    /// Puts a named value (vote, committed, purged).
    Meta(MetaKey, Vec<u8>),
}

/// The named values beside the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum MetaKey {
    /// Raft's vote.
    Vote,
    /// The last log id known as committed.
    Committed,
    /// The last log id that was purged.
    Purged,
}

impl MetaKey {
    const ALL: [Self; 3] = [Self::Vote, Self::Committed, Self::Purged];

    fn as_str(self) -> &'static str {
        match self {
            Self::Vote => "vote",
            Self::Committed => "committed",
            Self::Purged => "purged",
        }
    }
}

/// What a store holds when it is opened.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Loaded {
    /// Log entries by index, without gaps.
    pub log: BTreeMap<u64, Vec<u8>>,
    /// Named values.
    pub meta: BTreeMap<MetaKey, Vec<u8>>,
}

/// Called once a batch is durable, or has failed.
pub type Done = Box<dyn FnOnce(Result<(), DiskError>) + Send>;

/// A durable log. Batches become durable in the order in which they were handed over.
pub trait Disk: Send + Sync + 'static {
    /// Hands a batch over; `done` is called after it is durable, never before.
    fn commit(&self, batch: Vec<Write>, done: Done);

    /// Hands over a value whose loss would do no harm: it is written with the next batch, or by itself a moment later,
    /// so that it never costs a sync of its own while the log grows. A later one of the same key takes its place.
    fn note(&self, key: MetaKey, value: Vec<u8>);
}

/// Where stores lie. A port, so that one can lie elsewhere than on sled and in files, or be watched.
pub trait Disks: Send + Sync + 'static {
    /// Opens the log that these options name; returns what it holds.
    ///
    /// # Errors
    /// When it cannot be used.
    fn open(&self, options: &SledOptions) -> Result<(Arc<dyn Disk>, Loaded), OpenError>;

    /// Opens the folder of a store's snapshots.
    ///
    /// # Errors
    /// When it cannot be used.
    fn snapshots(&self, dir: &Path) -> Result<Snapshots, SnapshotError>;

    /// Puts a store that is not what was written out of the way, so that its owner never comes back; says so.
    fn put_aside(&self, options: &SledOptions, why: String) -> OpenError;

    /// Tells whether a daemon has the store in this folder open.
    fn is_in_use(&self, dir: &Path) -> bool;

    /// Tells whether `owner`'s store was put aside in this folder.
    ///
    /// # Errors
    /// When the folder cannot be read.
    fn is_put_aside(&self, dir: &Path, owner: &str) -> io::Result<bool>;
}

/// The disk failed. Nothing of the batch was acknowledged, and nothing after it will be.
#[derive(Clone, Debug, thiserror::Error)]
#[error("the store's disk failed: {0}; free space or mend the disk, then start the daemon again")]
pub struct DiskError(pub String);
