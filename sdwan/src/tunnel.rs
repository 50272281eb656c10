//! The tunnel's core: packets and datagrams in, packets and datagrams out, no I/O. Pure, generic over the session.
//!
//! Inputs are taken one batch after the other; what they produce lies in one arena until it is taken, so that a
//! shell can send many at once.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::ops::Range;
use std::time::{Duration, Instant};

use crate::handover::Handovers;
use crate::packet::addresses;
use crate::routing::AllowedIps;
use crate::session::{Addressee, Limiter, Produced, Session};
use crate::spec::{MeshSpec, PeerSpec, PublicKey};

/// The most bytes that a session makes of one packet or datagram.
const SCRATCH: usize = 65_536 + 256;
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

/// Where something produced must go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// To the wire.
    Udp(Path),
    /// To this host's network stack.
    Tun,
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

/// What was produced and not taken yet.
#[derive(Default)]
struct Outbox {
    arena: Vec<u8>,
    items: Vec<(Target, Range<usize>)>,
}

impl Outbox {
    fn push(&mut self, target: Target, bytes: &[u8]) {
        let start = self.arena.len();
        self.arena.extend_from_slice(bytes);
        self.items.push((target, start..self.arena.len()));
    }
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
    scratch: Vec<u8>,
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
            scratch: vec![0; SCRATCH],
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

    /// Takes packets of this host's network stack.
    pub fn handle_tun<'p>(&mut self, packets: impl IntoIterator<Item = &'p [u8]>, now: Instant) {
        for packet in packets {
            let Some(at) = addresses(packet) else {
                self.drops.malformed += 1;
                continue;
            };
            let former = self.handovers.outbound(at, packet);
            let index = former.or_else(|| self.routes.get(at.destination));
            let peer = index.and_then(|i| self.peers.get_mut(&i));
            let Some(peer) = peer else {
                self.drops.unroutable += 1;
                continue;
            };
            if peer.endpoint.is_none() && peer.spec.endpoints.is_empty() {
                self.drops.no_endpoint += 1;
                continue;
            }
            peer.tx_bytes += packet.len() as u64;
            let produced = peer.session.seal(packet, &mut self.scratch, now);
            send(&mut self.outbox, peer.endpoint, &peer.spec.endpoints, &produced);
        }
    }

    /// Takes datagrams from the wire.
    pub fn handle_udp<'p, P: Into<Path>>(
        &mut self,
        datagrams: impl IntoIterator<Item = (P, &'p [u8])>,
        now: Instant,
    ) {
        for (from, wire) in datagrams {
            let from = from.into();
            let Some(limiter) = &mut self.limiter else {
                return;
            };
            let index = match limiter.addressee(from.remote.ip(), wire, &mut self.scratch) {
                Ok(Addressee::Key(key)) => self.by_key.get(&key).copied(),
                Ok(Addressee::Index(index)) => Some(index),
                Err(cookie) => {
                    if cookie > 0 {
                        self.outbox.push(Target::Udp(from), &self.scratch[..cookie]);
                    }
                    self.drops.refused += 1;
                    continue;
                }
            };
            match index.filter(|i| self.peers.contains_key(i)) {
                Some(index) => self.open(index, from, wire, now),
                None => self.drops.refused += 1,
            }
        }
    }

    fn open(&mut self, index: u32, from: Path, wire: &[u8], now: Instant) {
        let Some(peer) = self.peers.get_mut(&index) else {
            return;
        };
        // Only these prove that the peer itself is there now: an initiation may be an old one of a former life of
        // ours, and a cookie is made from what anybody may have overheard.
        let proof = matches!(wire.first(), Some(&(RESPONSE | DATA)));
        let mut input = wire;
        loop {
            let produced = peer.session.open(Some(from.remote.ip()), input, &mut self.scratch, now);
            let refused = match &produced {
                Produced::Refused => true,
                Produced::Wire(bytes) => bytes.first() == Some(&COOKIE),
                Produced::Nothing | Produced::Plain(_) => false,
            };
            if proof && !refused && !input.is_empty() {
                peer.endpoint = Some(from);
            }
            match produced {
                Produced::Nothing => return,
                Produced::Refused => {
                    self.drops.refused += 1;
                    return;
                }
                Produced::Wire(bytes) => {
                    self.outbox.push(Target::Udp(from), bytes);
                    input = &[];
                }
                Produced::Plain(packet) => {
                    match addresses(packet) {
                        None => self.drops.malformed += 1,
                        Some(at)
                            if self.routes.get(at.source) != Some(index)
                                && !self.handovers.inbound(at, index) =>
                        {
                            self.drops.spoofed += 1
                        }
                        Some(_) => {
                            peer.rx_bytes += packet.len() as u64;
                            self.outbox.push(Target::Tun, packet);
                        }
                    }
                    return;
                }
            }
        }
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
            let produced = peer.session.tick(&mut self.scratch, now);
            send(&mut self.outbox, peer.endpoint, &peer.spec.endpoints, &produced);
            // A mesh is kept warm: whoever has an address is called until it answers.
            let cold = peer.session.handshake_age().is_none() && !peer.spec.endpoints.is_empty();
            let due = peer.called.is_none_or(|at| now.saturating_duration_since(at) >= CALL);
            if cold && due && peer.spec.keepalive.is_some() {
                peer.called = Some(now);
                let produced = peer.session.initiate(&mut self.scratch, now);
                send(&mut self.outbox, peer.endpoint, &peer.spec.endpoints, &produced);
            }
        }
    }

    /// Returns when [`Tunnel::handle_timeout`] is due.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.next_tick
    }

    /// Hands everything that was produced to `sink`, in order, and forgets it.
    pub fn take_output(&mut self, mut sink: impl FnMut(Target, &[u8])) {
        for (target, range) in self.outbox.items.drain(..) {
            sink(target, &self.outbox.arena[range]);
        }
        self.outbox.arena.clear();
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

/// Sends to where the peer was last heard; a call for it goes to all places where it may be.
fn send(
    outbox: &mut Outbox,
    endpoint: Option<Path>,
    candidates: &[SocketAddr],
    produced: &Produced<'_>,
) {
    let Produced::Wire(bytes) = produced else {
        return;
    };
    if let Some(at) = endpoint {
        outbox.push(Target::Udp(at), bytes);
    }
    if bytes.first() == Some(&INITIATION) {
        for at in candidates.iter().filter(|c| endpoint.is_none_or(|e| e.remote != **c)) {
            outbox.push(Target::Udp((*at).into()), bytes);
        }
    }
}

#[cfg(test)]
#[path = "tunnel_tests.rs"]
mod tests;
