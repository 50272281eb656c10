//! From hosts to a working cluster: found, join, create, wait. Shell.

use std::io::{IsTerminal as _, Write as _};
use std::time::{Duration, Instant};

use serde_json::Value;

use super::store::{HostRecord, Lab};
use super::{Result, host, refusal, say};

/// The daemon's log in a host.
pub(super) const LOG: &str = "/var/log/skein.log";
/// How long a daemon that was started may take to answer.
const ANSWER_MAX: Duration = Duration::from_secs(20);
/// How long daemons may take to become members and voters.
const MEMBERS_MAX: Duration = Duration::from_secs(60);
/// How long Kubernetes may take.
const CLUSTER_MAX: Duration = Duration::from_secs(900);

#[expect(clippy::disallowed_methods, reason = "the lab waits in real time")]
fn now() -> Instant {
    Instant::now()
}

/// Shows what is waited for.
pub(super) struct Progress {
    since: Instant,
    last: String,
}

impl Progress {
    pub(super) fn new() -> Self {
        Self { since: now(), last: String::new() }
    }

    pub(super) fn show(&mut self, text: &str) {
        let line = format!("{:>4} s  {text}", self.since.elapsed().as_secs());
        let mut err = std::io::stderr();
        if err.is_terminal() {
            let cut: String = line.chars().take(width()).collect();
            let _ = write!(err, "\r\x1b[2K{cut}");
            let _ = err.flush();
        } else if essence(text) != self.last {
            say(format!("{:>4} s  {}", self.since.elapsed().as_secs(), essence(text)));
        }
        essence(text).clone_into(&mut self.last);
    }

    pub(super) fn end(&self) {
        if std::io::stderr().is_terminal() {
            say("");
        }
    }
}

/// How much fits on the terminal's line: a longer one would break, and only its last part be overwritten.
fn width() -> usize {
    let columns = comfy_table::Table::new().use_stderr().width();
    usize::from(columns.unwrap_or(80)).saturating_sub(1).max(20)
}

/// Cuts duration and quoted log lines off a wait, so that an output that grows does not repeat it each second.
fn essence(text: &str) -> &str {
    let what = text.rsplit_once(" (for ").map_or(text, |(what, _)| what);
    what.split_once("; its log says").map_or(what, |(what, _)| what)
}

/// Asks a daemon and reads its JSON.
pub(super) fn ask(lab: &Lab, h: &HostRecord, args: &[&str]) -> Result<Value> {
    let mut full = vec!["skein"];
    full.extend(args);
    full.extend(["-o", "json"]);
    let text = host::exec(lab, h, &full)?;
    serde_json::from_str(&text).map_err(|e| format!("skein {} in {}: {e}", args.join(" "), h.name))
}

/// Asks the first host that answers.
pub(super) fn ask_any(lab: &Lab, args: &[&str]) -> Result<Value> {
    let mut last = "no host is up".to_owned();
    for h in lab.hosts.iter().filter(|h| host::daemon(lab, h).is_some_and(|(_, stopped)| !stopped))
    {
        match ask(lab, h, args) {
            Ok(value) => return Ok(value),
            Err(e) => last = e,
        }
    }
    Err(last)
}

fn wait<T>(
    progress: &mut Progress,
    limit: Duration,
    mut look: impl FnMut() -> std::result::Result<T, String>,
) -> Result<T> {
    let until = now() + limit;
    loop {
        match look() {
            Ok(value) => return Ok(value),
            Err(why) if now() > until => {
                return Err(format!("gave up after {} s: {why}", limit.as_secs()));
            }
            Err(why) => progress.show(&why),
        }
        std::thread::sleep(Duration::from_millis(150));
    }
}

/// Tells whether the host's daemon has been a member before.
pub(super) fn is_member(lab: &Lab, h: &HostRecord) -> bool {
    let path = lab.host_dir(h).join("disk/var/lib/skein/identity.json");
    let text = std::fs::read(path).unwrap_or_default();
    let value: Value = serde_json::from_slice(&text).unwrap_or_default();
    value["membership"].is_object()
}

/// Starts a member's daemon on a host that booted.
pub(super) fn start_daemon(lab: &Lab, h: &HostRecord) -> Result<()> {
    if host::daemon(lab, h).is_some() {
        return Ok(());
    }
    host::detach(lab, h, &["skein", "daemon"], LOG)
}

fn failed_start(lab: &Lab, h: &HostRecord) -> String {
    let waits = format!("the daemon of {} to answer", h.name);
    match last_words(lab, h).as_str() {
        // Right after the start.
        "" => waits,
        log => format!("{waits} ({log})"),
    }
}

fn last_words(lab: &Lab, h: &HostRecord) -> String {
    let log =
        std::fs::read_to_string(lab.host_dir(h).join("disk/var/log/skein.log")).unwrap_or_default();
    let tail: Vec<&str> = log.lines().rev().take(4).collect();
    let tail: Vec<&str> = tail.into_iter().rev().collect();
    tail.join(" | ")
}

/// Waits until a daemon that was started answers, whether or not the fleet has a quorum.
pub(super) fn answers(lab: &Lab, h: &HostRecord) -> Result<()> {
    let started = now();
    loop {
        let Err(why) = ask(lab, h, &["status", "--stale"]) else {
            return Ok(());
        };
        let ended = started.elapsed() > Duration::from_secs(2) && host::daemon(lab, h).is_none();
        if ended || started.elapsed() > ANSWER_MAX {
            let log = last_words(lab, h);
            return Err(refusal(
                format!(
                    "{} is up, but its daemon {}",
                    h.name,
                    if ended { "ended" } else { "does not answer" }
                ),
                if log.is_empty() { why } else { format!("its log ends with: {log}") },
                format!("{} exec {} -- tail -n 50 {LOG}", lab.call(), h.name),
            ));
        }
        std::thread::sleep(Duration::from_millis(150));
    }
}

/// Makes a ticket at a host that answers.
pub(super) fn ticket(lab: &Lab, role: &str) -> Result<String> {
    let mut last = "no host is up".to_owned();
    for h in lab.hosts.iter().filter(|h| host::daemon(lab, h).is_some_and(|(_, stopped)| !stopped))
    {
        match host::exec(lab, h, &["skein", "ticket", "create", "--role", role, "-q"]) {
            Ok(text) => return Ok(text.trim().to_owned()),
            Err(e) => last = e,
        }
    }
    Err(last)
}

/// Brings all daemons to membership and all servers to a vote.
pub(super) fn members(lab: &Lab, progress: &mut Progress) -> Result<()> {
    let first = &lab.hosts[0];
    if is_member(lab, first) {
        start_daemon(lab, first)?;
    } else if host::daemon(lab, first).is_none() {
        host::detach(lab, first, &["skein", "init", "--name", &first.name, "--foreground"], LOG)?;
    }
    wait(progress, MEMBERS_MAX, || {
        ask(lab, first, &["status"]).map_err(|_| failed_start(lab, first))
    })?;
    // Servers come first, so that no worker takes a vote while they are on their way.
    let (servers, workers) = lab.hosts.split_at(lab.servers);
    for (hosts, role) in [(&servers[1..], "voter"), (workers, "any")] {
        for h in hosts {
            if is_member(lab, h) {
                start_daemon(lab, h)?;
            } else if host::daemon(lab, h).is_none() {
                let ticket = ticket(lab, role)?;
                let line = ["skein", "join", &ticket, "--name", &h.name, "--foreground"];
                host::detach(lab, h, &line, LOG)?;
            }
        }
        for h in hosts {
            wait(progress, MEMBERS_MAX, || knows_itself(lab, h))?;
        }
    }
    wait(progress, MEMBERS_MAX, || {
        let status = ask_any(lab, &["status"])?;
        let votes = |h: &&HostRecord| {
            status["voters"].as_array().is_some_and(|v| v.iter().any(|x| *x == h.name))
        };
        // Which of them vote is the fleet's choice: they join side by side.
        let wanted = voters(lab.hosts.len()).min(lab.servers);
        let have = lab.hosts[..lab.servers].iter().filter(votes).count();
        if have >= wanted { Ok(()) } else { Err(format!("{wanted} servers to vote, {have} do")) }
    })
}

/// Who has just joined answers before the fleet's state has reached it.
fn knows_itself(lab: &Lab, h: &HostRecord) -> Result<()> {
    let status = ask(lab, h, &["status"]).map_err(|_| failed_start(lab, h))?;
    let nodes = status["nodes"].as_array();
    let there = nodes.is_some_and(|nodes| nodes.iter().any(|n| n["name"] == h.name));
    if there { Ok(()) } else { Err(format!("the fleet's state to reach {}", h.name)) }
}

/// How many voters a fleet of this size has: the largest odd number, at most five.
fn voters(nodes: usize) -> usize {
    (if nodes.is_multiple_of(2) { nodes.saturating_sub(1) } else { nodes }).clamp(1, 5)
}

/// Makes the cluster and waits until every member is ready.
pub(super) fn cluster(lab: &Lab, progress: &mut Progress) -> Result<()> {
    let names =
        |hosts: &[HostRecord]| hosts.iter().map(|h| h.name.as_str()).collect::<Vec<_>>().join(",");
    let servers = names(&lab.hosts[..lab.servers]);
    let workers = names(&lab.hosts[lab.servers..]);
    let mut args = vec!["skein", "cluster", "create", "lab", "--no-wait", "--servers", &servers];
    if !workers.is_empty() {
        args.extend(["--workers", &workers]);
    }
    host::exec(lab, &lab.hosts[0], &args)?;
    wait(progress, CLUSTER_MAX, || {
        let cluster = ask_any(lab, &["cluster", "show", "lab"])?;
        let members = ["servers", "workers"]
            .map(|k| cluster[k].as_array().cloned().unwrap_or_default())
            .concat();
        let ready = cluster["status"] == "active" && members.iter().all(|m| m["status"] == "ready");
        if ready {
            return Ok(());
        }
        let status = cluster["status"].as_str().unwrap_or("?");
        let waits = cluster["waiting_for"][0].as_str().unwrap_or("its members");
        // The binary has a name shorter than its path.
        let waits = waits.replace(&lab.k3s_binary.display().to_string(), &lab.k3s);
        Err(format!("cluster {status}: {waits}"))
    })?;
    // Every server's pods must be routed before pods can talk.
    Ok(())
}
