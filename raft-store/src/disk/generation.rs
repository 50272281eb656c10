//! One sled database of the store: opened with every record checked, synced, and copied. Shell.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use super::place::sync_dir;
use super::record::{protect, verify};
use super::sled::Durability;
use super::{Loaded, MetaKey};

/// sled's own threads give its file back a moment after it was closed. The folder's lock, which is taken before,
/// says that no other daemon has it, so it is waited for a little: this often, with this pause.
const LET_GO_TRIES: u32 = 100;
const LET_GO_PAUSE: Duration = Duration::from_millis(20);

/// An open database and handles on its files.
pub(super) struct Generation {
    pub(super) log: sled::Tree,
    meta: sled::Tree,
    db: sled::Db,
    file: File,
    path: PathBuf,
    blobs: BTreeSet<OsString>,
    floor: Option<u64>,
}

/// Why a generation could not be opened.
pub(super) enum OpenFailure {
    /// The machine refuses for now; the store itself may be whole.
    Io(io::Error),
    /// Somebody still has sled's own file.
    InUse,
    /// It is not what was acknowledged.
    Damaged(String),
}

impl From<sled::Error> for OpenFailure {
    fn from(e: sled::Error) -> Self {
        use io::ErrorKind as Kind;
        match e {
            // sled wraps the refusal of its lock into an error without a kind of its own.
            sled::Error::Io(e) if e.to_string().contains("could not acquire lock") => Self::InUse,
            sled::Error::Io(e)
                if matches!(
                    e.kind(),
                    Kind::StorageFull
                        | Kind::QuotaExceeded
                        | Kind::PermissionDenied
                        | Kind::ReadOnlyFilesystem
                        | Kind::ResourceBusy
                        | Kind::WouldBlock
                        | Kind::OutOfMemory
                ) =>
            {
                Self::Io(e)
            }
            other => Self::Damaged(other.to_string()),
        }
    }
}

fn config(path: &Path) -> sled::Config {
    sled::Config::new()
        .path(path)
        .flush_every_ms(None)
        .cache_capacity(16 * 1024 * 1024)
        .mode(sled::Mode::LowSpace)
        .segment_size(512 * 1024)
}

/// Makes an empty generation that would survive a power cut.
pub(super) fn make(path: &Path, disk: &Arc<dyn Durability>) -> io::Result<Generation> {
    let mut made = Generation::over(config(path).open()?, path)?;
    made.set_seq(0)?;
    made.sync(&**disk)?;
    for entry in fs::read_dir(path)? {
        let path = entry?.path();
        disk.sync(&File::open(&path)?, &path)?;
    }
    sync_dir(&**disk, path)?;
    if let Some(parent) = path.parent() {
        sync_dir(&**disk, parent)?;
    }
    Ok(made)
}

/// Opens and verifies in a thread of its own, since sled may panic on damaged files.
///
/// `acknowledged` is the number of the last batch that is known to have been acknowledged.
pub(super) fn open(
    path: &Path,
    disk: &Arc<dyn Durability>,
    acknowledged: u64,
) -> Result<(Generation, Loaded), OpenFailure> {
    let file = path.join("db");
    // What a killed daemon wrote must be on the disk before sled builds upon it.
    let file = File::open(&file).map_err(|e| OpenFailure::Damaged(format!("db: {e}")))?;
    disk.sync(&file, &path.join("db")).map_err(OpenFailure::Io)?;
    let owned = path.to_owned();
    std::thread::spawn(move || {
        let db = reopen(&owned)?;
        let mut opened = Generation::over(db, &owned).map_err(OpenFailure::Io)?;
        opened.floor = opened.number("floor")?;
        let loaded = load(&opened, acknowledged)?;
        Ok((opened, loaded))
    })
    .join()
    .unwrap_or_else(|_| Err(OpenFailure::Damaged("sled panicked while opening it".into())))
}

/// Opens what this very process may have closed a moment ago.
fn reopen(path: &Path) -> Result<sled::Db, OpenFailure> {
    for _ in 0..LET_GO_TRIES {
        match config(path).open().map_err(OpenFailure::from) {
            Err(OpenFailure::InUse) => std::thread::sleep(LET_GO_PAUSE),
            other => return other,
        }
    }
    config(path).open().map_err(OpenFailure::from)
}

impl Generation {
    fn over(db: sled::Db, path: &Path) -> io::Result<Self> {
        Ok(Self {
            log: db.open_tree("log")?,
            meta: db.open_tree("meta")?,
            db,
            file: File::open(path.join("db"))?,
            path: path.to_owned(),
            blobs: BTreeSet::new(),
            floor: None,
        })
    }

    pub(super) fn put(&self, key: &str, value: &[u8]) -> io::Result<()> {
        self.meta.insert(key, protect(value))?;
        Ok(())
    }

    /// Notes that all entries up to `index` are gone on purpose.
    pub(super) fn set_floor(&mut self, index: u64) -> io::Result<()> {
        if self.floor.is_some_and(|floor| floor >= index) {
            return Ok(());
        }
        self.floor = Some(index);
        self.put("floor", &index.to_be_bytes())
    }

    /// Numbers the batch; the last write of each, since sled recovers a prefix of what was written.
    pub(super) fn set_seq(&self, seq: u64) -> io::Result<()> {
        self.put("seq", &seq.to_be_bytes())
    }

    /// The number of the last batch that lies here whole.
    pub(super) fn seq(&self) -> Result<u64, OpenFailure> {
        self.number("seq")?.ok_or_else(|| OpenFailure::Damaged("there is no batch number".into()))
    }

    fn number(&self, key: &str) -> Result<Option<u64>, OpenFailure> {
        let damaged = |e: &str| OpenFailure::Damaged(format!("{key}: {e}"));
        let Some(value) = self.meta.get(key)? else {
            return Ok(None);
        };
        let body = verify(&value).map_err(|e| damaged(&e.to_string()))?;
        body.try_into().map(|b| Some(u64::from_be_bytes(b))).map_err(|_| damaged("is no number"))
    }

    /// Makes everything written so far durable.
    pub(super) fn sync(&mut self, disk: &dyn Durability) -> io::Result<()> {
        self.db.flush()?;
        self.sync_blobs(disk)?;
        disk.sync(&self.file, &self.path.join("db"))
    }

    /// sled keeps pages above a quarter of a segment in files of their own, and never syncs them.
    fn sync_blobs(&mut self, disk: &dyn Durability) -> io::Result<()> {
        let dir = self.path.join("blobs");
        let mut there = BTreeSet::new();
        for entry in fs::read_dir(&dir)? {
            there.insert(entry?.file_name());
        }
        let mut any = false;
        for name in there.difference(&self.blobs) {
            let path = dir.join(name);
            disk.sync(&File::open(&path)?, &path)?;
            any = true;
        }
        if any {
            sync_dir(disk, &dir)?;
        }
        self.blobs = there;
        Ok(())
    }

    /// Bytes on the disk.
    pub(super) fn size(&self) -> io::Result<u64> {
        Ok(self.db.size_on_disk()?)
    }

    /// Bytes of keys and values.
    pub(super) fn live_bytes(&self) -> io::Result<u64> {
        let mut sum = 0;
        for row in self.log.iter().chain(self.meta.iter()) {
            let (key, value) = row?;
            sum += (key.len() + value.len()) as u64;
        }
        Ok(sum)
    }

    /// Copies all rows.
    pub(super) fn copy_to(&self, other: &mut Self) -> io::Result<()> {
        other.floor = self.floor;
        for (from, to) in [(&self.log, &other.log), (&self.meta, &other.meta)] {
            for row in from.iter() {
                let (key, value) = row?;
                to.insert(key, value)?;
            }
        }
        Ok(())
    }
}

fn load(from: &Generation, acknowledged: u64) -> Result<Loaded, OpenFailure> {
    let damaged = |why: String| Err(OpenFailure::Damaged(why));
    let seq = from.seq()?;
    if seq < acknowledged {
        return damaged(format!(
            "it ends with batch {seq}, but batch {acknowledged} was acknowledged"
        ));
    }
    let mut loaded = Loaded::default();
    let mut expected = from.floor.map(|floor| floor + 1);
    // Below the floor lies only what a purge had no time to remove.
    let first = expected.unwrap_or(0);
    for row in from.log.range(first.to_be_bytes()..) {
        let (key, value) = row?;
        let Ok(key) = <[u8; 8]>::try_from(key.as_ref()) else {
            return damaged("a log key has the wrong length".into());
        };
        let index = u64::from_be_bytes(key);
        match verify(&value) {
            Ok(body) => loaded.log.insert(index, body.to_vec()),
            Err(e) => return damaged(format!("entry {index}: {e}")),
        };
        if let Some(expected) = expected
            && expected != index
        {
            return damaged(format!("the log goes on with entry {index} where {expected} is due"));
        }
        expected = Some(index + 1);
    }
    for key in MetaKey::ALL {
        if let Some(value) = from.meta.get(key.as_str())? {
            match verify(&value) {
                Ok(body) => loaded.meta.insert(key, body.to_vec()),
                Err(e) => return damaged(format!("{}: {e}", key.as_str())),
            };
        }
    }
    // A founder writes the first membership before it votes for itself, and may be killed between the two.
    let founded = loaded.log.keys().eq([&0]);
    if !loaded.log.is_empty() && !founded && !loaded.meta.contains_key(&MetaKey::Vote) {
        return damaged("there is a log but no vote".into());
    }
    Ok(loaded)
}
