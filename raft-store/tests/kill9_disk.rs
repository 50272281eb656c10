//! The durable log alone under kill -9, with truncations, purges and renewed generations under way.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::env;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use raft_store::disk::{Disk as _, Loaded, MetaKey, Roll, SledDisk, SledOptions, Write};
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};

const DIR: &str = "SKEIN_KILL_DIR";
const SEED: &str = "SKEIN_KILL_SEED";
/// A truncation takes no more than this.
const TRUNCATED_MAX: u64 = 5;
/// A purge leaves at least this.
const KEPT: u64 = 40;

fn open(dir: &Path) -> (SledDisk, Loaded) {
    let mut options = SledOptions::new(dir, "fleet=a node=1");
    // Renewed every few hundred entries, so that kills hit that as well.
    options.roll = Roll { bytes_max: 1 << 20, factor: 4, bytes_min: 512 << 10 };
    SledDisk::open(&options).unwrap()
}

fn bytes_of(index: u64) -> Vec<u8> {
    vec![index as u8; 200 + (index % 7) as usize * 900]
}

/// The writing process: changes the log at random, and prints the last index once that is acknowledged.
#[test]
fn writer() {
    let (Ok(dir), Ok(seed)) = (env::var(DIR), env::var(SEED)) else {
        return;
    };
    let mut rng = StdRng::seed_from_u64(seed.parse().unwrap());
    let (disk, loaded) = open(Path::new(&dir));
    let mut next = loaded.log.last_key_value().map_or(0, |(i, _)| i + 1);
    loop {
        let mut batch = vec![Write::Meta(MetaKey::Vote, next.to_be_bytes().to_vec())];
        match rng.random_range(0..10) {
            0 if next > KEPT + TRUNCATED_MAX => {
                next -= rng.random_range(1..=TRUNCATED_MAX);
                batch.push(Write::TruncateFrom(next));
            }
            1 if next > 2 * KEPT => batch.push(Write::PurgeTo(next - KEPT - TRUNCATED_MAX)),
            _ => {}
        }
        for _ in 0..rng.random_range(1..8) {
            batch.push(Write::Append { index: next, bytes: bytes_of(next) });
            next += 1;
        }
        let (tx, rx) = mpsc::channel();
        disk.commit(batch, Box::new(move |result| tx.send(result).unwrap()));
        rx.recv().unwrap().unwrap();
        let mut out = std::io::stdout().lock();
        writeln!(out, "acknowledged {}", next - 1).unwrap();
        out.flush().unwrap();
    }
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

/// Runs the writer, kills it `after` its first acknowledgement, and returns the last index that it acknowledged.
fn run_and_kill(dir: &Path, seed: u64, after: Duration) -> u64 {
    let mut command = Command::new(env::current_exe().unwrap());
    command.args(["--exact", "writer", "--nocapture"]).env(DIR, dir).env(SEED, seed.to_string());
    let mut child = Killed(command.stdout(Stdio::piped()).spawn().unwrap());
    let output = BufReader::new(child.0.stdout.take().unwrap());
    let (tx, rx) = mpsc::channel();
    let reader = std::thread::spawn(move || {
        for line in output.lines().map_while(Result::ok) {
            if let Some(index) = line.strip_prefix("acknowledged ") {
                tx.send(index.parse::<u64>().unwrap()).unwrap();
            }
        }
    });
    let first = rx.recv_timeout(Duration::from_secs(30)).expect("the writer writes");
    std::thread::sleep(after);
    drop(child);
    reader.join().unwrap();
    rx.try_iter().last().unwrap_or(first)
}

#[test]
fn nothing_acknowledged_is_lost_by_kill_9() {
    let cycles: u64 = env::var("SKEIN_KILL_CYCLES").map_or(25, |n| n.parse().unwrap());
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path().join("store");
    let mut rng = StdRng::seed_from_u64(7);
    for cycle in 0..cycles {
        let last = run_and_kill(&dir, cycle, Duration::from_micros(rng.random_range(0..120_000)));
        let (_disk, loaded) = open(&dir);
        assert!(loaded.log.iter().all(|(i, v)| *v == bytes_of(*i)), "cycle {cycle}");
        // The batch under way may have cut the last few off, or the first.
        for index in last.saturating_sub(KEPT)..=last.saturating_sub(TRUNCATED_MAX) {
            assert!(loaded.log.contains_key(&index), "cycle {cycle}: {index} of {last}");
        }
    }
    let current = std::fs::read_to_string(dir.join("CURRENT")).unwrap();
    assert_ne!(current.trim(), "gen=1", "no generation was renewed, so that was not tried");
}
