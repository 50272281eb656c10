//! What is known of a run while it goes on: how hosts are, which faults are on, and the first violation. Shell.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::checks::Checks;
use super::tally::Tally;
use super::view::Seen;
use crate::bench::lab::now;
use crate::chaos::invariant::no_secret::NoSecret;
use crate::chaos::judge::Violation;
use crate::chaos::schedule::{Act, Event};
use crate::chaos::story::Story;

/// Pause between two looks at whether all is over.
const STEP: Duration = Duration::from_millis(50);

/// Whether a host's daemon is to run; each change has a number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Expected {
    pub(super) up: bool,
    pub(super) change: u64,
}

/// The state of a run.
#[derive(Default)]
pub(super) struct State {
    pub(super) checks: Checks,
    pub(super) story: Story,
    pub(super) secrets: NoSecret,
    pub(super) tally: Tally,
    pub(super) expected: Vec<Expected>,
    /// How often each host lost everything.
    pub(super) wiped: Vec<u64>,
    pub(super) seen: Vec<Seen>,
    /// Faults that are on, by their numbers: the hosts that they strike themselves, and what they are.
    now: BTreeMap<usize, (Vec<usize>, &'static str)>,
    /// What was carried out.
    pub(super) played: Vec<Event>,
    /// What was planned, and could not be done.
    pub(super) left_out: usize,
    /// Calls to registers, and how many were answered.
    pub(super) calls: (usize, usize),
    /// Histories too long to be judged in time.
    pub(super) undecided: usize,
    pub(super) violation: Option<Violation>,
    /// Why the lab itself failed.
    pub(super) broken: Option<String>,
}

/// See the module.
pub(super) struct Docket {
    pub(super) hosts: Vec<String>,
    began: Mutex<Instant>,
    interrupted: AtomicBool,
    finished: AtomicBool,
    state: Mutex<State>,
}

impl Docket {
    pub(super) fn new(hosts: Vec<String>) -> Self {
        let count = hosts.len();
        let state = State {
            expected: vec![Expected::default(); count],
            wiped: vec![0; count],
            seen: vec![Seen::default(); count],
            story: Story { machines: count, ..Story::default() },
            ..State::default()
        };
        Self {
            hosts,
            began: Mutex::new(now()),
            interrupted: AtomicBool::new(false),
            finished: AtomicBool::new(false),
            state: Mutex::new(state),
        }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn began(&self) -> MutexGuard<'_, Instant> {
        self.began.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins to count the time.
    pub(super) fn begin(&self) {
        *self.began() = now();
    }

    pub(super) fn now_us(&self) -> u64 {
        u64::try_from(self.began().elapsed().as_micros()).unwrap_or(u64::MAX)
    }

    pub(super) fn now_ms(&self) -> u64 {
        self.now_us() / 1_000
    }

    /// Notes that a person wants it to end.
    pub(super) fn interrupt(&self) {
        self.interrupted.store(true, Ordering::Relaxed);
    }

    /// Notes that all was seen that is to be seen.
    pub(super) fn finish(&self) {
        self.finished.store(true, Ordering::Relaxed);
    }

    pub(super) fn is_interrupted(&self) -> bool {
        self.interrupted.load(Ordering::Relaxed)
    }

    /// Whether nothing further is to happen.
    pub(super) fn is_over(&self) -> bool {
        let state = self.lock();
        let told = self.is_interrupted() || self.finished.load(Ordering::Relaxed);
        told || state.violation.is_some() || state.broken.is_some()
    }

    /// Waits until a moment, or until all is over.
    pub(super) fn rest_until(&self, at_ms: u64) {
        while self.now_ms() < at_ms && !self.is_over() {
            std::thread::sleep(STEP.min(Duration::from_millis(at_ms - self.now_ms().min(at_ms))));
        }
    }

    /// Waits so long, or until all is over.
    pub(super) fn rest(&self, ms: u64) {
        self.rest_until(self.now_ms() + ms);
    }

    /// Notes whether a host's daemon is to run from now on.
    pub(super) fn expect(&self, host: usize, up: bool) {
        let mut state = self.lock();
        let change = state.expected[host].change + 1;
        state.expected[host] = Expected { up, change };
    }

    /// Notes that a fault begins; tells whether it may: no two strike one host at a time.
    pub(super) fn begins(&self, number: usize, act: &Act, strikes: &[usize]) -> bool {
        let at_ms = self.now_ms();
        let mut state = self.lock();
        let taken = state.now.values().any(|(hosts, _)| hosts.iter().any(|h| strikes.contains(h)));
        if taken {
            state.left_out += 1;
            return false;
        }
        state.now.insert(number, (strikes.to_vec(), act.kind()));
        state.played.push(Event { at_ms, act: act.clone() });
        true
    }

    /// Notes that a fault is over.
    pub(super) fn ends(&self, number: usize) {
        self.lock().now.remove(&number);
    }

    /// Notes what somebody does.
    pub(super) fn does(&self, act: &Act) {
        let at_ms = self.now_ms();
        self.lock().played.push(Event { at_ms, act: act.clone() });
    }

    /// Returns the faults that are on.
    pub(super) fn faults_now(&self) -> Vec<String> {
        let state = self.lock();
        let name = |h: &usize| self.hosts[*h].as_str();
        let one = |(hosts, kind): &(Vec<usize>, &str)| {
            let hosts: Vec<&str> = hosts.iter().map(name).collect();
            format!("{kind} {}", hosts.join(",")).trim_end().to_owned()
        };
        state.now.values().map(one).collect()
    }

    /// Says of each host in one line how it stands.
    pub(super) fn lines(&self) -> Vec<String> {
        let state = self.lock();
        let fault = |host: usize| {
            let strikes = state.now.values().filter(|(hosts, _)| hosts.contains(&host));
            strikes.map(|(_, kind)| *kind).collect::<Vec<_>>().join(", ")
        };
        let hosts = self.hosts.iter().enumerate().zip(&state.seen);
        hosts.map(|((n, host), seen)| seen.line(host, &fault(n))).collect()
    }

    /// Notes a violation, unless there was one before.
    pub(super) fn convict(&self, name: &str, why: String) {
        let (nodes, at_us) = (self.lines(), self.now_us());
        let mut state = self.lock();
        if state.violation.is_none() {
            state.violation = Some(Violation { name: name.to_owned(), why, at_us, nodes });
        }
    }

    /// Notes that the lab itself failed, which tells nothing about daemons.
    pub(super) fn breaks(&self, why: String) {
        self.lock().broken.get_or_insert(why);
    }
}
