//! A tutorial's commands, run in a lab. Shell.

use std::process::Stdio;
use std::time::{Duration, Instant};

use super::parse::Step;
use super::walk::{Outcome, Record, Stage};
use crate::bench::lab::{Lab, now};
use crate::lab::say;

/// How long one command may take, in seconds; those that wait have limits of their own.
const COMMAND_MAX: &str = "900";
/// How long a command is repeated until it shows what is expected.
const UNTIL_MAX: Duration = Duration::from_secs(180);
const PAUSE: Duration = Duration::from_millis(500);

/// A lab in which a tutorial is played.
pub(super) struct Live<'a> {
    lab: &'a Lab,
    records: Vec<Record>,
    begun: Option<Instant>,
}

impl<'a> Live<'a> {
    pub(super) fn new(lab: &'a Lab) -> Self {
        Self { lab, records: Vec::new(), begun: None }
    }

    pub(super) fn into_records(self) -> Vec<Record> {
        self.records
    }
}

impl Stage for Live<'_> {
    fn run(&mut self, host: &str, command: &str) -> Result<Outcome, String> {
        self.begun.get_or_insert_with(now);
        // One stream, so that the order of lines is what a person sees.
        let script = format!("exec 2>&1\n{command}");
        let line = ["exec", host, "--", "timeout", "-k", "5", COMMAND_MAX, "sh", "-c", &script];
        // What a waiting command says meanwhile depends on the moment; the tutorial says that it is left out.
        let mut command = self.lab.command(&line);
        let out = command.env("SKEIN_PROGRESS", "off").stderr(Stdio::piped()).output();
        let out = out.map_err(|e| format!("{host}: {e}"))?;
        let lab_words = String::from_utf8_lossy(&out.stderr);
        if !lab_words.trim().is_empty() {
            return Err(format!("the lab said: {}", lab_words.trim()));
        }
        let exit = out.status.code().and_then(|code| u8::try_from(code).ok());
        let exit = exit.ok_or_else(|| format!("the command was ended: {}", out.status))?;
        Ok(Outcome { exit, output: String::from_utf8_lossy(&out.stdout).into_owned() })
    }

    fn again(&mut self, _: u32) -> bool {
        std::thread::sleep(PAUSE);
        self.begun.is_some_and(|begun| begun.elapsed() < UNTIL_MAX)
    }

    fn done(&mut self, step: &Step, command: &str, outcome: &Outcome, verdict: Result<(), &str>) {
        let took = self.begun.take().map_or(Duration::ZERO, |begun| begun.elapsed());
        let sign = if verdict.is_ok() { "ok  " } else { "FAIL" };
        let first = step.command.lines().next().unwrap_or_default();
        say(format!(
            "{sign} {:>6.1} s  line {:>3}  {}# {first}",
            took.as_secs_f64(),
            step.line,
            step.host
        ));
        if let Err(why) = verdict {
            say(why);
        }
        let (host, command) = (step.host.clone(), command.to_owned());
        self.records.push(Record { host, command, outcome: outcome.clone() });
    }
}
