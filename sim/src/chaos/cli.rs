//! `skein-sim run`, `sweep`, `replay`, `shrink`. Shell.

use std::path::PathBuf;
use std::time::Instant;

use clap::Args;

use super::run::{Outcome, Wanted, run};
use super::schedule::{Profile, Schedule};

/// `skein-sim run`.
#[derive(Debug, Args)]
pub struct RunArgs {
    /// The seed.
    #[arg(long)]
    seed: u64,
    /// What kind of fleet, and how it is hurt.
    #[arg(long, value_enum, default_value_t)]
    profile: Profile,
    /// Run it twice and compare the traces.
    #[arg(long)]
    twice: bool,
    /// Write the trace in words to this file.
    #[arg(long, value_name = "FILE")]
    trace: Option<PathBuf>,
    /// Write the schedule to this file.
    #[arg(long, value_name = "FILE")]
    schedule: Option<PathBuf>,
}

/// `skein-sim replay`.
#[derive(Debug, Args)]
pub struct ReplayArgs {
    /// The schedule.
    file: PathBuf,
    /// Run it twice and compare the traces.
    #[arg(long)]
    twice: bool,
    /// Write the trace in words to this file.
    #[arg(long, value_name = "FILE")]
    trace: Option<PathBuf>,
}

/// Runs a seed.
///
/// # Errors
/// When a file cannot be written, or the kernel gives no runtime.
pub fn run_seed(args: &RunArgs) -> Result<u8, String> {
    let schedule = Schedule::from_seed(args.seed, args.profile);
    if let Some(path) = &args.schedule {
        schedule.save(path)?;
    }
    one(&schedule, args.twice, args.trace.as_deref())
}

/// Runs a schedule from a file.
///
/// # Errors
/// When a file cannot be read or written, or the kernel gives no runtime.
pub fn replay(args: &ReplayArgs) -> Result<u8, String> {
    one(&Schedule::load(&args.file)?, args.twice, args.trace.as_deref())
}

#[expect(clippy::print_stdout, reason = "this is what was asked for")]
fn one(schedule: &Schedule, twice: bool, trace: Option<&std::path::Path>) -> Result<u8, String> {
    let wanted = Wanted { text: trace.is_some(), ..Wanted::default() };
    #[expect(clippy::disallowed_methods, reason = "how fast it is, is a matter of the real clock")]
    let began = Instant::now();
    let outcome = run(schedule, &wanted)?;
    if let Some(path) = trace {
        let text = outcome.text.join("\n") + "\n";
        std::fs::write(path, text).map_err(|e| format!("{}: {e}", path.display()))?;
    }
    let wall = began.elapsed();
    let virtual_s = outcome.virtual_us as f64 / 1e6;
    println!(
        "{} machines, {} events, {virtual_s:.1} virtual seconds in {:.2} s ({:.0} per second), {} steps, {} calls judged",
        schedule.sites.len(),
        schedule.events.len(),
        wall.as_secs_f64(),
        virtual_s / wall.as_secs_f64(),
        outcome.steps,
        outcome.calls
    );
    let failed = report(schedule, &outcome);
    if twice {
        let again = run(schedule, &Wanted::default())?;
        if again.hash != outcome.hash {
            println!("not repeatable: the second trace is {}", again.hash);
            println!("trace {}", outcome.hash);
            return Ok(3);
        }
    }
    println!("trace {}", outcome.hash);
    Ok(u8::from(failed))
}

#[expect(clippy::print_stdout, reason = "this is what was asked for")]
fn report(schedule: &Schedule, outcome: &Outcome) -> bool {
    let Some(violation) = &outcome.violation else { return false };
    println!(
        "violated: {} at {:.3} s: {}\nseed {}, profile {:?}, commit {}",
        violation.name,
        violation.at_us as f64 / 1e6,
        violation.why,
        schedule.seed,
        schedule.profile,
        node::COMMIT
    );
    violation.nodes.iter().for_each(|line| println!("  {line}"));
    true
}
