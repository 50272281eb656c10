//! The daemon's own frames: reports, the leader's view, whereabouts. Pure.

use std::collections::BTreeSet;

use raft_store::model::{NodeId, UnixMillis};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::whereabouts::{Digests, Record};

/// Kinds of frames of the daemon; those below are raft-store's.
pub mod kind {
    /// A report to the leader.
    pub const REPORT: u32 = 32;
    /// Question what the leader sees.
    pub const VIEW: u32 = 33;
    /// Exchange of whereabouts.
    pub const GOSSIP: u32 = 34;
}

/// A leader's answer to a report.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Heard {
    /// False if the report reached a node that does not lead.
    pub leader: bool,
    /// Nodes that have been silent for so long that nobody should wait for their answers.
    #[serde(default)]
    pub lost: BTreeSet<NodeId>,
    /// The fleet's time when the leader answered.
    #[serde(default)]
    pub now: Option<UnixMillis>,
}

/// Whereabouts, either way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gossip {
    /// What the sender knows, as far as the receiver may lack it.
    pub records: Vec<Record>,
    /// Fingerprints of all that the sender knows: where they are equal no records are needed.
    #[serde(default)]
    pub digests: Digests,
}

/// Encodes a message of the daemon.
pub fn encode(message: &impl Serialize) -> bytes::Bytes {
    serde_json::to_vec(message).expect("the daemon's messages are plain data").into()
}

/// Decodes a message of the daemon; hostile bytes are an error.
///
/// # Errors
/// When the bytes are not such a message.
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, String> {
    serde_json::from_slice(bytes).map_err(|e| format!("malformed frame: {e}"))
}
