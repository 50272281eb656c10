//! The end of a lab: everything that it made is removed, also what a crash kept out of its records. Shell.

use super::store::{self, Lab};
use super::{Result, cgroup, host, machine, say, small, wire};

pub(super) fn down(name: &str) -> Result<()> {
    match Lab::load(name) {
        Ok(Some(lab)) => {
            for h in &lab.hosts {
                host::remove(&lab, h);
            }
            wire::remove(&lab);
            say(format!("lab {name} is gone"));
        }
        Ok(None) => say(format!("there is no lab {name}")),
        Err(e) => say(format!("{e}; its folder is removed")),
    }
    sweep(name);
    let dir = store::dir(name);
    small::remove(&dir);
    match std::fs::remove_dir_all(&dir) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            return Err(format!("{}: {e}", dir.display()));
        }
        _ => {}
    }
    store::unlock(name);
    machine::restore();
    Ok(())
}

/// Removes what a crash kept out of the lab's records.
fn sweep(name: &str) {
    let prefix = format!("skein-{name}-");
    let ours = |name: &str| name.strip_prefix(&prefix).is_some_and(|host| !host.contains('-'));
    host::kill_all(&store::dir(name));
    for group in cgroup::names().iter().filter(|group| ours(group)) {
        cgroup::kill(group);
        cgroup::remove(group);
    }
    for entry in std::fs::read_dir("/run/netns").into_iter().flatten().flatten() {
        let ns = entry.file_name().to_string_lossy().into_owned();
        if ours(&ns) {
            super::try_sh("ip", &["netns", "del", &ns]);
        }
    }
}
