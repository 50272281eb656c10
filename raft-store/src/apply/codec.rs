//! How proposals, outcomes and states are written: JSON in an envelope that names its format. Pure.
//!
//! `{"v": 1, "body": ...}`. Bytes of an older format are brought up to the model as it is now; bytes of a
//! newer one are refused, so that a daemon never acts on what it only half understands.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::{Outcome, Proposal};
use crate::model::State;

/// The format that is written, and the newest one that is read.
pub const FORMAT: u32 = 1;

/// Says why bytes could not be read.
#[derive(Debug, thiserror::Error)]
pub enum DecodeError {
    /// The bytes are no envelope at all.
    #[error("{what} is unreadable: it is no versioned envelope; restore this node from its peers")]
    Envelope {
        /// What was to be read.
        what: &'static str,
        /// Where reading stopped.
        #[source]
        source: serde_json::Error,
    },
    /// A newer (or no) release wrote them.
    #[error(
        "{what} has format {found}, but this skein reads formats 1 to {FORMAT}; upgrade skein on this node"
    )]
    Format {
        /// What was to be read.
        what: &'static str,
        /// The format that it claims.
        found: u32,
    },
    /// The envelope is whole, but what it holds does not fit its format.
    #[error("{what} of format {format} is malformed; restore this node from its peers")]
    Body {
        /// What was to be read.
        what: &'static str,
        /// The format that it claims.
        format: u32,
        /// Where reading stopped.
        #[source]
        source: serde_json::Error,
    },
}

#[derive(Serialize)]
struct Written<'a, T> {
    v: u32,
    body: &'a T,
}

#[derive(Deserialize)]
struct Read<'a> {
    v: u32,
    #[serde(borrow)]
    body: &'a RawValue,
}

/// Writes a proposal, as it lies in the log and travels to the leader.
pub fn encode_proposal(proposal: &Proposal) -> Vec<u8> {
    encode(proposal)
}

/// Reads a proposal.
///
/// # Errors
/// When the bytes are damaged, or of a newer format.
pub fn decode_proposal(bytes: &[u8]) -> Result<Proposal, DecodeError> {
    decode("a proposal", bytes)
}

/// Writes an outcome, as it travels back to the proposer.
pub fn encode_outcome(outcome: &Outcome) -> Vec<u8> {
    encode(outcome)
}

/// Reads an outcome.
///
/// # Errors
/// When the bytes are damaged, or of a newer format.
pub fn decode_outcome(bytes: &[u8]) -> Result<Outcome, DecodeError> {
    decode("an outcome", bytes)
}

/// Writes a whole state, as it lies in a snapshot.
pub fn encode_state(state: &State) -> Vec<u8> {
    encode(state)
}

/// Reads a whole state.
///
/// # Errors
/// When the bytes are damaged, or of a newer format.
pub fn decode_state(bytes: &[u8]) -> Result<State, DecodeError> {
    decode("a snapshot of the state", bytes)
}

fn encode<T: Serialize>(body: &T) -> Vec<u8> {
    serde_json::to_vec(&Written { v: FORMAT, body })
        .expect("every map in the model has keys that JSON writes as strings")
}

fn decode<T: DeserializeOwned>(what: &'static str, bytes: &[u8]) -> Result<T, DecodeError> {
    let read: Read =
        serde_json::from_slice(bytes).map_err(|source| DecodeError::Envelope { what, source })?;
    let format = read.v;
    match format {
        1 => serde_json::from_str(read.body.get()).map_err(|source| DecodeError::Body {
            what,
            format,
            source,
        }),
        found => Err(DecodeError::Format { what, found }),
    }
}
