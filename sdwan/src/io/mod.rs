//! The packet thread of one overlay: waits for TUN, UDP, timers and its mailbox, and feeds the tunnel. Shell.

mod sys;
mod tap;
pub mod tun;
pub mod udp;

use std::collections::BTreeMap;
use std::os::fd::{AsFd, AsRawFd as _};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};

use crate::offload::Joins;
use crate::session::BoringSession;
use crate::spec::{MeshSpec, PublicKey};
use crate::tunnel::{Drops, Output, Path, PeerStatus, Train, Tunnel};
pub use tap::Captured;
use tap::Taps;
use tokio::sync::oneshot;
use tun::{SUPERPACKET_MAX, Tun};
use udp::Udp;

/// How often one side is read before the other one has its turn, which it also has as soon as the outbox is full: what waits
/// there, such as an answer that a sender needs to go on, waits for some 256 KiB at most.
const BATCH: usize = 64;
/// The thread looks up at least this often.
const WAIT_MAX: Duration = Duration::from_millis(250);

/// What reaches the packet thread.
enum Mail {
    Spec(Box<MeshSpec>),
    Status(oneshot::Sender<Status>),
    Ping(PublicKey, oneshot::Sender<RoundTrip>),
    Capture(tokio::sync::mpsc::Sender<Captured>),
    End,
}

/// What changes hands with the kernel in one piece; each falls back alone where it cannot be done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Offloads {
    /// What the TUN device takes.
    pub device: Joins,
    /// Whether datagrams are sent as trains (UDP_SEGMENT of udp(7)).
    pub trains_sent: bool,
    /// Whether they are received as trains (UDP_GRO of udp(7)).
    pub trains_received: bool,
}

/// How long a packet took to a peer and its answer back; nothing if none came.
pub type RoundTrip = Option<Duration>;

/// How a packet thread stands.
#[derive(Clone, Debug)]
pub struct Status {
    /// The peers.
    pub peers: Vec<PeerStatus>,
    /// What was dropped so far.
    pub drops: Drops,
    /// What is done in one piece.
    pub offloads: Offloads,
}

/// A running packet thread.
#[derive(Debug)]
pub struct Packets {
    mail: Sender<Mail>,
    wake: Arc<EventFd>,
    thread: Option<JoinHandle<()>>,
}

impl Packets {
    /// Starts the thread between a TUN device and a socket; with `rekey`, keys are renewed after that already.
    ///
    /// # Errors
    /// When the operating system gives no thread or event descriptor.
    pub fn start(name: &str, tun: Tun, udp: Udp, rekey: Option<Duration>) -> std::io::Result<Self> {
        let wake = Arc::new(EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC)?);
        let (mail, inbox) = channel();
        let bell = wake.clone();
        let thread = std::thread::Builder::new().name(name.to_owned()).spawn(move || {
            let mut packets = Loop::new(tun, udp, bell, inbox);
            rekey.into_iter().for_each(|after| packets.tunnel.set_rekey(after));
            packets.run();
        })?;
        Ok(Self { mail, wake, thread: Some(thread) })
    }

    fn post(&self, mail: Mail) -> bool {
        let sent = self.mail.send(mail).is_ok();
        // A full event counter means that the thread has been woken already.
        let _ = self.wake.write(1);
        sent
    }

    /// Hands over a spec; false if the thread has ended.
    pub fn set_spec(&self, spec: MeshSpec) -> bool {
        self.post(Mail::Spec(Box::new(spec)))
    }

    /// Takes a round trip to a peer; it is given up without an answer if there is no such peer, or the thread ends.
    pub fn ping(&self, peer: PublicKey) -> oneshot::Receiver<RoundTrip> {
        let (tx, rx) = oneshot::channel();
        self.post(Mail::Ping(peer, tx));
        rx
    }

    /// Copies every packet to `sink` until that is closed.
    pub fn capture(&self, sink: tokio::sync::mpsc::Sender<Captured>) {
        self.post(Mail::Capture(sink));
    }

    /// Whether the thread is no more; only a panic ends it before this is dropped.
    pub fn ended(&self) -> bool {
        self.thread.as_ref().is_none_or(JoinHandle::is_finished)
    }

    /// Asks how things stand; given up without an answer if the thread ends.
    pub fn status(&self) -> oneshot::Receiver<Status> {
        let (tx, rx) = oneshot::channel();
        self.post(Mail::Status(tx));
        rx
    }
}

impl Drop for Packets {
    fn drop(&mut self) {
        self.post(Mail::End);
        if let Some(thread) = self.thread.take() {
            // A panic there was printed by the runtime already.
            let _ = thread.join();
        }
    }
}

struct Loop {
    tun: Tun,
    udp: Udp,
    wake: Arc<EventFd>,
    inbox: Receiver<Mail>,
    tunnel: Tunnel<BoringSession>,
    buffer: Vec<u8>,
    pings: Vec<(PublicKey, oneshot::Sender<RoundTrip>)>,
    taps: Taps,
}

#[expect(clippy::disallowed_methods, reason = "this thread is where packets meet the clock")]
fn now() -> Instant {
    Instant::now()
}

impl Loop {
    fn new(tun: Tun, udp: Udp, wake: Arc<EventFd>, inbox: Receiver<Mail>) -> Self {
        let mut tunnel = Tunnel::default();
        tunnel.set_joins(tun.joins());
        let buffer = vec![0; SUPERPACKET_MAX];
        let (pings, taps) = (Vec::new(), Taps::default());
        Self { tun, udp, wake, inbox, tunnel, buffer, pings, taps }
    }

    fn run(mut self) {
        loop {
            let (from_tun, from_udp, woken) = self.wait();
            if woken {
                // Emptied before the mail is read, so that none is missed.
                let _ = self.wake.read();
                if !self.read_mail() {
                    return;
                }
            }
            if from_udp {
                self.read_udp();
                // Room for the other direction, which would end its turn at once where the outbox is full.
                self.flush();
            }
            if from_tun {
                self.read_tun();
            }
            self.tunnel.handle_timeout(now());
            self.flush();
            self.answer_pings();
        }
    }

    fn wait(&self) -> (bool, bool, bool) {
        let until = self.tunnel.poll_timeout().map(|at| at.saturating_duration_since(now()));
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
                Mail::Spec(spec) => self.tunnel.set_spec(&spec, now()),
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
                Mail::Capture(sink) => self.taps.add(sink),
                Mail::End => return false,
            }
        }
        true
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
        Status { peers: self.tunnel.peers(), drops: self.tunnel.drops(), offloads }
    }

    fn read_tun(&mut self) {
        for _ in 0..BATCH {
            match self.tun.receive(&mut self.buffer) {
                Ok(Some(packet)) => {
                    if !self.taps.is_empty() {
                        self.taps.copy(packet.bytes);
                    }
                    self.tunnel.handle_tun(packet, now());
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
        for _ in 0..BATCH {
            match self.udp.receive(&mut self.buffer) {
                Ok(train) => self.tunnel.handle_udp(train, now()),
                Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => break,
                // An ICMP answer to something that we sent: of no concern to others.
                Err(_) => {}
            }
            if self.tunnel.is_full() {
                break;
            }
        }
    }

    fn flush(&mut self) {
        let (tun, udp, taps) = (&mut self.tun, &mut self.udp, &mut self.taps);
        let (mut gone, at) = (None, now());
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
