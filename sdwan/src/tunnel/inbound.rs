//! From the wire to the device. Pure.

use std::net::IpAddr;
use std::time::Instant;

use super::shard::What;
use super::{
    CALL, COOKIE, DATA, HANDSHAKE, IDENTIFIER, Kind, Made, Owner, Path, RESPONSE, Stray, Train,
    Tunnel, kind_of,
};
use crate::icmp::read_echo;
use crate::packet::{addresses, mark_congestion};
use crate::session::{Addressee, Limiter, Session};

/// The two bits of a traffic class that say how congested the way is (RFC 3168, section 5).
const ECN: u8 = 0b11;
const CONGESTED: u8 = 0b11;

/// What one train has in common.
struct Common {
    path: Path,
    class: u8,
    now: Instant,
    /// A source that was found to be this peer's: most packets of a train have the same.
    checked: Option<(IpAddr, u32)>,
}

impl Common {
    fn new(path: Path, class: u8, now: Instant) -> Self {
        Self { path, class, now, checked: None }
    }

    fn congested(&self) -> bool {
        self.class & ECN == CONGESTED
    }
}

impl<S: Session> Tunnel<S> {
    /// Takes datagrams from the wire.
    pub fn handle_udp(&mut self, train: Train<'_>, now: Instant) {
        let mut common = Common::new(train.path, train.kind.class, now);
        for wire in train.datagrams() {
            self.handle_datagram(&mut common, wire);
        }
    }

    fn handle_datagram(&mut self, common: &mut Common, wire: &[u8]) {
        let (path, class) = (common.path, common.class);
        let Some(limiter) = &mut self.limiter else {
            return;
        };
        let addressee = match limiter.addressee(path.remote.ip(), wire, self.outbox.room()) {
            Ok(addressee) => addressee,
            Err(cookie) => {
                if cookie > 0 {
                    self.outbox.keep_datagram(cookie, HANDSHAKE, [path]);
                }
                self.drops.refused += 1;
                return;
            }
        };
        let (mine, to) = match addressee {
            Addressee::Key(key) => (self.shard.has_key(&key), self.shard.of_key(&key)),
            Addressee::Index(index) => (self.shard.has_index(index), self.shard.of_index(index)),
        };
        if mine {
            self.open_for(addressee, common, wire);
        } else {
            let wire = wire.to_vec();
            self.strays.push(Stray { to, what: What::Datagram { path, class, addressee, wire } });
        }
    }

    /// Takes a datagram that the limiter let pass.
    pub(super) fn take_datagram(
        &mut self,
        path: Path,
        class: u8,
        addressee: Addressee,
        wire: &[u8],
        now: Instant,
    ) {
        self.open_for(addressee, &mut Common::new(path, class, now), wire);
    }

    fn open_for(&mut self, addressee: Addressee, common: &mut Common, wire: &[u8]) {
        let index = match addressee {
            Addressee::Key(key) => self.by_key.get(&key).copied(),
            Addressee::Index(index) => Some(index),
        };
        match index.filter(|i| self.peers.contains_key(i)) {
            Some(index) => self.open(index, common, wire),
            None => self.drops.refused += 1,
        }
    }

    fn open(&mut self, index: u32, common: &mut Common, wire: &[u8]) {
        let (path, now) = (common.path, common.now);
        let Some(peer) = self.peers.get_mut(&index) else {
            return;
        };
        // Only these prove that the peer itself is there now: an initiation may be an old one of a former life of
        // ours, and a cookie is made from what anybody may have overheard.
        let proof = matches!(wire.first(), Some(&(RESPONSE | DATA)));
        let mut input = wire;
        loop {
            let room = self.outbox.room();
            let made = Made::of(&peer.session.open(Some(path.remote.ip()), input, room, now));
            let refused = match made {
                Made::Refused | Made::Stale => true,
                Made::Wire(length) => self.outbox.written(length).first() == Some(&COOKIE),
                Made::Nothing | Made::Plain(_) => false,
            };
            if proof && !refused && !input.is_empty() {
                let moved = peer.endpoint.is_some_and(|before| before.remote != path.remote);
                peer.endpoint = Some(path);
                if moved {
                    peer.probes.begin_anew();
                }
            }
            match made {
                Made::Nothing => return,
                Made::Refused => {
                    self.drops.refused += 1;
                    return;
                }
                // A machine whose clock went back is not heard until the clock has caught up; one that is called needs none.
                Made::Stale => {
                    self.drops.refused += 1;
                    // Peers call all our addresses at once: the same call again, just answered, is no old one.
                    let twin = |at: Instant| now.saturating_duration_since(at) < CALL;
                    if !peer.answered.is_some_and(twin) {
                        peer.call(CALL, &mut self.outbox, now);
                    }
                    return;
                }
                Made::Wire(length) => {
                    let first = self.outbox.written(length).first().copied();
                    if first == Some(RESPONSE) {
                        peer.answered = Some(now);
                    }
                    self.outbox.keep_datagram(length, kind_of(first, Kind::default()), [path]);
                    input = &[];
                }
                Made::Plain(length) => {
                    self.deliver(index, common, length);
                    return;
                }
            }
        }
    }

    /// Hands a packet to this host's stack, if it is of the peer that sent it.
    fn deliver(&mut self, index: u32, common: &mut Common, length: usize) {
        let packet = self.outbox.written(length);
        let Some(at) = addresses(packet) else {
            self.drops.malformed += 1;
            return;
        };
        let known = common.checked == Some((at.source, index));
        if !known {
            let owner = self.routes.get(at.source) == Some(Owner::Here(index));
            if !owner && !self.handovers.inbound(at, index) {
                self.drops.spoofed += 1;
                return;
            }
            common.checked = Some((at.source, index));
        }
        let echo = read_echo(packet).filter(|echo| echo.identifier == IDENTIFIER);
        if let Some((echo, peer)) = echo.zip(self.peers.get_mut(&index))
            && self.own.contains(&at.destination)
        {
            peer.handle_echo(echo, at, &mut self.outbox, common.now);
            return;
        }
        // RFC 6040, figure 4: who cannot be told of congestion in another way loses the packet.
        if common.congested() && !mark_congestion(packet) {
            self.drops.congested += 1;
            return;
        }
        if let Some(peer) = self.peers.get_mut(&index) {
            peer.rx_bytes += length as u64;
        }
        self.outbox.keep_packet(length);
    }
}
