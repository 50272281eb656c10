//! A lab: hosts in namespaces on one machine, each with its own real daemon, device, store and address. Shell.

mod cgroup;
pub mod chaos;
pub mod cli;
mod down;
mod faults;
mod fleet;
mod host;
pub mod init;
mod machine;
pub(crate) mod peers;
mod runtime;
mod small;
mod status;
mod store;
mod up;
mod wire;

use std::process::{Command, Stdio};

/// Says something that is no data.
#[expect(clippy::print_stderr, reason = "this is where the lab speaks")]
pub fn say(text: impl std::fmt::Display) {
    eprintln!("{text}");
}

/// Prints data.
pub(crate) fn print(text: impl std::fmt::Display) {
    // A closed pipe is the reader's wish.
    let _ = std::io::Write::write_all(
        &mut std::io::stdout(),
        format!(
            "{text}
"
        )
        .as_bytes(),
    );
}

type Result<T> = std::result::Result<T, String>;

/// A failure as Skein's own commands tell it.
pub(crate) fn refusal(
    what: impl std::fmt::Display,
    why: impl std::fmt::Display,
    next: impl std::fmt::Display,
) -> String {
    format!("{what}\nwhy:   {why}\nnext:  {next}")
}

/// Runs a program to its end; its own words are in the error.
fn sh(program: &str, args: &[&str]) -> Result<String> {
    let out = Command::new(program).args(args).stdin(Stdio::null()).output();
    let out = out.map_err(|e| format!("{program}: {e}"))?;
    if out.status.success() {
        return Ok(String::from_utf8_lossy(&out.stdout).into_owned());
    }
    let words = String::from_utf8_lossy(&out.stderr).trim().to_owned();
    Err(format!("{program} {}: {words}", args.join(" ")))
}

/// Runs a program whose failure is no failure: what was to be removed is gone already, most often.
fn try_sh(program: &str, args: &[&str]) {
    let _ = sh(program, args);
}
