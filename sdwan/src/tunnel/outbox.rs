//! What a tunnel produced and nobody has taken yet: trains for the wire, superpackets for the device. Pure.

use std::ops::Range;

use super::Path;
use crate::offload::{Coalescer, Joins, Offload, Parts};

/// The most bytes that a session makes of one packet or datagram.
const ROOM: usize = 65_536 + 256;
/// Above this much the outbox wants to be emptied before more comes in, in bytes.
const FULL: usize = 256 * 1024;
/// The most datagrams of a train (UDP_MAX_SEGMENTS of the kernel's include/linux/udp.h).
const TRAIN_MAX: usize = 64;
/// The most bytes of a train: what one UDP datagram over IPv4 could carry (RFC 768, RFC 791).
const TRAIN_BYTES_MAX: usize = 65_507;

/// Datagrams that go the same way, in one piece: all of `size` bytes but for the last one, which may be shorter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Train<'b> {
    /// From where to where.
    pub path: Path,
    /// All of them, one behind the other.
    pub bytes: &'b [u8],
    /// How long each is, in bytes.
    pub size: usize,
    /// What is particular about the packets that carry them.
    pub kind: Kind,
}

/// What is particular about the packets that carry datagrams.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Kind {
    /// The traffic class: DSCP and ECN (RFC 2474, RFC 3168).
    pub class: u8,
    /// Whether nobody on the way may fragment them.
    pub whole: bool,
}

impl<'b> Train<'b> {
    /// Makes a train of one datagram.
    pub fn one(path: impl Into<Path>, bytes: &'b [u8]) -> Self {
        Self { path: path.into(), bytes, size: bytes.len(), kind: Kind::default() }
    }

    /// Returns its datagrams.
    pub fn datagrams(&self) -> impl Iterator<Item = &'b [u8]> + use<'b> {
        self.bytes.chunks(self.size.max(1))
    }
}

/// Something that a tunnel wants to be sent.
pub enum Output<'o> {
    /// To the wire.
    Wire(Train<'o>),
    /// To this host's network stack: a packet, or several in one piece, as the parts that it consists of.
    Tun(Offload, Parts<'o>),
}

struct Pending {
    path: Path,
    bytes: Range<usize>,
    size: usize,
    kind: Kind,
}

impl Pending {
    /// Whether a datagram that lies behind this train may be its next one.
    fn takes(&self, path: Path, kind: Kind, bytes: &Range<usize>) -> bool {
        let whole = self.bytes.len().is_multiple_of(self.size);
        whole
            && self.path == path
            && self.kind == kind
            && self.bytes.end == bytes.start
            && bytes.len() <= self.size
            && self.bytes.len() < self.size * TRAIN_MAX
            && self.bytes.len() + bytes.len() <= TRAIN_BYTES_MAX
    }
}

/// See the module.
#[derive(Default)]
pub(super) struct Outbox {
    arena: Vec<u8>,
    used: usize,
    trains: Vec<Pending>,
    packets: Coalescer,
    joins: Joins,
}

impl Outbox {
    /// Says what the device takes in one piece.
    pub(super) fn set_joins(&mut self, joins: Joins) {
        self.joins = joins;
    }

    /// Whether it wants to be emptied.
    pub(super) fn is_full(&self) -> bool {
        self.used >= FULL
    }

    /// Returns where the next thing is to be written; what was written before and not kept is lost.
    pub(super) fn room(&mut self) -> &mut [u8] {
        if self.arena.len() < self.used + ROOM {
            self.arena.resize(self.used + ROOM, 0);
        }
        &mut self.arena[self.used..self.used + ROOM]
    }

    /// Returns the first bytes of the room.
    pub(super) fn written(&mut self, length: usize) -> &mut [u8] {
        &mut self.room()[..length]
    }

    /// Keeps the first bytes of the room as a datagram for each of `ways`.
    pub(super) fn keep_datagram(
        &mut self,
        length: usize,
        kind: Kind,
        ways: impl IntoIterator<Item = Path>,
    ) {
        let bytes = self.used..self.used + length;
        for path in ways {
            self.used = bytes.end;
            match self.trains.last_mut() {
                Some(last) if last.takes(path, kind, &bytes) => last.bytes.end = bytes.end,
                _ => self.trains.push(Pending {
                    path,
                    bytes: bytes.clone(),
                    size: length.max(1),
                    kind,
                }),
            }
        }
    }

    /// Keeps the first bytes of the room as a packet for the device.
    pub(super) fn keep_packet(&mut self, length: usize) {
        let bytes = self.used..self.used + length;
        self.used = bytes.end;
        self.packets.push(self.joins, &self.arena, bytes);
    }

    /// Hands everything over, each kind in order, and forgets it.
    pub(super) fn take(&mut self, mut sink: impl FnMut(Output<'_>)) {
        self.packets.take(&mut self.arena, |offload, parts| sink(Output::Tun(offload, parts)));
        for Pending { path, bytes, size, kind } in self.trains.drain(..) {
            sink(Output::Wire(Train { path, bytes: &self.arena[bytes], size, kind }));
        }
        self.used = 0;
    }
}
