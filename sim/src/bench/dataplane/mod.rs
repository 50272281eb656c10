//! Skein's tunnel beside others', in turns on one machine: `./lab bench dataplane`. Shell.
//!
//! | module | what |
//! |---|---|
//! | [`figures`], [`table`], [`plot`] | from others' words to ratios to verdicts, and how they are shown; pure |
//! | `contender` | who carries packets, started and ended |
//! | `load` | what is carried |
//! | [`interop`] | Skein at one end, wireguard-go at the other |
//! | [`end`], [`content`] | one end of Skein's tunnel, alone; content that is compared |

pub(crate) mod contender;
pub mod content;
pub mod end;
pub mod figures;
pub mod interop;
mod load;
pub mod plot;
pub mod table;

use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum as _};

use super::lab::Lab;
use super::machine;
use crate::lab::say;
use contender::{End, Neighbour, Programs, Running};
use figures::{Alone, Beside, Contender, Load, Outcome, Relay, Round, Setting, Turn};

/// How often the change among many peers is timed.
const CHANGES: u32 = 5;
/// Among how many.
const MANY: u32 = 1_000;

/// `lab bench dataplane`.
#[derive(Debug, Args)]
pub struct DataplaneArgs {
    /// Where dataplane.json, dataplane.md and dataplane.svg go.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// How often each has its turn.
    #[arg(long, default_value = "5", value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// How long each load runs, in seconds.
    #[arg(long, default_value = "3", value_parser = clap::value_parser!(u64).range(1..=600))]
    seconds: u64,
    /// These contenders only.
    #[arg(long, value_enum, value_delimiter = ',')]
    contenders: Vec<Contender>,
    /// How many more peers each end has, that are never heard.
    #[arg(long, default_value_t = 99)]
    silent: u32,
}

impl DataplaneArgs {
    /// Who is measured.
    pub(crate) fn contenders(&self) -> Vec<Contender> {
        let mut contenders = self.contenders.clone();
        contenders.sort_unstable();
        contenders.dedup();
        if contenders.is_empty() { Contender::value_variants().to_vec() } else { contenders }
    }
}

/// Runs the comparison.
///
/// # Errors
/// When it cannot begin, or cannot write what it found; what it could not measure is in the outcome.
pub(super) fn run(name: &str, args: &DataplaneArgs) -> Result<u8, String> {
    std::fs::create_dir_all(&args.out).map_err(|e| format!("{}: {e}", args.out.display()))?;
    let contenders = args.contenders();
    let programs = Programs::find(&contenders)?;
    let mut outcome = Outcome {
        schema: 1,
        setting: Setting {
            date: machine::date(),
            commit: node::COMMIT.into(),
            machine: machine::machine(),
            optimised: !cfg!(debug_assertions),
            peers: programs.versions(),
            rounds: args.rounds,
            seconds: args.seconds,
            silent: args.silent,
        },
        ..Outcome::default()
    };
    let measured = measure(name, args, (&contenders, &programs), &mut outcome);
    outcome.broken_off = measured.err();
    outcome.verdicts = figures::judge(&outcome);
    save(&args.out, &outcome)?;
    crate::lab::print(table::markdown(&outcome));
    say(format!("written to {}", args.out.display()));
    Ok(u8::from(!outcome.passed()))
}

fn measure(
    name: &str,
    args: &DataplaneArgs,
    (contenders, programs): (&[Contender], &Programs),
    outcome: &mut Outcome,
) -> Result<(), String> {
    let hosts = ["--servers", "2", "--workers", "1", "--k3s", "rehearsal", "--no-daemons"];
    let lab = Lab::up(name, &hosts)?;
    let ends = [End::new(&lab, 1)?, End::new(&lab, 2)?, End::new(&lab, 3)?];
    lab.detach(ends[1].host, "iperf3 --server")?;
    for number in 1..=args.rounds {
        let order = figures::order(number, contenders);
        outcome.rounds.push(Round { number, order: order.clone(), ..Round::default() });
        for contender in order {
            let turn = turn(&lab, programs, (contender, number), &ends, args)
                .map_err(|e| format!("{}, round {number}: {e}", contender.title()))?;
            outcome.rounds.last_mut().map(|round| round.turns.insert(contender, turn));
            save(&args.out, outcome)?;
        }
    }
    if contenders.contains(&Contender::Skein) {
        outcome.alone = alone(&lab, programs, &ends, args)?;
    }
    Ok(())
}

fn turn(
    lab: &Lab,
    programs: &Programs,
    (contender, number): (Contender, u32),
    ends: &[End; 3],
    args: &DataplaneArgs,
) -> Result<Turn, String> {
    let (load_before, [from, to, _]) = (machine::load(), ends);
    let start = |me: &End, other: &End| {
        let neighbours = [Neighbour { end: other, behind: Vec::new() }];
        Running::start(lab, programs, contender, (me, &neighbours, args.silent))
    };
    let running = [start(from, to)?, start(to, from)?];
    running[0].reaches(&to.address())?;
    let mut turn = Turn { load_before, ..Turn::default() };
    for load in Load::ALL {
        let (gbit_s, lost_percent, cpu) =
            load::flow(lab, from, to, (load, args.seconds), &running)?;
        say(format!(
            "{}, round {number}, {}: {gbit_s:.2} Gbit/s, {:.2} + {:.2} s/GB",
            contender.title(),
            load.title(),
            cpu[0],
            cpu[1]
        ));
        turn.flows.insert(load, figures::Flow { gbit_s, lost_percent, cpu_s_gb: [cpu[0], cpu[1]] });
    }
    for beside in Beside::ALL {
        let trips = load::trips(lab, from, to, (beside, args.seconds))?;
        say(format!(
            "{}, round {number}, ping {}: {:.2} ms, p99 {:.2} ms",
            contender.title(),
            beside.title(),
            trips.mean_ms,
            trips.p99_ms
        ));
        turn.trips.insert(beside, trips);
    }
    for (at, running) in running.iter().enumerate() {
        turn.resident_mb[at] = figures::resident_mb(&running.process()?.1).unwrap_or_default();
    }
    for (from, to) in [(from, to), (to, from)] {
        turn.intact_mib += load::content(lab, from, to, (false, u64::from(number)))?;
    }
    Ok(turn)
}

/// What is measured of Skein only.
fn alone(
    lab: &Lab,
    programs: &Programs,
    ends: &[End; 3],
    args: &DataplaneArgs,
) -> Result<Alone, String> {
    let [from, to, between] = ends;
    lab.run(between.host, &["sysctl", "-q", "-w", "net.ipv4.ip_forward=1"])?;
    let over = |behind| vec![Neighbour { end: between, behind: vec![behind] }];
    let direct = vec![
        Neighbour { end: from, behind: Vec::new() },
        Neighbour { end: to, behind: Vec::new() },
    ];
    let start = |me: &End, neighbours: Vec<Neighbour<'_>>| {
        Running::start(lab, programs, Contender::Skein, (me, &neighbours, args.silent))
    };
    let running = [start(from, over(to))?, start(between, direct)?, start(to, over(from))?];
    running[0].reaches(&to.address())?;
    let (gbit_s, _, cpu) = load::flow(lab, from, to, (Load::Tcp1, args.seconds), &running)?;
    let cpu_s_gb = [cpu[0], cpu[1], cpu[2]];
    say(format!("Skein, over a third host: {gbit_s:.2} Gbit/s, {:.2} s/GB in the middle", cpu[1]));
    drop(running);
    let change_ms: Result<Vec<f64>, String> =
        (0..CHANGES).map(|_| contender::change(lab, programs, (from, to), MANY)).collect();
    Ok(Alone { relay: Some(Relay { gbit_s, cpu_s_gb }), change_ms: change_ms? })
}

fn save(dir: &Path, outcome: &Outcome) -> Result<(), String> {
    let json = serde_json::to_string_pretty(outcome).map_err(|e| e.to_string())?;
    let (table, picture) = (table::markdown(outcome), plot::svg(outcome));
    super::write(
        dir,
        [("dataplane.json", json + "\n"), ("dataplane.md", table), ("dataplane.svg", picture)],
    )
}
