//! A daemon without K3s and overlay, on loopback: what of Skein is compared with etcd. Shell.

use std::future::ready;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use api::client::ApiError;
use api::pki::Pki;
use api::proto::{RedeemRequest, RedeemResponse};
use api::ticket::JoinTicket;
use api::tls::Papers;
use api::transport::PeerPool;
use clap::Args;
use ipnet::Ipv4Net;
use k3s::HostError;
use node::config::Config;
use node::daemon::{self, DaemonError, Paths};
use node::enter::{self, Init};
use node::env::linux::{LinuxMachine, TlsWire, told_to_end};
use node::env::{Env, Files, Machine, Mesh};
use node::identity::Identity;
use node::listeners::{Listeners, listen};
use node::transport::SharedBook;
use node::whereabouts::Book;
use raft_store::disk::Disks;
use raft_store::model::UnixMillis;
use raft_store::rt::Scope;
use tokio::sync::{mpsc, oneshot};

/// `skein-bench consensus-node`.
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

    fn durable_write(&self) -> impl Future<Output = Result<Duration, HostError>> + Send {
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

    async fn status(&self) -> Vec<sdwan::MeshStatus> {
        Vec::new()
    }

    fn ping(&self, _: &str, _: &str) -> Option<oneshot::Receiver<sdwan::RoundTrip>> {
        None
    }

    fn capture(&self, _: &str, _: mpsc::Sender<sdwan::Captured>) -> bool {
        false
    }
}

impl Machine for Bare {
    fn files(&self) -> &dyn Files {
        LinuxMachine.files()
    }

    fn disks(&self) -> &dyn Disks {
        LinuxMachine.disks()
    }

    fn pki(&self) -> &dyn Pki {
        LinuxMachine.pki()
    }

    fn routes(&self) -> Vec<Ipv4Net> {
        LinuxMachine.routes()
    }

    fn wall(&self) -> UnixMillis {
        LinuxMachine.wall()
    }

    fn random(&self) -> [u8; 32] {
        LinuxMachine.random()
    }

    fn redeem(
        &self,
        ticket: &JoinTicket,
        request: RedeemRequest,
    ) -> impl Future<Output = Result<RedeemResponse, ApiError>> + Send {
        LinuxMachine.redeem(ticket, request)
    }
}

impl Env for Bare {
    type Server = Listeners;
    type Wire = TlsWire;
    type Host = NoK3s;
    type Mesh = NoOverlay;
    type Kube = k3s::Kube;
    type Etcd = k3s::Etcd;

    async fn listen(
        &self,
        config: &Config,
        paths: &Paths,
        papers: &Papers,
    ) -> Result<Listeners, DaemonError> {
        listen(config, paths, papers).await
    }

    async fn told_to_end(&self) {
        told_to_end().await;
    }

    fn make_cluster_ca(&self, cluster: &str, now_s: i64) -> Result<k3s::CaBundle, k3s::CaError> {
        k3s::make_cluster_ca(cluster, now_s)
    }

    fn has_etcd_data(&self, data_dir: &Path) -> bool {
        k3s::Etcd::has_data(data_dir)
    }

    fn wire(&self) -> TlsWire {
        self.0.clone()
    }

    fn host(&self) -> NoK3s {
        NoK3s
    }

    fn mesh(&self) -> NoOverlay {
        NoOverlay
    }

    fn kube(
        &self,
        kubeconfig: &k3s::Secret,
        endpoint: Option<&str>,
    ) -> Result<k3s::Kube, k3s::KubeError> {
        k3s::Kube::new(kubeconfig, endpoint)
    }

    fn etcd(&self, data_dir: &Path) -> Result<k3s::Etcd, k3s::EtcdError> {
        k3s::Etcd::open(data_dir)
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
    if let Ok(identity) = Identity::load(LinuxMachine.files(), dir)
        && identity.membership().is_ok()
    {
        return Ok(identity);
    }
    let name = args.node.parse().map_err(|e: raft_store::model::InvalidName| e.to_string())?;
    match &args.join {
        None => {
            let init = Init { name, ipv4_pool: None, voters: 3 };
            enter::init(&LinuxMachine, dir, &init).await.map_err(|e| e.to_string())
        }
        Some(ticket) => {
            let ticket: JoinTicket = ticket.parse().map_err(|e| format!("--join: {e}"))?;
            let joined = enter::join(&LinuxMachine, dir, &ticket, &name, None).await;
            joined.map(|j| j.identity).map_err(|e| e.to_string())
        }
    }
}

async fn serve(args: &NodeArgs) -> Result<(), String> {
    let dir = &args.dir;
    let identity = enter(dir, args).await?;
    let fleet = identity.membership().map_err(|e| e.to_string())?.fleet;
    let papers = daemon::papers(LinuxMachine.files(), &identity).map_err(|e| e.to_string())?;
    let tls = papers.client().map_err(|e| e.to_string())?;
    let book = SharedBook::new(Book::load(LinuxMachine.files(), &dir.join("whereabouts.json")));
    let env = Arc::new(Bare(TlsWire::new(PeerPool::new(tls), fleet)));
    let config = Config {
        listen: args.listen,
        http: args.http,
        advertise: vec![args.listen],
        ..Config::default()
    };
    let paths = Paths { state_dir: dir.clone(), socket: dir.join("sock") };
    daemon::run(&Scope::new(), env, book, identity, config, paths).await.map_err(|e| e.to_string())
}
