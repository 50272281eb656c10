//! What is promised, and whether a run kept it. Pure.

use super::record::Clock;
use super::stats::{median, worst};
use super::trial::{Case, CaseResult, System, Verdict};

/// Of 20 drains, how many must lose no connect; of fewer in proportion, rounded up.
const DRAINS_WITHOUT_LOSS: usize = 19;
/// Of 20 drains, how many must lose no write.
const DRAINS_WITHOUT_LOST_WRITE: usize = 16;
/// How long writes may stop in the others.
const DRAIN_WRITE_GAP: f64 = 1_100.0;
/// From a kill of the holder until the VIP answers.
const KILL_MEDIAN: f64 = 1_200.0;
const KILL_WORST: f64 = 2_000.0;
/// From a kill of holder and leader together until the VIP answers.
const BOTH_WORST: f64 = 3_000.0;
/// From a kill of the holder until the API takes writes.
const KILL_WRITE_WORST: f64 = 5_000.0;

/// How many of `trials` must succeed where `of_twenty` of 20 must.
fn needed(of_twenty: usize, trials: usize) -> usize {
    (of_twenty * trials).div_ceil(20)
}

/// Milliseconds for a reader.
pub(super) fn seconds(ms: f64) -> String {
    if ms < 1_000.0 { format!("{ms:.0} ms") } else { format!("{:.2} s", ms / 1_000.0) }
}

fn at_most(case: Case, what: &str, measured: Option<f64>, bound: f64) -> Verdict {
    Verdict {
        case: case.title().into(),
        bound: format!("{what} at most {}", seconds(bound)),
        measured: measured.map_or_else(|| "nothing".into(), seconds),
        held: measured.is_some_and(|m| m <= bound),
    }
}

fn without_loss(result: &CaseResult, clock: Clock, of_twenty: usize, what: &str) -> Verdict {
    let readings = result.readings(clock);
    let (all, wanted) = (readings.len(), needed(of_twenty, readings.len()));
    let clean = readings.iter().filter(|r| r.failed == 0).count();
    Verdict {
        case: result.case.title().into(),
        bound: format!("no failed {what} in at least {wanted} of {all}"),
        measured: format!("{clean} of {all}"),
        held: all > 0 && clean >= wanted,
    }
}

fn came_back(result: &CaseResult) -> Verdict {
    let trials = result.trials.len();
    let back = result.trials.iter().filter(|t| t.clocks.values().all(|r| r.back)).count();
    Verdict {
        case: result.case.title().into(),
        bound: "every clock answers again".into(),
        measured: format!("{back} of {trials}"),
        held: back == trials,
    }
}

/// Judges Skein's trials.
pub fn judge(skein: &System) -> Vec<Verdict> {
    let mut verdicts = Vec::new();
    for result in &skein.cases {
        let vip = result.gaps(Clock::Vip);
        let writes = result.gaps(Clock::Write);
        match result.case {
            Case::Drain => {
                verdicts.push(without_loss(result, Clock::Vip, DRAINS_WITHOUT_LOSS, "connect"));
                if !writes.is_empty() {
                    let needed = DRAINS_WITHOUT_LOST_WRITE;
                    verdicts.push(without_loss(result, Clock::Write, needed, "API write"));
                    let bound = DRAIN_WRITE_GAP;
                    verdicts.push(at_most(
                        result.case,
                        "worst API write gap",
                        worst(&writes),
                        bound,
                    ));
                }
            }
            Case::Kill => {
                verdicts.push(at_most(result.case, "VIP median", median(&vip), KILL_MEDIAN));
                verdicts.push(at_most(result.case, "VIP worst", worst(&vip), KILL_WORST));
                if !writes.is_empty() {
                    let bound = KILL_WRITE_WORST;
                    verdicts.push(at_most(
                        result.case,
                        "worst API write gap",
                        worst(&writes),
                        bound,
                    ));
                }
            }
            Case::HolderAndLeader => {
                verdicts.push(at_most(result.case, "VIP worst", worst(&vip), BOTH_WORST));
            }
            Case::Crash | Case::Pause | Case::Cut => {}
        }
        verdicts.push(came_back(result));
    }
    verdicts.push(never_in_turns(skein));
    verdicts
}

fn never_in_turns(skein: &System) -> Verdict {
    let trials = || skein.cases.iter().flat_map(|c| c.trials.iter().map(move |t| (c.case, t)));
    let mut turns = trials().filter_map(|(case, trial)| {
        let words = trial.turn.as_ref()?;
        Some(format!("{} {}: {words}", case.title(), trial.number))
    });
    let first = turns.next();
    let more = turns.count();
    Verdict {
        case: "all".into(),
        bound: "never two hosts that answer one client in turns".into(),
        measured: match &first {
            None => format!("none in {}", trials().count()),
            Some(words) if more == 0 => words.clone(),
            Some(words) => format!("{words} (and {more} more)"),
        },
        held: first.is_none(),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::super::stats::Reading;
    use super::super::trial::{HeldCount, Trial};
    use super::*;

    fn trial(gap_ms: f64, failed: u64) -> Trial {
        let reading = Reading { gap_ms, failed, back: true, ..Reading::default() };
        Trial {
            number: 1,
            holders: Vec::new(),
            leader: String::new(),
            answered_by: Vec::new(),
            clocks: BTreeMap::from([(Clock::Vip, reading)]),
            held: HeldCount::default(),
            turn: None,
            command_ms: 0.0,
            settled_ms: 0.0,
        }
    }

    fn system(case: Case, trials: Vec<Trial>) -> System {
        System { name: "Skein".into(), cases: vec![CaseResult { case, trials }] }
    }

    fn missed(system: &System) -> Vec<String> {
        judge(system).into_iter().filter(|v| !v.held).map(|v| v.bound).collect()
    }

    #[test]
    fn shares_of_twenty_are_never_rounded_down() {
        assert_eq!([1, 3, 10, 20, 40].map(|n| needed(19, n)), [1, 3, 10, 19, 38]);
        assert_eq!([3, 5, 20].map(|n| needed(16, n)), [3, 4, 16]);
    }

    #[test]
    fn a_drain_may_lose_a_connect_once_in_twenty() {
        let mut trials = vec![trial(0.0, 0); 19];
        trials.push(trial(40.0, 1));
        assert_eq!(missed(&system(Case::Drain, trials.clone())), Vec::<String>::new());
        trials.push(trial(40.0, 1));
        trials.remove(0);
        assert_eq!(
            missed(&system(Case::Drain, trials)),
            ["no failed connect in at least 19 of 20"]
        );
    }

    #[test]
    fn a_kill_has_a_median_and_a_worst() {
        let fine = system(Case::Kill, vec![trial(900.0, 9), trial(1_100.0, 9), trial(1_900.0, 9)]);
        assert_eq!(missed(&fine), Vec::<String>::new());
        let slow = system(Case::Kill, vec![trial(900.0, 9), trial(1_300.0, 9), trial(2_100.0, 9)]);
        assert_eq!(missed(&slow), ["VIP median at most 1.20 s", "VIP worst at most 2.00 s"]);
    }

    #[test]
    fn holder_and_leader_have_three_seconds() {
        let slow = system(Case::HolderAndLeader, vec![trial(3_001.0, 9)]);
        assert_eq!(missed(&slow), ["VIP worst at most 3.00 s"]);
    }

    #[test]
    fn one_answer_out_of_turn_in_any_case_is_too_many() {
        for case in [Case::Pause, Case::Cut, Case::Crash] {
            let bad = Trial { turn: Some("a answered".into()), ..trial(0.0, 0) };
            let missed = missed(&system(case, vec![trial(0.0, 0), bad]));
            assert_eq!(missed, ["never two hosts that answer one client in turns"]);
        }
    }

    #[test]
    fn what_does_not_come_back_is_missed() {
        let mut gone = trial(0.0, 5);
        gone.clocks.values_mut().for_each(|r| r.back = false);
        assert_eq!(missed(&system(Case::Cut, vec![gone])), ["every clock answers again"]);
    }

    #[test]
    fn writes_are_judged_where_they_were_measured() {
        let mut one = trial(0.0, 0);
        let slow = Reading { gap_ms: 5_500.0, failed: 9, back: true, ..Reading::default() };
        one.clocks.insert(Clock::Write, slow);
        let missed = missed(&system(Case::Kill, vec![one]));
        assert_eq!(missed, ["worst API write gap at most 5.00 s"]);
    }
}
