//! A control group of its own for each host, so that its containers can have theirs. Shell.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Returns the mounted controllers of version 1, or the one hierarchy of version 2.
pub(super) fn hierarchies() -> Vec<PathBuf> {
    let mounts = fs::read_to_string("/proc/mounts").unwrap_or_default();
    let of = |kind: &str| -> Vec<PathBuf> {
        let fields = mounts.lines().map(|l| l.split(' ').collect::<Vec<_>>());
        fields
            .filter(|f| f.len() > 3 && f[2] == kind && f[1].starts_with("/sys/fs/cgroup"))
            .map(|f| PathBuf::from(f[1]))
            .collect()
    };
    let v1 = of("cgroup");
    if v1.is_empty() { of("cgroup2") } else { v1 }
}

/// Whether these are the one hierarchy of version 2.
pub(super) fn is_v2(hierarchies: &[PathBuf]) -> bool {
    hierarchies == [Path::new("/sys/fs/cgroup")]
}

/// Where the host's own processes are in version 2, where a group with children that have controllers has none.
const LEAF: &str = "init";

/// The files through which a process enters a host's groups.
pub(super) fn doors(name: &str) -> Vec<PathBuf> {
    let hierarchies = hierarchies();
    let v2 = is_v2(&hierarchies);
    let group = |h: PathBuf| if v2 { h.join(name).join(LEAF) } else { h.join(name) };
    hierarchies.into_iter().map(|h| group(h).join("cgroup.procs")).collect()
}

/// Once the host's root of groups is fixed, moves its first processes into their leaf, so that kubelet may make
/// groups with controllers beside it. Nothing in version 1.
pub(super) fn settle(name: &str) {
    let hierarchies = hierarchies();
    if !is_v2(&hierarchies) {
        return;
    }
    let group = hierarchies[0].join(name);
    let leaf = group.join(LEAF);
    let _ = fs::create_dir_all(&leaf);
    let procs = fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default();
    for pid in procs.lines() {
        // One that ended meanwhile needs no move.
        let _ = fs::write(leaf.join("cgroup.procs"), pid);
    }
    delegate(&group);
}

/// Lets a group's children have all controllers that it has; each by itself, since some may be refused.
fn delegate(group: &Path) {
    let all = fs::read_to_string(group.join("cgroup.controllers")).unwrap_or_default();
    for controller in all.split_whitespace() {
        let _ = fs::write(group.join("cgroup.subtree_control"), format!("+{controller}"));
    }
}

/// Makes a host's groups and returns the files through which to enter them; what cannot be made is left out.
pub(super) fn make(name: &str) -> Vec<PathBuf> {
    let mut made = Vec::new();
    let hierarchies = hierarchies();
    if is_v2(&hierarchies) {
        delegate(&hierarchies[0]);
    }
    for hierarchy in hierarchies {
        let group = hierarchy.join(name);
        if fs::create_dir_all(&group).is_err() {
            continue;
        }
        for file in ["cpuset.cpus", "cpuset.mems"] {
            if let Ok(all) = fs::read_to_string(hierarchy.join(file)) {
                // Version 1 wants these set before a process may enter.
                let _ = fs::write(group.join(file), all.trim());
            }
        }
        made.push(group.join("cgroup.procs"));
    }
    made
}

/// Puts this process, and so its children, into a host's groups.
pub(super) fn enter(name: &str) {
    for door in doors(name) {
        let _ = fs::write(door, std::process::id().to_string());
    }
}

/// Returns the names of all groups at the top, of hosts or not.
pub(super) fn names() -> Vec<String> {
    let entries =
        hierarchies().into_iter().filter_map(|h| fs::read_dir(h).ok()).flatten().flatten();
    let mut names: Vec<String> =
        entries.map(|e| e.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names.dedup();
    names
}

/// Removes a host's groups with all below; what still ends is waited for a little.
pub(super) fn remove(name: &str) {
    for hierarchy in hierarchies() {
        let group = hierarchy.join(name);
        for _ in 0..20 {
            remove_tree(&group);
            if !group.exists() {
                break;
            }
            std::thread::sleep(Duration::from_millis(150));
        }
    }
}

fn remove_tree(group: &Path) {
    for entry in fs::read_dir(group).into_iter().flatten().flatten() {
        if entry.path().is_dir() {
            remove_tree(&entry.path());
        }
    }
    let _ = fs::remove_dir(group);
}

/// Ends every process in a host's groups, also such as left its process namespace.
pub(super) fn kill(name: &str) {
    for hierarchy in hierarchies() {
        kill_tree(&hierarchy.join(name));
    }
}

fn kill_tree(group: &Path) {
    for entry in fs::read_dir(group).into_iter().flatten().flatten() {
        if entry.path().is_dir() {
            kill_tree(&entry.path());
        }
    }
    let procs = fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default();
    for pid in procs.lines().filter_map(|l| l.parse().ok()) {
        let _ = nix::sys::signal::kill(
            nix::unistd::Pid::from_raw(pid),
            nix::sys::signal::Signal::SIGKILL,
        );
    }
}
