//! What is remembered of a lab, in its folder. Shell.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{Read as _, Seek as _, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::{Result, say};

/// Where labs lie, unless `SKEIN_LAB_DIR` says otherwise: on a real file system, since containers are kept there.
const DEFAULT_DIR: &str = "/var/tmp/skein-lab";

/// A lab.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Lab {
    /// Its name.
    pub(super) name: String,
    /// Tells its underlay from other labs': 10.77.`net`.0/24.
    pub(super) net: u8,
    /// What its hosts run as K3s: rehearsal, build, or a path.
    pub(super) k3s: String,
    /// The binary.
    pub(super) k3s_binary: PathBuf,
    /// The daemon's binary.
    pub(super) skein: PathBuf,
    /// Images for pods, to be laid where K3s imports them.
    pub(super) images: Option<PathBuf>,
    /// Whether it is without a cluster.
    #[serde(default)]
    pub(super) no_cluster: bool,
    /// How many of the hosts, from the first on, are servers.
    pub(super) servers: usize,
    /// Whether its hosts run daemons.
    #[serde(default = "yes")]
    pub(super) daemons: bool,
    /// Whether each host's Skein has a small disk of its own.
    #[serde(default)]
    pub(super) small_disks: bool,
    /// Its hosts.
    pub(super) hosts: Vec<HostRecord>,
}

fn yes() -> bool {
    true
}

/// A host.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct HostRecord {
    /// n1, n2 and so on.
    pub(super) name: String,
    /// Its number on the wire.
    pub(super) index: u8,
    /// How often its address was changed.
    pub(super) moves: u8,
}

/// Returns the folder of all labs.
pub(super) fn root() -> PathBuf {
    std::env::var_os("SKEIN_LAB_DIR").map_or_else(|| DEFAULT_DIR.into(), PathBuf::from)
}

/// Returns a lab's folder.
pub(super) fn dir(name: &str) -> PathBuf {
    root().join(name)
}

/// Keeps two verbs from changing one lab at once; released when dropped. `what` tells others whom they wait for.
pub(super) fn lock(name: &str, what: &str) -> Result<File> {
    let path = lock_path(name);
    let said = |e: std::io::Error| format!("{}: {e}", path.display());
    loop {
        make_dir(&root())?;
        let opened =
            OpenOptions::new().create(true).truncate(false).read(true).write(true).open(&path);
        let mut file = match opened {
            // The last lab's end removed the folder just now.
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => continue,
            other => other.map_err(said)?,
        };
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut holder = String::new();
                let _ = file.read_to_string(&mut holder);
                say(format!("waiting for {}", holder.trim()));
                file.lock().map_err(said)?;
            }
            Err(TryLockError::Error(e)) => return Err(said(e)),
        }
        let there = fs::metadata(&path).map(|m| m.ino()).ok();
        if there.is_some() && there == file.metadata().map(|m| m.ino()).ok() {
            let _ = file.set_len(0);
            let _ = file.rewind();
            let _ = writeln!(file, "{what} (process {})", std::process::id());
            return Ok(file);
        }
    }
}

fn lock_path(name: &str) -> PathBuf {
    root().join(format!("{name}.lock"))
}

/// Removes a lock's file, to be called by its holder, and the folder of all labs if nothing is left in it.
pub(super) fn unlock(name: &str) {
    let _ = fs::remove_file(lock_path(name));
    let _ = fs::remove_dir(root());
}

impl Lab {
    /// Reads a lab; nothing if there is none.
    pub(super) fn load(name: &str) -> Result<Option<Self>> {
        let path = dir(name).join("lab.json");
        match fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes).map(Some).map_err(|e| {
                format!("{}: {e}; remove the lab: ./lab down --name {name}", path.display())
            }),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(format!("{}: {e}", path.display())),
        }
    }

    /// Reads a lab that must exist.
    pub(super) fn require(name: &str) -> Result<Self> {
        Self::load(name)?
            .ok_or_else(|| format!("there is no lab {name}; make it with: ./lab up --name {name}"))
    }

    /// Writes it.
    pub(super) fn save(&self) -> Result<()> {
        let dir = dir(&self.name);
        let write = || -> std::io::Result<()> {
            fs::create_dir_all(&dir)?;
            let temporary = dir.join("lab.json.tmp");
            fs::write(&temporary, serde_json::to_vec_pretty(self)?)?;
            fs::rename(temporary, dir.join("lab.json"))
        };
        write().map_err(|e| format!("{}: {e}", dir.display()))
    }

    /// How its verbs are called, for advice.
    pub(super) fn call(&self) -> String {
        if self.name == "lab" { "./lab".into() } else { format!("./lab --name {}", self.name) }
    }

    /// Finds a host.
    pub(super) fn host(&self, name: &str) -> Result<&HostRecord> {
        self.hosts.iter().find(|h| h.name == name).ok_or_else(|| {
            let known: Vec<&str> = self.hosts.iter().map(|h| h.name.as_str()).collect();
            format!(
                "there is no host {name} in lab {}; its hosts are {}",
                self.name,
                known.join(", ")
            )
        })
    }

    /// Returns a host's folder.
    pub(super) fn host_dir(&self, h: &HostRecord) -> PathBuf {
        dir(&self.name).join(&h.name)
    }

    /// Returns a host's address on the underlay.
    pub(super) fn address(&self, h: &HostRecord) -> String {
        format!("10.77.{}.{}", self.net, h.index + 60 * h.moves)
    }

    /// Returns a host's IPv6 address on the underlay.
    pub(super) fn address6(&self, h: &HostRecord) -> String {
        format!("fd77:{:x}::{:x}", self.net, u16::from(h.index) + 0x100 * u16::from(h.moves))
    }

    /// Returns the name of a host's network namespace.
    pub(super) fn netns(&self, h: &HostRecord) -> String {
        format!("skein-{}-{}", self.name, h.name)
    }

    /// Returns the name of the wire's network namespace.
    pub(super) fn wire(&self) -> String {
        format!("skein-{}-wire", self.name)
    }

    /// Returns a host's control group.
    pub(super) fn cgroup(&self, h: &HostRecord) -> String {
        format!("skein-{}-{}", self.name, h.name)
    }
}

/// Chooses a net number that no other lab has.
pub(super) fn free_net() -> u8 {
    let taken: Vec<u8> = fs::read_dir(root())
        .into_iter()
        .flatten()
        .filter_map(|e| fs::read(e.ok()?.path().join("lab.json")).ok())
        .filter_map(|b| serde_json::from_slice::<Lab>(&b).ok())
        .map(|l| l.net)
        .collect();
    (0..=254).find(|n| !taken.contains(n)).unwrap_or(255)
}

/// Makes a folder with its parents.
pub(super) fn make_dir(path: &Path) -> Result<()> {
    fs::create_dir_all(path).map_err(|e| format!("{}: {e}", path.display()))
}

/// Writes a file.
pub(super) fn write(path: &Path, text: impl AsRef<[u8]>) -> Result<()> {
    fs::write(path, text).map_err(|e| format!("{}: {e}", path.display()))
}
