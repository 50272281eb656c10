//! K3s as a process of its own session and control group, which outlives this daemon. Shell.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use tokio::time::Instant;

use super::HostError;
use super::files::{self, at};
use crate::observe::Unit;
use crate::render::Layout;
use crate::spec::RoleKind;
use crate::step::StartPlan;

/// The longest pause before a restart.
const BACKOFF_MAX: Duration = Duration::from_secs(30);
/// A run of this length counts as a good one: the backoff begins anew.
const GOOD_RUN: Duration = Duration::from_secs(60);
/// Notes who it is, joins its control groups, becomes K3s: the note is there before K3s is, and the process id stays the same.
const SCRIPT: &str = r#"umask 077
read -r stat </proc/$$/stat || exit 125
printf '%s\n%s\n' "$2" "$stat" >"$1.new" && mv -f "$1.new" "$1" || exit 125
shift 2
while [ "$1" != -- ]; do echo $$ 2>/dev/null >"$1/cgroup.procs"; shift; done
shift
umask 022
exec "$@""#;
/// Of the daemon's environment, what K3s may see; above all no `K3S_*`.
const PASSED: [&str; 9] = [
    "PATH",
    "TMPDIR",
    "LANG",
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "NO_PROXY",
    "http_proxy",
    "https_proxy",
    "no_proxy",
];

/// A process as noted on disk.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Note {
    role: RoleKind,
    fingerprint: String,
    pid: i32,
    start: u64,
}

/// What is remembered between two looks; all of it may be lost.
#[derive(Debug, Default)]
pub(super) struct Supervision {
    restarts: u32,
    running_since: Option<Instant>,
    exit: Option<(String, Instant)>,
    stopping: Option<Instant>,
}

impl Supervision {
    /// What became of a unit that is not running although it should be; begins a backoff at the first call.
    pub(super) fn exited(
        &mut self,
        role: RoleKind,
        how: impl FnOnce() -> String,
        now: Instant,
    ) -> Unit {
        let (how, next_try) = match &self.exit {
            Some(known) => known.clone(),
            None => {
                let known_run =
                    self.running_since.take().map(|since| now.saturating_duration_since(since));
                if known_run.is_none_or(|run| run >= GOOD_RUN) {
                    self.restarts = 0;
                }
                // Nothing known about its run: it ended while this daemon did not look.
                let pause = known_run.map_or(Duration::ZERO, |_| backoff(self.restarts));
                let exit = (how(), now + pause);
                self.exit = Some(exit.clone());
                exit
            }
        };
        Unit::Exited { role, how, restarts: self.restarts, next_try }
    }

    /// It runs.
    pub(super) fn running(&mut self, now: Instant) {
        self.running_since.get_or_insert(now);
        self.exit = None;
    }

    /// It is being started.
    pub(super) fn starting(&mut self, now: Instant) {
        if self.exit.take().is_some() {
            self.restarts = self.restarts.saturating_add(1);
        }
        self.running_since = Some(now);
        self.stopping = None;
    }

    /// It is being stopped; says since when.
    pub(super) fn stopping(&mut self, now: Instant) -> Instant {
        *self.stopping.get_or_insert(now)
    }

    /// Since when it is being stopped, if it is.
    pub(super) fn stopping_since(&self) -> Option<Instant> {
        self.stopping
    }

    /// It is stopped, as it should be.
    pub(super) fn stopped(&mut self) {
        *self = Self::default();
    }
}

fn backoff(restarts: u32) -> Duration {
    Duration::from_secs(1 << restarts.min(5)).min(BACKOFF_MAX)
}

/// Where the note lies.
pub(super) fn note_path(state: &Path) -> PathBuf {
    state.join("process")
}

fn note(state: &Path) -> Result<Option<Note>, HostError> {
    Ok(files::read(&note_path(state))?.as_deref().and_then(parse))
}

fn parse(text: &str) -> Option<Note> {
    let (head, stat) = text.split_once('\n')?;
    let mut words = head.split(' ');
    let role = match words.next()? {
        "server" => RoleKind::Server,
        "agent" => RoleKind::Agent,
        _ => return None,
    };
    let (pid, start, _) = identity(stat)?;
    Some(Note { role, fingerprint: words.next()?.to_owned(), pid, start })
}

/// Process id, start time (field 22) and state of a line of `/proc/<pid>/stat`. The name in it may hold anything.
fn identity(stat: &str) -> Option<(i32, u64, char)> {
    let pid = stat.split(' ').next()?.parse().ok()?;
    let mut rest = stat.rsplit_once(')')?.1.split_whitespace();
    let state = rest.next()?.chars().next()?;
    Some((pid, rest.nth(18)?.parse().ok()?, state))
}

fn alive(note: &Note) -> bool {
    let stat = fs::read_to_string(format!("/proc/{}/stat", note.pid)).unwrap_or_default();
    identity(&stat)
        .is_some_and(|(_, start, state)| start == note.start && !matches!(state, 'Z' | 'X'))
}

/// How it ended, if it was a child of this daemon.
fn reap(pid: i32) -> Option<String> {
    match waitpid(Pid::from_raw(pid), Some(WaitPidFlag::WNOHANG)) {
        Ok(WaitStatus::Exited(_, code)) => Some(format!("exit status {code}")),
        Ok(WaitStatus::Signaled(_, signal, _)) => Some(format!("killed by {signal}")),
        _ => None,
    }
}

/// What runs, taken over by process id and start time.
pub(super) fn observe(
    state: &Path,
    memory: &mut Supervision,
    now: Instant,
) -> Result<Unit, HostError> {
    let Some(note) = note(state)? else {
        return Ok(Unit::Stopped);
    };
    let ended = reap(note.pid);
    if alive(&note) {
        if let Some(since) = memory.stopping_since() {
            return Ok(Unit::Stopping { role: note.role, since });
        }
        memory.running(now);
        return Ok(Unit::Running { role: note.role, fingerprint: Some(note.fingerprint) });
    }
    if memory.stopping_since().is_some() {
        files::remove(&note_path(state))?;
        memory.stopped();
        return Ok(Unit::Stopped);
    }
    Ok(memory.exited(note.role, || ended.unwrap_or_else(|| "it is gone".to_owned()), now))
}

/// Starts K3s detached from this daemon, unless it runs.
pub(super) async fn start(
    plan: &StartPlan,
    state: &Path,
    layout: &Layout,
) -> Result<(), HostError> {
    if note(state)?.is_some_and(|note| alive(&note)) {
        return Ok(());
    }
    for folder in [Some(state), layout.log.parent()].into_iter().flatten() {
        files::make_folder(folder)?;
    }
    let log = OpenOptions::new()
        .create(true)
        .append(true)
        .mode(0o600)
        .open(&layout.log)
        .map_err(at("write", &layout.log))?;
    let errors = log.try_clone().map_err(at("write", &layout.log))?;
    let head = format!("{} {}", plan.role.verb(), plan.fingerprint);
    let mut command = Command::new("setsid");
    command.args(["sh", "-c", SCRIPT, "skein-k3s"]).arg(note_path(state)).arg(head);
    command.args(control_groups(layout)).arg("--").arg(&plan.binary).arg(plan.role.verb());
    command.env_clear();
    for key in PASSED {
        if let Some(value) = std::env::var_os(key) {
            command.env(key, value);
        }
    }
    command.env("HOME", "/root").envs(environment(&layout.process_environment(plan.role))?);
    command.current_dir("/").stdin(Stdio::null()).stdout(log).stderr(errors);
    let failed = |detail: String| HostError::Command {
        command: format!("setsid sh ... {}", plan.binary.display()),
        detail,
    };
    let child = command.spawn().map_err(|error| failed(error.to_string()))?;
    await_note(child.id(), state).await.map_err(failed)
}

/// A start that is not noted yet would be taken for none.
async fn await_note(pid: u32, state: &Path) -> Result<(), String> {
    for _ in 0..200 {
        let noted = note(state).map_err(|error| error.to_string())?;
        if noted.is_some_and(|note| u32::try_from(note.pid) == Ok(pid)) {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    Err("the process did not note itself within a second".to_owned())
}

fn environment(path: &Path) -> Result<Vec<(String, String)>, HostError> {
    let text = files::read(path)?.unwrap_or_default();
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    Ok(lines
        .filter_map(|line| {
            line.split_once('=').map(|(key, value)| (key.to_owned(), value.to_owned()))
        })
        .collect())
}

/// Groups of K3s' own in the hierarchies by which a service manager would end this daemon's processes.
pub(super) fn control_groups(layout: &Layout) -> Vec<PathBuf> {
    let top = layout.root.join("sys/fs/cgroup");
    let roots = [top.clone(), top.join("unified"), top.join("systemd")];
    let usable = roots.into_iter().filter(|root| root.join("cgroup.procs").exists());
    let groups = usable.map(|root| root.join("skein-k3s"));
    groups.filter(|group| group.is_dir() || fs::create_dir(group).is_ok()).collect()
}

/// Asks the main process to end, or forgets one that ended.
pub(super) fn signal(
    state: &Path,
    signal: Signal,
    memory: &mut Supervision,
    now: Instant,
) -> Result<(), HostError> {
    let Some(note) = note(state)? else {
        return Ok(());
    };
    if !alive(&note) {
        memory.stopped();
        return files::remove(&note_path(state));
    }
    memory.stopping(now);
    match kill(Pid::from_raw(note.pid), signal) {
        Ok(()) | Err(nix::errno::Errno::ESRCH) => Ok(()),
        Err(error) => Err(HostError::Command {
            command: format!("kill {}", note.pid),
            detail: error.to_string(),
        }),
    }
}

/// Puts the log aside. The process keeps its descriptor, so the content is copied and the file emptied.
pub(super) fn rotate(log: &Path) -> Result<(), HostError> {
    let old = log.with_extension("log.1");
    fs::copy(log, &old).map_err(at("write", &old))?;
    OpenOptions::new().write(true).truncate(true).open(log).map(drop).map_err(at("empty", log))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stat_lines_are_read_whatever_the_name() {
        let stat = "77 (k3s (x) y) S 1 77 77 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 424242 1 2 3";
        assert_eq!(identity(stat), Some((77, 424_242, 'S')));
        for bad in ["", "x", "1 (", "1 (a) S 1", "1 (a)"] {
            assert_eq!(identity(bad), None, "{bad}");
        }
    }

    #[test]
    fn backoff_doubles_up_to_its_bound() {
        let seconds: Vec<u64> = (0..7).map(|restarts| backoff(restarts).as_secs()).collect();
        assert_eq!(seconds, [1, 2, 4, 8, 16, 30, 30]);
    }
}
