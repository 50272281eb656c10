//! Draws a schedule from a seed. Pure.

use std::collections::BTreeSet;

use super::profile::Weights;
use super::{Act, Event, Profile, Schedule, VERSION};
use crate::chaos::draw::Draw;
use crate::chaos::world::net::Effect;

/// Names of clusters, in the order in which they are made.
const CLUSTERS: [&str; 2] = ["lab", "edge"];

/// How long before something is done to whoever holds a VIP nothing goes wrong any more, in milliseconds.
const CALM_BEFORE_MS: u64 = 6_000;

/// A schedule being drawn.
struct Drawing {
    draw: Draw,
    profile: Profile,
    weights: Weights,
    machines: usize,
    founders: usize,
    until_ms: u64,
    /// From when to when nothing else goes wrong, in milliseconds.
    calm: Vec<(u64, u64)>,
    events: Vec<Event>,
}

pub(super) fn schedule(seed: u64, profile: Profile, sized: Option<usize>) -> Schedule {
    let mut draw = Draw::new(seed, "schedule", &[profile as u64]);
    let (from, to) = profile.machines();
    let machines = usize::try_from(draw.within(from..=to)).unwrap_or(3);
    let machines = sized.unwrap_or(machines);
    let site_count = draw.within(1..=3);
    let sites = (0..machines).map(|_| draw.within(0..=site_count - 1));
    let sites: Vec<usize> = sites.map(|s| usize::try_from(s).unwrap_or(0)).collect();
    let between_us = draw.within(500..=10_000);
    let voters = *draw.pick(&[1, 3, 3, 5, 5, 5]).unwrap_or(&3);
    let late = draw.index(machines.min(4));
    let (short, long) = profile.lasts_s();
    let until_ms = draw.within(short..=long) * 1_000;
    let founders = (machines - late).max(1);
    let swarm = draw.chance(600);
    let weights = profile.weights();
    let weights = if swarm { weights.some(|| draw.chance(400)) } else { weights };
    let (calm, events) = (Vec::new(), Vec::new());
    let mut drawing =
        Drawing { draw, profile, weights, machines, founders, until_ms, calm, events };
    drawing.newcomers();
    drawing.clusters();
    drawing.holders();
    drawing.operators();
    drawing.clients();
    drawing.faults();
    drawing.rotations();
    let mut events = drawing.events;
    events.sort_by_key(|e| e.at_ms);
    Schedule {
        version: VERSION,
        seed,
        profile,
        sites,
        between_us,
        flaw: None,
        voters,
        founders,
        until_ms,
        events,
    }
}

impl Drawing {
    fn machine(&mut self) -> usize {
        self.draw.index(self.machines)
    }

    fn founder(&mut self) -> usize {
        self.draw.index(self.founders)
    }

    fn time(&mut self) -> u64 {
        self.draw.within(0..=self.until_ms)
    }

    fn add(&mut self, at_ms: u64, act: Act) {
        self.events.push(Event { at_ms, act });
    }

    /// Returns this time, or the end of the calm in which it falls.
    fn apart(&self, at: u64) -> u64 {
        let calm = self.calm.iter().find(|(from, to)| (*from..*to).contains(&at));
        calm.map_or(at, |(_, end)| *end)
    }

    /// Machines that join while faults are on.
    fn newcomers(&mut self) {
        for machine in self.founders..self.machines {
            let (at, via) = (self.draw.within(0..=self.until_ms / 2), self.founder());
            self.add(at, Act::Join { machine, via });
        }
    }

    fn clusters(&mut self) {
        let count = if self.draw.chance(250) { 2 } else { 1 };
        let mut free: Vec<usize> = (0..self.founders).collect();
        for name in CLUSTERS.iter().take(count) {
            let servers = *self.draw.pick(&[1, 3, 3, 3]).unwrap_or(&1);
            let servers = self.some(&mut free, servers);
            if servers.is_empty() {
                return;
            }
            let workers = self.draw.index(3);
            let workers = self.some(&mut free, workers);
            let (at, via) = (self.draw.within(0..=self.until_ms / 4), self.founder());
            self.add(at, Act::CreateCluster { name: (*name).into(), servers, workers, via });
        }
    }

    /// Takes some of these.
    fn some(&mut self, of: &mut Vec<usize>, count: usize) -> Vec<usize> {
        let count = count.min(of.len());
        (0..count).map(|_| of.swap_remove(self.draw.index(of.len()))).collect()
    }

    fn cluster(&mut self) -> String {
        let second = self.draw.chance(200);
        CLUSTERS[usize::from(second)].to_owned()
    }

    fn operators(&mut self) {
        let count = self.draw.within(2..=self.until_ms / 6_000 + 2);
        for n in 0..count {
            let (at, machine, via) = (self.time(), self.machine(), self.founder());
            let at = self.apart(at);
            match self.draw.within(0..=99) {
                0..=24 => {
                    let stop = self.draw.chance(200);
                    let back = at + self.draw.within(2_000..=20_000);
                    self.add(at, Act::Drain { machine, stop, via });
                    self.add(back, Act::Undrain { machine, via });
                }
                25..=39 => {
                    let cluster = self.cluster();
                    let to = self.draw.chance(500).then_some(machine);
                    self.add(at, Act::MoveVip { cluster, to, via });
                }
                40..=54 => {
                    let (server, cluster) = (self.draw.chance(500), self.cluster());
                    self.add(at, Act::AssignRole { machine, server, cluster, via });
                }
                55..=64 => {
                    let force = self.draw.chance(300);
                    self.add(at, Act::UnassignRole { machine, force, via });
                }
                65..=69 => {
                    let cluster = self.cluster();
                    self.add(at, Act::Decommission { cluster, via });
                }
                70..=76 => self.add(at, Act::Terminate { machine, via }),
                77..=81 => {
                    let force = self.draw.chance(500);
                    self.add(at, Act::Remove { machine, force, via });
                }
                82..=89 => {
                    let network = format!("net{n}");
                    self.add(at, Act::CreateNetwork { name: network.clone(), via });
                    self.add(at + 3_000, Act::Attach { machine, network, via });
                }
                90..=94 => self.add(at, Act::ForgeTicket { machine, via }),
                _ => {
                    // Those that are not members yet are the last ones.
                    let [machine, other] = [1, 2].map(|n| self.machines.saturating_sub(n));
                    self.add(at, Act::ShareTicket { machine, other, via });
                }
            }
        }
    }

    /// Whose ticket is withdrawn before it is used; the last machine is the one that is a member last.
    fn rotations(&mut self) {
        if self.draw.chance(300) {
            let (at, via) = (self.time(), self.founder());
            let (at, machine) = (self.apart(at), self.machines - 1);
            self.add(at, Act::RotateTicket { machine, via });
        }
    }

    /// What is done to whoever holds a VIP when it comes to it; often it comes alone, since what people are promised of it
    /// can only be held against a fleet that is well otherwise.
    fn holders(&mut self) {
        if self.draw.chance(600) {
            let (at, cluster) = (self.time(), self.cluster());
            let (power, for_ms) = (self.draw.chance(400), self.draw.within(8_000..=25_000));
            if self.draw.chance(600) {
                self.calm.push((at.saturating_sub(CALM_BEFORE_MS), at + for_ms));
            }
            self.add(at, Act::KillHolder { cluster, power, for_ms });
        }
        if self.draw.chance(400) {
            let (at, cluster, via) = (self.time(), self.cluster(), self.founder());
            if self.draw.chance(500) {
                self.calm.push((at.saturating_sub(CALM_BEFORE_MS), at + 20_000));
            }
            self.add(at, Act::DrainHolder { cluster, via });
        }
    }

    fn clients(&mut self) {
        let rounds = self.draw.within(1..=4);
        for _ in 0..rounds {
            let (at, machines) = (self.time(), self.machines);
            let count = self.draw.within(1..=5);
            let clients = (0..count).map(|_| self.draw.index(machines)).collect();
            let calls = usize::try_from(self.draw.within(5..=40)).unwrap_or(5);
            let every_ms = self.draw.within(20..=800);
            self.add(at, Act::Clients { clients, calls, every_ms });
        }
        for _ in 0..self.draw.within(1..=3) {
            let (at, machines, cluster) = (self.time(), self.machines, self.cluster());
            let count = self.draw.within(1..=4);
            let clients = (0..count).map(|_| self.draw.index(machines)).collect();
            let calls = usize::try_from(self.draw.within(20..=80)).unwrap_or(20);
            let every_ms = self.draw.within(100..=500);
            self.add(at, Act::Sessions { cluster, clients, calls, every_ms });
        }
        for _ in 0..3 {
            let (at, machine, as_if, to) =
                (self.time(), self.machine(), self.machine(), self.machine());
            if machine != as_if && machine != to {
                self.add(at, Act::Spoof { machine, as_if, to });
            }
        }
    }

    /// Faults come in gusts, with calm between them: some promises are only kept where nothing else is wrong for long
    /// enough.
    fn faults(&mut self) {
        let mean = self.profile.fault_every_ms() * self.draw.pick(&[1, 1, 2, 4]).unwrap_or(&1);
        let calm = self.draw.pick(&[0, 40, 120]).copied().unwrap_or(0);
        let mut at = 0;
        loop {
            at += self.draw.within(1..=2 * mean);
            if self.draw.chance(calm) {
                at += self.draw.within(12_000..=25_000);
            }
            at = self.apart(at);
            if at >= self.until_ms {
                return;
            }
            let act = self.fault(at);
            if let Act::Wipe { machine } = act
                && self.draw.chance(700)
            {
                let (back, via) = (at + self.draw.within(2_000..=20_000), self.founder());
                self.add(back, Act::Rejoin { machine, via });
            }
            self.add(at, act);
        }
    }

    fn lasting(&mut self, at: u64) -> u64 {
        let calm = self.calm.iter().map(|(from, _)| *from).filter(|from| *from > at).min();
        let over = calm.unwrap_or(self.until_ms).min(self.until_ms);
        let longest = over.saturating_sub(at).max(200);
        let long = if self.draw.chance(250) { 30_000 } else { 5_000 };
        self.draw.within(50..=long).min(longest)
    }

    fn fault(&mut self, at: u64) -> Act {
        let machine = self.machine();
        let for_ms = self.lasting(at);
        let all = self.weights.all();
        let mut left = self.draw.within(0..=all.iter().sum::<u64>() - 1);
        let kind = all.iter().position(|weight| {
            let hit = left < *weight;
            left = left.saturating_sub(*weight);
            hit
        });
        match kind {
            Some(0) => match self.draw.within(0..=9) {
                0..=4 => Act::Kill { machine, for_ms },
                5..=6 => Act::Stop { machine, for_ms },
                _ => Act::Pause { machine, for_ms },
            },
            Some(1) => match self.draw.within(0..=9) {
                0 => Act::Wipe { machine },
                _ => Act::PowerCut { machine, for_ms },
            },
            Some(2) if self.draw.chance(60) => Act::Readdress { machine },
            Some(2) => self.net(for_ms),
            Some(3) => match self.draw.within(0..=9) {
                0..=5 => Act::SlowDrive { machine, sync_ms: self.draw.within(20..=1_500), for_ms },
                6..=7 => Act::FullDrive { machine, for_ms },
                _ => Act::FailingDrive { machine, for_ms },
            },
            Some(4) => match self.draw.within(0..=1) {
                0 => {
                    let ms = i64::try_from(self.draw.within(0..=7_200_000)).unwrap_or(0);
                    Act::ClockJump { machine, ms: ms - 3_600_000 }
                }
                _ => {
                    let ppm = i32::try_from(self.draw.within(0..=20_000)).unwrap_or(0);
                    Act::ClockRate { machine, ppm: ppm - 10_000 }
                }
            },
            _ => match self.draw.within(0..=3) {
                0 => Act::K3sCrash { machine },
                1 => {
                    let factor = u32::try_from(self.draw.within(2..=10)).unwrap_or(2);
                    Act::K3sSlow { machine, factor, for_ms }
                }
                2 => Act::K3sLie { machine },
                _ => Act::K3sNeverReady { machine, for_ms },
            },
        }
    }

    fn net(&mut self, for_ms: u64) -> Act {
        let cut_off = self.draw.within(1..=(self.machines as u64 / 2).max(1));
        let mut all: Vec<usize> = (0..self.machines).collect();
        let from: BTreeSet<usize> =
            self.some(&mut all, usize::try_from(cut_off).unwrap_or(1)).into_iter().collect();
        // Between a few and all others, or to one alone: a partial view is harder than a clean cut.
        let to: BTreeSet<usize> = if self.draw.chance(700) {
            all.into_iter().collect()
        } else {
            all.into_iter().take(1).collect()
        };
        let both = self.draw.chance(650);
        let effect = match self.draw.within(0..=9) {
            0..=3 => Effect::Cut,
            4..=5 => Effect::Loss(self.draw.within(10..=400)),
            6 => Effect::Twice(self.draw.within(50..=500)),
            7..=8 => Effect::Slow(self.draw.within(5..=800)),
            _ => Effect::Clog,
        };
        Act::Net { from, to, both, effect, for_ms }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_gives_the_same_schedule_and_another_seed_another() {
        for profile in [Profile::Small, Profile::Default, Profile::Wide] {
            assert_eq!(schedule(5, profile, None), schedule(5, profile, None));
            assert_ne!(schedule(5, profile, None), schedule(6, profile, None));
        }
    }

    #[test]
    fn every_kind_of_event_is_drawn_and_no_event_names_a_machine_that_is_not_there() {
        let mut kinds: BTreeSet<&str> = BTreeSet::new();
        for seed in 0..400 {
            let drawn = schedule(seed, Profile::Default, None);
            assert!((1..=drawn.sites.len()).contains(&drawn.founders));
            for event in &drawn.events {
                kinds.insert(event.act.kind());
                if let Act::Net { from, to, .. } = &event.act {
                    assert!(from.iter().chain(to).all(|m| *m < drawn.sites.len()));
                    assert!(from.is_disjoint(to));
                }
            }
        }
        for kind in [
            "join",
            "readdress",
            "share-ticket",
            "rotate-ticket",
            "rejoin",
            "drain",
            "undrain",
            "move-vip",
            "terminate",
            "remove",
            "clog",
            "cut",
            "loss",
            "power-cut",
            "wipe",
            "full-drive",
            "failing-drive",
            "clock-rate",
            "clock-jump",
            "k3s-lie",
            "k3s-never-ready",
            "clients",
            "forge-ticket",
            "decommission",
            "duplication",
            "delay",
            "pause",
            "kill",
            "stop",
            "create-cluster",
        ] {
            assert!(kinds.contains(kind), "{kind} is never drawn");
        }
    }

    #[test]
    fn a_schedule_survives_its_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.json");
        let drawn = schedule(3, Profile::Default, None);
        drawn.save(&path).unwrap();
        assert_eq!(Schedule::load(&path).unwrap(), drawn);
        std::fs::write(&path, r#"{"version":9}"#).unwrap();
        assert!(Schedule::load(&path).is_err());
    }
}
