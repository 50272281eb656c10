//! The whole, end to end, on hosts in namespaces with real daemons; the rehearsal stands in for K3s.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stdout,
    reason = "a test that meets what it did not expect ends"
)]

mod bench;
#[path = "../common/mod.rs"]
mod common;
mod device;
mod flows;
mod life;
mod network;
mod vip;
