//! The tunnel's core: packets and datagrams in, packets and datagrams out, no I/O. Pure, generic over the session.
//!
//! A packet's way through it is one line in each direction. Outwards: a superpacket of the device is cut, each packet sealed
//! into the arena, and datagrams that go the same way are one train. Inwards: a train of the socket is opened, datagram by
//! datagram, into the arena, and packets of one flow are joined to superpackets. What was produced lies in the arena until
//! it is taken, so that a shell sends many at once.

mod inbound;
mod outbound;
mod outbox;

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

pub use outbound::Superpacket;
pub use outbox::{Output, Train};

use crate::handover::Handovers;
use crate::offload::Joins;
use crate::routing::AllowedIps;
use crate::session::{Limiter, Produced, Session};
use crate::spec::{MeshSpec, PeerSpec, PublicKey};
use outbox::Outbox;

/// boringtun's timers must be looked at this often.
const TICK: Duration = Duration::from_millis(250);
/// The limiter counts handshakes per second.
const LIMIT: Duration = Duration::from_secs(1);
/// A peer without keys is called again after this time.
const CALL: Duration = Duration::from_secs(5);
/// The first byte of each message (WireGuard paper, section 5.4).
const INITIATION: u8 = 1;
const RESPONSE: u8 = 2;
const COOKIE: u8 = 3;
const DATA: u8 = 4;
/// Handshakes are of the class AF41 (RFC 2597), as those of the kernel's WireGuard.
const HANDSHAKE_CLASS: u8 = 0x88;

/// A way to a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Path {
    /// Where it is.
    pub remote: SocketAddr,
    /// The address of this host that it spoke to, and wants to be answered from; unknown before it spoke.
    pub local: Option<IpAddr>,
}

impl From<SocketAddr> for Path {
    fn from(remote: SocketAddr) -> Self {
        Self { remote, local: None }
    }
}

/// Why packets were dropped, counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Drops {
    /// No peer answers for the destination.
    pub unroutable: u64,
    /// The peer's address is not known.
    pub no_endpoint: u64,
    /// The datagram was refused: unknown, replayed, or forged.
    pub refused: u64,
    /// The source is not the sending peer's.
    pub spoofed: u64,
    /// No IP packet.
    pub malformed: u64,
    /// The way was congested, and the packet's sender cannot be told otherwise (RFC 6040).
    pub congested: u64,
}

/// How one peer stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerStatus {
    /// Its name.
    pub name: String,
    /// Its key.
    pub key: PublicKey,
    /// Where it is reached.
    pub endpoint: Option<SocketAddr>,
    /// How long ago keys were agreed.
    pub handshake_age: Option<Duration>,
    /// Bytes of packets received from it.
    pub rx_bytes: u64,
    /// Bytes of packets sent to it.
    pub tx_bytes: u64,
}

struct Peer<S> {
    spec: PeerSpec,
    session: S,
    endpoint: Option<Path>,
    called: Option<Instant>,
    rx_bytes: u64,
    tx_bytes: u64,
}

/// One overlay's tunnel.
pub struct Tunnel<S: Session> {
    generation: u64,
    limiter: Option<S::Limiter>,
    private: Option<crate::spec::PrivateKey>,
    peers: BTreeMap<u32, Peer<S>>,
    by_key: BTreeMap<PublicKey, u32>,
    routes: AllowedIps<u32>,
    handovers: Handovers,
    next_index: u32,
    outbox: Outbox,
    next_tick: Option<Instant>,
    next_limit: Option<Instant>,
    drops: Drops,
}

impl<S: Session> Default for Tunnel<S> {
    fn default() -> Self {
        Self::new(1)
    }
}

impl<S: Session> Tunnel<S> {
    /// Makes a tunnel without peers; sessions are numbered from `first_index`.
    pub fn new(first_index: u32) -> Self {
        Self {
            generation: 0,
            limiter: None,
            private: None,
            peers: BTreeMap::new(),
            by_key: BTreeMap::new(),
            routes: AllowedIps::new(),
            handovers: Handovers::default(),
            next_index: first_index,
            outbox: Outbox::default(),
            next_tick: None,
            next_limit: None,
            drops: Drops::default(),
        }
    }

    /// Takes over peers and AllowedIPs at once; a spec older than the last is ignored. Peers that stay keep
    /// their sessions.
    pub fn set_spec(&mut self, spec: &MeshSpec, now: Instant) {
        if spec.generation < self.generation {
            return;
        }
        self.generation = spec.generation;
        if self.private.as_ref() != Some(&spec.private_key) {
            self.private = Some(spec.private_key.clone());
            self.limiter = Some(S::limiter(&spec.private_key));
            self.peers.clear();
            self.by_key.clear();
        }
        let wanted: BTreeMap<PublicKey, &PeerSpec> =
            spec.peers.iter().map(|p| (p.public_key, p)).collect();
        self.peers.retain(|_, p| {
            wanted.get(&p.spec.public_key).is_some_and(|w| w.keepalive == p.spec.keepalive)
        });
        self.by_key = self.peers.iter().map(|(i, p)| (p.spec.public_key, *i)).collect();
        for (key, peer) in wanted {
            match self.by_key.get(&key).and_then(|i| self.peers.get_mut(i)) {
                Some(known) => known.spec = peer.clone(),
                None => self.add_peer(peer),
            }
        }
        self.routes = AllowedIps::new();
        for (index, peer) in &self.peers {
            for net in &peer.spec.allowed_ips {
                self.routes.insert(*net, *index);
            }
        }
        let former = spec.handovers.iter();
        let former = former.filter_map(|h| Some((h.address, *self.by_key.get(&h.from)?)));
        self.handovers.set(former.collect());
        self.next_tick = Some(now);
        self.next_limit.get_or_insert(now + LIMIT);
    }

    fn add_peer(&mut self, spec: &PeerSpec) {
        let (Some(private), Some(limiter)) = (&self.private, &self.limiter) else {
            return;
        };
        let index = self.next_index;
        // 24 bits: the wire carries the index with eight bits of a counter behind it.
        self.next_index = (self.next_index + 1) & 0x00ff_ffff;
        let session = S::new(private, &spec.public_key, spec.keepalive, index, limiter);
        let endpoint = spec.endpoints.first().map(|at| Path::from(*at));
        let peer =
            Peer { spec: spec.clone(), session, endpoint, called: None, rx_bytes: 0, tx_bytes: 0 };
        self.peers.insert(index, peer);
        self.by_key.insert(spec.public_key, index);
    }

    /// Advances timers, if they are due.
    pub fn handle_timeout(&mut self, now: Instant) {
        if self.next_limit.is_some_and(|at| now >= at) {
            self.next_limit = Some(now + LIMIT);
            if let Some(limiter) = &mut self.limiter {
                limiter.tick();
            }
        }
        if self.next_tick.is_none_or(|at| now < at) {
            return;
        }
        self.next_tick = Some(now + TICK);
        for peer in self.peers.values_mut() {
            let made = Made::of(&peer.session.tick(self.outbox.room(), now));
            peer.send(made, 0, &mut self.outbox);
            // A mesh is kept warm: whoever has an address is called until it answers.
            let cold = peer.session.handshake_age().is_none() && !peer.spec.endpoints.is_empty();
            let due = peer.called.is_none_or(|at| now.saturating_duration_since(at) >= CALL);
            if cold && due && peer.spec.keepalive.is_some() {
                peer.called = Some(now);
                let made = Made::of(&peer.session.initiate(self.outbox.room(), now));
                peer.send(made, 0, &mut self.outbox);
            }
        }
    }

    /// Returns when [`Tunnel::handle_timeout`] is due.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.next_tick
    }

    /// Says what the device takes in one piece; nothing, at first.
    pub fn set_joins(&mut self, joins: Joins) {
        self.outbox.set_joins(joins);
    }

    /// Whether what was produced should be taken before more is handed in.
    pub fn is_full(&self) -> bool {
        self.outbox.is_full()
    }

    /// Hands everything that was produced to `sink`, each kind in order, and forgets it.
    pub fn take_output(&mut self, sink: impl FnMut(Output<'_>)) {
        self.outbox.take(sink);
    }

    /// Forgets an address of this host that is gone: peers are answered from whichever the kernel chooses.
    pub fn forget_local(&mut self, gone: IpAddr) {
        let endpoints = self.peers.values_mut().filter_map(|p| p.endpoint.as_mut());
        endpoints.filter(|e| e.local == Some(gone)).for_each(|e| e.local = None);
    }

    /// Returns how the peers stand.
    pub fn peers(&self) -> Vec<PeerStatus> {
        let status = |p: &Peer<S>| PeerStatus {
            name: p.spec.name.clone(),
            key: p.spec.public_key,
            endpoint: p.endpoint.map(|e| e.remote),
            handshake_age: p.session.handshake_age(),
            rx_bytes: p.rx_bytes,
            tx_bytes: p.tx_bytes,
        };
        self.peers.values().map(status).collect()
    }

    /// Returns what was dropped so far.
    pub fn drops(&self) -> Drops {
        self.drops
    }

    /// Returns whom an address belongs to, for diagnosis.
    pub fn peer_for(&self, ip: IpAddr) -> Option<&str> {
        self.routes.get(ip).and_then(|i| self.peers.get(&i)).map(|p| p.spec.name.as_str())
    }
}

/// What a session made of an input, and how many bytes of the room it took.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Made {
    Nothing,
    Wire(usize),
    Plain(usize),
    Refused,
}

impl Made {
    fn of(produced: &Produced<'_>) -> Self {
        match produced {
            Produced::Nothing => Self::Nothing,
            Produced::Wire(bytes) => Self::Wire(bytes.len()),
            Produced::Plain(bytes) => Self::Plain(bytes.len()),
            Produced::Refused => Self::Refused,
        }
    }
}

impl<S> Peer<S> {
    /// Sends what the session wrote to where the peer was last heard; a call for it goes to all places where it may be.
    fn send(&self, made: Made, class: u8, outbox: &mut Outbox) {
        let Made::Wire(length) = made else {
            return;
        };
        let endpoint = self.endpoint;
        let kind = outbox.written(length).first().copied();
        let class = if kind == Some(DATA) { class } else { HANDSHAKE_CLASS };
        let calls = kind == Some(INITIATION);
        let others = self
            .spec
            .endpoints
            .iter()
            .filter(|c| calls && endpoint.is_none_or(|e| e.remote != **c));
        outbox.keep_datagram(
            length,
            class,
            endpoint.into_iter().chain(others.map(|at| (*at).into())),
        );
    }
}

#[cfg(test)]
mod tests;
