//! The whole, end to end, on hosts in namespaces with real daemons; the rehearsal stands in for K3s.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stdout,
    reason = "a test that meets what it did not expect ends"
)]

mod acknowledged;
mod bench;
mod chaos;
mod clock;
#[path = "../common/mod.rs"]
mod common;
mod device;
mod flows;
mod foreign;
mod hanging;
mod http;
mod interrupted;
mod killed;
mod life;
mod members;
mod network;
mod operators;
mod roles;
mod secrets;
mod steps;
mod surface;
mod tickets;
mod vip;
mod voters;
mod way;
mod wrong_disk;
mod wrong_host;
mod wrong_input;
mod wrong_k3s;
