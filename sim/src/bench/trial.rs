//! Cases, trials and everything that a run of the bench found. Pure.

use std::collections::BTreeMap;

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use super::record::{Clock, Record};
use super::stats::{self, Reading, ms};
use super::turns;

/// An echo that takes longer than this hangs, in microseconds.
const HUNG: u64 = 1_000_000;

/// What is done to the holder.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Case {
    /// It is drained with `--stop`, then taken back into service.
    Drain,
    /// Its power is cut.
    Kill,
    /// All its processes end, its peers get resets.
    Crash,
    /// Its power and that of the Raft leader are cut together.
    HolderAndLeader,
    /// Its daemon is stopped and goes on later.
    Pause,
    /// It is cut from everybody.
    Cut,
}

impl Case {
    /// What a reader calls it.
    pub fn title(self) -> &'static str {
        match self {
            Self::Drain => "drain",
            Self::Kill => "kill of the holder",
            Self::Crash => "crash of the holder",
            Self::HolderAndLeader => "kill of holder and leader",
            Self::Pause => "pause of the holder's daemon",
            Self::Cut => "cut of the holder",
        }
    }
}

/// What became of the connections that were open before.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeldCount {
    /// How many there were.
    pub open: u64,
    /// How many broke.
    pub broke: u64,
    /// How many were silent for longer than a second, whether they broke or not.
    pub hung: u64,
}

/// One trial.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Trial {
    /// Its number, from 1 on.
    pub number: u32,
    /// The VIP's holders, from before the fault until all was undone.
    pub holders: Vec<String>,
    /// The Raft leader before the fault; empty where there is none.
    pub leader: String,
    /// Who answered the client, in order.
    pub answered_by: Vec<String>,
    /// What each clock showed; a clock that was not read is absent.
    pub clocks: BTreeMap<Clock, Reading>,
    /// The connections that were open before.
    pub held: HeldCount,
    /// Two hosts answered in turns; absent if they did not.
    pub turn: Option<String>,
    /// How long the command took that brought the fault about.
    pub command_ms: f64,
    /// How long it took until everything was well again after the fault was undone.
    pub settled_ms: f64,
}

/// What a shell knows of a trial beside the observer's record.
#[derive(Clone, Debug, Default)]
pub struct Notes {
    /// See [`Trial::number`].
    pub number: u32,
    /// See [`Trial::holders`].
    pub holders: Vec<String>,
    /// See [`Trial::leader`].
    pub leader: String,
}

/// Sums a trial up.
///
/// # Errors
/// When the record does not say when the fault was, or nothing answered before it.
pub fn sum_up(record: &Record, notes: Notes) -> Result<Trial, String> {
    let mark = |name: &str| record.mark(name).ok_or_else(|| format!("no mark {name}"));
    let (fault, done, undo) = (mark("fault")?, mark("done")?, mark("undo")?);
    let mut clocks = BTreeMap::new();
    for clock in Clock::ALL {
        let samples = record.of(clock);
        if samples.is_empty() {
            continue;
        }
        if !samples.iter().any(|s| s.good() && s.done() < fault) {
            return Err(format!("{} did not answer even before the fault", clock.title()));
        }
        clocks.insert(clock, stats::read(&samples, fault, undo));
    }
    let answers = record.of(Clock::Vip);
    let turn = turns::first_turn(&answers, &notes.holders).map(|turn| {
        let at = (ms(turn.at) - ms(fault)) / 1_000.0;
        format!(
            "{} answered {at:.2} s after the fault although {} held the VIP",
            turn.by, turn.after
        )
    });
    let count = |wanted: &dyn Fn(&super::record::Held) -> bool| {
        record.held.iter().filter(|held| wanted(held)).count() as u64
    };
    Ok(Trial {
        number: notes.number,
        holders: notes.holders,
        leader: notes.leader,
        answered_by: turns::sequence(&answers),
        clocks,
        held: HeldCount {
            open: count(&|_| true),
            broke: count(&|h| h.broke.is_some()),
            hung: count(&|h| h.silence > HUNG),
        },
        turn,
        command_ms: ms(done.saturating_sub(fault)),
        settled_ms: ms(mark("end")?.saturating_sub(undo)),
    })
}

/// All trials of one case.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CaseResult {
    /// Which.
    pub case: Case,
    /// In order.
    pub trials: Vec<Trial>,
}

impl CaseResult {
    /// One clock's readings.
    pub fn readings(&self, clock: Clock) -> Vec<&Reading> {
        self.trials.iter().filter_map(|t| t.clocks.get(&clock)).collect()
    }

    /// One clock's longest times without an answer, in milliseconds.
    pub fn gaps(&self, clock: Clock) -> Vec<f64> {
        self.readings(clock).iter().map(|r| r.gap_ms).collect()
    }
}

/// One of those that are compared.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct System {
    /// What a reader calls it.
    pub name: String,
    /// In the order in which they ran.
    pub cases: Vec<CaseResult>,
}

impl System {
    /// One case's trials.
    pub fn case(&self, case: Case) -> Option<&CaseResult> {
        self.cases.iter().find(|c| c.case == case)
    }
}

/// Where and of what a run was made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Setting {
    /// When it began.
    pub date: String,
    /// Of which commit the daemons are.
    pub commit: String,
    /// The machine: processor, cores, memory, kernel.
    pub machine: String,
    /// What ran as K3s.
    pub k3s: String,
    /// How many trials were asked for.
    pub trials: u32,
    /// Pause between two attempts of a clock, in milliseconds.
    pub every_ms: u64,
}

/// A bound, and whether it held.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verdict {
    /// Which case it is for.
    pub case: String,
    /// What is wanted.
    pub bound: String,
    /// What was found.
    pub measured: String,
    /// Whether that is within it.
    pub held: bool,
}

/// Everything that a run found.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Outcome {
    /// The form of this file.
    pub schema: u32,
    /// Where and of what.
    pub setting: Setting,
    /// Skein first, then the yardsticks.
    pub systems: Vec<System>,
    /// Skein's bounds.
    pub verdicts: Vec<Verdict>,
    /// Why the run ended early; absent if it did not.
    pub broken_off: Option<String>,
}

impl Outcome {
    /// Whether everything was measured and every bound held.
    pub fn passed(&self) -> bool {
        self.broken_off.is_none() && self.verdicts.iter().all(|v| v.held)
    }
}

#[cfg(test)]
mod tests {
    use super::super::record::{Held, Sample};
    use super::*;

    fn record(names: &[&str]) -> Record {
        let mut record = Record::default();
        for (i, name) in names.iter().enumerate() {
            let at = 20_000 * i as u64;
            let by = Some((*name).to_owned());
            record.samples.push(Sample { clock: Clock::Vip, at, took: 500, by, error: None });
        }
        for (name, at) in [("fault", 30_000), ("done", 31_000), ("undo", 90_000), ("end", 99_000)] {
            record.marks.push((name.into(), at));
        }
        record.held.push(Held { broke: Some(40_000), silence: 1_500_000 });
        record.held.push(Held { broke: None, silence: 900 });
        record
    }

    fn notes() -> Notes {
        let holders = vec!["a".to_owned(), "b".to_owned()];
        Notes { number: 1, holders, leader: "c".into() }
    }

    #[test]
    fn a_trial_is_summed_up() {
        let trial = sum_up(&record(&["a", "a", "b", "b"]), notes()).expect("it is whole");
        assert_eq!(trial.answered_by, ["a", "b"]);
        assert_eq!(trial.held, HeldCount { open: 2, broke: 1, hung: 1 });
        assert_eq!(trial.turn, None);
        assert!(!trial.clocks.contains_key(&Clock::Write), "what was not read is not there");
        assert!((trial.settled_ms - 9.0).abs() < 0.01);
    }

    #[test]
    fn answers_in_turns_are_told() {
        let trial = sum_up(&record(&["a", "a", "b", "a"]), notes()).expect("it is whole");
        let words = trial.turn.expect("a came back");
        assert!(words.contains("a answered 0.03 s after the fault although b held"), "{words}");
    }

    #[test]
    fn what_never_answered_is_an_error_and_no_long_gap() {
        let mut silent = record(&["a", "a"]);
        silent.samples.iter_mut().for_each(|s| s.error = Some("refused".into()));
        assert!(sum_up(&silent, notes()).is_err());
    }
}
