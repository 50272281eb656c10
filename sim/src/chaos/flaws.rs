//! Shows that the simulator can fail: each flaw of [`super::flaw`] is to be found within a number of seeds. Shell.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::channel;

use clap::Args;
use serde::Serialize;

use super::cli::say;
use super::flaw::Flaw;
use super::run::{Keep, run, violates};
use super::schedule::{Profile, Schedule};
use super::shrink::shrink;

/// How many runs a schedule may take to become shorter.
const SHRINK_RUNS: usize = 150;
/// Between these lines of a page stands the table.
const MARKS: (&str, &str) = ("<!-- flaws -->", "<!-- /flaws -->");

/// `skein-sim flaws`.
#[derive(Debug, Args)]
pub struct FlawsArgs {
    /// Only this one.
    #[arg(long, value_enum)]
    flaw: Option<Flaw>,
    /// Within how many seeds each must be found.
    #[arg(long, default_value_t = 200)]
    seeds: u64,
    /// On how many threads.
    #[arg(long, default_value_t = 2)]
    jobs: usize,
    /// Do not make the schedules shorter.
    #[arg(long)]
    no_shrink: bool,
    /// Write the schedules to this folder.
    #[arg(long, value_name = "DIR", default_value = "target/chaos/flaws")]
    out: PathBuf,
    /// Put the table into this page, between its marks.
    #[arg(long, value_name = "FILE")]
    page: Option<PathBuf>,
}

/// How a flaw was found.
#[derive(Clone, Debug, Serialize)]
struct Found {
    flaw: Flaw,
    words: &'static str,
    /// By which invariant; none if it was not found.
    by: Option<String>,
    /// How many seeds that took.
    seeds: u64,
    /// How many events the schedule had.
    events: usize,
    /// And how many are enough.
    short: Option<usize>,
}

/// Looks for each flaw.
///
/// # Errors
/// When a file cannot be written, or the kernel gives no runtime.
pub fn flaws(args: &FlawsArgs) -> Result<u8, String> {
    std::fs::create_dir_all(&args.out).map_err(|e| format!("{}: {e}", args.out.display()))?;
    // A flawed world may bring openraft to panic, which is one way to be found.
    std::panic::set_hook(Box::new(|_| {}));
    let wanted: Vec<Flaw> = args.flaw.map_or_else(|| Flaw::ALL.to_vec(), |f| vec![f]);
    let mut found = all(&wanted, args)?;
    found.sort_by_key(|f| f.flaw);
    let json = serde_json::to_string_pretty(&found).map_err(|e| e.to_string())?;
    let path = args.out.join("flaws.json");
    std::fs::write(&path, json + "\n").map_err(|e| format!("{}: {e}", path.display()))?;
    if let Some(page) = &args.page {
        put(page, &table(&found))?;
    }
    let missed = found.iter().filter(|f| f.by.is_none()).count();
    say(&format!(
        "{} of {} flaws found within {} seeds each",
        found.len() - missed,
        found.len(),
        args.seeds
    ));
    Ok(if missed == 0 { 0 } else { 2 })
}

/// Looks for the flaws on as many threads as wanted.
fn all(wanted: &[Flaw], args: &FlawsArgs) -> Result<Vec<Found>, String> {
    let next = AtomicUsize::new(0);
    let (tx, rx) = channel();
    std::thread::scope(|threads| {
        for _ in 0..args.jobs.max(1) {
            let (next, tx) = (&next, tx.clone());
            threads.spawn(move || {
                while let Some(flaw) = wanted.get(next.fetch_add(1, Ordering::Relaxed)) {
                    // Nobody listens any more once one of them failed.
                    let _ = tx.send(find(*flaw, args));
                }
            });
        }
        drop(tx);
        let told = rx.into_iter().inspect(|one| {
            if let Ok(one) = one {
                say(&line(one));
            }
        });
        told.collect()
    })
}

fn find(flaw: Flaw, args: &FlawsArgs) -> Result<Found, String> {
    let mut none =
        Found { flaw, words: flaw.words(), by: None, seeds: args.seeds, events: 0, short: None };
    for seed in 0..args.seeds {
        let mut schedule = Schedule::from_seed(seed, Profile::Default);
        schedule.flaw = Some(flaw);
        let outcome = run(&schedule, Keep::Hash)?;
        let Some(violation) = outcome.violation else { continue };
        if !flaw.found_by().contains(&violation.name.as_str()) {
            continue;
        }
        none.by = Some(violation.name.clone());
        (none.seeds, none.events) = (seed + 1, schedule.events.len());
        if !args.no_shrink {
            let fails = |candidate: &Schedule| violates(candidate, &violation.name);
            let shrunk = shrink(&schedule, SHRINK_RUNS, fails);
            none.short = Some(shrunk.schedule.events.len());
            let name = serde_json::to_value(flaw).map_err(|e| e.to_string())?;
            let name = name.as_str().unwrap_or("flaw").to_owned();
            shrunk.schedule.save(&args.out.join(format!("{name}.json")))?;
        }
        return Ok(none);
    }
    Ok(none)
}

fn line(found: &Found) -> String {
    let words = found.words;
    match &found.by {
        Some(by) => {
            let short = found.short.map_or(String::new(), |n| format!(", {n} of them are enough"));
            format!(
                "{words}: found by {by} with {} seed(s), {} events{short}",
                found.seeds, found.events
            )
        }
        None => format!("{words}: NOT FOUND in {} seeds", found.seeds),
    }
}

fn table(all: &[Found]) -> String {
    let mut text = String::from(
        "| what is wrong | found by | seeds needed | events | shrunk to |\n|---|---|---|---|---|\n",
    );
    for found in all {
        let by = found.by.as_ref().map_or("not found".to_owned(), |by| format!("`{by}`"));
        let short = found.short.map_or("-".to_owned(), |n| n.to_string());
        // A String takes all that is written.
        let _ = writeln!(
            text,
            "| {} | {by} | {} | {} | {short} |",
            found.words, found.seeds, found.events
        );
    }
    text
}

/// Puts a table into a page, between its marks.
fn put(page: &Path, table: &str) -> Result<(), String> {
    let shown = page.display();
    let text = std::fs::read_to_string(page).map_err(|e| format!("{shown}: {e}"))?;
    let parts = text
        .split_once(MARKS.0)
        .and_then(|(before, rest)| rest.split_once(MARKS.1).map(|(_, after)| (before, after)));
    let (before, after) = parts.ok_or_else(|| format!("{shown} has no line {}", MARKS.0))?;
    let commit = node::COMMIT;
    let text = format!(
        "{before}{}\nMade by `skein-sim flaws` on commit {commit}.\n\n{table}{}{after}",
        MARKS.0, MARKS.1
    );
    std::fs::write(page, text).map_err(|e| format!("{shown}: {e}"))
}
