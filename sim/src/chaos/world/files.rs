//! The small files of a machine, in memory: each is put in place whole, as the port demands. Shell.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::disk::Drive;

/// What a machine's file system holds beside its store.
#[derive(Debug)]
pub struct SimFiles {
    drive: Arc<Drive>,
    all: Mutex<BTreeMap<PathBuf, Vec<u8>>>,
}

impl SimFiles {
    /// Makes an empty file system on a drive.
    pub fn new(drive: Arc<Drive>) -> Self {
        Self { drive, all: Mutex::default() }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<PathBuf, Vec<u8>>> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Removes everything.
    pub fn wipe(&self) {
        self.lock().clear();
    }
}

impl node::env::Files for SimFiles {
    fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        self.lock().get(path).cloned().ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn replace(&self, path: &Path, bytes: &[u8], _: u32) -> io::Result<()> {
        self.drive.write("file", path.as_os_str().as_encoded_bytes(), bytes)?;
        self.lock().insert(path.to_owned(), bytes.to_vec());
        Ok(())
    }

    fn private_dir(&self, _: &Path) -> io::Result<()> {
        Ok(())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.drive.write("removed", path.as_os_str().as_encoded_bytes(), &[])?;
        self.lock().retain(|p, _| !p.starts_with(path));
        self.drive.forget(path);
        Ok(())
    }
}
