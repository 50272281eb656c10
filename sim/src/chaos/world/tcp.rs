//! TCP as far as a client needs it to see whether somebody answers at an address: one request, one answer. Pure.
//!
//! The packets are real ones (RFC 791, RFC 8200, RFC 9293), because the overlay's tunnel looks into them.

use std::net::IpAddr;

/// Wants a connection.
pub const SYN: u8 = 0x02;
/// Takes or refuses one.
pub const ACK: u8 = 0x10;
/// There is no such connection.
pub const RST: u8 = 0x04;
const PROTOCOL: u8 = 6;

/// A segment with the addresses of its packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segment {
    /// From where.
    pub from: (IpAddr, u16),
    /// To where.
    pub to: (IpAddr, u16),
    /// [`SYN`], [`ACK`], [`RST`].
    pub flags: u8,
    /// What it carries.
    pub payload: Vec<u8>,
}

impl Segment {
    /// Returns the segment that goes back.
    pub fn answer(&self, flags: u8, payload: Vec<u8>) -> Self {
        Self { from: self.to, to: self.from, flags, payload }
    }

    /// Writes the packet; nothing where the families differ.
    pub fn packet(&self) -> Option<Vec<u8>> {
        let mut tcp = Vec::with_capacity(20 + self.payload.len());
        tcp.extend_from_slice(&self.from.1.to_be_bytes());
        tcp.extend_from_slice(&self.to.1.to_be_bytes());
        tcp.extend_from_slice(&[0; 8]);
        tcp.extend_from_slice(&[5 << 4, self.flags, 0xff, 0xff, 0, 0, 0, 0]);
        tcp.extend_from_slice(&self.payload);
        let len = u16::try_from(tcp.len()).ok()?;
        let mut packet = match (self.from.0, self.to.0) {
            (IpAddr::V4(from), IpAddr::V4(to)) => {
                let [high, low] = (len + 20).to_be_bytes();
                let mut head = vec![0x45, 0, high, low, 0, 0, 0, 0, 64, PROTOCOL, 0, 0];
                head.extend_from_slice(&from.octets());
                head.extend_from_slice(&to.octets());
                head
            }
            (IpAddr::V6(from), IpAddr::V6(to)) => {
                let [high, low] = len.to_be_bytes();
                let mut head = vec![0x60, 0, 0, 0, high, low, PROTOCOL, 64];
                head.extend_from_slice(&from.octets());
                head.extend_from_slice(&to.octets());
                head
            }
            _ => return None,
        };
        packet.extend_from_slice(&tcp);
        Some(packet)
    }

    /// Reads a packet.
    pub fn parse(packet: &[u8]) -> Option<Self> {
        let (from, to, tcp) = match packet.first()? >> 4 {
            4 => {
                let v4 = |at: usize| -> Option<[u8; 4]> { packet.get(at..at + 4)?.try_into().ok() };
                (IpAddr::from(v4(12)?), IpAddr::from(v4(16)?), packet.get(20..)?)
            }
            6 => {
                let v6 =
                    |at: usize| -> Option<[u8; 16]> { packet.get(at..at + 16)?.try_into().ok() };
                (IpAddr::from(v6(8)?), IpAddr::from(v6(24)?), packet.get(40..)?)
            }
            _ => return None,
        };
        let port = |at: usize| Some(u16::from_be_bytes(tcp.get(at..at + 2)?.try_into().ok()?));
        let payload = tcp.get(20..)?.to_vec();
        Some(Self { from: (from, port(0)?), to: (to, port(2)?), flags: *tcp.get(13)?, payload })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packets_of_both_families_are_read_as_they_were_written() {
        for (from, to) in [("10.0.0.1", "10.0.0.2"), ("fd00::1", "fd00::2")] {
            let (from, to) = (from.parse().unwrap(), to.parse().unwrap());
            let segment = Segment {
                from: (from, 40_000),
                to: (to, 6443),
                flags: SYN,
                payload: b"x".to_vec(),
            };
            let packet = segment.packet().unwrap();
            assert_eq!(Segment::parse(&packet), Some(segment.clone()));
            let at = sdwan::packet::addresses(&packet).unwrap();
            assert_eq!((at.source, at.destination), (from, to));
            assert_eq!(segment.answer(ACK, Vec::new()).to, (from, 40_000));
        }
        assert_eq!(Segment::parse(&[]), None);
        assert_eq!(Segment::parse(&[0x45, 1]), None);
    }
}
