//! The yardstick: keepalived on hosts of the same kind, with two advertisement intervals at once. Shell.

use std::net::SocketAddr;
use std::time::Duration;

use super::PORT;
use super::lab::{Lab, wait};
use super::record::Clock;
use super::trial::{Case, Notes, Trial, sum_up};
use super::watch::Watch;

/// After a cut the client may know the address at a host that gave it up; it asks anew only when its neighbour table says so.
const HEALED_MAX: Duration = Duration::from_secs(90);
const HOLDER: &str = "n1";
const BACKUP: &str = "n2";
const CLIENT: &str = "n3";
const SETTLED_MAX: Duration = Duration::from_secs(30);
const CONFIG: &str = "/run/keepalived.conf";
/// What it holds is added to the priority.
const TRACKED: &str = "/run/keepalived.weight";

const CUT_ARP: &str = "table arp bench { \
    chain in { type filter hook input priority 0; policy drop; }; \
    chain out { type filter hook output priority 0; policy drop; }; }";

/// One VIP of theirs.
struct Instance {
    advert: &'static str,
    router: u8,
    last: u8,
}

/// keepalived's default, and what it can do at best.
const INSTANCES: [Instance; 2] = [
    Instance { advert: "1", router: 51, last: 251 },
    Instance { advert: "0.1", router: 52, last: 252 },
];

/// The names of what is compared, in the order of a trial's results.
pub(super) fn names() -> Vec<String> {
    INSTANCES.iter().map(|i| format!("keepalived, advert {} s", i.advert)).collect()
}

/// Whether keepalived knows such a case: it has no leader.
pub(super) fn has(case: Case) -> bool {
    case != Case::HolderAndLeader
}

/// Two hosts and a client on a bridge.
pub(super) struct Pair {
    lab: Lab,
    prefix: String,
}

impl Pair {
    /// Makes hosts without daemons, and keepalived on two of them.
    pub(super) fn up(name: &str) -> Result<Self, String> {
        let lab = Lab::up(
            name,
            &["--servers", "2", "--workers", "1", "--k3s", "rehearsal", "--no-daemons"],
        )?;
        let address = lab.address(CLIENT, "eth0", false)?;
        let (prefix, _) = address.rsplit_once('.').ok_or("an IPv4 address")?;
        let pair = Self { prefix: prefix.to_owned(), lab };
        for host in [HOLDER, BACKUP] {
            pair.start(host)?;
        }
        pair.settled()?;
        Ok(pair)
    }

    fn vip(&self, instance: &Instance) -> String {
        format!("{}.{}", self.prefix, instance.last)
    }

    fn config(&self, host: &str) -> String {
        let priority = if host == HOLDER { 150 } else { 100 };
        let mut text = format!(
            "global_defs {{\n  router_id {host}\n  vrrp_version 3\n}}\n\
             track_file weight {{\n  file {TRACKED}\n  weight 1\n}}\n"
        );
        for instance in &INSTANCES {
            text += &format!(
                "vrrp_instance vip{router} {{\n  state BACKUP\n  interface eth0\n  virtual_router_id {router}\n  \
                 priority {priority}\n  advert_int {advert}\n  virtual_ipaddress {{\n    {vip}/24\n  }}\n  \
                 track_file {{\n    weight\n  }}\n}}\n",
                router = instance.router,
                advert = instance.advert,
                vip = self.vip(instance),
            );
        }
        text
    }

    fn start(&self, host: &str) -> Result<(), String> {
        let write = format!("echo 0 >{TRACKED}; cat >{CONFIG} <<'END'\n{}END\n", self.config(host));
        self.lab.run(host, &["sh", "-c", &write])?;
        self.lab.respond(host)?;
        let line = format!(
            "keepalived --dont-fork --log-console --vrrp -f {CONFIG} -p /run/keepalived.pid -r /run/vrrp.pid"
        );
        self.lab.detach(host, &line)
    }

    fn bears(&self, host: &str) -> Result<usize, String> {
        let text = self.lab.run(host, &["ip", "-o", "addr", "show", "dev", "eth0"])?;
        Ok(INSTANCES.iter().filter(|i| text.contains(&format!(" {}/", self.vip(i)))).count())
    }

    fn settled(&self) -> Result<(), String> {
        wait("keepalived to settle", SETTLED_MAX, || {
            let (holder, backup) = (self.bears(HOLDER)?, self.bears(BACKUP)?);
            if (holder, backup) == (INSTANCES.len(), 0) {
                return Ok(());
            }
            Err(format!("{HOLDER} bears {holder} addresses, {BACKUP} {backup}"))
        })
    }

    fn weigh(&self, weight: i32) -> Result<(), String> {
        self.lab.run(HOLDER, &["sh", "-c", &format!("echo {weight} >{TRACKED}")]).map(drop)
    }

    fn signal(&self, name: &str) -> Result<(), String> {
        let line = format!("kill -{name} $(cat /run/keepalived.pid /run/vrrp.pid)");
        self.lab.run(HOLDER, &["sh", "-c", &line]).map(drop)
    }

    fn strike(&self, case: Case) -> Result<(), String> {
        match case {
            Case::Drain => self.weigh(-100),
            Case::Kill | Case::HolderAndLeader => self.lab.verb(&["kill", HOLDER]).map(drop),
            Case::Crash => self.lab.verb(&["crash", HOLDER]).map(drop),
            Case::Pause => self.signal("STOP"),
            Case::Cut => {
                // Their address is found by ARP, which the lab's cut lets through: cut off is cut off.
                self.lab.run(HOLDER, &["nft", CUT_ARP])?;
                self.lab.verb(&["cut", HOLDER]).map(drop)
            }
        }
    }

    fn undo(&self, case: Case) -> Result<(), String> {
        match case {
            Case::Drain => self.weigh(0),
            Case::Kill | Case::Crash | Case::HolderAndLeader => {
                self.lab.verb(&["start", HOLDER])?;
                self.start(HOLDER)
            }
            Case::Pause => self.signal("CONT"),
            Case::Cut => {
                self.lab.run(HOLDER, &["nft", "delete table arp bench"])?;
                self.lab.verb(&["heal"]).map(drop)
            }
        }
    }

    /// Runs one trial; returns what each instance showed.
    pub(super) fn trial(&self, case: Case, number: u32) -> Result<Vec<Trial>, String> {
        let second = Duration::from_secs(1);
        let mut watches = Vec::new();
        for instance in &INSTANCES {
            let target: SocketAddr = format!("{}:{PORT}", self.vip(instance))
                .parse()
                .map_err(|e| format!("an address: {e}"))?;
            watches.push(Watch::start(&self.lab, CLIENT, &[target.to_string()])?);
        }
        let clocks = [Clock::Vip];
        for watch in &watches {
            watch.until_calm(&clocks, (second / 2, second / 2, HEALED_MAX))?;
        }
        mark(&mut watches, "fault")?;
        self.strike(case)?;
        mark(&mut watches, "done")?;
        // Three advertisements and a little must be missed before anything moves.
        std::thread::sleep(second * 4);
        for watch in &watches {
            let _ = watch.until_calm(&clocks, (second / 2, second, second * 15));
        }
        mark(&mut watches, "undo")?;
        self.undo(case)?;
        self.settled()?;
        for watch in &watches {
            let _ = watch.until_calm(&clocks, (second, second / 2, HEALED_MAX));
        }
        mark(&mut watches, "end")?;
        let holders = [HOLDER, BACKUP, HOLDER].map(str::to_owned).to_vec();
        let notes = || Notes { number, holders: holders.clone(), leader: String::new() };
        watches.into_iter().map(|watch| sum_up(&watch.end()?, notes())).collect()
    }
}

fn mark(watches: &mut [Watch], name: &str) -> Result<(), String> {
    watches.iter_mut().try_for_each(|watch| watch.mark(name))
}
