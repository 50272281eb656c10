//! Programs of the host, run with a deadline. Shell.

use std::process::Stdio;
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::process::Command;

use super::HostError;

/// How long a program may take.
const DEADLINE: Duration = Duration::from_secs(15);

/// What a program said.
#[derive(Debug)]
pub(super) struct Said {
    /// Whether it ended with status 0.
    pub(super) ok: bool,
    /// Its output.
    pub(super) out: String,
    /// Its complaints.
    pub(super) err: String,
}

/// Runs `program` with `input`, and takes its output whatever its status.
pub(super) async fn run(program: &str, arguments: &[&str], input: &str) -> Result<Said, HostError> {
    let shown = || format!("{program} {}", arguments.join(" "));
    let failed = |detail: String| HostError::Command { command: shown(), detail };
    let mut command = Command::new(program);
    command
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    command.env_remove("NOTIFY_SOCKET");
    let work = async {
        let mut child = command.spawn()?;
        if let Some(mut stdin) = child.stdin.take() {
            // A program that does not read its input closes it early.
            let _ = stdin.write_all(input.as_bytes()).await;
        }
        child.wait_with_output().await
    };
    match tokio::time::timeout(DEADLINE, work).await {
        Ok(Ok(output)) => Ok(Said {
            ok: output.status.success(),
            out: String::from_utf8_lossy(&output.stdout).into_owned(),
            err: String::from_utf8_lossy(&output.stderr).into_owned(),
        }),
        Ok(Err(error)) => Err(failed(error.to_string())),
        Err(_) => Err(failed(format!("no end within {} s", DEADLINE.as_secs()))),
    }
}

/// Runs `program` and takes a status other than 0 as an error.
pub(super) async fn must(program: &str, arguments: &[&str]) -> Result<String, HostError> {
    let said = run(program, arguments, "").await?;
    if said.ok {
        return Ok(said.out);
    }
    let complaint = said.err.trim().lines().last().unwrap_or("it said nothing").to_owned();
    Err(HostError::Command {
        command: format!("{program} {}", arguments.join(" ")),
        detail: complaint,
    })
}
