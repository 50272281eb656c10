//! A persistent TUN device (Documentation/networking/tuntap.rst). Shell.

use std::fs::{File, OpenOptions};
use std::io::{self, IoSlice, Read as _, Write as _};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt as _;

use super::sys;
use crate::error::ApplyError;
use crate::offload::{HEADER, Joins, Offload, Parts, Segments, split};
use crate::tunnel::Superpacket;

const DEVICE: &str = "/dev/net/tun";

/// The longest superpacket with its header, in bytes.
pub(super) const SUPERPACKET_MAX: usize = HEADER + 65_536;
/// What may be left to the device, from the most to the least; each needs the ones before it
/// (TUN_F_CSUM, TSO4, TSO6, TSO_ECN, USO4 and USO6 of include/uapi/linux/if_tun.h).
const CHECKSUM: libc::c_ulong = 0x01;
const TSO: libc::c_ulong = 0x02 | 0x04 | 0x08;
const USO: libc::c_ulong = 0x20 | 0x40;

/// An open TUN device. It stays when the daemon ends, so that addresses and routes stay too.
#[derive(Debug)]
pub struct Tun {
    file: File,
    joins: Joins,
}

impl Tun {
    /// Opens a queue of the device with this name, making it if need be, and asks for all that it can take off our hands.
    ///
    /// # Errors
    /// When there are no TUN devices, the daemon may not make one, or another process has it, which only a device of one queue
    /// tells.
    pub fn open(name: &str) -> Result<Self, ApplyError> {
        Self::attach(name, false)
            .or_else(|e| if is_other_kind(&e) { Self::attach(name, true) } else { Err(e) })
    }

    /// Opens so many queues of a device; one, where it was made for one.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn open_all(name: &str, queues: usize) -> Result<Vec<Self>, ApplyError> {
        if queues < 2 {
            return Ok(vec![Self::open(name)?]);
        }
        match (0..queues).map(|_| Self::attach(name, true)).collect() {
            Err(e) if is_other_kind(&e) => {
                tracing::info!(
                    device = name,
                    "the device was made for one queue: one thread serves it"
                );
                Ok(vec![Self::open(name)?])
            }
            opened => opened,
        }
    }

    fn attach(name: &str, several: bool) -> Result<Self, ApplyError> {
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
        sys::attach(&file, name, several).map_err(error)?;
        sys::persist(&file, true).map_err(error)?;
        let joins = offload(&file);
        Ok(Self { file, joins })
    }

    /// Returns what the device takes in one piece.
    pub fn joins(&self) -> Joins {
        self.joins
    }

    /// Reads a packet, or several in one piece, into `buffer`; nothing where it is none that was asked for.
    ///
    /// # Errors
    /// `WouldBlock` when there is none.
    pub fn receive<'b>(&mut self, buffer: &'b mut [u8]) -> io::Result<Option<Superpacket<'b>>> {
        let length = self.file.read(buffer)?;
        let read = buffer[..length].split_first_chunk_mut::<HEADER>();
        Ok(read
            .and_then(|(head, bytes)| Some(Superpacket { offload: Offload::decode(head)?, bytes })))
    }

    /// Writes a packet, or several in one piece; one by one where the device refuses that, from then on.
    ///
    /// # Errors
    /// When the kernel does not take it.
    pub fn send(&mut self, offload: Offload, parts: Parts<'_>) -> io::Result<()> {
        let Self { file, joins } = self;
        hand_over(joins, offload, parts, |offload, parts| write(file, offload, parts))
    }
}

/// A device stays what it was made as, for one queue or for several, and refuses to be opened as the other.
fn is_other_kind(error: &ApplyError) -> bool {
    matches!(error, ApplyError::Tun { source, .. } if source.raw_os_error() == Some(libc::EINVAL))
}

/// Writes in one piece, or, if that is refused, cuts as the device would have done, and remembers that.
fn hand_over(
    joins: &mut Joins,
    offload: Offload,
    parts: Parts<'_>,
    mut write: impl FnMut(Offload, &mut dyn Iterator<Item = &[u8]>) -> io::Result<()>,
) -> io::Result<()> {
    let refused = match write(offload, &mut parts.clone()) {
        Err(e) if matches!(e.raw_os_error(), Some(libc::EINVAL | libc::EIO)) => e,
        done => return done,
    };
    let joined = match offload.segments {
        Segments::One => return Err(refused),
        Segments::Udp => &mut joins.udp,
        Segments::Tcp4 | Segments::Tcp6 => &mut joins.tcp,
    };
    let mut bytes = parts.collect::<Vec<_>>().concat();
    let mut sent = Ok(());
    let cut = split(&offload, &mut bytes, |packet| {
        let one = write(Offload::default(), &mut std::iter::once(packet));
        sent = std::mem::replace(&mut sent, Ok(())).and(one);
    });
    // A device that takes nothing at all, such as one that is down, says nothing about superpackets.
    if cut.is_ok() && sent.is_ok() && std::mem::replace(joined, false) {
        tracing::info!(error = %refused, ?offload, "the device refuses a superpacket: packets are written one by one");
    }
    cut.map_err(|_| refused).and(sent)
}

fn write(
    file: &mut File,
    offload: Offload,
    parts: &mut dyn Iterator<Item = &[u8]>,
) -> io::Result<()> {
    let head = offload.encode();
    let mut slices = [IoSlice::new(&[]); PARTS_MAX];
    slices[0] = IoSlice::new(&head);
    let mut count = 1;
    for (slot, part) in slices[1..].iter_mut().zip(parts) {
        *slot = IoSlice::new(part);
        count += 1;
    }
    file.write_vectored(&slices[..count]).map(drop)
}

/// A header, and as many packets as a superpacket may have.
const PARTS_MAX: usize = 1 + crate::offload::PACKETS_MAX;

impl AsFd for Tun {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// Asks the device for what it can do, and for less until it agrees.
fn offload(file: &File) -> Joins {
    let wanted = [
        (CHECKSUM | TSO | USO, Joins { tcp: true, udp: true }),
        (CHECKSUM | TSO, Joins { tcp: true, udp: false }),
        (0, Joins::default()),
    ];
    let agreed = wanted.into_iter().find(|(flags, _)| sys::set_offload(file, *flags).is_ok());
    agreed.map(|(_, joins)| joins).unwrap_or_default()
}

/// Removes a persistent device that no spec names any more.
///
/// # Errors
/// As [`Tun::open`].
pub fn remove(name: &str) -> Result<(), ApplyError> {
    let tun = Tun::open(name)?;
    sys::persist(&tun.file, false)
        .map_err(|source| ApplyError::Tun { name: name.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::offload::Coalescer;
    use crate::offload::tests::stream;

    #[test]
    fn what_is_refused_in_one_piece_is_written_packet_by_packet() {
        let packets = stream(3, false);
        let mut arena = packets.concat();
        let (mut coalescer, mut at) = (Coalescer::default(), 0);
        let all = Joins { tcp: true, udp: true };
        for packet in &packets {
            coalescer.push(all, &arena, at..at + packet.len());
            at += packet.len();
        }
        let (mut joins, mut tried, mut written) = (all, Vec::new(), Vec::new());
        coalescer.take(&mut arena, |offload, parts| {
            let sent = hand_over(&mut joins, offload, parts, |offload, parts| {
                tried.push(offload.segments);
                if offload.segments != Segments::One {
                    return Err(io::Error::from_raw_os_error(libc::EINVAL));
                }
                written.push(parts.collect::<Vec<_>>().concat());
                Ok(())
            });
            assert!(sent.is_ok());
        });
        assert_eq!(tried, [Segments::Tcp4, Segments::One, Segments::One, Segments::One]);
        assert_eq!(joins, Joins { tcp: false, udp: true }, "each falls back alone");
        assert_eq!(written, packets);
        // A device that is down takes nothing, and is none that cannot join.
        let mut at = 0;
        for packet in &packets {
            coalescer.push(all, &arena, at..at + packet.len());
            at += packet.len();
        }
        let mut joins = all;
        coalescer.take(&mut arena, |offload, parts| {
            let down = || io::Error::from_raw_os_error(libc::EIO);
            assert!(hand_over(&mut joins, offload, parts, |_, _| Err(down())).is_err());
        });
        assert_eq!(joins, all);
    }
}
