//! How long an address did not answer: TCP connects at a fixed pace. Shell.

use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use clap::Args;

/// `skein-sim probe`.
#[derive(Debug, Args)]
pub struct ProbeArgs {
    /// host:port.
    address: SocketAddr,
    /// How long to go on, in seconds.
    #[arg(long, default_value = "10")]
    seconds: f64,
    /// Pause between two connects, in milliseconds.
    #[arg(long, default_value = "20")]
    every: u64,
    /// How long one connect may take, in milliseconds.
    #[arg(long, default_value = "200")]
    timeout: u64,
}

#[expect(clippy::disallowed_methods, reason = "it measures real time")]
fn now() -> Instant {
    Instant::now()
}

/// Probes and prints JSON: connects, failures, and the longest time without an answer in milliseconds.
///
/// # Errors
/// Never; what fails is the result.
pub fn run(args: &ProbeArgs) -> Result<u8, String> {
    let started = now();
    let (mut tried, mut failed, mut longest) = (0u64, 0u64, Duration::ZERO);
    let mut last_good = started;
    while started.elapsed().as_secs_f64() < args.seconds {
        let began = now();
        tried += 1;
        match TcpStream::connect_timeout(&args.address, Duration::from_millis(args.timeout)) {
            Ok(_) => {
                longest = longest.max(last_good.elapsed());
                last_good = now();
            }
            Err(_) => failed += 1,
        }
        std::thread::sleep(Duration::from_millis(args.every).saturating_sub(began.elapsed()));
    }
    longest = longest.max(last_good.elapsed());
    let answer = serde_json::json!({
        "schema": 1, "address": args.address, "tried": tried, "failed": failed,
        "gap_ms": u64::try_from(longest.as_millis()).unwrap_or(u64::MAX),
    });
    crate::lab::print(answer);
    Ok(0)
}
