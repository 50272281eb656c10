//! A stand-in for a WireGuard session: its messages, indexes and timers, without its cryptography. Pure.
//!
//! Message types, timers and the three slots for keys are those of the WireGuard paper (Donenfeld, 2017, sections 5.4 and
//! 6). What is sealed can be read by anybody; that only the addressee opens it is kept by comparing keys, and that keys
//! belong to one handshake by the stamp of the initiation that began it.

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
/// Who received and has nothing to say says so after this.
const KEEPALIVE: Duration = Duration::from_secs(10);
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

/// The message, the receiver's index, the counter, and which keys it is sealed with.
const DATA_HEAD: usize = 1 + 4 + 8 + 8 + 1;

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
    /// What packets are sealed with.
    current: Option<Keys>,
    /// What packets under way may still be sealed with.
    previous: Option<Keys>,
    /// What was offered to a caller, and is current once the caller has used it.
    next: Option<Keys>,
    called: Option<Call>,
    waiting: VecDeque<Vec<u8>>,
    sent_at: Option<Instant>,
    /// Since when packets that were sent have had no answer.
    unheard: Option<Instant>,
    /// Since when packets that came have had no answer.
    unanswered: Option<Instant>,
    newest_call: u64,
    calls: u64,
}

/// An initiation that waits for its response.
struct Call {
    at: Instant,
    stamp: u64,
}

/// The keys that one handshake brought.
struct Keys {
    /// The initiation's stamp.
    stamp: u64,
    /// Whether this side sent the initiation.
    began: bool,
    remote: u32,
    since: Instant,
    now: Instant,
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
        (wire.first() == Some(&DATA)).then(|| wire.get(DATA_HEAD..)).flatten()
    }

    fn data<'o>(&mut self, packet: &[u8], out: &'o mut [u8], now: Instant) -> Produced<'o> {
        let Some(keys) = &mut self.current else { return Produced::Nothing };
        keys.sent += 1;
        self.sent_at = Some(now);
        self.unanswered = None;
        if !packet.is_empty() {
            self.unheard.get_or_insert(now);
        }
        let (remote, counter) = (keys.remote.to_be_bytes(), keys.sent.to_be_bytes());
        let (stamp, began) = (keys.stamp.to_be_bytes(), [u8::from(keys.began)]);
        put(out, &[&[DATA], &remote, &counter, &stamp, &began, packet])
    }

    fn next_waiting<'o>(&mut self, out: &'o mut [u8], now: Instant) -> Produced<'o> {
        match self.waiting.pop_front() {
            Some(packet) => self.data(&packet, out, now),
            None => Produced::Nothing,
        }
    }

    fn answer_call<'o>(&mut self, wire: &[u8], out: &'o mut [u8], now: Instant) -> Produced<'o> {
        let (Some(remote), Some(stamp)) = (index_at(wire, 1), number_at(wire, 69)) else {
            return Produced::Refused;
        };
        // An old initiation that comes again proves nothing.
        if stamp <= self.newest_call {
            return Produced::Refused;
        }
        self.newest_call = stamp;
        self.next = Some(Keys::new(stamp, false, remote, now));
        let (index, remote) = (self.index.to_be_bytes(), remote.to_be_bytes());
        put(out, &[&[RESPONSE], &index, &remote, &stamp.to_be_bytes()])
    }

    fn take_answer<'o>(&mut self, wire: &[u8], out: &'o mut [u8], now: Instant) -> Produced<'o> {
        let (Some(remote), Some(stamp)) = (index_at(wire, 1), number_at(wire, 9)) else {
            return Produced::Refused;
        };
        // An answer is worth something for the initiation that it answers, and only once.
        if self.called.take_if(|call| call.stamp == stamp).is_none() {
            return Produced::Refused;
        }
        self.previous = self.next.take().or(self.current.take());
        self.current = Some(Keys::new(stamp, true, remote, now));
        // The first data message confirms the keys, also where nothing waits.
        let packet = self.waiting.pop_front().unwrap_or_default();
        self.data(&packet, out, now)
    }

    fn unseal<'o>(&mut self, wire: &[u8], out: &'o mut [u8], now: Instant) -> Produced<'o> {
        let (Some(counter), Some(stamp)) = (number_at(wire, 5), number_at(wire, 13)) else {
            return Produced::Refused;
        };
        let (Some(theirs), Some(packet)) = (wire.get(DATA_HEAD - 1), wire.get(DATA_HEAD..)) else {
            return Produced::Refused;
        };
        let sealed_with = |keys: &&mut Keys| {
            keys.stamp == stamp && keys.began != (*theirs == 1) && keys.fresh(now)
        };
        let slots = [&mut self.current, &mut self.previous, &mut self.next];
        let Some(keys) = slots.into_iter().flatten().find(sealed_with) else {
            return Produced::Refused;
        };
        if !keys.take(counter) {
            return Produced::Refused;
        }
        keys.now = now;
        if let Some(confirmed) = self.next.take_if(|k| k.newest > 0) {
            self.previous = self.current.replace(confirmed);
        }
        self.unheard = None;
        let Some(room) = out.get_mut(..packet.len()) else { return Produced::Refused };
        if packet.is_empty() {
            return Produced::Nothing;
        }
        self.unanswered.get_or_insert(now);
        room.copy_from_slice(packet);
        Produced::Plain(room)
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
            current: None,
            previous: None,
            next: None,
            called: None,
            waiting: VecDeque::new(),
            sent_at: None,
            unheard: None,
            unanswered: None,
            newest_call: 0,
            calls: 0,
        }
    }

    fn seal<'o>(&mut self, packet: &[u8], out: &'o mut [u8], now: Instant) -> Produced<'o> {
        if self.current.as_ref().is_some_and(|k| k.fresh(now)) {
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
            Some(&INITIATION) => self.answer_call(wire, out, now),
            Some(&RESPONSE) => self.take_answer(wire, out, now),
            Some(&DATA) => self.unseal(wire, out, now),
            Some(_) => Produced::Refused,
        }
    }

    fn tick<'o>(&mut self, out: &'o mut [u8], now: Instant) -> Produced<'o> {
        for slot in [&mut self.current, &mut self.previous, &mut self.next] {
            slot.take_if(|keys| !keys.fresh(now));
        }
        let passed = |since: Instant, span| now.saturating_duration_since(since) >= span;
        let due = match (&self.called, &self.current) {
            (Some(call), _) => passed(call.at, REKEY_TIMEOUT),
            (None, Some(keys)) => {
                (keys.began && passed(keys.since, REKEY_AFTER))
                    || self.unheard.is_some_and(|at| passed(at, KEEPALIVE + REKEY_TIMEOUT))
            }
            (None, None) => false,
        };
        if due {
            self.called = None;
            self.unheard = None;
            return self.initiate(out, now);
        }
        let quiet = |span| self.sent_at.is_none_or(|at| passed(at, span));
        let owed = self.unanswered.is_some_and(|at| passed(at, KEEPALIVE));
        if self.current.is_some() && (owed || self.keepalive.is_some_and(quiet)) {
            return self.data(&[], out, now);
        }
        Produced::Nothing
    }

    fn initiate<'o>(&mut self, out: &'o mut [u8], now: Instant) -> Produced<'o> {
        let recent = |c: &Call| now.saturating_duration_since(c.at) < REKEY_TIMEOUT;
        if self.called.as_ref().is_some_and(recent) {
            return Produced::Nothing;
        }
        self.calls += 1;
        // Grows over restarts too, as TAI64N does.
        let stamp = super::stamp(now, self.calls);
        self.called = Some(Call { at: now, stamp });
        let (me, peer) = (self.me.0, self.peer.0);
        put(out, &[&[INITIATION], &self.index.to_be_bytes(), &me, &peer, &stamp.to_be_bytes()])
    }

    fn handshake_age(&self) -> Option<Duration> {
        self.current.as_ref().map(|k| k.now.saturating_duration_since(k.since))
    }
}

impl Keys {
    fn new(stamp: u64, began: bool, remote: u32, now: Instant) -> Self {
        Self { stamp, began, remote, since: now, now, sent: 0, newest: 0, seen: 0 }
    }

    fn fresh(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.since) < REJECT_AFTER
    }

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

    /// Two sessions with each other, and what tells them apart at their hosts.
    fn pair() -> ([PlainSession; 2], [PlainLimiter; 2]) {
        let keys = [1u8, 2].map(|b| PrivateKey::new([b; 32]));
        let limiters = [PlainSession::limiter(&keys[0]), PlainSession::limiter(&keys[1])];
        let a = PlainSession::new(&keys[0], &keys[1].public(), None, 7, &limiters[0]);
        let b = PlainSession::new(&keys[1], &keys[0].public(), None, 9, &limiters[1]);
        ([a, b], limiters)
    }

    fn plain(produced: Produced<'_>) -> Vec<u8> {
        match produced {
            Produced::Plain(packet) => packet.to_vec(),
            other => panic!("{other:?}"),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_packet_waits_for_the_handshake_and_arrives_once() {
        let ([mut a, mut b], [mut first, mut second]) = pair();
        let (mut out, from) = ([0; 2_000], Some("10.0.0.1".parse().unwrap()));
        let call = wire(a.seal(b"hello", &mut out, now()));
        let to = |l: &mut PlainLimiter, w: &[u8]| {
            l.addressee("10.0.0.1".parse().unwrap(), w, &mut [0; 9])
        };
        assert_eq!(to(&mut second, &call), Ok(Addressee::Key(a.me)));
        assert!(to(&mut first, &call).is_err(), "it is not for the sender");
        let answer = wire(b.open(from, &call, &mut out, now()));
        assert_eq!(to(&mut first, &answer), Ok(Addressee::Index(7)));
        assert_eq!(b.open(from, &call, &mut out, now()), Produced::Refused, "replayed");
        let data = wire(a.open(from, &answer, &mut out, now()));
        assert_eq!(plain(b.open(from, &data, &mut out, now())), b"hello");
        assert_eq!(b.open(from, &data, &mut out, now()), Produced::Refused, "replayed");
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_to_an_earlier_call_changes_nothing() {
        let ([mut a, mut b], _) = pair();
        let (mut out, from) = ([0; 2_000], None);
        let first = wire(a.seal(b"1", &mut out, now()));
        let late = wire(b.open(from, &first, &mut out, now()));
        tokio::time::advance(REKEY_TIMEOUT).await;
        let second = wire(a.initiate(&mut out, now()));
        let answer = wire(b.open(from, &second, &mut out, now()));
        assert_eq!(a.open(from, &late, &mut out, now()), Produced::Refused, "not the last call's");
        let data = wire(a.open(from, &answer, &mut out, now()));
        assert_eq!(plain(b.open(from, &data, &mut out, now())), b"1");
        assert_eq!(a.open(from, &answer, &mut out, now()), Produced::Refused, "replayed");
        let reply = wire(b.seal(b"2", &mut out, now()));
        assert_eq!(plain(a.open(from, &reply, &mut out, now())), b"2");
    }

    #[tokio::test(start_paused = true)]
    async fn who_hears_nothing_calls_again_and_former_keys_serve_until_the_new_ones_are_used() {
        let ([mut a, mut b], _) = pair();
        let (mut out, from) = ([0; 2_000], None);
        let call = wire(a.seal(b"1", &mut out, now()));
        let answer = wire(b.open(from, &call, &mut out, now()));
        let data = wire(a.open(from, &answer, &mut out, now()));
        assert_eq!(plain(b.open(from, &data, &mut out, now())), b"1");
        // Nobody answers.
        tokio::time::advance(KEEPALIVE + REKEY_TIMEOUT).await;
        let call = wire(a.tick(&mut out, now()));
        assert_eq!(call.first(), Some(&INITIATION));
        let answer = wire(b.open(from, &call, &mut out, now()));
        let before = wire(b.seal(b"2", &mut out, now()));
        let data = wire(a.open(from, &answer, &mut out, now()));
        assert_eq!(plain(a.open(from, &before, &mut out, now())), b"2", "sealed with former keys");
        assert_eq!(b.open(from, &data, &mut out, now()), Produced::Nothing, "a confirmation");
        let after = wire(b.seal(b"3", &mut out, now()));
        assert_eq!(plain(a.open(from, &after, &mut out, now())), b"3");
    }
}
