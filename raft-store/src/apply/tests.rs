//! Tests of `apply`, by behaviour. Pure.

mod admission;
mod assignments;
mod codec;
mod drains;
pub(crate) mod fixture;
mod generator;
mod handshake;
mod invariant;
mod leaving;
mod networks;
mod properties;
mod vips;
