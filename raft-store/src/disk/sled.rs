//! The log on sled 0.34: one writer thread, one flush and one fdatasync per drained queue. Shell.
//!
//! sled's `flush` does not reach the disk on Linux (it ends in `sync_file_range`), so each batch is followed by
//! an `fdatasync` of our own on its file, and on the blob files into which sled puts pages above 128 KiB. A store
//! that cannot be trusted is put aside, never repaired: the node then comes back under a new id and is filled by
//! its peers.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use super::generation::{self, Generation, OpenFailure};
use super::place::{self, Found, OpenError, Place, io_error};
use super::snapshots::{SnapshotError, Snapshots};
use super::tail::Tail;
use super::{Disk, DiskError, Disks, Done, Loaded, MetaKey, Write};
use crate::disk::record::protect;

/// Makes written bytes durable. A port, so that a test can take it away and see the loss.
pub trait Durability: Send + Sync + 'static {
    /// Returns once what was written to `file`, which lies at `path`, is on the disk.
    ///
    /// # Errors
    /// What the operating system answered.
    fn sync(&self, file: &File, path: &Path) -> io::Result<()>;
}

/// The disk itself.
#[derive(Clone, Copy, Debug, Default)]
pub struct Fdatasync;

impl Durability for Fdatasync {
    fn sync(&self, file: &File, _path: &Path) -> io::Result<()> {
        file.sync_data()
    }
}

/// When a generation is rewritten into a fresh one, instead of trusting sled to give space back.
#[derive(Clone, Copy, Debug)]
pub struct Roll {
    /// Always above this size, in bytes.
    pub bytes_max: u64,
    /// Above this many times its live bytes...
    pub factor: u64,
    /// ...but only from this size on, in bytes.
    pub bytes_min: u64,
}

impl Default for Roll {
    fn default() -> Self {
        Self { bytes_max: 64 * 1024 * 1024, factor: 8, bytes_min: 16 * 1024 * 1024 }
    }
}

/// How a store is opened.
#[derive(Clone)]
pub struct SledOptions {
    /// The store's folder.
    pub dir: PathBuf,
    /// Whose store it must be: fleet and node id. A store of somebody else is refused and left alone.
    pub owner: String,
    /// Makes batches durable.
    pub durability: Arc<dyn Durability>,
    /// When a generation is renewed.
    pub roll: Roll,
}

impl SledOptions {
    /// Opens `dir` for `owner` with real durability.
    pub fn new(dir: &Path, owner: &str) -> Self {
        Self {
            dir: dir.to_owned(),
            owner: owner.to_owned(),
            durability: Arc::new(Fdatasync),
            roll: Roll::default(),
        }
    }
}

struct Job {
    batch: Vec<Write>,
    done: Done,
}

/// What reaches the writer.
enum Order {
    Commit(Job),
    Note(MetaKey, Vec<u8>),
}

/// How long a note waits for a batch to go with.
const NOTE_MAX: Duration = Duration::from_millis(100);

/// The open store: a handle on the writer thread.
#[derive(Debug)]
pub struct SledDisk {
    jobs: Option<Sender<Order>>,
    writer: Option<JoinHandle<()>>,
}

impl Disk for SledDisk {
    fn commit(&self, batch: Vec<Write>, done: Done) {
        let order = Order::Commit(Job { batch, done });
        let refused = match &self.jobs {
            Some(jobs) => jobs.send(order).err().map(|e| e.0),
            None => Some(order),
        };
        if let Some(Order::Commit(job)) = refused {
            (job.done)(Err(DiskError("its writer has stopped".into())));
        }
    }

    fn note(&self, key: MetaKey, value: Vec<u8>) {
        if let Some(jobs) = &self.jobs {
            // A writer that has stopped keeps nothing, and says so at the next batch.
            let _ = jobs.send(Order::Note(key, value));
        }
    }
}

impl Drop for SledDisk {
    fn drop(&mut self) {
        drop(self.jobs.take());
        if let Some(writer) = self.writer.take() {
            // The writer answers its own panics as failed batches.
            let _ = writer.join();
        }
    }
}

/// Logs on sled, as every daemon has them.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sled;

impl Disks for Sled {
    fn open(&self, options: &SledOptions) -> Result<(Arc<dyn Disk>, Loaded), OpenError> {
        SledDisk::open(options).map(|(disk, loaded)| (Arc::new(disk) as Arc<dyn Disk>, loaded))
    }

    fn snapshots(&self, dir: &Path) -> Result<Snapshots, SnapshotError> {
        Snapshots::open(dir)
    }

    fn put_aside(&self, options: &SledOptions, why: String) -> OpenError {
        match Place::take(&options.dir, &options.owner) {
            Ok(place) => place.put_aside(why),
            Err(e) => e,
        }
    }

    fn is_in_use(&self, dir: &Path) -> bool {
        place::is_in_use(dir)
    }

    fn is_put_aside(&self, dir: &Path, owner: &str) -> io::Result<bool> {
        place::is_put_aside(dir, owner)
    }
}

impl SledDisk {
    /// Opens the store, checks every record, and starts its writer.
    ///
    /// # Errors
    /// When it is in use, newer, somebody else's, damaged (then it is put aside), or unreadable.
    pub fn open(options: &SledOptions) -> Result<(Self, Loaded), OpenError> {
        let place = Place::take(&options.dir, &options.owner)?;
        let disk = options.durability.clone();
        let number = match place.find()? {
            Found::Generation(number) => number,
            Found::Broken(why) => return Err(place.put_aside(why)),
            Found::Nothing => make(&place, &disk)?,
        };
        let path = place.generation(number);
        let mut tail = Tail::open(&place.dir).map_err(io_error(&place.dir))?;
        let (generation, loaded) = match generation::open(&path, &disk, tail.seq()) {
            Ok(opened) => opened,
            Err(OpenFailure::Io(source)) => return Err(io_error(&path)(source)),
            Err(OpenFailure::InUse) => return Err(OpenError::InUse(place.dir)),
            Err(OpenFailure::Damaged(why)) => return Err(place.put_aside(why)),
        };
        tail.continue_from(generation.seq().unwrap_or_default());
        for old in place.generations()?.into_iter().filter(|p| *p != path) {
            fs::remove_dir_all(&old).map_err(io_error(&old))?;
        }
        let dir = place.dir.clone();
        let (jobs, queue) = channel();
        let writer = Writer {
            place,
            number,
            generation,
            tail,
            disk,
            roll: options.roll,
            failed: None,
            notes: BTreeMap::new(),
        };
        let writer = std::thread::Builder::new()
            .name("store".into())
            .spawn(move || writer.run(&queue))
            .map_err(io_error(&dir))?;
        Ok((Self { jobs: Some(jobs), writer: Some(writer) }, loaded))
    }
}

/// Makes an empty store; what an earlier, unfinished making left holds nothing.
fn make(place: &Place, disk: &Arc<dyn Durability>) -> Result<u64, OpenError> {
    for left in place.generations()? {
        match generation::open(&left, disk, 0) {
            Ok((_, loaded)) if loaded == Loaded::default() => {}
            Ok(_) => return Err(place.put_aside("IDENTITY is missing".into())),
            Err(OpenFailure::Io(source)) => return Err(io_error(&left)(source)),
            Err(OpenFailure::InUse) => return Err(OpenError::InUse(place.dir.clone())),
            Err(OpenFailure::Damaged(why)) => return Err(place.put_aside(why)),
        }
        fs::remove_dir_all(&left).map_err(io_error(&left))?;
    }
    if place.has_snapshots()? {
        return Err(place.put_aside("IDENTITY is missing".into()));
    }
    let first = place.generation(1);
    generation::make(&first, disk).map_err(io_error(&first))?;
    Tail::make(&place.dir).map_err(io_error(&place.dir))?;
    place.found(&**disk)?;
    Ok(1)
}

struct Writer {
    number: u64,
    generation: Generation,
    tail: Tail,
    disk: Arc<dyn Durability>,
    roll: Roll,
    failed: Option<DiskError>,
    /// What is to go with the next batch.
    notes: BTreeMap<MetaKey, Vec<u8>>,
    /// Last, so that the folder's lock is given back only after sled has closed its file.
    place: Place,
}

impl Writer {
    fn run(mut self, queue: &Receiver<Order>) {
        loop {
            let first = if self.notes.is_empty() {
                queue.recv().map_err(RecvTimeoutError::from)
            } else {
                queue.recv_timeout(NOTE_MAX)
            };
            let late = first.is_err();
            let ended = matches!(first, Err(RecvTimeoutError::Disconnected));
            let mut jobs = Vec::new();
            for order in first.into_iter().chain(queue.try_iter()) {
                match order {
                    Order::Commit(job) => jobs.push(job),
                    Order::Note(key, value) => drop(self.notes.insert(key, value)),
                }
            }
            if !jobs.is_empty() || (late && !self.notes.is_empty()) {
                self.commit(jobs);
            }
            if ended {
                return;
            }
        }
    }

    fn commit(&mut self, jobs: Vec<Job>) {
        let purged = jobs.iter().flat_map(|j| &j.batch).any(|w| matches!(w, Write::PurgeTo(_)));
        let notes = std::mem::take(&mut self.notes);
        let result = match &self.failed {
            Some(e) => Err(e.clone()),
            None => self.guarded(|w| w.write(&jobs, &notes)),
        };
        for job in jobs {
            (job.done)(result.clone());
        }
        if purged && self.failed.is_none() {
            // What it answers lies in `failed`.
            let _ = self.guarded(Self::roll_if_due);
        }
    }

    /// Runs one step; after an error or a panic nothing is ever acknowledged again.
    fn guarded(&mut self, step: impl FnOnce(&mut Self) -> io::Result<()>) -> Result<(), DiskError> {
        let result = match catch_unwind(AssertUnwindSafe(|| step(self))) {
            Ok(done) => done.map_err(|e| DiskError(e.to_string())),
            Err(_) => Err(DiskError("sled panicked".into())),
        };
        if let Err(e) = &result {
            tracing::error!(error = %e, "nothing more is acknowledged");
            self.failed = Some(e.clone());
        }
        result
    }

    fn write(&mut self, jobs: &[Job], notes: &BTreeMap<MetaKey, Vec<u8>>) -> io::Result<()> {
        let seq = self.tail.seq() + 1;
        let generation = &mut self.generation;
        for write in jobs.iter().flat_map(|j| &j.batch) {
            match write {
                Write::Append { index, bytes } => {
                    generation.log.insert(index.to_be_bytes(), protect(bytes))?;
                }
                // From the end backwards, as a kill in between must not leave a hole.
                Write::TruncateFrom(index) => {
                    for key in generation.log.range(index.to_be_bytes()..).keys().rev() {
                        generation.log.remove(key?)?;
                    }
                }
                Write::PurgeTo(index) => {
                    generation.set_floor(*index)?;
                    for key in generation.log.range(..=index.to_be_bytes()).keys() {
                        generation.log.remove(key?)?;
                    }
                }
                Write::Meta(key, bytes) => generation.put(MetaKey::as_str(*key), bytes)?,
            }
        }
        for (key, value) in notes {
            generation.put(MetaKey::as_str(*key), value)?;
        }
        generation.set_seq(seq)?;
        generation.sync(&*self.disk)?;
        self.tail.set(seq)
    }

    fn roll_if_due(&mut self) -> io::Result<()> {
        let size = self.generation.size()?;
        let due = size > self.roll.bytes_max
            || (size > self.roll.bytes_min
                && size > self.roll.factor * self.generation.live_bytes()?);
        if !due {
            return Ok(());
        }
        let number = self.number + 1;
        let path = self.place.generation(number);
        let next = match self.copy(&path) {
            Ok(next) => next,
            Err(e) => {
                tracing::warn!(error = %e, "the store's generation was not renewed; the old one stays in use");
                return Ok(());
            }
        };
        // From here on an error is fatal: it is not known which generation the next start would read.
        self.place.point_to(number).map_err(io::Error::other)?;
        let old = self.place.generation(self.number);
        (self.generation, self.number) = (next, number);
        tracing::info!(generation = number, "the store's generation was renewed");
        if let Err(e) = fs::remove_dir_all(&old) {
            tracing::warn!(error = %e, path = %old.display(), "the old generation stays until the next start");
        }
        Ok(())
    }

    fn copy(&self, path: &Path) -> io::Result<Generation> {
        if path.exists() {
            fs::remove_dir_all(path)?;
        }
        let mut next = generation::make(path, &self.disk)?;
        self.generation.copy_to(&mut next)?;
        next.sync(&*self.disk)?;
        Ok(next)
    }
}
