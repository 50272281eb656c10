//! A machine's overlay devices, the tunnels behind them, and its TCP. Shell.
//!
//! Packets flow only while a daemon runs at both ends; the devices with their addresses outlive it. The tunnel is the
//! product's own, over a stand-in for WireGuard's sessions.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use ipnet::IpNet;
use sdwan::tunnel::{Output, Train};
use sdwan::{MeshSpec, PrivateKey, PublicKey, Tunnel};
use tokio::sync::{mpsc, oneshot};
use tokio::time::sleep;

use super::life::Life;
use super::session::PlainSession;
use super::stack::Stack;
use super::{Inner, Machine, World, lock};
use crate::chaos::flaw::Flaw;
use crate::chaos::k3s::Reach;

/// How often the tunnels' timers are looked at.
const TICK: Duration = Duration::from_millis(250);

/// The overlay devices of a machine.
#[derive(Default)]
pub struct Devices {
    state: Mutex<State>,
    /// Its TCP.
    pub stack: Stack,
}

#[derive(Default)]
struct State {
    /// What the devices were made from last.
    specs: Arc<Vec<MeshSpec>>,
    /// Whether a daemon moves packets through them.
    running: bool,
    tunnels: BTreeMap<String, Tunnel<PlainSession>>,
    /// How many tunnels there have been: sessions are numbered on, so that an old one is told from a new one.
    made: u32,
    /// Who waits for a round trip, over which device to whom.
    asked: Vec<(String, PublicKey, oneshot::Sender<sdwan::RoundTrip>)>,
    /// The machine's own key, once it is known; asked for at each look, and dear to compute.
    key: Option<(PrivateKey, PublicKey)>,
}

impl State {
    fn key(&self) -> Option<PublicKey> {
        self.key.as_ref().filter(|_| self.running).map(|(_, public)| *public)
    }

    fn learn_key(&mut self) {
        let Some(spec) = self.specs.first() else { return };
        if self.key.as_ref().is_none_or(|(private, _)| *private != spec.private_key) {
            self.key = Some((spec.private_key.clone(), spec.private_key.public()));
        }
    }

    /// Tells how round trips ended that were asked for.
    fn answer(&mut self) {
        for (interface, key, waiting) in std::mem::take(&mut self.asked) {
            let Some(tunnel) = self.tunnels.get_mut(&interface) else { continue };
            match tunnel.take_answer(&key) {
                // Who asked may have given up.
                Some(took) => {
                    let _ = waiting.send(took);
                }
                None => self.asked.push((interface, key, waiting)),
            }
        }
    }

    fn set(&mut self, specs: Vec<MeshSpec>, packets: bool) {
        self.specs = Arc::new(specs);
        self.learn_key();
        if !packets {
            return;
        }
        let Self { specs, tunnels, made, .. } = self;
        tunnels.retain(|name, _| specs.iter().any(|s| s.interface == *name));
        for spec in specs.iter() {
            let tunnel = tunnels.entry(spec.interface.clone()).or_insert_with(|| {
                *made += 1;
                Tunnel::new(*made * 10_000)
            });
            tunnel.set_spec(spec, now());
        }
    }
}

fn now() -> std::time::Instant {
    tokio::time::Instant::now().into_std()
}

/// Something that a tunnel produced.
enum Out {
    /// Here, for this host's own stack.
    Up(Vec<u8>),
    /// From this port, to the wire.
    Wire(u16, SocketAddr, Vec<u8>),
}

impl Devices {
    /// Returns what the devices were made from last.
    pub fn specs(&self) -> Arc<Vec<MeshSpec>> {
        lock(&self.state).specs.clone()
    }

    /// Looks at what the devices were made from, if packets flow through them.
    pub fn look<T>(&self, look: impl FnOnce(&[MeshSpec]) -> T) -> Option<T> {
        let state = lock(&self.state);
        state.running.then(|| look(&state.specs))
    }

    /// Tells whether a device has an address.
    pub fn has(&self, ip: IpAddr) -> bool {
        let state = lock(&self.state);
        state.specs.iter().any(|s| s.held.contains(&ip) || s.addresses.contains(&ip))
    }

    /// Returns this machine's own address in the network of another one.
    pub fn source_for(&self, to: IpAddr) -> Option<IpAddr> {
        let state = lock(&self.state);
        let spec = state.specs.iter().find(|s| s.prefixes.iter().any(|p| p.contains(&to)))?;
        spec.addresses.iter().find(|ip| ip.is_ipv4() == to.is_ipv4()).copied()
    }

    pub(super) fn daemon_died(&self) {
        let mut state = lock(&self.state);
        state.running = false;
        state.tunnels.clear();
    }

    pub(super) fn power_off(&self) {
        let mut state = lock(&self.state);
        *state = State { made: state.made, ..State::default() };
        drop(state);
        self.stack.clear();
    }

    /// Does something with the tunnels, and returns what they produced.
    fn drive(&self, act: impl FnOnce(&mut State)) -> Vec<Out> {
        let mut state = lock(&self.state);
        act(&mut state);
        let State { specs, tunnels, .. } = &mut *state;
        let mut outs = Vec::new();
        for spec in specs.iter() {
            let Some(tunnel) = tunnels.get_mut(&spec.interface) else { continue };
            let port = spec.listen_port;
            tunnel.take_output(|output| match output {
                // Devices here take one packet at a time, so each comes in one part.
                Output::Tun(_, parts) => outs.push(Out::Up(parts.collect::<Vec<_>>().concat())),
                Output::Wire(train) => {
                    let to = train.path.remote;
                    outs.extend(train.datagrams().map(|d| Out::Wire(port, to, d.to_vec())));
                }
            });
        }
        outs
    }
}

/// The daemon's handle on them.
pub struct SimMesh {
    world: World,
    machine: Arc<Machine>,
    /// Only a flawed world remembers.
    ever_held: BTreeMap<String, Vec<IpAddr>>,
    first_owners: BTreeMap<IpNet, PublicKey>,
}

impl SimMesh {
    /// Does wrong with the specs what a flawed world does wrong.
    fn flawed(&mut self, mut specs: Vec<MeshSpec>) -> Vec<MeshSpec> {
        match self.world.flaw() {
            Some(Flaw::ClingingHolder) => {
                for spec in &mut specs {
                    let ever = self.ever_held.entry(spec.interface.clone()).or_default();
                    ever.extend(
                        spec.held
                            .iter()
                            .filter(|ip| !ever.contains(ip))
                            .copied()
                            .collect::<Vec<_>>(),
                    );
                    spec.held.clone_from(ever);
                }
            }
            Some(Flaw::DeafReceiver) => {
                for peer in specs.iter_mut().flat_map(|s| Arc::make_mut(&mut s.peers)) {
                    let key = peer.public_key;
                    peer.allowed_ips
                        .retain(|net| *self.first_owners.entry(*net).or_insert(key) == key);
                    let owned = self.first_owners.iter().filter(|(_, owner)| **owner == key);
                    for (net, _) in owned {
                        if !peer.allowed_ips.contains(net) {
                            peer.allowed_ips.push(*net);
                        }
                    }
                }
            }
            _ => {}
        }
        specs
    }

    /// Makes the handle of a life, whose tasks keep the tunnels' timers.
    pub fn new(world: World, machine: Arc<Machine>, life: &Arc<Life>) -> Self {
        if world.has_packets() {
            let (ticking, there) = (world.clone(), machine.clone());
            life.scope.spawn("packets", async move {
                loop {
                    sleep(TICK).await;
                    let outs = there.devices.drive(|state| {
                        state.tunnels.values_mut().for_each(|t| t.handle_timeout(now()));
                        state.answer();
                    });
                    ticking.send(there.number, outs);
                }
            });
        }
        Self { world, machine, ever_held: BTreeMap::new(), first_owners: BTreeMap::new() }
    }
}

impl node::env::Mesh for SimMesh {
    async fn apply(&mut self, specs: Vec<MeshSpec>) -> Result<(), String> {
        let specs = self.flawed(specs);
        let packets = self.world.has_packets();
        let number = self.machine.number;
        let mut held = None;
        let outs = self.machine.devices.drive(|state| {
            state.running = true;
            if *state.specs != specs || (packets && state.tunnels.is_empty()) {
                let all = specs.iter().flat_map(|s| s.held.iter().map(ToString::to_string));
                held = Some(all.collect::<Vec<String>>().join(" "));
                state.set(specs, packets);
            }
        });
        if let Some(held) = held {
            self.world.recorder().note("mesh", &[number as u64], held.as_bytes());
        }
        self.world.send(number, outs);
        Ok(())
    }

    async fn kill_flows(&self, to: Vec<IpAddr>) -> Result<usize, String> {
        Ok(self.machine.devices.stack.kill_flows(&to))
    }

    async fn status(&self) -> Vec<sdwan::MeshStatus> {
        let state = lock(&self.machine.devices.state);
        let of = |spec: &MeshSpec| {
            let tunnel = state.tunnels.get(&spec.interface)?;
            Some(sdwan::MeshStatus {
                network: spec.network.clone(),
                interface: spec.interface.clone(),
                peers: tunnel.peers(),
                drops: tunnel.drops(),
                offloads: sdwan::Offloads::default(),
            })
        };
        state.specs.iter().filter_map(of).collect()
    }

    fn ping(&self, network: &str, peer: &str) -> Option<oneshot::Receiver<sdwan::RoundTrip>> {
        let mut state = lock(&self.machine.devices.state);
        let spec = state.specs.iter().find(|s| s.network == network)?;
        let key = spec.peers.iter().find(|p| p.name == peer)?.public_key;
        let interface = spec.interface.clone();
        let (tx, rx) = oneshot::channel();
        let tunnel = state.tunnels.get_mut(&interface)?;
        if tunnel.ask(&key, now()) {
            state.asked.push((interface, key, tx));
        }
        Some(rx)
    }

    /// Nobody looks into packets here: what arrives is judged where it arrives.
    fn capture(&self, _: &str, _: mpsc::Sender<sdwan::Captured>) -> bool {
        false
    }
}

impl World {
    /// Hands a packet of a machine's own stack to the device that leads to its destination.
    pub(super) fn transmit(&self, number: usize, packet: &[u8]) {
        let Some(machine) = self.machine(number) else { return };
        let Some(at) = sdwan::packet::addresses(packet) else { return };
        if machine.devices.has(at.destination) {
            self.receive(number, packet);
            return;
        }
        let outs = machine.devices.drive(|state| {
            let leads = |s: &&MeshSpec| s.prefixes.iter().any(|p| p.contains(&at.destination));
            let name = state.specs.iter().find(leads).map(|s| s.interface.clone());
            if let Some(tunnel) = name.and_then(|name| state.tunnels.get_mut(&name)) {
                tunnel.handle_tun(packet.to_vec().as_mut_slice(), now());
            }
        });
        self.send(number, outs);
    }

    /// Sends what tunnels of a machine produced.
    fn send(&self, from: usize, outs: Vec<Out>) {
        for out in outs {
            match out {
                Out::Up(packet) => self.receive(from, &packet),
                Out::Wire(port, to, bytes) => self.datagram(from, port, to, bytes),
            }
        }
    }

    fn datagram(&self, from: usize, port: u16, to: SocketAddr, bytes: Vec<u8>) {
        let Some(there) = self.net().owner(to.ip()) else { return };
        let own = self.net().addresses(from);
        let Some(ip) = own.into_iter().find(|ip| ip.is_ipv4() == to.is_ipv4()) else { return };
        self.recorder().note("udp", &[from as u64, there as u64], &bytes);
        let source = SocketAddr::new(ip, port);
        for arrival in self.net().fate(from, there, self.now_us()) {
            let (world, bytes) = (self.clone(), bytes.clone());
            self.scope().spawn("datagram", async move {
                sleep(arrival).await;
                world.arrived(there, source, to.port(), &bytes);
            });
        }
    }

    fn arrived(&self, number: usize, from: SocketAddr, port: u16, bytes: &[u8]) {
        let Some(machine) = self.machine(number).filter(|m| m.is_on() && !m.is_paused()) else {
            return;
        };
        if self.flaw() == Some(Flaw::OpenTunnel)
            && let Some(packet) = PlainSession::peek(bytes)
        {
            self.receive(number, packet);
        }
        let outs = machine.devices.drive(|state| {
            let mine = state.specs.iter().find(|s| s.listen_port == port);
            let name = mine.map(|s| s.interface.clone());
            if let Some(tunnel) = name.and_then(|name| state.tunnels.get_mut(&name)) {
                tunnel.handle_udp(Train::one(from, bytes), now());
            }
        });
        self.send(number, outs);
    }
}

/// Who answers where, for K3s.
pub(super) struct Reaching(pub(super) Weak<Inner>);

impl World {
    /// Returns the machine that answers at an overlay address, as another one sees it now.
    pub fn answers(&self, from: usize, to: IpAddr) -> Option<usize> {
        let asking = self.machine(from)?;
        if asking.devices.has(to) {
            return Some(from);
        }
        let key = asking.devices.look(|specs| {
            let peers = specs.iter().flat_map(|s| s.peers.iter());
            let mut peers = peers.filter(|p| p.allowed_ips.iter().any(|net| net.contains(&to)));
            peers.next().map(|p| p.public_key)
        })??;
        let owns = |m: &&Arc<Machine>| lock(&m.devices.state).key() == Some(key);
        let other = self.machines().iter().find(owns)?;
        let there = other.devices.has(to) && self.connected(from, other.number);
        there.then_some(other.number)
    }

    /// Tells whether packets of the overlay get from one machine to another and back.
    pub fn connected(&self, from: usize, to: usize) -> bool {
        if from == to {
            return true;
        }
        let moves = |n: usize| {
            self.machine(n)
                .is_some_and(|m| m.is_on() && !m.is_paused() && m.devices.look(|_| ()).is_some())
        };
        moves(from) && moves(to) && self.net().is_open(from, to) && self.net().is_open(to, from)
    }
}

impl Reach for Reaching {
    fn answers(&self, from: usize, to: IpAddr) -> Option<usize> {
        World(self.0.upgrade()?).answers(from, to)
    }

    fn connected(&self, from: usize, to: usize) -> bool {
        self.0.upgrade().is_some_and(|inner| World(inner).connected(from, to))
    }
}
