//! What is told of a run: as it goes on, and in the end. Shell.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::docket::Docket;
use super::stage::Stage;
use super::view::newest;
use crate::chaos::report::{Words, page_with};
use crate::chaos::run::Outcome;
use crate::chaos::schedule::{Event, Schedule};
use crate::lab::say;

/// Counts faults by kind.
fn faults(events: &[Event]) -> BTreeMap<&'static str, u64> {
    let mut kinds = BTreeMap::new();
    for event in events.iter().filter(|e| e.act.is_fault()) {
        *kinds.entry(event.act.kind()).or_default() += 1;
    }
    kinds
}

fn counted(kinds: &BTreeMap<&'static str, u64>) -> String {
    let all: u64 = kinds.values().sum();
    let kinds: Vec<String> = kinds.iter().map(|(kind, n)| format!("{kind} {n}")).collect();
    format!("{all} faults ({})", kinds.join(", "))
}

/// Says what was drawn.
pub(super) fn planned(schedule: &Schedule) {
    say(format!(
        "seed {} draws a plan for {} hosts and {} s: {}; clocks are real, so that its runs differ",
        schedule.seed,
        schedule.sites.len(),
        schedule.until_ms / 1_000,
        counted(&faults(&schedule.events))
    ));
}

/// Says how far a run is.
pub(super) fn progress(docket: &Docket, until_ms: u64) {
    let now = docket.faults_now().join("; ");
    let state = docket.lock();
    let said = newest(&state.seen).map_or_else(String::new, |s| {
        let vips = s.vips.iter().map(|v| format!("{} at {} ({})", v.name, v.holder, v.generation));
        let vips: Vec<String> = vips.collect();
        format!(", leader {} in term {}, {}", s.leader, s.term, vips.join(", "))
    });
    let up = state.seen.iter().filter(|s| s.answer.is_some()).count();
    let faults = state.played.iter().filter(|e| e.act.is_fault()).count();
    let (calls, answered) = state.calls;
    say(format!(
        "{:>4} of {} s: {faults} faults, {answered} of {calls} calls answered, {up} of {} daemons answer{said}; now: {}",
        docket.now_ms() / 1_000,
        until_ms / 1_000,
        state.seen.len(),
        if now.is_empty() { "calm" } else { now.as_str() }
    ));
}

/// Where a run is written down, and how it is repeated.
pub(super) struct Record<'a> {
    pub(super) dir: &'a Path,
    pub(super) replay: String,
    /// After how many milliseconds the fleet was whole again.
    pub(super) healed_ms: Option<u64>,
}

/// Sums up what was seen.
fn outcome(stage: &Stage) -> (Outcome, Vec<Event>) {
    let (now_us, mut state) = (stage.docket.now_us(), stage.docket.lock());
    let played = std::mem::take(&mut state.played);
    let outcome = Outcome {
        hash: String::new(),
        steps: 0,
        violation: state.violation.clone(),
        virtual_us: now_us,
        faults: faults(&played),
        calls: state.calls.0 + state.tally.requests.answered(),
        story: state.story.clone(),
        text: Vec::new(),
    };
    (outcome, played)
}

/// Keeps the daemons' logs, writes the page, and tells what came of it.
///
/// # Errors
/// When a file cannot be written.
pub(super) fn finish(
    stage: &Stage,
    schedule: &Schedule,
    record: &Record<'_>,
) -> Result<(), String> {
    let logs = keep_logs(stage, record.dir, schedule.seed)?;
    let (outcome, played) = outcome(stage);
    let (left_out, undecided) = {
        let state = stage.docket.lock();
        (state.left_out, state.undecided)
    };
    let seconds = outcome.virtual_us as f64 / 1e6;
    let facts = format!(
        "{seconds:.1} seconds on real daemons, {} calls judged, commit {}",
        outcome.calls,
        node::COMMIT
    );
    let title = format!("Seed {} on real daemons", schedule.seed);
    let lane = |machine: usize| stage.docket.hosts[machine].clone();
    let shown = Schedule { events: played, ..schedule.clone() };
    let words = Words { title, facts, replay: &record.replay, lane: &lane };
    let html = record.dir.join(format!("seed-{}.html", schedule.seed));
    std::fs::write(&html, page_with(&shown, &outcome, &words))
        .map_err(|e| format!("{}: {e}", html.display()))?;
    schedule.save(&html.with_extension("json"))?;
    let healed = record.healed_ms.map_or_else(String::new, |ms| {
        format!(", whole again {:.1} s after the last fault", ms as f64 / 1e3)
    });
    say(format!(
        "{} hosts, {}, {left_out} left out since their host was struck already, {} calls judged{healed}",
        stage.docket.hosts.len(),
        counted(&outcome.faults),
        outcome.calls
    ));
    if undecided > 0 {
        say(format!("{undecided} histories were too long to be judged in time"));
    }
    say(format!("report {}\nlogs {}", html.display(), logs.display()));
    let Some(violation) = &outcome.violation else {
        say("nothing was violated");
        return Ok(());
    };
    say(format!(
        "violated: {} at {:.3} s: {}\nseed {}, commit {}",
        violation.name,
        violation.at_us as f64 / 1e6,
        violation.why,
        schedule.seed,
        node::COMMIT
    ));
    violation.nodes.iter().for_each(|line| say(format!("  {line}")));
    say(format!("to draw it again: {}", record.replay));
    Ok(())
}

/// Copies the daemons' logs, since the lab is removed.
fn keep_logs(stage: &Stage, dir: &Path, seed: u64) -> Result<PathBuf, String> {
    let to = dir.join(format!("seed-{seed}-logs"));
    std::fs::create_dir_all(&to).map_err(|e| format!("{}: {e}", to.display()))?;
    for (machine, host) in stage.docket.hosts.iter().enumerate() {
        let (from, to) = (stage.log(machine), to.join(format!("{host}.log")));
        std::fs::copy(&from, &to).map_err(|e| format!("{}: {e}", from.display()))?;
    }
    Ok(to)
}
