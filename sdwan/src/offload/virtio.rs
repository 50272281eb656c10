//! The header in front of each packet of a TUN device with IFF_VNET_HDR: `struct virtio_net_hdr` in the machine's own byte
//! order (virtio 1.2, section 5.1.6; Documentation/networking/tuntap.rst). Pure.

/// What comes in front of a packet, in bytes.
pub const HEADER: usize = 10;

/// The checksum is for the receiver of the packet to fill in.
const NEEDS_CSUM: u8 = 1;
/// Congestion was signalled: only the first segment repeats it.
const ECN: u8 = 0x80;

/// What a superpacket consists of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Segments {
    /// One packet.
    #[default]
    One,
    /// TCP segments over IPv4.
    Tcp4,
    /// TCP segments over IPv6.
    Tcp6,
    /// UDP datagrams.
    Udp,
}

impl Segments {
    fn code(self) -> u8 {
        match self {
            Self::One => 0,
            Self::Tcp4 => 1,
            Self::Tcp6 => 4,
            Self::Udp => 5,
        }
    }
}

/// How a packet is to be cut, and what its checksum lacks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Offload {
    /// What it consists of.
    pub segments: Segments,
    /// How much payload a segment has, but for the last; in bytes.
    pub size: u16,
    /// The length of all headers. The kernel's own figure may be wrong, so it is never relied on.
    pub headers: u16,
    /// Where the checksum begins, and how far behind that it is stored; nothing if it is complete.
    pub checksum: Option<(u16, u16)>,
}

impl Offload {
    /// Reads a header; nothing if it announces what this side did not ask for.
    pub fn decode(bytes: &[u8; HEADER]) -> Option<Self> {
        let half = |i: usize| u16::from_ne_bytes([bytes[i], bytes[i + 1]]);
        let kinds = [Segments::One, Segments::Tcp4, Segments::Tcp6, Segments::Udp];
        let segments = kinds.into_iter().find(|k| k.code() == bytes[1] & !ECN)?;
        let checksum = (bytes[0] & NEEDS_CSUM != 0).then(|| (half(6), half(8)));
        Some(Self { segments, size: half(4), headers: half(2), checksum })
    }

    /// Writes a header.
    pub fn encode(&self) -> [u8; HEADER] {
        let mut bytes = [0; HEADER];
        let mut put = |i: usize, value: u16| {
            bytes[i..i + 2].copy_from_slice(&value.to_ne_bytes());
        };
        put(2, self.headers);
        put(4, self.size);
        let (start, offset) = self.checksum.unwrap_or_default();
        put(6, start);
        put(8, offset);
        bytes[0] = if self.checksum.is_some() { NEEDS_CSUM } else { 0 };
        bytes[1] = self.segments.code();
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_are_read_as_they_are_written() {
        for segments in [Segments::One, Segments::Tcp4, Segments::Tcp6, Segments::Udp] {
            for checksum in [None, Some((20, 16))] {
                let header = Offload { segments, size: 1_380, headers: 52, checksum };
                assert_eq!(Offload::decode(&header.encode()), Some(header));
            }
        }
        let tcp = Offload { segments: Segments::Tcp4, ..Offload::default() };
        let mut with_ecn = tcp.encode();
        with_ecn[1] |= ECN;
        assert_eq!(Offload::decode(&with_ecn), Some(tcp));
        let fragments = [0, 3, 0, 0, 0, 0, 0, 0, 0, 0];
        assert_eq!(Offload::decode(&fragments), None, "UFO was never asked for");
    }
}
