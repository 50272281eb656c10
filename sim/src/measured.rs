//! The `skein-bench` program: parts of Skein alone, for benches that put them beside others' programs.
//!
//! It is no part of `skein-sim`, so that what is measured has the allocator that `skein` has.

use clap::{Parser, Subcommand};

#[derive(Debug, Parser)]
#[command(name = "skein-bench", version = node::COMMIT, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// A daemon without K3s and overlay, for `lab bench consensus`.
    ConsensusNode(sim::bench::consensus::node::NodeArgs),
    /// An overlay without daemon and control plane, for `lab bench dataplane`.
    Overlay(sim::bench::dataplane::end::OverlayArgs),
    /// Receives content, and says its SHA-256.
    Receive(sim::bench::dataplane::content::ReceiveArgs),
    /// Sends content, and says its SHA-256.
    Send(sim::bench::dataplane::content::SendArgs),
}

fn main() -> std::process::ExitCode {
    sim::finish(match Cli::parse().command {
        Command::ConsensusNode(args) => sim::bench::consensus::node::run(&args),
        Command::Overlay(args) => sim::bench::dataplane::end::run(&args),
        Command::Receive(args) => sim::bench::dataplane::content::receive(&args),
        Command::Send(args) => sim::bench::dataplane::content::send(&args),
    })
}
