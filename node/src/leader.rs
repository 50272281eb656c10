//! The leader's loop: listens to reports, plans, proposes, and keeps Raft's membership. Shell.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use api::daemon::{FleetView, NodeView};
use raft_store::apply::{Command, Outcome, Proposal};
use raft_store::model::{NodeId, RequestId, State, UnixMillis};
use raft_store::plan::{
    Liveness, Membership, MembershipChange, Report, WINDOW, clock_offsets, fleet_offset, lost,
    plan, plan_membership,
};
use raft_store::raft::{ProposeError, RaftStatus, Store};
use raft_store::rt::watch;
use raft_store::rt::{self, sleep_until};
use raft_store::seal::FleetKey;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::env::{Env, Wire};
use crate::frames::Heard;
use crate::own::OwnHandle;
use crate::transport::NodeTransport;

/// How often the leader looks at everything anew, apart from what wakes it.
const TICK: Duration = Duration::from_millis(50);
/// The same where this node does not lead. A new leader's first entry wakes it, and so does a report to it.
const TICK_ASIDE: Duration = Duration::from_millis(200);
/// Between two looks at least this, however fast the state changes.
const REST: Duration = Duration::from_millis(10);
/// A leader that looked away for longer cannot tell others' silence from its own: with reports each 100 ms,
/// nobody may yet have become lost in its eyes within this time.
const GAP_MAX: Duration = Duration::from_millis(300);
/// A majority that has not answered for this long is no quorum.
const QUORUM_MAX: Duration = Duration::from_secs(1);
/// Pause between two changes of Raft's membership.
const SETTLE: Duration = Duration::from_millis(300);
/// How long one proposal of the leader's own may take.
const PROPOSE_MAX: Duration = Duration::from_secs(3);

/// What reaches the leader's loop.
pub enum Input {
    /// A node's report; answered with whether this node leads, and whom it misses.
    Report(Box<Report>, oneshot::Sender<Heard>),
    /// A question what is seen; answered with nothing where this node does not lead.
    View(oneshot::Sender<Option<FleetView>>),
}

/// The loop's other end.
#[derive(Clone)]
pub struct LeaderHandle(mpsc::Sender<Input>);

impl LeaderHandle {
    /// Hands a report over; returns whether this node leads, and whom it misses.
    pub async fn report(&self, report: Report) -> Heard {
        let (tx, rx) = oneshot::channel();
        match self.0.send(Input::Report(Box::new(report), tx)).await {
            Ok(()) => rx.await.unwrap_or_default(),
            Err(_) => Heard::default(),
        }
    }

    /// Returns what is seen, if this node leads.
    pub async fn view(&self) -> Option<FleetView> {
        let (tx, rx) = oneshot::channel();
        self.0.send(Input::View(tx)).await.ok()?;
        rx.await.ok().flatten()
    }
}

/// Makes the handle and the loop's inbox.
pub fn channel() -> (LeaderHandle, mpsc::Receiver<Input>) {
    let (tx, rx) = mpsc::channel(1_024);
    (LeaderHandle(tx), rx)
}

/// The leader's loop; on nodes that do not lead it only says so.
pub struct Leader<E: Env> {
    env: Arc<E>,
    store: Store<NodeTransport<E::Wire>>,
    fleet_key: watch::Receiver<Option<FleetKey>>,
    seen: Option<(u64, Liveness)>,
    changed_at: Instant,
    looked_at: Instant,
    lost: BTreeSet<NodeId>,
    /// How far the fleet's time is ahead of this host's clock, in milliseconds, once most clocks were heard.
    clock_ms: Option<i64>,
    own: OwnHandle,
    planning: JoinSet<()>,
    changing: JoinSet<()>,
}

impl<E: Env> Leader<E> {
    /// Makes the loop.
    pub fn new(
        env: Arc<E>,
        store: Store<NodeTransport<E::Wire>>,
        fleet_key: watch::Receiver<Option<FleetKey>>,
        own: OwnHandle,
    ) -> Self {
        Self {
            env,
            store,
            fleet_key,
            seen: None,
            changed_at: rt::now(),
            looked_at: rt::now(),
            lost: BTreeSet::new(),
            clock_ms: None,
            own,
            planning: JoinSet::new(),
            changing: JoinSet::new(),
        }
    }

    /// Runs until the daemon ends.
    pub async fn run(mut self, mut inbox: mpsc::Receiver<Input>) {
        let mut applied = 0;
        let mut next = rt::now();
        loop {
            let store = self.store.clone();
            tokio::select! {
                biased;
                input = inbox.recv() => match input {
                    Some(input) => self.take(input),
                    None => return,
                },
                index = store.changed(applied) => {
                    applied = index;
                    next = next.min(self.looked_at + REST);
                }
                () = sleep_until(next) => {
                    next = rt::now() + if self.seen.is_some() { TICK } else { TICK_ASIDE };
                    self.look();
                }
            }
        }
    }

    fn take(&mut self, input: Input) {
        self.follow_raft();
        match input {
            Input::Report(report, answer) => {
                let mut heard = Heard::default();
                if let Some((_, seen)) = &mut self.seen {
                    seen.report(*report, rt::now().into_std());
                    let wall = self.env.wall().0;
                    let now = self.clock_ms.map(|ms| UnixMillis(wall.saturating_add_signed(ms)));
                    heard = Heard { leader: true, lost: self.lost.clone(), now };
                }
                // The asker may be gone; the report counts all the same.
                let _ = answer.send(heard);
            }
            Input::View(answer) => {
                let view = self.seen.as_ref().map(|(_, seen)| self.view(seen));
                let _ = answer.send(view);
            }
        }
    }

    /// Begins to listen when this node became the leader of a new term, and forgets when it is none.
    fn follow_raft(&mut self) {
        match (&self.seen, self.store.leads()) {
            (Some((led, _)), Some(term)) if *led == term => {}
            (_, Some(term)) => {
                tracing::info!(term, "this node leads");
                self.seen = Some((term, Liveness::new(rt::now().into_std())));
                self.clock_ms = None;
            }
            (Some((term, _)), None) => {
                tracing::info!(term, "this node leads no more");
                self.seen = None;
            }
            (None, None) => {}
        }
    }

    /// Begins to listen anew after this process itself stood still: it was paused, or starved.
    fn forget_after_gap(&mut self, now: Instant) {
        let gap = now.duration_since(std::mem::replace(&mut self.looked_at, now));
        if gap > GAP_MAX
            && let Some((_, seen)) = &mut self.seen
        {
            tracing::info!(ms = gap.as_millis(), "this node stood still and listens anew");
            *seen = Liveness::new(now.into_std());
            self.clock_ms = None;
        }
    }

    fn view(&self, seen: &Liveness) -> FleetView {
        let status = self.store.status();
        let state = self.store.state();
        let now = rt::now().into_std();
        let offsets = clock_offsets(&state, seen, NodeId(status.id), now);
        let fleet = fleet_offset(&offsets, state.nodes.len());
        let node = |id: &NodeId| {
            let report = seen.seen(*id).map(|s| s.report.clone());
            let silent = seen.silent_for(*id, now);
            let silent_ms = silent.map(|s| u64::try_from(s.as_millis()).unwrap_or(u64::MAX));
            let clock_ms = fleet.zip(offsets.get(id)).map(|(f, ahead)| ahead.saturating_sub(f));
            (*id, NodeView { health: seen.health(*id, now), silent_ms, report, clock_ms })
        };
        FleetView {
            leader: status.leader.map(NodeId),
            term: status.term,
            voters: status.voters.iter().copied().map(NodeId).collect(),
            quorum: has_quorum(&status),
            nodes: state.nodes.keys().map(node).collect(),
            removed: false,
        }
    }

    /// Looks at everything and starts what is due, unless the last start is still at work.
    ///
    /// Plans and membership changes run side by side: a VIP must not wait until a dead voter is replaced.
    fn look(&mut self) {
        self.follow_raft();
        let now = rt::now();
        self.forget_after_gap(now);
        let Some((_, seen)) = &self.seen else {
            self.lost = BTreeSet::new();
            return;
        };
        let (status, state) = (self.store.status(), self.store.state());
        // Once per look rather than per report: reports come from every node, ten times a second.
        self.lost = lost(&state, seen, now.into_std());
        let offsets = clock_offsets(&state, seen, NodeId(status.id), now.into_std());
        self.clock_ms = fleet_offset(&offsets, state.nodes.len());
        while self.planning.try_join_next().is_some() {}
        while self.changing.try_join_next().is_some() {}
        if self.planning.is_empty() {
            let mut commands = plan(&state, seen, now.into_std());
            commands.extend(self.key_for_newcomer(&state));
            let (env, store) = (self.env.clone(), self.store.clone());
            let at = self.own.fleet_time(env.wall());
            if !commands.is_empty() {
                self.planning.spawn(rt::here(async move {
                    for command in commands {
                        propose_own(&*env, &store, command, at).await;
                    }
                }));
            }
        }
        if self.changing.is_empty()
            && let Some(change) = self.membership_change((&status, &state), seen, now)
        {
            self.changed_at = now;
            let store = self.store.clone();
            self.changing.spawn(rt::here(async move { change_membership(&store, change).await }));
        }
    }

    fn membership_change(
        &self,
        (status, state): (&RaftStatus, &State),
        seen: &Liveness,
        now: Instant,
    ) -> Option<MembershipChange> {
        let settled = now.duration_since(self.changed_at) >= SETTLE;
        if status.changing || !settled || !has_quorum(status) {
            return None;
        }
        let named = |ids: &BTreeSet<u64>| ids.iter().copied().map(NodeId).collect();
        let membership = Membership {
            me: Some(NodeId(status.id)),
            voters: named(&status.voters),
            joint: status.joint.as_ref().map(named),
            learners: named(&status.learners),
            last_log: status.last_log,
            matched: status.matched.iter().map(|(id, m)| (NodeId(*id), *m)).collect(),
        };
        plan_membership(state, &membership, seen, now.into_std())
    }

    /// Boxes the fleet's key for one node that has not got it.
    fn key_for_newcomer(&self, state: &State) -> Option<Command> {
        let key = self.fleet_key.borrow().clone()?;
        let node = state.nodes.values().find(|n| n.key_box.is_none())?;
        let mut nonce = [0; 24];
        nonce.copy_from_slice(&self.env.random()[..24]);
        let key_box = key.boxed(&node.sealing, self.env.random(), nonce);
        Some(Command::HandKey { node: node.id, key_box })
    }
}

fn has_quorum(status: &RaftStatus) -> bool {
    let leads = status.leads();
    let alone = status.voters.len() == 1;
    leads && (alone || status.quorum_acked.is_some_and(|ago| ago < QUORUM_MAX.max(WINDOW)))
}

/// Wraps a command into a proposal, stamped with the fleet's time.
pub fn proposal<E: Env>(env: &E, by: &str, command: Command, at: UnixMillis) -> Proposal {
    let id = uuid::Builder::from_random_bytes(first16(env.random())).into_uuid();
    Proposal { request: RequestId(id), at, by: by.into(), command }
}

fn first16(bytes: [u8; 32]) -> [u8; 16] {
    std::array::from_fn(|i| bytes[i])
}

async fn propose_own<E: Env, W: Wire>(
    env: &E,
    store: &Store<NodeTransport<W>>,
    command: Command,
    at: UnixMillis,
) {
    let proposal = proposal(env, "leader", command, at);
    match store.propose(&proposal, PROPOSE_MAX).await {
        Ok((_, Outcome::Rejected { rejection })) => {
            tracing::debug!(%rejection, "a plan was overtaken by events");
        }
        Ok(_) => {}
        Err(e) => tracing::info!(error = %e, "a plan was not committed and will be made again"),
    }
}

async fn change_membership<W: Wire>(store: &Store<NodeTransport<W>>, change: MembershipChange) {
    let result: Result<(), ProposeError> = match &change {
        MembershipChange::AddLearners(nodes) => {
            store.add_learners(nodes.iter().map(|(id, uuid)| (id.0, *uuid)).collect()).await
        }
        MembershipChange::Remove(id) => store.remove_learner(id.0).await,
        MembershipChange::SetVoters(set) => {
            store.set_voters(set.iter().map(|id| id.0).collect()).await
        }
        MembershipChange::Transfer(id) => store.transfer_leader(id.0).await,
    };
    match result {
        Ok(()) => tracing::info!(?change, "membership changed"),
        Err(e) => {
            tracing::info!(?change, error = %e, "membership change failed and will be tried again")
        }
    }
}

/// Returns a Unix time for certificates, in seconds.
pub fn seconds(at: UnixMillis) -> u64 {
    at.0 / 1000
}
