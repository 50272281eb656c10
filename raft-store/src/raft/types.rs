//! openraft's type parameters, and our names for the types made of them.

use std::fmt;

use openraft::alias::{LogIdOf, StoredMembershipOf, VoteOf};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// Opaque bytes: a versioned command, or its versioned outcome.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Opaque(pub Vec<u8>);

impl fmt::Debug for Opaque {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Opaque({} bytes)", self.0.len())
    }
}

impl fmt::Display for Opaque {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// What Raft's membership says of a node beside its id: who it is, never where.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// The identity in its certificate.
    pub uuid: Uuid,
}

openraft::declare_raft_types!(
    /// Raft as this crate uses it.
    pub TypeConfig:
        D = Opaque,
        R = Opaque,
        NodeId = u64,
        Node = Member,
        AsyncRuntime = crate::rt::NodeRt,
);

pub(crate) type Vote = VoteOf<TypeConfig>;
pub(crate) type LogId = LogIdOf<TypeConfig>;
pub(crate) type Entry = <TypeConfig as openraft::RaftTypeConfig>::Entry;
pub(crate) type Payload = <TypeConfig as openraft::RaftTypeConfig>::Payload;
pub(crate) type Membership = openraft::Membership<u64, Member>;
pub(crate) type StoredMembership = StoredMembershipOf<TypeConfig>;
pub(crate) type SnapshotMeta = openraft::alias::SnapshotMetaOf<TypeConfig>;
pub(crate) type Snapshot = openraft::alias::SnapshotOf<TypeConfig, Vec<u8>>;
