//! What this node knows of itself and reports: shared by the loops that see it. Shell.

use std::collections::BTreeSet;
use std::sync::Arc;

use raft_store::model::NodeId;
use raft_store::plan::{PreparedVip, Report};
use tokio::sync::watch;

/// What the loops of this node have seen.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Own {
    /// Whether the API server here answers; absent without one.
    pub api_ready: Option<bool>,
    /// What it lacks.
    pub api_detail: Option<String>,
    /// VIPs whose address is on the device.
    pub vips: Vec<PreparedVip>,
    /// What the K3s loop waits for.
    pub k3s_waits: Option<String>,
    /// What the overlay loop could not do.
    pub overlay_waits: Option<String>,
    /// Which route of this host leads elsewhere with addresses of the overlay.
    pub route_clash: Option<String>,
    /// Why this daemon is about to end.
    pub ending: Option<String>,
    /// Whether others refuse this node because it was removed.
    pub removed: bool,
    /// Nodes of which the leader said last that they are lost; kept while there is no leader to ask.
    pub lost: BTreeSet<NodeId>,
}

/// Everybody's handle on it.
#[derive(Clone, Debug)]
pub struct OwnHandle(Arc<watch::Sender<Own>>);

impl Default for OwnHandle {
    fn default() -> Self {
        Self(Arc::new(watch::Sender::new(Own::default())))
    }
}

impl OwnHandle {
    /// Changes it; readers wake only if something differs.
    pub fn update(&self, change: impl FnOnce(&mut Own)) {
        self.0.send_if_modified(|own| {
            let before = own.clone();
            change(own);
            *own != before
        });
    }

    /// Takes in which nodes the leader calls lost; nothing is learned from no answer.
    pub fn hear(&self, lost: Option<BTreeSet<NodeId>>) {
        if let Some(lost) = lost {
            self.update(|own| own.lost = lost);
        }
    }

    /// Returns the nodes that the leader calls lost.
    pub fn lost(&self) -> BTreeSet<NodeId> {
        self.0.borrow().lost.clone()
    }

    /// Returns a reader.
    pub fn subscribe(&self) -> watch::Receiver<Own> {
        self.0.subscribe()
    }

    /// Returns whether others refuse this node because it was removed.
    pub fn removed(&self) -> bool {
        self.0.borrow().removed
    }

    /// Makes the report for the leader.
    pub fn report(&self, node: NodeId, applied: u64) -> Report {
        let own = self.0.borrow().clone();
        Report {
            node,
            applied,
            api_ready: own.api_ready,
            api_detail: own.api_detail,
            vips: own.vips,
            overlay: own.overlay_waits.clone(),
            waiting_for: (own.overlay_waits.into_iter())
                .chain(own.route_clash)
                .chain(own.k3s_waits)
                .collect(),
            last_words: own.ending,
            version: crate::VERSION.into(),
        }
    }
}
