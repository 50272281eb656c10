//! One WireGuard session with one peer, as the tunnel uses it: a port, so that a simulator can put its own there.

mod boring;

pub use boring::{BoringLimiter, BoringSession};

use std::net::IpAddr;
use std::time::{Duration, Instant};

use crate::spec::{PrivateKey, PublicKey};

/// What to do with bytes that a session produced.
#[derive(Debug, PartialEq, Eq)]
pub enum Produced<'o> {
    /// Nothing.
    Nothing,
    /// Send to the peer.
    Wire(&'o [u8]),
    /// Deliver: it was authenticated as the peer's.
    Plain(&'o [u8]),
    /// The message was refused.
    Refused,
    /// A call of the peer was refused since it is no newer than one before: somebody repeats it, or the peer's clock went back.
    Stale,
}

/// What a datagram is about, before it is authenticated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Addressee {
    /// The peer with this key (from a handshake initiation).
    Key(PublicKey),
    /// The session with this index.
    Index(u32),
}

/// What one host's sessions share: the check that comes before any expensive work.
pub trait Limiter: Send {
    /// Says whom a datagram is about, or what to answer (a cookie), or refuses it.
    ///
    /// # Errors
    /// Bytes to send back, empty for none.
    fn addressee(&mut self, from: IpAddr, wire: &[u8], out: &mut [u8]) -> Result<Addressee, usize>;

    /// Is to be called each second.
    fn tick(&mut self);
}

/// A session with one peer.
pub trait Session: Send {
    /// What it shares with others.
    type Limiter: Limiter;

    /// Makes the shared part for a host's key.
    fn limiter(private: &PrivateKey) -> Self::Limiter;

    /// Makes a session that is named by `index` on the wire.
    fn new(
        private: &PrivateKey,
        peer: &PublicKey,
        keepalive: Option<u16>,
        index: u32,
        limiter: &Self::Limiter,
    ) -> Self;

    /// Seals a packet; without a key it is queued and a handshake begins.
    fn seal<'o>(&mut self, packet: &[u8], out: &'o mut [u8], now: Instant) -> Produced<'o>;

    /// Opens a datagram. After `Wire`, call again with no bytes until `Nothing`: queued packets follow.
    fn open<'o>(
        &mut self,
        from: Option<IpAddr>,
        wire: &[u8],
        out: &'o mut [u8],
        now: Instant,
    ) -> Produced<'o>;

    /// Advances timers; to be called at least each 250 ms.
    fn tick<'o>(&mut self, out: &'o mut [u8], now: Instant) -> Produced<'o>;

    /// Begins a handshake, unless one is under way.
    fn initiate<'o>(&mut self, out: &'o mut [u8], now: Instant) -> Produced<'o>;

    /// Returns how long ago keys were agreed.
    fn handshake_age(&self) -> Option<Duration>;
}
