//! The UDP socket of one overlay: both families on one port. Shell.

use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd};

use socket2::{Domain, Protocol, Socket, Type};

use crate::error::ApplyError;

/// Room for bursts while the thread is busy.
const BUFFER: usize = 4 << 20;

/// An open socket.
#[derive(Debug)]
pub struct Udp {
    socket: UdpSocket,
    dual: bool,
}

impl Udp {
    /// Listens on a port, on IPv6 and IPv4, or on IPv4 alone where there is no IPv6.
    ///
    /// # Errors
    /// When the port is taken.
    pub fn bind(port: u16) -> Result<Self, ApplyError> {
        let error = |source| ApplyError::Udp { port, source };
        match open(Domain::IPV6, SocketAddr::from(([0u16; 8], port))) {
            Ok(socket) => Ok(Self { socket, dual: true }),
            Err(e)
                if matches!(e.raw_os_error(), Some(libc::EAFNOSUPPORT | libc::EADDRNOTAVAIL)) =>
            {
                let socket =
                    open(Domain::IPV4, SocketAddr::from(([0, 0, 0, 0], port))).map_err(error)?;
                Ok(Self { socket, dual: false })
            }
            Err(e) => Err(error(e)),
        }
    }

    /// Reads one datagram.
    ///
    /// # Errors
    /// `WouldBlock` when there is none.
    pub fn receive(&self, buffer: &mut [u8]) -> io::Result<(usize, SocketAddr)> {
        let (n, from) = self.socket.recv_from(buffer)?;
        Ok((n, SocketAddr::new(from.ip().to_canonical(), from.port())))
    }

    /// Sends one datagram.
    ///
    /// # Errors
    /// When the kernel does not take it.
    pub fn send(&self, bytes: &[u8], to: SocketAddr) -> io::Result<()> {
        let ip = match to.ip() {
            IpAddr::V4(v4) if self.dual => IpAddr::V6(v4.to_ipv6_mapped()),
            ip => ip,
        };
        self.socket.send_to(bytes, SocketAddr::new(ip, to.port())).map(drop)
    }
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
    }
    // The kernel may give less; that costs packets under load, not correctness.
    let _ = socket.set_recv_buffer_size(BUFFER);
    let _ = socket.set_send_buffer_size(BUFFER);
    socket.set_nonblocking(true)?;
    socket.bind(&at.into())?;
    Ok(socket.into())
}
