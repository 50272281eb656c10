//! The asynchronous runtime that openraft runs on: one name, so that the choice lies in one place.

/// tokio, as openraft's own crate adapts it.
pub type NodeRt = openraft_rt_tokio::TokioRuntime;
