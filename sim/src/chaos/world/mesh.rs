//! A machine's overlay devices, and who answers at an address of the overlay. Shell.
//!
//! Packets flow only while a daemon runs at both ends; the devices with their addresses outlive it.

use std::net::IpAddr;
use std::sync::{Arc, Mutex, Weak};

use sdwan::MeshSpec;
use sdwan::spec::{PrivateKey, PublicKey};

use super::{Inner, Machine, World, lock};
use crate::chaos::nok3s::Reach;

/// The overlay devices of a machine.
#[derive(Debug, Default)]
pub struct Devices(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    /// What the devices were made from last.
    specs: Vec<MeshSpec>,
    /// Whether a daemon moves packets through them.
    running: bool,
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
}

impl Devices {
    /// Returns what the devices were made from last.
    pub fn specs(&self) -> Vec<MeshSpec> {
        lock(&self.0).specs.clone()
    }

    /// Looks at what the devices were made from, if packets flow through them.
    pub fn look<T>(&self, look: impl FnOnce(&[MeshSpec]) -> T) -> Option<T> {
        let state = lock(&self.0);
        state.running.then(|| look(&state.specs))
    }

    /// Tells whether a device has an address.
    pub fn has(&self, ip: IpAddr) -> bool {
        let state = lock(&self.0);
        state.specs.iter().any(|s| s.held.contains(&ip) || s.addresses.contains(&ip))
    }

    pub(super) fn daemon_died(&self) {
        lock(&self.0).running = false;
    }

    pub(super) fn power_off(&self) {
        *lock(&self.0) = State::default();
    }
}

/// The daemon's handle on them.
pub struct SimMesh {
    world: World,
    machine: Arc<Machine>,
}

impl SimMesh {
    /// Makes the handle.
    pub fn new(world: World, machine: Arc<Machine>) -> Self {
        Self { world, machine }
    }
}

impl node::env::Mesh for SimMesh {
    async fn apply(&mut self, specs: Vec<MeshSpec>) -> Result<(), String> {
        let mut state = lock(&self.machine.devices.0);
        state.running = true;
        if state.specs != specs {
            let held: Vec<String> =
                specs.iter().flat_map(|s| s.held.iter().map(ToString::to_string)).collect();
            let numbers = [self.machine.number as u64, specs.len() as u64];
            self.world.recorder().note("mesh", &numbers, held.join(" ").as_bytes());
            state.specs = specs;
            state.learn_key();
        }
        Ok(())
    }

    async fn kill_flows(&self, _: Vec<IpAddr>) -> Result<usize, String> {
        Ok(0)
    }

    fn metrics(&self) -> String {
        String::new()
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
            let peers = specs.iter().flat_map(|s| &s.peers);
            let mut peers = peers.filter(|p| p.allowed_ips.iter().any(|net| net.contains(&to)));
            peers.next().map(|p| p.public_key)
        })??;
        let owns = |m: &&Arc<Machine>| lock(&m.devices.0).key() == Some(key);
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
            self.machine(n).is_some_and(|m| {
                m.is_on() && !m.is_paused() && m.devices.look(|_| ()).is_some()
            })
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
