//! Many seeds, one after the other on each of some threads. Shell.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{IsTerminal as _, Write as _};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use super::run::{Keep, Outcome, run};
use super::schedule::{Profile, Schedule};

/// How often the progress line is renewed.
const PROGRESS: Duration = Duration::from_millis(500);
/// And how often where it is not renewed but repeated, in a log.
const PROGRESS_LOG: Duration = Duration::from_secs(30);

/// Which seeds, and how.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The first seed.
    pub from: u64,
    /// The seed after the last.
    pub to: u64,
    /// What kind of fleet, and how it is hurt.
    pub profile: Profile,
    /// On how many threads.
    pub jobs: usize,
    /// No seed is begun after this.
    pub limit: Option<Duration>,
    /// Whether each is run twice and the traces are compared.
    pub twice: bool,
    /// Whether the sweep goes on after a violation.
    pub keep_going: bool,
}

/// A seed that did not do as it should.
#[derive(Clone, Debug)]
pub struct Failure {
    /// The schedule.
    pub schedule: Schedule,
    /// What came of it.
    pub outcome: Outcome,
    /// The trace of the second run, where it differs.
    pub differs: Option<String>,
}

/// What came of a sweep.
#[derive(Clone, Debug, Default)]
pub struct Sum {
    /// How many seeds were run.
    pub seeds: u64,
    /// Virtual time, in microseconds.
    pub virtual_us: u64,
    /// Faults by kind.
    pub faults: BTreeMap<&'static str, u64>,
    /// Calls of clients that were judged.
    pub calls: u64,
    /// Steps of all traces.
    pub steps: u64,
    /// What failed, by seed.
    pub failures: Vec<Failure>,
    /// How long it took.
    pub wall: Duration,
}

type Message = Result<(Schedule, Outcome, Option<String>), String>;

/// Runs the seeds of a plan.
///
/// # Errors
/// When the kernel gives no runtime.
#[expect(clippy::disallowed_methods, reason = "how fast it is, is a matter of the real clock")]
pub fn sweep(plan: &Plan) -> Result<Sum, String> {
    let (next, stop) = (AtomicU64::new(plan.from), AtomicBool::new(false));
    let began = Instant::now();
    let (tx, rx) = channel::<Message>();
    let mut sum = Sum::default();
    let result = std::thread::scope(|threads| {
        for _ in 0..plan.jobs.max(1) {
            let (next, stop, tx) = (&next, &stop, tx.clone());
            threads.spawn(move || work(plan, next, stop, began, &tx));
        }
        drop(tx);
        let result = collect(plan, &rx, &stop, began, &mut sum);
        stop.store(true, Ordering::Relaxed);
        result
    });
    sum.wall = began.elapsed();
    sum.failures.sort_by_key(|f| f.schedule.seed);
    result.map(|()| sum)
}

fn work(plan: &Plan, next: &AtomicU64, stop: &AtomicBool, began: Instant, tx: &Sender<Message>) {
    loop {
        let late = plan.limit.is_some_and(|limit| began.elapsed() >= limit);
        let seed = next.fetch_add(1, Ordering::Relaxed);
        if late || seed >= plan.to || stop.load(Ordering::Relaxed) {
            return;
        }
        let schedule = Schedule::from_seed(seed, plan.profile);
        let once = |schedule: &Schedule| run(schedule, Keep::Hash);
        let message = once(&schedule).and_then(|outcome| {
            let again = if plan.twice { Some(once(&schedule)?.hash) } else { None };
            let differs = again.filter(|hash| *hash != outcome.hash);
            Ok((schedule, outcome, differs))
        });
        // The collector is gone only once the sweep has stopped.
        if tx.send(message).is_err() {
            return;
        }
    }
}

#[expect(clippy::disallowed_methods, reason = "how fast it is, is a matter of the real clock")]
fn collect(
    plan: &Plan,
    rx: &Receiver<Message>,
    stop: &AtomicBool,
    began: Instant,
    sum: &mut Sum,
) -> Result<(), String> {
    let terminal = std::io::stderr().is_terminal();
    let pause = if terminal { PROGRESS } else { PROGRESS_LOG };
    let mut shown = Instant::now();
    loop {
        match rx.recv_timeout(PROGRESS) {
            Ok(message) => {
                let (schedule, outcome, differs) = message?;
                sum.add(&outcome);
                if outcome.violation.is_some() || differs.is_some() {
                    let what = outcome.violation.as_ref().map_or("not repeatable", |v| &v.name);
                    show(&format!("seed {}: {what}", schedule.seed), terminal, true);
                    sum.failures.push(Failure { schedule, outcome, differs });
                    if !plan.keep_going {
                        stop.store(true, Ordering::Relaxed);
                    }
                }
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => break,
        }
        if shown.elapsed() >= pause {
            shown = Instant::now();
            show(&sum.line(plan, began.elapsed()), terminal, false);
        }
    }
    show(&sum.line(plan, began.elapsed()), terminal, true);
    Ok(())
}

fn show(line: &str, terminal: bool, last: bool) {
    let mut err = std::io::stderr();
    let end = if !terminal || last { "\n" } else { "" };
    let begin = if terminal { "\r\x1b[2K" } else { "" };
    // Nobody may be looking.
    let _ = write!(err, "{begin}{line}{end}").and_then(|()| err.flush());
}

impl Sum {
    fn add(&mut self, outcome: &Outcome) {
        self.seeds += 1;
        self.virtual_us += outcome.virtual_us;
        self.calls += outcome.calls as u64;
        self.steps += outcome.steps;
        for (kind, n) in &outcome.faults {
            *self.faults.entry(kind).or_default() += n;
        }
    }

    /// Returns how much virtual time passed, in hours.
    pub fn virtual_hours(&self) -> f64 {
        self.virtual_us as f64 / 3.6e9
    }

    /// Writes the progress line.
    pub fn line(&self, plan: &Plan, wall: Duration) -> String {
        let per_s = self.seeds as f64 / wall.as_secs_f64().max(0.001);
        let mut line = format!(
            "{} of {} seeds, {per_s:.1}/s, {:.1} virtual hours",
            self.seeds,
            plan.to - plan.from,
            self.virtual_hours()
        );
        let all: u64 = self.faults.values().sum();
        let _ = write!(line, ", {all} faults");
        let mut kinds: Vec<_> = self.faults.iter().collect();
        kinds.sort_by_key(|(_, n)| std::cmp::Reverse(**n));
        let kinds: Vec<String> = kinds.iter().map(|(k, n)| format!("{k} {n}")).collect();
        let _ = write!(line, " ({}), {} failed", kinds.join(", "), self.failures.len());
        line
    }
}
