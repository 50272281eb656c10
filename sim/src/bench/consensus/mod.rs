//! Skein's consensus beside etcd's, in turns on one disk: `./lab bench consensus`. Shell.
//!
//! | module | what |
//! |---|---|
//! | [`figures`], [`table`] | from latencies to shares to verdicts, and how they are shown; pure |
//! | `load` | clients in closed loops, and the gap after a kill |
//! | `etcd`, `skein`, `process` | who is started, asked and killed |
//! | [`node`] | Skein's side: the daemon without K3s and overlay |

mod etcd;
pub mod figures;
mod load;
pub mod node;
mod process;
mod skein;
pub mod table;

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use nix::sys::statfs::{TMPFS_MAGIC, statfs};
use tokio::time::{Instant, sleep};

use super::machine;
use crate::lab::{peers, say};
use figures::{Load, Outcome, Round, Setting, System, Turn};
use load::Client;
use process::{Process, until};

/// How many members each system has.
const MEMBERS: usize = 3;
/// How long clients put before anything is measured.
const WARM_UP: Duration = Duration::from_secs(1);
/// How long a killed member may take to be back.
const BACK_MAX: Duration = Duration::from_secs(60);
/// How long a system is left alone between a member's return and the next kill.
const CALM: Duration = Duration::from_millis(1_500);

/// `lab bench consensus`.
#[derive(Debug, Args)]
pub struct ConsensusArgs {
    /// Where consensus.json and consensus.md go, and data folders while it runs.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// How often each system has its turn.
    #[arg(long, default_value = "5", value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// How long each load runs, in seconds.
    #[arg(long, default_value = "5", value_parser = clap::value_parser!(u64).range(1..=600))]
    seconds: u64,
    /// How often the leader is killed in each turn.
    #[arg(long, default_value = "3")]
    kills: u32,
    /// Leave out etcd with the timers that its manual has for a local network.
    #[arg(long)]
    no_tuned: bool,
}

/// Three members of one system.
trait Members {
    /// A connection to one of them.
    type Client: Client;
    /// Who leads.
    async fn leader(&self) -> Result<usize, String>;
    /// Connects to one of them.
    async fn connect(&self, member: usize) -> Result<Self::Client, String>;
    /// Sends it SIGKILL, and hands over the process, which is waited for when that is dropped.
    fn kill(&mut self, member: usize) -> Option<Process>;
    /// Starts it on the folder that it has.
    fn restart(&mut self, member: usize) -> Result<(), String>;
}

/// Names the file system under `dir`.
///
/// # Errors
/// When it lies in memory, where a sync costs nothing.
fn disk(dir: &Path) -> Result<String, String> {
    let stat = statfs(dir).map_err(|e| format!("{}: {e}", dir.display()))?;
    let kind = stat.filesystem_type();
    if kind == TMPFS_MAGIC {
        return Err(format!(
            "{} lies in memory (tmpfs), where a sync costs nothing; give --out a folder on a disk",
            dir.display()
        ));
    }
    Ok(format!("{} (file system {:#x})", dir.display(), kind.0))
}

/// Runs the comparison.
///
/// # Errors
/// When it cannot begin, or cannot write what it found; what it could not measure is in the outcome.
pub(super) fn run(args: &ConsensusArgs) -> Result<u8, String> {
    let data = args.out.join("data");
    std::fs::create_dir_all(&data).map_err(|e| format!("{}: {e}", data.display()))?;
    let data = std::fs::canonicalize(&data).map_err(|e| format!("{}: {e}", data.display()))?;
    let disk = disk(&data)?;
    let peer = peers::etcd()?;
    let mut outcome = Outcome {
        schema: 1,
        setting: Setting {
            date: machine::date(),
            commit: ::node::COMMIT.into(),
            machine: machine::machine(),
            optimised: !cfg!(debug_assertions),
            etcd: peer.version.clone(),
            disk,
            rounds: args.rounds,
            seconds: args.seconds,
            kills: args.kills,
            value_bytes: load::VALUE,
        },
        rounds: Vec::new(),
        verdicts: Vec::new(),
        broken_off: None,
    };
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    let runtime = runtime.enable_all().worker_threads(2).build();
    let runtime = runtime.map_err(|e| format!("no threads: {e}"))?;
    for number in 1..=args.rounds {
        let order = figures::order(number, !args.no_tuned && args.kills > 0);
        let mut round = Round { number, order: order.clone(), turns: Default::default() };
        for system in order {
            let dir =
                data.join(format!("r{number}-{}", system.title().replace([' ', ',', '/'], "")));
            let turn = runtime.block_on(turn(system, &peer.binary, &dir, args));
            match turn {
                Ok(turn) => drop(round.turns.insert(system, turn)),
                Err(e) => {
                    outcome.broken_off = Some(format!("{}, round {number}: {e}", system.title()))
                }
            }
            // What broke is left for who looks for the cause.
            if outcome.broken_off.is_some() {
                break;
            }
            std::fs::remove_dir_all(&dir).map_err(|e| format!("{}: {e}", dir.display()))?;
        }
        outcome.rounds.push(round);
        outcome.verdicts = figures::judge(&outcome);
        save(&args.out, &outcome)?;
        if outcome.broken_off.is_some() {
            break;
        }
    }
    if outcome.broken_off.is_none() {
        let _ = std::fs::remove_dir(&data);
    }
    crate::lab::print(table::markdown(&outcome));
    say(format!("written to {}", args.out.display()));
    Ok(u8::from(!outcome.passed()))
}

async fn turn(
    system: System,
    etcd: &Path,
    dir: &Path,
    args: &ConsensusArgs,
) -> Result<Turn, String> {
    // An earlier run that was interrupted may have left one.
    if dir.exists() {
        std::fs::remove_dir_all(dir).map_err(|e| format!("{}: {e}", dir.display()))?;
    }
    let loads: &[Load] = if system == System::EtcdTuned { &[] } else { &Load::ALL };
    let load_before = machine::load();
    let mut turn = match system {
        System::Skein => measure(system, skein::Skein::start(dir).await?, loads, args).await?,
        System::Etcd | System::EtcdTuned => {
            let timers = (system == System::EtcdTuned).then_some((20, 200));
            measure(system, etcd::Etcd::start(etcd, dir, timers).await?, loads, args).await?
        }
    };
    turn.load_before = load_before;
    Ok(turn)
}

async fn measure<M: Members>(
    system: System,
    mut members: M,
    loads: &[Load],
    args: &ConsensusArgs,
) -> Result<Turn, String> {
    let mut turn = Turn::default();
    let leader = until("a leader", BACK_MAX, async || members.leader().await).await?;
    let mut clients = Vec::new();
    for _ in 0..load::CONNECTIONS {
        clients.push(members.connect(leader).await?);
    }
    load::run(&clients, Load::PutMany, WARM_UP).await?;
    for load in loads {
        let (figures, words) =
            load::run(&clients, *load, Duration::from_secs(args.seconds)).await?;
        let failed = words.map(|w| format!(", {} failed: {w}", figures.failed));
        say(format!(
            "{}, {}: {:.0} per second, p50 {:.2} ms, p99 {:.2} ms{}",
            system.title(),
            load.title(),
            figures.per_second,
            figures.p50_ms,
            figures.p99_ms,
            failed.unwrap_or_default()
        ));
        turn.loads.insert(*load, figures);
    }
    drop(clients);
    for _ in 0..args.kills {
        let gap = gap(&mut members).await?;
        say(format!("{}, kill of the leader: {:.0} ms", system.title(), gap.as_secs_f64() * 1e3));
        turn.gaps_ms.push(super::stats::ms(u64::try_from(gap.as_micros()).unwrap_or(u64::MAX)));
    }
    Ok(turn)
}

/// Kills the leader, waits for the next acknowledged put, and makes everything as it was.
async fn gap<M: Members>(members: &mut M) -> Result<Duration, String> {
    let leader = until("a leader", BACK_MAX, async || members.leader().await).await?;
    let mut others = Vec::new();
    for member in (0..MEMBERS).filter(|m| *m != leader) {
        others.push(members.connect(member).await?);
    }
    let from = Instant::now();
    let killed = members.kill(leader);
    let gap = load::until_answered(&others, from).await?;
    drop(killed);
    members.restart(leader)?;
    until("the killed member to answer", BACK_MAX, async || {
        members.connect(leader).await?.read().await
    })
    .await?;
    sleep(CALM).await;
    Ok(gap)
}

fn save(dir: &Path, outcome: &Outcome) -> Result<(), String> {
    let json = serde_json::to_string_pretty(outcome).map_err(|e| e.to_string())?;
    let table = table::markdown(outcome);
    super::write(dir, [("consensus.json", json + "\n"), ("consensus.md", table)])
}
