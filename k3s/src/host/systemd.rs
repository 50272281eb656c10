//! K3s as a unit of systemd. Shell.

use std::path::Path;

use tokio::time::Instant;

use super::HostError;
use super::command::{must, run};
use super::files;
use super::process::Supervision;
use crate::observe::Unit;
use crate::spec::RoleKind;
use crate::step::StartPlan;

/// What systemd says of a unit.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Shown {
    active: String,
    result: String,
}

fn parse(text: &str) -> Shown {
    let mut shown = Shown::default();
    for line in text.lines() {
        match line.split_once('=') {
            Some(("ActiveState", value)) => value.clone_into(&mut shown.active),
            Some(("Result", value)) => value.clone_into(&mut shown.result),
            _ => {}
        }
    }
    shown
}

/// Both roles' units, as systemd sees them now.
pub(super) async fn show() -> Result<[(RoleKind, Shown); 2], HostError> {
    let mut found = [(RoleKind::Server, Shown::default()), (RoleKind::Agent, Shown::default())];
    for (role, shown) in &mut found {
        *shown = parse(
            &must("systemctl", &["show", "--property=ActiveState,Result", &service(*role)]).await?,
        );
    }
    Ok(found)
}

/// What runs, by what systemd says.
pub(super) fn judge(
    found: &[(RoleKind, Shown)],
    state: &Path,
    memory: &mut Supervision,
    now: Instant,
) -> Result<Unit, HostError> {
    for (role, shown) in found {
        match shown.active.as_str() {
            "active" | "activating" | "reloading" => {
                memory.running(now);
                return Ok(Unit::Running { role: *role, fingerprint: noted(state, *role)? });
            }
            "deactivating" => {
                return Ok(Unit::Stopping { role: *role, since: memory.stopping(now) });
            }
            "failed" => {
                let how = || format!("systemd gave up: {}", shown.result);
                return Ok(memory.exited(*role, how, now));
            }
            _ => {}
        }
    }
    memory.stopped();
    Ok(Unit::Stopped)
}

/// Starts a unit now and at each boot.
pub(super) async fn start(plan: &StartPlan, state: &Path) -> Result<(), HostError> {
    let note = format!("{} {}\n", plan.role.verb(), plan.fingerprint);
    files::write(&note_path(state), 0o600, note.as_bytes())?;
    must("systemctl", &["daemon-reload"]).await?;
    run("systemctl", &["reset-failed", &service(plan.role)], "").await?;
    must("systemctl", &["enable", &service(plan.role)]).await?;
    must("systemctl", &["start", "--no-block", &service(plan.role)]).await.map(drop)
}

/// Stops a unit, also for the next boot.
pub(super) async fn stop(role: RoleKind) -> Result<(), HostError> {
    run("systemctl", &["disable", &service(role)], "").await?;
    must("systemctl", &["stop", "--no-block", &service(role)]).await?;
    run("systemctl", &["reset-failed", &service(role)], "").await.map(drop)
}

/// Kills the main process of a unit.
pub(super) async fn kill(role: RoleKind) -> Result<(), HostError> {
    run("systemctl", &["kill", "--kill-who=main", "--signal=SIGKILL", &service(role)], "")
        .await
        .map(drop)
}

/// Tells systemd that units changed on disk.
pub(super) async fn reload() -> Result<(), HostError> {
    must("systemctl", &["daemon-reload"]).await.map(drop)
}

/// The last lines of a unit's log.
pub(super) async fn tail(role: RoleKind) -> Vec<String> {
    let said = run(
        "journalctl",
        &["--unit", &service(role), "--lines=8", "--output=cat", "--no-pager"],
        "",
    )
    .await;
    said.map(|said| said.out.lines().map(str::to_owned).collect()).unwrap_or_default()
}

fn service(role: RoleKind) -> String {
    format!("{}.service", role.unit())
}

fn note_path(state: &Path) -> std::path::PathBuf {
    state.join("started")
}

fn noted(state: &Path, role: RoleKind) -> Result<Option<String>, HostError> {
    let text = files::read(&note_path(state))?.unwrap_or_default();
    let found = text.trim().split_once(' ').filter(|(verb, _)| *verb == role.verb());
    Ok(found.map(|(_, fingerprint)| fingerprint.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judged(active: &str, state: &Path) -> Unit {
        let found = [
            (RoleKind::Server, parse("Result=success\nActiveState=inactive\n")),
            (RoleKind::Agent, parse(&format!("ActiveState={active}\nResult=exit-code\n"))),
        ];
        judge(&found, state, &mut Supervision::default(), Instant::now()).unwrap()
    }

    #[tokio::test]
    async fn states_are_read() {
        let dir = tempfile::tempdir().unwrap();
        files::write(&note_path(dir.path()), 0o600, b"agent abc\n").unwrap();
        let running = Unit::Running { role: RoleKind::Agent, fingerprint: Some("abc".into()) };
        assert_eq!(judged("activating", dir.path()), running);
        assert_eq!(judged("active", dir.path()), running);
        assert_eq!(judged("inactive", dir.path()), Unit::Stopped);
        assert!(matches!(judged("deactivating", dir.path()), Unit::Stopping { .. }));
        assert!(
            matches!(judged("failed", dir.path()), Unit::Exited { how, .. } if how.contains("exit-code"))
        );
    }
}
