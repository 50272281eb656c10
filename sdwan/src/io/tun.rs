//! A persistent TUN device (Documentation/networking/tuntap.rst). Shell; the crate's only unsafe code.

use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt as _;

use crate::error::ApplyError;

const DEVICE: &str = "/dev/net/tun";

/// An open TUN device. It stays when the daemon ends, so that addresses and routes stay too.
#[derive(Debug)]
pub struct Tun(File);

impl Tun {
    /// Opens the device with this name, making it if need be.
    ///
    /// # Errors
    /// When there are no TUN devices, the daemon may not make one, or another process has it.
    pub fn open(name: &str) -> Result<Self, ApplyError> {
        let error = |source: io::Error| match source.raw_os_error() {
            Some(libc::EPERM | libc::EACCES) => ApplyError::Forbidden(name.to_owned()),
            Some(libc::EBUSY) => ApplyError::Busy(name.to_owned()),
            _ => ApplyError::Tun { name: name.to_owned(), source },
        };
        let file =
            OpenOptions::new().read(true).write(true).custom_flags(libc::O_NONBLOCK).open(DEVICE);
        let file = file.map_err(|e| match e.kind() {
            io::ErrorKind::NotFound => ApplyError::NoTun,
            _ => error(e),
        })?;
        attach(&file, name).map_err(error)?;
        Ok(Self(file))
    }

    /// Reads one packet.
    ///
    /// # Errors
    /// `WouldBlock` when there is none.
    pub fn receive(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.read(buffer)
    }

    /// Writes one packet.
    ///
    /// # Errors
    /// When the kernel does not take it.
    pub fn send(&mut self, packet: &[u8]) -> io::Result<()> {
        self.0.write(packet).map(drop)
    }
}

impl AsFd for Tun {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[allow(unsafe_code)]
fn attach(file: &File, name: &str) -> io::Result<()> {
    let bytes = name.as_bytes();
    if bytes.is_empty() || bytes.len() >= libc::IFNAMSIZ {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "the device's name is too long"));
    }
    // SAFETY: ifreq is plain data for which all zeroes is a valid value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(bytes) {
        *to = from.cast_signed();
    }
    let flags = libc::IFF_TUN | libc::IFF_NO_PI;
    request.ifr_ifru.ifru_flags = i16::try_from(flags).map_err(io::Error::other)?;
    let fd = file.as_raw_fd();
    // SAFETY: fd is open for the call's duration, and TUNSETIFF reads and writes one ifreq, which outlives it.
    if unsafe { libc::ioctl(fd, libc::TUNSETIFF, &raw mut request) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: TUNSETPERSIST takes an integer by value.
    if unsafe { libc::ioctl(fd, libc::TUNSETPERSIST, 1) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Removes a persistent device that no spec names any more.
///
/// # Errors
/// As [`Tun::open`].
#[allow(unsafe_code)]
pub fn remove(name: &str) -> Result<(), ApplyError> {
    let tun = Tun::open(name)?;
    // SAFETY: TUNSETPERSIST takes an integer by value; the descriptor is open.
    if unsafe { libc::ioctl(tun.0.as_raw_fd(), libc::TUNSETPERSIST, 0) } < 0 {
        return Err(ApplyError::Tun { name: name.to_owned(), source: io::Error::last_os_error() });
    }
    Ok(())
}
