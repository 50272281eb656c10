//! Keeps this host's K3s as the state says, and reports how far it is. Shell.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use api::secrets::{CLUSTER_SECRETS, ClusterSecrets};
use k3s::Host as _;
use raft_store::apply::{Command, ReportPhase};
use raft_store::model::{Assignment, Cluster, Phase, Role, Sealed, State};
use raft_store::raft::Published;
use raft_store::rt::watch;
use raft_store::rt::{self, sleep, timeout};
use tokio::time::Instant;

use super::Shared;
use super::founding;
use crate::env::Env;
use crate::own::Disk;
use crate::project::{Founding, K3sInputs, endpoint_addresses, k3s_spec};

/// The shortest pause between two turns.
const PAUSE: Duration = Duration::from_millis(200);

/// The agent of K3s; it alone drives K3s on this host.
pub struct K3sAgent<E: Env> {
    shared: Shared<E>,
    driver: k3s::Driver<E::Host>,
    release: k3s::Release,
    dir: PathBuf,
    left: watch::Receiver<bool>,
    opened: Option<(Sealed, Arc<ClusterSecrets>)>,
    done: Option<Done>,
}

/// What the last turn was about. The state changes far more often than this, and a host need not be looked at for that.
struct Done {
    assignment: Option<Assignment>,
    cluster: Option<Cluster>,
    spec: k3s::Spec,
    wake: Instant,
}

impl Done {
    /// Whether there is nothing to do at `now` for these.
    fn covers(
        &self,
        (a, c, spec): (Option<&Assignment>, Option<&Cluster>, &k3s::Spec),
        now: Instant,
    ) -> bool {
        let same = self.assignment.as_ref() == a && self.cluster.as_ref() == c;
        same && self.spec == *spec && now < self.wake
    }
}

impl<E: Env> K3sAgent<E> {
    /// Makes the agent; `left` says when a leaving server is out of etcd.
    pub fn new(
        shared: Shared<E>,
        release: k3s::Release,
        dir: PathBuf,
        left: watch::Receiver<bool>,
    ) -> Self {
        let driver = k3s::Driver::new(shared.env.host());
        Self { shared, driver, release, dir, left, opened: None, done: None }
    }

    /// Runs until the daemon ends.
    pub async fn run(mut self) {
        loop {
            let Published { index, state } = self.shared.store.published();
            let now = rt::now();
            let wake = if state.fleet.is_some() {
                self.turn(&state, now).await
            } else {
                now + Duration::from_secs(1)
            };
            // A state that is kept has to be copied when it changes.
            drop(state);
            sleep(PAUSE).await;
            let left = wake.saturating_duration_since(rt::now());
            let _ = timeout(left, self.shared.store.changed(index)).await;
        }
    }

    async fn turn(&mut self, state: &State, now: Instant) -> Instant {
        let node = state.nodes.get(&self.shared.me);
        let assignment = node.and_then(|n| n.assignment.as_ref());
        let cluster = self.shared.own_cluster(state);
        let secrets = self.secrets(cluster);
        let founding = match self.founding(state, cluster, assignment) {
            Ok(founding) => founding,
            Err(why) => {
                self.shared.own.update(|own| own.k3s_waits = Some(why));
                self.done = None;
                return now + Duration::from_secs(2);
            }
        };
        self.measure_disk(cluster, assignment).await;
        let left = *self.left.borrow();
        let inputs = K3sInputs {
            me: self.shared.me,
            release: &self.release,
            secrets: secrets.as_deref(),
            founding: founding.as_ref(),
            left,
        };
        let mut spec = k3s_spec(state, &inputs);
        if self.shared.own.removed() {
            // Wiped when the machine gets another role; what an operator may want to save is kept until then.
            spec = k3s::Spec::Stopped;
        }
        let about = (assignment, cluster, &spec);
        if let Some(done) = self.done.as_ref().filter(|done| done.covers(about, now)) {
            return done.wake;
        }
        let turn = self.driver.turn(&spec, now).await;
        self.tell(assignment, &turn);
        let told = match assignment {
            Some(a) => self.report(state, cluster, a, &spec, &turn, founding.as_ref()).await,
            None => true,
        };
        let (assignment, cluster, wake) = (assignment.cloned(), cluster.cloned(), turn.wake);
        // What was not taken is told again after the next change, such as a leader's first.
        self.done = told.then_some(Done { assignment, cluster, spec, wake });
        wake
    }

    /// Opens the cluster's secrets, which seldom change; they are forgotten once there is nothing to open.
    fn secrets(&mut self, cluster: Option<&Cluster>) -> Option<Arc<ClusterSecrets>> {
        let sealed = cluster.and_then(|c| c.secrets.as_ref());
        let known = self.opened.take().filter(|(of, _)| Some(of) == sealed);
        self.opened = match (known, cluster, sealed) {
            (Some(known), _, _) => Some(known),
            (None, Some(cluster), Some(sealed)) => {
                let opened = self.shared.secrets(cluster);
                opened.map(|opened| (sealed.clone(), Arc::new(opened)))
            }
            _ => None,
        };
        self.opened.as_ref().map(|(_, opened)| opened.clone())
    }

    /// Measures the disk under K3s once for each cluster that this server may found, before anything of K3s loads it.
    async fn measure_disk(&self, cluster: Option<&Cluster>, a: Option<&Assignment>) {
        let server = a.is_some_and(|a| a.role == Role::K3sServer && !a.leaving);
        let due = server && cluster.is_some_and(|c| c.secrets.is_none() && c.etcd.is_none());
        let own = &self.shared.own;
        if !due {
            own.update(|own| own.disk = None);
            return;
        }
        if own.disk().is_some() {
            return;
        }
        let disk = match self.driver.host().durable_write().await {
            Ok(took) => Disk::Sync(u32::try_from(took.as_micros()).unwrap_or(u32::MAX)),
            Err(error) => {
                tracing::warn!(%error, "the disk was not measured; etcd keeps K3s' timers");
                Disk::Unmeasured
            }
        };
        own.update(|own| own.disk = Some(disk));
    }

    /// What this node brings as the founder, until the state has it.
    fn founding(
        &self,
        state: &State,
        cluster: Option<&Cluster>,
        a: Option<&Assignment>,
    ) -> Result<Option<Founding>, String> {
        let (Some(c), Some(a), Some(node)) = (cluster, a, state.nodes.get(&self.shared.me)) else {
            return Ok(None);
        };
        let founds = c.bootstrap == Some(self.shared.me) && a.role == Role::K3sServer && !a.leaving;
        if !founds || c.secrets.is_some() {
            return Ok(None);
        }
        let key = self.shared.fleet_key.borrow().clone();
        let key = key.ok_or("the leader to hand over the fleet's key")?;
        let incarnation = format!("{}-{}", node.uuid, a.order);
        let env = &self.shared.env;
        let now_s = i64::try_from(env.wall().0 / 1000).unwrap_or(i64::MAX);
        let make_ca = || env.make_cluster_ca(c.name.as_str(), now_s);
        let seeds = (make_ca, [env.random(), env.random()], self.shared.nonce());
        founding::load_or_make(env.files(), &self.dir, &incarnation, &key, seeds).map(Some)
    }

    fn tell(&self, a: Option<&Assignment>, turn: &k3s::Turn) {
        let server = a.is_some_and(|a| a.role == Role::K3sServer && !a.leaving);
        let ready = turn.health.ready.filter(|_| server);
        let detail = (ready == Some(false)).then(|| turn.health.detail.clone());
        let waits = a.and(turn.waiting_for.clone());
        self.shared.own.update(|own| {
            own.api_ready = ready;
            own.api_detail = detail;
            own.k3s_waits = waits;
            own.password_rejected = turn.password_rejected;
        });
    }

    /// Reports what differs from what is agreed; returns whether nothing is left to be told.
    async fn report(
        &self,
        state: &State,
        cluster: Option<&Cluster>,
        a: &Assignment,
        spec: &k3s::Spec,
        turn: &k3s::Turn,
        founding: Option<&Founding>,
    ) -> bool {
        let Some(phase) = next_phase(a, cluster, spec, turn) else {
            return true;
        };
        let captured = (phase == Phase::Bootstrapped).then_some(()).and(turn.captured.as_ref());
        let secrets = match (captured, founding) {
            (Some(c), Some(f)) => self.seal(c, f),
            _ => None,
        };
        if phase == Phase::Bootstrapped && secrets.is_none() {
            return false;
        }
        let message = match &turn.phase {
            k3s::Phase::Failed { reason } => Some(reason.clone()),
            _ => None,
        };
        let version = turn.version.as_deref().and_then(k3s::Version::parse);
        let addresses = cluster.map(|c| endpoint_addresses(state, c, self.shared.me));
        let endpoint = addresses.and_then(|a| k3s::endpoint(&a, version.as_ref()));
        let report = ReportPhase {
            node: self.shared.me,
            order: a.order,
            phase,
            message,
            version: turn.version.clone(),
            endpoint,
            secrets,
        };
        self.shared.propose(Command::ReportPhase(report)).await
    }

    fn seal(&self, c: &k3s::Captured, f: &Founding) -> Option<Sealed> {
        let key = self.shared.fleet_key.borrow().clone()?;
        let secrets = ClusterSecrets {
            server_token: c.server_token.expose().to_owned(),
            agent_token: c.agent_token.expose().to_owned(),
            agent_secret: f.agent_secret.expose().to_owned(),
            kubeconfig: c.kubeconfig.expose().to_owned(),
            ca: founding::to_json(f),
        };
        let bytes = zeroize::Zeroizing::new(serde_json::to_vec(&secrets).ok()?);
        Some(key.seal(CLUSTER_SECRETS, &bytes, self.shared.nonce()))
    }
}

/// Decides which phase to report, if it differs from the one that is agreed.
fn next_phase(
    a: &Assignment,
    cluster: Option<&Cluster>,
    spec: &k3s::Spec,
    turn: &k3s::Turn,
) -> Option<Phase> {
    let joins = matches!(spec, k3s::Spec::Run(run) if !matches!(run.role, k3s::Role::Server { join: None }));
    let has_secrets = cluster.is_some_and(|c| c.secrets.is_some());
    let phase = match &turn.phase {
        k3s::Phase::Absent if a.leaving => Phase::Stopped,
        _ if a.leaving => return None,
        k3s::Phase::Absent => return None,
        k3s::Phase::Stopped if matches!(spec, k3s::Spec::Stopped) => Phase::Stopped,
        k3s::Phase::Stopping | k3s::Phase::Stopped => return None,
        k3s::Phase::Failed { .. } => Phase::Failed,
        _ if !matches!(spec, k3s::Spec::Run(_)) => return None,
        _ if a.phase == Phase::Assigned => Phase::Installing,
        k3s::Phase::Installing => Phase::Installing,
        k3s::Phase::Starting | k3s::Phase::Joining if joins => Phase::JoinRequested,
        k3s::Phase::Starting | k3s::Phase::Joining => Phase::Installing,
        k3s::Phase::Bootstrapped | k3s::Phase::Ready if joins && a.phase == Phase::Installing => {
            Phase::JoinRequested
        }
        k3s::Phase::Bootstrapped | k3s::Phase::Ready if !joins && !has_secrets => {
            Phase::Bootstrapped
        }
        k3s::Phase::Bootstrapped => return None,
        k3s::Phase::Ready => Phase::Ready,
        k3s::Phase::Degraded => return None,
    };
    let upgraded = phase == Phase::Ready && turn.version.is_some() && turn.version != a.version;
    let goes_back =
        a.phase == Phase::Ready && matches!(phase, Phase::Installing | Phase::JoinRequested);
    let again = phase == Phase::Bootstrapped && !has_secrets;
    (!goes_back && (phase != a.phase || upgraded || again)).then_some(phase)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_turn_is_due_when_it_is_about_something_else_or_its_time_has_come() {
        let (now, spec) = (rt::now(), k3s::Spec::Stopped);
        let wake = now + Duration::from_secs(1);
        let done = Done { assignment: None, cluster: None, spec: spec.clone(), wake };
        assert!(done.covers((None, None, &spec), now));
        assert!(!done.covers((None, None, &k3s::Spec::Absent), now));
        assert!(!done.covers((None, None, &spec), wake));
    }
}
