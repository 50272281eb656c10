//! Ends TCP connections to hosts that are gone, by SOCK_DESTROY (sock_diag(7)), so that clients notice at once.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use netlink_sys::protocols::NETLINK_SOCK_DIAG;
use netlink_sys::{Socket, SocketAddr};

const SOCK_DIAG_BY_FAMILY: u16 = 20;
const SOCK_DESTROY: u16 = 21;
const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
const NLM_F_DUMP: u16 = 0x300;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const HEADER: usize = 16;
/// The length of `struct inet_diag_sockid`, which names a socket.
const SOCKID: usize = 48;
/// All states but TIME_WAIT (6), CLOSE (7) and LISTEN (10).
const STATES: u32 = 0xfff & !(1 << 6) & !(1 << 7) & !(1 << 10);
const TCP: u8 = 6;
const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;

/// A socket as the kernel names it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Flow {
    family: u8,
    id: [u8; SOCKID],
}

impl Flow {
    /// Returns the remote address; an IPv4 address that an IPv6 socket uses comes as IPv4.
    fn remote(&self) -> IpAddr {
        let at: [u8; 16] = std::array::from_fn(|i| self.id[20 + i]);
        if self.family == AF_INET {
            Ipv4Addr::new(at[0], at[1], at[2], at[3]).into()
        } else {
            Ipv6Addr::from(at).to_canonical()
        }
    }
}

/// Builds `struct inet_diag_req_v2` behind a netlink header.
fn request(kind: u16, flags: u16, family: u8, states: u32, id: Option<&[u8; SOCKID]>) -> Vec<u8> {
    let length = u32::try_from(HEADER + 8 + SOCKID).unwrap_or(0);
    let mut m = Vec::with_capacity(HEADER + 8 + SOCKID);
    m.extend(length.to_ne_bytes());
    m.extend(kind.to_ne_bytes());
    m.extend((NLM_F_REQUEST | flags).to_ne_bytes());
    m.extend([0u8; 8]);
    m.extend([family, TCP, 0, 0]);
    m.extend(states.to_ne_bytes());
    m.extend(id.unwrap_or(&[0; SOCKID]));
    m
}

/// Splits a datagram into netlink messages; stops at the first malformed one.
fn messages(mut bytes: &[u8]) -> Vec<(u16, &[u8])> {
    let mut found = Vec::new();
    while bytes.len() >= HEADER {
        let length = u32::from_ne_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]) as usize;
        let kind = u16::from_ne_bytes([bytes[4], bytes[5]]);
        let Some(body) = bytes.get(HEADER..length) else {
            break;
        };
        found.push((kind, body));
        let padded = length.next_multiple_of(4);
        bytes = bytes.get(padded..).unwrap_or_default();
    }
    found
}

/// Reads `struct inet_diag_msg`: family, state, timer, retransmits, then the socket's id.
fn flow(body: &[u8]) -> Option<Flow> {
    let family = *body.first()?;
    let id: [u8; SOCKID] = body.get(4..4 + SOCKID)?.try_into().ok()?;
    Some(Flow { family, id })
}

fn dump(socket: &Socket, family: u8) -> io::Result<Vec<Flow>> {
    socket.send(&request(SOCK_DIAG_BY_FAMILY, NLM_F_DUMP, family, STATES, None), 0)?;
    let mut flows = Vec::new();
    loop {
        let (bytes, _) = socket.recv_from_full()?;
        for (kind, body) in messages(&bytes) {
            match kind {
                NLMSG_DONE => return Ok(flows),
                NLMSG_ERROR => return Err(io::Error::other("the kernel refused to list sockets")),
                _ => flows.extend(flow(body)),
            }
        }
        if bytes.is_empty() {
            return Ok(flows);
        }
    }
}

fn destroy(socket: &Socket, flow: &Flow) -> io::Result<()> {
    socket.send(&request(SOCK_DESTROY, NLM_F_ACK, flow.family, 0, Some(&flow.id)), 0)?;
    let (bytes, _) = socket.recv_from_full()?;
    for (kind, body) in messages(&bytes) {
        if kind == NLMSG_ERROR {
            let code = body.first_chunk::<4>().map_or(0, |c| i32::from_ne_bytes(*c));
            if code != 0 {
                return Err(io::Error::from_raw_os_error(-code));
            }
        }
    }
    Ok(())
}

fn kill(to: &[IpAddr]) -> io::Result<usize> {
    let mut socket = Socket::new(NETLINK_SOCK_DIAG)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    let mut count = 0;
    for family in [AF_INET, AF_INET6] {
        for flow in dump(&socket, family)? {
            if !to.contains(&flow.remote()) {
                continue;
            }
            match destroy(&socket, &flow) {
                Ok(()) => count += 1,
                // It ended by itself in the meantime.
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                Err(e) => return Err(e),
            }
        }
    }
    Ok(count)
}

/// Ends every TCP connection of this host whose remote address is one of `to`; returns how many there were.
///
/// # Errors
/// When the kernel cannot do it (it needs INET_DIAG_DESTROY) or the daemon may not.
pub async fn kill_flows(to: Vec<IpAddr>) -> io::Result<usize> {
    #[expect(clippy::disallowed_methods, reason = "netlink answers at once, but blocks")]
    let done = tokio::task::spawn_blocking(move || kill(&to)).await;
    done.map_err(io::Error::other)?
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn requests_have_the_kernels_size() {
        assert_eq!(request(SOCK_DESTROY, 0, AF_INET, 0, None).len(), 72);
    }

    proptest! {
        #[test]
        fn hostile_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            for (_, body) in messages(&bytes) {
                let _ = flow(body).map(|f| f.remote());
            }
        }
    }
}
