//! The log on sled 0.34: one writer thread, one flush and one fdatasync per drained queue. Shell.
//!
//! sled's `flush` does not reach the disk on Linux (it ends in `sync_file_range`), so each batch is followed by
//! an `fdatasync` of our own on its file. A store that cannot be trusted is put aside, never repaired: the node
//! then comes back under a new id and is filled by its peers.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;

use super::record::{protect, verify};
use super::{Disk, DiskError, Done, Loaded, MetaKey, Write};

/// The format of everything below the store's folder.
const FORMAT: &str = "1";
/// A generation is rewritten when its folder is larger than this...
const ROLL_BYTES: u64 = 64 * 1024 * 1024;
/// ...or this many times its live bytes, once it has some size at all.
const ROLL_FACTOR: u64 = 8;
const ROLL_FLOOR: u64 = 16 * 1024 * 1024;

/// Makes what was written durable. A port, so that a test can take it away and see the loss.
pub trait Durability: Send + 'static {
    /// Returns once all that sled flushed to its file is on the disk.
    ///
    /// # Errors
    /// What the operating system answered.
    fn sync(&mut self) -> io::Result<()>;
}

/// `fdatasync` on a handle of sled's own file.
#[derive(Debug)]
pub struct FdatasyncFile(File);

impl FdatasyncFile {
    /// Opens sled's file in a generation's folder.
    ///
    /// # Errors
    /// What the operating system answered.
    pub fn open(generation: &Path) -> io::Result<Self> {
        File::open(generation.join("db")).map(Self)
    }
}

impl Durability for FdatasyncFile {
    fn sync(&mut self) -> io::Result<()> {
        self.0.sync_data()
    }
}

/// How a store is opened.
pub struct SledOptions {
    /// The store's folder.
    pub dir: PathBuf,
    /// Whose store it must be: fleet and node id. A store of somebody else is refused and left alone.
    pub owner: String,
    /// Makes the durability port for a generation's folder.
    pub durability: fn(&Path) -> io::Result<Box<dyn Durability>>,
}

impl SledOptions {
    /// Opens `dir` for `owner` with real durability.
    pub fn new(dir: &Path, owner: &str) -> Self {
        Self {
            dir: dir.to_owned(),
            owner: owner.to_owned(),
            durability: |dir| Ok(Box::new(FdatasyncFile::open(dir)?)),
        }
    }
}

/// Why a store could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another daemon has it open.
    #[error("the store {0} is in use: a skein daemon runs already on this state folder")]
    InUse(PathBuf),
    /// It was written by a newer daemon.
    #[error("the store {path} has format {found}, this skein knows {FORMAT}: upgrade this machine's skein")]
    Newer {
        /// The folder.
        path: PathBuf,
        /// Its format.
        found: String,
    },
    /// It belongs to another node or fleet.
    #[error("the store {path} belongs to {found}, not to {wanted}")]
    Foreign {
        /// The folder.
        path: PathBuf,
        /// Whose it is.
        found: String,
        /// Whose it should be.
        wanted: String,
    },
    /// It cannot be trusted and was put aside.
    #[error("the store is damaged ({why}) and was put aside as {quarantine}: let this machine rejoin with `skein join TICKET --replaces {{its name}}`")]
    Damaged {
        /// What is wrong.
        why: String,
        /// Where it lies now.
        quarantine: PathBuf,
    },
    /// The file system refused.
    #[error("cannot use the store {path}: {source}")]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// The operating system's answer.
        source: io::Error,
    },
}

fn io_error(path: &Path) -> impl FnOnce(io::Error) -> OpenError + '_ {
    move |source| OpenError::Io { path: path.to_owned(), source }
}

struct Job {
    batch: Vec<Write>,
    done: Done,
}

/// The open store: a handle on the writer thread.
#[derive(Debug)]
pub struct SledDisk {
    jobs: Option<Sender<Job>>,
    writer: Option<JoinHandle<()>>,
    _lock: File,
}

impl Disk for SledDisk {
    fn commit(&self, batch: Vec<Write>, done: Done) {
        let job = Job { batch, done };
        let refused = match &self.jobs {
            Some(jobs) => jobs.send(job).err().map(|e| e.0),
            None => Some(job),
        };
        if let Some(job) = refused {
            (job.done)(Err(DiskError("its writer has stopped".into())));
        }
    }
}

impl Drop for SledDisk {
    fn drop(&mut self) {
        drop(self.jobs.take());
        if let Some(writer) = self.writer.take() {
            // A panic of the writer was already answered as failed batches.
            let _ = writer.join();
        }
    }
}

impl SledDisk {
    /// Opens the store, checks every record, and starts its writer.
    ///
    /// # Errors
    /// When it is in use, newer, somebody else's, damaged (then it is put aside), or unreadable.
    pub fn open(options: &SledOptions) -> Result<(Self, Loaded), OpenError> {
        let dir = &options.dir;
        fs::create_dir_all(dir).map_err(io_error(dir))?;
        let lock = lock(dir)?;
        check_text(dir, "FORMAT", FORMAT, |found| OpenError::Newer { path: dir.clone(), found })?;
        check_text(dir, "IDENTITY", &options.owner, |found| OpenError::Foreign {
            path: dir.clone(),
            found,
            wanted: options.owner.clone(),
        })?;
        let number = current(dir)?;
        let path = generation(dir, number);
        let (db, loaded) = match open_checked(&path) {
            Ok(opened) => opened,
            Err(why) => return Err(put_aside(dir, &path, why)),
        };
        db.flush().map_err(|e| io_error(&path)(io::Error::other(e)))?;
        let durability = (options.durability)(&path).map_err(io_error(&path))?;
        let (jobs, queue) = channel();
        let make = options.durability;
        let writer = Writer { dir: dir.clone(), number, db, durability, make, failed: None };
        let writer = std::thread::Builder::new()
            .name("store".into())
            .spawn(move || writer.run(&queue))
            .map_err(io_error(dir))?;
        Ok((Self { jobs: Some(jobs), writer: Some(writer), _lock: lock }, loaded))
    }
}

fn lock(dir: &Path) -> Result<File, OpenError> {
    let path = dir.join("LOCK");
    let file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path)
        .map_err(io_error(&path))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(fs::TryLockError::WouldBlock) => Err(OpenError::InUse(dir.to_owned())),
        Err(fs::TryLockError::Error(e)) => Err(io_error(&path)(e)),
    }
}

fn check_text(
    dir: &Path,
    name: &str,
    wanted: &str,
    differs: impl FnOnce(String) -> OpenError,
) -> Result<(), OpenError> {
    let path = dir.join(name);
    match fs::read_to_string(&path) {
        Ok(found) if found.trim() == wanted => Ok(()),
        Ok(found) => Err(differs(found.trim().to_owned())),
        Err(e) if e.kind() == io::ErrorKind::NotFound => write_durably(&path, wanted),
        Err(e) => Err(io_error(&path)(e)),
    }
}

fn write_durably(path: &Path, text: &str) -> Result<(), OpenError> {
    let temporary = path.with_extension("tmp");
    let write = || -> io::Result<()> {
        fs::write(&temporary, format!("{text}\n"))?;
        File::open(&temporary)?.sync_all()?;
        fs::rename(&temporary, path)?;
        path.parent().map_or(Ok(()), |dir| File::open(dir)?.sync_all())
    };
    write().map_err(io_error(path))
}

fn generation(dir: &Path, number: u64) -> PathBuf {
    dir.join(format!("gen-{number}"))
}

fn current(dir: &Path) -> Result<u64, OpenError> {
    let path = dir.join("CURRENT");
    match fs::read_to_string(&path) {
        Ok(text) => text
            .trim()
            .strip_prefix("gen=")
            .and_then(|n| n.parse().ok())
            .ok_or_else(|| io_error(&path)(io::Error::other("it names no generation"))),
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            write_durably(&path, "gen=1")?;
            Ok(1)
        }
        Err(e) => Err(io_error(&path)(e)),
    }
}

/// Moves a generation out of the way, so that nobody carries on with it.
fn put_aside(dir: &Path, path: &Path, why: String) -> OpenError {
    let free = (1u32..).map(|n| dir.join(format!("quarantine-{n}"))).find(|p| !p.exists());
    let quarantine = free.unwrap_or_else(|| dir.join("quarantine"));
    match fs::rename(path, &quarantine) {
        Ok(()) => OpenError::Damaged { why, quarantine },
        Err(e) => io_error(path)(e),
    }
}

fn sled_config(path: &Path) -> sled::Config {
    sled::Config::new()
        .path(path)
        .flush_every_ms(None)
        .cache_capacity(16 * 1024 * 1024)
        .mode(sled::Mode::LowSpace)
        .segment_size(512 * 1024)
}

/// Opens and verifies in a thread of its own, since sled may panic on damaged files.
fn open_checked(path: &Path) -> Result<(sled::Db, Loaded), String> {
    let path = path.to_owned();
    std::thread::spawn(move || {
        let db = sled_config(&path).open().map_err(|e| e.to_string())?;
        let loaded = load(&db)?;
        Ok((db, loaded))
    })
    .join()
    .unwrap_or_else(|_| Err("sled panicked while opening it".into()))
}

fn load(db: &sled::Db) -> Result<Loaded, String> {
    let mut loaded = Loaded::default();
    let log = db.open_tree("log").map_err(|e| e.to_string())?;
    for row in log.iter() {
        let (key, value) = row.map_err(|e| e.to_string())?;
        let key: [u8; 8] = key.as_ref().try_into().map_err(|_| "a log key has the wrong length")?;
        let index = u64::from_be_bytes(key);
        let body = verify(&value).map_err(|e| format!("entry {index}: {e}"))?;
        if let Some((last, _)) = loaded.log.last_key_value()
            && last + 1 != index
        {
            return Err(format!("entries {} to {} are missing", last + 1, index - 1));
        }
        loaded.log.insert(index, body.to_vec());
    }
    let meta = db.open_tree("meta").map_err(|e| e.to_string())?;
    for key in MetaKey::ALL {
        if let Some(value) = meta.get(key.as_str()).map_err(|e| e.to_string())? {
            let body = verify(&value).map_err(|e| format!("{}: {e}", key.as_str()))?;
            loaded.meta.insert(key, body.to_vec());
        }
    }
    if !loaded.log.is_empty() && !loaded.meta.contains_key(&MetaKey::Vote) {
        return Err("there is a log but no vote".into());
    }
    Ok(loaded)
}

struct Writer {
    dir: PathBuf,
    number: u64,
    db: sled::Db,
    durability: Box<dyn Durability>,
    make: fn(&Path) -> io::Result<Box<dyn Durability>>,
    failed: Option<DiskError>,
}

impl Writer {
    fn run(mut self, queue: &Receiver<Job>) {
        while let Ok(first) = queue.recv() {
            let jobs: Vec<Job> = std::iter::once(first).chain(queue.try_iter()).collect();
            let purged = jobs.iter().flat_map(|j| &j.batch).any(|w| matches!(w, Write::PurgeTo(_)));
            let result = match &self.failed {
                Some(e) => Err(e.clone()),
                None => self.write(&jobs).map_err(|e| DiskError(e.to_string())),
            };
            if let Err(e) = &result {
                self.failed.get_or_insert_with(|| e.clone());
            }
            for job in jobs {
                (job.done)(result.clone());
            }
            if purged && self.failed.is_none() {
                self.roll_if_due();
            }
        }
    }

    fn write(&mut self, jobs: &[Job]) -> Result<(), sled::Error> {
        let log = self.db.open_tree("log")?;
        let meta = self.db.open_tree("meta")?;
        for write in jobs.iter().flat_map(|j| &j.batch) {
            match write {
                Write::Append { index, bytes } => {
                    log.insert(index.to_be_bytes(), protect(bytes))?;
                }
                Write::TruncateFrom(index) => remove(&log, index.to_be_bytes()..)?,
                Write::PurgeTo(index) => remove(&log, ..=index.to_be_bytes())?,
                Write::Meta(key, bytes) => {
                    meta.insert(key.as_str(), protect(bytes))?;
                }
            }
        }
        self.db.flush()?;
        self.durability.sync().map_err(sled::Error::from)
    }

    /// Rewrites the live rows into a fresh generation; failing to is no loss, the old one stays.
    fn roll_if_due(&mut self) {
        let size = self.db.size_on_disk().unwrap_or(0);
        let live = self.live_bytes();
        let due = size > ROLL_BYTES || (size > ROLL_FLOOR && size > ROLL_FACTOR * live);
        if due && let Err(e) = self.roll() {
            tracing::warn!(error = %e, "the store's generation was not renewed; the old one stays in use");
        }
    }

    fn live_bytes(&self) -> u64 {
        let trees = ["log", "meta"].iter().filter_map(|t| self.db.open_tree(t).ok());
        trees.flat_map(|t| t.iter().filter_map(Result::ok)).map(|(k, v)| (k.len() + v.len()) as u64).sum()
    }

    fn roll(&mut self) -> Result<(), Box<dyn std::error::Error>> {
        let next = self.number + 1;
        let path = generation(&self.dir, next);
        if path.exists() {
            fs::remove_dir_all(&path)?;
        }
        let db = sled_config(&path).open()?;
        for name in ["log", "meta"] {
            let (from, to) = (self.db.open_tree(name)?, db.open_tree(name)?);
            for row in from.iter() {
                let (key, value) = row?;
                to.insert(key, value)?;
            }
        }
        db.flush()?;
        let mut durability = (self.make)(&path)?;
        durability.sync()?;
        File::open(&path)?.sync_all()?;
        write_durably(&self.dir.join("CURRENT"), &format!("gen={next}"))?;
        let old = generation(&self.dir, self.number);
        (self.db, self.durability, self.number) = (db, durability, next);
        fs::remove_dir_all(old)?;
        tracing::info!(generation = next, "the store's generation was renewed");
        Ok(())
    }
}

fn remove<R: std::ops::RangeBounds<[u8; 8]>>(log: &sled::Tree, range: R) -> Result<(), sled::Error> {
    for key in log.range(range).keys() {
        log.remove(key?)?;
    }
    Ok(())
}
