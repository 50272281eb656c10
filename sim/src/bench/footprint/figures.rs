//! From what the kernel says of processes and devices to what idle daemons cost. Pure.

use serde::{Deserialize, Serialize};

use super::super::proc::{own_ticks, stat_field};
use super::super::stats::{median, worst};
use super::super::trial::Verdict;

/// An idle follower of the smallest fleet stays below this, in MB (10^6 bytes) of resident memory.
pub const RESIDENT_MAX: f64 = 30.0;
/// And below this share of one core, in percent.
pub const CPU_MAX: f64 = 1.0;

/// What the kernel says of one daemon at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sample {
    /// Processor time of the process itself, in ticks.
    pub own_ticks: u64,
    /// Processor time of children that it waited for, in ticks.
    pub child_ticks: u64,
    /// Threads.
    pub threads: u64,
    /// Resident memory, in KiB.
    pub resident_kib: u64,
    /// Resident memory with shared pages divided among those that share them, in KiB.
    pub proportional_kib: u64,
    /// Bytes that the host's underlay device received.
    pub received: u64,
    /// Bytes that it sent.
    pub sent: u64,
}

impl Sample {
    /// Reads `/proc/PID/stat`, `/proc/PID/smaps_rollup` and `/proc/PID/net/dev`; nothing of what is not understood.
    pub fn parse(stat: &str, smaps: &str, devices: &str, device: &str) -> Option<Self> {
        let field = |number| stat_field(stat, number);
        let kib = |key: &str| {
            let line = smaps.lines().find_map(|l| l.strip_prefix(key))?;
            line.split_whitespace().next()?.parse().ok()
        };
        let counters =
            devices.lines().find_map(|l| l.trim().strip_prefix(device)?.strip_prefix(':'))?;
        let counters: Vec<u64> =
            counters.split_whitespace().filter_map(|n| n.parse().ok()).collect();
        Some(Self {
            own_ticks: own_ticks(stat)?,
            child_ticks: field(16)? + field(17)?,
            threads: field(20)?,
            resident_kib: kib("Rss:")?,
            proportional_kib: kib("Pss:")?,
            received: *counters.first()?,
            sent: *counters.get(8)?,
        })
    }
}

/// What one daemon costs.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Usage {
    /// Its host.
    pub host: String,
    /// Whether it leads.
    pub leader: bool,
    /// Resident memory at the end, in MB.
    pub resident_mb: f64,
    /// The same with shared pages divided among those that share them, in MB.
    pub proportional_mb: f64,
    /// Processor time, in percent of one core.
    pub cpu_percent: f64,
    /// That of programs that it ran, in percent of one core.
    pub children_percent: f64,
    /// Threads.
    pub threads: u64,
    /// What its host received on the underlay, in bytes per second.
    pub received_per_s: f64,
    /// What it sent.
    pub sent_per_s: f64,
}

impl Usage {
    /// Takes the difference of two samples that are `seconds` apart.
    #[expect(clippy::cast_precision_loss, reason = "counters of a minute are small")]
    pub fn between(
        (host, leader): (&str, bool),
        before: &Sample,
        after: &Sample,
        seconds: f64,
        ticks_per_second: f64,
    ) -> Self {
        let rate = |of: fn(&Sample) -> u64| of(after).saturating_sub(of(before)) as f64 / seconds;
        let mb = |kib: u64| kib as f64 * 1_024.0 / 1e6;
        Self {
            host: host.into(),
            leader,
            resident_mb: mb(after.resident_kib),
            proportional_mb: mb(after.proportional_kib),
            cpu_percent: rate(|s| s.own_ticks) * 100.0 / ticks_per_second,
            children_percent: rate(|s| s.child_ticks) * 100.0 / ticks_per_second,
            threads: after.threads,
            received_per_s: rate(|s| s.received),
            sent_per_s: rate(|s| s.sent),
        }
    }
}

/// A fleet of one size.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Fleet {
    /// How many daemons.
    pub daemons: usize,
    /// From the start of the first daemon until the last is a member that is ready, in seconds.
    pub join_s: f64,
    /// The machine's load average over one minute before the measurement.
    pub load_before: f64,
    /// What each daemon costs when nothing happens.
    pub usages: Vec<Usage>,
}

impl Fleet {
    /// One figure of all that lead, or of all that do not.
    pub fn values(&self, leader: bool, of: fn(&Usage) -> f64) -> Vec<f64> {
        self.usages.iter().filter(|u| u.leader == leader).map(of).collect()
    }
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
    /// For how long nothing happened, in seconds.
    pub seconds: u64,
}

/// Everything that a run found.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Outcome {
    /// The format of this record.
    pub schema: u32,
    /// What was measured where.
    pub setting: Setting,
    /// Each size of a fleet.
    pub fleets: Vec<Fleet>,
    /// What was promised, and whether it was kept; empty where nothing is judged.
    pub verdicts: Vec<Verdict>,
    /// Why the run ended early, if it did.
    pub broken_off: Option<String>,
}

impl Outcome {
    /// Whether everything was measured and kept.
    pub fn passed(&self) -> bool {
        self.broken_off.is_none() && self.verdicts.iter().all(|v| v.held)
    }
}

fn at_most(fleet: &Fleet, what: &str, value: Option<f64>, bound: f64, unit: &str) -> Verdict {
    Verdict {
        case: format!("follower of {}", fleet.daemons),
        bound: format!("{what} at most {bound} {unit}"),
        measured: value.map_or_else(|| "nothing".into(), |v| format!("{v:.2} {unit}")),
        held: value.is_some_and(|v| v <= bound),
    }
}

/// Judges the smallest fleet's followers: memory by the worst, processor time by the one in the middle, since what else
/// runs on the machine shows there. Without optimisations nothing is judged.
pub fn judge(outcome: &Outcome) -> Vec<Verdict> {
    let smallest = outcome.fleets.iter().min_by_key(|f| f.daemons);
    let Some(fleet) = smallest.filter(|_| outcome.setting.optimised) else {
        return Vec::new();
    };
    let resident = worst(&fleet.values(false, |u| u.resident_mb));
    let cpu = median(&fleet.values(false, |u| u.cpu_percent + u.children_percent));
    vec![
        at_most(fleet, "resident", resident, RESIDENT_MAX, "MB"),
        at_most(fleet, "median processor time", cpu, CPU_MAX, "% of a core"),
    ]
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    const STAT: &str = "42 (a) b) S 1 42 42 0 -1 4194560 900 0 0 0 250 50 7 3 20 0 13 0 100 1 2 3";
    const SMAPS: &str = "55d0-7ffe ---p 0 00:00 0 [rollup]\nRss:           20000 kB\nPss:           15000 kB\nPss_Dirty:      1 kB\n";
    const DEVICES: &str = "Inter-|   Receive  |  Transmit\n face |bytes packets\n    lo:  1 1 0 0 0 0 0 0 1 1 0 0 0 0 0 0\n  eth0: 5000 10 0 0 0 0 0 0 7000 12 0 0 0 0 0 0\n";

    #[test]
    fn the_kernels_words_are_understood() {
        let sample = Sample::parse(STAT, SMAPS, DEVICES, "eth0").unwrap();
        let expected = Sample {
            own_ticks: 300,
            child_ticks: 10,
            threads: 13,
            resident_kib: 20_000,
            proportional_kib: 15_000,
            received: 5_000,
            sent: 7_000,
        };
        assert_eq!(sample, expected);
        assert_eq!(Sample::parse(STAT, SMAPS, DEVICES, "eth1"), None);
        assert_eq!(Sample::parse("", SMAPS, DEVICES, "eth0"), None);
    }

    fn usage(leader: bool, cpu: f64, resident_mb: f64) -> Usage {
        Usage { host: "n1".into(), leader, cpu_percent: cpu, resident_mb, ..Usage::default() }
    }

    /// An outcome with a leader and followers of this processor time and memory.
    pub(crate) fn outcome(followers: &[(f64, f64)]) -> Outcome {
        let mut usages = vec![usage(true, 9.0, 90.0)];
        usages.extend(followers.iter().map(|(cpu, mb)| usage(false, *cpu, *mb)));
        let fleet =
            |daemons| Fleet { daemons, join_s: 1.5, load_before: 0.5, usages: usages.clone() };
        Outcome {
            schema: 1,
            setting: Setting {
                date: "today".into(),
                commit: "abc".into(),
                machine: "one".into(),
                optimised: true,
                seconds: 30,
            },
            fleets: vec![Fleet { usages: vec![usage(false, 99.0, 99.0)], ..fleet(20) }, fleet(5)],
            verdicts: Vec::new(),
            broken_off: None,
        }
    }

    #[test]
    fn usage_is_a_difference_in_time() {
        let before = Sample { own_ticks: 100, sent: 1_000, ..Sample::default() };
        let after =
            Sample { own_ticks: 130, sent: 31_000, resident_kib: 1_000, ..Sample::default() };
        let usage = Usage::between(("n2", false), &before, &after, 30.0, 100.0);
        assert!((usage.cpu_percent - 1.0).abs() < 1e-9);
        assert!((usage.sent_per_s - 1_000.0).abs() < 1e-9);
        assert!((usage.resident_mb - 1.024).abs() < 1e-9);
    }

    #[test]
    fn the_smallest_fleets_followers_are_judged() {
        let missed = |followers: &[(f64, f64)]| {
            judge(&outcome(followers)).into_iter().filter(|v| !v.held).count()
        };
        assert_eq!(missed(&[(0.9, 29.0), (1.0, 30.0), (4.0, 20.0)]), 0);
        assert_eq!(missed(&[(0.9, 29.0), (1.0, 31.0)]), 1, "memory by the worst");
        assert_eq!(missed(&[(0.9, 29.0), (1.1, 20.0), (1.2, 20.0)]), 1, "time by the middle");
        assert_eq!(missed(&[]), 2, "what was not measured was not reached");
    }
}
