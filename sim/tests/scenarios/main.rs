//! The whole, end to end, on hosts in namespaces with real daemons; the rehearsal stands in for K3s.

#[path = "../common/mod.rs"]
mod common;
mod life;
mod network;
mod vip;
