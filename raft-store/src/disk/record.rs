//! One record of the log as it lies on disk: term, leader, kind and payload behind a crc32c. Pure.

use prost::Message as _;

/// A log entry's stored form; openraft's own types are never written, since they change between releases.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Record {
    /// The term of the leader that wrote it.
    #[prost(uint64, tag = "1")]
    pub term: u64,
    /// That leader.
    #[prost(uint64, tag = "2")]
    pub leader: u64,
    /// 0 blank, 1 command, 2 membership.
    #[prost(uint32, tag = "3")]
    pub kind: u32,
    /// The command's or the membership's bytes.
    #[prost(bytes = "vec", tag = "4")]
    pub payload: Vec<u8>,
    /// Its log index.
    #[prost(uint64, tag = "5")]
    pub index: u64,
}

/// Why stored bytes are not what was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// Fewer bytes than a checksum needs.
    #[error("the record is cut off")]
    Short,
    /// The checksum differs.
    #[error("the record's checksum does not match")]
    Checksum,
    /// The bytes are intact but no record.
    #[error("the record cannot be decoded")]
    Decode,
}

/// Puts a crc32c (RFC 3720, appendix B.4) before `bytes`.
pub(crate) fn protect(bytes: &[u8]) -> Vec<u8> {
    let mut out = crc32c::crc32c(bytes).to_be_bytes().to_vec();
    out.extend_from_slice(bytes);
    out
}

/// Returns what [`protect`] was given.
pub(crate) fn verify(bytes: &[u8]) -> Result<&[u8], RecordError> {
    let (sum, body) = bytes.split_at_checked(4).ok_or(RecordError::Short)?;
    let sum = u32::from_be_bytes(sum.try_into().map_err(|_| RecordError::Short)?);
    if crc32c::crc32c(body) == sum { Ok(body) } else { Err(RecordError::Checksum) }
}

impl Record {
    /// Encodes the record.
    pub fn to_bytes(&self) -> Vec<u8> {
        self.encode_to_vec()
    }

    /// Decodes a record.
    ///
    /// # Errors
    /// When the bytes are no record.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, RecordError> {
        Self::decode(bytes).map_err(|_| RecordError::Decode)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn any_changed_bit_is_noticed(body in proptest::collection::vec(any::<u8>(), 0..200), at: prop::sample::Index, bit in 0u8..8) {
            let mut bytes = protect(&body);
            prop_assert_eq!(verify(&bytes), Ok(body.as_slice()));
            let at = at.index(bytes.len());
            bytes[at] ^= 1 << bit;
            prop_assert!(verify(&bytes).is_err());
        }

        #[test]
        fn hostile_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = verify(&bytes);
            let _ = Record::from_bytes(&bytes);
        }
    }
}
