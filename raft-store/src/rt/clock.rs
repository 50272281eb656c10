//! A node's monotonic clock: the runtime's, or one that runs a little faster or slower. Shell.
//!
//! Readings are of tokio's own type, so that code which only computes with them need not know whose clock it was.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::{Instant, Sleep, Timeout};

use super::scope::with_clock;

/// One in a million, the unit of a clock's rate.
const MILLION: u64 = 1_000_000;

/// A node's clock.
#[derive(Debug, Default)]
pub(super) struct Clock {
    /// Set once a rate was; production never takes the lock.
    drifts: AtomicBool,
    drift: Mutex<Option<Drift>>,
}

/// At `global` on the runtime's clock this one showed `here`, and has run at its own rate since then.
#[derive(Clone, Copy, Debug)]
struct Drift {
    global: Instant,
    here: Instant,
    ppm: i32,
}

/// Computes `(d * times + more) / by`.
fn scaled(d: Duration, times: u64, by: u64, more: u64) -> Duration {
    // A clock is read more often than anything else is done; a division of 64 bits does for what lasts some hours.
    let nanos =
        u64::try_from(d.as_nanos()).ok().and_then(|n| n.checked_mul(times)?.checked_add(more));
    if let Some(nanos) = nanos {
        return Duration::from_nanos(nanos / by);
    }
    let [times, by, more] = [times, by, more].map(u128::from);
    let nanos = d.as_nanos().saturating_mul(times).saturating_add(more) / by;
    Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
}

impl Drift {
    /// A clock that stood still, or went backwards, would be none.
    fn rate(self) -> u64 {
        MILLION.saturating_add_signed(self.ppm.into()).max(1)
    }

    fn show(self, global: Instant) -> Instant {
        self.here + scaled(global.saturating_duration_since(self.global), self.rate(), MILLION, 0)
    }

    /// Rounds up, where `show` rounds down: whoever has waited until a time must find that it has come, or it waits for
    /// the same time again, and while the clock stands still for ever.
    fn lasts(self, here: Duration) -> Duration {
        scaled(here, MILLION, self.rate(), self.rate() - 1)
    }

    fn reaches(self, here: Instant) -> Instant {
        self.global + self.lasts(here.saturating_duration_since(self.here))
    }
}

impl Clock {
    fn drift(&self) -> Option<Drift> {
        if !self.drifts.load(Ordering::Relaxed) {
            return None;
        }
        *self.drift.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets it run faster by so many parts per million from now on.
    pub(super) fn set_rate(&self, ppm: i32, global: Instant) {
        let mut drift = self.drift.lock().unwrap_or_else(PoisonError::into_inner);
        let here = drift.map_or(global, |d| d.show(global));
        *drift = Some(Drift { global, here, ppm });
        self.drifts.store(true, Ordering::Relaxed);
    }
}

fn runtime_now() -> Instant {
    Instant::now()
}

fn drift() -> Option<Drift> {
    with_clock(|clock| clock.and_then(Clock::drift))
}

/// Returns what the clock of the running task's node shows.
pub fn now() -> Instant {
    let global = runtime_now();
    drift().map_or(global, |d| d.show(global))
}

/// Returns how long ago that was, by the clock of the running task's node.
pub fn elapsed(since: Instant) -> Duration {
    now().saturating_duration_since(since)
}

/// Waits so long.
pub fn sleep(d: Duration) -> Sleep {
    tokio::time::sleep(drift().map_or(d, |drift| drift.lasts(d)))
}

/// Waits until then.
pub fn sleep_until(at: Instant) -> Sleep {
    tokio::time::sleep_until(drift().map_or(at, |drift| drift.reaches(at)))
}

/// Runs a future for at most so long.
///
/// # Errors
/// When the time is over first.
pub fn timeout<F: Future>(d: Duration, future: F) -> Timeout<F> {
    tokio::time::timeout(drift().map_or(d, |drift| drift.lasts(d)), future)
}

/// Runs a future until then at the latest.
pub(super) fn timeout_at<F: Future>(at: Instant, future: F) -> Timeout<F> {
    tokio::time::timeout_at(drift().map_or(at, |drift| drift.reaches(at)), future)
}

#[cfg(test)]
mod tests {
    use super::super::Scope;
    use super::*;

    proptest::proptest! {
        #[test]
        fn a_time_that_was_waited_for_has_come(ppm in -10_000i32..=10_000, nanos in 0u64..1 << 50) {
            let global = runtime_now();
            let drift = Drift { global, here: global, ppm };
            let at = global + Duration::from_nanos(nanos);
            let reached = drift.reaches(at);
            proptest::prop_assert!(drift.show(reached) >= at);
            let earlier = reached.checked_sub(Duration::from_nanos(1)).unwrap();
            proptest::prop_assert!(nanos == 0 || drift.show(earlier) < at, "and not later than need be");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_fast_clock_shows_more_and_waits_less() {
        let (fast, began) = (Scope::seeded([1; 32]), runtime_now());
        let hour = Duration::from_secs(3_600);
        fast.set_rate(10_000);
        let (shown, took) = fast
            .run(async {
                let before = now();
                sleep(hour).await;
                (elapsed(before), began.elapsed())
            })
            .await;
        let near = |a: Duration, b: Duration| a.abs_diff(b) < Duration::from_millis(3);
        assert!(near(shown, hour), "{shown:?}");
        assert!(near(took, hour * 100 / 101), "{took:?}");
        fast.set_rate(-10_000);
        fast.run(async {
            let (before, global) = (now(), runtime_now());
            sleep_until(before + hour).await;
            assert!(near(elapsed(before), hour));
            assert!(near(global.elapsed(), hour * 100 / 99));
            assert!(timeout(hour, std::future::pending::<()>()).await.is_err());
        })
        .await;
    }
}
