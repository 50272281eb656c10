//! The number of the last acknowledged batch, kept beside sled. Shell.
//!
//! sled ends a log quietly at the first record that it cannot read. The number here shows that something
//! acknowledged was cut off. It is written after the batch is durable and not synced itself, so that it is never
//! ahead of the disk and costs no second fdatasync.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use super::record::{protect, verify};

/// An open `TAIL` file.
pub(super) struct Tail {
    file: File,
    seq: u64,
}

impl Tail {
    /// Makes one that stands at 0.
    pub(super) fn make(dir: &Path) -> io::Result<()> {
        let file = File::create(dir.join("TAIL"))?;
        file.write_all_at(&protect(&0u64.to_be_bytes()), 0)?;
        file.sync_all()
    }

    /// Opens it; where it is torn or gone, only sled's own word counts.
    pub(super) fn open(dir: &Path) -> io::Result<Self> {
        let path = dir.join("TAIL");
        let file =
            OpenOptions::new().create(true).truncate(false).read(true).write(true).open(&path)?;
        let mut bytes = [0; 12];
        let seq = file
            .read_exact_at(&mut bytes, 0)
            .ok()
            .and_then(|()| verify(&bytes).ok()?.try_into().ok())
            .map(u64::from_be_bytes);
        if seq.is_none() {
            tracing::warn!(path = %path.display(), "the number of the last acknowledged batch is unreadable");
        }
        Ok(Self { file, seq: seq.unwrap_or(0) })
    }

    pub(super) fn seq(&self) -> u64 {
        self.seq
    }

    /// Continues from what sled holds, which may be ahead.
    pub(super) fn continue_from(&mut self, seq: u64) {
        self.seq = self.seq.max(seq);
    }

    pub(super) fn set(&mut self, seq: u64) -> io::Result<()> {
        self.file.write_all_at(&protect(&seq.to_be_bytes()), 0)?;
        self.seq = seq;
        Ok(())
    }
}
