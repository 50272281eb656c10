//! The port to the K3s of a machine, as a daemon's driver uses it. Shell.

use std::sync::Arc;
use std::time::Duration;

use k3s::observe::{Binary, Probe, Unit};
use k3s::render::Layout;
use k3s::{Action, Host, HostError, Observed, Spec};
use raft_store::rt::now;

use super::Reach;
use super::machine::Stage;
use super::world::{Kubernetes, State};

/// How long a small durable write takes on a usual machine.
const WRITE: Duration = Duration::from_micros(700);

/// The port to the K3s of a machine.
pub struct SimHost {
    all: Kubernetes,
    number: usize,
}

impl SimHost {
    pub(super) fn new(all: Kubernetes, number: usize) -> Self {
        Self { all, number }
    }
}

impl Host for SimHost {
    async fn observe(&self, spec: &Spec) -> Result<Observed, HostError> {
        let mut state = self.all.lock();
        let reach = &*self.all.reach;
        let disk = state.disk(self.number);
        if let Spec::Run(run) = spec
            && disk.spec.as_deref() != Some(&**run)
        {
            disk.spec = Some(Arc::new((**run).clone()));
        }
        state.go_on(reach, self.number);
        let stage = state.disk(self.number).run.as_ref().map(|r| r.stage);
        if let Some(Stage::Member(cluster) | Stage::Learner(cluster)) = stage {
            state.tend(reach, cluster);
            // What the cluster has come to may concern this very server.
            state.go_on(reach, self.number);
        }
        let probe = probed(&mut state, reach, self.number, spec);
        let disk = state.disk(self.number);
        let binary = match spec {
            Spec::Run(run) => disk.binary(&run.release),
            Spec::Absent | Spec::Waiting { .. } | Spec::Stopped => {
                Binary::Missing { last_error: None, next_try: None }
            }
        };
        Ok(Observed {
            layout: Layout::default(),
            systemd: true,
            binary,
            unit: disk.unit.clone(),
            files: disk.files.clone(),
            marker: disk.marker.clone(),
            foreign: None,
            etcd_data: disk.etcd.is_some(),
            probe,
            credentials: disk.credentials.clone(),
            wiping: disk.wiping.map(|_| "removing what K3s left".to_owned()),
            lacks: Vec::new(),
            log_tail: disk.said.clone(),
            log_bytes: 0,
        })
    }

    async fn perform(&self, action: &Action) -> Result<(), HostError> {
        let mut state = self.all.lock();
        let disk = state.disk(self.number);
        disk.finish();
        match action {
            Action::Fetch(release) => {
                disk.binary = Some((release.clone(), now() + disk.takes(1_000..=4_000)));
            }
            Action::Mark(marker) => disk.marker.clone_from(marker),
            Action::Write(files) => {
                disk.files.extend(files.iter().map(|f| (f.path.clone(), f.sha256())));
            }
            Action::Remove(paths) => disk.files.retain(|path, _| !paths.contains(path)),
            Action::Start(plan) => {
                let spec = disk.spec.clone().filter(|s| s.role.kind() == plan.role);
                let spec = spec.ok_or_else(|| HostError::Refused("no settings to read".into()))?;
                if !matches!(disk.binary(&spec.release), Binary::Present(_)) {
                    let command = format!("systemctl start {}", plan.role.unit());
                    return Err(HostError::Command { command, detail: "no such binary".into() });
                }
                if matches!(disk.unit, Unit::Stopped | Unit::Exited { .. }) {
                    disk.start(plan.role, &plan.fingerprint, spec);
                }
            }
            Action::Stop(role) => disk.stop(*role),
            Action::Kill(_) => disk.kill(),
            Action::Wipe => {
                if disk.wiping.is_none() {
                    disk.wiping = Some((now(), now() + disk.takes(1_000..=3_000)));
                }
            }
            Action::RotateLog => {}
        }
        Ok(())
    }

    async fn durable_write(&self) -> Result<Duration, HostError> {
        Ok(WRITE * self.all.lock().disk(self.number).slow)
    }
}

/// What the health probe says, the truth or the one lie that was ordered.
fn probed(state: &mut State, reach: &dyn Reach, number: usize, spec: &Spec) -> Probe {
    if matches!(spec, Spec::Absent | Spec::Stopped) {
        return Probe::NotYet("K3s is not meant to run".into());
    }
    let disk = state.disk(number);
    let Some(run) = &disk.run else { return Probe::NotReady("K3s does not run".into()) };
    let (stage, node) = (run.stage, run.spec.node_name.clone());
    let lies = std::mem::take(&mut disk.lies);
    let truth = match stage {
        Stage::Worker(cluster) => worker(state, reach, number, cluster, &node),
        _ => server(state, reach, number),
    };
    match truth {
        Probe::Ready if lies => Probe::NotReady("https://127.0.0.1:6443 does not answer".into()),
        Probe::NotReady(_) | Probe::NotYet(_) if lies => Probe::Ready,
        truth => truth,
    }
}

/// What a server's own API says, and what is known of anything that has not joined yet.
fn server(state: &mut State, reach: &dyn Reach, number: usize) -> Probe {
    if state.serves(reach, number).is_some() {
        return Probe::Ready;
    }
    let disk = state.disk(number);
    if let Some(why) = disk.run.as_ref().and_then(|r| r.refused.clone()) {
        return Probe::NotReady(why);
    }
    if disk.credentials.kubeconfig.is_none() {
        return Probe::NotYet("it has not written its kubeconfig yet".into());
    }
    Probe::NotReady(
        "GET /readyz was refused with 500: [-]etcd failed: reason withheld, [-]etcd-readiness failed: reason withheld".into(),
    )
}

/// What a worker's own Node says.
fn worker(
    state: &mut State,
    reach: &dyn Reach,
    number: usize,
    cluster: usize,
    node: &str,
) -> Probe {
    let not = |why: &str| Probe::NotReady(why.to_owned());
    let disk = state.disk(number);
    if disk.never_ready {
        return not("its Node is not ready: container runtime network not ready");
    }
    if disk.run.as_ref().is_some_and(|r| r.ready_at > now()) {
        return not("its Node is not ready: no condition yet");
    }
    if state.served_by(reach, cluster, number).is_none() {
        return not("https://127.0.0.1:6444 does not answer: context deadline exceeded");
    }
    let here = |n: &&super::cluster::Node| n.machine == number;
    let found = state.clusters.get(cluster).and_then(|c| c.nodes.get(node)).filter(here);
    if found.is_some() { Probe::Ready } else { not("its Node is not there yet") }
}
