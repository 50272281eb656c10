//! What idle daemons cost: `./lab bench footprint`. Shell.
//!
//! | module | what |
//! |---|---|
//! | [`figures`], [`table`] | from what the kernel says to verdicts, and how they are shown; pure |

pub mod figures;
pub mod table;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use nix::unistd::{SysconfVar, sysconf};
use serde_json::Value;

use super::lab::{Lab, now, wait};
use super::machine;
use crate::lab::say;
use figures::{Fleet, Outcome, Sample, Setting, Usage};

/// The underlay's device in a host.
const DEVICE: &str = "eth0";
/// How long a fleet may take until every node is ready.
const READY_MAX: Duration = Duration::from_secs(120);
/// Between the last change and the measurement: what was started has settled.
const CALM: Duration = Duration::from_secs(10);
/// How many of a fleet's hosts are servers of the cluster.
const SERVERS: usize = 3;

/// `lab bench footprint`.
#[derive(Debug, Args)]
pub struct FootprintArgs {
    /// Where footprint.json and footprint.md go.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// How many daemons a fleet has; one fleet for each.
    #[arg(long, value_delimiter = ',', default_value = "5,20", value_parser = clap::value_parser!(u8).range(1..=50))]
    sizes: Vec<u8>,
    /// For how long nothing happens, in seconds.
    #[arg(long, default_value = "30", value_parser = clap::value_parser!(u64).range(1..=3600))]
    seconds: u64,
}

/// Measures fleets of every size, one after the other.
///
/// # Errors
/// When it cannot write what it found; what it could not measure is in the outcome.
pub(super) fn run(name: &str, args: &FootprintArgs) -> Result<u8, String> {
    fs::create_dir_all(&args.out).map_err(|e| format!("{}: {e}", args.out.display()))?;
    let mut outcome = Outcome {
        schema: 1,
        setting: Setting {
            date: machine::date(),
            commit: node::COMMIT.into(),
            machine: machine::machine(),
            optimised: !cfg!(debug_assertions),
            seconds: args.seconds,
        },
        fleets: Vec::new(),
        verdicts: Vec::new(),
        broken_off: None,
    };
    for size in &args.sizes {
        match measure(name, usize::from(*size), Duration::from_secs(args.seconds)) {
            Ok(fleet) => outcome.fleets.push(fleet),
            Err(e) => outcome.broken_off = Some(format!("{size} daemons: {e}")),
        }
        outcome.verdicts = figures::judge(&outcome);
        save(&args.out, &outcome)?;
        if outcome.broken_off.is_some() {
            break;
        }
    }
    crate::lab::print(table::markdown(&outcome));
    say(format!("written to {}", args.out.display()));
    Ok(u8::from(!outcome.passed()))
}

fn measure(name: &str, size: usize, idle: Duration) -> Result<Fleet, String> {
    let servers = SERVERS.min(size);
    let (servers, workers) = (servers.to_string(), (size - servers).to_string());
    let wanted = ["--servers", &servers, "--workers", &workers, "--k3s", "rehearsal"];
    let lab = Lab::up(name, &[&wanted[..], &["--no-daemons", "--no-cluster"]].concat())?;
    let begun = now();
    lab.verb(&["up", "--no-cluster"])?;
    ready(&lab, size)?;
    let join_s = begun.elapsed().as_secs_f64();
    say(format!("{size} daemons: all ready after {join_s:.1} s"));
    lab.verb(&["up"])?;
    std::thread::sleep(CALM);
    let status = lab.ask("n1", &["status"])?;
    let leader = status["leader"].as_str().unwrap_or_default().to_owned();
    let pids = pids(&lab)?;
    let ticks = sysconf(SysconfVar::CLK_TCK).ok().flatten().unwrap_or(100);
    let load_before = machine::load();
    let (from, before) = (now(), sample(&pids)?);
    std::thread::sleep(idle);
    let (seconds, after) = (from.elapsed().as_secs_f64(), sample(&pids)?);
    let led = lab.ask("n1", &["status"])?["leader"].as_str().unwrap_or_default().to_owned();
    if led != leader {
        return Err(format!("{led} took the lead from {leader} meanwhile"));
    }
    let usages: Vec<Usage> = before
        .iter()
        .zip(after.values())
        .map(|((host, before), after)| {
            #[expect(clippy::cast_precision_loss, reason = "a hundred or so")]
            let ticks = ticks as f64;
            Usage::between((host, *host == leader), before, after, seconds, ticks)
        })
        .collect();
    for u in &usages {
        say(format!(
            "{size} daemons, {}{}: {:.1} MB, {:.2} % (+ {:.2} %), {} threads, {:.0} B/s in, {:.0} B/s out",
            u.host,
            if u.leader { ", the leader" } else { "" },
            u.resident_mb,
            u.cpu_percent,
            u.children_percent,
            u.threads,
            u.received_per_s,
            u.sent_per_s
        ));
    }
    Ok(Fleet { daemons: size, join_s, load_before, usages })
}

/// Waits until every node is ready.
fn ready(lab: &Lab, size: usize) -> Result<(), String> {
    wait("all nodes to be ready", READY_MAX, || {
        let status = lab.ask("n1", &["status"])?;
        let nodes = status["nodes"].as_array().cloned().unwrap_or_default();
        let ready = nodes.iter().filter(|n| n["state"] == "ready").count();
        if ready == size { Ok(()) } else { Err(format!("{ready} of {size} are")) }
    })
}

/// The daemons' process ids, by host.
fn pids(lab: &Lab) -> Result<BTreeMap<String, u64>, String> {
    let text = lab.verb(&["status", "-o", "json"])?;
    let status: Value = serde_json::from_str(&text).map_err(|e| format!("lab status: {e}"))?;
    let one = |h: &Value| {
        let name = h["name"].as_str().unwrap_or_default().to_owned();
        let pid = h["pid"].as_u64().ok_or_else(|| format!("no daemon runs in {name}"))?;
        Ok((name, pid))
    };
    status["hosts"].as_array().into_iter().flatten().map(one).collect()
}

fn sample(pids: &BTreeMap<String, u64>) -> Result<BTreeMap<String, Sample>, String> {
    let one = |(host, pid): (&String, &u64)| {
        let read = |file: &str| {
            let path = Path::new("/proc").join(pid.to_string()).join(file);
            fs::read_to_string(&path).map_err(|e| format!("{}: {e}", path.display()))
        };
        let (stat, smaps, devices) = (read("stat")?, read("smaps_rollup")?, read("net/dev")?);
        let sample = Sample::parse(&stat, &smaps, &devices, DEVICE);
        let sample = sample.ok_or_else(|| format!("process {pid}: /proc was not understood"))?;
        Ok((host.clone(), sample))
    };
    pids.iter().map(one).collect()
}

fn save(dir: &Path, outcome: &Outcome) -> Result<(), String> {
    let json = serde_json::to_string_pretty(outcome).map_err(|e| e.to_string())?;
    let table = table::markdown(outcome);
    super::write(dir, [("footprint.json", json + "\n"), ("footprint.md", table)])
}
