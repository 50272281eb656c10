//! One packet thread: waits for TUN, UDP, timers, its mailbox and its neighbours, and feeds its tunnel. Shell.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, AsRawFd as _};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::EventFd;
use tokio::sync::oneshot;

use super::tap::{Tap, Taps};
use super::tun::{SUPERPACKET_MAX, Tun};
use super::udp::{self, Udp};
use super::{Offloads, RoundTrip, Status};
use crate::session::{BoringLimiter, BoringSession, Session as _};
use crate::spec::{MeshSpec, PrivateKey, PublicKey};
use crate::tunnel::{Drops, Output, Path, Shard, Stray, Train, Tunnel};

/// How often one side is read before the other one has its turn, which it also has as soon as the outbox is full: what waits
/// there, such as an answer that a sender needs to go on, waits for some 256 KiB at most.
const BATCH: usize = 64;
/// A first read of at most so many bytes is sent on before more is read, since nothing may follow it: an echo, a query.
const SMALL: usize = 512;
/// The thread looks up at least this often.
const WAIT_MAX: Duration = Duration::from_millis(250);

/// What reaches a packet thread.
pub(super) enum Mail {
    Spec(Box<MeshSpec>),
    Status(oneshot::Sender<Status>),
    Ping(PublicKey, oneshot::Sender<RoundTrip>),
    Capture(Tap),
    End,
}

/// Where a thread takes what other threads hand on to it.
#[derive(Clone)]
pub(super) struct Neighbour {
    pub datagrams: SyncSender<Stray>,
    pub packets: SyncSender<Stray>,
    pub wake: Arc<EventFd>,
}

/// The check of handshakes that all threads of an overlay share; only a spec with another key takes the lock.
#[derive(Clone, Default)]
pub(super) struct SharedLimiter(Arc<Mutex<Option<(PrivateKey, BoringLimiter)>>>);

impl SharedLimiter {
    fn of(&self, key: &PrivateKey) -> BoringLimiter {
        let mut shared = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match &*shared {
            Some((known, limiter)) if known == key => limiter.clone(),
            _ => {
                let limiter = BoringSession::limiter(key);
                *shared = Some((key.clone(), limiter.clone()));
                limiter
            }
        }
    }
}

/// What a thread is made of.
pub(super) struct Parts {
    pub shard: Shard,
    pub tun: Tun,
    pub udp: Udp,
    pub wake: Arc<EventFd>,
    pub inbox: Receiver<Mail>,
    /// What neighbours hand on: datagrams, and packets of the device.
    pub strayed: [Receiver<Stray>; 2],
    /// All threads of the overlay, in the order of their numbers, this one among them.
    pub neighbours: Vec<Neighbour>,
    pub limiter: SharedLimiter,
}

pub(super) struct Loop {
    tun: Tun,
    udp: Udp,
    wake: Arc<EventFd>,
    inbox: Receiver<Mail>,
    strayed: [Receiver<Stray>; 2],
    neighbours: Vec<Neighbour>,
    limiter: SharedLimiter,
    pub(super) tunnel: Tunnel<BoringSession>,
    buffer: Vec<u8>,
    pings: Vec<(PublicKey, oneshot::Sender<RoundTrip>)>,
    taps: Taps,
    overrun: u64,
}

#[expect(clippy::disallowed_methods, reason = "this thread is where packets meet the clock")]
pub(super) fn now() -> Instant {
    Instant::now()
}

impl Loop {
    pub(super) fn new(parts: Parts) -> Self {
        let Parts { shard, tun, udp, wake, inbox, strayed, neighbours, limiter } = parts;
        let mut tunnel = Tunnel::of(shard, shard.count());
        tunnel.set_joins(tun.joins());
        Self {
            tun,
            udp,
            wake,
            inbox,
            strayed,
            neighbours,
            limiter,
            tunnel,
            buffer: vec![0; SUPERPACKET_MAX],
            pings: Vec::new(),
            taps: Taps::default(),
            overrun: 0,
        }
    }

    pub(super) fn run(mut self) {
        let mut at = now();
        loop {
            let (from_tun, from_udp, woken) = self.wait(at);
            if woken {
                // Emptied before the mail is read, so that none is missed.
                let _ = self.wake.read();
                if !self.read_mail() {
                    return;
                }
                self.read_strays();
            }
            if from_udp {
                self.read_udp();
                // Room for the other direction, which would end its turn at once where the outbox is full.
                self.flush(at);
            }
            if from_tun {
                self.read_tun();
            }
            at = now();
            self.tunnel.handle_timeout(at);
            self.flush(at);
            self.hand_on();
            self.answer_pings();
        }
    }

    fn wait(&self, at: Instant) -> (bool, bool, bool) {
        let until = self.tunnel.poll_timeout().map(|due| due.saturating_duration_since(at));
        let timeout = until.unwrap_or(WAIT_MAX).min(WAIT_MAX).max(Duration::from_millis(1));
        let timeout = PollTimeout::try_from(timeout).unwrap_or(PollTimeout::from(50u16));
        let wanted = PollFlags::POLLIN;
        let mut fds = [
            PollFd::new(self.tun.as_fd(), wanted),
            PollFd::new(self.udp.as_fd(), wanted),
            PollFd::new(self.wake.as_fd(), wanted),
        ];
        if poll(&mut fds, timeout).is_err() {
            return (false, false, false);
        }
        let ready = |i: usize| fds[i].any().unwrap_or(false);
        (ready(0), ready(1), ready(2))
    }

    fn read_mail(&mut self) -> bool {
        while let Ok(mail) = self.inbox.try_recv() {
            match mail {
                Mail::Spec(spec) => {
                    let limiter = || self.limiter.of(&spec.private_key);
                    self.tunnel.set_spec_with(&spec, limiter, now());
                }
                // The asker may have given up.
                Mail::Status(answer) => {
                    let _ = answer.send(self.status());
                }
                Mail::Ping(peer, answer) => {
                    // How a round ended that was not asked for is no answer.
                    let _ = self.tunnel.take_answer(&peer);
                    if self.tunnel.ask(&peer, now()) {
                        self.pings.push((peer, answer));
                    }
                }
                Mail::Capture(tap) => self.taps.add(tap),
                Mail::End => return false,
            }
        }
        true
    }

    fn read_strays(&mut self) {
        let [datagrams, packets] = &self.strayed;
        let mut left = BATCH;
        while let Ok(stray) = datagrams.try_recv().or_else(|_| packets.try_recv()) {
            self.tunnel.handle_stray(stray, now());
            left -= 1;
            if left == 0 || self.tunnel.is_full() {
                // The others have their turn, and then what is left.
                let _ = self.wake.write(1);
                return;
            }
        }
    }

    /// Gives others what is theirs. Who has no room loses it, as any full queue does.
    fn hand_on(&mut self) {
        for stray in self.tunnel.take_strays() {
            let Some(to) = self.neighbours.get(stray.to as usize) else { continue };
            let queue = if stray.is_datagram() { &to.datagrams } else { &to.packets };
            match queue.try_send(stray) {
                Ok(()) => {
                    // A full event counter means that the thread has been woken already.
                    let _ = to.wake.write(1);
                }
                Err(TrySendError::Full(_)) => self.overrun += 1,
                // It ends, and with it the overlay.
                Err(TrySendError::Disconnected(_)) => {}
            }
        }
    }

    fn answer_pings(&mut self) {
        let mut ended = BTreeMap::new();
        for (peer, _) in &self.pings {
            ended.entry(*peer).or_insert_with(|| self.tunnel.take_answer(peer));
        }
        for (peer, answer) in std::mem::take(&mut self.pings) {
            match ended.get(&peer).copied().flatten() {
                // Who asked may have given up.
                Some(took) => {
                    let _ = answer.send(took);
                }
                None if answer.is_closed() => {}
                None => self.pings.push((peer, answer)),
            }
        }
    }

    fn status(&self) -> Status {
        let (trains_sent, trains_received) = (self.udp.sends_trains(), self.udp.receives_trains());
        let offloads = Offloads { device: self.tun.joins(), trains_sent, trains_received };
        let drops = Drops { overrun: self.overrun, ..self.tunnel.drops() };
        Status { peers: self.tunnel.peers(), drops, offloads }
    }

    fn read_tun(&mut self) {
        for turn in 0..BATCH {
            match self.tun.receive(&mut self.buffer) {
                Ok(Some(packet)) => {
                    if !self.taps.is_empty() {
                        self.taps.copy(packet.bytes);
                    }
                    let (at, small) = (now(), packet.bytes.len() <= SMALL);
                    self.tunnel.handle_tun(packet, at);
                    if turn == 0 && small {
                        self.flush(at);
                    }
                }
                Ok(None) => {}
                Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => break,
                Err(e) => {
                    tracing::debug!(error = %e, fd = self.tun.as_fd().as_raw_fd(), "reading the TUN device failed");
                    break;
                }
            }
            if self.tunnel.is_full() {
                break;
            }
        }
    }

    fn read_udp(&mut self) {
        for turn in 0..BATCH {
            match self.udp.receive(&mut self.buffer) {
                Ok(train) => {
                    let (at, small) = (now(), train.bytes.len() <= SMALL);
                    self.tunnel.handle_udp(train, at);
                    if turn == 0 && small {
                        self.flush(at);
                    }
                }
                Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => break,
                // An ICMP answer to something that we sent: of no concern to others.
                Err(_) => {}
            }
            if self.tunnel.is_full() {
                break;
            }
        }
    }

    /// `at` may be a little old: only what was refused minutes ago is measured by it.
    fn flush(&mut self, at: Instant) {
        let (tun, udp, taps) = (&mut self.tun, &mut self.udp, &mut self.taps);
        let mut gone = None;
        self.tunnel.take_output(|output| {
            // A full queue drops packets, as any link does.
            let sent = match output {
                Output::Tun(offload, parts) => {
                    if !taps.is_empty() {
                        taps.copy(&parts.clone().collect::<Vec<_>>().concat());
                    }
                    tun.send(offload, parts)
                }
                Output::Wire(train) => udp.send(&train, at).or_else(|e| match train.path.local {
                    Some(local) if udp::is_gone(&e) => {
                        gone = Some(local);
                        let path = Path::from(train.path.remote);
                        udp.send(&Train { path, ..train }, at)
                    }
                    _ => Err(e),
                }),
            };
            if let Err(e) = sent {
                tracing::trace!(error = %e, "not sent");
            }
        });
        if let Some(local) = gone {
            self.tunnel.forget_local(local);
        }
        // Less than before, once the device has refused something.
        self.tunnel.set_joins(self.tun.joins());
    }
}
