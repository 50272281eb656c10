//! ICMP messages that the overlay makes and reads itself (RFC 792, RFC 1191, RFC 4443). Pure; any bytes may come.

use std::net::IpAddr;

use crate::offload::checksum::{Sum, pseudo};
use crate::packet::{Addresses, addresses};

const V4: usize = 20;
const V6: usize = 40;
/// Type, code, checksum, and four bytes more.
const HEAD: usize = 8;
const ICMP4: u8 = 1;
const ICMP6: u8 = 58;
const HOPS: u8 = 64;
/// Follows the header of an echo of ours, so that another program's with the same identifier is told from it.
const MARK: &[u8; 8] = b"skein\0\0\x01";
/// An ICMPv6 error is no longer than this (RFC 4443, section 2.4 c).
const ERROR6_MAX: usize = 1_280;
/// As much of a packet as its sender needs to know it again; at least its header and 8 bytes (RFC 792).
const QUOTED4_MAX: usize = 548;

/// An echo request, or the answer to one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Echo {
    /// Whether it is the answer.
    pub(crate) answer: bool,
    /// Who asks.
    pub(crate) identifier: u16,
    /// Which one it is.
    pub(crate) sequence: u16,
}

/// Writes an IP header for `length` bytes of ICMP behind it; nothing for addresses of two families.
fn network(out: &mut [u8], at: Addresses, length: usize) -> Option<usize> {
    let total = u16::try_from(length).ok()?;
    match (at.source, at.destination) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            let out = out.get_mut(..V4 + length)?;
            out[..V4].fill(0);
            out[0] = 0x45;
            out[2..4].copy_from_slice(&(total + V4 as u16).to_be_bytes());
            // Must not be fragmented.
            out[6] = 0x40;
            out[8] = HOPS;
            out[9] = ICMP4;
            out[12..16].copy_from_slice(&from.octets());
            out[16..20].copy_from_slice(&to.octets());
            let sum = Sum::default().add(&out[..V4]).finish();
            out[10..12].copy_from_slice(&sum.to_be_bytes());
            Some(V4)
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            let out = out.get_mut(..V6 + length)?;
            out[..V6].fill(0);
            out[0] = 0x60;
            out[4..6].copy_from_slice(&total.to_be_bytes());
            out[6] = ICMP6;
            out[7] = HOPS;
            out[8..24].copy_from_slice(&from.octets());
            out[24..40].copy_from_slice(&to.octets());
            Some(V6)
        }
        _ => None,
    }
}

/// Fills in the checksum of the ICMP message behind `head` bytes; over IPv6 it covers the addresses too.
fn checksum(packet: &mut [u8], head: usize) {
    packet[head + 2..head + 4].fill(0);
    let (network, message) = packet.split_at(head);
    let begun = if head == V6 { pseudo(network, ICMP6, message.len()) } else { Sum::default() };
    let sum = begun.add(message).finish();
    packet[head + 2..head + 4].copy_from_slice(&sum.to_be_bytes());
}

/// Writes an echo that is `size` bytes long with all its headers, or as long as it must be at least; returns its length.
pub(crate) fn write_echo(out: &mut [u8], at: Addresses, echo: Echo, size: usize) -> Option<usize> {
    let head = if at.source.is_ipv4() { V4 } else { V6 };
    let length = size.max(head + HEAD + MARK.len()) - head;
    network(out, at, length)?;
    let packet = &mut out[..head + length];
    packet[head..].fill(0);
    packet[head] = kind(head, echo.answer);
    packet[head + 4..head + 6].copy_from_slice(&echo.identifier.to_be_bytes());
    packet[head + 6..head + 8].copy_from_slice(&echo.sequence.to_be_bytes());
    packet[head + HEAD..head + HEAD + MARK.len()].copy_from_slice(MARK);
    checksum(packet, head);
    Some(packet.len())
}

/// The type of an echo behind this long a header.
fn kind(head: usize, answer: bool) -> u8 {
    match (head, answer) {
        (V4, false) => 8,
        (V4, true) => 0,
        (_, false) => 128,
        (_, true) => 129,
    }
}

/// Reads an echo that this crate made, or the answer to one; nothing if it is none.
pub(crate) fn read_echo(packet: &[u8]) -> Option<Echo> {
    let head = match packet.first()? {
        0x45 if packet.get(9) == Some(&ICMP4) => V4,
        first if first >> 4 == 6 && packet.get(6) == Some(&ICMP6) => V6,
        _ => return None,
    };
    let message = packet.get(head..)?;
    let ours = message.get(HEAD..HEAD + MARK.len())? == MARK;
    let half = |at: usize| u16::from_be_bytes([message[at], message[at + 1]]);
    let answer = [false, true].into_iter().find(|answer| message[0] == kind(head, *answer))?;
    ours.then(|| Echo { answer, identifier: half(4), sequence: half(6) })
}

/// Writes what tells a packet's sender that `mtu` bytes are the most; nothing where it is not to be told, and the packet may be
/// fragmented or is lost in silence.
pub(crate) fn too_big(out: &mut [u8], packet: &[u8], mtu: u16) -> Option<usize> {
    let at = addresses(packet)?;
    let v4 = at.source.is_ipv4();
    if at.source.is_unspecified() || at.source.is_multicast() || is_error(packet, v4) {
        return None;
    }
    // From the one whom it was for: a host believes no message that claims to be its own.
    let back = Addresses { source: at.destination, destination: at.source };
    if at.destination.is_multicast() {
        return None;
    }
    let (head, quoted) = if v4 {
        (V4, packet.len().min(QUOTED4_MAX))
    } else {
        (V6, packet.len().min(ERROR6_MAX - V6 - HEAD))
    };
    network(out, back, HEAD + quoted)?;
    let answer = &mut out[..head + HEAD + quoted];
    answer[head..head + HEAD].fill(0);
    if v4 {
        // Destination unreachable: fragmentation needed and DF set (RFC 1191, section 4).
        answer[head..head + 2].copy_from_slice(&[3, 4]);
        answer[head + 6..head + 8].copy_from_slice(&mtu.to_be_bytes());
    } else {
        answer[head] = 2;
        answer[head + 4..head + 8].copy_from_slice(&u32::from(mtu).to_be_bytes());
    }
    answer[head + HEAD..].copy_from_slice(&packet[..quoted]);
    checksum(answer, head);
    Some(answer.len())
}

/// Whether a packet is itself an error, or no first fragment: neither is answered (RFC 1122, section 3.2.2).
fn is_error(packet: &[u8], v4: bool) -> bool {
    if !v4 {
        return packet.get(6) == Some(&ICMP6) && packet.get(V6).is_none_or(|kind| *kind < 128);
    }
    let later = u16::from_be_bytes([packet[6], packet[7]]) & 0x1fff != 0;
    let length = usize::from(packet[0] & 0x0f) * 4;
    let kind = packet.get(length);
    later || packet[9] == ICMP4 && kind.is_none_or(|kind| !matches!(kind, 0 | 8))
}

/// Whether a router may fragment a packet: over IPv4, unless its sender forbids it.
pub(crate) fn may_be_fragmented(packet: &[u8]) -> bool {
    matches!(packet, [first, _, _, _, _, _, flags, ..] if first >> 4 == 4 && flags & 0x40 == 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const ECHO: Echo = Echo { answer: false, identifier: 1, sequence: 1 };

    fn at(from: &str, to: &str) -> Addresses {
        Addresses { source: from.parse().unwrap(), destination: to.parse().unwrap() }
    }

    fn both() -> [Addresses; 2] {
        [at("10.90.0.1", "10.90.0.2"), at("fd00::1", "fd00::2")]
    }

    /// Whether all checksums of an ICMP packet are right.
    fn whole(packet: &[u8]) -> bool {
        if packet[0] >> 4 == 4 {
            let header = Sum::default().add(&packet[..V4]).finish() == 0;
            return header && Sum::default().add(&packet[V4..]).finish() == 0;
        }
        pseudo(&packet[..V6], ICMP6, packet.len() - V6).add(&packet[V6..]).finish() == 0
    }

    #[test]
    fn an_echo_is_as_long_as_it_is_to_be_and_its_answer_is_known_again() {
        let echo = Echo { answer: false, identifier: 7, sequence: 513 };
        for at in both() {
            let mut out = [0xff; 2_000];
            for (wanted, got) in
                [(1_420, 1_420), (100, 100), (0, if at.source.is_ipv4() { 36 } else { 56 })]
            {
                let length = write_echo(&mut out, at, echo, wanted).unwrap();
                assert_eq!(length, got);
                assert!(whole(&out[..length]));
                assert_eq!(addresses(&out[..length]), Some(at));
                assert_eq!(read_echo(&out[..length]), Some(echo));
                let head = if at.source.is_ipv4() { V4 } else { V6 };
                out[head] = if head == V4 { 0 } else { 129 };
                assert_eq!(read_echo(&out[..length]), Some(Echo { answer: true, ..echo }));
                out[head + HEAD] ^= 1;
                assert_eq!(read_echo(&out[..length]), None, "another program's");
            }
            assert_eq!(write_echo(&mut out[..99], at, echo, 100), None);
        }
        let mixed = at("10.0.0.1", "fd00::1");
        assert_eq!(write_echo(&mut [0; 200], mixed, echo, 100), None);
    }

    #[test]
    fn the_sender_of_what_is_too_big_is_told_the_most() {
        for at in both() {
            let mut packet = [0; 1_420];
            write_echo(&mut packet, at, ECHO, 1_420).unwrap();
            let mut out = [0xff; 2_000];
            let length = too_big(&mut out, &packet, 1_300).unwrap();
            let answer = &out[..length];
            assert!(whole(answer) && length <= ERROR6_MAX);
            let back = Addresses { source: at.destination, destination: at.source };
            assert_eq!(addresses(answer), Some(back));
            let head = if at.source.is_ipv4() { V4 } else { V6 };
            assert_eq!(answer[head], if head == V4 { 3 } else { 2 });
            assert_eq!(u16::from_be_bytes([answer[head + 6], answer[head + 7]]), 1_300);
            assert_eq!(answer[head + HEAD..], packet[..length - head - HEAD]);
            assert_eq!(
                too_big(&mut [0; 2_000], answer, 1_300),
                None,
                "no error is answered by an error"
            );
        }
        let mut later = [0; 1_420];
        let v4 = both()[0];
        write_echo(&mut later, v4, ECHO, 1_420).unwrap();
        assert!(!may_be_fragmented(&later));
        later[6..8].copy_from_slice(&[0, 1]);
        assert!(may_be_fragmented(&later));
        assert_eq!(too_big(&mut [0; 2_000], &later, 1_300), None);
    }

    proptest! {
        #[test]
        fn hostile_bytes_never_panic(
            mut bytes in proptest::collection::vec(any::<u8>(), 0..1_600),
            first in prop_oneof![Just(0x45u8), Just(0x60), any::<u8>()],
        ) {
            if let Some(byte) = bytes.first_mut() {
                *byte = first;
            }
            let _ = read_echo(&bytes);
            let _ = may_be_fragmented(&bytes);
            let _ = too_big(&mut [0; 2_000], &bytes, 1_280);
        }
    }
}
