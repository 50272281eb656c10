//! The command line: what can be typed, and where it goes. Shell.

mod check;
mod cluster;
mod connect;
mod fleet;
mod local;
mod node;
mod output;
mod peer;
mod service;

use std::path::PathBuf;
use std::process::ExitCode;

use api::client::ApiError;
use api::status::detail;
use clap::error::ErrorKind;
use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::config::{CONFIG_FILE, SOCKET, STATE_DIR};
use crate::env::linux::Linux;

/// Kubernetes (K3s) on machines in several places, without a central server.
///
/// First machine: `skein init`. Others: `skein join TICKET`. Then `skein cluster create NAME --servers a,b,c
/// --workers d` and `skein kubeconfig NAME --merge`. Exit codes: 0 ok, 1 failed, 2 usage, 3 not found, 4 refused by a
/// safety guard, 5 no quorum, 6 timed out, 7 partly done, 130 interrupted.
#[derive(Debug, Parser)]
#[command(name = "skein", version = VERSION, propagate_version = true, arg_required_else_help = true)]
pub struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

const VERSION: &str = concat!(env!("CARGO_PKG_VERSION"), " (commit ", env!("SKEIN_COMMIT"), ")");

/// Keeps what a command alone has apart from what all have.
const EVERYWHERE: &str = "Options of every command";

/// Options of every command.
#[derive(Clone, Debug, Args)]
pub struct Global {
    /// How to print: table for people, json (stable) for programs.
    #[arg(short, long, global = true, default_value = "table", value_name = "FORMAT")]
    #[arg(hide_possible_values = true, help_heading = EVERYWHERE)]
    output: Format,
    /// An operator's context file, to talk to the fleet from a workstation.
    #[arg(long, global = true, env = "SKEIN_CONTEXT", value_name = "FILE")]
    #[arg(help_heading = EVERYWHERE)]
    context: Option<PathBuf>,
    /// The local daemon's socket.
    #[arg(long, global = true, env = "SKEIN_SOCKET", default_value = SOCKET, value_name = "PATH")]
    #[arg(help_heading = EVERYWHERE)]
    socket: PathBuf,
    /// Answer reads from what the asked node has, without asking the leader.
    #[arg(long, global = true, help_heading = EVERYWHERE)]
    stale: bool,
}

/// How to print.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For people.
    Table,
    /// For programs.
    Json,
}

/// Where a machine keeps its part.
#[derive(Clone, Debug, Args)]
pub struct Places {
    /// The daemon's state folder.
    #[arg(long, env = "SKEIN_STATE_DIR", default_value = STATE_DIR, value_name = "DIR")]
    state_dir: PathBuf,
    /// The machine's configuration file.
    #[arg(long, env = "SKEIN_CONFIG", value_name = "FILE", help = format!("The configuration file [default: {CONFIG_FILE}]"))]
    config: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Found a fleet on this machine, and start its daemon.
    Init(local::InitArgs),
    /// Join a fleet with a ticket, and start the daemon.
    Join(local::JoinArgs),
    /// Run the daemon of a machine that is a member (what skein.service does).
    Daemon(Places),
    /// Show the fleet in one screen.
    Status,
    /// List, show, remove nodes and give them roles.
    #[command(subcommand)]
    Node(node::NodeCommand),
    /// Empty a node: cordon, hand over etcd, move the VIP, evict.
    Drain(node::DrainArgs),
    /// Take a drained node back into service.
    Undrain {
        /// The node.
        node: String,
    },
    /// Make and show overlay networks.
    #[command(subcommand)]
    Net(fleet::NetCommand),
    /// List peers of the overlay, and admit plain WireGuard devices.
    #[command(subcommand)]
    Peer(peer::PeerCommand),
    /// Take round trips through the tunnel to a node or a device.
    Ping(peer::PingArgs),
    /// Write what passes inside a network, for Wireshark or tcpdump.
    Capture(peer::CaptureArgs),
    /// Make and show clusters.
    #[command(subcommand)]
    Cluster(cluster::ClusterCommand),
    /// Print a cluster's kubeconfig, or merge it into your own.
    Kubeconfig(cluster::KubeconfigArgs),
    /// Show and move the VIPs of clusters' APIs.
    #[command(subcommand)]
    Vip(cluster::VipCommand),
    /// Make, list and revoke join tickets.
    #[command(subcommand)]
    Ticket(fleet::TicketCommand),
    /// Show what happened.
    Events(fleet::EventsArgs),
    /// Tell this node an address of another one.
    #[command(subcommand)]
    Endpoint(fleet::EndpointCommand),
    /// Admit operators with a context file of their own.
    #[command(subcommand)]
    Operator(fleet::OperatorCommand),
}

type Result = std::result::Result<(), ApiError>;

/// Reads this process' arguments and carries them out on `machine`: the whole of the `skein` program.
pub fn main(machine: &impl Linux) -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(e)
            if e.use_stderr()
                && e.kind() != ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand =>
        {
            let e = misunderstood(&e);
            show_failure(&e);
            return ExitCode::from(e.code);
        }
        Err(e) => e.exit(),
    };
    let runtime = match tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .worker_threads(crate::THREADS)
        .build()
    {
        Ok(runtime) => runtime,
        Err(e) => {
            let words = format!("error: no threads: {e}\n");
            let _ = std::io::Write::write_all(&mut std::io::stderr(), words.as_bytes());
            return ExitCode::FAILURE;
        }
    };
    match runtime.block_on(run(machine, cli)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            show_failure(&e);
            ExitCode::from(e.code)
        }
    }
}

/// Carries out what was typed.
///
/// # Errors
/// What is to be shown in three lines.
pub async fn run(machine: &impl Linux, cli: Cli) -> Result {
    let global = &cli.global;
    match cli.command {
        Command::Init(args) => local::init(machine, global, args).await,
        Command::Join(args) => local::join(machine, global, args).await,
        Command::Daemon(places) => local::daemon(machine, global, places).await,
        Command::Status => fleet::status(global).await,
        Command::Node(command) => node::run(global, command).await,
        Command::Drain(args) => node::drain(global, args).await,
        Command::Undrain { node } => node::undrain(global, node).await,
        Command::Net(command) => fleet::net(global, command).await,
        Command::Peer(command) => peer::peer(global, command).await,
        Command::Ping(args) => peer::ping(global, args).await,
        Command::Capture(args) => peer::capture(global, args).await,
        Command::Cluster(command) => cluster::run(global, command).await,
        Command::Kubeconfig(args) => cluster::kubeconfig(global, args).await,
        Command::Vip(command) => cluster::vip(global, command).await,
        Command::Ticket(command) => fleet::ticket(global, command).await,
        Command::Events(args) => fleet::events(global, args).await,
        Command::Endpoint(command) => fleet::endpoint(global, command).await,
        Command::Operator(command) => fleet::operator(global, command).await,
    }
}

/// Says a mistyped command line as any other failure.
fn misunderstood(e: &clap::Error) -> ApiError {
    let text = e.render().to_string();
    let said = |line: &&str| !line.starts_with("Usage:") && !line.starts_with("For more");
    let why: Vec<&str> =
        text.lines().map(str::trim).filter(|l| !l.is_empty()).filter(said).collect();
    let why = why.join(" ").trim_start_matches("error:").trim().to_owned();
    // The words before the first option or argument are the command.
    let usage = text.lines().find_map(|line| line.trim().strip_prefix("Usage:")).unwrap_or("skein");
    let words = usage.split_whitespace().take_while(|w| !w.starts_with(['-', '<', '[']));
    let command = words.collect::<Vec<_>>().join(" ");
    detail("invalid", "the command was not understood", why, format!("{command} --help")).into()
}

/// Shows a failure: what failed, why, what to run next.
fn show_failure(e: &ApiError) {
    output::failure(e);
}
