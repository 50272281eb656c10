//! All overlays of this host: exactly those that the specs name. Shell.

use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZero;
use std::time::Duration;

use rtnetlink::Handle;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, timeout_at};

use crate::error::ApplyError;
use crate::io::tun::{self, Tun};
use crate::io::udp::Udp;
use crate::io::{Captured, Offloads, Packets, RoundTrip, Status};
use crate::link::netlink;
use crate::spec::{DEVICE_PREFIX, MeshSpec};
use crate::tunnel::{Drops, PeerStatus, Shard};

/// While there is no spec at all, devices of a former daemon are left for this long: the state may be late.
const PATIENCE: Duration = Duration::from_secs(10);

/// How long packet threads may take to say how they stand.
const STATUS_MAX: Duration = Duration::from_millis(200);

/// From so many cores on an overlay is carried by so many threads; by one below.
const THREADS: [(usize, u32); 2] = [(8, 4), (3, 2)];

/// The overlays of this host. One task owns it.
#[derive(Debug)]
pub struct Overlay {
    threads: u32,
    meshes: BTreeMap<String, Running>,
    /// Devices that were named by a spec; they go as soon as they are not.
    known: BTreeSet<String>,
    empty_since: Option<Instant>,
    rekey: Option<Duration>,
    netlink: Option<(Handle, tokio::task::JoinHandle<()>)>,
}

#[derive(Debug)]
struct Running {
    spec: MeshSpec,
    packets: Packets,
}

/// How one overlay stands.
#[derive(Clone, Debug)]
pub struct MeshStatus {
    /// The network's name.
    pub network: String,
    /// The device.
    pub interface: String,
    /// Its peers.
    pub peers: Vec<PeerStatus>,
    /// What was dropped, by reason.
    pub drops: Drops,
    /// What changes hands with the kernel in one piece.
    pub offloads: Offloads,
}

impl Overlay {
    /// Makes the handle; nothing is touched until specs come.
    pub fn new() -> Self {
        Self {
            threads: threads(std::thread::available_parallelism().map_or(1, NonZero::get)),
            meshes: BTreeMap::new(),
            known: BTreeSet::new(),
            empty_since: None,
            rekey: None,
            netlink: None,
        }
    }

    /// Renews keys after this long already.
    #[must_use]
    pub fn with_rekey(mut self, after: Duration) -> Self {
        self.rekey = Some(after);
        self
    }

    /// Lets each overlay be carried by so many threads, rounded down to a power of two, instead of by as many as suit the
    /// machine's cores.
    #[must_use]
    pub fn with_threads(mut self, threads: u32) -> Self {
        self.threads = threads;
        self
    }

    /// Makes exactly these overlays exist, with their addresses and routes. Idempotent.
    ///
    /// # Errors
    /// The first thing that could not be done; the rest was still tried, and a repetition tries again.
    pub async fn apply(&mut self, specs: Vec<MeshSpec>) -> Result<(), ApplyError> {
        let mut first = self.remove_unnamed(&specs);
        let mut named: BTreeMap<String, String> = BTreeMap::new();
        for spec in specs {
            let other = named.get(&spec.interface);
            let done = match other.filter(|other| **other != spec.network) {
                Some(other) => Err(ApplyError::Collision(
                    other.clone(),
                    spec.network.clone(),
                    spec.interface.clone(),
                )),
                None => {
                    named.insert(spec.interface.clone(), spec.network.clone());
                    self.known.insert(spec.interface.clone());
                    self.apply_one(spec).await
                }
            };
            first = first.and(done);
        }
        first
    }

    /// Removes devices that no spec names, also such as a former daemon made; what fails is tried again next time.
    fn remove_unnamed(&mut self, specs: &[MeshSpec]) -> Result<(), ApplyError> {
        let certain = if specs.is_empty() {
            self.empty_since.get_or_insert_with(Instant::now).elapsed() >= PATIENCE
        } else {
            self.empty_since = None;
            true
        };
        let named = |name: &String| specs.iter().any(|s| s.interface == *name);
        self.meshes.retain(|name, _| named(name));
        let mut first = Ok(());
        for name in devices().iter().filter(|name| !named(name)) {
            if certain || self.known.contains(name) {
                tracing::info!(device = %name, "no network has this device any more: it is removed");
                first = first.and(tun::remove(name));
            }
        }
        first
    }

    async fn apply_one(&mut self, spec: MeshSpec) -> Result<(), ApplyError> {
        let name = spec.interface.clone();
        let handle = self.handle(&name)?;
        let died = self.meshes.get(&name).is_some_and(|r| r.packets.ended());
        if died {
            tracing::error!(device = %name, "the packet thread had died: another one is started");
        }
        let restart = died
            || self.meshes.get(&name).is_none_or(|r| r.spec.listen_port != spec.listen_port)
            || !devices().contains(&name);
        if restart {
            self.meshes.remove(&name);
            let tuns = Tun::open_all(&name, Shard::all(self.threads).len())?;
            let udps = Udp::bind_all(spec.listen_port, tuns.len())?;
            let queues = tuns.into_iter().zip(udps).collect();
            let packets = Packets::start(&name, queues, self.rekey)
                .map_err(|source| ApplyError::Tun { name: name.clone(), source })?;
            let running = Running { spec: spec.clone(), packets };
            if !running.packets.set_spec(&spec) {
                return Err(ApplyError::Ended(name));
            }
            self.meshes.insert(name.clone(), running);
        }
        if let Some(running) = self.meshes.get_mut(&name)
            && !same(&running.spec, &spec)
        {
            if !running.packets.set_spec(&spec) {
                self.meshes.remove(&name);
                return Err(ApplyError::Ended(name));
            }
            running.spec = spec.clone();
        }
        netlink::apply(&handle, &spec).await
    }

    fn handle(&mut self, name: &str) -> Result<Handle, ApplyError> {
        if let Some((handle, task)) = &self.netlink
            && !task.is_finished()
        {
            return Ok(handle.clone());
        }
        let (connection, handle, _) =
            rtnetlink::new_connection().map_err(|e| ApplyError::Link {
                name: name.to_owned(),
                what: "opening netlink".into(),
                why: e.to_string(),
            })?;
        #[expect(
            clippy::disallowed_methods,
            reason = "the connection's task is owned and ended by this struct"
        )]
        let task = tokio::spawn(connection);
        self.netlink = Some((handle.clone(), task));
        Ok(handle)
    }

    fn network(&self, network: &str) -> Option<&Running> {
        self.meshes.values().find(|r| r.spec.network == network)
    }

    /// Takes a round trip through the tunnel to a peer; nothing if there is none of that name. The answer is given up where the
    /// peer has no address that could be asked.
    pub fn ping(&self, network: &str, peer: &str) -> Option<oneshot::Receiver<RoundTrip>> {
        let running = self.network(network)?;
        let peer = running.spec.peers.iter().find(|p| p.name == peer)?;
        Some(running.packets.ping(peer.public_key))
    }

    /// Copies every packet of a network to `sink` until that is closed; false if there is no such network here.
    pub fn capture(&self, network: &str, sink: mpsc::Sender<Captured>) -> bool {
        self.network(network).map(|running| running.packets.capture(&sink)).is_some()
    }

    /// Returns how the overlays stand; one whose packet thread does not answer in time is left out.
    pub async fn status(&self) -> Vec<MeshStatus> {
        let asked: Vec<_> = self.meshes.values().map(|r| (&r.spec, r.packets.status())).collect();
        let until = Instant::now() + STATUS_MAX;
        let mut all = Vec::with_capacity(asked.len());
        'meshes: for (spec, answers) in asked {
            let mut threads = Vec::with_capacity(answers.len());
            for answer in answers {
                let Ok(Ok(status)) = timeout_at(until, answer).await else { continue 'meshes };
                threads.push(status);
            }
            let Some(Status { peers, drops, offloads }) = threads.into_iter().reduce(Status::and)
            else {
                continue;
            };
            let (network, interface) = (spec.network.clone(), spec.interface.clone());
            all.push(MeshStatus { network, interface, peers, drops, offloads });
        }
        all
    }
}

impl Default for Overlay {
    fn default() -> Self {
        Self::new()
    }
}

/// How many threads carry an overlay where there are so many cores. K3s and everything else of the machine has the others.
fn threads(cores: usize) -> u32 {
    THREADS.iter().find(|(least, _)| cores >= *least).map_or(1, |(_, threads)| *threads)
}

impl Drop for Overlay {
    fn drop(&mut self) {
        if let Some((_, task)) = &self.netlink {
            task.abort();
        }
    }
}

/// Tells whether the packet thread would notice a difference.
fn same(a: &MeshSpec, b: &MeshSpec) -> bool {
    let way = a.mtu == b.mtu && a.addresses == b.addresses;
    way && a.peers == b.peers && a.private_key == b.private_key && a.handovers == b.handovers
}

/// The overlay devices of this network namespace, whoever made them.
fn devices() -> BTreeSet<String> {
    let entries = std::fs::read_dir("/sys/class/net").into_iter().flatten().flatten();
    let names = entries.map(|e| e.file_name().to_string_lossy().into_owned());
    names.filter(|name| name.starts_with(DEVICE_PREFIX)).collect()
}
