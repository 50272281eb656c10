//! How large a fleet is drawn and how it is hurt. Pure.

use serde::{Deserialize, Serialize};

/// A family of schedules.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Serialize,
    Deserialize,
    clap::ValueEnum,
)]
#[serde(rename_all = "kebab-case")]
pub enum Profile {
    /// Three to five machines and few faults: quick to read.
    Small,
    /// Three to seven machines, everything happens.
    #[default]
    Default,
    /// Twelve to forty machines.
    Wide,
    /// The network is hurt most of the time.
    PartitionHeavy,
    /// Drives and power are hurt most of the time.
    DiskHeavy,
}

/// How often each kind of fault is drawn, against the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Weights {
    pub(super) process: u64,
    pub(super) power: u64,
    pub(super) net: u64,
    pub(super) drive: u64,
    pub(super) clock: u64,
    pub(super) k3s: u64,
}

impl Weights {
    /// Leaves some kinds of faults out, other ones in each run: what a fault hides comes to light where it is missing
    /// (Groce and others, "Swarm testing", 2012).
    pub(super) fn some(self, mut is_left_out: impl FnMut() -> bool) -> Self {
        let mut of = |weight: u64| if is_left_out() { 0 } else { weight };
        let some = Self {
            process: of(self.process),
            power: of(self.power),
            net: of(self.net),
            drive: of(self.drive),
            clock: of(self.clock),
            k3s: of(self.k3s),
        };
        if some.all().iter().sum::<u64>() == 0 { self } else { some }
    }

    /// Returns them in a fixed order: process, power, net, drive, clock, K3s.
    pub(super) fn all(self) -> [u64; 6] {
        [self.process, self.power, self.net, self.drive, self.clock, self.k3s]
    }
}

impl Profile {
    pub(super) fn machines(self) -> (u64, u64) {
        match self {
            Self::Small => (3, 5),
            Self::Default | Self::PartitionHeavy | Self::DiskHeavy => (3, 7),
            Self::Wide => (12, 40),
        }
    }

    /// How long faults last in all, in seconds.
    pub(super) fn lasts_s(self) -> (u64, u64) {
        match self {
            Self::Small => (20, 40),
            Self::Default | Self::PartitionHeavy | Self::DiskHeavy => (40, 120),
            Self::Wide => (30, 60),
        }
    }

    /// Mean pause between two faults, in milliseconds.
    pub(super) fn fault_every_ms(self) -> u64 {
        match self {
            Self::Small => 5_000,
            Self::Default => 2_500,
            Self::Wide => 1_500,
            Self::PartitionHeavy | Self::DiskHeavy => 1_500,
        }
    }

    pub(super) fn weights(self) -> Weights {
        let even = Weights { process: 30, power: 10, net: 30, drive: 12, clock: 8, k3s: 10 };
        match self {
            Self::Small | Self::Default | Self::Wide => even,
            Self::PartitionHeavy => Weights { net: 120, ..even },
            Self::DiskHeavy => Weights { power: 60, drive: 80, ..even },
        }
    }
}
