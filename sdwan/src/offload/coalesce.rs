//! Joins packets of one flow into superpackets, as a network card does (GRO). Pure; any bytes may come.
//!
//! Only what the kernel would cut again into the very same packets is joined, but for the identification of packets that
//! cannot be fragmented: [`super::split()`] is the inverse.

use std::net::IpAddr;
use std::ops::Range;

use super::checksum::{Sum, pseudo};
use super::virtio::{Offload, Segments};
use crate::packet::addresses;

/// The longest superpacket, by the length fields of IP.
const BYTES_MAX: usize = 65_535;
/// The most packets in one (UDP_MAX_SEGMENTS of older kernels; TCP needs no more either).
pub const PACKETS_MAX: usize = 64;
/// How many flows may grow at a time.
const FLOWS_MAX: usize = 16;
const TCP: u8 = 6;
const UDP: u8 = 17;
const ACK: u8 = 0x10;
const PSH: u8 = 0x08;
/// Do not fragment, in the half-word that an IPv4 header has at 6.
const DF: u16 = 0x4000;

/// What the device takes in one piece.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Joins {
    /// TCP segments.
    pub tcp: bool,
    /// UDP datagrams.
    pub udp: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Flow {
    from: IpAddr,
    to: IpAddr,
    ports: [u8; 4],
    protocol: u8,
}

/// What is known of a packet that may be joined to others.
#[derive(Clone, Copy, Debug)]
struct Reading {
    flow: Flow,
    /// Where the transport's header begins.
    transport: usize,
    /// Where the payload begins; as long as the packet where nothing can be joined.
    payload: usize,
    /// It is complete, unfragmented, and carries nothing but payload.
    plain: bool,
}

/// A packet in the arena, and the next one of its superpacket.
#[derive(Clone, Debug)]
struct Piece {
    bytes: Range<usize>,
    next: Option<usize>,
}

/// The first packet of what may be a superpacket.
#[derive(Clone, Debug)]
struct Head {
    piece: usize,
    last: usize,
    packets: usize,
    size: usize,
    length: usize,
    reading: Option<Reading>,
    pushed: bool,
}

/// Packets on their way to the device, in order within each flow.
#[derive(Debug, Default)]
pub struct Coalescer {
    pieces: Vec<Piece>,
    heads: Vec<Head>,
    /// Heads that may still grow; no two of one flow.
    open: Vec<usize>,
}

impl Coalescer {
    /// Takes a packet that lies in the arena.
    pub fn push(&mut self, joins: Joins, arena: &[u8], bytes: Range<usize>) {
        let packet = &arena[bytes.clone()];
        let reading = if joins == Joins::default() { None } else { read(packet) };
        let piece = self.pieces.len();
        self.pieces.push(Piece { bytes: bytes.clone(), next: None });
        let Some(r) = reading else {
            self.begin(piece, bytes.len(), None);
            return;
        };
        let wanted = if r.flow.protocol == TCP { joins.tcp } else { joins.udp };
        let candidate = wanted && r.plain && intact(packet, &r);
        let known = self
            .open
            .iter()
            .position(|h| self.heads[*h].reading.is_some_and(|head| head.flow == r.flow));
        if let Some(at) = known {
            let head = self.open[at];
            if candidate && self.fits(head, arena, packet, &r) {
                self.append(at, piece, packet, &r);
                return;
            }
            // Whatever follows in this flow must stay behind this packet.
            self.open.swap_remove(at);
        }
        let head = self.begin(piece, bytes.len(), candidate.then_some(r));
        let pushed = pushes(packet, &r);
        self.heads[head].pushed = pushed;
        if candidate && !pushed {
            if self.open.len() == FLOWS_MAX {
                self.open.remove(0);
            }
            self.open.push(head);
        }
    }

    fn begin(&mut self, piece: usize, length: usize, reading: Option<Reading>) -> usize {
        let size = reading.map_or(0, |r| length - r.payload);
        let head = Head { piece, last: piece, packets: 1, size, length, reading, pushed: false };
        self.heads.push(head);
        self.heads.len() - 1
    }

    /// Whether a packet is the next one of a head's superpacket.
    fn fits(&self, head: usize, arena: &[u8], packet: &[u8], r: &Reading) -> bool {
        let head = &self.heads[head];
        let Some(known) = &head.reading else { return false };
        let first = &arena[self.pieces[head.piece].bytes.clone()];
        let payload = packet.len() - r.payload;
        let same_shape = r.transport == known.transport && r.payload == known.payload;
        same_shape
            && payload <= head.size
            && head.packets < PACKETS_MAX
            && head.length + payload <= BYTES_MAX
            && same_network(first, packet, head.packets)
            && (r.flow.protocol == UDP || continues(first, packet, r, head.length - r.payload))
    }

    fn append(&mut self, open: usize, piece: usize, packet: &[u8], r: &Reading) {
        let head = &mut self.heads[self.open[open]];
        let payload = packet.len() - r.payload;
        self.pieces[head.last].next = Some(piece);
        head.last = piece;
        head.packets += 1;
        head.length += payload;
        head.pushed = pushes(packet, r);
        // A short one is the last one, and so is one that wants to be delivered.
        if payload < head.size || head.pushed {
            self.open.swap_remove(open);
        }
    }

    /// Hands every packet and superpacket to `sink`, and forgets them.
    pub fn take(&mut self, arena: &mut [u8], mut sink: impl FnMut(Offload, Parts<'_>)) {
        for head in &self.heads {
            let first = self.pieces[head.piece].bytes.clone();
            let offload = match &head.reading {
                Some(r) if head.packets > 1 => finish(&mut arena[first], head, r),
                _ => Offload::default(),
            };
            let skip = head.reading.map_or(0, |r| r.payload);
            sink(
                offload,
                Parts { arena, pieces: &self.pieces, at: Some(head.piece), skip, begun: false },
            );
        }
        self.pieces.clear();
        self.heads.clear();
        self.open.clear();
    }
}

/// The parts of a packet or superpacket: all of the first packet, and the payloads of those behind it.
#[derive(Clone, Debug)]
pub struct Parts<'a> {
    arena: &'a [u8],
    pieces: &'a [Piece],
    at: Option<usize>,
    skip: usize,
    begun: bool,
}

impl<'a> Iterator for Parts<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        let piece = &self.pieces[self.at?];
        self.at = piece.next;
        let skip = if self.begun { self.skip } else { 0 };
        self.begun = true;
        Some(&self.arena[piece.bytes.start + skip..piece.bytes.end])
    }
}

/// Reads a packet; nothing if it is of no flow that could be joined.
fn read(packet: &[u8]) -> Option<Reading> {
    let at = addresses(packet)?;
    let (transport, protocol, whole) = if packet[0] >> 4 == 4 {
        let total = usize::from(half(packet, 2));
        let fragment = half(packet, 6) & 0x3fff;
        // Options are rare, and would have to be equal.
        (20, packet[9], packet[0] & 0x0f == 5 && fragment == 0 && total == packet.len())
    } else {
        (40, packet[6], usize::from(half(packet, 4)) + 40 == packet.len())
    };
    if protocol != TCP && protocol != UDP {
        return None;
    }
    let ports: [u8; 4] = *packet.get(transport..)?.first_chunk()?;
    let flow = Flow { from: at.source, to: at.destination, ports, protocol };
    let head = &packet[transport..];
    let (length, plain) = match protocol {
        // Shorter headers than the least (RFC 9293, section 3.1) are no TCP.
        TCP if head.len() >= 20 && head[12] >> 4 >= 5 => {
            (usize::from(head[12] >> 4) * 4, head[13] & !PSH == ACK)
        }
        UDP if head.len() >= 8 => {
            (8, usize::from(half(head, 4)) == head.len() && half(head, 6) != 0)
        }
        _ => (head.len(), false),
    };
    let payload = transport + length;
    let plain = plain && whole && length >= 8 && payload < packet.len();
    Some(Reading { flow, transport, payload: payload.min(packet.len()), plain })
}

/// Whether all checksums are right: of a superpacket the kernel does not look at them any more.
fn intact(packet: &[u8], r: &Reading) -> bool {
    let network = packet[0] >> 4 == 6 || Sum::default().add(&packet[..20]).finish() == 0;
    let body = &packet[r.transport..];
    network && pseudo(packet, r.flow.protocol, body.len()).add(body).finish() == 0
}

/// Whether two IP headers differ only as those of two packets cut from one.
fn same_network(first: &[u8], packet: &[u8], behind: usize) -> bool {
    if first[0] >> 4 == 6 {
        // Version, traffic class, flow label; hop limit.
        return first[..4] == packet[..4] && first[7] == packet[7];
    }
    let (was, is) = (half(first, 4), half(packet, 4));
    // Where DF is on, the identification means nothing (RFC 6864, section 4.1), and some count it on, some do not.
    let atomic = half(first, 6) & DF != 0;
    let follows = is == was.wrapping_add(behind as u16) || (atomic && is == was);
    first[1] == packet[1] && first[6..9] == packet[6..9] && follows
}

/// Whether a TCP segment follows `sent` bytes behind another, and says nothing else new.
fn continues(first: &[u8], packet: &[u8], r: &Reading, sent: usize) -> bool {
    let (a, b) = (&first[r.transport..r.payload], &packet[r.transport..r.payload]);
    let next = word(a, 4).wrapping_add(sent as u32);
    // Acknowledgement; length and flags but for PSH; window and urgent pointer; options.
    word(b, 4) == next
        && a[8..13] == b[8..13]
        && a[13] & !PSH == b[13] & !PSH
        && a[14..16] == b[14..16]
        && a[18..] == b[18..]
}

fn pushes(packet: &[u8], r: &Reading) -> bool {
    r.plain && r.flow.protocol == TCP && packet[r.transport + 13] & PSH != 0
}

/// Makes the headers of the first packet those of the superpacket.
fn finish(first: &mut [u8], head: &Head, r: &Reading) -> Offload {
    let v4 = first[0] >> 4 == 4;
    let length = head.length as u16;
    if v4 {
        first[2..4].copy_from_slice(&length.to_be_bytes());
        first[10..12].fill(0);
        let sum = Sum::default().add(&first[..20]).finish();
        first[10..12].copy_from_slice(&sum.to_be_bytes());
    } else {
        first[4..6].copy_from_slice(&(length - 40).to_be_bytes());
    }
    let body = head.length - r.transport;
    let (segments, offset) = match r.flow.protocol {
        TCP if v4 => (Segments::Tcp4, 16),
        TCP => (Segments::Tcp6, 16),
        _ => (Segments::Udp, 6),
    };
    if segments == Segments::Udp {
        let at = r.transport + 4;
        first[at..at + 2].copy_from_slice(&(body as u16).to_be_bytes());
    } else if head.pushed {
        first[r.transport + 13] |= PSH;
    }
    let sum = pseudo(first, r.flow.protocol, body).fold();
    let field = r.transport + offset;
    first[field..field + 2].copy_from_slice(&sum.to_be_bytes());
    Offload {
        segments,
        size: head.size as u16,
        headers: r.payload as u16,
        checksum: Some((r.transport as u16, offset as u16)),
    }
}

fn half(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}
