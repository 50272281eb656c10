//! The whole fleet in one process, under one seed: real daemons in a simulated world.

pub mod cli;
pub mod draw;
pub mod heal;
pub mod invariant;
pub mod judge;
pub mod nok3s;
pub mod k3s;
pub mod kernel;
pub mod people;
pub mod play;
pub mod run;
pub mod schedule;
pub mod trace;
pub mod world;
