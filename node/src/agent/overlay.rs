//! Keeps this host's overlay devices as the state says, and reports which VIPs are in place. Shell.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use raft_store::model::{Generation, NextHolder, NodeId, State, Vip, VipId};
use raft_store::plan::PreparedVip;
use raft_store::rt::watch;
use raft_store::rt::{self, sleep_until, timeout};
use sdwan::{MeshSpec, MeshStatus};
use tokio::sync::mpsc;
use tokio::time::Instant;
use uuid::Uuid;

use super::Shared;
use crate::env::{Env, Mesh};
use crate::overlay::Ask;
use crate::project::{Local, addresses, former_holder, lost_holders, meshes, route_clash};
use crate::whereabouts::Digests;

/// Without a change, the devices are looked at this often.
const PERIOD: Duration = Duration::from_millis(500);
/// Between two looks at least this, however fast VIPs move.
const REST: Duration = Duration::from_millis(10);
/// And so much for each node where no VIP moved: while many join, the fleet must not be projected for each of them.
const REST_FOR_EACH: Duration = Duration::from_micros(200);
/// After a planned move, connections that were begun before it stay with the former holder for this long.
const HANDOVER: Duration = Duration::from_millis(500);
/// The former holder keeps the address longer than that, since others hear of the move at another time than it.
const LINGER: Duration = Duration::from_secs(1);

/// All that specs are made from and that changes while a daemon runs: equal inputs make equal specs.
#[derive(PartialEq, Eq)]
struct Inputs {
    /// The log index of the state.
    generation: u64,
    /// The fingerprints of all that is known about where nodes are.
    book: Digests,
    /// VIPs that moved a moment ago, each with its former holder.
    former: BTreeMap<VipId, NodeId>,
}

/// Where a VIP is, and where it is to go.
type Place = (VipId, Generation, Option<NextHolder>);

fn places(state: &State) -> Vec<Place> {
    state.vips.values().map(|v| (v.id, v.generation, v.next)).collect()
}

fn rest(nodes: usize) -> Duration {
    let nodes = u32::try_from(nodes).unwrap_or(u32::MAX);
    REST_FOR_EACH.saturating_mul(nodes).clamp(REST, PERIOD)
}

/// The overlay's agent; it alone changes the devices.
pub struct OverlayAgent<E: Env> {
    shared: Shared<E>,
    mesh: E::Mesh,
    wireguard: zeroize::Zeroizing<[u8; 32]>,
    lingering: BTreeMap<(String, IpAddr), Instant>,
    generations: BTreeMap<VipId, Generation>,
    former: BTreeMap<VipId, (NodeId, Instant)>,
    projected: Option<(Inputs, Vec<MeshSpec>)>,
    /// Where all nodes are, by the book from which specs were projected last.
    hosts: BTreeMap<Uuid, Vec<IpAddr>>,
    lost: BTreeSet<NodeId>,
    failure: Option<String>,
    failing_since: Option<Instant>,
    asks: mpsc::Receiver<Ask>,
    status: watch::Sender<Vec<MeshStatus>>,
}

impl<E: Env> OverlayAgent<E> {
    /// Makes the agent.
    pub fn new(
        shared: Shared<E>,
        wireguard: zeroize::Zeroizing<[u8; 32]>,
        (asks, status): (mpsc::Receiver<Ask>, watch::Sender<Vec<MeshStatus>>),
    ) -> Self {
        let mesh = shared.env.mesh();
        Self {
            shared,
            mesh,
            wireguard,
            lingering: BTreeMap::new(),
            generations: BTreeMap::new(),
            former: BTreeMap::new(),
            projected: None,
            hosts: BTreeMap::new(),
            lost: BTreeSet::new(),
            failure: None,
            failing_since: None,
            asks,
            status,
        }
    }

    /// Runs until the daemon ends.
    pub async fn run(mut self) {
        let mut applied = 0;
        let mut before: Vec<MeshSpec> = Vec::new();
        let mut counted = None;
        loop {
            let looked = rt::now();
            let published = self.shared.store.published();
            applied = published.index.max(applied);
            let state = published.state;
            let dead = self.follow_moves(&state, rt::now());
            let mut specs = self.project(&state, applied);
            self.linger(&before, &mut specs, rt::now());
            before.clone_from(&specs);
            let own = self.own(&state);
            let (places, rested) = (places(&state), looked + rest(state.nodes.len()));
            // A state that is kept has to be copied when it changes.
            drop(state);
            let failure = self.mesh.apply(specs).await.err();
            if failure != self.failure {
                match &failure {
                    Some(why) => tracing::warn!(%why, "the overlay is not as it should be"),
                    None => tracing::info!("the overlay is as it should be"),
                }
                self.failure.clone_from(&failure);
            }
            let now = rt::now();
            self.failing_since = failure.as_ref().map(|_| self.failing_since.unwrap_or(now));
            self.tell(own, failure);
            self.cut(dead).await;
            // No more often than the period, however fast the state changes: a move must not wait for figures.
            if counted.is_none_or(|at| rt::elapsed(at) >= PERIOD) {
                counted = Some(rt::now());
                self.status.send_replace(self.mesh.status().await);
            }
            sleep_until(looked + REST).await;
            self.wait(applied, &places, rested).await;
        }
    }

    /// Waits until a VIP is in another place than these, something else changed and the rest is over, somebody asks, or
    /// the period ends: it catches addresses that others removed.
    async fn wait(&mut self, applied: u64, before: &[Place], rested: Instant) {
        let over = self.former.values().map(|(_, until)| *until).min();
        let mut until = over.map_or(rt::now() + PERIOD, |over| over.min(rt::now() + PERIOD));
        let store = self.shared.store.clone();
        let mut seen = applied;
        loop {
            let left = until.saturating_duration_since(rt::now());
            tokio::select! {
                biased;
                // First, since commits may come without a pause; each turn looks at the state anyway.
                Some(ask) = self.asks.recv() => return self.answer(ask),
                changed = timeout(left, store.changed(seen)) => match changed {
                    Ok(index) => seen = index,
                    Err(_) => return,
                },
            }
            if rt::now() >= rested || places(&store.state()) != before {
                return;
            }
            until = until.min(rested);
        }
    }

    /// Passes a question on; who asked may have given up.
    fn answer(&self, ask: Ask) {
        match ask {
            Ask::Ping { network, peer, answer } => {
                let _ = answer.send(self.mesh.ping(&network, &peer));
            }
            Ask::Capture { network, sink, answer } => {
                let _ = answer.send(self.mesh.capture(&network, sink));
            }
        }
    }

    /// Projects the state of log index `generation`, unless nothing that goes into it changed since the last time.
    fn project(&mut self, state: &State, generation: u64) -> Vec<MeshSpec> {
        if self.shared.own.removed() {
            return Vec::new();
        }
        let former = self.former.iter().map(|(vip, (node, _))| (*vip, *node)).collect();
        let book = self.shared.book.lock();
        let inputs = Inputs { generation, book: book.digests().clone(), former };
        let before = self.projected.as_ref();
        if let Some((_, specs)) = before.filter(|(before, _)| *before == inputs) {
            return specs.clone();
        }
        if before.is_none_or(|(before, _)| before.book != inputs.book) {
            self.hosts = book.hosts();
        }
        drop(book);
        let before = before.map_or(&[][..], |(_, specs)| specs);
        let (me, wireguard, former) = (self.shared.me, &self.wireguard, &inputs.former);
        let local = Local { me, wireguard, hosts: &self.hosts, former };
        let specs = meshes(state, generation, &local, before);
        self.projected = Some((inputs, specs.clone()));
        specs
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

    /// The VIPs that this node is to have, and which route of the host is in a network's way.
    fn own(&self, state: &State) -> (Vec<PreparedVip>, Option<String>) {
        let me = self.shared.me;
        let mine = |v: &&Vip| v.holder == Some(me) || v.next.is_some_and(|n| n.node == me);
        let mine = state.vips.values().filter(mine);
        let prepared = mine.map(|v| PreparedVip { vip: v.id, generation: v.generation });
        (prepared.collect(), route_clash(state, me, &self.shared.env.routes()))
    }

    fn tell(&self, (vips, clash): (Vec<PreparedVip>, Option<String>), failure: Option<String>) {
        let vips = if failure.is_none() { vips } else { Vec::new() };
        let since = self.failing_since.map_or(0, |since| rt::elapsed(since).as_secs());
        let failure = failure.map(|why| format!("{why} (for {since} s)"));
        self.shared.own.update(|own| {
            own.vips = vips;
            own.overlay_waits = failure;
            own.route_clash = clash;
        });
    }

    /// Sees which VIPs moved since the last look, and returns the addresses of whoever died: connections to them
    /// would hang until the kernel gives up, ten minutes later.
    ///
    /// A lost holder is known from its VIP's move, at once; any other lost node from the leader's answers.
    fn follow_moves(&mut self, state: &State, now: Instant) -> BTreeSet<IpAddr> {
        let me = self.shared.me;
        let mut dead: BTreeSet<IpAddr> = BTreeSet::new();
        self.former.retain(|_, (_, until)| *until > now);
        for vip in state.vips.values() {
            let Some(known) = self.generations.insert(vip.id, vip.generation) else {
                continue;
            };
            if let Some(former) = former_holder(vip, known) {
                self.former.insert(vip.id, (former, now + HANDOVER));
            }
            for holder in lost_holders(vip, known).into_iter().filter(|n| *n != me) {
                self.former.remove(&vip.id);
                dead.extend(addresses(state, holder));
                dead.extend(vip.addresses());
            }
        }
        let lost = self.shared.own.lost();
        for node in lost.difference(&self.lost).filter(|n| **n != me) {
            dead.extend(addresses(state, *node));
        }
        self.lost = lost;
        dead
    }

    async fn cut(&mut self, dead: BTreeSet<IpAddr>) {
        if dead.is_empty() {
            return;
        }
        match self.mesh.kill_flows(dead.into_iter().collect()).await {
            Ok(count) => tracing::info!(count, "connections to a lost server were ended"),
            Err(why) => tracing::warn!(%why, "connections to a lost server could not be ended"),
        }
    }
}
