//! Tests of what the leader proposes. Pure.

mod clock;
mod etcd;
mod fixture;
mod properties;
mod silence;
mod vips;
mod voters;
