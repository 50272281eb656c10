//! From attempts to figures: outages, medians, distributions. Pure.

use serde::{Deserialize, Serialize};

use super::record::Sample;

/// A time without an answer, in microseconds since the observer started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outage {
    /// When the last attempt began that was answered before.
    pub from: u64,
    /// When the first answer after it was complete; absent if none came.
    pub until: Option<u64>,
    /// When the last attempt in it was over.
    pub last: u64,
    /// How many attempts failed in it.
    pub failed: u64,
}

impl Outage {
    /// How long it was, at least.
    pub fn length(&self) -> u64 {
        self.until.unwrap_or(self.last).saturating_sub(self.from)
    }
}

/// Finds the outages in one clock's attempts, which are given by when they began.
///
/// Each is measured from the beginning of the last good attempt to the end of the next good one, so that
/// it is never taken for shorter than it was, and for longer by one pause between attempts at most.
pub fn outages(samples: &[&Sample]) -> Vec<Outage> {
    let mut found = Vec::new();
    let mut open: Option<Outage> = None;
    let mut good_before: Option<u64> = None;
    for sample in samples {
        match (&mut open, sample.good()) {
            (None, true) => good_before = Some(sample.at),
            (None, false) => {
                let from = good_before.unwrap_or(sample.at);
                open = Some(Outage { from, until: None, last: sample.done(), failed: 1 });
            }
            (Some(outage), false) => {
                outage.failed += 1;
                outage.last = outage.last.max(sample.done());
            }
            (Some(outage), true) => {
                found.push(Outage { until: Some(sample.done()), ..*outage });
                open = None;
                good_before = Some(sample.at);
            }
        }
    }
    found.extend(open);
    found
}

/// What one clock showed in one trial; times in milliseconds.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Reading {
    /// Attempts in all.
    pub tried: u64,
    /// Failed ones from the fault until all was undone.
    pub failed: u64,
    /// Failed ones while it was undone, until everything had settled.
    pub failed_undoing: u64,
    /// The longest time without an answer after the fault; 0 if no attempt failed.
    pub gap_ms: f64,
    /// The longest one while it was undone.
    pub gap_undoing_ms: f64,
    /// Whether it was answered again.
    pub back: bool,
    /// Every outage: from when on, counted from the fault, and for how long.
    pub outages_ms: Vec<(f64, f64)>,
    /// Why attempts failed, and how many for each reason.
    pub errors: std::collections::BTreeMap<String, u64>,
}

/// Microseconds as milliseconds, to a tenth.
#[expect(clippy::cast_precision_loss, reason = "a trial takes minutes, not centuries")]
pub fn ms(micros: u64) -> f64 {
    (micros as f64 / 100.0).round() / 10.0
}

/// Reads one clock's attempts of one trial.
pub fn read(samples: &[&Sample], fault: u64, undo: u64) -> Reading {
    let outages = outages(samples);
    let mut reading = Reading { tried: samples.len() as u64, back: true, ..Reading::default() };
    for outage in outages.iter().filter(|o| o.until.unwrap_or(o.last) >= fault) {
        let length = ms(outage.length());
        let after =
            if outage.from >= fault { ms(outage.from - fault) } else { -ms(fault - outage.from) };
        reading.outages_ms.push((after, length));
        reading.back &= outage.until.is_some();
        if outage.from < undo {
            reading.failed += outage.failed;
            reading.gap_ms = reading.gap_ms.max(length);
        } else {
            reading.failed_undoing += outage.failed;
            reading.gap_undoing_ms = reading.gap_undoing_ms.max(length);
        }
    }
    for error in samples.iter().filter(|s| s.done() >= fault).filter_map(|s| s.error.clone()) {
        *reading.errors.entry(error).or_default() += 1;
    }
    reading
}

/// The middle of some figures; of an even number of them the mean of both in the middle.
pub fn median(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match sorted.len() {
        0 => None,
        n if n % 2 == 1 => Some(sorted[middle]),
        _ => Some(f64::midpoint(sorted[middle - 1], sorted[middle])),
    }
}

/// The greatest of some figures.
pub fn worst(values: &[f64]) -> Option<f64> {
    values.iter().copied().max_by(f64::total_cmp)
}

/// The steps of a cumulative distribution: figures in order, with the share of all that are not above.
#[expect(clippy::cast_precision_loss, reason = "trials are few")]
pub fn distribution(values: &[f64]) -> Vec<(f64, f64)> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let all = sorted.len() as f64;
    sorted.into_iter().enumerate().map(|(i, v)| (v, (i + 1) as f64 / all)).collect()
}

#[cfg(test)]
mod tests {
    use super::super::record::Clock;
    use super::*;

    fn samples(good: &[(u64, u64, bool)]) -> Vec<Sample> {
        let one = |(at, took, good): &(u64, u64, bool)| Sample {
            clock: Clock::Vip,
            at: at * 1_000,
            took: took * 1_000,
            by: None,
            error: (!good).then(|| "timed out".into()),
        };
        good.iter().map(one).collect()
    }

    #[test]
    fn an_outage_lasts_from_good_to_good() {
        let all = samples(&[(0, 1, true), (20, 200, false), (40, 200, false), (60, 3, true)]);
        let refs: Vec<&Sample> = all.iter().collect();
        let found = outages(&refs);
        assert_eq!(found.len(), 1);
        assert_eq!((found[0].length(), found[0].failed), (63_000, 2));
    }

    #[test]
    fn an_outage_without_end_is_told_as_such() {
        let all = samples(&[(0, 1, true), (20, 200, false)]);
        let refs: Vec<&Sample> = all.iter().collect();
        let reading = read(&refs, 10_000, 1_000_000);
        assert!(!reading.back);
        assert!((reading.gap_ms - 220.0).abs() < 0.01, "{reading:?}");
    }

    #[test]
    fn what_happens_while_undoing_is_counted_apart() {
        let all = samples(&[
            (0, 1, true),
            (20, 1, false),
            (40, 1, true),
            (100, 1, true),
            (120, 1, false),
            (140, 1, false),
            (160, 1, true),
        ]);
        let refs: Vec<&Sample> = all.iter().collect();
        let reading = read(&refs, 10_000, 90_000);
        assert_eq!((reading.failed, reading.failed_undoing), (1, 2));
        assert!((reading.gap_ms - 41.0).abs() < 0.01, "{reading:?}");
        assert!((reading.gap_undoing_ms - 61.0).abs() < 0.01, "{reading:?}");
        assert_eq!(reading.errors["timed out"], 3);
    }

    #[test]
    fn no_failure_is_no_gap() {
        let all = samples(&[(0, 1, true), (20, 1, true)]);
        let refs: Vec<&Sample> = all.iter().collect();
        assert_eq!(read(&refs, 0, 50_000).outages_ms, []);
    }

    #[test]
    fn middle_and_worst() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), Some(2.5));
        assert_eq!((median(&[]), worst(&[])), (None, None));
        assert_eq!(worst(&[1.0, 9.0, 3.0]), Some(9.0));
    }

    #[test]
    fn a_distribution_ends_at_one() {
        assert_eq!(distribution(&[5.0, 1.0]), [(1.0, 0.5), (5.0, 1.0)]);
    }
}
