//! Lets the events of a schedule happen in the simulated world. Shell.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use api::ticket::JoinTicket;
use raft_store::model::{Name, State, Vip};
use tokio::time::sleep;

use super::draw::Draw;
use super::judge::Judge;
use super::people::{Person, node_name, vip_name};
use super::schedule::{Act, Event};
use super::world::World;
use super::world::life::Start;
use super::world::net::{Effect, Fault};

/// A stage: the world, and who watches it.
#[derive(Clone)]
pub struct Stage {
    /// The world.
    pub world: World,
    /// The judge.
    pub judge: Judge,
}

impl Stage {
    fn person(&self, via: usize) -> Person {
        Person::new(&self.world, &self.judge, via)
    }

    /// Lets an event happen; what takes time goes on by itself.
    pub fn play(&self, number: usize, event: &Event) {
        let (stage, act) = (self.clone(), event.act.clone());
        self.world.recorder().note("event", &[number as u64], act.kind().as_bytes());
        self.world.scope().spawn("event", async move {
            if act.is_fault() {
                stage.fault(number, act).await;
            } else {
                stage.operate(number, &act).await;
            }
        });
    }

    /// Returns the machine of a VIP's holder.
    pub fn holder(&self, state: &State, vip: &Vip) -> Option<usize> {
        let uuid = state.nodes.get(&vip.holder?)?.uuid;
        let all = self.world.machines().iter();
        let mut lives = all.filter_map(|m| Some((m.number, m.life()?.who()?.0)));
        lives.find(|(_, who)| *who == uuid).map(|(number, _)| number)
    }

    /// Returns the newest state, and a cluster's VIP in it.
    fn vip(&self, cluster: &str) -> Option<(Arc<State>, Vip)> {
        let (_, state) = self.judge.newest()?;
        let name = vip_name(cluster);
        let vip = state.vips.values().find(|v| v.name.as_str() == name)?.clone();
        Some((state, vip))
    }

    /// Returns the machine that holds a cluster's VIP now.
    fn holder_of(&self, cluster: &str) -> Option<usize> {
        let (state, vip) = self.vip(cluster)?;
        self.holder(&state, &vip)
    }

    /// What people do.
    async fn operate(&self, number: usize, act: &Act) {
        match act {
            Act::Join { machine, via } => self.join(*machine, *via, false).await,
            Act::Rejoin { machine, via } => self.join(*machine, *via, true).await,
            Act::ForgeTicket { machine, via } => self.forge(*machine, *via).await,
            Act::ShareTicket { machine, other, via } => self.share(*machine, *other, *via).await,
            Act::RotateTicket { machine, via } => self.rotate(*machine, *via).await,
            Act::CreateCluster { name, servers, workers, via } => {
                self.person(*via).create_cluster(name, servers, workers).await;
            }
            Act::AssignRole { machine, server, cluster, via } => {
                self.person(*via).assign(*machine, *server, cluster).await;
            }
            Act::UnassignRole { machine, force, via } => {
                self.person(*via).unassign(*machine, *force).await;
            }
            Act::Decommission { cluster, via } => self.person(*via).decommission(cluster).await,
            Act::Drain { machine, stop, via } => self.person(*via).drain(*machine, *stop).await,
            Act::Undrain { machine, via } => self.person(*via).undrain(*machine).await,
            Act::MoveVip { cluster, to, via } => self.person(*via).move_vip(cluster, *to).await,
            Act::Terminate { machine, via } => self.person(*via).terminate(*machine).await,
            Act::Remove { machine, force, via } => self.person(*via).remove(*machine, *force).await,
            Act::CreateNetwork { name, via } => self.person(*via).create_network(name).await,
            Act::Attach { machine, network, via } => {
                self.person(*via).attach(*machine, network).await;
            }
            Act::Clients { clients, calls, every_ms } => {
                for (n, via) in clients.iter().enumerate() {
                    let every = Duration::from_millis(*every_ms);
                    let id = (number * 100 + n) as u64;
                    let client = self.person(*via).client(id, *calls, every);
                    self.world.scope().spawn("client", client);
                }
            }
            Act::DrainHolder { cluster, via } => {
                if let Some(machine) = self.holder_of(cluster) {
                    self.person(*via).drain(machine, false).await;
                }
            }
            Act::Sessions { cluster, clients, calls, every_ms } => {
                for from in clients {
                    let sessions = self.clone().sessions(cluster.clone(), *from, *calls, *every_ms);
                    self.world.scope().spawn("sessions", sessions);
                }
            }
            Act::Spoof { machine, as_if, to } => self.world.spoof(*machine, *as_if, *to),
            _ => {}
        }
    }

    /// Asks through a VIP, again and again.
    async fn sessions(self, cluster: String, from: usize, calls: usize, every_ms: u64) {
        for n in 0..calls {
            if let Some((_, vip)) = self.vip(&cluster) {
                let asked = self.world.ask(from, vip.addresses()[n % 2]).await;
                self.judge.asked(&cluster, self.world.now_us(), asked);
            }
            sleep(Duration::from_millis(every_ms)).await;
        }
    }

    /// Joins a machine, trying again for a while as a person would.
    pub async fn join(&self, machine: usize, via: usize, replaces: bool) {
        for _ in 0..5 {
            if self.world.is_member(machine) {
                return;
            }
            let Ok(name) = node_name(machine).parse::<Name>() else { return };
            if let Some(ticket) = self.person(via).ticket().await {
                let replaces = replaces.then(|| name.clone());
                let start = Start::Join { ticket: Box::new(ticket), name, replaces };
                self.world.start(machine, start);
            }
            sleep(Duration::from_secs(4)).await;
        }
    }

    /// Shows a ticket with a secret that nobody made.
    async fn forge(&self, machine: usize, via: usize) {
        let Some(mut ticket) = self.person(via).ticket().await else { return };
        ticket.secret = Draw::new(self.world.seed(), "forged", &[machine as u64]).bytes();
        let Ok(name) = node_name(machine + 500).parse() else { return };
        self.world.start(machine, Start::Join { ticket: Box::new(ticket), name, replaces: None });
    }

    /// Shows one ticket from two machines at once.
    async fn share(&self, machine: usize, other: usize, via: usize) {
        let Some(ticket) = self.person(via).ticket().await else { return };
        for machine in [machine, other] {
            self.show(machine, ticket.clone());
        }
    }

    /// Shows a ticket from a machine, as a newcomer.
    fn show(&self, machine: usize, ticket: JoinTicket) {
        let Ok(name) = node_name(machine).parse() else { return };
        let ticket = Box::new(ticket);
        self.world.start(machine, Start::Join { ticket, name, replaces: None });
    }

    /// Withdraws a ticket, makes another one, and shows one after the other from a machine.
    async fn rotate(&self, machine: usize, via: usize) {
        let person = self.person(via);
        let Some((id, former)) = person.numbered_ticket().await else { return };
        if !person.revoke(id).await {
            return;
        }
        let Some(new) = person.ticket().await else { return };
        for ticket in [former, new] {
            self.show(machine, ticket);
            sleep(Duration::from_secs(4)).await;
        }
    }

    async fn fault(&self, number: usize, act: Act) {
        // Whom it hits is known only now, and must not change until its end.
        let act = match act {
            Act::KillHolder { cluster, power, for_ms } => match self.holder_of(&cluster) {
                Some(machine) if power => Act::PowerCut { machine, for_ms },
                Some(machine) => Act::Kill { machine, for_ms },
                None => return,
            },
            other => other,
        };
        let of_paths = act.is_of_paths();
        self.judge.fault_begins(of_paths);
        self.begin(number, &act);
        if let Some(ms) = act.for_ms() {
            sleep(Duration::from_millis(ms)).await;
            self.end(number, &act);
        }
        self.judge.fault_ends(of_paths);
    }

    fn begin(&self, number: usize, act: &Act) {
        let world = &self.world;
        let k3s = |machine: usize| world.kubernetes().machine(machine);
        match act {
            Act::Kill { machine, .. } => world.kill(*machine),
            Act::Stop { machine, .. } => world.stop(*machine),
            Act::PowerCut { machine, .. } => world.power_off(*machine),
            Act::Pause { machine, .. } => world.pause(*machine),
            Act::Wipe { machine } => self.wipe(*machine),
            Act::Readdress { machine } => {
                self.judge.moves();
                world.readdress(*machine);
            }
            Act::Net { from, to, both, effect, for_ms } => {
                let until_us = world.now_us() + for_ms * 1_000;
                self.hurt(number, (from, to), *effect, until_us);
                if *both {
                    self.hurt(number + 1_000_000, (to, from), *effect, until_us);
                }
            }
            Act::SlowDrive { machine, sync_ms, .. } => {
                self.drive(*machine, |mode| mode.sync_us_max = sync_ms * 1_000);
            }
            Act::FullDrive { machine, .. } => self.drive(*machine, |mode| mode.full = true),
            Act::FailingDrive { machine, .. } => self.drive(*machine, |mode| mode.failing = true),
            Act::ClockJump { machine, ms } => world.jump(*machine, *ms),
            Act::ClockRate { machine, ppm } => world.set_rate(*machine, *ppm),
            Act::K3sCrash { machine } => k3s(*machine).crash_k3s(),
            Act::K3sSlow { machine, factor, .. } => k3s(*machine).set_slow(*factor),
            Act::K3sLie { machine } => k3s(*machine).lie_once(),
            Act::K3sNeverReady { machine, .. } => k3s(*machine).set_never_ready(true),
            _ => {}
        }
    }

    fn end(&self, number: usize, act: &Act) {
        let world = &self.world;
        let usual = super::world::disk::Mode::default();
        match act {
            Act::Kill { machine, .. } | Act::Stop { machine, .. } => {
                world.start(*machine, Start::Daemon);
            }
            Act::PowerCut { machine, .. } => world.power_on(*machine),
            Act::Pause { machine, .. } => world.thaw(*machine),
            Act::Net { .. } => {
                world.net().end(number);
                world.net().end(number + 1_000_000);
            }
            Act::SlowDrive { machine, .. } => {
                self.drive(*machine, |mode| mode.sync_us_max = usual.sync_us_max);
            }
            Act::FullDrive { machine, .. } => self.drive(*machine, |mode| mode.full = false),
            Act::FailingDrive { machine, .. } => self.drive(*machine, |mode| mode.failing = false),
            Act::K3sSlow { machine, .. } => world.kubernetes().machine(*machine).set_slow(1),
            Act::K3sNeverReady { machine, .. } => {
                world.kubernetes().machine(*machine).set_never_ready(false);
            }
            _ => {}
        }
    }

    fn drive(&self, machine: usize, change: impl FnOnce(&mut super::world::disk::Mode)) {
        if let Some(machine) = self.world.machine(machine) {
            machine.drive.set(change);
        }
    }

    fn hurt(
        &self,
        id: usize,
        (from, to): (&BTreeSet<usize>, &BTreeSet<usize>),
        effect: Effect,
        until_us: u64,
    ) {
        let fault = Fault { from: from.clone(), to: to.clone(), effect, until_us };
        self.world.net().begin(id, fault);
    }

    fn wipe(&self, machine: usize) {
        self.world.power_off(machine);
        if let Some(machine) = self.world.machine(machine) {
            machine.files.wipe();
            machine.drive.forget(Path::new("/"));
        }
        self.world.kubernetes().machine(machine).wipe();
        self.world.power_on(machine);
    }

    /// Ends every fault, and gives every machine what it needs to run.
    pub fn heal(&self) {
        let world = &self.world;
        world.net().heal();
        for machine in world.machines() {
            let flaw = world.flaw();
            machine.drive.set(|mode| *mode = super::world::disk::Mode::flawed(flaw));
            let k3s = world.kubernetes().machine(machine.number);
            k3s.set_slow(1);
            k3s.set_never_ready(false);
            world.set_rate(machine.number, 0);
            world.thaw(machine.number);
            if !machine.is_on() {
                world.power_on(machine.number);
            }
            world.start(machine.number, Start::Daemon);
        }
    }
}
