//! A machine with systemd, as systemd-nspawn boots it: create, reboot, drain, unassign.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test that meets what it did not expect ends"
)]

#[path = "../common/mod.rs"]
mod common;

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use common::{obstacle, skip, wait_for};

const NAME: &str = "skein-t-systemd";
/// What the machine needs beside a minimal system.
const PACKAGES: &str = "systemd,systemd-sysv,dbus,iproute2,iptables,nftables,procps";

fn sh(script: &str) -> Output {
    Command::new("sh").args(["-ec", script]).current_dir("/").stdin(Stdio::null()).output().unwrap()
}

fn must_sh(script: &str) -> String {
    let out = sh(script);
    assert!(out.status.success(), "{script}: {}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8(out.stdout).unwrap()
}

/// The folder of a fresh system, made once and kept.
fn system() -> PathBuf {
    let home = std::env::var("HOME").unwrap_or_else(|_| "/root".into());
    let cache = std::env::var("SKEIN_CACHE").unwrap_or_else(|_| format!("{home}/.cache/skein"));
    let release = must_sh(". /etc/os-release; printf %s \"$VERSION_CODENAME\"");
    let path = Path::new(&cache).join("systemd").join(&release);
    if !path.exists() {
        let new = path.with_extension("new");
        let dir = new.display();
        must_sh(&format!(
            "rm -rf {dir}; mkdir -p {dir}; debootstrap --variant=minbase --include={PACKAGES} {release} {dir}"
        ));
        // systemd would copy the first and take the second for a machine that has run: each machine is its own.
        must_sh(&format!(
            "rm -f {dir}/var/lib/dbus/machine-id; : >{dir}/etc/machine-id; mv {dir} {}",
            path.display()
        ));
    }
    path
}

/// The control groups' hierarchies of this machine.
fn hierarchies() -> Vec<String> {
    let mounts = std::fs::read_to_string("/proc/mounts").unwrap();
    let fields = mounts.lines().map(|l| l.split(' ').collect::<Vec<_>>());
    fields.filter(|f| f[2].starts_with("cgroup")).map(|f| f[1].to_owned()).collect()
}

/// A machine with systemd, with a disk of its own; removed when dropped.
struct Machine {
    dir: PathBuf,
    running: Option<(Child, String)>,
}

impl Machine {
    fn new() -> Self {
        let dir = PathBuf::from(format!("/var/tmp/{NAME}"));
        let machine = Self { dir, running: None };
        machine.clear();
        let (dir, lower) = (machine.dir.display(), system());
        must_sh(&format!(
            "mkdir -p {dir}/upper {dir}/work {dir}/root
             mount -t overlay -o lowerdir={},upperdir={dir}/upper,workdir={dir}/work overlay {dir}/root
             mkdir -p {dir}/root/etc/skein
             printf '[k3s]\\nbinary = \"/usr/local/bin/k3s\"\\n' >{dir}/root/etc/skein/skein.toml",
            lower.display()
        ));
        machine
    }

    /// Switches the power on: fresh kernel state, same disk.
    fn boot(&mut self) {
        must_sh(&format!(
            "ip netns del {NAME} 2>/dev/null || true
             ip netns add {NAME}
             ip -n {NAME} link set lo up
             ip -n {NAME} link add eth0 type veth peer name eth1
             ip -n {NAME} addr add 10.77.255.1/24 dev eth0
             ip -n {NAME} link set eth0 up
             ip -n {NAME} link set eth1 up
             ip -n {NAME} route add default dev eth0"
        ));
        let mut script = String::new();
        for hierarchy in hierarchies() {
            script += &format!(
                "mkdir -p {hierarchy}/{NAME} && for f in cpuset.cpus cpuset.mems; do \
                 [ ! -w {hierarchy}/{NAME}/$f ] || cat {hierarchy}/$f >{hierarchy}/{NAME}/$f; done && \
                 echo $$ >{hierarchy}/{NAME}/cgroup.procs || true\n"
            );
        }
        let sim = env!("CARGO_BIN_EXE_skein-sim");
        let skein = Path::new(sim).with_file_name("skein");
        script += &format!(
            "exec systemd-nspawn --quiet --boot --register=no --keep-unit -D {}/root --machine s1 \
             --network-namespace-path=/run/netns/{NAME} --capability=all --console=pipe --resolv-conf=off \
             --system-call-filter='@keyring bpf perf_event_open' --bind=/dev/net/tun \
             --bind-ro={}:/usr/local/bin/skein --bind-ro={sim}:/usr/local/bin/k3s",
            self.dir.display(),
            skein.display(),
        );
        let console = std::fs::File::create(self.dir.join("console")).unwrap();
        let errors = console.try_clone().unwrap();
        let mut command = Command::new("setsid");
        command.args(["sh", "-c", &script]).stdin(Stdio::null()).stdout(console).stderr(errors);
        let nspawn = command.spawn().unwrap();
        let children = format!("/proc/{0}/task/{0}/children", nspawn.id());
        let init = wait_for("process 1 is there", 20, || {
            let text = std::fs::read_to_string(&children).unwrap_or_default();
            text.split_whitespace().next().map(str::to_owned).ok_or_else(|| self.console())
        });
        self.running = Some((nspawn, init));
        wait_for("systemd runs", 60, || {
            let out = self.exec("systemctl is-system-running");
            let state = String::from_utf8_lossy(&out.stdout).trim().to_owned();
            if state == "running" { Ok(()) } else { Err(format!("{state}: {}", self.console())) }
        });
    }

    fn console(&self) -> String {
        std::fs::read_to_string(self.dir.join("console")).unwrap_or_default()
    }

    fn exec(&self, script: &str) -> Output {
        let (_, init) = self.running.as_ref().expect("the machine runs");
        let enter =
            ["-t", init, "--mount", "--uts", "--ipc", "--net", "--pid", "--cgroup", "--wd=/", "--"];
        let mut command = Command::new("nsenter");
        command.args(enter).args([
            "env",
            "-i",
            "PATH=/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "HOME=/root",
        ]);
        command.args(["timeout", "60", "sh", "-ec", script]).stdin(Stdio::null()).output().unwrap()
    }

    fn run(&self, script: &str) -> String {
        let out = self.exec(script);
        assert!(out.status.success(), "{script}: {}", String::from_utf8_lossy(&out.stderr));
        String::from_utf8(out.stdout).unwrap()
    }

    fn reboot(&mut self) {
        self.exec("systemctl reboot");
        let (mut nspawn, _) = self.running.take().expect("the machine runs");
        wait_for("the machine is down", 60, || match nspawn.try_wait().unwrap() {
            Some(_) => Ok(()),
            None => Err("nspawn runs".into()),
        });
        self.boot();
    }

    /// Removes what is left of the machine, also of an earlier one.
    fn clear(&self) {
        let dir = self.dir.display();
        let mut script = format!(
            "umount {dir}/root 2>/dev/null; rm -rf {dir}; ip netns del {NAME} 2>/dev/null\n"
        );
        for hierarchy in hierarchies() {
            script += &format!(
                "[ ! -d {hierarchy}/{NAME} ] || find {hierarchy}/{NAME} -depth -type d -exec rmdir {{}} +\n"
            );
        }
        Command::new("sh").args(["-c", &script]).stderr(Stdio::null()).status().unwrap();
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        if let Some((mut nspawn, init)) = self.running.take() {
            if std::thread::panicking() {
                println!("{}", self.console());
            }
            sh(&format!("kill -KILL {init}"));
            let _ = nspawn.wait();
        }
        self.clear();
    }
}

#[test]
#[ignore = "boots a machine with systemd: ./check systemd"]
fn a_systemd_machine_through_its_life() {
    let missing = ["systemd-nspawn", "debootstrap"]
        .into_iter()
        .find(|p| !sh(&format!("command -v {p}")).status.success());
    if let Some(why) = obstacle() {
        return skip(why);
    }
    if let Some(program) = missing {
        return skip(&format!("{program} is missing"));
    }
    let mut machine = Machine::new();
    machine.boot();
    machine.run("skein init --name s1");
    machine.run("skein cluster create lab --servers s1 --timeout 40s");
    runs(&machine);
    assert_eq!(
        machine.run("stat -c %a /etc/systemd/system/k3s.service.d/* | sort -u").trim(),
        "600"
    );
    machine.reboot();
    wait_for("all is back after the reboot", 40, || {
        let out = machine.exec("skein cluster show lab -o json");
        let text = String::from_utf8_lossy(&out.stdout).replace([' ', '\n'], "");
        let fine = text.contains("\"status\":\"active\"") && text.contains("\"waiting_for\":[]");
        if fine { Ok(()) } else { Err(format!("{text} {}", String::from_utf8_lossy(&out.stderr))) }
    });
    runs(&machine);
    let before = machine.run("systemctl show -p MainPID k3s");
    machine.run("systemctl restart skein");
    assert_eq!(
        machine.run("systemctl show -p MainPID k3s"),
        before,
        "the daemon's restart is not K3s'"
    );
    wait_for("the daemon is back", 20, || {
        let out = machine.exec("skein status");
        if out.status.success() {
            Ok(())
        } else {
            Err(String::from_utf8_lossy(&out.stderr).into_owned())
        }
    });
    assert_eq!(machine.exec("skein drain s1").status.code(), Some(4), "the only server is guarded");
    machine.run("skein drain s1 --force");
    machine.run("skein undrain s1");
    machine.run("skein node unassign s1 --force");
    wait_for("nothing of K3s is left", 60, || {
        let left = machine.run("ls -d /etc/systemd/system/k3s* /var/lib/rancher/k3s 2>/dev/null || true; pgrep -f '[k]3s server' || true");
        if left.trim().is_empty() { Ok(()) } else { Err(left) }
    });
}

fn runs(machine: &Machine) {
    for unit in ["skein", "k3s"] {
        assert_eq!(machine.run(&format!("systemctl is-active {unit}")).trim(), "active");
    }
}
