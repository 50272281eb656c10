//! A stand-in for a WireGuard session: its messages, indexes and timers, without its cryptography. Pure.
//!
//! Message types and timers are those of the WireGuard paper (Donenfeld, 2017, sections 5.4 and 6.1). What is sealed
//! can be read by anybody; that only the addressee opens it is kept by comparing keys.

use std::collections::VecDeque;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use sdwan::session::{Addressee, Limiter, Produced, Session};
use sdwan::{PrivateKey, PublicKey};

const INITIATION: u8 = 1;
const RESPONSE: u8 = 2;
const DATA: u8 = 4;
/// Keys are renewed by the initiator after this.
const REKEY_AFTER: Duration = Duration::from_secs(120);
/// And not used any more after this.
const REJECT_AFTER: Duration = Duration::from_secs(180);
/// An initiation without a response is repeated after this.
const REKEY_TIMEOUT: Duration = Duration::from_secs(5);
/// Packets that wait for keys.
const QUEUE: usize = 16;
/// How far back a counter may lie (RFC 6479 keeps more).
const WINDOW: u64 = 64;

/// What a host's sessions share: its own public key.
pub struct PlainLimiter(PublicKey);

fn index_at(wire: &[u8], at: usize) -> Option<u32> {
    let bytes = wire.get(at..at + 4)?;
    Some(u32::from_be_bytes(bytes.try_into().ok()?))
}

fn key_at(wire: &[u8], at: usize) -> Option<PublicKey> {
    let bytes = wire.get(at..at + 32)?;
    Some(PublicKey(bytes.try_into().ok()?))
}

fn number_at(wire: &[u8], at: usize) -> Option<u64> {
    let bytes = wire.get(at..at + 8)?;
    Some(u64::from_be_bytes(bytes.try_into().ok()?))
}

impl Limiter for PlainLimiter {
    fn addressee(&mut self, _: IpAddr, wire: &[u8], _: &mut [u8]) -> Result<Addressee, usize> {
        let found = match wire.first() {
            Some(&INITIATION) if key_at(wire, 37) == Some(self.0) => {
                key_at(wire, 5).map(Addressee::Key)
            }
            Some(&RESPONSE) => index_at(wire, 5).map(Addressee::Index),
            Some(&DATA) => index_at(wire, 1).map(Addressee::Index),
            _ => None,
        };
        found.ok_or(0)
    }

    fn tick(&mut self) {}
}

/// A session.
pub struct PlainSession {
    me: PublicKey,
    peer: PublicKey,
    keepalive: Option<Duration>,
    index: u32,
    keys: Option<Keys>,
    called: Option<Instant>,
    waiting: VecDeque<Vec<u8>>,
    sent_at: Option<Instant>,
    newest_call: u64,
    calls: u64,
}

struct Keys {
    remote: u32,
    since: Instant,
    now: Instant,
    began: bool,
    sent: u64,
    newest: u64,
    seen: u64,
}

fn put<'o>(out: &'o mut [u8], parts: &[&[u8]]) -> Produced<'o> {
    let mut len = 0;
    for part in parts {
        let Some(room) = out.get_mut(len..len + part.len()) else { return Produced::Refused };
        room.copy_from_slice(part);
        len += part.len();
    }
    Produced::Wire(&out[..len])
}

impl PlainSession {
    /// Reads the packet in a data message, for a world whose tunnels do not check anything.
    pub(super) fn peek(wire: &[u8]) -> Option<&[u8]> {
        (wire.first() == Some(&DATA)).then(|| wire.get(13..)).flatten()
    }

    fn data<'o>(&mut self, packet: &[u8], out: &'o mut [u8], now: Instant) -> Produced<'o> {
        let Some(keys) = &mut self.keys else { return Produced::Nothing };
        keys.sent += 1;
        self.sent_at = Some(now);
        put(out, &[&[DATA], &keys.remote.to_be_bytes(), &keys.sent.to_be_bytes(), packet])
    }

    fn agree(&mut self, remote: u32, began: bool, now: Instant) {
        self.keys = Some(Keys { remote, since: now, now, began, sent: 0, newest: 0, seen: 0 });
        self.called = None;
    }

    fn next_waiting<'o>(&mut self, out: &'o mut [u8], now: Instant) -> Produced<'o> {
        match self.waiting.pop_front() {
            Some(packet) => self.data(&packet, out, now),
            None => Produced::Nothing,
        }
    }
}

impl Session for PlainSession {
    type Limiter = PlainLimiter;

    fn limiter(private: &PrivateKey) -> PlainLimiter {
        PlainLimiter(private.public())
    }

    fn new(
        _: &PrivateKey,
        peer: &PublicKey,
        keepalive: Option<u16>,
        index: u32,
        limiter: &PlainLimiter,
    ) -> Self {
        Self {
            me: limiter.0,
            peer: *peer,
            keepalive: keepalive.map(|s| Duration::from_secs(s.into())),
            index,
            keys: None,
            called: None,
            waiting: VecDeque::new(),
            sent_at: None,
            newest_call: 0,
            calls: 0,
        }
    }

    fn seal<'o>(&mut self, packet: &[u8], out: &'o mut [u8], now: Instant) -> Produced<'o> {
        let fresh = |k: &Keys| now.saturating_duration_since(k.since) < REJECT_AFTER;
        if self.keys.as_ref().is_some_and(fresh) {
            return self.data(packet, out, now);
        }
        if self.waiting.len() < QUEUE {
            self.waiting.push_back(packet.to_vec());
        }
        self.initiate(out, now)
    }

    fn open<'o>(
        &mut self,
        _: Option<IpAddr>,
        wire: &[u8],
        out: &'o mut [u8],
        now: Instant,
    ) -> Produced<'o> {
        match wire.first() {
            None => self.next_waiting(out, now),
            Some(&INITIATION) => {
                let (Some(remote), Some(stamp)) = (index_at(wire, 1), number_at(wire, 69)) else {
                    return Produced::Refused;
                };
                // An old initiation that comes again proves nothing.
                if stamp <= self.newest_call {
                    return Produced::Refused;
                }
                self.newest_call = stamp;
                self.agree(remote, false, now);
                put(out, &[&[RESPONSE], &self.index.to_be_bytes(), &remote.to_be_bytes()])
            }
            Some(&RESPONSE) => match index_at(wire, 1) {
                Some(remote) if self.called.is_some() => {
                    self.agree(remote, true, now);
                    // The first data message confirms the keys, also where nothing waits.
                    let packet = self.waiting.pop_front().unwrap_or_default();
                    self.data(&packet, out, now)
                }
                _ => Produced::Refused,
            },
            Some(&DATA) => {
                let (Some(keys), Some(counter)) = (&mut self.keys, number_at(wire, 5)) else {
                    return Produced::Refused;
                };
                if !keys.take(counter) {
                    return Produced::Refused;
                }
                keys.now = now;
                let packet = wire.get(13..).unwrap_or_default();
                let Some(room) = out.get_mut(..packet.len()) else { return Produced::Refused };
                if packet.is_empty() {
                    return Produced::Nothing;
                }
                room.copy_from_slice(packet);
                Produced::Plain(room)
            }
            Some(_) => Produced::Refused,
        }
    }

    fn tick<'o>(&mut self, out: &'o mut [u8], now: Instant) -> Produced<'o> {
        let age = self.keys.as_ref().map(|k| (now.saturating_duration_since(k.since), k.began));
        if age.is_some_and(|(age, _)| age >= REJECT_AFTER) {
            self.keys = None;
        }
        let due = match (self.called, age) {
            (Some(at), _) => now.saturating_duration_since(at) >= REKEY_TIMEOUT,
            (None, Some((age, true))) => age >= REKEY_AFTER,
            (None, _) => false,
        };
        if due {
            self.called = None;
            return self.initiate(out, now);
        }
        let quiet =
            |k: Duration| self.sent_at.is_none_or(|at| now.saturating_duration_since(at) >= k);
        if self.keys.is_some() && self.keepalive.is_some_and(quiet) {
            return self.data(&[], out, now);
        }
        Produced::Nothing
    }

    fn initiate<'o>(&mut self, out: &'o mut [u8], now: Instant) -> Produced<'o> {
        let recent = |at: Instant| now.saturating_duration_since(at) < REKEY_TIMEOUT;
        if self.called.is_some_and(recent) {
            return Produced::Nothing;
        }
        self.called = Some(now);
        self.calls += 1;
        // Grows over restarts too, as TAI64N does.
        let stamp = super::stamp(now, self.calls);
        let (me, peer) = (self.me.0, self.peer.0);
        put(out, &[&[INITIATION], &self.index.to_be_bytes(), &me, &peer, &stamp.to_be_bytes()])
    }

    fn handshake_age(&self) -> Option<Duration> {
        self.keys.as_ref().map(|k| k.now.saturating_duration_since(k.since))
    }
}

impl Keys {
    /// Takes a counter once.
    fn take(&mut self, counter: u64) -> bool {
        if counter > self.newest {
            let ahead = counter - self.newest;
            self.seen = if ahead >= WINDOW { 0 } else { self.seen << ahead };
            self.seen |= 1;
            self.newest = counter;
            return true;
        }
        let back = self.newest - counter;
        let bit = 1u64.checked_shl(u32::try_from(back).unwrap_or(u32::MAX)).unwrap_or(0);
        let fresh = back < WINDOW && self.seen & bit == 0;
        self.seen |= bit;
        fresh
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn now() -> Instant {
        tokio::time::Instant::now().into_std()
    }

    fn wire(produced: Produced<'_>) -> Vec<u8> {
        match produced {
            Produced::Wire(bytes) => bytes.to_vec(),
            other => panic!("{other:?}"),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_packet_waits_for_the_handshake_and_arrives_once() {
        let keys = [1u8, 2].map(|b| PrivateKey::new([b; 32]));
        let limiters = [PlainSession::limiter(&keys[0]), PlainSession::limiter(&keys[1])];
        let mut a = PlainSession::new(&keys[0], &keys[1].public(), None, 7, &limiters[0]);
        let mut b = PlainSession::new(&keys[1], &keys[0].public(), None, 9, &limiters[1]);
        let (mut out, from) = ([0; 2_000], Some("10.0.0.1".parse().unwrap()));
        let call = wire(a.seal(b"hello", &mut out, now()));
        let [mut first, mut second] = limiters;
        let to = |l: &mut PlainLimiter, w: &[u8]| {
            l.addressee("10.0.0.1".parse().unwrap(), w, &mut [0; 9])
        };
        assert_eq!(to(&mut second, &call), Ok(Addressee::Key(keys[0].public())));
        assert!(to(&mut first, &call).is_err(), "it is not for the sender");
        let answer = wire(b.open(from, &call, &mut out, now()));
        assert_eq!(to(&mut first, &answer), Ok(Addressee::Index(7)));
        assert_eq!(b.open(from, &call, &mut out, now()), Produced::Refused, "replayed");
        let data = wire(a.open(from, &answer, &mut out, now()));
        match b.open(from, &data, &mut out, now()) {
            Produced::Plain(packet) => assert_eq!(packet, b"hello"),
            other => panic!("{other:?}"),
        }
        assert_eq!(b.open(from, &data, &mut out, now()), Produced::Refused, "replayed");
    }
}
