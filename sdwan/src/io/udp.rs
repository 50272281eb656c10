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
use crate::tunnel::{Kind, Path, Train};

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
    /// Listens on a port, on IPv6 and IPv4, or on IPv4 alone where there is no IPv6.
    ///
    /// # Errors
    /// When the port is taken.
    pub fn bind(port: u16) -> Result<Self, ApplyError> {
        let error = |source| ApplyError::Udp { port, source };
        let control = nix::cmsg_space!(libc::in6_pktinfo, libc::in_pktinfo, i32, i32, i32);
        let new =
            |(socket, gro), dual| Self { socket, dual, control, refused: BTreeMap::new(), gro };
        match open(Domain::IPV6, SocketAddr::from(([0u16; 8], port))) {
            Ok(opened) => Ok(new(opened, true)),
            Err(e)
                if matches!(e.raw_os_error(), Some(libc::EAFNOSUPPORT | libc::EADDRNOTAVAIL)) =>
            {
                let opened =
                    open(Domain::IPV4, SocketAddr::from(([0, 0, 0, 0], port))).map_err(error)?;
                Ok(new(opened, false))
            }
            Err(e) => Err(error(e)),
        }
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

/// Opens the socket, and says whether it receives trains.
fn open(domain: Domain, at: SocketAddr) -> io::Result<(UdpSocket, bool)> {
    let socket = Socket::new(domain, Type::DGRAM, Some(Protocol::UDP))?;
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
    use crate::io::now;

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
}
