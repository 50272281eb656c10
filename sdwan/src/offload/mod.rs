//! What network cards do for the kernel, done for a TUN device: many packets change hands in one piece. Pure.

pub(crate) mod checksum;
pub mod coalesce;
pub mod split;
pub mod virtio;

pub use coalesce::{Coalescer, Joins, PACKETS_MAX, Parts};
pub use split::{Malformed, longest, split};
pub use virtio::{HEADER, Offload, Segments};

#[cfg(test)]
pub(crate) mod tests;
