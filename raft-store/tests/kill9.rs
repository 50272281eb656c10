//! A process that writes is killed at any moment, again and again: what it acknowledged is there afterwards.
//!
//! The test starts itself as the writing process. `SKEIN_KILL_CYCLES` sets how often it is killed (25).

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use std::collections::BTreeSet;
use std::env;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use common::{Fleet, PATIENCE, founding, note, times_applied, uuid_of};
use raft_store::apply::Outcome;
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};

const DIR: &str = "SKEIN_KILL_DIR";
const FROM: &str = "SKEIN_KILL_FROM";

/// The writing process: founds the fleet or goes on with it, and prints each number once it is acknowledged.
#[test]
fn writer() {
    let (Ok(dir), Ok(from)) = (env::var(DIR), env::var(FROM)) else {
        return;
    };
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(write_until_killed(Path::new(&dir), from.parse().unwrap()));
}

async fn write_until_killed(dir: &Path, from: u64) {
    let fleet = Fleet::at(dir);
    let store = fleet.start(1).await;
    store.found(uuid_of(1)).await.unwrap();
    store.propose(&founding(), PATIENCE).await.unwrap();
    let lane = async |lane: u64| {
        for number in (from + lane..).step_by(8) {
            let (_, outcome) = store.propose(&note(number, 50), PATIENCE).await.unwrap();
            assert!(matches!(outcome, Outcome::Done { .. }), "{outcome:?}");
            let mut out = std::io::stdout().lock();
            writeln!(out, "acknowledged {number}").unwrap();
            out.flush().unwrap();
        }
    };
    futures::join!(lane(0), lane(1), lane(2), lane(3), lane(4), lane(5), lane(6), lane(7));
}

/// A child that does not outlive the test.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Runs the writer, kills it `after` its first acknowledgement, and returns all that it acknowledged.
fn run_and_kill(dir: &PathBuf, from: u64, after: Duration) -> BTreeSet<u64> {
    let mut command = Command::new(env::current_exe().unwrap());
    command.args(["--exact", "writer", "--nocapture"]).env(DIR, dir).env(FROM, from.to_string());
    let mut child = Killed(command.stdout(Stdio::piped()).spawn().unwrap());
    let output = BufReader::new(child.0.stdout.take().unwrap());
    let (tx, rx) = mpsc::channel();
    let reader = std::thread::spawn(move || {
        for line in output.lines().map_while(Result::ok) {
            if let Some(number) = line.strip_prefix("acknowledged ") {
                tx.send(number.parse::<u64>().unwrap()).unwrap();
            }
        }
    });
    let mut acknowledged = BTreeSet::new();
    acknowledged.insert(rx.recv_timeout(PATIENCE).expect("the writer writes"));
    std::thread::sleep(after);
    drop(child);
    reader.join().unwrap();
    acknowledged.extend(rx.try_iter());
    acknowledged
}

#[test]
fn nothing_acknowledged_is_lost_by_kill_9() {
    let cycles: u64 = env::var("SKEIN_KILL_CYCLES").map_or(25, |n| n.parse().unwrap());
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path().to_owned();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let mut rng = StdRng::seed_from_u64(9);
    let mut total = 0;
    for cycle in 0..cycles {
        let from = cycle * 1_000_000;
        let acknowledged =
            run_and_kill(&dir, from, Duration::from_micros(rng.random_range(0..150_000)));
        total += acknowledged.len();
        runtime.block_on(async {
            let fleet = Fleet::at(&dir);
            let store = fleet.start(1).await;
            let read = store.read_linear(PATIENCE).await.unwrap();
            // The ring of events forgets the oldest; the newest are those of this cycle.
            for number in acknowledged.iter().rev().take(1_500) {
                assert_eq!(times_applied(&read.state, *number), 1, "cycle {cycle}: write {number}");
            }
            drop(store);
            fleet.kill(1).await;
        });
    }
    println!("{cycles} kills, {total} acknowledged writes, none lost");
}
