//! Cuts a superpacket into packets that fit the wire, as a network card does (TSO, USO). Pure; any bytes may come.

use std::ops::Range;

use super::checksum::{Sum, pseudo};
use super::virtio::{Offload, Segments};

/// The longest headers of a superpacket; longer ones never come, and are refused.
const HEADERS_MAX: usize = 256;
const TCP: u8 = 6;
const UDP: u8 = 17;
/// FIN and PSH are of the last segment only (RFC 9293, section 3.1), CWR of the first only (RFC 3168, section 6.1.2).
const LAST_ONLY: u8 = 0x01 | 0x08;
const FIRST_ONLY: u8 = 0x80;

/// The superpacket contradicts itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Malformed;

/// Where the headers of a superpacket lie.
struct Layout {
    transport: usize,
    headers: usize,
    protocol: u8,
}

/// Calls `each` with every packet of a superpacket, in order, complete with checksums.
///
/// The packets lie in the superpacket itself: the headers of the next one are written over the payload of the one before,
/// which `each` has seen then. So nothing is copied, and `packet` holds nothing of use afterwards.
///
/// # Errors
/// When the header and the packet contradict each other; `each` may have seen some packets.
pub fn split(
    offload: &Offload,
    packet: &mut [u8],
    mut each: impl FnMut(&[u8]),
) -> Result<(), Malformed> {
    if offload.segments == Segments::One {
        if let Some((start, offset)) = offload.checksum {
            complete(packet, usize::from(start), usize::from(offset))?;
        }
        each(packet);
        return Ok(());
    }
    let at = layout(offload, packet)?;
    let size = usize::from(offload.size);
    let mut headers = [0; HEADERS_MAX];
    headers[..at.headers].copy_from_slice(&packet[..at.headers]);
    let payloads = (at.headers..packet.len()).step_by(size);
    let last = payloads.len().saturating_sub(1);
    for (n, payload) in payloads.enumerate() {
        let end = (payload + size).min(packet.len());
        let segment = &mut packet[payload - at.headers..end];
        segment[..at.headers].copy_from_slice(&headers[..at.headers]);
        network(segment, n, at.transport)?;
        match at.protocol {
            TCP => tcp(segment, at.transport, payload - at.headers, (n == 0, n == last)),
            _ => udp(segment, at.transport),
        }
        each(segment);
    }
    Ok(())
}

/// Returns how long the longest packet of a superpacket is, in bytes.
pub fn longest(offload: &Offload, packet: &[u8]) -> usize {
    match (offload.segments, layout(offload, packet)) {
        (Segments::One, _) | (_, Err(Malformed)) => packet.len(),
        (_, Ok(at)) => packet.len().min(at.headers + usize::from(offload.size)),
    }
}

/// Fills in a checksum over everything from `start`, whose field holds the pseudo-header's sum.
fn complete(packet: &mut [u8], start: usize, offset: usize) -> Result<(), Malformed> {
    let field = start + offset;
    let covered = packet.get(start..).ok_or(Malformed)?;
    if field + 2 > packet.len() {
        return Err(Malformed);
    }
    let sum = Sum::default().add(covered).finish();
    // For UDP nothing but zeroes means "none" (RFC 768); for TCP both stand for the same.
    put(packet, field, if sum == 0 { 0xffff } else { sum });
    Ok(())
}

fn layout(offload: &Offload, packet: &[u8]) -> Result<Layout, Malformed> {
    let (start, _) = offload.checksum.ok_or(Malformed)?;
    let transport = usize::from(start);
    let version = packet.first().ok_or(Malformed)? >> 4;
    let (least, protocol) = match (offload.segments, version) {
        (Segments::Tcp4, 4) | (Segments::Tcp6, 6) => (20, TCP),
        (Segments::Udp, 4 | 6) => (8, UDP),
        _ => return Err(Malformed),
    };
    let network = match version {
        4 => transport >= 20 && usize::from(packet[0] & 0x0f) * 4 == transport,
        _ => transport >= 40,
    };
    let head = packet.get(transport..transport + least).ok_or(Malformed)?;
    let length = if protocol == TCP { usize::from(head[12] >> 4) * 4 } else { 8 };
    let headers = transport + length;
    let whole = length >= least && headers < packet.len() && headers <= HEADERS_MAX;
    if !network || !whole || offload.size == 0 {
        return Err(Malformed);
    }
    Ok(Layout { transport, headers, protocol })
}

/// Makes the IP header that of the `n`th packet.
fn network(segment: &mut [u8], n: usize, transport: usize) -> Result<(), Malformed> {
    if segment[0] >> 4 == 4 {
        let length = u16::try_from(segment.len()).map_err(|_| Malformed)?;
        put(segment, 2, length);
        // Each packet has an identification of its own, counted on from the first (RFC 6864 asks for it where DF is off).
        let id = get(segment, 4).wrapping_add(n as u16);
        put(segment, 4, id);
        put(segment, 10, 0);
        let sum = Sum::default().add(&segment[..transport]).finish();
        put(segment, 10, sum);
    } else {
        let length = u16::try_from(segment.len() - 40).map_err(|_| Malformed)?;
        put(segment, 4, length);
    }
    Ok(())
}

fn tcp(segment: &mut [u8], at: usize, sent: usize, (first, last): (bool, bool)) {
    let sequence: Range<usize> = at + 4..at + 8;
    let begin = segment[sequence.clone()].first_chunk().map_or(0, |b| u32::from_be_bytes(*b));
    segment[sequence].copy_from_slice(&begin.wrapping_add(sent as u32).to_be_bytes());
    if !last {
        segment[at + 13] &= !LAST_ONLY;
    }
    if !first {
        segment[at + 13] &= !FIRST_ONLY;
    }
    transport_sum(segment, at, at + 16, TCP);
}

fn udp(segment: &mut [u8], at: usize) {
    put(segment, at + 4, (segment.len() - at) as u16);
    transport_sum(segment, at, at + 6, UDP);
}

fn transport_sum(segment: &mut [u8], at: usize, field: usize, protocol: u8) {
    put(segment, field, 0);
    let (head, body) = (&*segment, &segment[at..]);
    let sum = pseudo(head, protocol, body.len()).add(body).finish();
    put(segment, field, if sum == 0 && protocol == UDP { 0xffff } else { sum });
}

fn get(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

fn put(bytes: &mut [u8], at: usize, value: u16) {
    bytes[at..at + 2].copy_from_slice(&value.to_be_bytes());
}
