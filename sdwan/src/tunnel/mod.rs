//! The tunnel's core: packets and datagrams in, packets and datagrams out, no I/O. Pure, generic over the session.
//!
//! A packet's way through it is one line in each direction. Outwards: a superpacket of the device is cut, each packet sealed
//! into the arena, and datagrams that go the same way are one train. Inwards: a train of the socket is opened, datagram by
//! datagram, into the arena, and packets of one flow are joined to superpackets. What was produced lies in the arena until
//! it is taken, so that a shell sends many at once.

mod inbound;
mod outbound;
mod outbox;
mod probe;
mod shard;
mod status;

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

pub use outbound::Superpacket;
pub use outbox::{Kind, Output, Train};
pub use shard::{SHARDS_MAX, Shard, Stray};
pub use status::{Drops, PeerStatus};

use crate::handover::Handovers;
use crate::icmp::{Echo, write_echo};
use crate::offload::Joins;
use crate::packet::Addresses;
use crate::routing::AllowedIps;
use crate::session::{Limiter, Produced, Session};
use crate::spec::{MeshSpec, PeerSpec, PublicKey};
use outbox::Outbox;
use probe::{Probes, Requests};

/// boringtun's timers must be looked at this often.
const TICK: Duration = Duration::from_millis(250);
/// The limiter counts handshakes per second.
const LIMIT: Duration = Duration::from_secs(1);
/// A peer without keys is called again after this time.
const CALL: Duration = Duration::from_secs(5);
/// Keys are no longer used after this (REJECT_AFTER_TIME of the WireGuard paper, section 6.1).
const KEYS_MAX: Duration = Duration::from_secs(180);
/// Who sends packets that are too big and may be fragmented is told this often at most.
const TELL: Duration = Duration::from_secs(1);
/// Names echo requests of ours, beside their mark.
const IDENTIFIER: u16 = 0x5ce1;
/// 24 bits: the wire carries the index of a session with eight bits of a counter behind it.
const INDEX_MAX: u32 = 0x00ff_ffff;
/// How long a small echo request is, in bytes; as ping(8) makes them over IPv6.
const SMALL: usize = 104;
/// The first byte of each message (WireGuard paper, section 5.4).
const INITIATION: u8 = 1;
pub(crate) const RESPONSE: u8 = 2;
pub(crate) const COOKIE: u8 = 3;
pub(crate) const DATA: u8 = 4;
/// Handshakes are of the class AF41 (RFC 2597), as those of the kernel's WireGuard.
const HANDSHAKE: Kind = Kind { class: 0x88, whole: false };

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

/// Who has a peer's session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Owner {
    /// This tunnel, under this index.
    Here(u32),
    /// Another one of the same overlay.
    There(u32),
}

struct Peer<S> {
    spec: PeerSpec,
    session: S,
    endpoint: Option<Path>,
    called: Option<Instant>,
    /// When somebody was told last that packets to it are too big.
    told: Option<Instant>,
    /// When a call of the peer was answered last.
    answered: Option<Instant>,
    probes: Probes,
    /// Whether somebody wants a round trip to be taken now.
    asked: bool,
    rx_bytes: u64,
    tx_bytes: u64,
}

/// One overlay's tunnel, or one of several that carry it together.
pub struct Tunnel<S: Session> {
    shard: Shard,
    generation: u64,
    limiter: Option<S::Limiter>,
    private: Option<crate::spec::PrivateKey>,
    own: Vec<IpAddr>,
    mtu: u16,
    peers: BTreeMap<u32, Peer<S>>,
    by_key: BTreeMap<PublicKey, u32>,
    routes: AllowedIps<Owner>,
    handovers: Handovers,
    next_index: u32,
    outbox: Outbox,
    next_tick: Option<Instant>,
    next_limit: Option<Instant>,
    rekey: Option<Duration>,
    drops: Drops,
    strays: Vec<Stray>,
}

impl<S: Session> Default for Tunnel<S> {
    fn default() -> Self {
        Self::new(1)
    }
}

impl<S: Session> Tunnel<S> {
    /// Makes a tunnel without peers; sessions are numbered from `first_index` on.
    pub fn new(first_index: u32) -> Self {
        Self::of(Shard::ALONE, first_index)
    }

    /// Makes one of several tunnels without peers; sessions are numbered from about `first_index` on.
    pub fn of(shard: Shard, first_index: u32) -> Self {
        Self {
            shard,
            generation: 0,
            limiter: None,
            private: None,
            own: Vec::new(),
            mtu: 0,
            peers: BTreeMap::new(),
            by_key: BTreeMap::new(),
            routes: AllowedIps::new(),
            handovers: Handovers::default(),
            next_index: shard.index_from(first_index & INDEX_MAX),
            outbox: Outbox::default(),
            next_tick: None,
            next_limit: None,
            rekey: None,
            drops: Drops::default(),
            strays: Vec::new(),
        }
    }

    /// Takes over peers and AllowedIPs at once; a spec older than the last is ignored. Peers that stay keep
    /// their sessions.
    pub fn set_spec(&mut self, spec: &MeshSpec, now: Instant) {
        self.set_spec_with(spec, || S::limiter(&spec.private_key), now);
    }

    /// As [`Self::set_spec`]; tunnels that carry one overlay together must share what `limiter` makes for a new key.
    pub fn set_spec_with(
        &mut self,
        spec: &MeshSpec,
        limiter: impl FnOnce() -> S::Limiter,
        now: Instant,
    ) {
        if spec.generation < self.generation {
            return;
        }
        self.generation = spec.generation;
        self.own.clone_from(&spec.addresses);
        self.mtu = spec.mtu;
        if self.private.as_ref() != Some(&spec.private_key) {
            self.private = Some(spec.private_key.clone());
            self.limiter = Some(limiter());
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
                Some(known) => {
                    known.spec = peer.clone();
                    known.probes.set_mtu(spec.mtu);
                }
                None if self.shard.has_key(&key) => self.add_peer(peer),
                None => {}
            }
        }
        self.lead(spec);
        self.next_tick = Some(now);
        self.next_limit.get_or_insert(now + LIMIT);
    }

    /// Says whose packets are whose.
    fn lead(&mut self, spec: &MeshSpec) {
        let mut routes = AllowedIps::new();
        for peer in spec.peers.iter() {
            let Some(owner) = self.owner(&peer.public_key) else { continue };
            peer.allowed_ips.iter().for_each(|net| routes.insert(*net, owner));
        }
        self.routes = routes;
        let former = spec.handovers.iter();
        let known = |key| spec.peers.iter().any(|p| p.public_key == key);
        let former = former.filter(|h| known(h.from));
        let former = former.filter_map(|h| Some((h.address, self.owner(&h.from)?)));
        self.handovers.set(former.collect());
    }

    fn add_peer(&mut self, spec: &PeerSpec) {
        let (Some(private), Some(limiter)) = (&self.private, &self.limiter) else {
            return;
        };
        let index = self.next_index;
        self.next_index = (self.next_index + self.shard.count()) & INDEX_MAX;
        let session = S::new(private, &spec.public_key, spec.keepalive, index, limiter);
        let endpoint = spec.endpoints.first().map(|at| Path::from(*at));
        let peer = Peer {
            spec: spec.clone(),
            session,
            endpoint,
            called: None,
            told: None,
            answered: None,
            probes: Probes::new(self.mtu),
            asked: false,
            rx_bytes: 0,
            tx_bytes: 0,
        };
        self.peers.insert(index, peer);
        self.by_key.insert(spec.public_key, index);
    }

    /// Renews keys after this already; otherwise after 120 s (REKEY_AFTER_TIME of the WireGuard paper, section 6.1).
    pub fn set_rekey(&mut self, after: Duration) {
        self.rekey = Some(after);
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
            peer.send(made, Kind::default(), &mut self.outbox);
            peer.probe(&self.own, &mut self.outbox, now);
            // A mesh is kept warm: whoever has an address is called until it answers.
            let wanted = match peer.session.handshake_age() {
                None => !peer.spec.endpoints.is_empty(),
                Some(age) => self.rekey.is_some_and(|after| age >= after),
            };
            let pause = self.rekey.unwrap_or(CALL).min(CALL);
            if wanted && peer.spec.keepalive.is_some() {
                peer.call(pause, &mut self.outbox, now);
            }
        }
    }

    /// Takes a round trip to a peer soon; false if there is no such peer, or it has no address that could be asked.
    pub fn ask(&mut self, key: &PublicKey, now: Instant) -> bool {
        let peer = self.by_key.get(key).and_then(|index| self.peers.get_mut(index));
        let Some(peer) = peer.filter(|p| p.whom_to_ask(&self.own).is_some()) else {
            return false;
        };
        peer.asked = true;
        peer.probes.hasten();
        self.next_tick = Some(now);
        true
    }

    /// Returns the round trips to a peer that ended since this was called last: nothing, or how long the last one took if it was
    /// answered.
    pub fn take_answer(&mut self, key: &PublicKey) -> Option<Option<Duration>> {
        self.peers.get_mut(self.by_key.get(key)?)?.probes.take_finished()
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
            round_trip: p.probes.round_trip(),
            lost: p.probes.lost(),
            path_mtu: p.probes.path_mtu(),
        };
        self.peers.values().map(status).collect()
    }

    /// Returns what was dropped so far.
    pub fn drops(&self) -> Drops {
        self.drops
    }

    /// Returns whom an address belongs to, for diagnosis.
    pub fn peer_for(&self, ip: IpAddr) -> Option<&str> {
        let Some(Owner::Here(index)) = self.routes.get(ip) else { return None };
        self.peers.get(&index).map(|p| p.spec.name.as_str())
    }
}

/// What is particular about a datagram that begins so: of data what is `wanted`, of all others what handshakes have.
fn kind_of(first: Option<u8>, wanted: Kind) -> Kind {
    if first == Some(DATA) { wanted } else { HANDSHAKE }
}

/// What a session made of an input, and how many bytes of the room it took.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Made {
    Nothing,
    Wire(usize),
    Plain(usize),
    Refused,
    Stale,
}

impl Made {
    fn of(produced: &Produced<'_>) -> Self {
        match produced {
            Produced::Nothing => Self::Nothing,
            Produced::Wire(bytes) => Self::Wire(bytes.len()),
            Produced::Plain(bytes) => Self::Plain(bytes.len()),
            Produced::Refused => Self::Refused,
            Produced::Stale => Self::Stale,
        }
    }
}

impl<S: Session> Peer<S> {
    /// Sends echo requests through the tunnel, if they are due. What is never called by us is not to be woken, unless somebody asks.
    fn probe(&mut self, own: &[IpAddr], outbox: &mut Outbox, now: Instant) {
        let keys = self.session.handshake_age().is_some_and(|age| age < KEYS_MAX);
        // Without keys a request waits and loses its mark, and a search needs more rounds than a few that were asked for.
        let seek = keys && self.spec.keepalive.is_some();
        if !(self.asked || seek) {
            return;
        }
        let Some(at) = self.whom_to_ask(own) else {
            return;
        };
        let Some(Requests { sequence, large }) = self.probes.tick(self.tx_bytes, seek, now) else {
            return;
        };
        self.asked = false;
        let small = (sequence, SMALL, false);
        let large = large.map(|size| (sequence.wrapping_add(1), usize::from(size), true));
        let mut packet = [0; u16::MAX as usize];
        for (sequence, size, whole) in std::iter::once(small).chain(large) {
            let echo = Echo { answer: false, identifier: IDENTIFIER, sequence };
            if let Some(length) = write_echo(&mut packet, at, echo, size) {
                self.seal(&packet[..length], Kind { class: 0, whole }, outbox, now);
            }
        }
    }

    /// Seals a packet and sends what came of it.
    fn seal(&mut self, packet: &[u8], kind: Kind, outbox: &mut Outbox, now: Instant) {
        let made = Made::of(&self.session.seal(packet, outbox.room(), now));
        self.send(made, kind, outbox);
    }

    /// Begins a handshake, unless one was begun less than `pause` ago.
    fn call(&mut self, pause: Duration, outbox: &mut Outbox, now: Instant) {
        if self.called.is_none_or(|at| now.saturating_duration_since(at) >= pause) {
            self.called = Some(now);
            let made = Made::of(&self.session.initiate(outbox.room(), now));
            self.send(made, Kind::default(), outbox);
        }
    }

    /// Takes an answer to an echo request, or answers one. What answers is small: it says that the request came, and need not
    /// fit a way back that may be narrower.
    fn handle_echo(&mut self, echo: Echo, at: Addresses, outbox: &mut Outbox, now: Instant) {
        if echo.answer {
            self.probes.heard(echo.sequence, now);
            return;
        }
        let back = Addresses { source: at.destination, destination: at.source };
        let mut packet = [0; SMALL];
        let answer = Echo { answer: true, ..echo };
        if let Some(length) = write_echo(&mut packet, back, answer, SMALL) {
            self.seal(&packet[..length], Kind::default(), outbox, now);
        }
    }
}

impl<S> Peer<S> {
    /// From which address to which a peer is asked: of one family, and its very own.
    fn whom_to_ask(&self, own: &[IpAddr]) -> Option<Addresses> {
        let alone = |net: &&ipnet::IpNet| net.prefix_len() == net.max_prefix_len();
        self.spec.allowed_ips.iter().filter(alone).find_map(|net| {
            let destination = net.addr();
            let source = own.iter().find(|ip| ip.is_ipv4() == destination.is_ipv4())?;
            Some(Addresses { source: *source, destination })
        })
    }

    /// Sends what the session wrote to where the peer was last heard; a call for it goes to all places where it may be.
    fn send(&self, made: Made, wanted: Kind, outbox: &mut Outbox) {
        let Made::Wire(length) = made else {
            return;
        };
        let endpoint = self.endpoint;
        let first = outbox.written(length).first().copied();
        let calls = first == Some(INITIATION);
        let others = self
            .spec
            .endpoints
            .iter()
            .filter(|c| calls && endpoint.is_none_or(|e| e.remote != **c));
        outbox.keep_datagram(
            length,
            kind_of(first, wanted),
            endpoint.into_iter().chain(others.map(|at| (*at).into())),
        );
    }
}

#[cfg(test)]
mod tests;
