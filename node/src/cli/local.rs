//! Commands about this very machine: init, join, daemon. Shell.

use std::path::PathBuf;
use std::sync::Arc;

use api::client::ApiError;
use api::status::detail;
use api::ticket::JoinTicket;
use api::transport::PeerPool;
use clap::Args;
use ipnet::Ipv4Net;
use raft_store::model::Name;

use super::{Format, Global, Places, Result, output, service};
use crate::config::{CONFIG_FILE, Config, Manager};
use crate::daemon::{self, DaemonError, Paths};
use crate::enter;
use crate::env::linux::{LinuxEnv, TlsWire};
use crate::identity::{Identity, IdentityError};
use crate::transport::SharedBook;
use crate::whereabouts::Book;

/// Options of `skein init`.
#[derive(Debug, Args)]
pub(super) struct InitArgs {
    #[command(flatten)]
    places: Places,
    /// The node's name [default: the host's name].
    #[arg(long)]
    name: Option<String>,
    /// The private range that overlay IPv4 addresses come from [default: one that no local route uses].
    #[arg(long, value_name = "CIDR")]
    ipv4_pool: Option<Ipv4Net>,
    /// How many nodes vote at most: 1, 3 or 5.
    #[arg(long, default_value = "5", value_parser = ["1", "3", "5"])]
    voters: String,
    /// Stay in the foreground instead of installing skein.service (without systemd: instead of going to the background).
    #[arg(long)]
    foreground: bool,
}

/// Options of `skein join`.
#[derive(Debug, Args)]
pub(super) struct JoinArgs {
    /// The ticket, as `skein ticket create` printed it.
    ticket: String,
    #[command(flatten)]
    places: Places,
    /// The node's name [default: the host's name].
    #[arg(long)]
    name: Option<String>,
    /// The node whose place this machine takes, and whose former life is to end.
    #[arg(long, value_name = "NAME")]
    replaces: Option<String>,
    /// Stay in the foreground instead of installing skein.service (without systemd: instead of going to the background).
    #[arg(long)]
    foreground: bool,
}

fn failed(what: &str, why: impl std::fmt::Display, next: &str) -> ApiError {
    detail("failed", what, why.to_string(), next).into()
}

fn usage(what: &str, why: impl std::fmt::Display, next: &str) -> ApiError {
    detail("invalid", what, why.to_string(), next).into()
}

fn need_root(what: &str) -> Result {
    if nix::unistd::geteuid().is_root() {
        return Ok(());
    }
    let why = "it makes network devices and runs K3s, which only root may do";
    Err(failed(what, why, "run the same command with sudo"))
}

fn load_config(places: &Places) -> std::result::Result<Config, ApiError> {
    let path = places.config.clone().unwrap_or_else(|| PathBuf::from(CONFIG_FILE));
    Config::load(&path, places.config.is_some()).map_err(|e| {
        usage("the configuration cannot be used", e, "mend the file and run the command again")
    })
}

fn node_name(
    given: Option<String>,
    config: &Config,
    what: &str,
) -> std::result::Result<Name, ApiError> {
    let from_host = || {
        let host = nix::unistd::gethostname().unwrap_or_default();
        let host = host.to_string_lossy().to_lowercase();
        host.split('.').next().unwrap_or_default().to_owned()
    };
    let text = given.or_else(|| config.name.clone()).unwrap_or_else(from_host);
    text.parse().map_err(|e| usage(what, e, "name it with --name"))
}

pub(super) async fn init(global: &Global, args: InitArgs) -> Result {
    const WHAT: &str = "no fleet was founded";
    need_root(WHAT)?;
    let config = load_config(&args.places)?;
    let init = enter::Init {
        name: node_name(args.name, &config, WHAT)?,
        ipv4_pool: args.ipv4_pool,
        voters: args.voters.parse().unwrap_or(5),
    };
    let identity = enter::init(&args.places.state_dir, &init).await?;
    output::note(format!("this machine, {}, is the first node of a new fleet", init.name));
    if !args.foreground {
        service::start(global, &args.places).await?;
        output::note(
            "to add machines, run `skein ticket create` here and the line it prints there",
        );
        return Ok(());
    }
    run_daemon(global, identity, config, &args.places).await
}

pub(super) async fn join(global: &Global, args: JoinArgs) -> Result {
    const WHAT: &str = "this machine did not join";
    need_root(WHAT)?;
    let config = load_config(&args.places)?;
    let ticket: JoinTicket = args
        .ticket
        .parse()
        .map_err(|e| usage(WHAT, e, "make a ticket on a member: skein ticket create"))?;
    let name = node_name(args.name, &config, WHAT)?;
    let replaces = args.replaces.map(|r| r.parse::<Name>()).transpose();
    let replaces = replaces.map_err(|e| usage(WHAT, e, "--replaces takes a node's name"))?;
    let identity = enter::join(&args.places.state_dir, &ticket, &name, replaces.as_ref()).await?;
    output::note(format!("this machine, {name}, was admitted"));
    if !args.foreground {
        service::start(global, &args.places).await?;
        output::note("see `skein status`");
        return Ok(());
    }
    run_daemon(global, identity, config, &args.places).await
}

pub(super) async fn daemon(global: &Global, places: Places) -> Result {
    const WHAT: &str = "the daemon did not start";
    need_root(WHAT)?;
    let config = load_config(&places)?;
    let identity = Identity::load(&places.state_dir).map_err(|e| {
        let next = match &e {
            IdentityError::Missing(_) => {
                "run `skein init` on the first machine, or `skein join TICKET` on another"
            }
            _ => "mend or empty the state folder",
        };
        failed(WHAT, e, next)
    })?;
    run_daemon(global, identity, config, &places).await
}

async fn run_daemon(
    global: &Global,
    identity: Identity,
    config: Config,
    places: &Places,
) -> Result {
    const WHAT: &str = "the daemon ended";
    start_log(global);
    let wrong = |e: &dyn std::fmt::Display, next: &str| failed(WHAT, e, next);
    let member =
        identity.membership().map_err(|e| wrong(&e, "run `skein join TICKET` again"))?.clone();
    let papers = daemon::papers(&identity).map_err(|e| wrong(&e, "mend the state folder"))?;
    let tls = papers.client().map_err(|e| wrong(&e, "mend the state folder"))?;
    let book = SharedBook::new(Book::load(&places.state_dir.join("whereabouts.json")));
    let manager = match config.k3s.manager {
        Manager::Auto => k3s::Manager::detect(),
        Manager::Systemd => k3s::Manager::Systemd,
        Manager::Process => k3s::Manager::Process,
    };
    let mut layout = k3s::render::Layout::default();
    if let Some(dir) = &config.k3s.data_dir {
        layout.data_dir.clone_from(dir);
    }
    let state_dir = places.state_dir.join("k3s");
    let k3s = k3s::LinuxConfig { state_dir, manager, layout };
    let wire = TlsWire::new(PeerPool::new(tls), member.fleet);
    let env = Arc::new(LinuxEnv::new(wire, k3s));
    let paths = Paths { state_dir: places.state_dir.clone(), socket: global.socket.clone() };
    daemon::run(env, book, identity, config, paths).await.map_err(|e| {
        let next = match &e {
            DaemonError::Listen { .. } => "end what listens there (ss -lntp), or choose other addresses in /etc/skein/skein.toml",
            _ => "see the log above; `skein daemon` starts it again",
        };
        failed(WHAT, e, next)
    })
}

fn start_log(global: &Global) {
    use tracing_subscriber::EnvFilter;
    let filter = EnvFilter::try_from_env("SKEIN_LOG")
        .unwrap_or_else(|_| EnvFilter::new("info,openraft=warn,sled=warn,boringtun=off"));
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    // Already set only where a test runs several daemons in one process.
    let _ = match global.output {
        Format::Json => log.json().try_init(),
        Format::Table => log.with_ansi(false).try_init(),
    };
}
