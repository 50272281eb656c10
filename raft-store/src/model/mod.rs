//! The domain: what the daemons replicate, as plain values. Pure.

pub mod cluster;
pub mod event;
pub mod fleet;
pub mod id;
pub mod key;
pub mod network;
pub mod node;
pub mod requests;
pub mod state;

pub use cluster::{
    Assumption, Cluster, ClusterStatus, EtcdTimers, Ghost, MoveReason, NextHolder, Vip,
};
pub use event::{Event, EventRing, Severity};
pub use fleet::{Fleet, Operator, Ticket, TicketRole, Tickets};
pub use id::{
    ClusterId, FOUNDER, Generation, InvalidName, Name, NetworkId, NodeId, RequestId, TicketId,
    UnixMillis, VipId,
};
pub use key::{Digest, InvalidKey, PublicKey, Sealed};
pub use network::{DEFAULT_MTU, Device, FIRST_PORT, Network};
pub use node::{
    Assignment, Drain, DrainStep, Node, OverlayAddress, Phase, PodRanges, Retired, Role,
};
pub use requests::{Remembered, Requests};
pub use state::{State, default_pools, overlap, overlap4};
