//! Labs for tests: made by the very verbs that people use, one at a time, and always removed.

#![allow(dead_code, unreachable_pub, reason = "each test binary uses its part of it")]

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde_json::Value;

const SIM: &str = env!("CARGO_BIN_EXE_skein-sim");

/// Two labs on one small machine would disturb each other's timing.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

#[expect(clippy::disallowed_methods, reason = "tests of the whole run in real time")]
pub fn now() -> Instant {
    Instant::now()
}

/// Says that a test was skipped and why; where everything is required, that is a failure.
pub fn skip(why: &str) {
    assert!(std::env::var_os("SKEIN_REQUIRE_ALL").is_none(), "cannot run, and must: {why}");
    // Past the test runner, which keeps back what a test prints that passes.
    let _ = writeln!(std::io::stderr(), "SKIPPED: {why}");
    if let Some(list) = std::env::var_os("SKEIN_SKIPPED") {
        let list = std::fs::OpenOptions::new().append(true).create(true).open(list);
        let test = std::thread::current();
        let test = test.name().unwrap_or("a test");
        let _ = list.and_then(|mut list| writeln!(list, "SKIPPED: {test}: {why}"));
    }
}

/// Returns whether these programs are here; says which is not, as a reason to skip.
pub fn have(programs: &[&str]) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let there = |program: &&&str| std::env::split_paths(&path).any(|d| d.join(program).is_file());
    let missing: Vec<&&str> = programs.iter().filter(|p| !there(p)).collect();
    if !missing.is_empty() {
        skip(&format!("{missing:?} is not installed"));
    }
    missing.is_empty()
}

/// Returns why no lab can be had here.
pub fn obstacle() -> Option<&'static str> {
    let root = Command::new("id").arg("-u").output().is_ok_and(|o| o.stdout == b"0\n");
    if !root {
        return Some("making hosts takes root");
    }
    if !Path::new("/dev/net/tun").exists() {
        return Some("there is no /dev/net/tun");
    }
    let namespaces =
        Command::new("unshare").args(["--net", "--mount", "--pid", "--fork", "true"]).status();
    (!namespaces.is_ok_and(|s| s.success())).then_some("namespaces cannot be made here")
}

/// A lab that is removed when it is dropped.
pub struct Lab {
    pub name: String,
    down: bool,
    before: Vec<String>,
    _turn: Option<MutexGuard<'static, ()>>,
}

/// What an address did while it was probed.
#[derive(Debug)]
pub struct Gap {
    pub longest: Duration,
    pub tried: u64,
}

/// A probe that runs in a host.
pub struct Probe(Child);

impl Probe {
    /// Waits for its end.
    pub fn end(self) -> Gap {
        let out = self.0.wait_with_output().unwrap();
        let value: Value = serde_json::from_slice(&out.stdout).expect("the probe prints JSON");
        let number = |key: &str| value[key].as_u64().unwrap_or_else(|| panic!("{key} in {value}"));
        Gap { longest: Duration::from_millis(number("gap_ms")), tried: number("tried") }
    }
}

/// What a lab may have to make on the machine itself: folders, and mounts of or below them.
fn on_the_machine() -> Vec<String> {
    const PLACES: [&str; 7] = [
        "/run/netns",
        "/etc/rancher",
        "/var/lib/rancher",
        "/var/lib/skein",
        "/var/lib/kubelet",
        "/etc/skein",
        "/root/.kube",
    ];
    let mounts = std::fs::read_to_string("/proc/mounts").unwrap();
    let points = mounts.lines().filter_map(|l| l.split(' ').nth(1));
    let ours = points.filter(|p| PLACES.iter().any(|place| p.starts_with(place)));
    let folders = PLACES.iter().filter(|p| Path::new(p).exists());
    ours.map(|p| format!("mount {p}")).chain(folders.map(|p| format!("folder {p}"))).collect()
}

fn text(out: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr))
}

/// Looks until there is something to see, or fails with what is missing.
pub fn wait_for<T>(what: &str, seconds: u64, mut look: impl FnMut() -> Result<T, String>) -> T {
    let started = now();
    loop {
        match look() {
            Ok(seen) => {
                println!("    {:>6.2} s  {what}", started.elapsed().as_secs_f64());
                return seen;
            }
            Err(why) => {
                let late = started.elapsed() > Duration::from_secs(seconds);
                assert!(!late, "waited {seconds} s for {what}: {why}");
            }
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// Checks that a command was refused with `code` and in three lines: what failed, why, what to run next.
/// Returns the why.
pub fn refused(out: &Output, code: i32) -> String {
    let words = String::from_utf8_lossy(&out.stderr).into_owned();
    assert_eq!(out.status.code(), Some(code), "{}", text(out));
    let lines: Vec<&str> = words.lines().collect();
    let part = |at: usize, label: &str| {
        let rest = lines.get(at).and_then(|line| line.strip_prefix(label)).map(str::trim);
        rest.filter(|r| !r.is_empty()).unwrap_or_else(|| panic!("no {label:?} in {words}"))
    };
    let (_, why, _) = (part(0, "error:"), part(1, "why:"), part(2, "next:"));
    assert_eq!(lines.len(), 3, "three lines: {words}");
    why.to_owned()
}

/// The texts of a JSON list.
pub fn texts(list: &Value) -> Vec<String> {
    list.as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect()
}

impl Lab {
    /// A name of its own for the lab, and the turn; nothing is made yet. None where no lab can be had.
    pub fn reserve(name: &str) -> Option<Self> {
        if let Some(why) = obstacle() {
            skip(why);
            return None;
        }
        let turn = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
        println!("--- {name}");
        let turn = Some(turn);
        let mut lab =
            Self { name: format!("t-{name}"), down: false, before: Vec::new(), _turn: turn };
        lab.verb(&["down"]);
        lab.before = on_the_machine();
        Some(lab)
    }

    /// Reserves a lab that runs while this one does.
    pub fn beside(&self, name: &str) -> Self {
        let before = self.before.clone();
        let lab = Self { name: format!("t-{name}"), down: false, before, _turn: None };
        lab.verb(&["down"]);
        lab
    }

    /// Makes a lab with the rehearsal as K3s.
    pub fn rehearsal(name: &str, servers: usize, workers: usize) -> Option<Self> {
        Self::up(name, servers, workers, &["--k3s", "rehearsal"])
    }

    /// Makes a lab.
    pub fn up(name: &str, servers: usize, workers: usize, options: &[&str]) -> Option<Self> {
        let lab = Self::reserve(name)?;
        let (servers, workers) = (servers.to_string(), workers.to_string());
        let mut args = vec!["up", "--servers", &servers, "--workers", &workers];
        args.extend(options);
        let started = now();
        lab.must(&args);
        println!("    {:>6.2} s  lab up", started.elapsed().as_secs_f64());
        Some(lab)
    }

    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(SIM);
        command.args(["lab", "--name", &self.name]).args(args).stdin(Stdio::null());
        command
    }

    /// Runs a verb.
    pub fn verb(&self, args: &[&str]) -> Output {
        self.command(args).output().unwrap()
    }

    /// Runs a verb that must succeed; returns what it printed.
    pub fn must(&self, args: &[&str]) -> String {
        let out = self.verb(args);
        assert!(out.status.success(), "lab {} failed: {}", args.join(" "), text(&out));
        String::from_utf8(out.stdout).unwrap()
    }

    /// Runs a command in a host.
    pub fn exec(&self, host: &str, command: &[&str]) -> Output {
        let mut args = vec!["exec", host, "--"];
        args.extend(command);
        self.verb(&args)
    }

    /// Runs a command in a host that must succeed; returns what it printed.
    pub fn run(&self, host: &str, command: &[&str]) -> String {
        let out = self.exec(host, command);
        assert!(out.status.success(), "{} in {host} failed: {}", command.join(" "), text(&out));
        String::from_utf8(out.stdout).unwrap()
    }

    /// Kills a host's daemon and waits until the kernel has cleared it away; tells whether there was one.
    pub fn kill_daemon(&self, host: &str) -> bool {
        let script = "pkill -9 -x skein; was=$?; while pgrep -x skein >/dev/null; do sleep 0.02; done; exit $was";
        self.exec(host, &["sh", "-c", script]).status.success()
    }

    /// Asks a daemon for JSON.
    pub fn ask(&self, host: &str, command: &[&str]) -> Result<Value, String> {
        let mut full = vec!["skein"];
        full.extend(command);
        full.extend(["-o", "json"]);
        let out = self.exec(host, &full);
        if !out.status.success() {
            return Err(text(&out));
        }
        serde_json::from_slice(&out.stdout).map_err(|e| format!("{e}: {}", text(&out)))
    }

    /// The names of the lab's hosts.
    pub fn hosts(&self) -> Vec<String> {
        let status: Value = serde_json::from_str(&self.must(&["status", "-o", "json"])).unwrap();
        let hosts = status["hosts"].as_array().expect("hosts are listed");
        hosts.iter().map(|h| h["name"].as_str().unwrap().to_owned()).collect()
    }

    /// One host's line of `lab status`.
    pub fn host(&self, name: &str) -> Value {
        let status: Value = serde_json::from_str(&self.must(&["status", "-o", "json"])).unwrap();
        let hosts = status["hosts"].as_array().expect("hosts are listed");
        hosts
            .iter()
            .find(|h| h["name"] == name)
            .cloned()
            .unwrap_or_else(|| panic!("{name} in {status}"))
    }

    /// The folder of a host's disk.
    pub fn disk(&self, name: &str) -> PathBuf {
        Path::new(self.host(name)["dir"].as_str().expect("a folder")).join("disk")
    }

    /// What a host's daemon has written so far.
    pub fn log(&self, name: &str) -> String {
        let path = self.disk(name).join("var/log/skein.log");
        std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
    }

    /// The VIP as a host sees it.
    pub fn vip(&self, host: &str) -> Result<Value, String> {
        self.ask(host, &["vip", "show", "k3s_api_endpoint"])
    }

    /// Who holds the VIP.
    pub fn holder(&self, host: &str) -> String {
        let vip = self.vip(host).unwrap();
        vip["holder"].as_str().unwrap().to_owned()
    }

    pub fn generation(&self, host: &str) -> u64 {
        number(&self.vip(host).unwrap()["generation"])
    }

    /// The VIP's address of one family.
    pub fn vip_address(&self, host: &str, v6: bool) -> String {
        let vip = self.vip(host).unwrap();
        let mut addresses =
            vip["addresses"].as_array().expect("addresses").iter().filter_map(Value::as_str);
        let address = addresses.find(|a| a.contains(':') == v6).expect("the family is there");
        address.split('/').next().unwrap().to_owned()
    }

    pub fn leader(&self, host: &str) -> String {
        self.ask(host, &["status"]).unwrap()["leader"].as_str().unwrap().to_owned()
    }

    /// Probes the VIP's API port from a host for some seconds.
    pub fn probe(&self, host: &str, v6: bool, seconds: u32) -> Probe {
        let vip = self.vip_address(host, v6);
        let target = if v6 { format!("[{vip}]:6443") } else { format!("{vip}:6443") };
        self.probe_address(host, &target, seconds)
    }

    /// Probes any address from a host for some seconds.
    pub fn probe_address(&self, host: &str, target: &str, seconds: u32) -> Probe {
        let seconds = seconds.to_string();
        let mut command =
            self.command(&["exec", host, "--", SIM, "probe", target, "--seconds", &seconds]);
        let child = command.stdout(Stdio::piped()).spawn().unwrap();
        std::thread::sleep(Duration::from_millis(500));
        Probe(child)
    }

    /// Waits until every node is ready, the fleet healthy and the cluster active, as `host` sees it.
    pub fn settled(&self, host: &str, seconds: u64) {
        let count = self.hosts().len();
        wait_for("all is well again", seconds, || {
            let status = self.ask(host, &["status"])?;
            let nodes = status["nodes"].as_array().ok_or("no nodes")?;
            let ready = nodes.iter().filter(|n| n["state"] == "ready").count();
            if ready != count || nodes.len() != count || status["quorum"] != true {
                return Err(format!("{ready} of {count} nodes are ready: {status}"));
            }
            let cluster = self.ask(host, &["cluster", "show", "lab"])?;
            let list = |key: &str| cluster[key].as_array().cloned().unwrap_or_default();
            let members = [list("servers"), list("workers")].concat();
            let calm = cluster["waiting_for"].as_array().is_some_and(Vec::is_empty);
            let ready = members.iter().all(|m| m["status"] == "ready");
            let fine = calm && ready && cluster["status"] == "active";
            if fine { Ok(()) } else { Err(cluster.to_string()) }
        });
    }

    /// The running hosts on whose overlay device the VIP is.
    pub fn bearers(&self, vip: &str) -> Vec<String> {
        let bears = |host: &String| {
            let out = self.exec(host, &["ip", "-o", "addr"]);
            String::from_utf8_lossy(&out.stdout).split([' ', '/']).any(|word| word == vip)
        };
        self.hosts().into_iter().filter(bears).collect()
    }

    /// Waits until exactly the holder bears the VIP, in both families.
    pub fn one_bearer(&self, host: &str) {
        for v6 in [true, false] {
            let vip = self.vip_address(host, v6);
            wait_for("only the holder bears the VIP", 15, || {
                let (bearers, holder) = (self.bearers(&vip), self.holder(host));
                if bearers == [holder.clone()] {
                    Ok(())
                } else {
                    Err(format!("{bearers:?} bear {vip}, {holder} holds it"))
                }
            });
        }
    }

    /// Waits until the VIP has another holder than `old`, as `host` sees it; returns it.
    pub fn moved_from(&self, host: &str, old: &str, seconds: u64) -> String {
        wait_for("the VIP has another holder", seconds, || {
            let vip = self.vip(host)?;
            match vip["holder"].as_str() {
                Some(new) if !new.is_empty() && new != old => Ok(new.to_owned()),
                other => Err(format!("its holder is {other:?}")),
            }
        })
    }

    /// Returns what is left of the lab on the machine.
    pub fn leftovers(&self) -> Vec<String> {
        let mut left = Vec::new();
        let mark = format!("skein-{}", self.name);
        let mut listed = |what: &str, dir: &str| {
            for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
                let name = entry.file_name().to_string_lossy().into_owned();
                // Another lab's name may begin like this one's.
                if name == mark || name.starts_with(&format!("{mark}-")) {
                    left.push(format!("{what} {dir}/{name}"));
                }
            }
        };
        listed("namespace", "/run/netns");
        listed("control group", "/sys/fs/cgroup");
        for entry in std::fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten() {
            listed("control group", &entry.path().to_string_lossy());
        }
        let mounts = std::fs::read_to_string("/proc/mounts").unwrap();
        let state = format!("skein-lab/{}/", self.name);
        left.extend(mounts.lines().filter(|l| l.contains(&state)).map(|l| format!("mount {l}")));
        for entry in std::fs::read_dir("/proc").unwrap().flatten() {
            let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
            let line = String::from_utf8_lossy(&line).replace('\0', " ");
            if line.contains(&state) || line.contains(&format!("{mark}-")) {
                left.push(format!("process {} {line}", entry.file_name().to_string_lossy()));
            }
        }
        left
    }

    /// A host's own address on the overlay, once it is there.
    pub fn overlay(&self, host: &str, v6: bool) -> String {
        wait_for(&format!("{host} has its overlay address"), 10, || {
            let status = self.host(host);
            let mut own = status["overlay"].as_array().unwrap().iter().filter_map(Value::as_str);
            own.find(|a| a.contains(':') == v6).map(str::to_owned).ok_or_else(|| status.to_string())
        })
    }

    /// Runs a verb that must be refused in three lines; returns them.
    pub fn refused(&self, args: &[&str]) -> String {
        let out = self.verb(args);
        let words = text(&out);
        assert_eq!(out.status.code(), Some(1), "lab {}: {words}", args.join(" "));
        assert!(words.contains("why:") && words.contains("next:"), "{words}");
        words
    }

    /// Removes the lab, and fails if anything is left of it.
    pub fn down(mut self) {
        self.down = true;
        self.must(&["down"]);
        let mut left = self.leftovers();
        // Another lab, of a test's or of somebody at work, still needs what is there.
        if !Path::new("/var/tmp/skein-lab").exists() {
            left.extend(on_the_machine().into_iter().filter(|x| !self.before.contains(x)));
        }
        assert!(left.is_empty(), "left behind: {left:#?}");
    }

    fn show_logs(&self) {
        let Ok(status) =
            serde_json::from_slice::<Value>(&self.verb(&["status", "-o", "json"]).stdout)
        else {
            return;
        };
        println!("{status:#}");
        for host in status["hosts"].as_array().into_iter().flatten() {
            let path =
                Path::new(host["dir"].as_str().unwrap_or_default()).join("disk/var/log/skein.log");
            let log = std::fs::read_to_string(&path).unwrap_or_default();
            let lines: Vec<&str> = log.lines().collect();
            println!("=== {} ({})", host["name"], path.display());
            lines[lines.len().saturating_sub(40)..].iter().for_each(|line| println!("{line}"));
        }
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if self.down {
            return;
        }
        if std::thread::panicking() {
            self.show_logs();
            if std::env::var_os("SKEIN_LAB_KEEP").is_some() {
                println!(
                    "lab {} is kept; remove it with: ./lab down --name {}",
                    self.name, self.name
                );
                return;
            }
        }
        self.verb(&["down"]);
    }
}

pub fn number(value: &Value) -> u64 {
    value
        .as_u64()
        .or_else(|| value.as_str()?.parse().ok())
        .unwrap_or_else(|| panic!("a number: {value}"))
}
