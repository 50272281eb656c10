//! How the peers of one overlay are divided among several tunnels, each of which a thread of its own owns. Pure.
//!
//! A session belongs to one tunnel, so that no packet needs a lock. Which one follows from the peer's key; and from each message
//! but a call, since these have a receiver index (WireGuard paper, section 5.4), which this host chose. What reaches another
//! tunnel all the same is a stray, and handed on.

use super::{Owner, Path, Tunnel};
use crate::offload::Offload;
use crate::session::{Addressee, Session};
use crate::spec::PublicKey;

/// The most tunnels that carry one overlay: a power of two, so that indexes may wrap around.
pub const SHARDS_MAX: u32 = 8;

/// Which of the tunnels of one overlay this is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shard {
    number: u32,
    of: u32,
}

impl Shard {
    /// The only one.
    pub const ALONE: Self = Self { number: 0, of: 1 };

    /// All tunnels of an overlay; rounded down to a number of them that there can be.
    pub fn all(wanted: u32) -> impl ExactSizeIterator<Item = Self> {
        let of = 1 << wanted.clamp(1, SHARDS_MAX).ilog2();
        (0..of).map(move |number| Self { number, of })
    }

    /// Returns how many there are.
    pub fn count(self) -> u32 {
        self.of
    }

    /// Returns who has the peer with this key.
    pub fn of_key(self, key: &PublicKey) -> u32 {
        u32::from(key.0[0]) % self.of
    }

    /// Returns who has the session with this index.
    pub fn of_index(self, index: u32) -> u32 {
        index % self.of
    }

    /// Tells whether it has the peer with this key.
    pub fn has_key(self, key: &PublicKey) -> bool {
        self.of_key(key) == self.number
    }

    /// The first index from `from` on that is this one's.
    pub(super) fn index_from(self, from: u32) -> u32 {
        from - from % self.of + self.number
    }

    pub(super) fn has_index(self, index: u32) -> bool {
        self.of_index(index) == self.number
    }
}

/// What reached a tunnel and is another one's.
#[derive(Debug, PartialEq, Eq)]
pub struct Stray {
    /// Whose it is.
    pub to: u32,
    pub(super) what: What,
}

#[derive(Debug, PartialEq, Eq)]
pub(super) enum What {
    /// A superpacket of the device; `settled` where a handover of its destination has nothing to say any more.
    Packet { offload: Offload, bytes: Vec<u8>, settled: bool },
    /// A datagram that the limiter let pass.
    Datagram { path: Path, class: u8, addressee: Addressee, wire: Vec<u8> },
}

impl Stray {
    /// Whether it came from the wire: calls are among these, which must not wait behind packets of the device.
    pub fn is_datagram(&self) -> bool {
        matches!(self.what, What::Datagram { .. })
    }
}

impl<S: Session> Tunnel<S> {
    /// Takes what another tunnel of this overlay handed on.
    pub fn handle_stray(&mut self, stray: Stray, now: std::time::Instant) {
        match stray.what {
            What::Packet { offload, mut bytes, settled } => {
                self.outward(offload, &mut bytes, Some(settled), now);
            }
            What::Datagram { path, class, addressee, wire } => {
                self.take_datagram(path, class, addressee, &wire, now);
            }
        }
    }

    /// Returns what came here since this was called last and is another tunnel's.
    pub fn take_strays(&mut self) -> impl Iterator<Item = Stray> {
        self.strays.drain(..)
    }

    pub(super) fn owner(&self, key: &PublicKey) -> Option<Owner> {
        if self.shard.has_key(key) {
            return self.by_key.get(key).copied().map(Owner::Here);
        }
        Some(Owner::There(self.shard.of_key(key)))
    }
}
