//! What the lab measures: `./lab bench`. Shell.
//!
//! | module | what |
//! |---|---|
//! | [`record`], [`stats`], [`turns`], [`trial`], [`verdict`], [`proc`] | from lines to figures to verdicts; pure |
//! | [`table`], [`plot`] | how a run is shown; pure |
//! | [`observer`], [`responder`] | who asks and who answers, in hosts |
//! | `skein`, `keepalived` | what is done to whom |
//! | [`consensus`] | Skein's log beside etcd's |
//! | [`dataplane`] | Skein's tunnel beside others' |
//! | [`footprint`] | what idle daemons cost |

pub mod consensus;
pub mod dataplane;
pub mod footprint;
mod keepalived;
pub(crate) mod lab;
mod machine;
pub mod observer;
mod plant;
pub mod plot;
pub mod proc;
pub mod record;
pub mod responder;
mod skein;
pub mod stats;
pub mod table;
mod tls;
pub mod trial;
pub mod turns;
pub mod verdict;
mod watch;
mod writer;

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand, ValueEnum as _};

use crate::lab::say;
use record::Clock;
use trial::{Case, CaseResult, Outcome, Setting, System, Trial};
use verdict::seconds;

/// Where responders answer.
pub(crate) const PORT: u16 = 7999;
/// Pause between two attempts of a clock, in milliseconds: the observer's default.
const EVERY_MS: u64 = 20;

/// What is measured.
#[derive(Debug, Subcommand)]
pub enum Bench {
    /// How long the VIP, the API's port and API writes are away when something happens to the VIP's holder.
    Failover(FailoverArgs),
    /// How many puts and linearizable reads Skein's consensus answers, and how long a killed leader is missed, beside etcd.
    Consensus(consensus::ConsensusArgs),
    /// How much a tunnel carries, what that costs, and how long a ping takes, beside wireguard-go and boringtun-cli.
    Dataplane(dataplane::DataplaneArgs),
    /// Whether Skein's tunnel and wireguard-go understand each other: content over IPv4 and IPv6, both ways, while keys change.
    Interop,
    /// How long daemons take to join, and what they cost when nothing happens.
    Footprint(footprint::FootprintArgs),
}

/// `lab bench failover`.
#[derive(Debug, Args)]
pub struct FailoverArgs {
    /// How often each case is tried.
    #[arg(long, default_value = "20", value_parser = clap::value_parser!(u32).range(1..))]
    trials: u32,
    /// Where failover.json, failover.md and failover.svg go.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// What runs as K3s: auto, rehearsal, build, or a path to a K3s binary.
    #[arg(long, default_value = "auto")]
    k3s: String,
    /// These cases only.
    #[arg(long, value_enum, value_delimiter = ',')]
    cases: Vec<Case>,
    /// How often keepalived, the yardstick, is tried; 0 leaves it out [default: as often as Skein]
    #[arg(long, value_name = "N")]
    yardstick: Option<u32>,
    /// Let a second host answer in turns with the holder: the bench must find it, and fail.
    #[arg(long, hide = true)]
    plant_second_holder: bool,
}

impl FailoverArgs {
    /// What is to run as K3s.
    pub(crate) fn k3s(&self) -> &str {
        &self.k3s
    }

    fn cases(&self) -> Vec<Case> {
        let mut cases = self.cases.clone();
        cases.sort_unstable();
        cases.dedup();
        if cases.is_empty() { Case::value_variants().to_vec() } else { cases }
    }
}

/// Runs a bench; `name` is that of its lab.
///
/// # Errors
/// When it cannot write what it found; what it could not measure is in the outcome.
pub fn run(name: &str, bench: &Bench) -> Result<u8, String> {
    match bench {
        Bench::Failover(args) => failover(name, args),
        Bench::Consensus(args) => consensus::run(args),
        Bench::Dataplane(args) => dataplane::run(name, args),
        Bench::Interop => dataplane::interop::run(name),
        Bench::Footprint(args) => footprint::run(name, args),
    }
}

fn failover(name: &str, args: &FailoverArgs) -> Result<u8, String> {
    let yardstick = args.yardstick.unwrap_or(args.trials);
    if yardstick > 0 && !Path::new("/usr/sbin/keepalived").exists() {
        return Err(
            "keepalived, the yardstick, is missing; install it: apt-get install keepalived; \
                    or leave it out: --yardstick 0"
                .into(),
        );
    }
    std::fs::create_dir_all(&args.out).map_err(|e| format!("{}: {e}", args.out.display()))?;
    let mut outcome = Outcome {
        schema: 1,
        setting: Setting {
            date: machine::date(),
            commit: node::COMMIT.into(),
            machine: machine::machine(),
            k3s: args.k3s.clone(),
            trials: args.trials,
            every_ms: EVERY_MS,
        },
        systems: Vec::new(),
        verdicts: Vec::new(),
        broken_off: None,
    };
    let measured = measure_skein(name, args, &mut outcome)
        .and_then(|()| measure_keepalived(name, args, yardstick, &mut outcome));
    outcome.broken_off = measured.err();
    save(&args.out, &outcome)?;
    crate::lab::print(table::markdown(&outcome));
    say(format!("written to {}", args.out.display()));
    Ok(u8::from(!outcome.passed()))
}

fn measure_skein(name: &str, args: &FailoverArgs, outcome: &mut Outcome) -> Result<(), String> {
    let fleet = skein::Fleet::up(name, &args.k3s, args.plant_second_holder)?;
    outcome.setting.k3s = fleet.version();
    outcome.systems.push(System { name: "Skein".into(), cases: Vec::new() });
    for case in args.cases() {
        for number in 1..=args.trials {
            let trial = fleet
                .trial(case, number)
                .map_err(|e| format!("Skein, {}, trial {number}: {e}", case.title()))?;
            tell("Skein", case, args.trials, &trial);
            add(&mut outcome.systems[0], case, trial);
        }
        outcome.verdicts = verdict::judge(&outcome.systems[0]);
        save(&args.out, outcome)?;
    }
    Ok(())
}

fn measure_keepalived(
    name: &str,
    args: &FailoverArgs,
    trials: u32,
    outcome: &mut Outcome,
) -> Result<(), String> {
    let cases: Vec<Case> = args.cases().into_iter().filter(|c| keepalived::has(*c)).collect();
    if trials == 0 || cases.is_empty() {
        return Ok(());
    }
    let pair = keepalived::Pair::up(&format!("{name}-peer"))?;
    let mut systems: Vec<System> =
        keepalived::names().into_iter().map(|name| System { name, cases: Vec::new() }).collect();
    let measure = || {
        for case in cases {
            for number in 1..=trials {
                let results = pair
                    .trial(case, number)
                    .map_err(|e| format!("keepalived, {}, trial {number}: {e}", case.title()))?;
                for (system, trial) in systems.iter_mut().zip(results) {
                    tell(&system.name, case, trials, &trial);
                    add(system, case, trial);
                }
            }
        }
        Ok(())
    };
    let done = measure();
    outcome.systems.extend(systems);
    done
}

fn add(system: &mut System, case: Case, trial: Trial) {
    match system.cases.iter_mut().find(|c| c.case == case) {
        Some(result) => result.trials.push(trial),
        None => system.cases.push(CaseResult { case, trials: vec![trial] }),
    }
}

fn tell(system: &str, case: Case, trials: u32, trial: &Trial) {
    let clocks = Clock::ALL.into_iter().filter_map(|clock| {
        let reading = trial.clocks.get(&clock)?;
        Some(format!("{} {} ({} failed)", clock.title(), seconds(reading.gap_ms), reading.failed))
    });
    let clocks: Vec<String> = clocks.collect();
    let turn = trial.turn.as_ref().map(|t| format!("; IN TURNS: {t}")).unwrap_or_default();
    say(format!(
        "{system}, {}, {} of {trials}: {}{turn}",
        case.title(),
        trial.number,
        clocks.join(", ")
    ));
}

fn save(dir: &Path, outcome: &Outcome) -> Result<(), String> {
    let json = serde_json::to_string_pretty(outcome).map_err(|e| e.to_string())?;
    let (table, picture) = (table::markdown(outcome), plot::svg(outcome));
    write(dir, [("failover.json", json + "\n"), ("failover.md", table), ("failover.svg", picture)])
}

/// Writes files of a report.
fn write<const N: usize>(dir: &Path, texts: [(&str, String); N]) -> Result<(), String> {
    for (name, text) in texts {
        let path = dir.join(name);
        std::fs::write(&path, text).map_err(|e| format!("{}: {e}", path.display()))?;
    }
    Ok(())
}
