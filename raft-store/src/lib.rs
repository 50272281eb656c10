//! Skein's replicated state: what the daemons agree on, how it changes, and the Raft group that keeps it.
//!
//! | module | what | pure |
//! |---|---|---|
//! | [`model`] | the domain's values and the questions asked of them | yes |
//! | [`apply`] | the one function that changes state | yes |
//! | [`plan`] | what the leader should propose next | yes |
//! | [`seal`] | sealing of secrets | yes |

pub mod apply;
pub mod model;
pub mod plan;
pub mod seal;
