//! A command under a terminal of its own: what it writes, and when. Shell.

use std::os::fd::{AsFd as _, OwnedFd};
use std::process::{Child, Command, ExitStatus};
use std::time::Duration;

use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::poll::{PollFd, PollFlags, poll};
use nix::pty::{Winsize, openpty};
use nix::unistd::read;

use super::screen::{Size, Written};
use crate::bench::lab::now;

/// How often it is looked whether a silent command has ended, in milliseconds.
const LOOK: u16 = 20;

/// What a command did.
pub(super) struct Take {
    /// What it wrote, from its start on.
    pub(super) output: Vec<Written>,
    /// How long it ran.
    pub(super) took: Duration,
    /// How it ended.
    pub(super) status: ExitStatus,
}

/// Runs a command as on a terminal of this size, where colours are welcome; it is ended after `limit`.
pub(super) fn record(command: &Command, size: Size, limit: Duration) -> Result<Take, String> {
    let words = command.get_args().map(|arg| arg.to_string_lossy().into_owned());
    let words = words.collect::<Vec<_>>().join(" ");
    let failed = |e: &dyn std::fmt::Display| format!("{words}: {e}");
    let (screen, mut child) = start(command, size).map_err(|e| failed(&e))?;
    let begun = now();
    let mut output = Vec::new();
    loop {
        let status = child.try_wait().map_err(|e| failed(&e))?;
        let took = begun.elapsed();
        // What it wrote before it ended is still to be read.
        let silence = if status.is_some() { 0 } else { LOOK };
        while let Some(bytes) = hear(&screen, silence) {
            output.push(Written { at: begun.elapsed(), bytes });
            if begun.elapsed() > limit {
                break;
            }
        }
        if let Some(status) = status {
            return Ok(Take { output, took, status });
        }
        if begun.elapsed() > limit {
            let _ = child.kill();
            let _ = child.wait();
            return Err(failed(&format!("was ended after {} s", limit.as_secs())));
        }
    }
}

/// Starts a command in a session of its own, since terminals belong to sessions.
fn start(command: &Command, size: Size) -> std::io::Result<(OwnedFd, Child)> {
    let window =
        Winsize { ws_row: size.rows.get(), ws_col: size.columns.get(), ws_xpixel: 0, ws_ypixel: 0 };
    let pty = openpty(&window, None)?;
    // Daemons that the command starts shall not keep them open.
    for fd in [&pty.master, &pty.slave] {
        fcntl(fd, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC))?;
    }
    let child = Command::new("setsid")
        .args(["--ctty", "--wait"])
        .arg(command.get_program())
        .args(command.get_args())
        .env("TERM", "xterm-256color")
        .env_remove("NO_COLOR")
        .env_remove("SKEIN_PROGRESS")
        .env("COLUMNS", size.columns.to_string())
        .stdin(pty.slave.try_clone()?)
        .stdout(pty.slave.try_clone()?)
        .stderr(pty.slave)
        .spawn()?;
    Ok((pty.master, child))
}

/// Waits so many milliseconds for something to be written.
fn hear(screen: &OwnedFd, silence: u16) -> Option<Vec<u8>> {
    let mut ready = [PollFd::new(screen.as_fd(), PollFlags::POLLIN)];
    if !matches!(poll(&mut ready, silence), Ok(n) if n > 0) {
        return None;
    }
    let mut bytes = vec![0; 8192];
    let Ok(n @ 1..) = read(screen, &mut bytes) else {
        // Nobody can write any more, which is no wait.
        std::thread::sleep(Duration::from_millis(silence.into()));
        return None;
    };
    bytes.truncate(n);
    Some(bytes)
}
