//! What the kernel offers and no library wraps: the crate's only unsafe code. Shell.

use std::fs::File;
use std::io;
use std::net::UdpSocket;
use std::os::fd::{AsRawFd as _, RawFd};

/// Makes a descriptor of /dev/net/tun that of the device with this name, which need not be there yet, or one of several of it
/// (TUNSETIFF, Documentation/networking/tuntap.rst).
#[allow(unsafe_code)]
pub(super) fn attach(file: &File, name: &str, several: bool) -> io::Result<()> {
    let bytes = name.as_bytes();
    if bytes.is_empty() || bytes.len() >= libc::IFNAMSIZ {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "the device's name is too long"));
    }
    // SAFETY: ifreq is plain data for which all zeroes is a valid value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(bytes) {
        *to = from.cast_signed();
    }
    let several = if several { libc::IFF_MULTI_QUEUE } else { 0 };
    let flags = libc::IFF_TUN | libc::IFF_NO_PI | libc::IFF_VNET_HDR | several;
    request.ifr_ifru.ifru_flags = i16::try_from(flags).map_err(io::Error::other)?;
    // SAFETY: the descriptor is open for the call's duration, and TUNSETIFF reads and writes one ifreq, which outlives it.
    done(unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &raw mut request) })
}

/// Says whether a TUN device stays when its descriptor is closed.
#[allow(unsafe_code)]
pub(super) fn persist(file: &File, stays: bool) -> io::Result<()> {
    // SAFETY: the descriptor is open, and TUNSETPERSIST takes an integer by value.
    done(unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETPERSIST, libc::c_int::from(stays)) })
}

/// Says what a TUN device may leave to us (TUN_F_* of include/uapi/linux/if_tun.h).
#[allow(unsafe_code)]
pub(super) fn set_offload(file: &File, flags: libc::c_ulong) -> io::Result<()> {
    // SAFETY: the descriptor is open, and TUNSETOFFLOAD takes an integer by value.
    done(unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETOFFLOAD, flags) })
}

/// What becomes of a datagram that is larger than the way's MTU (IP_MTU_DISCOVER of ip(7)).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TooLarge {
    /// Routers fragment it, or, over IPv6, this host.
    Fragment,
    /// It is lost.
    Lose,
}

/// Says what becomes of datagrams that are too large, over both families.
#[allow(unsafe_code)]
pub(super) fn set_too_large(socket: &UdpSocket, dual: bool, then: TooLarge) -> io::Result<()> {
    let (v4, v6) = match then {
        TooLarge::Fragment => (libc::IP_PMTUDISC_DONT, libc::IPV6_PMTUDISC_WANT),
        TooLarge::Lose => (libc::IP_PMTUDISC_PROBE, libc::IPV6_PMTUDISC_PROBE),
    };
    set(socket.as_raw_fd(), (libc::IPPROTO_IP, libc::IP_MTU_DISCOVER), v4)?;
    if dual {
        set(socket.as_raw_fd(), (libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER), v6)?;
    }
    Ok(())
}

#[allow(unsafe_code)]
fn set(fd: RawFd, (level, name): (libc::c_int, libc::c_int), value: libc::c_int) -> io::Result<()> {
    let size = libc::socklen_t::try_from(size_of_val(&value)).map_err(io::Error::other)?;
    // SAFETY: the kernel reads `size` bytes of `value`, which outlives the call.
    done(unsafe { libc::setsockopt(fd, level, name, (&raw const value).cast(), size) })
}

/// Lets the kernel choose among the sockets of one port by a program (SO_ATTACH_REUSEPORT_CBPF of socket(7)).
#[allow(unsafe_code)]
pub(super) fn choose_by(socket: &UdpSocket, program: &mut [libc::sock_filter]) -> io::Result<()> {
    let len = u16::try_from(program.len()).map_err(io::Error::other)?;
    let program = libc::sock_fprog { len, filter: program.as_mut_ptr() };
    let size = libc::socklen_t::try_from(size_of_val(&program)).map_err(io::Error::other)?;
    // SAFETY: the kernel reads `size` bytes of `program` and copies the instructions that it names; both outlive the call.
    done(unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ATTACH_REUSEPORT_CBPF,
            (&raw const program).cast(),
            size,
        )
    })
}

fn done(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
