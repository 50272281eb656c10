//! From latencies to figures, ratios and verdicts of two systems that were measured in turns. Pure.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::super::stats::median;
use super::super::trial::Verdict;

/// Skein must reach this share of etcd's puts per second.
pub const SHARE_WANTED: f64 = 0.9;

/// What is measured against what.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum System {
    /// etcd as it comes: heartbeat 100 ms, election 1000 ms.
    Etcd,
    /// etcd with heartbeat 20 ms, election 200 ms; only its gap is measured.
    EtcdTuned,
    /// This tree.
    Skein,
}

impl System {
    /// All of them, in the order of a report.
    pub const ALL: [Self; 3] = [Self::Etcd, Self::EtcdTuned, Self::Skein];

    /// What a reader calls it.
    pub fn title(self) -> &'static str {
        match self {
            Self::Etcd => "etcd",
            Self::EtcdTuned => "etcd, 20/200 ms",
            Self::Skein => "Skein",
        }
    }
}

/// What clients do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Load {
    /// One client puts, one after the other.
    PutOne,
    /// Many clients put.
    PutMany,
    /// Many clients read, linearizable.
    ReadMany,
}

impl Load {
    /// All of them, in the order in which they are run.
    pub const ALL: [Self; 3] = [Self::PutOne, Self::PutMany, Self::ReadMany];

    /// How many clients there are.
    pub fn clients(self) -> usize {
        match self {
            Self::PutOne => 1,
            Self::PutMany | Self::ReadMany => 64,
        }
    }

    /// What a reader calls it.
    pub fn title(self) -> &'static str {
        match self {
            Self::PutOne => "puts, 1 client",
            Self::PutMany => "puts, 64 clients",
            Self::ReadMany => "linearizable reads, 64 clients",
        }
    }
}

/// What one load came to.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Figures {
    /// Calls that were answered.
    pub answered: u64,
    /// Calls that failed.
    pub failed: u64,
    /// Answered calls per second.
    pub per_second: f64,
    /// Half of the calls took no longer, in milliseconds.
    pub p50_ms: f64,
    /// 99 of 100 calls took no longer, in milliseconds.
    pub p99_ms: f64,
    /// The longest call, in milliseconds.
    pub worst_ms: f64,
}

/// The value that a share of `sorted` does not exceed (nearest rank), in the unit of `sorted`; 0 of nothing.
pub fn quantile(sorted: &[u64], percent: usize) -> u64 {
    let rank = (sorted.len() * percent).div_ceil(100).max(1);
    sorted.get(rank - 1).copied().unwrap_or(0)
}

#[expect(clippy::cast_precision_loss, reason = "a call takes seconds, not centuries")]
fn millis(micros: u64) -> f64 {
    micros as f64 / 1_000.0
}

impl Figures {
    /// Sums up calls that took so many microseconds each, within `seconds`.
    #[expect(clippy::cast_precision_loss, reason = "there are millions of calls, not more")]
    pub fn of(mut micros: Vec<u64>, failed: u64, seconds: f64) -> Self {
        micros.sort_unstable();
        Self {
            answered: micros.len() as u64,
            failed,
            per_second: micros.len() as f64 / seconds.max(f64::EPSILON),
            p50_ms: millis(quantile(&micros, 50)),
            p99_ms: millis(quantile(&micros, 99)),
            worst_ms: millis(micros.last().copied().unwrap_or(0)),
        }
    }
}

/// One system's turn in a round.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Turn {
    /// What each load came to; a load that was not run is absent.
    pub loads: BTreeMap<Load, Figures>,
    /// From each kill of the leader to the next acknowledged put, in milliseconds.
    pub gaps_ms: Vec<f64>,
    /// The machine's load average over one minute before the turn.
    pub load_before: f64,
}

/// Every system's turn, one right after the other.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Round {
    /// Its number, from 1 on.
    pub number: u32,
    /// In which order the systems had their turns.
    pub order: Vec<System>,
    /// What they came to.
    pub turns: BTreeMap<System, Turn>,
}

/// The order of a round: who was first is second in the next one.
pub fn order(number: u32, tuned: bool) -> Vec<System> {
    let mut order = vec![System::Etcd, System::Skein];
    if number.is_multiple_of(2) {
        order.reverse();
    }
    if tuned {
        order.push(System::EtcdTuned);
    }
    order
}

/// What was measured where.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Setting {
    /// When.
    pub date: String,
    /// Skein's commit.
    pub commit: String,
    /// On what.
    pub machine: String,
    /// Whether Skein was built with optimisations.
    pub optimised: bool,
    /// etcd's version, and where it comes from.
    pub etcd: String,
    /// Where the data folders lay.
    pub disk: String,
    /// How many rounds were wanted.
    pub rounds: u32,
    /// How long each load ran, in seconds.
    pub seconds: u64,
    /// How often the leader was killed in each turn.
    pub kills: u32,
    /// The size of a value, in bytes.
    pub value_bytes: usize,
}

/// Everything that a run found.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Outcome {
    /// The format of this record.
    pub schema: u32,
    /// What was measured where.
    pub setting: Setting,
    /// Every round.
    pub rounds: Vec<Round>,
    /// What was promised, and whether it was kept; empty where nothing is judged.
    pub verdicts: Vec<Verdict>,
    /// Why the run ended early, if it did.
    pub broken_off: Option<String>,
}

impl Outcome {
    /// One figure of one system, from each round that has it.
    pub fn values(&self, system: System, load: Load, of: fn(&Figures) -> f64) -> Vec<f64> {
        let turns = self.rounds.iter().filter_map(|r| r.turns.get(&system));
        turns.filter_map(|t| t.loads.get(&load)).map(of).collect()
    }

    /// All gaps of one system, in milliseconds.
    pub fn gaps(&self, system: System) -> Vec<f64> {
        let turns = self.rounds.iter().filter_map(|r| r.turns.get(&system));
        turns.flat_map(|t| t.gaps_ms.iter().copied()).collect()
    }

    /// Skein's calls per second as a share of etcd's: of the medians, and of each round.
    pub fn share(&self, load: Load) -> Option<(f64, Vec<f64>)> {
        let middle = |system| median(&self.values(system, load, |f| f.per_second));
        let of_medians = share(middle(System::Skein)?, middle(System::Etcd)?)?;
        let per_second =
            |round: &Round, system| Some(round.turns.get(&system)?.loads.get(&load)?.per_second);
        let each = |r: &Round| share(per_second(r, System::Skein)?, per_second(r, System::Etcd)?);
        Some((of_medians, self.rounds.iter().filter_map(each).collect()))
    }

    /// Whether everything was measured and kept.
    pub fn passed(&self) -> bool {
        self.broken_off.is_none() && self.verdicts.iter().all(|v| v.held)
    }
}

fn share(ours: f64, theirs: f64) -> Option<f64> {
    (theirs > 0.0).then(|| ours / theirs)
}

/// Judges a run; without optimisations it would be the compiler that is judged, so nothing is.
pub fn judge(outcome: &Outcome) -> Vec<Verdict> {
    if !outcome.setting.optimised {
        return Vec::new();
    }
    let judged = [Load::PutOne, Load::PutMany].map(|load| {
        let share = outcome.share(load).map(|(of_medians, _)| of_medians);
        Verdict {
            case: load.title().into(),
            bound: format!("at least {SHARE_WANTED} of etcd's per second"),
            measured: share.map_or_else(|| "nothing".into(), |s| format!("{s:.2}")),
            held: share.is_some_and(|s| s >= SHARE_WANTED),
        }
    });
    judged.into()
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    fn turn(per_second: f64) -> Turn {
        let figures = Figures { per_second, ..Figures::default() };
        let loads = [(Load::PutOne, figures.clone()), (Load::PutMany, figures)];
        Turn { loads: loads.into(), gaps_ms: vec![per_second], load_before: 0.5 }
    }

    /// An outcome with these puts per second of etcd and Skein, a pair for each round.
    pub(crate) fn outcome(rounds: &[(f64, f64)]) -> Outcome {
        let round = |(number, (etcd, skein)): (u32, &(f64, f64))| Round {
            number,
            order: order(number, false),
            turns: [(System::Etcd, turn(*etcd)), (System::Skein, turn(*skein))].into(),
        };
        Outcome {
            schema: 1,
            setting: Setting {
                date: "today".into(),
                commit: "abc".into(),
                machine: "one".into(),
                optimised: true,
                etcd: "etcd 9".into(),
                disk: "/d (ext4)".into(),
                rounds: 1,
                seconds: 1,
                kills: 1,
                value_bytes: 256,
            },
            rounds: (1u32..).zip(rounds).map(round).collect(),
            verdicts: Vec::new(),
            broken_off: None,
        }
    }

    #[test]
    fn quantiles_are_values_that_were_measured() {
        let hundred: Vec<u64> = (1..=100).collect();
        assert_eq!((quantile(&hundred, 50), quantile(&hundred, 99)), (50, 99));
        assert_eq!((quantile(&[7], 50), quantile(&[7], 99), quantile(&[], 50)), (7, 7, 0));
    }

    #[test]
    fn figures_are_per_second_and_in_milliseconds() {
        let f = Figures::of(vec![3_000, 1_000, 2_000, 9_000], 1, 2.0);
        assert_eq!((f.answered, f.failed), (4, 1));
        assert!((f.per_second - 2.0).abs() < 1e-9);
        assert_eq!((f.p50_ms, f.p99_ms, f.worst_ms), (2.0, 9.0, 9.0));
    }

    #[test]
    fn nobody_is_always_first() {
        assert_eq!(order(1, false), [System::Etcd, System::Skein]);
        assert_eq!(order(2, true), [System::Skein, System::Etcd, System::EtcdTuned]);
    }

    #[test]
    fn shares_are_of_medians_and_of_each_round() {
        let found = outcome(&[(100.0, 50.0), (100.0, 100.0), (200.0, 400.0)]);
        let (of_medians, each) = found.share(Load::PutMany).unwrap();
        assert!((of_medians - 1.0).abs() < 1e-9);
        assert_eq!(each, [0.5, 1.0, 2.0]);
        assert_eq!(found.share(Load::ReadMany), None);
    }

    #[test]
    fn nine_tenths_are_enough_and_less_is_not() {
        let held = |rounds: &[(f64, f64)]| judge(&outcome(rounds)).iter().all(|v| v.held);
        assert!(held(&[(100.0, 90.0)]));
        assert!(!held(&[(100.0, 89.0)]));
        assert!(!held(&[]), "what was not measured was not reached");
    }

    #[test]
    fn a_build_without_optimisations_is_not_judged() {
        let mut slow = outcome(&[(100.0, 1.0)]);
        slow.setting.optimised = false;
        slow.verdicts = judge(&slow);
        assert!(slow.passed());
        slow.broken_off = Some("no disk".into());
        assert!(!slow.passed());
    }
}
