//! Removing K3s: pods, mounts, interfaces, packet filter rules, files. Shell.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::mount::{MntFlags, umount2};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::HostError;
use super::files::{self, at};
use super::network;
use crate::observe::Marker;
use crate::render::Layout;

/// What the operator put into the data directory, below `agent`: it was not made by K3s.
const OPERATORS: [&str; 3] =
    ["images", "etc/containerd/config.toml.tmpl", "etc/containerd/config-v3.toml.tmpl"];

/// Removes everything that K3s made on this host, but for the node's password.
pub(super) async fn wipe(
    layout: &Layout,
    marker: Option<&Marker>,
    tell: &(impl Fn(&str) + Sync),
) -> Result<(), HostError> {
    tell("ending pods");
    end_pods(layout).await;
    tell("unmounting");
    unmount(layout)?;
    if layout.root == Path::new("/") {
        tell("removing interfaces and packet filter rules");
        network::remove(marker, &layout.data_dir).await?;
        remove_groups(Path::new("/sys/fs/cgroup"));
    }
    tell("removing files");
    remove_data(layout)
}

/// Ends every pod: containerd's shims of K3s, and all that descends from them.
async fn end_pods(layout: &Layout) {
    for _ in 0..20 {
        let doomed = doomed(layout, &processes());
        if doomed.is_empty() {
            return;
        }
        for pid in doomed {
            // One that ended meanwhile is what was wanted.
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

struct Process {
    parent: i32,
    arguments: Vec<String>,
    executable: PathBuf,
}

fn processes() -> BTreeMap<i32, Process> {
    let Ok(entries) = fs::read_dir("/proc") else {
        return BTreeMap::new();
    };
    let pids =
        entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    let read = |pid: i32| -> Option<(i32, Process)> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let parent = stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()?;
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let arguments = line
            .split(|byte| *byte == 0)
            .map(|word| String::from_utf8_lossy(word).into_owned())
            .collect();
        let executable = fs::read_link(format!("/proc/{pid}/exe")).unwrap_or_default();
        Some((pid, Process { parent, arguments, executable }))
    };
    pids.filter_map(read).collect()
}

/// Shims that serve K3s' containerd, with their descendants. Those of another containerd on this host are left alone.
fn doomed(layout: &Layout, all: &BTreeMap<i32, Process>) -> BTreeSet<i32> {
    let socket = layout.root.join("run/k3s/containerd");
    let ours = |process: &Process| {
        let program = process.arguments.first().map(String::as_str).unwrap_or_default();
        let shim = Path::new(program)
            .file_name()
            .is_some_and(|name| name.to_string_lossy().starts_with("containerd-shim"));
        let served =
            process.arguments.iter().any(|argument| Path::new(argument).starts_with(&socket));
        shim && (served || process.executable.starts_with(layout.data_dir.join("data")))
    };
    let mut doomed: BTreeSet<i32> =
        all.iter().filter(|(_, process)| ours(process)).map(|(pid, _)| *pid).collect();
    loop {
        let more: Vec<i32> = (all.iter())
            .filter(|(pid, process)| doomed.contains(&process.parent) && !doomed.contains(pid))
            .map(|(pid, _)| *pid)
            .collect();
        if more.is_empty() {
            return doomed;
        }
        doomed.extend(more);
    }
}

/// Folders below which every mount is of K3s or its pods.
fn mounted_by_k3s(layout: &Layout) -> [PathBuf; 5] {
    let of = |path: &str| layout.root.join(path);
    [
        of("run/k3s"),
        of("var/lib/kubelet/pods"),
        of("var/lib/kubelet/plugins"),
        of("run/netns"),
        layout.data_dir.clone(),
    ]
}

fn unmount(layout: &Layout) -> Result<(), HostError> {
    let table = files::read(Path::new("/proc/self/mountinfo"))?.unwrap_or_default();
    let mut points = mount_points(&table, layout);
    points.sort();
    for point in points.iter().rev() {
        match umount2(point, MntFlags::MNT_DETACH) {
            Ok(()) | Err(nix::errno::Errno::EINVAL | nix::errno::Errno::ENOENT) => {}
            Err(error) => return Err(at("unmount", point)(error.into())),
        }
        if point.starts_with(layout.root.join("run/netns")) {
            files::remove(point)?;
        }
    }
    Ok(())
}

/// Mounts strictly below K3s' folders: a folder that is itself a mount was made one by the operator. In `run/netns` only those of CNI.
fn mount_points(table: &str, layout: &Layout) -> Vec<PathBuf> {
    let folders = mounted_by_k3s(layout);
    let netns = layout.root.join("run/netns");
    let points = table
        .lines()
        .filter_map(|line| line.split(' ').nth(4))
        .map(|point| PathBuf::from(unescape(point)));
    let ours = |point: &PathBuf| {
        if let Ok(rest) = point.strip_prefix(&netns) {
            return rest.to_string_lossy().starts_with("cni-");
        }
        folders.iter().any(|folder| point != folder && point.starts_with(folder))
    };
    points.filter(ours).collect()
}

/// Spaces and the like are octal in the mount table.
fn unescape(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, tail)) = rest.split_first() {
        let octal = (*first == b'\\')
            .then(|| tail.get(..3))
            .flatten()
            .and_then(|digits| std::str::from_utf8(digits).ok());
        match octal.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(byte) => {
                bytes.push(byte);
                rest = &tail[3..];
            }
            None => {
                bytes.push(*first);
                rest = tail;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Removes the control groups of pods, which are empty by now, in every hierarchy. Those of systemd's slices go with it.
fn remove_groups(top: &Path) {
    let hierarchies = fs::read_dir(top).into_iter().flatten().flatten().map(|entry| entry.path());
    for hierarchy in hierarchies.chain([top.to_owned()]) {
        remove_group(&hierarchy.join("kubepods"));
    }
}

fn remove_group(group: &Path) {
    let inner = fs::read_dir(group).into_iter().flatten().flatten();
    for entry in inner.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())) {
        remove_group(&entry.path());
    }
    // One that is not there, or is in use by somebody else, is no matter.
    let _ = fs::remove_dir(group);
}

fn remove_data(layout: &Layout) -> Result<(), HostError> {
    let of = |path: &str| layout.root.join(path);
    let agent = layout.data_dir.join("agent");
    let kept: Vec<PathBuf> =
        OPERATORS.iter().map(|path| agent.join(path)).filter(|path| path.exists()).collect();
    remove_tree(&layout.data_dir, &kept)?;
    for path in [
        "var/lib/kubelet",
        "run/k3s",
        "run/flannel",
        "var/lib/cni/flannel",
        "var/lib/cni/networks/cbr0",
        "var/log/pods",
        "var/log/containers",
    ] {
        remove_tree(&of(path), &[])?;
    }
    remove_results(&of("var/lib/cni/results"))?;
    for path in ["var/lib/cni/networks", "var/lib/cni/results", "var/lib/cni"] {
        // Stays where another user of CNI keeps something in it.
        let _ = fs::remove_dir(of(path));
    }
    files::remove(&layout.kubeconfig())?;
    for path in layout.ours() {
        files::remove(&path)?;
    }
    let empty = files::read(&layout.operator_config())?
        .is_some_and(|text| text == super::linux::EMPTY_CONFIG);
    if empty {
        files::remove(&layout.operator_config())?;
    }
    let old_log = layout.log.with_extension("log.1");
    for path in [&layout.log, &old_log] {
        files::remove(path)?;
    }
    let drop_ins = [crate::spec::RoleKind::Server, crate::spec::RoleKind::Agent]
        .map(|role| layout.drop_in(role));
    let folders = drop_ins.iter().filter_map(|path| path.parent()).map(Path::to_owned);
    for folder in
        folders.chain([layout.config_dir.join("config.yaml.d"), layout.config_dir.clone()])
    {
        // Stays where the operator keeps something in it.
        let _ = fs::remove_dir(folder);
    }
    for group in super::process::control_groups(layout) {
        let _ = fs::remove_dir(group);
    }
    Ok(())
}

/// Removes what CNI noted about pods of K3s' network, which is called cbr0.
fn remove_results(folder: &Path) -> Result<(), HostError> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let names: Vec<String> =
        entries.filter_map(|entry| entry.file_name().into_string().ok()).collect();
    let pods: BTreeSet<&str> =
        names.iter().filter_map(|name| name.strip_prefix("cbr0-")?.strip_suffix("-eth0")).collect();
    for name in names.iter().filter(|name| pods.iter().any(|pod| name.contains(pod))) {
        files::remove(&folder.join(name))?;
    }
    Ok(())
}

/// Removes a folder with all below it, but for `kept` and what leads there, and without leaving its file system.
fn remove_tree(folder: &Path, kept: &[PathBuf]) -> Result<(), HostError> {
    use std::os::unix::fs::MetadataExt;
    let Ok(meta) = fs::symlink_metadata(folder) else {
        return Ok(());
    };
    if !meta.is_dir() {
        return files::remove(folder);
    }
    let entries = fs::read_dir(folder).map_err(at("read", folder))?;
    for entry in entries {
        let path = entry.map_err(at("read", folder))?.path();
        if kept.contains(&path) {
            continue;
        }
        let inner = match fs::symlink_metadata(&path) {
            Ok(inner) => inner,
            Err(_) => continue,
        };
        if inner.is_dir() {
            if inner.dev() != meta.dev() {
                return Err(HostError::Refused(format!(
                    "{} is another file system and still mounted; unmount it, it is not emptied",
                    path.display()
                )));
            }
            remove_tree(&path, kept)?;
        } else {
            files::remove(&path)?;
        }
    }
    // Fails for a folder that holds something kept, or that is a mount of the operator's.
    let _ = fs::remove_dir(folder);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_mounts_of_k3s_are_taken() {
        let line = |point: &str| format!("1 2 0:3 / {point} rw - tmpfs tmpfs rw\n");
        let points = [
            "/",
            "/var/lib/kubelet",
            "/var/lib/kubelet/pods/a/volumes/x\\040y",
            "/run/k3s/containerd/x/shm",
            "/run/k3s",
            "/run/netns/cni-1",
            "/run/netns/mine",
            "/run/netns",
            "/var/lib/rancher/k3s",
            "/var/lib/rancher/k3s/agent/x",
            "/var/lib/rancher/k3sother/x",
        ];
        let table: String = points.iter().map(|point| line(point)).collect();
        let found = mount_points(&table, &Layout::default());
        let found: Vec<&str> = found.iter().filter_map(|point| point.to_str()).collect();
        assert_eq!(
            found,
            [
                "/var/lib/kubelet/pods/a/volumes/x y",
                "/run/k3s/containerd/x/shm",
                "/run/netns/cni-1",
                "/var/lib/rancher/k3s/agent/x"
            ]
        );
    }

    #[test]
    fn shims_of_another_containerd_live_on() {
        let process = |parent, line: &str, executable: &str| Process {
            parent,
            arguments: line.split(' ').map(str::to_owned).collect(),
            executable: executable.into(),
        };
        let all = BTreeMap::from([
            (1, process(0, "/sbin/init", "/sbin/init")),
            (
                10,
                process(
                    1,
                    "/var/lib/rancher/k3s/data/ab/bin/containerd-shim-runc-v2 -id x",
                    "/var/lib/rancher/k3s/data/ab/bin/containerd-shim-runc-v2",
                ),
            ),
            (11, process(10, "/pause", "/pause")),
            (12, process(11, "sh", "/bin/sh")),
            (
                20,
                process(
                    1,
                    "/usr/bin/containerd-shim-runc-v2 -address /run/k3s/containerd/containerd.sock",
                    "/usr/bin/containerd-shim-runc-v2",
                ),
            ),
            (
                30,
                process(
                    1,
                    "/usr/bin/containerd-shim-runc-v2 -address /run/containerd/containerd.sock",
                    "/usr/bin/containerd-shim-runc-v2",
                ),
            ),
            (31, process(30, "/pause", "/pause")),
        ]);
        assert_eq!(doomed(&Layout::default(), &all), BTreeSet::from([10, 11, 12, 20]));
    }

    #[test]
    fn the_operators_files_and_the_node_password_stay() {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::below(dir.path());
        let keep = [
            layout.data_dir.join("agent/images/a.tar"),
            dir.path().join("etc/rancher/node/password"),
            layout.operator_config(),
        ];
        let go = [
            layout.data_dir.join("server/db/x"),
            layout.data_dir.join("agent/y"),
            layout.kubeconfig(),
            layout.config(),
            dir.path().join("var/lib/kubelet/config"),
        ];
        for path in keep.iter().chain(&go) {
            files::write(path, 0o600, b"x").unwrap();
        }
        remove_data(&layout).unwrap();
        remove_data(&layout).unwrap();
        assert!(keep.iter().all(|path| path.exists()));
        assert!(!go.iter().any(|path| path.exists()));
        fs::remove_dir_all(layout.data_dir.join("agent/images")).unwrap();
        fs::write(layout.operator_config(), crate::host::linux::EMPTY_CONFIG).unwrap();
        remove_data(&layout).unwrap();
        assert!(!layout.data_dir.exists() && !layout.config_dir.exists());
    }
}
