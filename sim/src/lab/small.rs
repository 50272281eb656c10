//! A small disk for a host's Skein: a file system of its own that can be full while the machine's is not. Shell.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, MsFlags, mount, umount2};

use super::store::{HostRecord, Lab, make_dir};
use super::{Result, init};

/// Skein's state folder on a host's disk.
const STATE: &str = "disk/var/lib/skein";
/// What fills the disk.
const FILLER: &str = "filler";
/// How much fits on the disk beside the K3s binary, which Skein installs there, in bytes.
const ROOM: u64 = 64 << 20;

/// Returns the folder of a host's Skein.
pub(super) fn state(lab: &Lab, h: &HostRecord) -> PathBuf {
    lab.host_dir(h).join(STATE)
}

fn mounted_below(dir: &Path) -> Vec<PathBuf> {
    let mounts = fs::read_to_string("/proc/mounts").unwrap_or_default();
    let points = mounts.lines().filter_map(|l| l.split(' ').nth(1)).map(PathBuf::from);
    points.filter(|point| point.starts_with(dir)).collect()
}

/// Lays the disk, if it is not there; it is memory, and outlives the host's processes as a disk does.
pub(super) fn lay(lab: &Lab, h: &HostRecord) -> Result<()> {
    let dir = state(lab, h);
    make_dir(&dir)?;
    if mounted_below(&dir).is_empty() {
        let binary = fs::metadata(&lab.k3s_binary).map_or(0, |m| m.len());
        let size = format!("size={},mode=700", binary + ROOM);
        mount(Some("tmpfs"), &dir, Some("tmpfs"), MsFlags::empty(), Some(size.as_str()))
            .map_err(|e| format!("mounting {}: {e}", dir.display()))?;
    }
    Ok(())
}

/// Takes away every disk below a folder.
pub(super) fn remove(dir: &Path) {
    for point in mounted_below(dir) {
        // Whoever still has it open loses it when it ends.
        let _ = umount2(&point, MntFlags::MNT_DETACH);
    }
}

/// Fills the disk.
pub(super) fn fill(lab: &Lab, h: &HostRecord) -> Result<()> {
    let path = state(lab, h).join(FILLER);
    if mounted_below(&state(lab, h)).is_empty() {
        return Err(format!("{} is no disk of its own, and was not filled", path.display()));
    }
    let mut file = fs::File::create(&path).map_err(|e| format!("{}: {e}", path.display()))?;
    for size in [1 << 20, 4_096, 512, 1] {
        // The last one that fits.
        while file.write_all(&vec![0; size]).is_ok() {}
    }
    Ok(())
}

/// Makes room again.
pub(super) fn make_room(lab: &Lab, h: &HostRecord) {
    let _ = fs::remove_file(state(lab, h).join(FILLER));
}

/// Empties all disks of a host that is down; what its daemons wrote to logs stays.
pub(super) fn empty(lab: &Lab, h: &HostRecord) -> Result<()> {
    let dir = lab.host_dir(h);
    remove(&dir);
    for path in init::PRIVATE.iter().filter(|path| **path != "/var/log") {
        let own = dir.join("disk").join(path.trim_start_matches('/'));
        match fs::remove_dir_all(&own) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                return Err(format!("{}: {e}", own.display()));
            }
            _ => {}
        }
    }
    Ok(())
}
