//! One host: boot, run something in it, end it. Shell.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::store::{HostRecord, Lab, make_dir, write};
use super::{Result, cgroup, refusal, small, wire};

const PATH: &str =
    "/run/skein-lab/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// A shell's words: enters control groups through the files before `--`, then becomes what is behind it.
const ENTER: &str = r#"while [ "$1" != -- ]; do echo $$ >"$1"; shift; done; shift; exec "$@""#;
/// A shell's words: starts a program that goes on without it, with a log.
const DETACH: &str = r#"log=$1; shift; setsid "$@" >>"$log" 2>&1 </dev/null &"#;
/// How long a program that the lab asks something may take, in seconds: a paused daemon answers nobody.
const ANSWER_MAX: &str = "20";

/// Lays a host's disk: what it has for itself, and the programs that it finds.
pub(super) fn lay(lab: &Lab, h: &HostRecord) -> Result<()> {
    let dir = lab.host_dir(h);
    for sub in ["etc", "sysctl", "bin", "disk/etc/skein"] {
        make_dir(&dir.join(sub))?;
    }
    let hosts = format!("127.0.0.1 localhost\n::1 localhost\n{} {}\n", lab.address(h), h.name);
    write(&dir.join("etc/hosts"), hosts)?;
    write(&dir.join("etc/hostname"), format!("{}\n", h.name))?;
    write(&dir.join("etc/resolv.conf"), "")?;
    let id = dir.join("etc/machine-id");
    if !id.exists() {
        let uuid = fs::read_to_string("/proc/sys/kernel/random/uuid").unwrap_or_default();
        write(&id, uuid.replace('-', ""))?;
    }
    for (name, value) in [("overcommit_memory", "1"), ("panic", "10"), ("panic_on_oops", "1")] {
        write(&dir.join("sysctl").join(name), value)?;
    }
    for (name, to) in [("skein", &lab.skein), ("k3s", &lab.k3s_binary)] {
        let link = dir.join("bin").join(name);
        let _ = fs::remove_file(&link);
        std::os::unix::fs::symlink(to, &link).map_err(|e| format!("{}: {e}", link.display()))?;
    }
    let kubectl = dir.join("bin/kubectl");
    write(
        &kubectl,
        "#!/bin/sh\nfor file in \"$KUBECONFIG\" \"$HOME/.kube/config\" /etc/rancher/k3s/k3s.yaml; do\n\t[ -n \"$file\" ] && [ -e \"$file\" ] && export KUBECONFIG=\"$file\" && break\ndone\nexec k3s kubectl \"$@\"\n",
    )?;
    let _ = fs::set_permissions(&kubectl, std::os::unix::fs::PermissionsExt::from_mode(0o755));
    if lab.small_disks {
        small::lay(lab, h)?;
    }
    super::runtime::lay(lab, h, &dir.join("disk"))
}

fn pid(dir: &Path) -> Option<Pid> {
    let pid: i32 = fs::read_to_string(dir.join("pid")).ok()?.trim().parse().ok()?;
    let ns = fs::read_link(format!("/proc/{pid}/ns/pid")).ok()?;
    let known = fs::read_to_string(dir.join("pidns")).ok()?;
    // The number alone may belong to somebody else by now.
    (ns.to_string_lossy() == known.trim()).then_some(Pid::from_raw(pid))
}

/// Returns the pid of a host's process 1, if it runs.
pub(super) fn running(lab: &Lab, h: &HostRecord) -> Option<Pid> {
    pid(&lab.host_dir(h))
}

/// Boots a host: same disk, fresh network namespace, empty /run.
pub(super) fn boot(lab: &Lab, h: &HostRecord) -> Result<()> {
    if running(lab, h).is_some() {
        return Ok(());
    }
    let dir = lab.host_dir(h);
    lay(lab, h)?;
    super::machine::prepare()?;
    wire::make(lab)?;
    wire::plug(lab, h)?;
    let exe = std::env::current_exe().map_err(|e| format!("this program: {e}"))?;
    let console = fs::File::create(dir.join("console")).map_err(|e| format!("console: {e}"))?;
    let errors = console.try_clone().map_err(|e| format!("console: {e}"))?;
    let _ = fs::remove_file(dir.join("booted"));
    let mut child = Command::new("setsid")
        .args(["sh", "-c", ENTER, "sh"])
        .args(cgroup::make(&lab.cgroup(h)))
        .args(["--", "nsenter", &format!("--net=/run/netns/{}", lab.netns(h)), "unshare"])
        .args(["--mount", "--uts", "--ipc", "--pid", "--cgroup", "--fork", "--kill-child"])
        .args(["--propagation", "slave"])
        .arg(exe)
        .arg("lab-init")
        .arg(&dir)
        .stdin(Stdio::null())
        .stdout(console)
        .stderr(errors)
        .spawn()
        .map_err(|e| format!("setsid: {e}"))?;
    for _ in 0..400 {
        if dir.join("booted").exists() {
            cgroup::settle(&lab.cgroup(h));
            return remember(&dir, child.id());
        }
        if let Ok(Some(_)) = child.try_wait() {
            break;
        }
        std::thread::sleep(Duration::from_millis(25));
    }
    let words = fs::read_to_string(dir.join("console")).unwrap_or_default();
    let _ = child.kill();
    Err(format!("host {} did not boot: {}", h.name, words.trim()))
}

fn remember(dir: &Path, outer: u32) -> Result<()> {
    let children = fs::read_to_string(format!("/proc/{outer}/task/{outer}/children"));
    let children = children.map_err(|e| format!("the host's process 1: {e}"))?;
    let pid = children.split_whitespace().next().ok_or("the host's process 1 is gone")?;
    let ns =
        fs::read_link(format!("/proc/{pid}/ns/pid")).map_err(|e| format!("process {pid}: {e}"))?;
    write(&dir.join("pid"), pid)?;
    write(&dir.join("pidns"), ns.to_string_lossy().as_bytes())
}

/// The command line that runs a program in a host.
fn inside(lab: &Lab, h: &HostRecord, args: &[&str]) -> Result<Vec<String>> {
    let pid = running(lab, h).ok_or_else(|| {
        let next = format!("{} start {}", lab.call(), h.name);
        refusal("nothing was run", format!("host {} is down", h.name), next)
    })?;
    let target = pid.to_string();
    let path = format!("PATH={PATH}");
    let enter = ["nsenter", "-t", &target, "--mount", "--uts", "--ipc", "--net", "--pid"];
    let program = ["--cgroup", "--wd=/", "--", "env", &path, "HOME=/root"];
    Ok([&enter[..], &program, args].concat().into_iter().map(str::to_owned).collect())
}

/// Runs a program in a host and returns what it printed; it is ended if it takes too long.
pub(super) fn exec(lab: &Lab, h: &HostRecord, args: &[&str]) -> Result<String> {
    let out = Command::new("timeout")
        .args(["-k", "1", ANSWER_MAX])
        .args(inside(lab, h, args)?)
        .stdin(Stdio::null())
        .output()
        .map_err(|e| format!("timeout: {e}"))?;
    if out.status.success() {
        return Ok(String::from_utf8_lossy(&out.stdout).into_owned());
    }
    let words = match out.status.code() {
        // As timeout(1) tells it.
        Some(124 | 137) => format!("no answer within {ANSWER_MAX} s"),
        _ => String::from_utf8_lossy(&out.stderr).trim().to_owned(),
    };
    Err(format!("{} in {}: {words}", args.first().unwrap_or(&""), h.name))
}

/// Becomes a program in a host; returns only by failure.
pub(super) fn become_program(lab: &Lab, h: &HostRecord, args: &[&str]) -> String {
    match inside(lab, h, args) {
        Ok(line) => {
            cgroup::enter(&lab.cgroup(h));
            format!("nsenter: {}", Command::new(&line[0]).args(&line[1..]).exec())
        }
        Err(e) => e,
    }
}

/// Starts a program in a host that goes on after this one ends; its words go to `log` there.
pub(super) fn detach(lab: &Lab, h: &HostRecord, args: &[&str], log: &str) -> Result<()> {
    let starts = [&["sh", "-c", DETACH, "sh", log][..], args].concat();
    // Entered before the daemon is born, so that its control group is the host's.
    let done = Command::new("sh")
        .args(["-c", ENTER, "sh"])
        .args(cgroup::doors(&lab.cgroup(h)))
        .arg("--")
        .args(inside(lab, h, &starts)?)
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .status();
    match done {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(format!("{} did not start in {}: {status}", args.join(" "), h.name)),
        Err(e) => Err(format!("sh: {e}")),
    }
}

/// Ends every process of a host at once.
pub(super) fn crash(lab: &Lab, h: &HostRecord) {
    let dir = lab.host_dir(h);
    if let Some(pid) = pid(&dir) {
        let _ = kill(pid, Signal::SIGKILL);
        for _ in 0..200 {
            if self::pid(&dir).is_none() {
                break;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }
    cgroup::kill(&lab.cgroup(h));
    let _ = fs::remove_file(dir.join("pid"));
}

/// Cuts the power: the cable goes first, so that nobody hears of the end.
pub(super) fn power_cut(lab: &Lab, h: &HostRecord) {
    wire::set(lab, h, false);
    crash(lab, h);
}

/// Removes a host with its disk.
pub(super) fn remove(lab: &Lab, h: &HostRecord) {
    power_cut(lab, h);
    wire::unplug(lab, h);
    cgroup::remove(&lab.cgroup(h));
    small::remove(&lab.host_dir(h));
    let _ = fs::remove_dir_all(lab.host_dir(h));
}

/// Ends all hosts whose folder lies in `dir`, also such as were never recorded.
pub(super) fn kill_all(dir: &Path) {
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let args: Vec<&[u8]> = line.split(|b| *b == 0).collect();
        let init = args.get(1) == Some(&&b"lab-init"[..])
            && args.get(2).is_some_and(|a| Path::new(OsStr::from_bytes(a)).starts_with(dir));
        if let (true, Ok(pid)) = (init, entry.file_name().to_string_lossy().parse()) {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
    }
}

/// Finds the daemon of a host: its pid, and whether it is stopped.
pub(super) fn daemon(lab: &Lab, h: &HostRecord) -> Option<(Pid, bool)> {
    let init = running(lab, h)?;
    let ns = fs::read_link(format!("/proc/{init}/ns/pid")).ok()?;
    for entry in fs::read_dir("/proc").ok()?.flatten() {
        let Ok(pid) = entry.file_name().to_string_lossy().parse::<i32>() else {
            continue;
        };
        let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let args: Vec<&[u8]> = line.split(|b| *b == 0).collect();
        let daemon = args.first().is_some_and(|a| a.ends_with(b"skein"))
            && args.get(1).is_some_and(|a| [&b"daemon"[..], b"init", b"join"].contains(a));
        if !daemon || fs::read_link(entry.path().join("ns/pid")).ok().as_ref() != Some(&ns) {
            continue;
        }
        let stat = fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
        let state = stat.rsplit(") ").next().and_then(|s| s.chars().next());
        return Some((Pid::from_raw(pid), state == Some('T')));
    }
    None
}
