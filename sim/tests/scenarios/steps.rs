//! The steps of a daemon as it counts them itself, and the one after which it is killed.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

use crate::common::{Lab, now};

/// How long nothing is done before a run counts as over.
const CALM: Duration = Duration::from_millis(1_200);

/// How often one step may be done in one run: more is a loop that feeds itself.
const REPEATED_MAX: usize = 30;

/// A step of a full run: the nth of its name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Point {
    pub(crate) nth: usize,
    pub(crate) name: String,
}

/// Numbers the steps of a run by name.
pub(crate) fn points(lines: &[String]) -> Vec<Point> {
    let nth = |at: usize| lines[..=at].iter().filter(|line| **line == lines[at]).count();
    (0..lines.len()).map(|at| Point { nth: nth(at), name: lines[at].clone() }).collect()
}

/// Prints what was found, and fails if it cannot be all.
#[track_caller]
pub(crate) fn listed(what: &str, points: &[Point]) {
    println!("    {what}: {} points", points.len());
    for (i, point) in points.iter().enumerate() {
        println!("      {:>3}  {} ({})", i + 1, point.name, point.nth);
    }
    let most = points.iter().max_by_key(|point| point.nth).unwrap();
    assert!(most.nth <= REPEATED_MAX, "{what}: {} is done over and over: {}", most.name, most.nth);
    let kinds: BTreeSet<&str> = points.iter().filter_map(|p| p.name.split(' ').next()).collect();
    for kind in ["logged", "committed", "mesh"] {
        assert!(kinds.contains(kind), "{what}: no step of kind {kind} was seen, only {kinds:?}");
    }
}

/// Fails if a step that the command cannot do without was seen nowhere.
#[track_caller]
pub(crate) fn hold(what: &str, lists: &[Vec<Point>], wanted: &[&str]) {
    for name in wanted {
        let seen = lists.iter().flatten().any(|point| point.name == *name);
        assert!(seen, "{what}: no step {name:?} was seen");
    }
}

/// The book of steps of one host.
pub(crate) struct Book {
    dir: PathBuf,
}

impl Book {
    pub(crate) fn of(lab: &Lab, host: &str) -> Self {
        Self { dir: lab.disk(host).join("var/log/skein-steps") }
    }

    /// Starts a new one, in which the daemon is to die after this step.
    pub(crate) fn begin(&self, last: Option<&Point>) {
        std::fs::create_dir_all(&self.dir).unwrap();
        for name in ["order", "died", "steps"] {
            let gone = std::fs::remove_file(self.dir.join(name));
            assert!(gone.is_ok() || !self.dir.join(name).exists());
        }
        if let Some(Point { nth, name }) = last {
            std::fs::write(self.dir.join("order.new"), format!("{nth} {name}")).unwrap();
            std::fs::rename(self.dir.join("order.new"), self.dir.join("order")).unwrap();
        }
    }

    pub(crate) fn died(&self) -> bool {
        self.dir.join("died").exists()
    }

    /// Lets the daemon live from now on; one that is at its last step dies of it yet.
    pub(crate) fn withdraw(&self) {
        drop(std::fs::remove_file(self.dir.join("order")));
        std::thread::sleep(Duration::from_millis(100));
    }

    pub(crate) fn steps(&self) -> Vec<String> {
        let text = std::fs::read_to_string(self.dir.join("steps")).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }
}

/// Waits until none of these books grows any more.
pub(crate) fn calm(books: &[&Book]) {
    let count = || books.iter().map(|book| book.steps().len()).sum::<usize>();
    let (mut last, mut since, begun) = (count(), now(), now());
    while since.elapsed() < CALM && begun.elapsed() < Duration::from_secs(20) {
        std::thread::sleep(Duration::from_millis(50));
        if count() != last {
            (last, since) = (count(), now());
        }
    }
}

/// What was ordered and did not come, as when commits were taken in by larger batches than before.
#[derive(Default)]
pub(crate) struct Tally {
    met: usize,
    unmet: Vec<String>,
}

impl Tally {
    pub(crate) fn note(&mut self, what: &str, point: &Point, died: bool) {
        if died {
            self.met += 1;
        } else {
            self.unmet.push(format!("{what}: {} ({})", point.name, point.nth));
        }
    }

    #[track_caller]
    pub(crate) fn check(&self) {
        println!("    {} deaths; not met: {:#?}", self.met, self.unmet);
        let all = self.met + self.unmet.len();
        assert!(self.unmet.len() * 20 <= all, "nearly all points are met: {:#?}", self.unmet);
    }
}
