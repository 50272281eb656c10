//! What can be wrong with a world on purpose, each through one of the daemon's ports, so that it is seen to be found. Pure.

use serde::{Deserialize, Serialize};

/// One defect.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, clap::ValueEnum,
)]
#[serde(rename_all = "kebab-case")]
pub enum Flaw {
    /// A drive acknowledges what is not durable.
    LyingDrive,
    /// A drive forgets votes when the daemon ends.
    ForgetfulVote,
    /// A drive gives another entry back than it was given.
    AlteredEntry,
    /// A leader hears that silent nodes are well: it plans as if nobody could be lost.
    BlindPlanner,
    /// Reports never say that a VIP's address is in place: a planned move is never confirmed.
    MuteHolder,
    /// A node keeps sending a VIP's packets to its first holder, whatever the generation.
    DeafReceiver,
    /// A device keeps every VIP that it ever held.
    ClingingHolder,
    /// A tunnel takes any source from any peer.
    OpenTunnel,
    /// A repeated request has another id: it is carried out again.
    ForgottenRequest,
    /// A read does not wait for what was acknowledged before it.
    StaleRead,
    /// A machine that joins is told the id of another node.
    ReusedId,
    /// `apply` gives a newcomer the address of another node.
    DoubledAddress,
    /// `apply` sends an active cluster back to its founding.
    RevivedFounding,
    /// A VIP moves without another generation.
    StuckGeneration,
    /// A server that should join founds a cluster of its own.
    SecondFounder,
    /// `apply` never notes that a ticket was used.
    EndlessTicket,
    /// A ticket's withdrawal is acknowledged, and not carried out.
    IdleRevocation,
    /// A daemon that is started anew replays nothing of its log.
    UnreplayedLog,
    /// A host's error repeats a secret.
    TalkativeHost,
    /// A daemon that stood still has a task that never waits from then on.
    RestlessTask,
}

impl Flaw {
    /// All of them.
    pub const ALL: [Self; 20] = [
        Self::LyingDrive,
        Self::ForgetfulVote,
        Self::AlteredEntry,
        Self::BlindPlanner,
        Self::MuteHolder,
        Self::DeafReceiver,
        Self::ClingingHolder,
        Self::OpenTunnel,
        Self::ForgottenRequest,
        Self::StaleRead,
        Self::ReusedId,
        Self::DoubledAddress,
        Self::RevivedFounding,
        Self::StuckGeneration,
        Self::SecondFounder,
        Self::EndlessTicket,
        Self::IdleRevocation,
        Self::UnreplayedLog,
        Self::TalkativeHost,
        Self::RestlessTask,
    ];

    /// Says in words what is wrong.
    pub fn words(self) -> &'static str {
        match self {
            Self::LyingDrive => "a drive acknowledges what is not durable",
            Self::ForgetfulVote => "a drive forgets votes over a restart",
            Self::AlteredEntry => "a drive gives another entry back than it was given",
            Self::BlindPlanner => "the leader plans as if nobody could be lost",
            Self::MuteHolder => "the next holder never confirms that it has the address",
            Self::DeafReceiver => "a receiver ignores newer generations of a VIP",
            Self::ClingingHolder => "a holder never lets go of the address",
            Self::OpenTunnel => "a tunnel takes any source from any peer",
            Self::ForgottenRequest => "a repeated request is carried out again",
            Self::StaleRead => "a read does not wait for what was acknowledged",
            Self::ReusedId => "a join gives away a node id a second time",
            Self::DoubledAddress => "apply gives a newcomer the address of another node",
            Self::RevivedFounding => "apply sends an active cluster back to its founding",
            Self::StuckGeneration => "a VIP moves without another generation",
            Self::SecondFounder => "a server that should join founds a cluster",
            Self::EndlessTicket => "apply never notes that a ticket was used",
            Self::IdleRevocation => "a revocation is acknowledged and not carried out",
            Self::UnreplayedLog => "a restarted node replays nothing of its log",
            Self::TalkativeHost => "an error message repeats a secret",
            Self::RestlessTask => "a task never waits once its daemon stood still",
        }
    }

    /// The invariants of which one must find it.
    pub fn found_by(self) -> &'static [&'static str] {
        match self {
            Self::LyingDrive => &[
                "agreement",
                "acknowledged",
                "votes_grow",
                "one_holder",
                "no_step_back",
                "heals",
                "no_panic",
            ],
            Self::ForgetfulVote => &["votes_grow"],
            Self::AlteredEntry => &["agreement"],
            Self::DoubledAddress => &["addresses"],
            Self::RevivedFounding => &["no_way_back"],
            Self::StuckGeneration => &["one_holder"],
            Self::BlindPlanner => &["lost_holder"],
            Self::MuteHolder => &["drained_holder"],
            Self::DeafReceiver => &["vip_table"],
            Self::ClingingHolder => &["lets_go"],
            Self::OpenTunnel => &["delivery"],
            Self::ForgottenRequest | Self::StaleRead => &["acknowledged"],
            Self::ReusedId => &["addresses", "votes_grow", "agreement", "heals", "no_panic"],
            Self::SecondFounder => &["one_founder"],
            Self::EndlessTicket | Self::IdleRevocation => &["tickets"],
            Self::UnreplayedLog => &["no_step_back"],
            Self::TalkativeHost => &["no_secret"],
            Self::RestlessTask => &["goes_on"],
        }
    }
}
