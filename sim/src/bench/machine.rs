//! What this machine is, for the head of a report. Shell.

use std::time::SystemTime;

fn first_value(path: &str, key: &str) -> Option<String> {
    let text = std::fs::read_to_string(path).ok()?;
    let line = text.lines().find(|l| l.starts_with(key))?;
    Some(line.split_once(':')?.1.trim().to_owned())
}

/// Processor, cores, memory, kernel.
pub(super) fn machine() -> String {
    let processor = first_value("/proc/cpuinfo", "model name").unwrap_or_else(|| "unknown".into());
    let cores = std::thread::available_parallelism().map_or(0, std::num::NonZero::get);
    let memory = first_value("/proc/meminfo", "MemTotal").unwrap_or_default();
    let kib: u64 = memory.split(' ').next().and_then(|n| n.parse().ok()).unwrap_or_default();
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    format!("{processor}, {cores} cores, {} GiB, Linux {}", kib >> 20, kernel.trim())
}

/// The load average over one minute; 0 where it is not told.
pub(super) fn load() -> f64 {
    let text = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').next().and_then(|n| n.parse().ok()).unwrap_or_default()
}

/// The date and the time of day.
#[expect(clippy::disallowed_methods, reason = "a report has a date")]
pub(super) fn date() -> String {
    humantime::format_rfc3339_seconds(SystemTime::now()).to_string()
}
