//! A host that lost its node password: K3s ties a node's name to `/etc/rancher/node/password`. Shell.

use std::time::Duration;

use raft_store::model::Name;
use raft_store::rt;
use tokio::time::Instant;

use crate::own::OwnHandle;

/// Pause between two tries.
const PERIOD: Duration = Duration::from_secs(5);

/// Has the cluster forget the password of this host's node, so that it takes the new one.
#[derive(Debug, Default)]
pub(super) struct Password {
    tried: Option<Instant>,
}

impl Password {
    /// Tells whether K3s refuses this host's password, and it is time for a try.
    pub(super) fn is_due(&self, own: &OwnHandle) -> bool {
        own.password_rejected() && self.tried.is_none_or(|at| rt::elapsed(at) >= PERIOD)
    }

    /// Tries it. Who this node is the fleet's certificate says, so that the password need not.
    pub(super) async fn forget(&mut self, kube: Option<impl k3s::KubeApi>, node: &Name) {
        self.tried = Some(rt::now());
        let Some(kube) = kube else { return };
        match kube.delete_node_password(node.as_str()).await {
            Ok(()) => {
                tracing::warn!("this host had lost its node password; the cluster takes a new one")
            }
            Err(error) => tracing::info!(%error, "the lost node password is not forgotten yet"),
        }
    }
}
