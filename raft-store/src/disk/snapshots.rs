//! Snapshots as files: `<term>-<index>.snap`, checked block by block, the last two kept. Shell.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

const BLOCK: usize = 64 * 1024;
const KEPT: usize = 2;
const MAGIC: &[u8; 8] = b"skeinsn1";

/// The files of a folder of snapshots. A port, so that they can lie in memory.
pub trait SnapshotFiles: std::fmt::Debug + Send + Sync + 'static {
    /// Puts a file in place: it is durable when this returns, or absent.
    ///
    /// # Errors
    /// What the file system answered.
    fn put(&self, name: &str, bytes: &[u8]) -> Result<(), SnapshotError>;

    /// Returns a file's bytes.
    ///
    /// # Errors
    /// What the file system answered.
    fn get(&self, name: &str) -> Result<Vec<u8>, SnapshotError>;

    /// Returns the names of all files.
    ///
    /// # Errors
    /// What the file system answered.
    fn names(&self) -> Result<Vec<String>, SnapshotError>;

    /// Removes a file.
    ///
    /// # Errors
    /// What the file system answered.
    fn remove(&self, name: &str) -> Result<(), SnapshotError>;
}

/// A store's snapshots.
#[derive(Clone, Debug)]
pub struct Snapshots {
    files: Arc<dyn SnapshotFiles>,
}

/// A folder of a file system.
#[derive(Debug)]
struct Folder(PathBuf);

/// Why a snapshot could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// The file system refused.
    #[error("cannot use snapshot {path}: {source}")]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// The operating system's answer.
        source: io::Error,
    },
    /// The content is not what was written.
    #[error("snapshot {0} is damaged")]
    Damaged(PathBuf),
}

fn io_error(path: &Path) -> impl FnOnce(io::Error) -> SnapshotError + '_ {
    move |source| SnapshotError::Io { path: path.to_owned(), source }
}

impl SnapshotFiles for Folder {
    fn put(&self, name: &str, bytes: &[u8]) -> Result<(), SnapshotError> {
        let path = self.0.join(name);
        let temporary = path.with_extension("tmp");
        let mut file = File::create(&temporary).map_err(io_error(&temporary))?;
        file.write_all(bytes).map_err(io_error(&temporary))?;
        file.sync_all().map_err(io_error(&temporary))?;
        fs::rename(&temporary, &path).map_err(io_error(&path))?;
        File::open(&self.0).and_then(|d| d.sync_all()).map_err(io_error(&self.0))
    }

    fn get(&self, name: &str) -> Result<Vec<u8>, SnapshotError> {
        let path = self.0.join(name);
        fs::read(&path).map_err(io_error(&path))
    }

    fn names(&self) -> Result<Vec<String>, SnapshotError> {
        let entries = fs::read_dir(&self.0).map_err(io_error(&self.0))?;
        Ok(entries.filter_map(|e| e.ok()?.file_name().into_string().ok()).collect())
    }

    fn remove(&self, name: &str) -> Result<(), SnapshotError> {
        let path = self.0.join(name);
        fs::remove_file(&path).map_err(io_error(&path))
    }
}

impl Snapshots {
    /// Uses `dir`, making it if need be.
    ///
    /// # Errors
    /// When the folder cannot be made.
    pub fn open(dir: &Path) -> Result<Self, SnapshotError> {
        fs::create_dir_all(dir).map_err(io_error(dir))?;
        Ok(Self::on(Arc::new(Folder(dir.to_owned()))))
    }

    /// Uses these files.
    pub fn on(files: Arc<dyn SnapshotFiles>) -> Self {
        Self { files }
    }

    /// Writes a snapshot; it is durable, or absent.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn write(&self, term: u64, index: u64, body: &[u8]) -> Result<(), SnapshotError> {
        let mut bytes = MAGIC.to_vec();
        bytes.extend_from_slice(&(body.len() as u64).to_be_bytes());
        for block in body.chunks(BLOCK) {
            bytes.extend_from_slice(&crc32c::crc32c(block).to_be_bytes());
            bytes.extend_from_slice(block);
        }
        self.files.put(&format!("{term:020}-{index:020}.snap"), &bytes)?;
        let names = self.names()?;
        let old = names.len().saturating_sub(KEPT);
        names[..old].iter().try_for_each(|name| self.files.remove(name))
    }

    /// Returns the newest snapshot that is whole.
    ///
    /// # Errors
    /// When the folder cannot be read, or no snapshot in it is whole though there are some.
    pub fn newest(&self) -> Result<Option<Vec<u8>>, SnapshotError> {
        let mut damaged = None;
        for name in self.names()?.iter().rev() {
            let read = self.files.get(name);
            match read.and_then(|b| parse(&b).ok_or_else(|| SnapshotError::Damaged(name.into()))) {
                Ok(body) => return Ok(Some(body)),
                Err(e) => {
                    tracing::warn!(error = %e, "an older snapshot is tried");
                    damaged = Some(e);
                }
            }
        }
        damaged.map_or(Ok(None), Err)
    }

    /// The names of all snapshots, oldest first.
    fn names(&self) -> Result<Vec<String>, SnapshotError> {
        let mut names = self.files.names()?;
        names.retain(|name| name.ends_with(".snap"));
        // The index is the newer half of the name, whatever the term.
        names.sort_by(|a, b| a.split('-').next_back().cmp(&b.split('-').next_back()));
        Ok(names)
    }
}

fn parse(bytes: &[u8]) -> Option<Vec<u8>> {
    let rest = bytes.strip_prefix(MAGIC)?;
    let (len, mut rest) = rest.split_at_checked(8)?;
    let len = usize::try_from(u64::from_be_bytes(len.try_into().ok()?)).ok()?;
    let mut body = Vec::with_capacity(len.min(rest.len()));
    while body.len() < len {
        let (sum, after) = rest.split_at_checked(4)?;
        let (block, after) = after.split_at_checked(BLOCK.min(len - body.len()))?;
        if crc32c::crc32c(block) != u32::from_be_bytes(sum.try_into().ok()?) {
            return None;
        }
        body.extend_from_slice(block);
        rest = after;
    }
    rest.is_empty().then_some(body)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_whole_snapshot_is_found() {
        let dir = tempfile::tempdir().unwrap();
        let snaps = Snapshots::open(dir.path()).unwrap();
        assert!(snaps.newest().unwrap().is_none());
        let big = vec![7u8; 3 * BLOCK + 5];
        snaps.write(1, 9, b"old").unwrap();
        snaps.write(1, 10, &big).unwrap();
        snaps.write(2, 11, b"new").unwrap();
        assert_eq!(snaps.names().unwrap().len(), KEPT);
        assert_eq!(snaps.newest().unwrap().unwrap(), b"new");
        let newest = dir.path().join(snaps.names().unwrap().pop().unwrap());
        let mut bytes = fs::read(&newest).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        fs::write(&newest, bytes).unwrap();
        assert_eq!(snaps.newest().unwrap().unwrap(), big);
        for name in snaps.names().unwrap() {
            fs::write(dir.path().join(name), b"skeinsn1").unwrap();
        }
        assert!(snaps.newest().is_err());
    }
}
