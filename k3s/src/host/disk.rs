//! How long the disk under K3s takes to make a write durable. Shell.

use std::io::Write as _;
use std::path::Path;
use std::time::Duration;

use tokio::time::Instant;

use super::HostError;
use super::files::at;

/// How many writes are measured.
const WRITES: usize = 40;
/// A disk that has not finished them by then is judged by those that it did.
const ENOUGH: Duration = Duration::from_secs(3);
/// A page: about what etcd appends for a small change.
const BLOCK: [u8; 4096] = [0x5a; 4096];

/// Appends blocks to a nameless file as etcd does to its log, each followed by fdatasync(2); returns the 95th percentile.
pub(super) fn durable_write(folder: &Path) -> Result<Duration, HostError> {
    // Before K3s' first start its folder is not there; the one above it is on the same disk, unless somebody mounts later.
    let there = folder.ancestors().find(|f| f.is_dir()).unwrap_or(Path::new("/"));
    let mut file = tempfile::tempfile_in(there).map_err(at("write in", there))?;
    let began = Instant::now();
    let mut took = Vec::with_capacity(WRITES);
    while took.len() < WRITES && (took.is_empty() || began.elapsed() < ENOUGH) {
        let start = Instant::now();
        file.write_all(&BLOCK).and_then(|()| file.sync_data()).map_err(at("write in", there))?;
        took.push(start.elapsed());
    }
    Ok(percentile95(took))
}

/// The value that 95 of 100 do not exceed (nearest rank); zero of none.
fn percentile95(mut values: Vec<Duration>) -> Duration {
    values.sort_unstable();
    let rank = (values.len() * 95).div_ceil(100);
    values.get(rank.saturating_sub(1)).copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_stall_in_forty_is_no_slow_disk_and_three_are() {
        let of = |stalls: usize| {
            let calm = std::iter::repeat_n(Duration::from_millis(2), WRITES - stalls);
            let stalled = std::iter::repeat_n(Duration::from_millis(900), stalls);
            percentile95(stalled.chain(calm).collect())
        };
        assert_eq!([of(1), of(2)], [Duration::from_millis(2); 2]);
        assert_eq!(of(3), Duration::from_millis(900));
        assert_eq!(percentile95(Vec::new()), Duration::ZERO);
    }

    #[test]
    fn a_folder_that_is_not_there_yet_is_measured_above_and_nothing_stays() {
        let root = tempfile::tempdir().unwrap();
        let took = durable_write(&root.path().join("var/lib/k3s")).unwrap();
        assert!(took > Duration::ZERO);
        assert_eq!(std::fs::read_dir(root.path()).unwrap().count(), 0);
    }
}
