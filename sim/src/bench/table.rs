//! A run as Markdown. Pure.

use std::fmt::Write as _;

use super::record::Clock;
use super::stats::{median, worst};
use super::trial::{Case, CaseResult, Outcome, Verdict};
use super::verdict::seconds;

/// Renders everything.
pub fn markdown(outcome: &Outcome) -> String {
    let setting = &outcome.setting;
    let mut text = String::from("# Failover, measured\n\n");
    let _ = writeln!(text, "- date: {}", setting.date);
    let _ = writeln!(text, "- commit: {}", setting.commit);
    let _ = writeln!(text, "- machine: {}", setting.machine);
    let _ = writeln!(text, "- K3s: {}", setting.k3s);
    let _ = writeln!(
        text,
        "- a client asks each {} ms and waits 200 ms for a connect, 1 s for a handshake or a write; Skein was tried {} times \
         in each case; \"gap\" is from the last attempt that was answered \
         to the first answer after it, 0 if no attempt failed",
        setting.every_ms, setting.trials
    );
    if let Some(why) = &outcome.broken_off {
        let _ = writeln!(text, "\n**Broken off: {why}**");
    }
    gaps(&mut text, outcome);
    losses(&mut text, outcome);
    bounds(&mut text, "case", &outcome.verdicts);
    text
}

fn rows(outcome: &Outcome) -> Vec<(Case, &str, &CaseResult)> {
    let mut rows: Vec<(Case, &str, &CaseResult)> = outcome
        .systems
        .iter()
        .flat_map(|s| s.cases.iter().map(|c| (c.case, s.name.as_str(), c)))
        .collect();
    // Stable, so that within a case the order of the systems stays.
    rows.sort_by_key(|(case, _, _)| *case);
    rows
}

fn gaps(text: &mut String, outcome: &Outcome) {
    text.push_str("\n## Gaps\n\n| case | system | trials |");
    for clock in Clock::ALL {
        let _ = write!(text, " {0} median | {0} worst |", clock.title());
    }
    text.push_str("\n|---|---|---|---|---|---|---|---|---|\n");
    for (case, system, result) in rows(outcome) {
        let _ = write!(text, "| {} | {system} | {} |", case.title(), result.trials.len());
        for clock in Clock::ALL {
            let gaps = result.gaps(clock);
            match (median(&gaps), worst(&gaps)) {
                (Some(middle), Some(worst)) => {
                    let _ = write!(text, " {} | {} |", seconds(middle), seconds(worst));
                }
                _ => text.push_str(" - | - |"),
            }
        }
        text.push('\n');
    }
    if !outcome.systems.iter().flat_map(|s| &s.cases).any(|c| !c.gaps(Clock::Write).is_empty()) {
        text.push_str("\nAPI write: not measured: rehearsal.\n");
    }
}

fn losses(text: &mut String, outcome: &Outcome) {
    text.push_str(
        "\n## Losses\n\nTrials in which any new attempt failed, from the fault on and while it was undone; \
         connections that were open before.\n\n\
         | case | system | trials with a failed connect | with a failed write | with a failed connect while undoing \
         | open before | of them broke | silent over 1 s | two answered in turns |\n|---|---|---|---|---|---|---|---|---|\n",
    );
    for (case, system, result) in rows(outcome) {
        let all = result.trials.len();
        let connects = result.readings(Clock::Vip);
        let failed = connects.iter().filter(|r| r.failed > 0).count();
        let undoing = connects.iter().filter(|r| r.failed_undoing > 0).count();
        let writes = result.readings(Clock::Write);
        let lost = writes.iter().filter(|r| r.failed > 0).count();
        let lost = if writes.is_empty() { "-".into() } else { format!("{lost} of {all}") };
        let sum = |of: fn(&super::trial::HeldCount) -> u64| -> u64 {
            result.trials.iter().map(|t| of(&t.held)).sum()
        };
        let turns = result.trials.iter().filter(|t| t.turn.is_some()).count();
        let _ = writeln!(
            text,
            "| {} | {system} | {failed} of {all} | {lost} | {undoing} of {all} | {} | {} | {} | {turns} of {all} |",
            case.title(),
            sum(|h| h.open),
            sum(|h| h.broke),
            sum(|h| h.hung),
        );
    }
}

/// What was promised and whether it held; `who` heads the column that says of whom.
pub(super) fn bounds(text: &mut String, who: &str, verdicts: &[Verdict]) {
    let _ = write!(text, "\n## Bounds\n\n| {who} | bound | measured | held |\n|---|---|---|---|\n");
    for v in verdicts {
        let held = if v.held { "yes" } else { "**no**" };
        let _ = writeln!(text, "| {} | {} | {} | {held} |", v.case, v.bound, v.measured);
    }
}

/// The same of a bench that judges nothing without optimisations.
pub(super) fn bounds_if_judged(text: &mut String, who: &str, verdicts: &[Verdict]) {
    if verdicts.is_empty() {
        text.push_str("\n## Bounds\n\nNothing was judged.\n");
    } else {
        bounds(text, who, verdicts);
    }
}
