//! What hosts must find on the machine itself: made before the first host, taken away after the last. Shell.

use std::fs::{self, OpenOptions};
use std::io::Write as _;
use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, umount2};

use super::{Result, init, store};

/// Where iproute2 keeps network namespaces; it makes the folder a mount of its own.
const NETNS: &str = "/run/netns";
/// No lab has such a name.
const NAME: &str = ".machine";

/// What was made, one thing a line, in order.
fn record() -> PathBuf {
    store::root().join(NAME)
}

fn mounted(path: &str) -> bool {
    let mounts = fs::read_to_string("/proc/mounts").unwrap_or_default();
    mounts.lines().any(|l| l.split(' ').nth(1) == Some(path))
}

fn is_empty(dir: &str) -> bool {
    fs::read_dir(dir).is_ok_and(|mut entries| entries.next().is_none())
}

/// Makes what is missing, and remembers it before it is made.
pub(super) fn prepare() -> Result<()> {
    let _lock = store::lock(NAME, "preparing the machine")?;
    let said = |e: std::io::Error| format!("{}: {e}", record().display());
    let mut list = OpenOptions::new().append(true).create(true).open(record()).map_err(said)?;
    let mut note =
        |kind: &str, path: &Path| writeln!(list, "{kind} {}", path.display()).map_err(said);
    for path in init::PRIVATE.iter().chain([&NETNS]) {
        let absent = Path::new(path).ancestors().take_while(|p| !p.exists());
        let absent: Vec<&Path> = absent.collect();
        for dir in absent.into_iter().rev() {
            note("dir", dir)?;
            store::make_dir(dir)?;
        }
    }
    if !mounted(NETNS) {
        note("mount", Path::new(NETNS))?;
    }
    for name in init::ETC {
        let path = Path::new("/etc").join(name);
        if !path.exists() {
            note("file", &path)?;
            store::write(&path, "")?;
        }
    }
    Ok(())
}

/// Takes away what was made, if no lab is left and nobody else uses it by now.
pub(super) fn restore() {
    let Ok(_lock) = store::lock(NAME, "restoring the machine") else {
        return;
    };
    let entries = fs::read_dir(store::root()).into_iter().flatten().flatten();
    let mut labs = entries.filter(|e| !e.file_name().to_string_lossy().starts_with(NAME));
    if labs.next().is_some() {
        return;
    }
    let list = fs::read_to_string(record()).unwrap_or_default();
    for (kind, path) in list.lines().rev().filter_map(|l| l.split_once(' ')) {
        let _ = match kind {
            "mount" if is_empty(path) && mounted(path) => {
                umount2(path, MntFlags::MNT_DETACH).map_err(std::io::Error::from)
            }
            // Both fail, as they should, when there is something in it.
            "dir" => fs::remove_dir(path),
            "file" if fs::metadata(path).is_ok_and(|m| m.len() == 0) => fs::remove_file(path),
            _ => Ok(()),
        };
    }
    let _ = fs::remove_file(record());
    store::unlock(NAME);
}
