//! Files written whole or not at all. Shell.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::time::Duration;

use sha2::{Digest, Sha256};

use super::HostError;
use crate::secret::Secret;

/// After this time without a change a file counts as written.
const QUIET: Duration = Duration::from_secs(2);

/// Names the deed and the file in an error.
pub(super) fn at<'a>(
    verb: &'static str,
    path: &'a Path,
) -> impl FnOnce(io::Error) -> HostError + 'a {
    move |source| HostError::File { verb, path: path.to_owned(), source }
}

/// Writes `content` beside `path`, syncs it, and renames it into place; folders that are missing are made for root alone.
pub(super) fn write(path: &Path, mode: u32, content: &[u8]) -> Result<(), HostError> {
    let folder = path.parent().unwrap_or(Path::new("/"));
    make_folder(folder)?;
    let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let temporary = folder.join(format!(".{name}.skein-new"));
    remove(&temporary)?;
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(&temporary)
        .map_err(at("write", &temporary))?;
    file.set_permissions(fs::Permissions::from_mode(mode)).map_err(at("write", &temporary))?;
    file.write_all(content).map_err(at("write", &temporary))?;
    file.sync_all().map_err(at("write", &temporary))?;
    fs::rename(&temporary, path).map_err(at("write", path))?;
    sync_folder(folder)
}

/// Makes a folder and those above it, for root alone.
pub(super) fn make_folder(folder: &Path) -> Result<(), HostError> {
    // systemd's and K3s' public folders exist already; what is made here may hold secrets.
    DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(at("make", folder))
}

/// Makes a folder and those above it, for all to read.
pub(super) fn make_public_folder(folder: &Path) -> Result<(), HostError> {
    DirBuilder::new().recursive(true).mode(0o755).create(folder).map_err(at("make", folder))
}

fn sync_folder(folder: &Path) -> Result<(), HostError> {
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(at("sync", folder))
}

/// Removes a file; one that is gone already is no error.
pub(super) fn remove(path: &Path) -> Result<(), HostError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(at("remove", path)(error)),
        _ => Ok(()),
    }
}

/// The text of a file, `None` where there is none.
pub(super) fn read(path: &Path) -> Result<Option<String>, HostError> {
    match fs::read(path) {
        Ok(bytes) => Ok(Some(String::from_utf8_lossy(&bytes).into_owned())),
        Err(error)
            if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) =>
        {
            Ok(None)
        }
        Err(error) => Err(at("read", path)(error)),
    }
}

/// The text of a file that K3s writes; `None` where there is none or it may not be whole yet.
pub(super) fn read_secret(path: &Path) -> Result<Option<Secret>, HostError> {
    // K3s ends them with a newline; one without is whole if nobody has written to it for a while.
    let quiet = || {
        fs::metadata(path)
            .and_then(|meta| meta.modified())
            .ok()
            .and_then(|at| at.elapsed().ok())
            .is_some_and(|age| age > QUIET)
    };
    Ok(read(path)?
        .filter(|text| !text.trim().is_empty() && (text.ends_with('\n') || quiet()))
        .map(Secret::new))
}

/// SHA-256 of a file in hexadecimal, `None` where there is none.
pub(super) fn sha256(path: &Path) -> Result<Option<String>, HostError> {
    let mut file = match File::open(path) {
        Ok(file) => file,
        Err(error)
            if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) =>
        {
            return Ok(None);
        }
        Err(error) => return Err(at("read", path)(error)),
    };
    let mut hash = Sha256::new();
    io::copy(&mut file, &mut hash).map_err(at("read", path))?;
    Ok(Some(hex::encode(hash.finalize())))
}

/// The last `limit` bytes of a file as lines, and its size.
pub(super) fn tail(path: &Path, limit: u64) -> (Vec<String>, u64) {
    use std::io::{Read, Seek, SeekFrom};
    let read = || -> io::Result<(Vec<String>, u64)> {
        let mut file = File::open(path)?;
        let size = file.metadata()?.len();
        file.seek(SeekFrom::Start(size.saturating_sub(limit)))?;
        let mut bytes = Vec::new();
        file.take(limit).read_to_end(&mut bytes)?;
        let text = String::from_utf8_lossy(&bytes).into_owned();
        let skip = usize::from(size > limit);
        Ok((text.lines().skip(skip).map(str::to_owned).collect(), size))
    };
    read().unwrap_or_default()
}
