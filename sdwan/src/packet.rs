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

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn hostile_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..100)) {
            let _ = addresses(&bytes);
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
