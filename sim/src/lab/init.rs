//! Process 1 of a host: lays the host's own file systems, then buries the dead. Shell.

use std::fs;
use std::path::Path;
use std::time::Duration;

use nix::mount::{MsFlags, mount};
use nix::sys::wait::{WaitPidFlag, waitpid};

use super::{Result, cgroup};

/// Folders that each host has for itself.
pub(super) const PRIVATE: [&str; 10] = [
    "/etc/rancher",
    "/var/lib/rancher",
    "/var/lib/kubelet",
    "/var/lib/cni",
    "/var/lib/containerd",
    "/var/lib/skein",
    "/etc/skein",
    "/var/log",
    "/etc/cni",
    "/root/.kube",
];

/// Files of `/etc` that each host has for itself.
pub(super) const ETC: [&str; 4] = ["hosts", "hostname", "machine-id", "resolv.conf"];

/// Settings of the whole machine that kubelet writes: plain files in a host.
const SYSCTLS: [&str; 3] = ["vm/overcommit_memory", "kernel/panic", "kernel/panic_on_oops"];

fn bind(from: &Path, to: &Path) -> Result<()> {
    mount(Some(from), to, None::<&str>, MsFlags::MS_BIND, None::<&str>)
        .map_err(|e| format!("binding {}: {e}", to.display()))
}

fn fresh(kind: &str, to: &str, options: Option<&str>) -> Result<()> {
    mount(Some(kind), to, Some(kind), MsFlags::empty(), options)
        .map_err(|e| format!("mounting {to}: {e}"))
}

fn shared() -> Result<()> {
    let flags = MsFlags::MS_REC | MsFlags::MS_SHARED;
    mount(None::<&str>, "/", None::<&str>, flags, None::<&str>)
        .map_err(|e| format!("sharing /: {e}"))
}

/// Runs as process 1 of the host whose folder is `dir`; never returns but by failure.
///
/// # Errors
/// When something cannot be mounted.
pub fn run(dir: &Path) -> std::result::Result<u8, String> {
    let hierarchies = cgroup::hierarchies();
    let v2 = cgroup::is_v2(&hierarchies);
    shared()?;
    fresh("proc", "/proc", None)?;
    fresh("sysfs", "/sys", None)?;
    if v2 {
        fresh("cgroup2", "/sys/fs/cgroup", None)?;
    } else {
        fresh("tmpfs", "/sys/fs/cgroup", Some("mode=755"))?;
        for path in &hierarchies {
            let _ = fs::create_dir_all(path);
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            let options =
                if name == "systemd" { "none,name=systemd".to_owned() } else { name.into_owned() };
            mount(
                Some("cgroup"),
                path.as_path(),
                Some("cgroup"),
                MsFlags::empty(),
                Some(options.as_str()),
            )
            .map_err(|e| format!("mounting {}: {e}", path.display()))?;
        }
    }
    fresh("tmpfs", "/run", Some("mode=755"))?;
    for path in ["/run/lock", "/run/netns", "/run/skein-lab/bin"] {
        let _ = fs::create_dir_all(path);
    }
    for path in PRIVATE {
        let own = dir.join("disk").join(path.trim_start_matches('/'));
        fs::create_dir_all(&own).map_err(|e| format!("{}: {e}", own.display()))?;
        bind(&own, Path::new(path))?;
    }
    shared()?;
    for name in ETC {
        let path = Path::new("/etc").join(name);
        bind(&dir.join("etc").join(name), &path)?;
    }
    for name in SYSCTLS {
        let file = name.rsplit('/').next().unwrap_or(name);
        bind(&dir.join("sysctl").join(file), &Path::new("/proc/sys").join(name))?;
    }
    links(dir);
    let name = fs::read_to_string(dir.join("etc/hostname")).unwrap_or_default();
    nix::unistd::sethostname(name.trim()).map_err(|e| format!("the host's name: {e}"))?;
    fs::write(dir.join("booted"), "").map_err(|e| format!("booted: {e}"))?;
    loop {
        while let Ok(status) = waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            if status == nix::sys::wait::WaitStatus::StillAlive {
                break;
            }
        }
        std::thread::sleep(Duration::from_millis(200));
    }
}

/// Puts the lab's programs on the host's PATH.
fn links(dir: &Path) {
    for entry in fs::read_dir(dir.join("bin")).into_iter().flatten().flatten() {
        let to = fs::read_link(entry.path()).unwrap_or_else(|_| entry.path());
        let _ =
            std::os::unix::fs::symlink(to, Path::new("/run/skein-lab/bin").join(entry.file_name()));
    }
}
