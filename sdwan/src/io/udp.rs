//! The UDP socket of one overlay: both families on one port. Shell.

use std::collections::BTreeMap;
use std::io::{self, IoSlice, IoSliceMut};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd};
use std::time::{Duration, Instant};

use nix::sys::socket::{
    ControlMessage, ControlMessageOwned, MsgFlags, SockaddrStorage, recvmsg, sendmsg, setsockopt,
    sockopt,
};
use socket2::{Domain, Protocol, Socket, Type};

use super::sys::{self, TooLarge};
use crate::error::ApplyError;
use crate::tunnel::{COOKIE, DATA, Kind, Path, RESPONSE, Train};

/// Room for bursts while the thread is busy.
const BUFFER: usize = 4 << 20;
/// How long no train is tried where one was refused: the way there may lead through another device by then.
const REFUSED_FOR: Duration = Duration::from_secs(300);
/// How many such places are remembered.
const REFUSED_MAX: usize = 4_096;

/// An open socket.
#[derive(Debug)]
pub struct Udp {
    socket: UdpSocket,
    dual: bool,
    control: Vec<u8>,
    /// Where the way out could not send many datagrams in one piece, and when that was.
    refused: BTreeMap<IpAddr, Instant>,
    /// Whether many that came are read in one piece.
    gro: bool,
}

impl Udp {
    /// Listens on a port with so many sockets, on IPv6 and IPv4, or on IPv4 alone where there is no IPv6. Of several, each gets
    /// the messages of its own sessions ([`crate::tunnel::Shard`]), and the first one those that begin one.
    ///
    /// # Errors
    /// When the port is taken.
    pub fn bind_all(port: u16, sockets: usize) -> Result<Vec<Self>, ApplyError> {
        let first = Self::bind(port)?;
        let error = |source| ApplyError::Udp { port, source };
        if sockets < 2 {
            return Ok(vec![first]);
        }
        // Only now, so that a port which somebody else has is refused (SO_REUSEPORT of socket(7)).
        setsockopt(&first.socket, sockopt::ReusePort, &true).map_err(|e| error(e.into()))?;
        let at = first.socket.local_addr().map_err(error)?;
        let mut all = vec![first];
        for _ in 1..sockets {
            let (socket, gro) = open(at, true).map_err(error)?;
            all.push(Self::new(socket, gro, at.is_ipv6()));
        }
        // Without it datagrams are handed on between threads.
        if let Err(e) = sys::choose_by(&all[0].socket, &mut chooser(sockets)) {
            tracing::info!(error = %e, "the kernel does not choose among sockets by session");
        }
        Ok(all)
    }

    /// Listens on a port with one socket.
    ///
    /// # Errors
    /// When the port is taken.
    pub fn bind(port: u16) -> Result<Self, ApplyError> {
        let error = |source| ApplyError::Udp { port, source };
        let none = |e: &io::Error| {
            matches!(e.raw_os_error(), Some(libc::EAFNOSUPPORT | libc::EADDRNOTAVAIL))
        };
        let (opened, dual) = match open(SocketAddr::from(([0u16; 8], port)), false) {
            Err(e) if none(&e) => (open(SocketAddr::from(([0, 0, 0, 0], port)), false), false),
            opened => (opened, true),
        };
        let (socket, gro) = opened.map_err(error)?;
        Ok(Self::new(socket, gro, dual))
    }

    fn new(socket: UdpSocket, gro: bool, dual: bool) -> Self {
        let control = nix::cmsg_space!(libc::in6_pktinfo, libc::in_pktinfo, i32, i32, i32);
        Self { socket, dual, control, refused: BTreeMap::new(), gro }
    }

    /// Whether datagrams are sent in one piece, wherever they go.
    pub fn sends_trains(&self) -> bool {
        self.refused.is_empty()
    }

    /// Whether datagrams are received in one piece.
    pub fn receives_trains(&self) -> bool {
        self.gro
    }

    /// Reads datagrams of one sender in one piece (UDP_GRO of udp(7)), or one.
    ///
    /// # Errors
    /// `WouldBlock` when there is none.
    pub fn receive<'b>(&mut self, buffer: &'b mut [u8]) -> io::Result<Train<'b>> {
        let mut parts = [IoSliceMut::new(buffer)];
        let (fd, flags) = (self.socket.as_raw_fd(), MsgFlags::empty());
        let got = recvmsg::<SockaddrStorage>(fd, &mut parts, Some(&mut self.control), flags)?;
        let (mut local, mut class, mut size) = (None, 0, got.bytes);
        for control in got.cmsgs()? {
            match control {
                ControlMessageOwned::Ipv6PacketInfo(i) => {
                    local = Some(Ipv6Addr::from(i.ipi6_addr.s6_addr).to_canonical());
                }
                ControlMessageOwned::Ipv4PacketInfo(i) => {
                    local.get_or_insert(Ipv4Addr::from(i.ipi_addr.s_addr.to_ne_bytes()).into());
                }
                ControlMessageOwned::Ipv4Tos(tos) => class = tos,
                ControlMessageOwned::Ipv6TClass(tc) => class = u8::try_from(tc).unwrap_or(0),
                ControlMessageOwned::UdpGroSegments(each) => {
                    size = usize::try_from(each).unwrap_or(size);
                }
                _ => {}
            }
        }
        let from = got.address.and_then(|a| {
            let v4 = a.as_sockaddr_in().map(|a| SocketAddr::from((a.ip(), a.port())));
            v4.or_else(|| a.as_sockaddr_in6().map(|a| (a.ip().to_canonical(), a.port()).into()))
        });
        let remote = from.ok_or_else(|| io::Error::other("a datagram from nowhere"))?;
        let length = got.bytes;
        let kind = Kind { class, whole: false };
        Ok(Train { path: Path { remote, local }, bytes: &buffer[..length], size, kind })
    }

    /// Sends datagrams in one piece (UDP_SEGMENT of udp(7)) where that can be done, else one by one.
    ///
    /// # Errors
    /// When the kernel does not take them.
    pub fn send(&mut self, train: &Train<'_>, now: Instant) -> io::Result<()> {
        if train.kind.whole {
            sys::set_too_large(&self.socket, self.dual, TooLarge::Lose)?;
            let sent = self.send_fitting(train, now);
            // Before the next one goes out; both were possible when the socket was opened.
            return sys::set_too_large(&self.socket, self.dual, TooLarge::Fragment).and(sent);
        }
        self.send_fitting(train, now)
    }

    fn send_fitting(&mut self, train: &Train<'_>, now: Instant) -> io::Result<()> {
        if train.bytes.len() <= train.size {
            return self.send_once(train, None);
        }
        let to = train.path.remote.ip();
        if !self.is_refused(to, now) {
            let size = u16::try_from(train.size).ok();
            match self.send_once(train, size) {
                // The device on the way out cannot compute checksums, so that it never will; others may.
                Err(e) if e.raw_os_error() == Some(libc::EIO) => self.note_refused(to, now),
                // The way to this peer has a smaller MTU: these datagrams must be fragmented, which trains are not.
                Err(e) if matches!(e.raw_os_error(), Some(libc::EINVAL | libc::EMSGSIZE)) => {}
                done => return done,
            }
        }
        let mut first = Ok(());
        for bytes in train.datagrams() {
            let sent = self.send_once(&Train { bytes, size: bytes.len(), ..*train }, None);
            first = first.and(sent);
        }
        first
    }

    fn is_refused(&mut self, to: IpAddr, now: Instant) -> bool {
        let lately = |at: &Instant| now.saturating_duration_since(*at) < REFUSED_FOR;
        if self.refused.get(&to).is_some_and(lately) {
            return true;
        }
        self.refused.remove(&to);
        false
    }

    fn note_refused(&mut self, to: IpAddr, now: Instant) {
        if self.refused.is_empty() {
            tracing::info!(%to, "datagrams are sent one by one: the way out takes no trains");
        }
        if self.refused.len() < REFUSED_MAX {
            self.refused.insert(to, now);
        }
    }

    fn send_once(&self, train: &Train<'_>, segment: Option<u16>) -> io::Result<()> {
        let Path { remote, local } = train.path;
        let mapped = |v4: Ipv4Addr| IpAddr::V6(v4.to_ipv6_mapped());
        let ip = match remote.ip() {
            IpAddr::V4(v4) if self.dual => mapped(v4),
            ip => ip,
        };
        let to = SockaddrStorage::from(SocketAddr::new(ip, remote.port()));
        let v4 = local.and_then(|ip| match ip {
            IpAddr::V4(v4) if !self.dual => Some(libc::in_pktinfo {
                ipi_ifindex: 0,
                ipi_spec_dst: libc::in_addr { s_addr: u32::from_ne_bytes(v4.octets()) },
                ipi_addr: libc::in_addr { s_addr: 0 },
            }),
            _ => None,
        });
        let v6 = local.filter(|_| v4.is_none()).map(|ip| {
            let v6 = match ip {
                IpAddr::V4(v4) => v4.to_ipv6_mapped(),
                IpAddr::V6(v6) => v6,
            };
            libc::in6_pktinfo {
                ipi6_addr: libc::in6_addr { s6_addr: v6.octets() },
                ipi6_ifindex: 0,
            }
        });
        // Which of the two a packet has is a matter of its family, not of the socket's.
        let class = (i32::from(train.kind.class), train.kind.class);
        let mut control: [Option<ControlMessage<'_>>; 3] = [None, None, None];
        control[0] = v4.as_ref().map(ControlMessage::Ipv4PacketInfo);
        if control[0].is_none() {
            control[0] = v6.as_ref().map(ControlMessage::Ipv6PacketInfo);
        }
        if train.kind.class != 0 {
            control[1] = Some(match remote.ip() {
                IpAddr::V4(_) => ControlMessage::Ipv4Tos(&class.1),
                IpAddr::V6(_) => ControlMessage::Ipv6TClass(&class.0),
            });
        }
        control[2] = segment.as_ref().map(ControlMessage::UdpGsoSegments);
        let control: Vec<ControlMessage<'_>> = control.into_iter().flatten().collect();
        let (fd, flags) = (self.socket.as_raw_fd(), MsgFlags::empty());
        sendmsg(fd, &[IoSlice::new(train.bytes)], &control, flags, Some(&to)).map(drop)?;
        Ok(())
    }
}

/// Whether sending failed since the address to send from is no more this host's, or leads nowhere now.
pub fn is_gone(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EINVAL | libc::EADDRNOTAVAIL | libc::ENETUNREACH | libc::EHOSTUNREACH)
    )
}

impl AsFd for Udp {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// Chooses a socket by the receiver's index of a message, a little-endian number whose lowest byte counts handshakes (WireGuard
/// paper, section 5.4); the first one for what has none.
fn chooser(sockets: usize) -> [libc::sock_filter; 10] {
    let mask = u32::try_from(sockets.saturating_sub(1)).unwrap_or(0);
    let step = |code: u32, k: u32| {
        let code = u16::try_from(code).unwrap_or(0);
        libc::sock_filter { code, jt: 0, jf: 0, k }
    };
    let load = |at| step(libc::BPF_LD | libc::BPF_B | libc::BPF_ABS, at);
    let is = |kind: u8, jt, jf| libc::sock_filter {
        jt,
        jf,
        ..step(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, kind.into())
    };
    [
        load(0),
        is(DATA, 2, 0),
        is(COOKIE, 1, 0),
        is(RESPONSE, 2, 5),
        // Where data and cookies have the second byte of the receiver's index,
        load(5),
        step(libc::BPF_JMP | libc::BPF_JA, 1),
        // and where answers have it.
        load(9),
        step(libc::BPF_ALU | libc::BPF_AND | libc::BPF_K, mask),
        step(libc::BPF_RET | libc::BPF_A, 0),
        step(libc::BPF_RET | libc::BPF_K, 0),
    ]
}

/// Opens a socket, which others may share the port with, and says whether it receives trains.
fn open(at: SocketAddr, shared: bool) -> io::Result<(UdpSocket, bool)> {
    let socket = Socket::new(Domain::for_address(at), Type::DGRAM, Some(Protocol::UDP))?;
    if at.ip() == IpAddr::V6(Ipv6Addr::UNSPECIFIED) {
        socket.set_only_v6(false)?;
        setsockopt(&socket, sockopt::Ipv6RecvPacketInfo, &true)?;
    } else {
        setsockopt(&socket, sockopt::Ipv4PacketInfo, &true)?;
    }
    // Where these are not known, datagrams come one by one, and marks of congestion are lost.
    let gro = setsockopt(&socket, sockopt::UdpGroSegment, &true).is_ok();
    let _ = setsockopt(&socket, sockopt::IpRecvTos, &true);
    if at.is_ipv6() {
        let _ = setsockopt(&socket, sockopt::Ipv6RecvTClass, &true);
    }
    // Beyond net.core.rmem_max where we may (socket(7)). The kernel may give less; that costs packets under load, not correctness.
    if setsockopt(&socket, sockopt::RcvBufForce, &BUFFER).is_err() {
        let _ = socket.set_recv_buffer_size(BUFFER);
    }
    if setsockopt(&socket, sockopt::SndBufForce, &BUFFER).is_err() {
        let _ = socket.set_send_buffer_size(BUFFER);
    }
    if shared {
        setsockopt(&socket, sockopt::ReusePort, &true)?;
    }
    socket.set_nonblocking(true)?;
    socket.bind(&at.into())?;
    let socket = UdpSocket::from(socket);
    // As WireGuard in the kernel does it: packets may be fragmented on the way, but for those that seek its MTU.
    sys::set_too_large(&socket, at.is_ipv6(), TooLarge::Fragment)?;
    Ok((socket, gro))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::thread::now;

    fn receive(udp: &mut Udp, buffer: &mut [u8]) -> Path {
        for _ in 0..200 {
            match udp.receive(buffer) {
                Ok(train) => return train.path,
                Err(_) => std::thread::sleep(Duration::from_millis(5)),
            }
        }
        panic!("nothing came");
    }

    #[test]
    fn an_answer_comes_from_the_address_that_was_called() {
        let mut udp = Udp::bind(0).unwrap();
        let port = udp.socket.local_addr().unwrap().port();
        let mut buffer = [0; 100];
        for (own, called) in [("127.0.0.1:0", "127.0.0.5"), ("[::1]:0", "::1")] {
            let Ok(peer) = UdpSocket::bind(own) else { continue };
            let called: IpAddr = called.parse().unwrap();
            peer.send_to(b"hello", (called, port)).unwrap();
            let path = receive(&mut udp, &mut buffer);
            assert_eq!(path, Path { remote: peer.local_addr().unwrap(), local: Some(called) });
            udp.send(&Train::one(path, b"back"), now()).unwrap();
            assert_eq!(peer.recv_from(&mut buffer).unwrap().1, (called, port).into());
        }
        let peer = UdpSocket::bind("127.0.0.1:0").unwrap();
        let gone = Path { remote: peer.local_addr().unwrap(), local: Some([192, 0, 2, 7].into()) };
        assert!(is_gone(&udp.send(&Train::one(gone, b"back"), now()).unwrap_err()));
    }

    #[test]
    fn a_way_that_takes_no_trains_is_tried_again_later_and_others_at_once() {
        let mut udp = Udp::bind(0).unwrap();
        let (one, other) = (IpAddr::from([192, 0, 2, 1]), IpAddr::from([192, 0, 2, 2]));
        let now = now();
        udp.note_refused(one, now);
        assert!(udp.is_refused(one, now) && !udp.is_refused(other, now) && !udp.sends_trains());
        assert!(!udp.is_refused(one, now + REFUSED_FOR) && udp.sends_trains());
    }

    #[test]
    fn of_several_sockets_each_gets_the_messages_of_its_sessions() {
        let mut all = Udp::bind_all(0, 4).unwrap();
        let port = all[0].socket.local_addr().unwrap().port();
        let mut buffer = [0; 200];
        for own in ["127.0.0.1:0", "[::1]:0"] {
            let Ok(peer) = UdpSocket::bind(own) else { continue };
            let to = SocketAddr::new(peer.local_addr().unwrap().ip(), port);
            for (kind, at) in [(DATA, 4), (COOKIE, 4), (RESPONSE, 8)] {
                for index in 0..6u32 {
                    let mut message = [0; 100];
                    message[0] = kind;
                    message[at..at + 4].copy_from_slice(&(index << 8 | 0xab).to_le_bytes());
                    peer.send_to(&message, to).unwrap();
                    receive(&mut all[index as usize % 4], &mut buffer);
                    assert_eq!(buffer[..100], message);
                }
            }
            for bytes in [&[1, 0, 0, 0, 7, 7, 7, 7][..], &[4], &[]] {
                peer.send_to(bytes, to).unwrap();
                receive(&mut all[0], &mut buffer);
            }
        }
    }

    #[test]
    fn a_port_that_somebody_else_has_is_refused_although_sockets_share_it() {
        let all = Udp::bind_all(0, 2).unwrap();
        let port = all[0].socket.local_addr().unwrap().port();
        let again = Udp::bind_all(port, 2).unwrap_err();
        assert!(matches!(again, ApplyError::Udp { port: p, .. } if p == port), "{again}");
    }
}
