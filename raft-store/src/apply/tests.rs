//! Tests of `apply`, by behaviour. Pure.

mod admission;
mod assignments;
mod codec;
mod drains;
mod ending;
mod examples;
pub(crate) mod fixture;
pub(crate) mod generator;
mod handshake;
mod invariant;
mod leaving;
mod networks;
mod properties;
mod vips;
