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
use raft_store::rt::Scope;

use super::{Format, Global, Places, Result, output, service};
use crate::config::{CONFIG_FILE, Config, Manager};
use crate::daemon::{self, DaemonError, Paths};
use crate::enter;
use crate::env::linux::{Linux, LinuxSettings, TlsWire};
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

/// The bit of CAP_NET_ADMIN (capabilities(7)).
const NET_ADMIN: u64 = 1 << 12;

/// Root of a container may lack what root has.
fn need_net_admin(what: &str) -> Result {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let effective = line.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok());
    if effective.is_none_or(|has| has & NET_ADMIN != 0) {
        return Ok(());
    }
    let why = "it is root without CAP_NET_ADMIN, and could make no network devices";
    let next = "give the container or the unit that capability (--cap-add NET_ADMIN, CapabilityBoundingSet=)";
    Err(failed(what, why, next))
}

/// A daemon that runs already goes on without TUN and says so; a machine that is not ready is not begun with.
fn need_tun(what: &str) -> Result {
    let why = match std::fs::OpenOptions::new().read(true).write(true).open("/dev/net/tun") {
        Ok(_) => return Ok(()),
        Err(e) => format!("/dev/net/tun, through which the overlay runs, cannot be used: {e}"),
    };
    Err(failed(what, why, "load the module (modprobe tun), or give the container that device"))
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

pub(super) async fn init(machine: &impl Linux, global: &Global, args: InitArgs) -> Result {
    const WHAT: &str = "no fleet was founded";
    need_root(WHAT).and_then(|()| need_net_admin(WHAT)).and_then(|()| need_tun(WHAT))?;
    let config = load_config(&args.places)?;
    let init = enter::Init {
        name: node_name(args.name, &config, WHAT)?,
        ipv4_pool: args.ipv4_pool,
        voters: args.voters.parse().unwrap_or(5),
    };
    let identity = enter::init(machine, &args.places.state_dir, &init).await?;
    output::note(format!("this machine, {}, is the first node of a new fleet", init.name));
    if !args.foreground {
        service::start(global, &args.places).await?;
        output::note(
            "to add machines, run `skein ticket create` here and the line it prints there",
        );
        return Ok(());
    }
    run_daemon(machine, global, identity, config, &args.places).await
}

pub(super) async fn join(machine: &impl Linux, global: &Global, args: JoinArgs) -> Result {
    const WHAT: &str = "this machine did not join";
    need_root(WHAT).and_then(|()| need_net_admin(WHAT)).and_then(|()| need_tun(WHAT))?;
    let config = load_config(&args.places)?;
    let ticket: JoinTicket = args
        .ticket
        .parse()
        .map_err(|e| usage(WHAT, e, "make a ticket on a member: skein ticket create"))?;
    let name = node_name(args.name, &config, WHAT)?;
    let replaces = args.replaces.map(|r| r.parse::<Name>()).transpose();
    let replaces = replaces.map_err(|e| usage(WHAT, e, "--replaces takes a node's name"))?;
    let (dir, replaces) = (&args.places.state_dir, replaces.as_ref());
    let joined = enter::join(machine, dir, &ticket, &name, replaces).await?;
    output::note(format!("this machine, {name}, was admitted"));
    if let Some((route, pool)) = joined.clash {
        output::note(format!(
            "warning: its own route to {route} overlaps the fleet's IPv4 pool {pool}: where an overlay address is in \
             both, one of the two is not reached; move that route, or found the fleet with another --ipv4-pool"
        ));
    }
    if !args.foreground {
        service::start(global, &args.places).await?;
        output::note("see `skein status`");
        return Ok(());
    }
    run_daemon(machine, global, joined.identity, config, &args.places).await
}

pub(super) async fn daemon(machine: &impl Linux, global: &Global, places: Places) -> Result {
    const WHAT: &str = "the daemon did not start";
    need_root(WHAT).and_then(|()| need_net_admin(WHAT))?;
    let config = load_config(&places)?;
    let identity =
        Identity::load(machine.files(), &places.state_dir).map_err(|e| unusable(WHAT, e))?;
    run_daemon(machine, global, identity, config, &places).await
}

async fn run_daemon(
    machine: &impl Linux,
    global: &Global,
    identity: Identity,
    config: Config,
    places: &Places,
) -> Result {
    const WHAT: &str = "the daemon ended";
    start_log(global);
    let member = identity.membership().map_err(|e| unusable(WHAT, e))?.clone();
    let papers = daemon::papers(machine.files(), &identity).map_err(|e| unusable(WHAT, e))?;
    let tls = papers.client().map_err(|e| failed(WHAT, e, "mend the state folder"))?;
    let book =
        SharedBook::new(Book::load(machine.files(), &places.state_dir.join("whereabouts.json")));
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
    let settings = LinuxSettings { k3s, packet_threads: config.packet_threads };
    let env = Arc::new(machine.env(wire, settings));
    let paths = Paths { state_dir: places.state_dir.clone(), socket: global.socket.clone() };
    daemon::run(&Scope::new(), env, book, identity, config, paths).await.map_err(|e| {
        let next = after(&e, member.name.as_str());
        failed(WHAT, e, &next)
    })
}

fn unusable(what: &str, e: IdentityError) -> ApiError {
    let next = e.next();
    failed(what, e, next)
}

/// What to do when the daemon of node `name` ended.
fn after(e: &DaemonError, name: &str) -> String {
    match e {
        DaemonError::Identity(e) => e.next().into(),
        DaemonError::Store(e) => e.next(name),
        DaemonError::Tls(_) => {
            format!("empty the state folder, then: skein join TICKET --replaces {name}")
        }
        DaemonError::Listen(e) if e.by.is_skein() => {
            "it runs already: see `skein status`; to start it anew: systemctl restart skein".into()
        }
        DaemonError::Listen(_) => {
            "end what listens there (ss -lntxp), or choose other addresses in /etc/skein/skein.toml"
                .into()
        }
        DaemonError::Ended(why) if why.contains("disk") => {
            "free space or mend the disk, then start the daemon again: systemctl start skein".into()
        }
        DaemonError::Ended(_) => {
            "see the log above; to start it again: systemctl start skein".into()
        }
    }
}

fn start_log(global: &Global) {
    use tracing_subscriber::EnvFilter;
    let filter = EnvFilter::try_from_env("SKEIN_LOG")
        .unwrap_or_else(|_| EnvFilter::new("info,openraft=error,sled=warn,boringtun=off"));
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    // Already set only where a test runs several daemons in one process.
    let _ = match global.output {
        Format::Json => log.json().try_init(),
        Format::Table => log.with_ansi(false).try_init(),
    };
}
