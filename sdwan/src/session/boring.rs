//! The session made of boringtun, which keeps its own clock and randomness. Pure but for those.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use boringtun::noise::errors::WireGuardError;
use boringtun::noise::handshake::parse_handshake_anon;
use boringtun::noise::rate_limiter::RateLimiter;
use boringtun::noise::{Packet, Tunn, TunnResult};
use boringtun::x25519::{PublicKey as XPublic, StaticSecret};

use super::{Addressee, Limiter, Produced, Session};
use crate::spec::{PrivateKey, PublicKey};

/// Handshakes per second before cookies are asked for. Each is counted twice: here, and by its session.
const HANDSHAKES_PER_S: u64 = 200;

/// The check that one host's sessions share, those of all its packet threads. Clones share it.
#[derive(Clone)]
pub struct BoringLimiter {
    secret: StaticSecret,
    public: XPublic,
    shared: Arc<RateLimiter>,
}

impl Limiter for BoringLimiter {
    fn addressee(&mut self, from: IpAddr, wire: &[u8], out: &mut [u8]) -> Result<Addressee, usize> {
        match self.shared.verify_packet(Some(from), wire, out) {
            Ok(Packet::HandshakeInit(init)) => {
                parse_handshake_anon(&self.secret, &self.public, &init)
                    .map(|half| Addressee::Key(PublicKey(half.peer_static_public)))
                    .map_err(|_| 0)
            }
            Ok(Packet::HandshakeResponse(p)) => Ok(Addressee::Index(p.receiver_idx >> 8)),
            Ok(Packet::PacketCookieReply(p)) => Ok(Addressee::Index(p.receiver_idx >> 8)),
            Ok(Packet::PacketData(p)) => Ok(Addressee::Index(p.receiver_idx >> 8)),
            Err(TunnResult::WriteToNetwork(cookie)) => Err(cookie.len()),
            Err(_) => Err(0),
        }
    }

    fn tick(&mut self) {
        self.shared.reset_count();
    }
}

/// A session of boringtun.
pub struct BoringSession(Tunn);

fn produced(result: TunnResult<'_>) -> Produced<'_> {
    match result {
        TunnResult::Done => Produced::Nothing,
        TunnResult::Err(WireGuardError::WrongTai64nTimestamp) => Produced::Stale,
        TunnResult::Err(_) => Produced::Refused,
        TunnResult::WriteToNetwork(bytes) => Produced::Wire(bytes),
        TunnResult::WriteToTunnelV4(bytes, _) | TunnResult::WriteToTunnelV6(bytes, _) => {
            Produced::Plain(bytes)
        }
    }
}

impl Session for BoringSession {
    type Limiter = BoringLimiter;

    fn limiter(private: &PrivateKey) -> BoringLimiter {
        let secret = StaticSecret::from(*private.expose());
        let public = XPublic::from(&secret);
        let shared = Arc::new(RateLimiter::new(&public, HANDSHAKES_PER_S));
        BoringLimiter { secret, public, shared }
    }

    fn new(
        private: &PrivateKey,
        peer: &PublicKey,
        keepalive: Option<u16>,
        index: u32,
        limiter: &BoringLimiter,
    ) -> Self {
        let secret = StaticSecret::from(*private.expose());
        let peer = XPublic::from(peer.0);
        Self(Tunn::new(secret, peer, None, keepalive, index, Some(limiter.shared.clone())))
    }

    fn seal<'o>(&mut self, packet: &[u8], out: &'o mut [u8], _now: Instant) -> Produced<'o> {
        produced(self.0.encapsulate(packet, out))
    }

    fn open<'o>(
        &mut self,
        from: Option<IpAddr>,
        wire: &[u8],
        out: &'o mut [u8],
        _now: Instant,
    ) -> Produced<'o> {
        produced(self.0.decapsulate(from, wire, out))
    }

    fn tick<'o>(&mut self, out: &'o mut [u8], _now: Instant) -> Produced<'o> {
        produced(self.0.update_timers(out))
    }

    fn initiate<'o>(&mut self, out: &'o mut [u8], _now: Instant) -> Produced<'o> {
        produced(self.0.format_handshake_initiation(out, false))
    }

    fn handshake_age(&self) -> Option<Duration> {
        self.0.time_since_last_handshake()
    }
}
