//! The daemon as the API's services see it. Shell.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use api::daemon::{
    CallError, Daemon, FleetView, Packet, PeerView, READ_DEADLINE, Snapshot, WRITE_DEADLINE,
    Whereabouts,
};
use api::pki::Pki;
use bytes::Bytes;
use futures::StreamExt as _;
use futures::stream::BoxStream;
use raft_store::apply::{Change, Command, Outcome};
use raft_store::model::{Network, NodeId, RequestId, State, UnixMillis};
use raft_store::plan::{Health, Report, WINDOW, quorum_needs};
use raft_store::raft::{Frame, ProposeError, RaftStatus, ReadError, Store, Transport as _, kind};
use raft_store::rt::{self, sleep, watch};
use raft_store::seal::FleetKey;
use uuid::Uuid;

use crate::env::Env;
use crate::frames::{self, Gossip, Heard};
use crate::gossip;
use crate::leader::{LeaderHandle, proposal};
use crate::metrics;
use crate::overlay::{NoAnswer, OverlayHandle};
use crate::own::OwnHandle;
use crate::transport::{NodeTransport, SharedBook};

/// How long an answer waits for a leader that has heard of all nodes: after its window each is live or lost.
const SIGHT_MAX: Duration = Duration::from_millis(800);
const _: () = assert!(SIGHT_MAX.as_millis() > WINDOW.as_millis());
/// Pause between two questions while no leader has whole sight.
const SIGHT_PAUSE: Duration = Duration::from_millis(50);

/// Whether the leader has heard of every node.
fn is_whole(view: &FleetView) -> bool {
    view.nodes.values().all(|n| n.health != Health::Unknown)
}

/// Why the overlay has no answer.
fn in_words(why: NoAnswer, network: &str, peer: Option<&str>) -> String {
    let peer = peer.map(|peer| format!("{peer} in ")).unwrap_or_default();
    match why {
        NoAnswer::Unknown => {
            format!("this node's overlay does not have {peer}network {network} (yet)")
        }
        NoAnswer::Late => "this node's overlay does not answer; its log says why".into(),
        NoAnswer::NoAddress => format!("{peer}network {network} has no address to be asked at"),
    }
}

/// What the services need, put together.
pub struct Backend<E: Env> {
    /// The ports.
    pub env: Arc<E>,
    /// This node.
    pub me: NodeId,
    /// Replicated state.
    pub store: Store<NodeTransport<E::Wire>>,
    /// Calls to other nodes.
    pub transport: NodeTransport<E::Wire>,
    /// The leader's loop on this node.
    pub leader: LeaderHandle,
    /// Where nodes are.
    pub book: SharedBook,
    /// What this node saw of itself.
    pub own: OwnHandle,
    /// The fleet's key, once handed over.
    pub fleet_key: watch::Receiver<Option<FleetKey>>,
    /// The overlay's agent.
    pub overlay: OverlayHandle,
}

impl<E: Env> Backend<E> {
    async fn own_frame(&self, from: Uuid, kind: u32, body: &Bytes) -> Result<(u32, Bytes), String> {
        // Whose vote is still needed says where it is, or nobody could reach it to end that vote; nothing else is heard of it.
        let retired = self.store.state().is_retired(from);
        match kind {
            _ if retired && kind != frames::kind::GOSSIP => {
                Err(format!("{from} was removed from the fleet"))
            }
            frames::kind::REPORT => {
                let report: Report = frames::decode(body)?;
                let whose = self.store.state().nodes.get(&report.node).map(|n| n.uuid);
                let heard = match whose {
                    Some(uuid) if uuid == from => self.leader.report(report).await,
                    Some(_) => return Err(format!("{from} reports for node {}", report.node)),
                    // Not a member here (yet); it tells again in a moment.
                    None => Heard::default(),
                };
                Ok((kind, frames::encode(&heard)))
            }
            frames::kind::VIEW => Ok((kind, frames::encode(&self.leader.view().await))),
            frames::kind::GOSSIP => {
                let mut told: Gossip = frames::decode(body)?;
                told.records.retain(|r| !retired || r.uuid == from);
                let keeps = gossip::keeps(&self.store);
                let mut book = self.book.lock();
                book.retain(&keeps);
                let answer = gossip::answer(&mut book, told, keeps);
                gossip::save(&mut book, &*self.env);
                Ok((kind, frames::encode(&answer)))
            }
            other => Err(format!("unknown frame kind {other}: is the other node newer?")),
        }
    }

    /// Says by name which voters do not answer.
    fn without(&self, reason: &'static str, write: bool, missing: &[u64]) -> CallError {
        let state = self.store.state();
        let names: Vec<String> = missing.iter().map(|id| state.name_of(NodeId(*id))).collect();
        let what = if reason == "no_leader" { "no leader" } else { "no quorum" };
        let voters = self.store.voters().len();
        let why = format!("{what}: of {voters} voters, these do not answer: {}", names.join(", "));
        CallError::Unavailable { reason, write, why }
    }

    fn propose_error(&self, e: ProposeError) -> CallError {
        match e {
            ProposeError::NoLeader { missing, .. } => self.without("no_leader", true, &missing),
            ProposeError::NoQuorum { missing, .. } => self.without("no_quorum", true, &missing),
            other => CallError::Propose(other),
        }
    }

    fn read_error(&self, e: ReadError) -> CallError {
        match e {
            ReadError::NoLeader { missing, .. } => self.without("no_leader", false, &missing),
            ReadError::NoQuorum { missing, .. } => self.without("no_quorum", false, &missing),
            other => CallError::Read(other),
        }
    }

    /// Asks the leader, if one is known, what it sees.
    async fn ask_view(&self, deadline: Duration) -> Option<FleetView> {
        let leader = self.store.leader()?;
        if leader == self.me.0 {
            return self.leader.view().await;
        }
        let frame = Frame { kind: frames::kind::VIEW, body: Bytes::new() };
        let answer = self.transport.call(leader, frame, deadline).await.ok()?;
        frames::decode::<Option<FleetView>>(&answer.body).ok()?
    }

    /// What this node alone can say: nobody is known to be alive.
    fn blind_view(&self) -> FleetView {
        let status = self.store.status();
        let voters = status.voters.iter().copied().map(NodeId).collect();
        FleetView {
            leader: None,
            term: status.term,
            voters,
            quorum: false,
            removed: self.own.removed(),
            ..FleetView::default()
        }
    }
}

impl<E: Env> Daemon for Backend<E> {
    async fn propose(
        &self,
        request: Option<RequestId>,
        by: &str,
        command: Command,
    ) -> Result<Change, CallError> {
        let mut proposal = proposal(&*self.env, by, command, self.wall());
        if let Some(request) = request {
            proposal.request = request;
        }
        let proposed = self.store.propose(&proposal, WRITE_DEADLINE).await;
        let (_, outcome) = proposed.map_err(|e| self.propose_error(e))?;
        if let Outcome::Rejected { rejection } = &outcome {
            tracing::info!(%rejection, by, "a command was refused");
        }
        outcome.result().map_err(CallError::Rejected)
    }

    async fn read(&self, stale: bool) -> Result<Snapshot, CallError> {
        let published = if stale {
            self.store.published()
        } else {
            self.store.read_linear(READ_DEADLINE).await.map_err(|e| self.read_error(e))?
        };
        Ok(Snapshot { state: published.state, applied: published.index })
    }

    fn quorum_needs(&self, removed: Uuid) -> bool {
        let voters = self.store.voters().into_iter().map(NodeId).collect();
        quorum_needs(&self.store.state(), &voters, removed)
    }

    fn state(&self) -> Arc<State> {
        self.store.state()
    }

    async fn changed(&self, after: u64) {
        self.store.changed(after).await;
    }

    async fn view(&self) -> FleetView {
        let until = rt::now() + SIGHT_MAX;
        loop {
            let view = self.ask_view(until.saturating_duration_since(rt::now())).await;
            // Between two leaders, and right after a join, whole sight comes within a moment; until then an answer would mislead.
            if self.own.removed() || view.as_ref().is_some_and(is_whole) || rt::now() >= until {
                return view.unwrap_or_else(|| self.blind_view());
            }
            sleep(SIGHT_PAUSE).await;
        }
    }

    async fn frame(&self, from: Uuid, kind: u32, body: Bytes) -> Result<(u32, Bytes), CallError> {
        if kind > kind::LAST {
            return self.own_frame(from, kind, &body).await.map_err(CallError::NotReady);
        }
        // Only tells senders of snapshots apart.
        let sender = from.as_u64_pair().1;
        let answer = self.store.handle(sender, Frame { kind, body }).await;
        let answer = answer.map_err(|e| CallError::NotReady(e.to_string()))?;
        Ok((answer.kind, answer.body))
    }

    fn raft(&self) -> RaftStatus {
        self.store.status()
    }

    fn me(&self) -> NodeId {
        self.me
    }

    fn wall(&self) -> UnixMillis {
        self.own.fleet_time(self.env.wall())
    }

    fn random(&self) -> [u8; 32] {
        self.env.random()
    }

    fn pki(&self) -> &dyn Pki {
        self.env.pki()
    }

    fn fleet_key(&self) -> Option<FleetKey> {
        self.fleet_key.borrow().clone()
    }

    fn whereabouts(&self) -> Vec<Whereabouts> {
        let state = self.store.state();
        let records = self.book.lock().records().into_iter();
        // In the order of the state, so that answers do not change from call to call.
        let mut found: Vec<_> = records
            .filter_map(|r| Some((state.node_by_uuid(r.uuid)?.id, r)))
            .map(|(id, r)| {
                (
                    id,
                    Whereabouts {
                        uuid: r.uuid,
                        node: r.node,
                        incarnation: r.incarnation,
                        seq: r.seq,
                        addresses: r.addresses,
                    },
                )
            })
            .collect();
        found.sort_by_key(|(id, _)| (*id != self.me, *id));
        found.into_iter().map(|(_, w)| w).collect()
    }

    fn add_endpoint(&self, address: SocketAddr) {
        let mut book = self.book.lock();
        if book.hint(address)
            && let Err(e) = book.save(self.env.files())
        {
            tracing::warn!(error = %e, "whereabouts could not be saved");
        }
    }

    fn interface(&self, network: &Network) -> String {
        sdwan::interface_name(network.name.as_str())
    }

    fn kubeconfig(&self, kubeconfig: &str, endpoint: &str, name: &str) -> Result<String, String> {
        let secret = k3s::Secret::new(kubeconfig);
        let rewritten = k3s::kubeconfig_for(&secret, endpoint, name).map_err(|e| e.to_string())?;
        Ok(rewritten.expose().to_owned())
    }

    fn metrics(&self) -> String {
        metrics::overlay(&self.overlay.status())
    }

    fn peers(&self) -> Vec<PeerView> {
        let of = |mesh: sdwan::MeshStatus| {
            mesh.peers.into_iter().map(move |p| PeerView {
                network: mesh.network.clone(),
                name: p.name,
                public_key: p.key.to_string(),
                endpoint: p.endpoint,
                handshake_age: p.handshake_age,
                received: p.rx_bytes,
                sent: p.tx_bytes,
                round_trip: p.round_trip,
                lost: p.lost,
                path_mtu: p.path_mtu,
            })
        };
        self.overlay.status().into_iter().flat_map(of).collect()
    }

    async fn ping(&self, network: &str, peer: &str) -> Result<Option<Duration>, CallError> {
        let taken = self.overlay.ping(network, peer).await;
        taken.map_err(|e| CallError::NotReady(in_words(e, network, Some(peer))))
    }

    async fn capture(&self, network: &str) -> Result<BoxStream<'static, Packet>, CallError> {
        let begun = self.overlay.capture(network).await;
        let packets = begun.map_err(|e| CallError::NotReady(in_words(e, network, None)))?;
        let stream = futures::stream::unfold(packets, async |mut packets| {
            let sdwan::Captured { at_us, bytes, missed } = packets.recv().await?;
            Some((Packet { at_us, bytes, missed }, packets))
        });
        Ok(stream.boxed())
    }
}
