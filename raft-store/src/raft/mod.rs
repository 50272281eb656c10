//! openraft on the durable disk: adaptors, and the [`Store`] through which the daemon uses them.

mod calls;
mod inbound;
mod log;
mod machine;
mod net;
mod store;
mod ticks;
mod types;
mod wire;

pub use calls::{ProposeError, ReadError};
pub use log::LogStore;
pub use machine::{Published, StateMachine};
pub use net::{Frame, Transport, TransportError, kind};
pub use store::{Profile, RaftStatus, Store, StoreConfig, StoreError, is_in_use, is_put_aside};
pub use types::{Member, TypeConfig};
pub use wire::{committed_index, granted_vote};
