//! What must hold in every run, whatever happens: one file each. Pure: they look at what they are shown.
//!
//! | file | what it protects |
//! |---|---|
//! | [`agreement`] | equal state at equal index on every node |
//! | [`votes_grow`] | a node forgets no vote, whatever restarts |
//! | [`acknowledged`] | what was acknowledged is never lost, and done once |
//! | [`one_holder`] | one holder of a VIP in a generation, and generations only grow |
//! | [`vip_table`] | every node sends a VIP's packets to the holder, and to nobody else |
//! | [`drained_holder`] | a holder that is being drained lets go while somebody can take over |
//! | [`lost_holder`] | a VIP leaves a holder that is gone |
//! | [`lets_go`] | who no longer holds a VIP takes its address off |
//! | [`one_founder`] | one machine founds a cluster |
//! | [`no_way_back`] | an active cluster is never founded again |
//! | [`no_step_back`] | what a node has applied never goes back, and over a restart not for long |
//! | [`addresses`] | overlay addresses and node ids belong to one node |
//! | [`tickets`] | a ticket lets in as many machines as it was made for, and none once it was withdrawn |
//! | [`no_secret`] | no secret in a line of the log or an event |

pub mod acknowledged;
pub mod addresses;
pub mod agreement;
pub mod drained_holder;
pub mod lets_go;
pub mod lost_holder;
pub mod no_secret;
pub mod no_step_back;
pub mod no_way_back;
pub mod one_founder;
pub mod one_holder;
mod overdue;
pub mod tickets;
pub mod vip_table;
pub mod votes_grow;

use std::sync::Arc;

use raft_store::model::State;
use raft_store::raft::RaftStatus;
use sdwan::MeshSpec;

/// Above this many members, a state that another node had before is looked at where its index is a multiple of the stride
/// only: a look costs as much as the state is large.
const LARGE: usize = 50;
const STRIDE: u64 = 64;

/// Tells whether what several nodes have at this index is compared.
pub fn is_compared(index: u64, state: &State) -> bool {
    state.nodes.len() <= LARGE || index.is_multiple_of(STRIDE)
}

/// A state that a node has applied.
#[derive(Clone, Copy)]
pub struct Applied<'a> {
    /// Up to which index.
    pub index: u64,
    /// What it was at the newest index that was seen on any node before, if this one is newer.
    pub before: Option<&'a State>,
    /// The state.
    pub state: &'a Arc<State>,
    /// Which machine.
    pub machine: usize,
}

/// How one node stands at a moment.
pub struct Standing {
    /// Which machine.
    pub machine: usize,
    /// Raft's id of the node.
    pub node: u64,
    /// Which life of its daemon, counted on the machine.
    pub life: u64,
    /// How Raft stands.
    pub raft: RaftStatus,
    /// What it has applied, and up to which index.
    pub applied: (u64, Arc<State>),
    /// Its overlay devices.
    pub meshes: Arc<Vec<MeshSpec>>,
    /// Whether its daemon stands still.
    pub paused: bool,
    /// Whether the API server on it answers.
    pub api_ready: bool,
}

/// A moment of the whole fleet.
pub struct Moment<'a> {
    /// Virtual time in microseconds.
    pub at_us: u64,
    /// The nodes that serve now.
    pub nodes: &'a [Standing],
    /// How often each cluster was founded, by its machines.
    pub founders: &'a [(String, Vec<usize>)],
    /// Whether no fault is on.
    pub settled: bool,
    /// Whether the ways between daemons, and drives, are well, whatever daemons do.
    pub net_settled: bool,
    /// Whether any machine's address has changed.
    pub moved: bool,
    /// The newest state that any node has.
    pub newest: Option<&'a Arc<State>>,
}

/// Something that must hold.
pub trait Invariant: Send {
    /// Returns its name, which stays.
    fn name(&self) -> &'static str;

    /// Looks at a state when a node has applied it.
    ///
    /// # Errors
    /// In words, when it does not hold.
    fn applied(&mut self, _: &Applied<'_>) -> Result<(), String> {
        Ok(())
    }

    /// Looks at the fleet at a moment.
    ///
    /// # Errors
    /// In words, when it does not hold.
    fn moment(&mut self, _: &Moment<'_>) -> Result<(), String> {
        Ok(())
    }
}

/// Makes all of them.
pub fn all() -> Vec<Box<dyn Invariant>> {
    vec![
        Box::<agreement::Agreement>::default(),
        Box::<one_holder::OneHolder>::default(),
        Box::<vip_table::VipTable>::default(),
        Box::<drained_holder::DrainedHolder>::default(),
        Box::<lost_holder::LostHolder>::default(),
        Box::<lets_go::LetsGo>::default(),
        Box::<one_founder::OneFounder>::default(),
        Box::<no_way_back::NoWayBack>::default(),
        Box::<no_step_back::NoStepBack>::default(),
        Box::<addresses::Addresses>::default(),
    ]
}
