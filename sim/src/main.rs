//! The `skein-sim` program: a lab of real daemons on one machine, and a stand-in for K3s.

use clap::{Parser, Subcommand};

/// The simulator makes and drops small things all the time.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Tries Skein without machines: hosts in namespaces, real daemons in them.
#[derive(Debug, Parser)]
#[command(name = "skein-sim", version, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run one seed of the simulator: a whole fleet under virtual time, hurt and healed.
    Run(sim::chaos::cli::RunArgs),
    /// Run many seeds.
    Sweep(sim::chaos::cli::SweepArgs),
    /// Run a schedule from its file.
    Replay(sim::chaos::cli::ReplayArgs),
    /// Run the schedules of defects that were found and mended.
    Corpus(sim::chaos::cli::CorpusArgs),
    /// Measure how fast fleets are simulated.
    Bench(sim::chaos::bench::BenchArgs),
    /// Make a failing schedule shorter while it fails in the same way.
    Shrink(sim::chaos::cli::ShrinkArgs),
    /// Show that the simulator can fail: worlds with a defect each, and how soon it is found.
    Flaws(sim::chaos::flaws::FlawsArgs),
    /// Make, use, break and remove a lab.
    Lab(sim::lab::cli::LabArgs),
    /// Say what `lab up` would need to have installed.
    #[command(hide = true)]
    LabNeeds(sim::lab::cli::LabArgs),
    /// Ask an address through a host again and again, and say how long it did not answer.
    Probe(sim::probe::ProbeArgs),
    /// Ask through a VIP again and again, and print each answer.
    #[command(hide = true)]
    Observe(sim::bench::observer::ObserveArgs),
    /// Answer on every address with the host's name.
    #[command(hide = true)]
    Respond(sim::bench::responder::RespondArgs),
    /// Process 1 of a lab's host.
    #[command(hide = true)]
    LabInit {
        /// The host's folder.
        dir: std::path::PathBuf,
    },
    /// The stand-in for K3s, with K3s' command line behind it.
    #[command(hide = true, trailing_var_arg = true, disable_help_flag = true)]
    Rehearsal {
        /// K3s' arguments.
        #[arg(allow_hyphen_values = true)]
        args: Vec<String>,
    },
}

fn main() -> std::process::ExitCode {
    // The rehearsal is called by K3s' name, as Skein calls K3s; a mortal Skein by its own, as a lab's hosts call it.
    let called = std::env::args().next().unwrap_or_default();
    if called.rsplit('/').next() == Some("skein") {
        return sim::mortal::main();
    }
    if called.rsplit('/').next() == Some("k3s") {
        let args: Vec<String> = std::env::args().skip(1).collect();
        return sim::finish(sim::rehearsal::run(&args));
    }
    sim::finish(match Cli::parse().command {
        Command::Run(args) => sim::chaos::cli::run_seed(&args),
        Command::Sweep(args) => sim::chaos::cli::run_sweep(&args),
        Command::Corpus(args) => sim::chaos::cli::corpus(&args),
        Command::Bench(args) => sim::chaos::bench::bench(&args),
        Command::Shrink(args) => sim::chaos::cli::shorten(&args),
        Command::Replay(args) => sim::chaos::cli::replay(&args),
        Command::Flaws(args) => sim::chaos::flaws::flaws(&args),
        Command::Lab(args) => sim::lab::cli::run(args),
        Command::LabNeeds(args) => sim::lab::cli::needs(&args),
        Command::Probe(args) => sim::probe::run(&args),
        Command::Observe(args) => sim::bench::observer::run(args),
        Command::Respond(args) => sim::bench::responder::run(&args),
        Command::LabInit { dir } => sim::lab::init::run(&dir),
        Command::Rehearsal { args } => sim::rehearsal::run(&args),
    })
}
