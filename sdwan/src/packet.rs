//! Addresses and length of an IP packet, from its header alone (RFC 791, RFC 8200). Pure; any bytes may come.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// What routing needs to know of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Addresses {
    /// Who sent it.
    pub source: IpAddr,
    /// Whom it is for.
    pub destination: IpAddr,
}

/// Reads the addresses; nothing if the bytes are no whole IP packet.
pub fn addresses(packet: &[u8]) -> Option<Addresses> {
    match packet.first()? >> 4 {
        4 => {
            let header: &[u8; 20] = packet.first_chunk()?;
            let total = usize::from(u16::from_be_bytes([header[2], header[3]]));
            let at =
                |i: usize| Ipv4Addr::new(header[i], header[i + 1], header[i + 2], header[i + 3]);
            (total >= 20 && total <= packet.len())
                .then(|| Addresses { source: at(12).into(), destination: at(16).into() })
        }
        6 => {
            let header: &[u8; 40] = packet.first_chunk()?;
            let payload = usize::from(u16::from_be_bytes([header[4], header[5]]));
            let at = |i: usize| header[i..i + 16].first_chunk::<16>().map(|b| Ipv6Addr::from(*b));
            (payload + 40 <= packet.len()).then_some(()).and_then(|()| {
                Some(Addresses { source: at(8)?.into(), destination: at(24)?.into() })
            })
        }
        _ => None,
    }
}

/// Returns a packet's traffic class: DSCP and ECN (RFC 2474, RFC 3168). It must have been found to be an IP packet.
pub(crate) fn class(packet: &[u8]) -> u8 {
    match packet {
        [first, second, ..] if first >> 4 == 6 => first << 4 | second >> 4,
        [_, second, ..] => *second,
        _ => 0,
    }
}

/// Marks a packet as having met congestion; false if its sender does not know such marks, which is then told by loss.
pub(crate) fn mark_congestion(packet: &mut [u8]) -> bool {
    const MARK: u8 = 0b11;
    if class(packet) & MARK == 0 {
        return false;
    }
    if packet[0] >> 4 == 6 {
        packet[1] |= MARK << 4;
        return true;
    }
    let before = u16::from_be_bytes([packet[0], packet[1]]);
    packet[1] |= MARK;
    let after = u16::from_be_bytes([packet[0], packet[1]]);
    let sum = u16::from_be_bytes([packet[10], packet[11]]);
    // RFC 1624, equation 3.
    let sum = u32::from(!sum) + u32::from(!before) + u32::from(after);
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    packet[10..12].copy_from_slice(&(!(sum as u16)).to_be_bytes());
    true
}

/// What is read of a TCP segment (RFC 9293, section 3.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Segment {
    /// The sender's port.
    pub(crate) from: u16,
    /// The receiver's port.
    pub(crate) to: u16,
    /// Whether it asks for a new connection: SYN without ACK.
    pub(crate) opens: bool,
}

/// Reads the TCP segment that a packet begins with; nothing for other protocols and later fragments.
pub(crate) fn segment(packet: &[u8]) -> Option<Segment> {
    const TCP: u8 = 6;
    let tcp = match packet.first()? >> 4 {
        4 => {
            let header: &[u8; 20] = packet.first_chunk()?;
            let fragment = u16::from_be_bytes([header[6], header[7]]) & 0x1fff;
            let length = usize::from(header[0] & 0x0f) * 4;
            (header[9] == TCP && fragment == 0).then(|| packet.get(length..)).flatten()?
        }
        6 => {
            let header: &[u8; 40] = packet.first_chunk()?;
            (header[6] == TCP).then(|| &packet[40..])?
        }
        _ => return None,
    };
    let head: &[u8; 14] = tcp.first_chunk()?;
    let flags = head[13];
    Some(Segment {
        from: u16::from_be_bytes([head[0], head[1]]),
        to: u16::from_be_bytes([head[2], head[3]]),
        opens: flags & 0x12 == 0x02,
    })
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use proptest::prelude::*;

    /// An IPv4 packet with a bare TCP header.
    pub(crate) fn tcp(from: &str, from_port: u16, to: &str, to_port: u16, flags: u8) -> Vec<u8> {
        let mut packet = vec![0u8; 40];
        packet[..4].copy_from_slice(&[0x45, 0, 0, 40]);
        packet[8..10].copy_from_slice(&[64, 6]);
        packet[12..16].copy_from_slice(&from.parse::<Ipv4Addr>().unwrap().octets());
        packet[16..20].copy_from_slice(&to.parse::<Ipv4Addr>().unwrap().octets());
        packet[20..22].copy_from_slice(&from_port.to_be_bytes());
        packet[22..24].copy_from_slice(&to_port.to_be_bytes());
        packet[33] = flags;
        packet
    }

    #[test]
    fn a_syn_is_told_from_its_answer() {
        let of = |flags| segment(&tcp("10.0.0.1", 9, "10.0.0.2", 80, flags)).unwrap();
        assert_eq!(of(0x02), Segment { from: 9, to: 80, opens: true });
        assert!(of(0xc2).opens, "also with ECN");
        assert!(!of(0x12).opens && !of(0x10).opens && !of(0x04).opens);
        let mut fragment = tcp("10.0.0.1", 9, "10.0.0.2", 80, 0x02);
        fragment[7] = 1;
        assert_eq!(segment(&fragment), None);
        assert_eq!(segment(&fragment[..30]), None);
    }

    proptest! {
        #[test]
        fn hostile_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..100)) {
            let _ = addresses(&bytes);
            let _ = segment(&bytes);
        }
    }

    #[test]
    fn a_cut_off_packet_is_no_packet() {
        let mut v4 = vec![0x45, 0, 0, 20, 0, 0, 0, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2];
        let read = addresses(&v4).unwrap();
        assert_eq!(read.destination.to_string(), "10.0.0.2");
        v4[3] = 21;
        assert!(addresses(&v4).is_none());
        let mut v6 = vec![0u8; 40];
        v6[0] = 0x60;
        assert!(addresses(&v6).is_some());
        v6[5] = 1;
        assert!(addresses(&v6).is_none());
    }
}
