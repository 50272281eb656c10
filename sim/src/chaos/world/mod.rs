//! The simulated world: machines on a network, each with a drive, a clock and, most of the time, a daemon. Shell.

pub mod client;
pub mod disk;
pub mod env;
pub mod files;
pub mod host;
pub mod life;
pub mod mesh;
pub mod net;
pub mod pki;
pub mod session;
pub mod stack;
pub mod tamper;
pub mod tcp;
pub mod wire;

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use raft_store::model::UnixMillis;
use raft_store::rt::Scope;

use crate::chaos::draw::Draw;
use crate::chaos::flaw::Flaw;
use crate::chaos::judge::Judge;
use crate::chaos::k3s::Kubernetes;
use crate::chaos::trace::{Recorder, Trace};
use disk::{Drive, Mode};
use files::SimFiles;
use life::Life;
use net::Net;
use pki::StandInPki;

/// The wall clock's reading when a run begins: 2027-01-01.
const DAWN_MS: u64 = 1_798_761_600_000;

/// Where machines stand, and how far apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shape {
    /// The site of each machine.
    pub sites: Vec<usize>,
    /// One way between sites, in microseconds.
    pub between_us: u64,
    /// Whether packets flow through the overlay; without them a fleet of a thousand is simulated, too.
    pub packets: bool,
}

thread_local! {
    /// When the world of this thread began.
    static DAWN: std::cell::Cell<Option<std::time::Instant>> = const { std::cell::Cell::new(None) };
}

/// A time stamp for handshakes that grows over restarts, with a number for those of one moment.
fn stamp(now: std::time::Instant, number: u64) -> u64 {
    let dawn = DAWN.get().unwrap_or(now);
    let us = now.saturating_duration_since(dawn).as_micros();
    u64::try_from(us).unwrap_or(u64::MAX).saturating_mul(16).saturating_add(number % 16) + 1
}

/// The world. Clones share it.
#[derive(Clone)]
pub struct World(Arc<Inner>);

struct Inner {
    seed: u64,
    flaw: Option<Flaw>,
    recorder: Recorder,
    net: Net,
    machines: Vec<Arc<Machine>>,
    kubernetes: Kubernetes,
    /// Tasks of the world itself: packets under way, people at keyboards.
    scope: Scope,
    packets: bool,
    judge: Judge,
    /// The newest report of each machine; only a flawed world keeps them.
    reports: Mutex<BTreeMap<usize, Bytes>>,
    exchanges: AtomicU64,
}

/// One machine.
pub struct Machine {
    /// Its number.
    pub number: usize,
    /// Its drive.
    pub drive: Arc<Drive>,
    /// Its small files.
    pub files: Arc<SimFiles>,
    /// Its overlay devices, which outlive the daemon.
    pub devices: mesh::Devices,
    pki: StandInPki,
    random: Mutex<Draw>,
    /// How far its wall clock is ahead, in milliseconds.
    ahead_ms: AtomicI64,
    /// How much its clocks run too fast, in parts per million.
    rate_ppm: AtomicI64,
    lives: Mutex<Lives>,
}

/// The daemons that a machine has had.
#[derive(Default)]
struct Lives {
    count: u64,
    now: Option<Arc<Life>>,
    powered_off: bool,
    paused: bool,
    /// The daemon was told to end.
    ending: bool,
    /// It is to be started once it has ended: systemd, too, lets a start wait for the stop before it.
    again: bool,
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Machine {
    fn new(number: usize, seed: u64, recorder: &Recorder) -> Self {
        let place = [number as u64];
        let drive = Arc::new(Drive::new(number, seed, recorder.clone()));
        Self {
            number,
            files: Arc::new(SimFiles::new(drive.clone())),
            drive,
            devices: mesh::Devices::default(),
            pki: StandInPki::new(Draw::new(seed, "pki", &place)),
            random: Mutex::new(Draw::new(seed, "random", &place)),
            ahead_ms: AtomicI64::new(0),
            rate_ppm: AtomicI64::new(0),
            lives: Mutex::default(),
        }
    }

    /// Returns the daemon that runs here now.
    pub fn life(&self) -> Option<Arc<Life>> {
        lock(&self.lives).now.clone()
    }

    /// Tells whether the machine has power.
    pub fn is_on(&self) -> bool {
        !lock(&self.lives).powered_off
    }

    /// Tells whether its daemon is paused.
    pub fn is_paused(&self) -> bool {
        lock(&self.lives).paused
    }

    fn random(&self) -> [u8; 32] {
        lock(&self.random).bytes()
    }
}

impl World {
    /// Makes a world without daemons.
    pub fn new(
        seed: u64,
        shape: &Shape,
        flaw: Option<Flaw>,
        trace: Arc<Trace>,
        judge: Judge,
    ) -> Self {
        let recorder = Recorder::new(trace);
        DAWN.set(Some(tokio::time::Instant::now().into_std()));
        let net = Net::new(seed, shape.sites.clone(), shape.between_us);
        let machines = 0..shape.sites.len();
        let machines: Vec<_> =
            machines.map(|n| Arc::new(Machine::new(n, seed, &recorder))).collect();
        for machine in &machines {
            net.give(address(shape.sites[machine.number], machine.number), machine.number);
            machine.drive.set(|mode| *mode = Mode::flawed(flaw));
        }
        let scope = Scope::seeded(Draw::new(seed, "world", &[]).bytes());
        Self(Arc::new_cyclic(|weak| Inner {
            seed,
            flaw,
            recorder,
            net,
            machines,
            kubernetes: Kubernetes::new(Arc::new(mesh::Reaching(weak.clone())), seed),
            scope,
            packets: shape.packets,
            reports: Mutex::default(),
            judge,
            exchanges: AtomicU64::new(0),
        }))
    }

    /// Returns the seed.
    pub fn seed(&self) -> u64 {
        self.0.seed
    }

    /// Returns what is wrong with it on purpose.
    pub fn flaw(&self) -> Option<Flaw> {
        self.0.flaw
    }

    /// Returns what takes in its steps.
    pub fn recorder(&self) -> &Recorder {
        &self.0.recorder
    }

    /// Returns its network.
    pub fn net(&self) -> &Net {
        &self.0.net
    }

    /// Returns its machines.
    pub fn machines(&self) -> &[Arc<Machine>] {
        &self.0.machines
    }

    /// Returns a machine.
    pub fn machine(&self, number: usize) -> Option<&Arc<Machine>> {
        self.0.machines.get(number)
    }

    /// Returns its Kubernetes clusters.
    pub fn kubernetes(&self) -> &Kubernetes {
        &self.0.kubernetes
    }

    /// Returns the scope of what belongs to no machine.
    pub fn scope(&self) -> &Scope {
        &self.0.scope
    }

    /// Returns how much virtual time has passed, in microseconds.
    pub fn now_us(&self) -> u64 {
        self.0.recorder.now_us()
    }

    fn has_packets(&self) -> bool {
        self.0.packets
    }

    fn next_exchange(&self) -> u64 {
        self.0.exchanges.fetch_add(1, Ordering::Relaxed)
    }

    /// Returns what a machine's wall clock shows.
    pub fn wall(&self, machine: &Machine) -> UnixMillis {
        let true_ms = i64::try_from(self.now_us() / 1_000).unwrap_or(i64::MAX);
        let ahead = machine.ahead_ms.load(Ordering::Relaxed);
        let drift = true_ms.saturating_mul(machine.rate_ppm.load(Ordering::Relaxed)) / 1_000_000;
        let shown = true_ms.saturating_add(ahead).saturating_add(drift);
        UnixMillis(DAWN_MS.saturating_add_signed(shown))
    }

    /// Sets a machine's wall clock ahead, or back if negative.
    pub fn jump(&self, machine: usize, ms: i64) {
        if let Some(machine) = self.machine(machine) {
            machine.ahead_ms.fetch_add(ms, Ordering::Relaxed);
        }
    }

    /// Lets a machine's clocks run too fast by so many parts per million.
    pub fn set_rate(&self, machine: usize, ppm: i32) {
        if let Some(machine) = self.machine(machine) {
            machine.rate_ppm.store(i64::from(ppm), Ordering::Relaxed);
            if let Some(life) = machine.life() {
                life.scope.set_rate(ppm);
            }
        }
    }

    /// Returns the names of tasks that panicked, by machine.
    pub fn panics(&self) -> BTreeMap<usize, Vec<&'static str>> {
        let mut found: BTreeMap<usize, Vec<&'static str>> = BTreeMap::new();
        for machine in self.machines() {
            let panics = machine.life().map(|life| life.scope.panics()).unwrap_or_default();
            if !panics.is_empty() {
                found.insert(machine.number, panics);
            }
        }
        found
    }

    /// Returns who judges this world.
    pub fn judge(&self) -> &Judge {
        &self.0.judge
    }

    /// Ends everything, so that what the tasks hold is let go.
    pub fn end(&self) {
        for machine in self.machines() {
            let life = lock(&machine.lives).now.take();
            if let Some(life) = life {
                life.end();
            }
        }
        self.0.scope.kill();
    }
}

/// A machine's first address.
pub fn address(site: usize, number: usize) -> IpAddr {
    let [high, low] = u16::try_from(number + 1).unwrap_or(u16::MAX).to_be_bytes();
    let site = u8::try_from(site % 200).unwrap_or(0);
    Ipv4Addr::new(192, 168u8.wrapping_add(high), site, low).into()
}
