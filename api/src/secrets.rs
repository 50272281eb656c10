//! What a cluster's bootstrap captures, as it is sealed into replicated state. Pure.

use std::fmt;

use serde::{Deserialize, Serialize};
use zeroize::{Zeroize, ZeroizeOnDrop};

/// The purpose under which a cluster's secrets are sealed.
pub const CLUSTER_SECRETS: &str = "cluster-secrets";
/// The purpose under which the fleet authority's key is sealed.
pub const CA_KEY: &str = "ca-key";

/// A cluster's secrets.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Zeroize, ZeroizeOnDrop)]
pub struct ClusterSecrets {
    /// Lets servers join.
    pub server_token: String,
    /// Lets workers join.
    pub agent_token: String,
    /// The agent token as it is configured on servers, without the authority's hash.
    pub agent_secret: String,
    /// The administrator's kubeconfig, as K3s wrote it.
    pub kubeconfig: String,
    /// The cluster's certificate authorities, as JSON of the driver's own.
    pub ca: String,
}

impl fmt::Debug for ClusterSecrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ClusterSecrets(redacted)")
    }
}
