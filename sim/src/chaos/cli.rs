//! `skein-sim run`, `sweep`, `replay`, `shrink`. Shell.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use clap::Args;

use super::flaw::Flaw;
use super::report::page;
use super::run::{Keep, Outcome, run, violates};
use super::schedule::{Profile, Schedule};
use super::shrink::shrink;
use super::sweep::{Failure, Plan, sweep};

/// The exit code of a run with a violation.
pub(crate) const VIOLATED: u8 = 2;
/// The exit code of a run that does not repeat.
const DIFFERS: u8 = 3;
/// How many runs a schedule may take to become shorter.
const SHRINK_RUNS: usize = 400;

/// `skein-sim run`.
#[derive(Debug, Args)]
pub struct RunArgs {
    /// The seed.
    #[arg(long)]
    seed: u64,
    /// What kind of fleet, and how it is hurt.
    #[arg(long, value_enum, default_value_t)]
    profile: Profile,
    #[command(flatten)]
    how: How,
    /// Write the schedule to this file.
    #[arg(long, value_name = "FILE")]
    schedule: Option<PathBuf>,
    /// Do not make a failing schedule shorter.
    #[arg(long)]
    no_shrink: bool,
    /// Let this be wrong with the world.
    #[arg(long, value_enum)]
    flaw: Option<Flaw>,
}

/// How a schedule is run.
#[derive(Debug, Args)]
struct How {
    /// Run it twice and compare the traces.
    #[arg(long)]
    twice: bool,
    /// Write the trace in words to this file.
    #[arg(long, value_name = "FILE")]
    trace: Option<PathBuf>,
    /// Write a page that shows the run to this folder.
    #[arg(long, value_name = "DIR")]
    report: Option<PathBuf>,
}

/// `skein-sim replay`.
#[derive(Debug, Args)]
pub struct ReplayArgs {
    /// The schedule.
    file: PathBuf,
    #[command(flatten)]
    how: How,
}

/// `skein-sim corpus`.
#[derive(Debug, Args)]
pub struct CorpusArgs {
    /// The folder of schedules.
    #[arg(default_value = "sim/corpus")]
    dir: PathBuf,
}

/// `skein-sim shrink`.
#[derive(Debug, Args)]
pub struct ShrinkArgs {
    /// The schedule.
    file: PathBuf,
    /// Where to write the shorter one [default: beside it, as NAME.short.json].
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// How many runs it may take.
    #[arg(long, default_value_t = SHRINK_RUNS)]
    runs: usize,
}

/// `skein-sim sweep`.
#[derive(Debug, Args)]
pub struct SweepArgs {
    /// The seeds, as FIRST..END: the last one is END - 1.
    #[arg(long, value_parser = seeds)]
    seeds: (u64, u64),
    /// What kind of fleet, and how it is hurt.
    #[arg(long, value_enum, default_value_t)]
    profile: Profile,
    /// On how many threads.
    #[arg(long, default_value_t = 2)]
    jobs: usize,
    /// Begin no seed after so many minutes.
    #[arg(long, value_name = "M")]
    minutes: Option<f64>,
    /// Run each seed twice and compare the traces.
    #[arg(long)]
    twice: bool,
    /// Go on after a violation.
    #[arg(long)]
    keep_going: bool,
    /// Do not make failing schedules shorter.
    #[arg(long)]
    no_shrink: bool,
    /// Write a page for each failing seed to this folder.
    #[arg(long, value_name = "DIR")]
    report: Option<PathBuf>,
    /// Where failing schedules are written.
    #[arg(long, value_name = "DIR", default_value = "target/chaos")]
    out: PathBuf,
}

fn seeds(text: &str) -> Result<(u64, u64), String> {
    let parse = |t: &str| t.trim().parse::<u64>().map_err(|e| format!("{t:?}: {e}"));
    let (from, to) = text.split_once("..").ok_or("write FIRST..END, such as 0..1000")?;
    let (from, to) = (parse(from)?, parse(to)?);
    if from < to { Ok((from, to)) } else { Err("there is no seed between them".into()) }
}

/// Runs a seed.
///
/// # Errors
/// When a file cannot be written, or the kernel gives no runtime.
pub fn run_seed(args: &RunArgs) -> Result<u8, String> {
    let mut schedule = Schedule::from_seed(args.seed, args.profile);
    schedule.flaw = args.flaw;
    if let Some(path) = &args.schedule {
        schedule.save(path)?;
    }
    let out = (!args.no_shrink).then(|| Path::new("target/chaos"));
    one(&schedule, &args.how, out)
}

/// Runs a schedule from a file.
///
/// # Errors
/// When a file cannot be read or written, or the kernel gives no runtime.
pub fn replay(args: &ReplayArgs) -> Result<u8, String> {
    one(&Schedule::load(&args.file)?, &args.how, None)
}

/// Runs each schedule of a folder twice: what was mended once stays mended.
///
/// # Errors
/// When a file cannot be read, or the kernel gives no runtime.
pub fn corpus(args: &CorpusArgs) -> Result<u8, String> {
    let entries = std::fs::read_dir(&args.dir);
    let entries = entries.map_err(|e| format!("{}: {e}", args.dir.display()))?;
    let mut files: Vec<PathBuf> = entries.filter_map(|e| Some(e.ok()?.path())).collect();
    files.retain(|path| path.extension().is_some_and(|x| x == "json"));
    files.sort();
    let mut worst = 0;
    for path in &files {
        say(&format!("{}", path.display()));
        let how = How { twice: true, trace: None, report: None };
        worst = one(&Schedule::load(path)?, &how, None)?.max(worst);
    }
    if files.is_empty() {
        return Err(format!("{} holds no schedule", args.dir.display()));
    }
    Ok(worst)
}

/// Makes a failing schedule shorter.
///
/// # Errors
/// When a file cannot be read or written, or the schedule does not fail.
pub fn shorten(args: &ShrinkArgs) -> Result<u8, String> {
    let schedule = Schedule::load(&args.file)?;
    let outcome = run(&schedule, Keep::Hash)?;
    let Some(violation) = &outcome.violation else {
        return Err(format!("{} violates nothing", args.file.display()));
    };
    let out = args.out.clone().unwrap_or_else(|| args.file.with_extension("short.json"));
    shorter(&schedule, &violation.name, args.runs, &out)?;
    Ok(0)
}

/// Runs many seeds.
///
/// # Errors
/// When a file cannot be written, or the kernel gives no runtime.
pub fn run_sweep(args: &SweepArgs) -> Result<u8, String> {
    let plan = Plan {
        from: args.seeds.0,
        to: args.seeds.1,
        profile: args.profile,
        jobs: args.jobs,
        limit: args.minutes.map(|m| Duration::from_secs_f64((m * 60.0).max(0.0))),
        twice: args.twice,
        keep_going: args.keep_going,
    };
    let sum = sweep(&plan)?;
    for failure in &sum.failures {
        tell(&failure.schedule, &failure.outcome);
        if let Some(dir) = &args.report {
            show(dir, &failure.schedule, &failure.outcome)?;
        }
        keep(failure, &args.out, !args.no_shrink)?;
    }
    say(&format!(
        "{} seeds, {:.1} virtual hours, {} faults, {} calls judged, {} steps, in {:.1} s: {} failed",
        sum.seeds,
        sum.virtual_hours(),
        sum.faults.values().sum::<u64>(),
        sum.calls,
        sum.steps,
        sum.wall.as_secs_f64(),
        sum.failures.len()
    ));
    let differs = sum.failures.iter().any(|f| f.differs.is_some());
    Ok(if sum.failures.is_empty() {
        0
    } else if differs {
        DIFFERS
    } else {
        VIOLATED
    })
}

/// Writes down a failing schedule, and a shorter one.
fn keep(failure: &Failure, dir: &Path, shrinks: bool) -> Result<(), String> {
    let schedule = &failure.schedule;
    if let Some(hash) = &failure.differs {
        say(&format!(
            "seed {} is not repeatable: its traces are {} and {hash}",
            schedule.seed, failure.outcome.hash
        ));
    }
    let Some(violation) = &failure.outcome.violation else { return Ok(()) };
    std::fs::create_dir_all(dir).map_err(|e| format!("{}: {e}", dir.display()))?;
    let path = dir.join(format!("{}-{}.json", violation.name, schedule.seed));
    schedule.save(&path)?;
    say(&format!("to see it again: skein-sim replay {}", path.display()));
    if shrinks {
        shorter(schedule, &violation.name, SHRINK_RUNS, &path.with_extension("short.json"))?;
    }
    Ok(())
}

fn shorter(schedule: &Schedule, name: &str, runs: usize, out: &Path) -> Result<(), String> {
    say(&format!("making it shorter, in at most {runs} runs"));
    let fails = |candidate: &Schedule| violates(candidate, name);
    let shrunk = shrink(schedule, runs, fails);
    shrunk.schedule.save(out)?;
    let short = &shrunk.schedule;
    say(&format!(
        "{} events of {} on {} machines are enough, found in {} runs: skein-sim replay {}",
        short.events.len(),
        schedule.events.len(),
        short.sites.len(),
        shrunk.runs,
        out.display()
    ));
    Ok(())
}

#[expect(clippy::disallowed_methods, reason = "how fast it is, is a matter of the real clock")]
fn one(schedule: &Schedule, how: &How, out: Option<&Path>) -> Result<u8, String> {
    let kept = if how.trace.is_some() { Keep::Text } else { Keep::Hash };
    let began = Instant::now();
    let outcome = run(schedule, kept)?;
    let wall = began.elapsed().as_secs_f64();
    if let Some(path) = &how.trace {
        let text = outcome.text.join("\n") + "\n";
        std::fs::write(path, text).map_err(|e| format!("{}: {e}", path.display()))?;
    }
    if let Some(dir) = &how.report {
        show(dir, schedule, &outcome)?;
    }
    let virtual_s = outcome.virtual_us as f64 / 1e6;
    say(&format!(
        "{} machines, {} events, {virtual_s:.1} virtual seconds in {wall:.2} s ({:.0} per second), {} steps, {} calls judged",
        schedule.sites.len(),
        schedule.events.len(),
        virtual_s / wall,
        outcome.steps,
        outcome.calls
    ));
    let mut code = 0;
    if outcome.violation.is_some() {
        tell(schedule, &outcome);
        code = VIOLATED;
        if let Some(dir) = out {
            let failure =
                Failure { schedule: schedule.clone(), outcome: outcome.clone(), differs: None };
            keep(&failure, dir, true)?;
        }
    }
    if how.twice {
        let again = run(schedule, Keep::Hash)?;
        if again.hash != outcome.hash {
            say(&format!("not repeatable: the second trace is {}", again.hash));
            code = DIFFERS;
        }
    }
    say(&format!("trace {}", outcome.hash));
    Ok(code)
}

/// Writes the page of a run.
fn show(dir: &Path, schedule: &Schedule, outcome: &Outcome) -> Result<(), String> {
    std::fs::create_dir_all(dir).map_err(|e| format!("{}: {e}", dir.display()))?;
    let name = format!("seed-{}", schedule.seed);
    let (json, html) = (dir.join(format!("{name}.json")), dir.join(format!("{name}.html")));
    schedule.save(&json)?;
    let replay = format!("skein-sim replay {}", json.display());
    let text = page(schedule, outcome, &replay);
    std::fs::write(&html, text).map_err(|e| format!("{}: {e}", html.display()))?;
    say(&format!("report {}", html.display()));
    Ok(())
}

/// Tells of a violation.
fn tell(schedule: &Schedule, outcome: &Outcome) {
    let Some(violation) = &outcome.violation else { return };
    say(&format!(
        "violated: {} at {:.3} s of virtual time: {}\nseed {}, profile {:?}, commit {}",
        violation.name,
        violation.at_us as f64 / 1e6,
        violation.why,
        schedule.seed,
        schedule.profile,
        node::COMMIT
    ));
    violation.nodes.iter().for_each(|line| say(&format!("  {line}")));
}

pub(super) fn say(line: &str) {
    // Whoever reads it may have read enough.
    let _ = writeln!(std::io::stdout(), "{line}");
}
