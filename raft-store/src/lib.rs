//! Skein's replicated state: what the daemons agree on, how it changes, and the Raft group that keeps it.
//!
//! | module | what | pure |
//! |---|---|---|
//! | [`model`] | the domain's values and the questions asked of them | yes |
//! | [`apply`] | the one function that changes state | yes |
//! | [`plan`] | what the leader should propose next | yes |
//! | [`seal`] | sealing of secrets | yes |
//! | [`disk`] | durable log on sled, snapshot files | no |
//! | [`rt`] | a node's tasks, clock and randomness | no |
//! | [`raft`] | openraft adaptors and the [`raft::Store`] handle | no |

pub mod apply;
pub mod disk;
pub mod model;
pub mod plan;
pub mod raft;
pub mod rt;
pub mod seal;
