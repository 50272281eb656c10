//! The network between machines: who reaches whom, how late, how often. Pure state, and the draws that decide.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::chaos::draw::Draw;

/// What a fault does to what is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Effect {
    /// Nothing arrives.
    Cut,
    /// So many of a thousand do not arrive.
    Loss(u64),
    /// So many of a thousand arrive twice.
    Twice(u64),
    /// Everything takes longer by up to so many milliseconds, each by its own measure: order is lost.
    Slow(u64),
    /// Nothing arrives until the fault is over, and then all of it.
    Clog,
}

/// A fault of the network, for everything from some machines to others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Senders.
    pub from: BTreeSet<usize>,
    /// Receivers.
    pub to: BTreeSet<usize>,
    /// What happens to it.
    pub effect: Effect,
    /// When it is over, in microseconds of virtual time.
    pub until_us: u64,
}

/// What becomes of a message: when each copy of it arrives; none is a loss.
pub type Fate = Vec<Duration>;

/// The network.
#[derive(Debug)]
pub struct Net {
    seed: u64,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    sites: Vec<usize>,
    addresses: BTreeMap<IpAddr, usize>,
    /// One way between sites, in microseconds.
    between_us: u64,
    faults: BTreeMap<usize, Fault>,
    links: BTreeMap<(usize, usize), Draw>,
    sent: BTreeMap<usize, u64>,
}

/// One way between machines of a site, in microseconds.
const NEAR_US: (u64, u64) = (100, 1_500);

impl Net {
    /// Makes a network of machines at these sites, which are so far apart.
    pub fn new(seed: u64, sites: Vec<usize>, between_us: u64) -> Self {
        Self { seed, state: Mutex::new(State { sites, between_us, ..State::default() }) }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives a machine an address, and takes it from whoever had it.
    pub fn give(&self, address: IpAddr, machine: usize) {
        self.lock().addresses.insert(address, machine);
    }

    /// Takes an address from whoever has it.
    pub fn take(&self, address: IpAddr) {
        self.lock().addresses.remove(&address);
    }

    /// Returns the addresses of a machine.
    pub fn addresses(&self, machine: usize) -> Vec<IpAddr> {
        let state = self.lock();
        state.addresses.iter().filter(|(_, m)| **m == machine).map(|(ip, _)| *ip).collect()
    }

    /// Returns who has an address.
    pub fn owner(&self, address: IpAddr) -> Option<usize> {
        self.lock().addresses.get(&address).copied()
    }

    /// Begins a fault.
    pub fn begin(&self, id: usize, fault: Fault) {
        self.lock().faults.insert(id, fault);
    }

    /// Ends a fault.
    pub fn end(&self, id: usize) {
        self.lock().faults.remove(&id);
    }

    /// Ends all faults.
    pub fn heal(&self) {
        self.lock().faults.clear();
    }

    /// Returns how many messages a machine has sent.
    pub fn sent(&self, machine: usize) -> u64 {
        self.lock().sent.get(&machine).copied().unwrap_or(0)
    }

    /// Tells whether anything gets from one machine to another now.
    pub fn is_open(&self, from: usize, to: usize) -> bool {
        let state = self.lock();
        !state.hitting(from, to).any(|f| matches!(f.effect, Effect::Cut | Effect::Clog))
    }

    /// Decides what becomes of a message that is sent now.
    pub fn fate(&self, from: usize, to: usize, now_us: u64) -> Fate {
        let mut state = self.lock();
        *state.sent.entry(from).or_default() += 1;
        let near = state.sites.get(from) == state.sites.get(to);
        let far = if near { 0 } else { state.between_us };
        let effects: Vec<(Effect, u64)> =
            state.hitting(from, to).map(|f| (f.effect, f.until_us)).collect();
        let place = [from as u64, to as u64];
        let draw =
            state.links.entry((from, to)).or_insert_with(|| Draw::new(self.seed, "net", &place));
        let mut arrival = far + draw.within(NEAR_US.0..=NEAR_US.1);
        let mut copies = 1;
        for (effect, until_us) in effects {
            match effect {
                Effect::Cut => copies = 0,
                Effect::Loss(permille) if draw.chance(permille) => copies = 0,
                Effect::Twice(permille) if draw.chance(permille) && copies > 0 => copies = 2,
                Effect::Slow(ms) => arrival += draw.within(0..=ms * 1_000),
                Effect::Clog => arrival += until_us.saturating_sub(now_us),
                Effect::Loss(_) | Effect::Twice(_) => {}
            }
        }
        let again = arrival + draw.within(0..=20_000);
        [arrival, again].into_iter().take(copies).map(Duration::from_micros).collect()
    }
}

impl State {
    fn hitting(&self, from: usize, to: usize) -> impl Iterator<Item = &Fault> {
        let hits = move |f: &&Fault| from != to && f.from.contains(&from) && f.to.contains(&to);
        self.faults.values().filter(hits)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fault(effect: Effect) -> Fault {
        Fault { from: [0].into(), to: [1].into(), effect, until_us: 5_000_000 }
    }

    #[test]
    fn a_cut_goes_one_way_and_ends() {
        let net = Net::new(1, vec![0, 0], 0);
        net.begin(1, fault(Effect::Cut));
        assert!(net.fate(0, 1, 0).is_empty() && net.fate(1, 0, 0).len() == 1);
        assert!(!net.is_open(0, 1) && net.is_open(1, 0));
        net.end(1);
        assert_eq!(net.fate(0, 1, 0).len(), 1);
    }

    #[test]
    fn what_is_clogged_arrives_after_all_and_what_is_doubled_twice() {
        let net = Net::new(1, vec![0, 1], 10_000);
        net.begin(1, fault(Effect::Clog));
        assert!(net.fate(0, 1, 1_000_000)[0] >= Duration::from_secs(4));
        net.begin(1, fault(Effect::Twice(1_000)));
        let fate = net.fate(0, 1, 0);
        assert!(fate.len() == 2 && fate[0] >= Duration::from_millis(10), "{fate:?}");
        net.begin(1, fault(Effect::Loss(500)));
        let lost = (0..1_000).filter(|_| net.fate(0, 1, 0).is_empty()).count();
        assert!((400..600).contains(&lost), "{lost}");
    }
}
