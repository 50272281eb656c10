//! The whole fleet in one process, under one seed: real daemons in a simulated world.

pub mod bench;
pub mod cli;
pub mod distort;
pub mod draw;
pub mod flaw;
pub mod flaws;
pub mod heal;
pub mod invariant;
pub mod judge;
pub mod k3s;
pub mod kernel;
pub mod log;
pub mod people;
pub mod play;
pub mod register;
pub mod report;
pub mod run;
pub mod schedule;
pub mod shrink;
pub mod story;
pub mod sweep;
pub mod trace;
pub mod watchdog;
pub mod world;
