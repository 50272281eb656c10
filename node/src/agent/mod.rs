//! The loops that make this host be what the state says: overlay, K3s, and chores at the Kubernetes API.

pub mod chores;
pub mod founding;
pub mod overlay;
mod password;
mod pods;
pub mod runtime;

use std::sync::Arc;
use std::time::Duration;

use api::secrets::{CLUSTER_SECRETS, ClusterSecrets};
use raft_store::apply::{Command, Outcome, RejectCode};
use raft_store::model::{Cluster, NodeId, State};
use raft_store::raft::Store;
use raft_store::rt::sleep;
use raft_store::rt::watch;
use raft_store::seal::FleetKey;

use crate::env::Env;
use crate::leader::proposal;
use crate::own::OwnHandle;
use crate::transport::{NodeTransport, SharedBook};

/// How long a report of an agent may take to be committed.
const PROPOSE_MAX: Duration = Duration::from_secs(5);
/// Pause after a report that the fleet does not take.
const REFUSED_PAUSE: Duration = Duration::from_secs(1);

/// What every agent works with.
pub struct Shared<E: Env> {
    /// The ports.
    pub env: Arc<E>,
    /// This node.
    pub me: NodeId,
    /// This node's name, for proposals.
    pub name: String,
    /// Replicated state.
    pub store: Store<NodeTransport<E::Wire>>,
    /// Where nodes are.
    pub book: SharedBook,
    /// What this node reports.
    pub own: OwnHandle,
    /// The fleet's key, once handed over.
    pub fleet_key: watch::Receiver<Option<FleetKey>>,
}

impl<E: Env> Clone for Shared<E> {
    fn clone(&self) -> Self {
        Self {
            env: self.env.clone(),
            me: self.me,
            name: self.name.clone(),
            store: self.store.clone(),
            book: self.book.clone(),
            own: self.own.clone(),
            fleet_key: self.fleet_key.clone(),
        }
    }
}

impl<E: Env> Shared<E> {
    /// Proposes a report; returns whether it was carried out. What was not is seen again by the next look.
    pub async fn propose(&self, command: Command) -> bool {
        let at = self.own.fleet_time(self.env.wall());
        let proposal = proposal(&*self.env, &format!("node/{}", self.name), command, at);
        match self.store.propose(&proposal, PROPOSE_MAX).await {
            Ok((_, Outcome::Rejected { rejection })) => {
                tracing::info!(%rejection, "a report was refused");
                // The refusal is news that wakes who made it; only what is stale is another one the next time.
                if rejection.code != RejectCode::Stale {
                    sleep(REFUSED_PAUSE).await;
                }
                false
            }
            Ok(_) => true,
            Err(e) => {
                tracing::debug!(error = %e, "a report was not committed and will be made again");
                false
            }
        }
    }

    /// Returns the fleet's time, once a leader has told it.
    pub fn known_time(&self) -> Option<raft_store::model::UnixMillis> {
        self.own.known_fleet_time(self.env.wall())
    }

    /// Opens a cluster's secrets, if they are there and this node has the key.
    pub fn secrets(&self, cluster: &Cluster) -> Option<ClusterSecrets> {
        let key = self.fleet_key.borrow().clone()?;
        let opened = key.open(CLUSTER_SECRETS, cluster.secrets.as_ref()?);
        match opened {
            Ok(bytes) => serde_json::from_slice(bytes.expose()).ok(),
            Err(e) => {
                tracing::warn!(cluster = %cluster.name, error = %e, "the cluster's secrets do not open");
                None
            }
        }
    }

    /// Returns the cluster in which this node has a part.
    pub fn own_cluster<'a>(&self, state: &'a State) -> Option<&'a Cluster> {
        state.cluster_of(state.nodes.get(&self.me)?)
    }

    /// Returns 24 random bytes, for sealing.
    pub fn nonce(&self) -> [u8; 24] {
        let random = self.env.random();
        std::array::from_fn(|i| random[i])
    }
}
