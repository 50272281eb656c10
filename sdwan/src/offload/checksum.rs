//! The Internet checksum (RFC 1071). Pure.
//!
//! Sums are kept in the byte order of memory, which RFC 1071, section 2(B), shows to make no difference until the end.

/// A ones' complement sum that is not folded yet.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Sum(u64);

impl Sum {
    /// Adds bytes that lie at an even offset; an odd last one counts as if a zero followed.
    pub(crate) fn add(mut self, bytes: &[u8]) -> Self {
        // Written so that the compiler makes vector code of it.
        let (words, rest) = bytes.as_chunks::<4>();
        self.0 += words.iter().map(|w| u64::from(u32::from_ne_bytes(*w))).sum::<u64>();
        let mut last = [0; 4];
        last[..rest.len()].copy_from_slice(rest);
        self.0 += u64::from(u32::from_ne_bytes(last));
        self
    }

    /// Adds a number that stands for two bytes.
    pub(crate) fn add_u16(mut self, value: u16) -> Self {
        self.0 += u64::from(value.to_be());
        self
    }

    /// Returns the folded sum, not complemented.
    pub(crate) fn fold(self) -> u16 {
        let mut sum = self.0;
        while sum > 0xffff {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        u16::from_be(sum as u16)
    }

    /// Returns the checksum.
    pub(crate) fn finish(self) -> u16 {
        !self.fold()
    }
}

/// Returns the sum over the pseudo-header of a packet (RFC 9293, section 3.1; RFC 8200, section 8.1).
///
/// `header` begins with an IPv4 or IPv6 header; `length` is that of the transport header and its payload.
pub(crate) fn pseudo(header: &[u8], protocol: u8, length: usize) -> Sum {
    let addresses = if header[0] >> 4 == 4 { &header[12..20] } else { &header[8..40] };
    let sum = Sum::default().add(addresses).add_u16(u16::from(protocol));
    // Above 65,535 only with jumbograms, which no TUN device brings.
    sum.add_u16(length as u16)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn plain(bytes: &[u8]) -> u16 {
        let mut sum = 0u32;
        for pair in bytes.chunks(2) {
            sum += u32::from(u16::from_be_bytes([pair[0], *pair.get(1).unwrap_or(&0)]));
            sum = (sum & 0xffff) + (sum >> 16);
        }
        !u16::try_from(sum).unwrap()
    }

    #[test]
    fn the_rfcs_own_example() {
        let bytes = [0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7];
        assert_eq!(Sum::default().add(&bytes).fold(), 0xddf2);
    }

    proptest! {
        #[test]
        fn equals_the_plain_sum(bytes in proptest::collection::vec(any::<u8>(), 0..3_000)) {
            prop_assert_eq!(Sum::default().add(&bytes).finish(), plain(&bytes));
        }
    }
}
