//! The packet threads of one overlay, as whoever owns them sees them. Shell.

mod sys;
mod tap;
mod thread;
pub mod tun;
pub mod udp;

use std::sync::Arc;
use std::sync::mpsc::{Sender, channel, sync_channel};
use std::thread::JoinHandle;
use std::time::Duration;

use nix::sys::eventfd::{EfdFlags, EventFd};
use tokio::sync::oneshot;

use crate::offload::Joins;
use crate::spec::{MeshSpec, PublicKey};
use crate::tunnel::{Drops, PeerStatus, Shard};
pub use tap::Captured;
use tap::Tap;
use thread::{Loop, Mail, Neighbour, Parts, SharedLimiter};
use tun::Tun;
use udp::Udp;

/// How many strays of a kind wait for a thread at most.
const STRAYS_MAX: usize = 64;

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

impl Status {
    /// Adds how another packet thread of the same overlay stands.
    #[must_use]
    pub fn and(mut self, other: Self) -> Self {
        self.peers.extend(other.peers);
        self.drops = self.drops.plus(other.drops);
        self.offloads = self.offloads.and(other.offloads);
        self
    }
}

impl Offloads {
    fn and(self, other: Self) -> Self {
        let (one, two) = (self.device, other.device);
        Self {
            device: Joins { tcp: one.tcp && two.tcp, udp: one.udp && two.udp },
            trains_sent: self.trains_sent && other.trains_sent,
            trains_received: self.trains_received && other.trains_received,
        }
    }
}

/// The packet threads of one overlay: one, or several that divide its peers among them.
#[derive(Debug)]
pub struct Packets {
    threads: Vec<Thread>,
}

#[derive(Debug)]
struct Thread {
    shard: Shard,
    mail: Sender<Mail>,
    wake: Arc<EventFd>,
    handle: JoinHandle<()>,
}

impl Thread {
    fn post(&self, mail: Mail) -> bool {
        let sent = self.mail.send(mail).is_ok();
        // A full event counter means that the thread has been woken already.
        let _ = self.wake.write(1);
        sent
    }
}

impl Packets {
    /// Starts a thread for each queue of the TUN device, with a socket of its own; with `rekey`, keys are renewed after that
    /// already.
    ///
    /// # Errors
    /// When the operating system gives no thread or event descriptor.
    pub fn start(
        name: &str,
        queues: Vec<(Tun, Udp)>,
        rekey: Option<Duration>,
    ) -> std::io::Result<Self> {
        let (mut neighbours, mut ends) = (Vec::new(), Vec::new());
        for queue in queues {
            let [(datagrams, from_wire), (packets, from_device)] =
                [sync_channel(STRAYS_MAX), sync_channel(STRAYS_MAX)];
            let wake = EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC)?;
            let wake = Arc::new(wake);
            neighbours.push(Neighbour { datagrams, packets, wake: wake.clone() });
            ends.push((queue, [from_wire, from_device], wake));
        }
        let limiter = SharedLimiter::default();
        let mut all = Self { threads: Vec::new() };
        let shards = Shard::all(u32::try_from(ends.len()).unwrap_or(1));
        for (shard, ((tun, udp), strayed, wake)) in shards.zip(ends) {
            let (mail, inbox) = channel();
            let parts = Parts {
                shard,
                tun,
                udp,
                wake: wake.clone(),
                inbox,
                strayed,
                neighbours: neighbours.clone(),
                limiter: limiter.clone(),
            };
            let handle = std::thread::Builder::new().name(name.to_owned()).spawn(move || {
                let mut packets = Loop::new(parts);
                rekey.into_iter().for_each(|after| packets.tunnel.set_rekey(after));
                packets.run();
            })?;
            all.threads.push(Thread { shard, mail, wake, handle });
        }
        Ok(all)
    }

    fn post_all(&self, mail: impl Fn() -> Mail) -> bool {
        let sent: Vec<bool> = self.threads.iter().map(|t| t.post(mail())).collect();
        !sent.contains(&false)
    }

    /// Hands over a spec; false if a thread has ended.
    pub fn set_spec(&self, spec: &MeshSpec) -> bool {
        self.post_all(|| Mail::Spec(Box::new(spec.clone())))
    }

    /// Takes a round trip to a peer; it is given up without an answer if there is no such peer, or the thread ends.
    pub fn ping(&self, peer: PublicKey) -> oneshot::Receiver<RoundTrip> {
        let (tx, rx) = oneshot::channel();
        if let Some(thread) = self.threads.iter().find(|t| t.shard.has_key(&peer)) {
            thread.post(Mail::Ping(peer, tx));
        }
        rx
    }

    /// Copies every packet to `sink` until that is closed.
    pub fn capture(&self, sink: &tokio::sync::mpsc::Sender<Captured>) {
        let tap = Tap::new(sink.clone());
        self.post_all(|| Mail::Capture(tap.clone()));
    }

    /// Whether a thread is no more; only a panic ends one before this is dropped.
    pub fn ended(&self) -> bool {
        self.threads.iter().any(|t| t.handle.is_finished())
    }

    /// Asks each thread how things stand; given up without an answer if it ends.
    pub fn status(&self) -> Vec<oneshot::Receiver<Status>> {
        let ask = |thread: &Thread| {
            let (tx, rx) = oneshot::channel();
            thread.post(Mail::Status(tx));
            rx
        };
        self.threads.iter().map(ask).collect()
    }
}

impl Drop for Packets {
    fn drop(&mut self) {
        self.post_all(|| Mail::End);
        for thread in self.threads.drain(..) {
            // A panic there was printed by the runtime already.
            let _ = thread.handle.join();
        }
    }
}
