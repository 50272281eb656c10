//! The ports on a Linux host: clocks, randomness, interfaces, the TLS wire. Shell.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU32;
use std::path::Path;
use std::time::Duration;

use api::client::ApiError;
use api::pki::{Pki, X509};
use api::proto::{RedeemRequest, RedeemResponse};
use api::ticket::JoinTicket;
use api::tls::Papers;
use api::transport::{Lane, PeerError, PeerPool};
use ipnet::Ipv4Net;
use raft_store::disk::{Disks, Sled};
use raft_store::model::UnixMillis;
use raft_store::raft::{TransportError, kind};
use rand::TryRng as _;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, oneshot};
use uuid::Uuid;

use super::{Env, Files, Machine, Mesh, Message, Wire};
use crate::config::Config;
use crate::daemon::{DaemonError, Paths};
use crate::files;
use crate::listeners::{Listeners, listen, udp_holder};

/// Frames above this size travel apart from heartbeats.
const BULK: usize = 64 * 1024;

/// Returns the wall clock.
#[expect(clippy::disallowed_methods, reason = "this is the one place that asks for the time")]
pub fn wall() -> UnixMillis {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    UnixMillis(since.map_or(0, |d| u64::try_from(d.as_millis()).unwrap_or(u64::MAX)))
}

/// Fills `bytes` from the operating system's random source.
pub fn random(bytes: &mut [u8]) {
    rand::rngs::SysRng.try_fill_bytes(bytes).expect("the kernel has randomness once it has booted");
}

/// Returns the addresses at which this host is reached: those of interfaces that are up, but not loopback,
/// link-local, overlay or container addresses. IPv6 first.
pub fn addresses() -> Vec<IpAddr> {
    const OURS: [&str; 7] = ["lo", "wg-", "cni", "flannel", "veth", "docker", "kube-"];
    let Ok(all) = nix::ifaddrs::getifaddrs() else {
        return Vec::new();
    };
    let mut found: Vec<IpAddr> = all
        .filter(|i| i.flags.contains(nix::net::if_::InterfaceFlags::IFF_UP))
        .filter(|i| !OURS.iter().any(|p| i.interface_name.starts_with(p)))
        .filter_map(|i| {
            let address = i.address?;
            let v4 = address.as_sockaddr_in().map(|a| IpAddr::V4(a.ip()));
            v4.or_else(|| address.as_sockaddr_in6().map(|a| IpAddr::V6(a.ip())))
        })
        .filter(|ip| match ip {
            IpAddr::V4(v4) => !v4.is_link_local() && !v4.is_loopback(),
            IpAddr::V6(v6) => !v6.is_unicast_link_local() && !v6.is_loopback(),
        })
        .collect();
    found.sort_by_key(IpAddr::is_ipv4);
    found
}

/// Returns the IPv4 routes of this host, without the default route.
pub fn routes() -> Vec<Ipv4Net> {
    let text = std::fs::read_to_string("/proc/net/route").unwrap_or_default();
    let hex = |field: Option<&str>| u32::from_str_radix(field?, 16).ok().map(u32::from_be);
    let parse = |line: &str| {
        let mut fields = line.split_whitespace();
        let device = fields.next()?;
        let to = hex(fields.next())?;
        let mask = hex(fields.nth(5))?;
        let len = u8::try_from(mask.leading_ones()).ok()?;
        let ours = device.starts_with("wg-sdwan") || len == 0;
        (!ours).then(|| Ipv4Net::new(to.into(), len).ok())?
    };
    text.lines().skip(1).filter_map(parse).collect()
}

/// Waits for SIGTERM or SIGINT.
pub async fn told_to_end() {
    let (Ok(mut term), Ok(mut int)) =
        (signal(SignalKind::terminate()), signal(SignalKind::interrupt()))
    else {
        return std::future::pending().await;
    };
    tokio::select! {
        biased;
        _ = term.recv() => {}
        _ = int.recv() => {}
    }
}

/// The wire over mutual TLS.
#[derive(Clone)]
pub struct TlsWire {
    pool: PeerPool,
    fleet: Uuid,
}

impl TlsWire {
    /// Uses a pool of channels within a fleet.
    pub fn new(pool: PeerPool, fleet: Uuid) -> Self {
        Self { pool, fleet }
    }
}

/// Says what a failed call to another daemon means for Raft.
pub fn transport_error(e: PeerError) -> TransportError {
    match e {
        PeerError::Timeout(d) => TransportError::Timeout(d),
        PeerError::Unreachable(why) => TransportError::Unreachable(why),
        PeerError::Refused(why) => TransportError::Refused(why),
    }
}

impl Wire for TlsWire {
    async fn call(
        &self,
        to: Uuid,
        addresses: &[SocketAddr],
        message: Message,
        deadline: Duration,
    ) -> Result<Message, TransportError> {
        let bulk = message.0 == kind::SNAPSHOT || message.1.len() > BULK;
        let lane = if bulk { Lane::Bulk } else { Lane::Quick };
        self.pool.call(to, lane, addresses, message, deadline).await.map_err(transport_error)
    }

    async fn call_at(
        &self,
        address: SocketAddr,
        message: Message,
        deadline: Duration,
    ) -> Result<Message, TransportError> {
        self.pool.call_at(address, self.fleet, message, deadline).await.map_err(transport_error)
    }
}

/// The files of a Linux machine.
#[derive(Clone, Copy, Debug, Default)]
pub struct LinuxFiles;

impl Files for LinuxFiles {
    fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        std::fs::read(path)
    }

    fn replace(&self, path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
        files::replace(path, bytes, mode)
    }

    fn private_dir(&self, path: &Path) -> io::Result<()> {
        files::private_dir(path)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        files::remove(path)
    }
}

/// A Linux machine on which commands and daemons run.
pub trait Linux: Machine {
    /// The world of a member's daemon on it.
    type Env: Env<Wire = TlsWire>;

    /// Puts that world together.
    fn env(&self, wire: TlsWire, settings: LinuxSettings) -> Self::Env;
}

/// What a machine's configuration says to its ports.
#[derive(Clone, Debug)]
pub struct LinuxSettings {
    /// How K3s is run.
    pub k3s: k3s::LinuxConfig,
    /// How many threads carry one overlay, if not as many as suit the machine's cores.
    pub packet_threads: Option<NonZeroU32>,
}

/// The Linux machine that this program runs on.
#[derive(Clone, Copy, Debug, Default)]
pub struct LinuxMachine;

impl Machine for LinuxMachine {
    fn files(&self) -> &dyn Files {
        &LinuxFiles
    }

    fn disks(&self) -> &dyn Disks {
        &Sled
    }

    fn pki(&self) -> &dyn Pki {
        &X509
    }

    fn routes(&self) -> Vec<Ipv4Net> {
        routes()
    }

    fn wall(&self) -> UnixMillis {
        wall()
    }

    fn random(&self) -> [u8; 32] {
        let mut bytes = [0; 32];
        random(&mut bytes);
        bytes
    }

    async fn redeem(
        &self,
        ticket: &JoinTicket,
        request: RedeemRequest,
    ) -> Result<RedeemResponse, ApiError> {
        api::client::redeem(ticket, request).await
    }
}

impl Linux for LinuxMachine {
    type Env = LinuxEnv;

    fn env(&self, wire: TlsWire, settings: LinuxSettings) -> LinuxEnv {
        LinuxEnv::new(wire, settings)
    }
}

/// The Linux host as the daemon's world.
pub struct LinuxEnv {
    wire: TlsWire,
    settings: LinuxSettings,
}

impl LinuxEnv {
    /// Puts the ports together.
    pub fn new(wire: TlsWire, settings: LinuxSettings) -> Self {
        Self { wire, settings }
    }
}

impl Machine for LinuxEnv {
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

    async fn redeem(
        &self,
        ticket: &JoinTicket,
        request: RedeemRequest,
    ) -> Result<RedeemResponse, ApiError> {
        LinuxMachine.redeem(ticket, request).await
    }
}

impl Env for LinuxEnv {
    type Server = Listeners;
    type Wire = TlsWire;
    type Host = k3s::LinuxHost;
    type Mesh = LinuxMesh;
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
        self.wire.clone()
    }

    fn host(&self) -> k3s::LinuxHost {
        k3s::LinuxHost::new(self.settings.k3s.clone())
    }

    fn mesh(&self) -> LinuxMesh {
        let threads = self.settings.packet_threads.map(NonZeroU32::get);
        let overlay = threads.into_iter().fold(sdwan::Overlay::new(), sdwan::Overlay::with_threads);
        LinuxMesh { overlay, failure: None }
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
        addresses()
    }
}

/// The overlay's real devices.
pub struct LinuxMesh {
    overlay: sdwan::Overlay,
    /// The newest failure, and its words with who is in the way: looked up once, since that takes a look at every process.
    failure: Option<(String, String)>,
}

impl Mesh for LinuxMesh {
    async fn apply(&mut self, specs: Vec<sdwan::MeshSpec>) -> Result<(), String> {
        let Err(error) = self.overlay.apply(specs).await else {
            self.failure = None;
            return Ok(());
        };
        let plain = error.to_string();
        let known = self.failure.take().filter(|(same, _)| *same == plain);
        let (plain, words) = known.unwrap_or_else(|| (plain, in_words(&error)));
        self.failure = Some((plain, words.clone()));
        Err(words)
    }

    async fn kill_flows(&self, to: Vec<IpAddr>) -> Result<usize, String> {
        sdwan::kill_flows(to).await.map_err(|e| e.to_string())
    }

    async fn status(&self) -> Vec<sdwan::MeshStatus> {
        self.overlay.status().await
    }

    fn ping(&self, network: &str, peer: &str) -> Option<oneshot::Receiver<sdwan::RoundTrip>> {
        self.overlay.ping(network, peer)
    }

    fn capture(&self, network: &str, sink: mpsc::Sender<sdwan::Captured>) -> bool {
        self.overlay.capture(network, sink)
    }
}

/// An overlay's failure, with the process that is in the way where there is one.
fn in_words(error: &sdwan::ApplyError) -> String {
    let holder = match error {
        sdwan::ApplyError::Udp { port, source } if source.kind() == io::ErrorKind::AddrInUse => {
            udp_holder(*port).to_string()
        }
        _ => String::new(),
    };
    format!("{error}{holder}")
}
