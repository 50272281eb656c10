//! Keeps this host's overlay devices as the state says, and reports which VIPs are in place. Shell.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use raft_store::model::{Generation, MoveReason, NodeId, State, VipId};
use raft_store::plan::PreparedVip;
use sdwan::MeshSpec;
use tokio::sync::watch;
use tokio::time::{Instant, timeout};

use super::Shared;
use crate::env::{Env, Mesh};
use crate::project::{Local, lost_addresses, meshes};

/// Without a change, the devices are looked at this often.
const PERIOD: Duration = Duration::from_millis(500);
/// A planned move leaves the address with its old holder for this long, for nodes that hear of it later.
const LINGER: Duration = Duration::from_millis(500);

/// The overlay's agent; it alone changes the devices.
pub struct OverlayAgent<E: Env> {
    shared: Shared<E>,
    mesh: E::Mesh,
    wireguard: zeroize::Zeroizing<[u8; 32]>,
    lingering: BTreeMap<(String, IpAddr), Instant>,
    generations: BTreeMap<VipId, (Generation, Option<NodeId>)>,
    metrics: watch::Sender<String>,
}

impl<E: Env> OverlayAgent<E> {
    /// Makes the agent.
    pub fn new(
        shared: Shared<E>,
        wireguard: zeroize::Zeroizing<[u8; 32]>,
        metrics: watch::Sender<String>,
    ) -> Self {
        let mesh = shared.env.mesh();
        let (lingering, generations) = (BTreeMap::new(), BTreeMap::new());
        Self { shared, mesh, wireguard, lingering, generations, metrics }
    }

    /// Runs until the daemon ends.
    pub async fn run(mut self) {
        let mut applied = 0;
        let mut before: Vec<MeshSpec> = Vec::new();
        loop {
            let published = self.shared.store.published();
            applied = published.index.max(applied);
            let state = published.state;
            let mut specs = self.project(&state, applied);
            self.linger(&before, &mut specs, Instant::now());
            before.clone_from(&specs);
            let result = self.mesh.apply(specs).await;
            if let Err(why) = &result {
                tracing::warn!(%why, "the overlay is not as it should be");
            }
            self.tell(&state, result.err());
            self.cut_lost(&state).await;
            self.metrics.send_replace(self.mesh.metrics());
            // Sooner when something changed; the period catches addresses that others removed.
            let _ = timeout(PERIOD, self.shared.store.changed(applied)).await;
        }
    }

    fn project(&self, state: &State, generation: u64) -> Vec<MeshSpec> {
        let hosts = {
            let book = self.shared.book.lock();
            state.nodes.values().map(|n| (n.uuid, book.hosts(n.uuid))).collect()
        };
        let local = Local { me: self.shared.me, wireguard: &self.wireguard, hosts: &hosts };
        meshes(state, generation, &local)
    }

    /// Leaves addresses that were held a moment ago on the device: whoever has not heard of the move yet is
    /// answered by the old holder instead of by nobody.
    fn linger(&mut self, before: &[MeshSpec], specs: &mut [MeshSpec], now: Instant) {
        for spec in specs {
            let old = before.iter().filter(|b| b.interface == spec.interface);
            for ip in old.flat_map(|b| &b.held).filter(|ip| !spec.held.contains(ip)) {
                self.lingering.entry((spec.interface.clone(), *ip)).or_insert(now + LINGER);
            }
            for ip in &spec.held {
                self.lingering.remove(&(spec.interface.clone(), *ip));
            }
            let still = self
                .lingering
                .iter()
                .filter(|((i, _), until)| *i == spec.interface && **until > now);
            let still: Vec<IpAddr> = still.map(|((_, ip), _)| *ip).collect();
            spec.held.extend(still);
        }
        // Kept a little beyond its time, so that the address is not taken for a fresh loss.
        self.lingering.retain(|_, until| now < *until + PERIOD * 4);
    }

    fn tell(&self, state: &State, failure: Option<String>) {
        let me = self.shared.me;
        let mine = state
            .vips
            .values()
            .filter(|v| v.holder == Some(me) || v.next.is_some_and(|n| n.node == me));
        let vips = match failure {
            None => mine.map(|v| PreparedVip { vip: v.id, generation: v.generation }).collect(),
            Some(_) => Vec::new(),
        };
        self.shared.own.update(|own| {
            own.vips = vips;
            own.overlay_waits = failure;
        });
    }

    /// Ends connections to a server that died with a VIP: they would hang until the kernel gives up.
    async fn cut_lost(&mut self, state: &State) {
        let mut dead: BTreeSet<IpAddr> = BTreeSet::new();
        for vip in state.vips.values() {
            let now = (vip.generation, vip.holder);
            let Some((generation, old)) = self.generations.insert(vip.id, now) else {
                continue;
            };
            let lost = vip.history.last().is_some_and(|h| h.reason == MoveReason::Loss);
            if generation < vip.generation
                && lost
                && let Some(old) = old
                && old != self.shared.me
            {
                dead.extend(lost_addresses(state, vip, old));
            }
        }
        if dead.is_empty() {
            return;
        }
        match self.mesh.kill_flows(dead.into_iter().collect()).await {
            Ok(count) => tracing::info!(count, "connections to a lost server were ended"),
            Err(why) => tracing::warn!(%why, "connections to a lost server could not be ended"),
        }
    }
}
