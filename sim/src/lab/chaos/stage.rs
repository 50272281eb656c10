//! Lets the events of a plan happen to a lab's hosts. Shell.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::runtime::Handle;

use super::docket::Docket;
use super::people::People;
use super::plan::struck;
use super::view::newest;
use crate::chaos::schedule::{Act, Event};
use crate::chaos::world::net::Effect;
use crate::lab::faults::{self, Cut};
use crate::lab::store::{HostRecord, Lab};
use crate::lab::{Result, fleet, host, small};

/// How long a daemon that is told to end may take.
const STOP_MAX_MS: u64 = 15_000;
/// How long a daemon that was started may take to be seen.
const BORN_MAX_MS: u64 = 3_000;
/// How long after there is room again a daemon may still end for want of it.
const ROOM_MS: u64 = 12_000;
/// A machine that lost everything is set up anew after this time.
const ANEW_MS: u64 = 2_000;
/// How long a machine may take to join.
const JOIN_MAX_MS: u64 = 20_000;
/// Where what the lab itself runs in hosts says its words.
const LOG: &str = "/var/log/chaos.log";

/// A lab, and who watches it.
#[derive(Clone)]
pub(super) struct Stage {
    pub(super) lab: Arc<Lab>,
    pub(super) docket: Arc<Docket>,
    pub(super) people: People,
    pub(super) runtime: Handle,
    /// This very program.
    pub(super) exe: PathBuf,
}

impl Stage {
    pub(super) fn host(&self, number: usize) -> &HostRecord {
        &self.lab.hosts[number]
    }

    /// Starts what answers on every address of a host with its name.
    pub(super) fn respond(&self, number: usize) -> Result<()> {
        let exe = self.exe.display().to_string();
        host::detach(&self.lab, self.host(number), &[&exe, "respond"], LOG)
    }

    /// Lets an event happen, and what it brought about end.
    pub(super) fn play(&self, number: usize, event: &Event) {
        if !event.act.is_fault() {
            self.docket.does(&event.act);
            self.operate(&event.act);
            return;
        }
        // Whom it hits is known only now, and must not change until its end.
        let act = match &event.act {
            Act::KillHolder { power, for_ms, .. } => match (self.holder(), power) {
                (Some(machine), true) => Act::PowerCut { machine, for_ms: *for_ms },
                (Some(machine), false) => Act::Kill { machine, for_ms: *for_ms },
                (None, _) => return,
            },
            act => act.clone(),
        };
        let strikes: Vec<usize> = struck(&act).into_iter().collect();
        if !self.docket.begins(number, &act, &strikes) {
            return;
        }
        let done = self.fault(number, &act);
        self.docket.ends(number);
        if let Err(why) = done {
            self.docket.breaks(format!("{}: {why}", act.kind()));
        }
    }

    /// Returns who holds the cluster's VIP, as far as anybody says.
    fn holder(&self) -> Option<usize> {
        let state = self.docket.lock();
        let vip = newest(&state.seen)?.vips.first()?;
        self.docket.hosts.iter().position(|h| *h == vip.holder)
    }

    /// What people do; a refusal is an answer, too.
    fn operate(&self, act: &Act) {
        let name = |machine: usize| self.docket.hosts[machine].as_str();
        let vip = || {
            let state = self.docket.lock();
            newest(&state.seen).and_then(|s| Some(s.vips.first()?.name.clone()))
        };
        let say = |via: usize, words: &[&str]| {
            let line = [&["skein"][..], words].concat();
            let _ = host::exec(&self.lab, self.host(via), &line);
        };
        match act {
            Act::Drain { machine, stop, via } => {
                let mut line = vec!["drain", name(*machine), "--timeout", "10s"];
                line.extend(stop.then_some("--stop"));
                say(*via, &line);
            }
            Act::DrainHolder { via, .. } => {
                if let Some(machine) = self.holder() {
                    say(*via, &["drain", name(machine), "--timeout", "10s"]);
                }
            }
            Act::Undrain { machine, via } => say(*via, &["undrain", name(*machine)]),
            Act::MoveVip { to, via, .. } => {
                let Some(vip) = vip() else { return };
                let mut line = vec!["vip", "move", &vip];
                line.extend(to.iter().flat_map(|to| ["--to", name(*to)]));
                say(*via, &line);
            }
            Act::CreateNetwork { name, via } => say(*via, &["net", "create", name]),
            Act::Attach { machine, network, via } => {
                say(*via, &["net", "attach", network, name(*machine)]);
            }
            _ => {}
        }
    }

    fn fault(&self, number: usize, act: &Act) -> Result<()> {
        let docket = &self.docket;
        match act {
            Act::Kill { machine, for_ms } => {
                docket.expect(*machine, false);
                self.end(*machine, Signal::SIGKILL)?;
                docket.rest(*for_ms);
                self.start(*machine)
            }
            Act::Stop { machine, for_ms } => {
                docket.expect(*machine, false);
                let until = docket.now_ms() + for_ms;
                self.end(*machine, Signal::SIGTERM)?;
                docket.rest_until(until);
                self.start(*machine)
            }
            Act::Pause { machine, for_ms } => {
                let Some((pid, _)) = host::daemon(&self.lab, self.host(*machine)) else {
                    return Ok(());
                };
                signal(pid, Signal::SIGSTOP)?;
                docket.rest(*for_ms);
                signal(pid, Signal::SIGCONT)
            }
            Act::PowerCut { machine, for_ms } => {
                docket.expect(*machine, false);
                host::power_cut(&self.lab, self.host(*machine));
                docket.rest(*for_ms);
                self.boot(*machine)?;
                self.start(*machine)
            }
            Act::Wipe { machine } => self.wipe(*machine),
            Act::FullDrive { machine, for_ms } => self.full(*machine, *for_ms),
            Act::Net { from, to, both, effect, for_ms } => {
                let table = format!("{}_{number}", faults::TABLE);
                let others: Vec<&HostRecord> = to.iter().map(|m| self.host(*m)).collect();
                let permille = match effect {
                    Effect::Loss(permille) => Some(*permille),
                    _ => None,
                };
                let cut = Cut { table: &table, from: &others, one_way: !both, permille };
                for machine in from {
                    // One that is down has no cable to cut.
                    let cut = faults::lay_cut(&self.lab, self.host(*machine), &cut);
                    if cut.is_err() && host::running(&self.lab, self.host(*machine)).is_some() {
                        return cut;
                    }
                }
                docket.rest(*for_ms);
                from.iter().for_each(|m| faults::uncut(&self.lab, self.host(*m), &table));
                Ok(())
            }
            Act::K3sCrash { machine } => {
                // It may not run just now.
                let kill = ["pkill", "-9", "-x", "k3s"];
                let _ = host::exec(&self.lab, self.host(*machine), &kill);
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// Ends a daemon and waits until it is gone; one that does not heed is killed.
    fn end(&self, machine: usize, how: Signal) -> Result<()> {
        let h = self.host(machine);
        let Some((pid, _)) = host::daemon(&self.lab, h) else { return Ok(()) };
        signal(pid, how)?;
        let late = self.docket.now_ms() + STOP_MAX_MS;
        while host::daemon(&self.lab, h).is_some_and(|(p, _)| p == pid) {
            if self.docket.now_ms() > late {
                signal(pid, Signal::SIGKILL)?;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    /// Boots a host, and what answers in it with its name.
    fn boot(&self, machine: usize) -> Result<()> {
        host::boot(&self.lab, self.host(machine))?;
        self.respond(machine)
    }

    /// Starts a member's daemon; from then on it is expected to run.
    pub(super) fn start(&self, machine: usize) -> Result<()> {
        fleet::start_daemon(&self.lab, self.host(machine))?;
        self.is_born(machine);
        self.docket.expect(machine, true);
        Ok(())
    }

    /// Waits until a daemon's process is there.
    fn is_born(&self, machine: usize) -> bool {
        let late = self.docket.now_ms() + BORN_MAX_MS;
        while host::daemon(&self.lab, self.host(machine)).is_none() {
            if self.docket.now_ms() > late {
                return false;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        true
    }

    /// Fills a disk; whoever ends for want of room is started again when there is some.
    fn full(&self, machine: usize, for_ms: u64) -> Result<()> {
        let h = self.host(machine);
        self.docket.expect(machine, false);
        small::fill(&self.lab, h)?;
        self.docket.rest(for_ms);
        small::make_room(&self.lab, h);
        let late = self.docket.now_ms() + ROOM_MS;
        while self.docket.now_ms() < late && !self.docket.is_over() {
            if host::daemon(&self.lab, h).is_none() {
                fleet::start_daemon(&self.lab, h)?;
            }
            self.docket.rest(500);
        }
        self.start(machine)
    }

    /// Takes all that a host has, and lets it join anew in its own former place, as a person would.
    fn wipe(&self, machine: usize) -> Result<()> {
        let h = self.host(machine);
        self.docket.expect(machine, false);
        host::power_cut(&self.lab, h);
        small::empty(&self.lab, h)?;
        self.docket.lock().wiped[machine] += 1;
        self.docket.rest(ANEW_MS);
        self.boot(machine)?;
        let role = if machine < self.lab.servers { "voter" } else { "any" };
        while !self.docket.is_over() {
            if self.joins(machine, role)? {
                self.docket.expect(machine, true);
                return Ok(());
            }
            self.docket.rest(1_000);
        }
        Ok(())
    }

    /// Tries to join with a fresh ticket; tells whether the host is a member then.
    fn joins(&self, machine: usize, role: &str) -> Result<bool> {
        let others = (0..self.docket.hosts.len()).filter(|o| *o != machine);
        let via: Vec<usize> = others.collect();
        let people = self.people.clone();
        let ticket = self.runtime.block_on(people.ticket(&via, role));
        let Some(ticket) = ticket else { return Ok(false) };
        let (h, name) = (self.host(machine), self.docket.hosts[machine].as_str());
        let who = ["--name", name, "--replaces", name, "--foreground"];
        host::detach(&self.lab, h, &[&["skein", "join", &ticket], &who[..]].concat(), fleet::LOG)?;
        let late = self.docket.now_ms() + JOIN_MAX_MS;
        if !self.is_born(machine) {
            return Ok(false);
        }
        while host::daemon(&self.lab, h).is_some() && self.docket.now_ms() < late {
            if fleet::is_member(&self.lab, h) {
                return Ok(true);
            }
            self.docket.rest(200);
            if self.docket.is_over() {
                return Ok(false);
            }
        }
        // It tries on by itself for longer than that; a fresh ticket may name others that answer.
        self.end(machine, Signal::SIGTERM)?;
        Ok(fleet::is_member(&self.lab, h) && self.start(machine).is_ok())
    }

    /// Ends every fault that is on.
    pub(super) fn heal(&self) -> Result<()> {
        for machine in 0..self.docket.hosts.len() {
            small::make_room(&self.lab, self.host(machine));
        }
        faults::heal(&self.lab);
        for (machine, h) in self.lab.hosts.iter().enumerate() {
            if host::running(&self.lab, h).is_none() {
                self.boot(machine)?;
            }
        }
        Ok(())
    }

    /// Learns the keys of a host's node, which no log may tell.
    pub(super) fn learn_keys(&self, machine: usize) {
        let keys = small::state(&self.lab, self.host(machine)).join("keys");
        for entry in std::fs::read_dir(keys).into_iter().flatten().flatten() {
            let bytes = std::fs::read(entry.path()).unwrap_or_default();
            let text = String::from_utf8_lossy(&bytes);
            let mut state = self.docket.lock();
            // A key's text has no spaces; what names it has.
            text.lines().filter(|l| !l.contains([' ', '-'])).for_each(|l| state.secrets.learn(l));
            state.secrets.learn(&hex::encode(&bytes));
        }
    }

    /// The log of a host's daemon.
    pub(super) fn log(&self, machine: usize) -> PathBuf {
        let log = Path::new("disk").join(fleet::LOG.trim_start_matches('/'));
        self.lab.host_dir(self.host(machine)).join(log)
    }
}

/// Tells a process of a host something; one that ended meanwhile hears nothing.
fn signal(pid: Pid, signal: Signal) -> Result<()> {
    match kill(pid, signal) {
        Ok(()) | Err(nix::errno::Errno::ESRCH) => Ok(()),
        Err(e) => Err(format!("process {pid}: {e}")),
    }
}
