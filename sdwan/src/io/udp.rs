//! The UDP socket of one overlay: both families on one port. Shell.

use std::io::{self, IoSlice, IoSliceMut};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd};

use nix::sys::socket::{
    ControlMessage, ControlMessageOwned, MsgFlags, SockaddrStorage, recvmsg, sendmsg, setsockopt,
    sockopt,
};
use socket2::{Domain, Protocol, Socket, Type};

use crate::error::ApplyError;
use crate::tunnel::Path;

/// Room for bursts while the thread is busy.
const BUFFER: usize = 4 << 20;

/// An open socket.
#[derive(Debug)]
pub struct Udp {
    socket: UdpSocket,
    dual: bool,
    control: Vec<u8>,
}

impl Udp {
    /// Listens on a port, on IPv6 and IPv4, or on IPv4 alone where there is no IPv6.
    ///
    /// # Errors
    /// When the port is taken.
    pub fn bind(port: u16) -> Result<Self, ApplyError> {
        let error = |source| ApplyError::Udp { port, source };
        let control = nix::cmsg_space!(libc::in6_pktinfo, libc::in_pktinfo);
        match open(Domain::IPV6, SocketAddr::from(([0u16; 8], port))) {
            Ok(socket) => Ok(Self { socket, dual: true, control }),
            Err(e)
                if matches!(e.raw_os_error(), Some(libc::EAFNOSUPPORT | libc::EADDRNOTAVAIL)) =>
            {
                let socket =
                    open(Domain::IPV4, SocketAddr::from(([0, 0, 0, 0], port))).map_err(error)?;
                Ok(Self { socket, dual: false, control })
            }
            Err(e) => Err(error(e)),
        }
    }

    /// Reads one datagram: its length, who sent it, and to which address of this host.
    ///
    /// # Errors
    /// `WouldBlock` when there is none.
    pub fn receive(&mut self, buffer: &mut [u8]) -> io::Result<(usize, Path)> {
        let mut parts = [IoSliceMut::new(buffer)];
        let (fd, flags) = (self.socket.as_raw_fd(), MsgFlags::empty());
        let got = recvmsg::<SockaddrStorage>(fd, &mut parts, Some(&mut self.control), flags)?;
        let local = got.cmsgs()?.find_map(|c| match c {
            ControlMessageOwned::Ipv6PacketInfo(i) => {
                Some(Ipv6Addr::from(i.ipi6_addr.s6_addr).to_canonical())
            }
            ControlMessageOwned::Ipv4PacketInfo(i) => {
                Some(Ipv4Addr::from(i.ipi_addr.s_addr.to_ne_bytes()).into())
            }
            _ => None,
        });
        let from = got.address.and_then(|a| {
            let v4 = a.as_sockaddr_in().map(|a| SocketAddr::from((a.ip(), a.port())));
            v4.or_else(|| a.as_sockaddr_in6().map(|a| (a.ip().to_canonical(), a.port()).into()))
        });
        let remote = from.ok_or_else(|| io::Error::other("a datagram from nowhere"))?;
        Ok((got.bytes, Path { remote, local }))
    }

    /// Sends one datagram.
    ///
    /// # Errors
    /// When the kernel does not take it.
    pub fn send(&self, bytes: &[u8], to: Path) -> io::Result<()> {
        let mapped = |v4: Ipv4Addr| IpAddr::V6(v4.to_ipv6_mapped());
        let ip = match to.remote.ip() {
            IpAddr::V4(v4) if self.dual => mapped(v4),
            ip => ip,
        };
        let remote = SocketAddr::new(ip, to.remote.port());
        let send = |control: &[ControlMessage<'_>]| {
            let (fd, flags) = (self.socket.as_raw_fd(), MsgFlags::empty());
            let to = SockaddrStorage::from(remote);
            sendmsg(fd, &[IoSlice::new(bytes)], control, flags, Some(&to)).map(drop)
        };
        let sent = match to.local {
            None => return self.socket.send_to(bytes, remote).map(drop),
            Some(IpAddr::V4(v4)) if !self.dual => {
                let addr = |octets| libc::in_addr { s_addr: u32::from_ne_bytes(octets) };
                let (source, none) = (addr(v4.octets()), addr([0; 4]));
                let info =
                    libc::in_pktinfo { ipi_ifindex: 0, ipi_spec_dst: source, ipi_addr: none };
                send(&[ControlMessage::Ipv4PacketInfo(&info)])
            }
            Some(local) => {
                let v6 = match local {
                    IpAddr::V4(v4) => v4.to_ipv6_mapped(),
                    IpAddr::V6(v6) => v6,
                };
                let address = libc::in6_addr { s6_addr: v6.octets() };
                let info = libc::in6_pktinfo { ipi6_addr: address, ipi6_ifindex: 0 };
                send(&[ControlMessage::Ipv6PacketInfo(&info)])
            }
        };
        sent.map_err(Into::into)
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

fn open(domain: Domain, at: SocketAddr) -> io::Result<UdpSocket> {
    let socket = Socket::new(domain, Type::DGRAM, Some(Protocol::UDP))?;
    if at.ip() == IpAddr::V6(Ipv6Addr::UNSPECIFIED) {
        socket.set_only_v6(false)?;
        setsockopt(&socket, sockopt::Ipv6RecvPacketInfo, &true)?;
    } else {
        setsockopt(&socket, sockopt::Ipv4PacketInfo, &true)?;
    }
    // The kernel may give less; that costs packets under load, not correctness.
    let _ = socket.set_recv_buffer_size(BUFFER);
    let _ = socket.set_send_buffer_size(BUFFER);
    socket.set_nonblocking(true)?;
    socket.bind(&at.into())?;
    Ok(socket.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn receive(udp: &mut Udp, buffer: &mut [u8]) -> Path {
        for _ in 0..200 {
            match udp.receive(buffer) {
                Ok((_, path)) => return path,
                Err(_) => std::thread::sleep(std::time::Duration::from_millis(5)),
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
            udp.send(b"back", path).unwrap();
            assert_eq!(peer.recv_from(&mut buffer).unwrap().1, (called, port).into());
        }
        let peer = UdpSocket::bind("127.0.0.1:0").unwrap();
        let gone = Path { remote: peer.local_addr().unwrap(), local: Some([192, 0, 2, 7].into()) };
        assert!(is_gone(&udp.send(b"back", gone).unwrap_err()));
    }
}
