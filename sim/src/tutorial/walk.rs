//! Through a tutorial, step by step, wherever its commands run. Pure.

use serde::{Deserialize, Serialize};

use super::matching::{Names, compare, fill};
use super::parse::{Step, Tutorial};

/// What a command did.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outcome {
    /// Its exit code.
    pub exit: u8,
    /// What it printed, stdout and stderr.
    pub output: String,
}

/// Where commands run: a lab, or a transcript.
pub trait Stage {
    /// Runs a command in a host.
    ///
    /// # Errors
    /// When it could not be run at all.
    fn run(&mut self, host: &str, command: &str) -> Result<Outcome, String>;

    /// Whether to run the same command again, after `tries`, since it did not show yet what is expected.
    fn again(&mut self, tries: u32) -> bool;

    /// Takes notice of a step that was as expected, or of what was wrong.
    fn done(&mut self, step: &Step, command: &str, outcome: &Outcome, verdict: Result<(), &str>);
}

/// A step that did not do what the tutorial says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// The line of its block.
    pub block: usize,
    /// Its line.
    pub line: usize,
    /// What was wrong.
    pub why: String,
}

/// Walks through a tutorial; stops at the first failure, unless it is to go on.
pub fn walk(tutorial: &Tutorial, stage: &mut dyn Stage, go_on: bool) -> Vec<Failure> {
    let mut names = Names::new();
    let mut failures = Vec::new();
    for (block, step) in tutorial.blocks.iter().flat_map(|b| b.steps.iter().map(|s| (b.line, s))) {
        match step_through(step, stage, &names) {
            Ok(more) => names = more,
            Err(why) => {
                failures.push(Failure { block, line: step.line, why });
                if !go_on {
                    break;
                }
            }
        }
    }
    failures
}

fn step_through(step: &Step, stage: &mut dyn Stage, names: &Names) -> Result<Names, String> {
    let command = fill(&step.command, names)?;
    let mut tries = 0;
    loop {
        let outcome = stage.run(&step.host, &command)?;
        tries += 1;
        let judged = judge(step, &outcome, names);
        if judged.is_ok() || !step.until || !stage.again(tries) {
            let verdict = judged.as_ref().map(|_| ()).map_err(String::as_str);
            stage.done(step, &command, &outcome, verdict);
            return judged;
        }
    }
}

fn judge(step: &Step, outcome: &Outcome, names: &Names) -> Result<Names, String> {
    let compared = compare(&step.expected, &outcome.output, names);
    let whole = || format!("its output:\n{}", outcome.output.trim_end());
    let names = compared.map_err(|why| format!("{why}\n{}", whole()))?;
    if outcome.exit == step.exit {
        return Ok(names);
    }
    Err(format!("expected: exit code {}\nseen:     {}\n{}", step.exit, outcome.exit, whole()))
}

/// One step of a run that was recorded.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// The host.
    pub host: String,
    /// The command, with names filled in.
    pub command: String,
    /// What it did in the end.
    #[serde(flatten)]
    pub outcome: Outcome,
}

/// Plays what was recorded.
#[derive(Debug)]
pub struct Replay<'a> {
    rest: &'a [Record],
}

impl<'a> Replay<'a> {
    /// Begins with the first record.
    pub fn new(records: &'a [Record]) -> Self {
        Self { rest: records }
    }

    /// Whether all was played.
    pub fn at_end(&self) -> bool {
        self.rest.is_empty()
    }
}

impl Stage for Replay<'_> {
    fn run(&mut self, host: &str, command: &str) -> Result<Outcome, String> {
        const NEXT: &str = "record it again: ./lab tutorial docs/tutorial.md --transcript sim/tests/tutorial/transcript.json";
        let Some((record, rest)) = self.rest.split_first() else {
            return Err(format!("the transcript ends before this step; {NEXT}"));
        };
        self.rest = rest;
        if record.host != host || record.command != command {
            let (h, c) = (&record.host, &record.command);
            return Err(format!("expected: {host}# {command}\nrecorded: {h}# {c}\n{NEXT}"));
        }
        Ok(record.outcome.clone())
    }

    fn again(&mut self, _: u32) -> bool {
        false
    }

    fn done(&mut self, _: &Step, _: &str, _: &Outcome, _: Result<(), &str>) {}
}
