//! A daemon without K3s and overlay, on loopback: what of Skein is compared with etcd. Shell.

use std::future::ready;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use api::ticket::JoinTicket;
use api::transport::PeerPool;
use clap::Args;
use k3s::HostError;
use node::config::Config;
use node::daemon::{self, Paths};
use node::enter::{self, Init};
use node::env::linux::{TlsWire, random, wall};
use node::env::{Env, Mesh};
use node::identity::Identity;
use node::transport::SharedBook;
use node::whereabouts::Book;
use raft_store::model::UnixMillis;

/// `skein-sim consensus-node`.
#[derive(Debug, Args)]
pub struct NodeArgs {
    /// The state folder.
    dir: PathBuf,
    /// The node's name.
    #[arg(long)]
    node: String,
    /// Where the API and Raft listen.
    #[arg(long)]
    listen: SocketAddr,
    /// Where plain HTTP listens.
    #[arg(long)]
    http: SocketAddr,
    /// A ticket of the fleet to join; without one a fleet is founded.
    #[arg(long)]
    join: Option<String>,
}

/// The world of such a daemon: a real wire, clock and randomness, and nothing else.
struct Bare(TlsWire);

struct NoK3s;
struct NoOverlay;

impl k3s::Host for NoK3s {
    fn observe(
        &self,
        _: &k3s::Spec,
    ) -> impl Future<Output = Result<k3s::Observed, HostError>> + Send {
        ready(Err(HostError::Refused("there is no K3s here".into())))
    }

    fn perform(&self, _: &k3s::Action) -> impl Future<Output = Result<(), HostError>> + Send {
        ready(Err(HostError::Refused("there is no K3s here".into())))
    }
}

impl Mesh for NoOverlay {
    async fn apply(&mut self, _: Vec<sdwan::MeshSpec>) -> Result<(), String> {
        Ok(())
    }

    async fn kill_flows(&self, _: Vec<IpAddr>) -> Result<usize, String> {
        Ok(0)
    }

    fn metrics(&self) -> String {
        String::new()
    }
}

impl Env for Bare {
    type Wire = TlsWire;
    type Host = NoK3s;
    type Mesh = NoOverlay;

    fn wire(&self) -> TlsWire {
        self.0.clone()
    }

    fn host(&self) -> NoK3s {
        NoK3s
    }

    fn mesh(&self) -> NoOverlay {
        NoOverlay
    }

    fn wall(&self) -> UnixMillis {
        wall()
    }

    fn random(&self) -> [u8; 32] {
        let mut bytes = [0; 32];
        random(&mut bytes);
        bytes
    }

    fn addresses(&self) -> Vec<IpAddr> {
        Vec::new()
    }
}

/// Runs such a daemon until it is killed.
///
/// # Errors
/// When it cannot start, or something vital ended.
pub fn run(args: &NodeArgs) -> Result<u8, String> {
    let filter = tracing_subscriber::EnvFilter::new("info,openraft=warn,sled=warn");
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    let _ = log.with_ansi(false).try_init();
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    let runtime = runtime.enable_all().worker_threads(::node::THREADS).build();
    runtime.map_err(|e| format!("no threads: {e}"))?.block_on(serve(args))?;
    Ok(0)
}

async fn enter(dir: &Path, args: &NodeArgs) -> Result<Identity, String> {
    // A daemon that was killed goes on as who it is; its ticket is used up.
    if let Ok(identity) = Identity::load(dir)
        && identity.membership().is_ok()
    {
        return Ok(identity);
    }
    let name = args.node.parse().map_err(|e: raft_store::model::InvalidName| e.to_string())?;
    match &args.join {
        None => {
            let init = Init { name, ipv4_pool: None, voters: 3 };
            enter::init(dir, &init).await.map_err(|e| e.to_string())
        }
        Some(ticket) => {
            let ticket: JoinTicket = ticket.parse().map_err(|e| format!("--join: {e}"))?;
            let joined = enter::join(dir, &ticket, &name, None).await;
            joined.map(|j| j.identity).map_err(|e| e.to_string())
        }
    }
}

async fn serve(args: &NodeArgs) -> Result<(), String> {
    let dir = &args.dir;
    let identity = enter(dir, args).await?;
    let fleet = identity.membership().map_err(|e| e.to_string())?.fleet;
    let papers = daemon::papers(&identity).map_err(|e| e.to_string())?;
    let tls = papers.client().map_err(|e| e.to_string())?;
    let book = SharedBook::new(Book::load(&dir.join("whereabouts.json")));
    let env = Arc::new(Bare(TlsWire::new(PeerPool::new(tls), fleet)));
    let config = Config {
        listen: args.listen,
        http: args.http,
        advertise: vec![args.listen],
        ..Config::default()
    };
    let paths = Paths { state_dir: dir.clone(), socket: dir.join("sock") };
    daemon::run(env, book, identity, config, paths).await.map_err(|e| e.to_string())
}
