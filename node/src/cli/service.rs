//! The daemon for good: skein.service, or a process of its own where systemd does not run. Shell.

use std::ffi::OsString;
use std::fs::{self, OpenOptions};
use std::io;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use api::client::{ApiError, connect_local};
use api::proto::GetStatusRequest;
use api::proto::fleet_client::FleetClient;
use api::status::detail;
use tokio::time::{Instant, sleep};

use super::{Global, Places, output};
use crate::config::SOCKET;
use crate::files;

const UNIT: &str = "/etc/systemd/system/skein.service";
/// Where a daemon without systemd writes its words.
const LOG: &str = "/var/log/skein.log";
/// How long a daemon may take until it answers.
const ANSWER_MAX: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(100);

fn unit(binary: &Path, places: &Places) -> String {
    let config =
        places.config.as_ref().map(|c| format!(" --config {}", c.display())).unwrap_or_default();
    format!(
        "[Unit]\n\
         Description=Skein, a K3s platform without a central server\n\
         Wants=network-online.target\n\
         After=network-online.target\n\
         \n\
         [Service]\n\
         ExecStart={} daemon --state-dir {}{config}\n\
         Restart=always\n\
         RestartSec=1s\n\
         KillMode=process\n\
         TimeoutStopSec=15s\n\
         LimitNOFILE=1048576\n\
         TasksMax=infinity\n\
         RuntimeDirectory=skein\n\
         RuntimeDirectoryMode=0700\n\
         RuntimeDirectoryPreserve=yes\n\
         \n\
         [Install]\n\
         WantedBy=multi-user.target\n",
        binary.display(),
        places.state_dir.display(),
    )
}

fn failed(why: impl std::fmt::Display, next: &str) -> ApiError {
    detail("service", "skein.service was not started", why.to_string(), next).into()
}

/// Starts the daemon so that it stays: as a unit where systemd runs, else in the background.
pub(super) async fn start(global: &Global, places: &Places) -> Result<(), ApiError> {
    if Path::new("/run/systemd/system").is_dir() {
        install(places)?;
        await_unit(Path::new(SOCKET), ANSWER_MAX).await?;
        output::note("skein.service runs and will start at each boot");
        return Ok(());
    }
    if answers(&global.socket).await {
        output::note("the daemon runs already");
        return Ok(());
    }
    let binary = std::env::current_exe().map_err(|e| not_started(e, Path::new(LOG)))?;
    let mut child = detach(&binary, &daemon_args(global, places), Path::new(LOG))
        .map_err(|e| not_started(e, Path::new(LOG)))?;
    await_child(&mut child, &global.socket, Path::new(LOG), ANSWER_MAX).await?;
    output::note(format!(
        "systemd does not run here: the daemon runs in the background, log {LOG}; after a reboot start it with: skein daemon"
    ));
    Ok(())
}

/// Installs and starts the unit; it starts again at each boot.
fn install(places: &Places) -> Result<(), ApiError> {
    const FOREGROUND: &str =
        "run the command again with --foreground, and let your own supervisor start `skein daemon`";
    let binary = std::env::current_exe().map_err(|e| failed(e, FOREGROUND))?;
    files::replace(Path::new(UNIT), unit(&binary, places).as_bytes(), 0o644)
        .map_err(|e| failed(format!("{UNIT}: {e}"), "run the command again as root"))?;
    systemctl(&["daemon-reload"])?;
    systemctl(&["enable", "--now", "skein.service"])
}

/// Waits until the daemon answers. `alive` fails once it has ended, and `late` says what is so when the time is over.
async fn await_answer(
    socket: &Path,
    limit: Duration,
    mut alive: impl FnMut() -> Result<(), ApiError>,
    late: impl FnOnce() -> ApiError,
) -> Result<(), ApiError> {
    let until = Instant::now() + limit;
    loop {
        alive()?;
        if tokio::time::timeout_at(until, answers(socket)).await.unwrap_or(false) {
            return Ok(());
        }
        if Instant::now() >= until {
            return Err(late());
        }
        sleep(POLL).await;
    }
}

/// systemd says that a unit was started before its daemon answers.
async fn await_unit(socket: &Path, limit: Duration) -> Result<(), ApiError> {
    let late = || {
        let what = "skein.service was started, but does not answer yet";
        detail("timeout", what, journal(), "skein status; journalctl -u skein -n 20").into()
    };
    // systemd starts again what has ended.
    await_answer(socket, limit, || Ok(()), late).await
}

async fn await_child(
    child: &mut Child,
    socket: &Path,
    log: &Path,
    limit: Duration,
) -> Result<(), ApiError> {
    let alive = || match child.try_wait().map_err(|e| not_started(e, log))? {
        Some(status) => Err(not_started(format!("it ended ({status}); {}", last_words(log)), log)),
        None => Ok(()),
    };
    let late = || {
        let what = "the daemon runs, but does not answer yet";
        let next = format!("skein status; tail {}", log.display());
        detail("timeout", what, last_words(log), next).into()
    };
    await_answer(socket, limit, alive, late).await
}

/// What the unit said last.
fn journal() -> String {
    let args = ["-u", "skein", "-n", "4", "-o", "cat", "--no-pager"];
    let out = Command::new("journalctl").args(args).output();
    let text = out.map(|out| String::from_utf8_lossy(&out.stdout).trim().replace('\n', "; "));
    text.ok().filter(|t| !t.is_empty()).unwrap_or_else(|| "the journal has nothing of it".into())
}

fn daemon_args(global: &Global, places: &Places) -> Vec<OsString> {
    let mut args: Vec<OsString> = vec!["daemon".into(), "--state-dir".into()];
    args.push(places.state_dir.clone().into());
    if let Some(config) = &places.config {
        args.extend(["--config".into(), config.clone().into()]);
    }
    args.extend(["--socket".into(), global.socket.clone().into()]);
    args
}

fn not_started(why: impl std::fmt::Display, log: &Path) -> ApiError {
    let next = format!("read {} and mend what it names, then run: skein daemon", log.display());
    detail("service", "the daemon was not started", why.to_string(), next).into()
}

/// Starts a program that outlives this one, its terminal and its session; its words go to `log`.
fn detach(program: &Path, args: &[OsString], log: &Path) -> io::Result<Child> {
    if let Some(dir) = log.parent() {
        fs::create_dir_all(dir)?;
    }
    let words = OpenOptions::new().create(true).append(true).open(log)?;
    let errors = words.try_clone()?;
    Command::new("setsid")
        .arg(program)
        .args(args)
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(words)
        .stderr(errors)
        .spawn()
        .map_err(|e| io::Error::new(e.kind(), format!("setsid: {e}")))
}

/// Whether a daemon serves the socket and has a fleet behind it, so that the next command will work.
async fn answers(socket: &Path) -> bool {
    let Ok(channel) = connect_local(socket).await else {
        return false;
    };
    let status = FleetClient::new(channel).get_status(GetStatusRequest {}).await;
    status.is_ok_and(|s| s.into_inner().quorum)
}

fn last_words(log: &Path) -> String {
    let text = fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let tail: Vec<&str> = text.lines().rev().filter(|l| !l.trim().is_empty()).take(4).collect();
    if tail.is_empty() {
        return "its log is empty".into();
    }
    let tail: Vec<&str> = tail.into_iter().rev().collect();
    format!("its log ends with: {}", tail.join(" | "))
}

fn systemctl(args: &[&str]) -> Result<(), ApiError> {
    let out = Command::new("systemctl").args(args).output();
    let next = "see: journalctl -u skein.service -n 50";
    let out = out.map_err(|e| failed(format!("systemctl {}: {e}", args.join(" ")), next))?;
    if out.status.success() {
        return Ok(());
    }
    let text = String::from_utf8_lossy(&out.stderr).trim().to_owned();
    Err(failed(format!("systemctl {}: {text}", args.join(" ")), next))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(words: &str) -> [OsString; 2] {
        ["-c".into(), words.into()]
    }

    #[tokio::test]
    async fn a_daemon_that_ends_at_once_says_why() {
        let dir = tempfile::tempdir().unwrap();
        let (log, socket) = (dir.path().join("log/skein.log"), dir.path().join("no.sock"));
        let script = shell("echo early; echo port 7443 is taken >&2; exit 3");
        let mut child = detach(Path::new("/bin/sh"), &script, &log).unwrap();
        let limit = Duration::from_secs(20);
        let e = await_child(&mut child, &socket, &log, limit).await.unwrap_err();
        assert_eq!(e.code, 1);
        assert!(e.why.contains("early | port 7443 is taken") && e.why.contains('3'), "{}", e.why);
        assert!(e.next.contains("skein daemon"), "{}", e.next);
    }

    #[tokio::test]
    async fn a_daemon_that_keeps_silent_is_not_waited_for_for_ever() {
        let dir = tempfile::tempdir().unwrap();
        let (log, socket) = (dir.path().join("skein.log"), dir.path().join("no.sock"));
        let mut child = detach(Path::new("/bin/sh"), &shell("exec sleep 60"), &log).unwrap();
        let limit = Duration::from_millis(50);
        let e = await_child(&mut child, &socket, &log, limit).await.unwrap_err();
        assert_eq!(e.code, 6);
        assert!(e.why.contains("its log is empty"), "{}", e.why);
        child.kill().unwrap();
        child.wait().unwrap();
    }

    #[tokio::test]
    async fn a_unit_whose_daemon_does_not_answer_is_told_with_what_to_look_at() {
        let dir = tempfile::tempdir().unwrap();
        let limit = Duration::from_millis(50);
        let e = await_unit(&dir.path().join("no.sock"), limit).await.unwrap_err();
        assert_eq!(e.code, 6);
        assert!(!e.why.is_empty() && e.next.contains("journalctl"), "{} {}", e.why, e.next);
    }

    #[test]
    fn a_detached_program_has_a_session_of_its_own() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("skein.log");
        let script = shell("cut -d' ' -f6 /proc/$$/stat; echo $$");
        detach(Path::new("/bin/sh"), &script, &log).unwrap().wait().unwrap();
        let text = fs::read_to_string(&log).unwrap();
        let words: Vec<&str> = text.lines().collect();
        assert_eq!(words.len(), 2, "{text}");
        assert_eq!(words[0], words[1], "it leads its session");
    }
}
