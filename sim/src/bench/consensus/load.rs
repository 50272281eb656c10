//! Clients that put and read in closed loops, and how long nobody is answered after a kill. Shell.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::figures::{Figures, Load};

/// The size of a value, in bytes.
pub(super) const VALUE: usize = 256;
/// On how many connections clients share the way to the leader.
pub(super) const CONNECTIONS: usize = 8;
/// How long one call may take.
const CALL_MAX: Duration = Duration::from_secs(5);
/// Pause of a client after a failed call.
const PAUSE: Duration = Duration::from_millis(10);
/// Pause between two attempts while there is no leader.
const EVERY: Duration = Duration::from_millis(20);
/// How long another leader may take.
const ELECTION_MAX: Duration = Duration::from_secs(30);

/// A connection to one member.
pub(super) trait Client: Clone + Send + Sync + 'static {
    /// Puts a value; returns once it is acknowledged.
    fn put(&self, number: u64) -> impl Future<Output = Result<(), String>> + Send;
    /// Reads a value, linearizable.
    fn read(&self) -> impl Future<Output = Result<(), String>> + Send;
}

/// A value that does not compress, of letters.
pub(super) fn value(number: u64) -> String {
    let mut seed = number.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let letter = |_| {
        // Xorshift: cheap, and the same for both systems.
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        char::from(b'a' + u8::try_from(seed % 26).unwrap_or(0))
    };
    (0..VALUE).map(letter).collect()
}

async fn bounded(call: impl Future<Output = Result<(), String>>) -> Result<(), String> {
    timeout(CALL_MAX, call).await.unwrap_or_else(|_| Err(format!("no answer in {CALL_MAX:?}")))
}

/// Runs one load for `length`; the last failure's words are beside the figures.
pub(super) async fn run<C: Client>(
    clients: &[C],
    load: Load,
    length: Duration,
) -> Result<(Figures, Option<String>), String> {
    let numbers = Arc::new(AtomicU64::new(1));
    let begun = Instant::now();
    let mut running = JoinSet::new();
    for client in clients.iter().cycle().take(load.clients()) {
        let (client, numbers) = (client.clone(), numbers.clone());
        running.spawn(async move {
            let (mut took, mut failed, mut words) = (Vec::new(), 0u64, None);
            while begun.elapsed() < length {
                let at = Instant::now();
                let done = match load {
                    Load::PutOne | Load::PutMany => {
                        bounded(client.put(numbers.fetch_add(1, Ordering::Relaxed))).await
                    }
                    Load::ReadMany => bounded(client.read()).await,
                };
                match done {
                    Ok(()) => {
                        took.push(u64::try_from(at.elapsed().as_micros()).unwrap_or(u64::MAX))
                    }
                    Err(e) => {
                        failed += 1;
                        words = Some(e);
                        sleep(PAUSE).await;
                    }
                }
            }
            (took, failed, words)
        });
    }
    let (mut took, mut failed, mut words) = (Vec::new(), 0, None);
    while let Some(done) = running.join_next().await {
        let (t, f, w) = done.map_err(|e| format!("a client: {e}"))?;
        took.extend(t);
        failed += f;
        words = w.or(words);
    }
    let seconds = begun.elapsed().as_secs_f64();
    if took.is_empty() {
        return Err(format!("{}: no call was answered: {words:?}", load.title()));
    }
    Ok((Figures::of(took, failed, seconds), words))
}

/// Puts at each of the clients, again and again, until one is acknowledged; returns how long that took since `from`.
///
/// Attempts do not wait for each other, so that one which hangs hides nothing.
pub(super) async fn until_answered<C: Client>(
    clients: &[C],
    from: Instant,
) -> Result<Duration, String> {
    let mut running = JoinSet::new();
    let mut number = 1 << 32;
    let mut last = String::from("nothing was tried");
    while from.elapsed() < ELECTION_MAX {
        for client in clients {
            let client = client.clone();
            number += 1;
            running.spawn(async move { bounded(client.put(number)).await });
        }
        let next = Instant::now() + EVERY;
        loop {
            tokio::select! {
                biased;
                done = running.join_next() => match done {
                    Some(Ok(Ok(()))) => return Ok(from.elapsed()),
                    Some(Ok(Err(e))) => last = e,
                    Some(Err(e)) => return Err(format!("an attempt: {e}")),
                    None => {
                        sleep_until(next).await;
                        break;
                    }
                },
                () = sleep_until(next) => break,
            }
        }
    }
    Err(format!("no put was acknowledged within {ELECTION_MAX:?}: {last}"))
}
