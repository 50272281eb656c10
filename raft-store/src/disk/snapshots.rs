//! Snapshots as files: `<term>-<index>.snap`, checked block by block, the last two kept. Shell.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

const BLOCK: usize = 64 * 1024;
const KEPT: usize = 2;
const MAGIC: &[u8; 8] = b"skeinsn1";

/// The folder of snapshot files.
#[derive(Clone, Debug)]
pub struct Snapshots {
    dir: PathBuf,
}

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

impl Snapshots {
    /// Uses `dir`, making it if need be.
    ///
    /// # Errors
    /// When the folder cannot be made.
    pub fn open(dir: &Path) -> Result<Self, SnapshotError> {
        fs::create_dir_all(dir).map_err(io_error(dir))?;
        Ok(Self { dir: dir.to_owned() })
    }

    /// Writes a snapshot; it is durable, or absent.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn write(&self, term: u64, index: u64, body: &[u8]) -> Result<(), SnapshotError> {
        let path = self.dir.join(format!("{term:020}-{index:020}.snap"));
        let temporary = path.with_extension("tmp");
        let mut bytes = MAGIC.to_vec();
        bytes.extend_from_slice(&(body.len() as u64).to_be_bytes());
        for block in body.chunks(BLOCK) {
            bytes.extend_from_slice(&crc32c::crc32c(block).to_be_bytes());
            bytes.extend_from_slice(block);
        }
        let mut file = File::create(&temporary).map_err(io_error(&temporary))?;
        file.write_all(&bytes).map_err(io_error(&temporary))?;
        file.sync_all().map_err(io_error(&temporary))?;
        fs::rename(&temporary, &path).map_err(io_error(&path))?;
        File::open(&self.dir).and_then(|d| d.sync_all()).map_err(io_error(&self.dir))?;
        self.prune()
    }

    /// Returns the newest snapshot that is whole.
    ///
    /// # Errors
    /// When the folder cannot be read, or no snapshot in it is whole though there are some.
    pub fn newest(&self) -> Result<Option<Vec<u8>>, SnapshotError> {
        let files = self.files()?;
        let mut damaged = None;
        for path in files.iter().rev() {
            match read(path) {
                Ok(body) => return Ok(Some(body)),
                Err(e) => {
                    tracing::warn!(error = %e, "an older snapshot is tried");
                    damaged = Some(e);
                }
            }
        }
        damaged.map_or(Ok(None), Err)
    }

    fn files(&self) -> Result<Vec<PathBuf>, SnapshotError> {
        let entries = fs::read_dir(&self.dir).map_err(io_error(&self.dir))?;
        let mut files: Vec<PathBuf> = entries
            .filter_map(|e| e.ok().map(|e| e.path()))
            .filter(|p| p.extension().is_some_and(|x| x == "snap"))
            .collect();
        // The index is the newer half of the name, whatever the term.
        files.sort_by_key(|p| {
            p.file_stem()
                .and_then(|s| s.to_str())
                .map(|s| s.split('-').next_back().map(str::to_owned))
        });
        Ok(files)
    }

    fn prune(&self) -> Result<(), SnapshotError> {
        let files = self.files()?;
        let old = files.len().saturating_sub(KEPT);
        for path in &files[..old] {
            fs::remove_file(path).map_err(io_error(path))?;
        }
        Ok(())
    }
}

fn read(path: &Path) -> Result<Vec<u8>, SnapshotError> {
    let bytes = fs::read(path).map_err(io_error(path))?;
    parse(&bytes).ok_or_else(|| SnapshotError::Damaged(path.to_owned()))
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
        assert_eq!(snaps.files().unwrap().len(), KEPT);
        assert_eq!(snaps.newest().unwrap().unwrap(), b"new");
        let newest = snaps.files().unwrap().pop().unwrap();
        let mut bytes = fs::read(&newest).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        fs::write(&newest, bytes).unwrap();
        assert_eq!(snaps.newest().unwrap().unwrap(), big);
        for path in snaps.files().unwrap() {
            fs::write(path, b"skeinsn1").unwrap();
        }
        assert!(snaps.newest().is_err());
    }
}
