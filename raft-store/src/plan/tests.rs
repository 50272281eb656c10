//! Tests of what the leader proposes. Pure.

mod fixture;
mod properties;
mod silence;
mod vips;
mod voters;
