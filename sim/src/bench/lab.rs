//! A lab as a person has it: through its verbs. Shell.

use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

/// Where what is started in hosts says its words.
const LOG: &str = "/var/log/bench.log";

#[expect(clippy::disallowed_methods, reason = "the bench waits in real time")]
pub(crate) fn now() -> Instant {
    Instant::now()
}

/// Looks until there is something to see, or fails with what is missing.
pub(super) fn wait<T>(
    what: &str,
    limit: Duration,
    mut look: impl FnMut() -> Result<T, String>,
) -> Result<T, String> {
    let until = now() + limit;
    loop {
        match look() {
            Ok(seen) => return Ok(seen),
            Err(why) if now() > until => {
                return Err(format!("waited {} s for {what}: {why}", limit.as_secs()));
            }
            Err(_) => std::thread::sleep(Duration::from_millis(100)),
        }
    }
}

/// A lab of a verb's own; removed when it is dropped.
pub(crate) struct Lab {
    name: String,
    exe: PathBuf,
}

impl Lab {
    /// Makes a lab, in place of one that an earlier run left behind.
    pub(crate) fn up(name: &str, options: &[&str]) -> Result<Self, String> {
        let lab = Self::unmade(name)?;
        lab.verb(&["down"])?;
        let mut args = vec!["up"];
        args.extend(options);
        // People see how it comes up.
        let made = lab.command(&args).stdout(Stdio::null()).status();
        match made {
            Ok(status) if status.success() => Ok(lab),
            Ok(status) => Err(format!("lab {name} did not come up: {status}; its words are above")),
            Err(e) => Err(format!("{}: {e}", lab.exe.display())),
        }
    }

    /// A lab whose making is the caller's.
    pub(crate) fn unmade(name: &str) -> Result<Self, String> {
        let exe = std::env::current_exe().map_err(|e| format!("this program: {e}"))?;
        Ok(Self { name: name.into(), exe })
    }

    /// A verb, ready to run.
    pub(crate) fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(&self.exe);
        command.args(["lab", "--name", &self.name]).args(args).stdin(Stdio::null());
        command
    }

    /// A command in a host that is this very program, ready to run.
    pub(super) fn own(&self, host: &str, args: &[&str]) -> Command {
        let mut command = self.command(&["exec", host, "--"]);
        command.arg(&self.exe).args(args);
        command
    }

    /// Runs a verb to its end; returns what it printed.
    pub(crate) fn verb(&self, args: &[&str]) -> Result<String, String> {
        finish(&args.join(" "), self.command(args).output())
    }

    /// Runs verbs at the same time, to the end of all.
    pub(super) fn together(&self, verbs: &[[&str; 2]]) -> Result<(), String> {
        let begun: Vec<_> = verbs
            .iter()
            .map(|verb| {
                let mut command = self.command(verb);
                (verb.join(" "), command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn())
            })
            .collect();
        for (words, child) in begun {
            finish(&words, child.and_then(std::process::Child::wait_with_output))?;
        }
        Ok(())
    }

    /// Runs a command in a host; returns what it printed.
    pub(super) fn run(&self, host: &str, command: &[&str]) -> Result<String, String> {
        let mut args = vec!["exec", host, "--"];
        args.extend(command);
        self.verb(&args)
    }

    /// Asks a daemon for JSON.
    pub(crate) fn ask(&self, host: &str, command: &[&str]) -> Result<Value, String> {
        let mut full = vec!["skein"];
        full.extend(command);
        full.extend(["-o", "json"]);
        let text = self.run(host, &full)?;
        serde_json::from_str(&text).map_err(|e| format!("skein {}: {e}", command.join(" ")))
    }

    /// Starts a program in a host that goes on by itself.
    pub(super) fn detach(&self, host: &str, line: &str) -> Result<(), String> {
        let line = format!("setsid {line} >>{LOG} 2>&1 </dev/null &");
        self.run(host, &["sh", "-c", &line]).map(drop)
    }

    /// Starts a responder in a host.
    pub(super) fn respond(&self, host: &str) -> Result<(), String> {
        self.detach(host, &format!("{} respond", self.exe.display()))
    }

    /// Reads a host's address of one family on a device.
    pub(super) fn address(&self, host: &str, device: &str, v6: bool) -> Result<String, String> {
        let text =
            self.run(host, &["ip", "-j", "addr", "show", "dev", device, "scope", "global"])?;
        let links: Value = serde_json::from_str(&text).map_err(|e| format!("ip: {e}"))?;
        let family = if v6 { "inet6" } else { "inet" };
        let links = links.as_array().into_iter().flatten();
        let mut infos = links.flat_map(|l| l["addr_info"].as_array().into_iter().flatten());
        let found = infos.find(|a| a["family"] == family).and_then(|a| a["local"].as_str());
        found
            .map(str::to_owned)
            .ok_or_else(|| format!("{host} has no {family} address on {device}"))
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        let _ = self.verb(&["down"]);
    }
}

fn finish(words: &str, out: std::io::Result<Output>) -> Result<String, String> {
    let out = out.map_err(|e| format!("{words}: {e}"))?;
    if out.status.success() {
        return Ok(String::from_utf8_lossy(&out.stdout).into_owned());
    }
    let said = String::from_utf8_lossy(&out.stderr);
    Err(format!("{words}: {}: {}", out.status, said.trim()))
}
