//! Tests of what the leader proposes. Pure.

mod etcd;
mod fixture;
mod properties;
mod silence;
mod vips;
mod voters;
