//! What happens in a run, all of it drawn from the seed before the run begins. Pure, but for load and save.
//!
//! A schedule is a list of timed events. Each event carries all that it needs, and every other draw of a run is keyed
//! by place and purpose, so that leaving an event out changes nothing else: a failing schedule can be made shorter.

mod draw;
mod profile;

pub use profile::Profile;

use std::collections::BTreeSet;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::flaw::Flaw;
use super::world::net::Effect;

/// The format of a schedule's file.
pub const VERSION: u32 = 1;

/// A whole run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Schedule {
    /// [`VERSION`].
    pub version: u32,
    /// Where all other draws of the run come from.
    pub seed: u64,
    /// From which profile it was drawn.
    pub profile: Profile,
    /// The site of each machine.
    pub sites: Vec<usize>,
    /// One way between sites, in microseconds.
    pub between_us: u64,
    /// What is wrong with the world on purpose.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub flaw: Option<Flaw>,
    /// How many nodes vote at most.
    pub voters: u8,
    /// How many of the machines join while the fleet is made, before the first event.
    pub founders: usize,
    /// When faults end, in milliseconds of virtual time after the fleet was made.
    pub until_ms: u64,
    /// What happens, in the order of time.
    pub events: Vec<Event>,
}

/// Something that happens.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// When, in milliseconds of virtual time after the fleet was made.
    pub at_ms: u64,
    /// What.
    #[serde(flatten)]
    pub act: Act,
}

/// What can happen. Machines are named by number; an operator's call goes through the daemon of machine `via`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "act", rename_all = "snake_case")]
pub enum Act {
    /// A machine joins with a fresh ticket.
    Join { machine: usize, via: usize },
    /// A machine that lost everything joins in its own former place.
    Rejoin { machine: usize, via: usize },
    /// A ticket that was used is shown again by another machine, or one that nobody made.
    ForgeTicket { machine: usize, via: usize },
    /// Two machines show the same ticket, which admits one.
    ShareTicket { machine: usize, other: usize, via: usize },
    /// A ticket is withdrawn and another one made. A machine shows the former, and then the new one.
    RotateTicket { machine: usize, via: usize },
    /// A cluster is made of these machines.
    CreateCluster { name: String, servers: Vec<usize>, workers: Vec<usize>, via: usize },
    /// A machine gets a role.
    AssignRole { machine: usize, server: bool, cluster: String, via: usize },
    /// A machine loses its role.
    UnassignRole { machine: usize, force: bool, via: usize },
    /// A cluster is undone.
    Decommission { cluster: String, via: usize },
    /// A node is emptied.
    Drain { machine: usize, stop: bool, via: usize },
    /// A node is taken back into service.
    Undrain { machine: usize, via: usize },
    /// A VIP moves by hand.
    MoveVip { cluster: String, to: Option<usize>, via: usize },
    /// A node leaves the fleet.
    Terminate { machine: usize, via: usize },
    /// A node is removed without being asked.
    Remove { machine: usize, force: bool, via: usize },
    /// A network is made.
    CreateNetwork { name: String, via: usize },
    /// A node is let into a network.
    Attach { machine: usize, network: String, via: usize },
    /// Clients write and read, so many calls each at this pace in milliseconds.
    Clients { clients: Vec<usize>, calls: usize, every_ms: u64 },
    /// Clients ask the API server behind a cluster's VIP who it is, so many times each at this pace in milliseconds.
    Sessions { cluster: String, clients: Vec<usize>, calls: usize, every_ms: u64 },
    /// A machine sends packets under another one's address to a third.
    Spoof { machine: usize, as_if: usize, to: usize },
    /// A machine's daemon is killed, and started again after so long.
    Kill { machine: usize, for_ms: u64 },
    /// Whoever holds a cluster's VIP then loses its daemon, or with it all power, for so long.
    KillHolder { cluster: String, power: bool, for_ms: u64 },
    /// Whoever holds a cluster's VIP then is emptied.
    DrainHolder { cluster: String, via: usize },
    /// A machine's daemon is told to end, and started again after so long.
    Stop { machine: usize, for_ms: u64 },
    /// A machine loses power for so long.
    PowerCut { machine: usize, for_ms: u64 },
    /// A machine's daemon stands still for so long.
    Pause { machine: usize, for_ms: u64 },
    /// A machine loses all that it has, and stays so.
    Wipe { machine: usize },
    /// A machine has another address from now on.
    Readdress { machine: usize },
    /// The network between machines is hurt for so long.
    Net { from: BTreeSet<usize>, to: BTreeSet<usize>, both: bool, effect: Effect, for_ms: u64 },
    /// A drive takes up to so many milliseconds for a sync, for so long.
    SlowDrive { machine: usize, sync_ms: u64, for_ms: u64 },
    /// A drive is full for so long.
    FullDrive { machine: usize, for_ms: u64 },
    /// A drive fails for so long.
    FailingDrive { machine: usize, for_ms: u64 },
    /// A wall clock jumps.
    ClockJump { machine: usize, ms: i64 },
    /// A machine's clocks run too fast by so many parts per million, or too slow.
    ClockRate { machine: usize, ppm: i32 },
    /// K3s on a machine ends by itself.
    K3sCrash { machine: usize },
    /// K3s on a machine is so many times slower, for so long.
    K3sSlow { machine: usize, factor: u32, for_ms: u64 },
    /// K3s on a machine says once the opposite of how it is.
    K3sLie { machine: usize },
    /// K3s on a machine is not ready, whatever it does, for so long.
    K3sNeverReady { machine: usize, for_ms: u64 },
}

impl Act {
    /// Returns what kind of thing it is, in a word.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Join { .. } => "join",
            Self::Rejoin { .. } => "rejoin",
            Self::ForgeTicket { .. } => "forge-ticket",
            Self::ShareTicket { .. } => "share-ticket",
            Self::RotateTicket { .. } => "rotate-ticket",
            Self::CreateCluster { .. } => "create-cluster",
            Self::AssignRole { .. } => "assign-role",
            Self::UnassignRole { .. } => "unassign-role",
            Self::Decommission { .. } => "decommission",
            Self::Drain { .. } => "drain",
            Self::Undrain { .. } => "undrain",
            Self::MoveVip { .. } => "move-vip",
            Self::Terminate { .. } => "terminate",
            Self::Remove { .. } => "remove",
            Self::CreateNetwork { .. } => "create-network",
            Self::Attach { .. } => "attach",
            Self::Clients { .. } => "clients",
            Self::Sessions { .. } => "sessions",
            Self::Spoof { .. } => "spoof",
            Self::Kill { .. } => "kill",
            Self::KillHolder { .. } => "kill-holder",
            Self::DrainHolder { .. } => "drain-holder",
            Self::Stop { .. } => "stop",
            Self::PowerCut { .. } => "power-cut",
            Self::Pause { .. } => "pause",
            Self::Wipe { .. } => "wipe",
            Self::Readdress { .. } => "readdress",
            Self::Net { effect, .. } => match effect {
                Effect::Cut => "cut",
                Effect::Loss(_) => "loss",
                Effect::Twice(_) => "duplication",
                Effect::Slow(_) => "delay",
                Effect::Clog => "clog",
            },
            Self::SlowDrive { .. } => "slow-drive",
            Self::FullDrive { .. } => "full-drive",
            Self::FailingDrive { .. } => "failing-drive",
            Self::ClockJump { .. } => "clock-jump",
            Self::ClockRate { .. } => "clock-rate",
            Self::K3sCrash { .. } => "k3s-crash",
            Self::K3sSlow { .. } => "k3s-slow",
            Self::K3sLie { .. } => "k3s-lie",
            Self::K3sNeverReady { .. } => "k3s-never-ready",
        }
    }

    /// Tells whether it is a fault, rather than something that people do.
    pub fn is_fault(&self) -> bool {
        self.for_ms().is_some()
            || matches!(
                self,
                Self::Wipe { .. }
                    | Self::Readdress { .. }
                    | Self::ClockJump { .. }
                    | Self::ClockRate { .. }
                    | Self::K3sCrash { .. }
                    | Self::K3sLie { .. }
            )
    }

    /// Tells whether it hurts the way between daemons, or their drives.
    pub fn is_of_paths(&self) -> bool {
        matches!(
            self,
            Self::Net { .. }
                | Self::SlowDrive { .. }
                | Self::FullDrive { .. }
                | Self::FailingDrive { .. }
        )
    }

    /// Returns how long it lasts, in milliseconds, if it ends by itself.
    pub fn for_ms(&self) -> Option<u64> {
        self.clone().for_ms_mut().copied()
    }

    /// Gives access to how long it lasts, in milliseconds, if it ends by itself.
    pub fn for_ms_mut(&mut self) -> Option<&mut u64> {
        match self {
            Self::Kill { for_ms, .. }
            | Self::KillHolder { for_ms, .. }
            | Self::Stop { for_ms, .. }
            | Self::PowerCut { for_ms, .. }
            | Self::Pause { for_ms, .. }
            | Self::Net { for_ms, .. }
            | Self::SlowDrive { for_ms, .. }
            | Self::FullDrive { for_ms, .. }
            | Self::FailingDrive { for_ms, .. }
            | Self::K3sSlow { for_ms, .. }
            | Self::K3sNeverReady { for_ms, .. } => Some(for_ms),
            _ => None,
        }
    }
}

impl Schedule {
    /// Draws a schedule.
    pub fn from_seed(seed: u64, profile: Profile) -> Self {
        draw::schedule(seed, profile, None)
    }

    /// Draws a schedule for so many machines.
    pub fn sized(seed: u64, profile: Profile, machines: usize) -> Self {
        draw::schedule(seed, profile, Some(machines))
    }

    /// Reads a schedule from its file.
    ///
    /// # Errors
    /// When it cannot be read, or is of another version.
    pub fn load(path: &Path) -> Result<Self, String> {
        let shown = path.display();
        let text = std::fs::read_to_string(path).map_err(|e| format!("{shown}: {e}"))?;
        let read: Self = serde_json::from_str(&text).map_err(|e| format!("{shown}: {e}"))?;
        if read.version != VERSION {
            let found = read.version;
            return Err(format!("{shown} has version {found}, this simulator knows {VERSION}"));
        }
        Ok(read)
    }

    /// Writes a schedule to a file.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn save(&self, path: &Path) -> Result<(), String> {
        let text = serde_json::to_string_pretty(self).map_err(|e| e.to_string())?;
        std::fs::write(path, text + "\n").map_err(|e| format!("{}: {e}", path.display()))
    }
}
