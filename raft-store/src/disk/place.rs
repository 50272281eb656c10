//! The store's folder: its lock, whose it is, which generation is current, and putting a damaged one aside. Shell.
//!
//! `IDENTITY` is written last when a store is made. Where it exists, everything else must exist too, so that a
//! lost file is told from a first start: an empty log under an old node id could vote twice.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};

use super::sled::Durability;

/// The format of everything below the store's folder.
pub(super) const FORMAT: &str = "1";
/// Files that stay where they are when a store is put aside.
const STAYING: [&str; 3] = ["LOCK", "FORMAT", "RETIRED"];

/// Why a store could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another daemon has it open.
    #[error("the store {0} is in use: a skein daemon runs already on this state folder")]
    InUse(PathBuf),
    /// It was written by a newer daemon.
    #[error("the store {path} has format {found}, this skein knows {FORMAT}")]
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
    #[error(
        "the store is damaged ({why}) and was put aside as {quarantine}; this machine cannot go on as the node that it was"
    )]
    Damaged {
        /// What is wrong.
        why: String,
        /// Where it lies now.
        quarantine: PathBuf,
    },
    /// It was put aside earlier; this node id must not start again with an empty log.
    #[error(
        "the store of {owner} in {path} was damaged and put aside earlier; this machine cannot go on as the node that it was"
    )]
    Retired {
        /// The folder.
        path: PathBuf,
        /// The fleet and node id that must not come back.
        owner: String,
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

pub(super) fn io_error(path: &Path) -> impl FnOnce(io::Error) -> OpenError + '_ {
    move |source| OpenError::Io { path: path.to_owned(), source }
}

/// What a folder holds.
pub(super) enum Found {
    /// No store yet, or one whose making was cut short before anything could be acknowledged.
    Nothing,
    /// A store with this generation.
    Generation(u64),
    /// A store that is not whole.
    Broken(String),
}

/// Tells whether a daemon has the store in this folder open.
pub(super) fn is_in_use(dir: &Path) -> bool {
    dir.join("LOCK").exists() && matches!(lock(dir), Err(OpenError::InUse(_)))
}

/// Tells whether `owner`'s store was put aside in this folder.
pub(super) fn is_put_aside(dir: &Path, owner: &str) -> io::Result<bool> {
    match fs::read_to_string(dir.join("RETIRED")) {
        Ok(text) => Ok(text.lines().any(|line| line.trim() == owner)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(e) => Err(e),
    }
}

/// A store's folder, locked against a second daemon.
pub(super) struct Place {
    pub(super) dir: PathBuf,
    owner: String,
    _lock: File,
}

impl Place {
    /// Locks the folder and makes sure that it is `owner`'s.
    pub(super) fn take(dir: &Path, owner: &str) -> Result<Self, OpenError> {
        fs::create_dir_all(dir).map_err(io_error(dir))?;
        let place = Self { dir: dir.to_owned(), owner: owner.to_owned(), _lock: lock(dir)? };
        match place.read("FORMAT")? {
            Some(found) if found != FORMAT => {
                return Err(OpenError::Newer { path: dir.to_owned(), found });
            }
            _ => {}
        }
        let retired = place.read("RETIRED")?.unwrap_or_default();
        let is_retired = |who: &str| retired.lines().any(|l| l == who);
        if is_retired(owner) {
            return Err(OpenError::Retired { path: dir.to_owned(), owner: owner.to_owned() });
        }
        match place.read("IDENTITY")? {
            Some(found) if found != owner && is_retired(&found) => {
                place.sweep()?;
            }
            Some(found) if found != owner => {
                return Err(OpenError::Foreign {
                    path: dir.to_owned(),
                    found,
                    wanted: owner.to_owned(),
                });
            }
            _ => {}
        }
        Ok(place)
    }

    /// Says what lies here.
    pub(super) fn find(&self) -> Result<Found, OpenError> {
        let broken = |what: &str| Ok(Found::Broken(format!("{what} is missing or unreadable")));
        if self.read("IDENTITY")?.is_none() {
            return Ok(Found::Nothing);
        }
        if self.read("FORMAT")?.is_none() {
            return broken("FORMAT");
        }
        let text = self.read("CURRENT")?.unwrap_or_default();
        let Some(number) = text.strip_prefix("gen=").and_then(|n| n.parse().ok()) else {
            return broken("CURRENT");
        };
        if self.generation(number).join("db").is_file() {
            Ok(Found::Generation(number))
        } else {
            broken(&format!("gen-{number}"))
        }
    }

    /// Finishes the making of a store, whose first generation is durable by now.
    pub(super) fn found(&self, disk: &dyn Durability) -> Result<(), OpenError> {
        self.write("FORMAT", FORMAT)?;
        self.point_to(1)?;
        sync_dir(disk, &self.dir).map_err(io_error(&self.dir))?;
        if let Some(parent) = self.dir.parent() {
            sync_dir(disk, parent).map_err(io_error(parent))?;
        }
        self.write("IDENTITY", &self.owner)
    }

    /// Makes a generation the current one, durably.
    pub(super) fn point_to(&self, number: u64) -> Result<(), OpenError> {
        self.write("CURRENT", &format!("gen={number}"))
    }

    /// A generation's folder.
    pub(super) fn generation(&self, number: u64) -> PathBuf {
        self.dir.join(format!("gen-{number}"))
    }

    /// All generations' folders.
    pub(super) fn generations(&self) -> Result<Vec<PathBuf>, OpenError> {
        Ok(self.entries()?.into_iter().filter(|p| file_name(p).starts_with("gen-")).collect())
    }

    /// Tells whether snapshots lie here, which only a store that was in use has.
    pub(super) fn has_snapshots(&self) -> Result<bool, OpenError> {
        let path = self.dir.join("snap");
        match fs::read_dir(&path) {
            Ok(mut entries) => Ok(entries.next().is_some()),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(e) => Err(io_error(&path)(e)),
        }
    }

    /// Retires the owner and moves everything out of the way, so that nobody carries on with it.
    pub(super) fn put_aside(&self, why: String) -> OpenError {
        let mut retired = match self.read("RETIRED") {
            Ok(text) => text.unwrap_or_default(),
            Err(e) => return e,
        };
        if !retired.is_empty() {
            retired.push('\n');
        }
        retired.push_str(&self.owner);
        match self.write("RETIRED", &retired).and_then(|()| self.sweep()) {
            Ok(quarantine) => OpenError::Damaged { why, quarantine },
            Err(e) => e,
        }
    }

    fn sweep(&self) -> Result<PathBuf, OpenError> {
        let free = (1u32..).map(|n| self.dir.join(format!("quarantine-{n}"))).find(|p| !p.exists());
        let quarantine = free.unwrap_or_else(|| self.dir.join("quarantine"));
        fs::create_dir(&quarantine).map_err(io_error(&quarantine))?;
        // The identity goes last: a sweep that is cut short is taken up again.
        let mut leaving = self.entries()?;
        leaving.sort_by_key(|p| file_name(p) == "IDENTITY");
        for path in leaving {
            let name = file_name(&path);
            if !STAYING.contains(&name.as_str()) && !name.starts_with("quarantine") {
                fs::rename(&path, quarantine.join(&name)).map_err(io_error(&path))?;
            }
        }
        File::open(&self.dir).and_then(|d| d.sync_all()).map_err(io_error(&self.dir))?;
        Ok(quarantine)
    }

    fn entries(&self) -> Result<Vec<PathBuf>, OpenError> {
        let entries = fs::read_dir(&self.dir).map_err(io_error(&self.dir))?;
        entries.map(|e| e.map(|e| e.path()).map_err(io_error(&self.dir))).collect()
    }

    fn read(&self, name: &str) -> Result<Option<String>, OpenError> {
        let path = self.dir.join(name);
        match fs::read(&path) {
            Ok(bytes) => Ok(Some(String::from_utf8_lossy(&bytes).trim().to_owned())),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(io_error(&path)(e)),
        }
    }

    fn write(&self, name: &str, text: &str) -> Result<(), OpenError> {
        let path = self.dir.join(name);
        let temporary = path.with_extension("tmp");
        let write = || -> io::Result<()> {
            fs::write(&temporary, format!("{text}\n"))?;
            File::open(&temporary)?.sync_all()?;
            fs::rename(&temporary, &path)?;
            File::open(&self.dir)?.sync_all()
        };
        write().map_err(io_error(&path))
    }
}

fn file_name(path: &Path) -> String {
    path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default()
}

/// Makes a folder's entries durable.
pub(super) fn sync_dir(disk: &dyn Durability, dir: &Path) -> io::Result<()> {
    disk.sync(&File::open(dir)?, dir)
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
