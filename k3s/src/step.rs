//! The next actions on the way from what was seen to what should be. Pure.

use std::path::PathBuf;
use std::time::Duration;

use tokio::time::Instant;

use crate::observe::{Binary, Installed, Marker, Observed, Phase, Probe, Unit};
use crate::release::Release;
use crate::render::{FileSpec, Rendered, render};
use crate::spec::{Role, RoleKind, RunSpec, Spec};

/// How long K3s may take to end before it is killed.
const STOP_PATIENCE: Duration = Duration::from_secs(30);
/// How often to look while something is under way.
const SOON: Duration = Duration::from_millis(500);
/// How often to look at a healthy K3s.
const CALM: Duration = Duration::from_secs(2);
/// What an agent says whose password is not the one that its server keeps; not always as an error.
const PASSWORD_REJECTED: &str = "Node password rejected";
/// How many of the last lines of a log tell of an agent that is being refused.
const REFUSED_LINES: usize = 6;
/// The size at which a supervised process' log is put aside, in bytes.
const LOG_LIMIT: u64 = 64 << 20;

/// One change of the machine; each may be repeated without harm.
#[derive(Debug, Clone, PartialEq)]
pub enum Action {
    /// Copy or download, check, and ask the binary for its version and flags; in the background.
    Fetch(Release),
    /// Remember this on disk, or forget.
    Mark(Option<Marker>),
    /// Write these files, each whole or not at all.
    Write(Vec<FileSpec>),
    /// Remove these files.
    Remove(Vec<PathBuf>),
    /// Start K3s, with settings of this fingerprint.
    Start(StartPlan),
    /// Ask K3s' main process to end; pods live on.
    Stop(RoleKind),
    /// Kill K3s' main process.
    Kill(RoleKind),
    /// End pods, remove everything that K3s left, the binaries and our own files; in the background. Forgets the marker last.
    Wipe,
    /// Put a supervised process' log aside.
    RotateLog,
}

/// How K3s is started.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StartPlan {
    /// The role.
    pub role: RoleKind,
    /// The binary.
    pub binary: PathBuf,
    /// Of the settings in force.
    pub fingerprint: String,
}

/// What to do now, what to report, and when to look again.
#[derive(Debug, Clone, PartialEq)]
pub struct Step {
    /// In this order; the first that fails ends the round.
    pub actions: Vec<Action>,
    /// Where it is on its way.
    pub phase: Phase,
    /// What blocks, for people.
    pub waiting_for: Option<String>,
    /// Settings that were left out, each with its reason.
    pub left_out: Vec<String>,
    /// When to look again at the latest.
    pub wake: Instant,
}

impl Step {
    fn new(phase: Phase, now: Instant) -> Self {
        Self {
            actions: Vec::new(),
            phase,
            waiting_for: None,
            left_out: Vec::new(),
            wake: now + SOON,
        }
    }

    fn waiting(mut self, reason: impl Into<String>) -> Self {
        self.waiting_for = Some(reason.into());
        self
    }

    fn acting(mut self, action: Action) -> Self {
        self.actions.push(action);
        self
    }

    fn calm(mut self, now: Instant) -> Self {
        self.wake = now + CALM;
        self
    }
}

/// The next actions: at most one stage further, so that a host that dies between two of them goes on where it was.
pub fn step(spec: &Spec, seen: &Observed, now: Instant) -> Step {
    match spec {
        Spec::Absent => absent(seen, now),
        Spec::Stopped => stopped(seen, now),
        Spec::Waiting { reason } => waiting(reason, seen, now),
        Spec::Run(run) => running(run, seen, now),
    }
}

fn absent(seen: &Observed, now: Instant) -> Step {
    // Without a marker nothing here is ours; a K3s of somebody else is left alone.
    if seen.marker.is_none() {
        return Step::new(Phase::Absent, now).calm(now);
    }
    wiped(seen, now, "removal")
}

/// On the way to nothing: stop, then wipe.
fn wiped(seen: &Observed, now: Instant, why: &str) -> Step {
    if let Some(under_way) = &seen.wiping {
        return Step::new(Phase::Stopping, now).waiting(format!("{why}: {under_way}"));
    }
    if let Some(stopping) = halt(seen, now) {
        return stopping;
    }
    Step::new(Phase::Stopping, now)
        .waiting(format!("{why}: removing what K3s left"))
        .acting(Action::Wipe)
}

/// The step of a stop, `None` once nothing runs.
fn halt(seen: &Observed, now: Instant) -> Option<Step> {
    match &seen.unit {
        Unit::Stopped => None,
        Unit::Exited { role, .. } => {
            Some(Step::new(Phase::Stopping, now).acting(Action::Stop(*role)))
        }
        Unit::Running { role, .. } => {
            Some(Step::new(Phase::Stopping, now).waiting("K3s to end").acting(Action::Stop(*role)))
        }
        Unit::Stopping { role, since } => {
            let spent = now.saturating_duration_since(*since);
            let step = Step::new(Phase::Stopping, now).waiting(format!(
                "K3s to end, {} s so far (killed after {} s)",
                spent.as_secs(),
                STOP_PATIENCE.as_secs()
            ));
            Some(if spent >= STOP_PATIENCE { step.acting(Action::Kill(*role)) } else { step })
        }
    }
}

fn stopped(seen: &Observed, now: Instant) -> Step {
    let ours = seen.marker.as_ref().and_then(|_| halt(seen, now));
    ours.unwrap_or_else(|| Step::new(Phase::Stopped, now).calm(now))
}

fn waiting(reason: &str, seen: &Observed, now: Instant) -> Step {
    let phase = match (&seen.unit, &seen.probe) {
        (Unit::Running { .. }, Probe::Ready) => Phase::Ready,
        (Unit::Running { .. }, _) => Phase::Joining,
        _ => Phase::Installing,
    };
    Step::new(phase, now).waiting(reason).calm(now)
}

fn running(spec: &RunSpec, seen: &Observed, now: Instant) -> Step {
    if let (Some(foreign), None) = (&seen.foreign, &seen.marker) {
        let reason = format!(
            "{foreign}, which Skein did not install; remove it (k3s-uninstall.sh), or take the role from this node"
        );
        return failed(reason, now);
    }
    let kind = spec.role.kind();
    let strange = seen
        .marker
        .as_ref()
        .is_some_and(|marker| marker.incarnation != spec.incarnation || marker.role != kind);
    if strange || seen.wiping.is_some() {
        return wiped(seen, now, "an earlier role of this node");
    }
    if let Some(step) = other_role(seen, kind, now) {
        return step;
    }
    let established = seen.marker.as_ref().is_some_and(|marker| marker.established);
    if established && !seen.etcd_data && spec.role == (Role::Server { join: None }) {
        let reason = "etcd's data of this server are gone; started again it would found a second cluster. Restore them, or remove the node from the cluster and assign it anew";
        return failed(reason.to_owned(), now);
    }
    match &seen.binary {
        Binary::Present(binary) => with_binary(spec, binary, seen, established, now),
        Binary::Missing { .. } | Binary::Fetching { .. } => fetching(spec, seen, now),
    }
}

fn failed(reason: String, now: Instant) -> Step {
    Step::new(Phase::Failed { reason: reason.clone() }, now).waiting(reason).calm(now)
}

fn other_role(seen: &Observed, kind: RoleKind, now: Instant) -> Option<Step> {
    let role = match &seen.unit {
        Unit::Running { role, .. } | Unit::Exited { role, .. } | Unit::Stopping { role, .. } => {
            *role
        }
        Unit::Stopped => return None,
    };
    (role != kind).then(|| halt(seen, now)).flatten()
}

fn fetching(spec: &RunSpec, seen: &Observed, now: Instant) -> Step {
    let phase = match (&seen.unit, &seen.probe) {
        (Unit::Running { .. }, Probe::Ready) => Phase::Ready,
        _ => Phase::Installing,
    };
    let step = Step::new(phase, now);
    match &seen.binary {
        Binary::Fetching { progress } => {
            step.waiting(format!("K3s from {}: {progress}", spec.release))
        }
        Binary::Missing { last_error, next_try } => {
            let last = last_error
                .as_deref()
                .map(|error| format!("; last error: {error}"))
                .unwrap_or_default();
            match next_try.filter(|next| *next > now) {
                Some(next) => {
                    let wait = next.saturating_duration_since(now).as_secs() + 1;
                    step.waiting(format!("K3s from {}{last}; next try in {wait} s", spec.release))
                }
                None => step
                    .waiting(format!("K3s from {}{last}", spec.release))
                    .acting(Action::Fetch(spec.release.clone())),
            }
        }
        Binary::Present(_) => step,
    }
}

fn with_binary(
    spec: &RunSpec,
    binary: &Installed,
    seen: &Observed,
    established: bool,
    now: Instant,
) -> Step {
    let rendered = render(spec, binary, &seen.layout, seen.systemd, established);
    let mut step = act(spec, binary, seen, &rendered, established, now);
    if seen.log_bytes > LOG_LIMIT {
        step.actions.push(Action::RotateLog);
    }
    step.left_out = rendered.left_out;
    step
}

fn act(
    spec: &RunSpec,
    binary: &Installed,
    seen: &Observed,
    rendered: &Rendered,
    established: bool,
    now: Instant,
) -> Step {
    let kind = spec.role.kind();
    let mut actions = Vec::new();
    if seen.marker.is_none() {
        actions.push(Action::Mark(Some(marker(spec, false))));
    }
    actions.extend(files(spec, binary, seen, rendered));
    let plan = StartPlan {
        role: kind,
        binary: binary.path.clone(),
        fingerprint: rendered.fingerprint.clone(),
    };
    let mut step = match &seen.unit {
        Unit::Stopped => {
            actions.push(Action::Start(plan));
            Step::new(rising(spec, established), now).waiting("K3s to start")
        }
        Unit::Exited { how, restarts, next_try, .. } => {
            let wait = next_try.saturating_duration_since(now);
            if wait.is_zero() {
                actions.push(Action::Start(plan));
            }
            let text = format!(
                "K3s to stay up: it ended ({how}), {restarts} restart(s) so far, next in {} s{}{}",
                wait.as_secs(),
                lacks(seen),
                said(spec, seen, true)
            );
            Step::new(rising(spec, established), now).waiting(text)
        }
        Unit::Running { fingerprint, .. }
            if fingerprint.as_deref() == Some(rendered.fingerprint.as_str()) =>
        {
            return health(spec, seen, established, actions, now);
        }
        Unit::Running { role, .. } => {
            actions.push(Action::Stop(*role));
            Step::new(rising(spec, established), now)
                .waiting("K3s to end, for a start with changed settings")
        }
        Unit::Stopping { .. } => {
            let mut step = halt(seen, now).unwrap_or_else(|| Step::new(Phase::Stopping, now));
            step.phase = rising(spec, established);
            step
        }
    };
    step.actions.splice(0..0, actions);
    step
}

fn marker(spec: &RunSpec, established: bool) -> Marker {
    Marker {
        incarnation: spec.incarnation.clone(),
        role: spec.role.kind(),
        established,
        iface: spec.iface.clone(),
        pods: spec.cluster_cidr.clone(),
    }
}

/// What has to be written or removed before a start.
fn files(spec: &RunSpec, binary: &Installed, seen: &Observed, rendered: &Rendered) -> Vec<Action> {
    let mut actions = Vec::new();
    let differs = |file: &&FileSpec| seen.files.get(&file.path) != Some(&file.sha256());
    let stale: Vec<PathBuf> = (seen.layout.ours().into_iter())
        .filter(|path| {
            seen.files.contains_key(path) && !rendered.files.iter().any(|file| file.path == *path)
        })
        .collect();
    if !stale.is_empty() {
        actions.push(Action::Remove(stale));
    }
    let mut write: Vec<FileSpec> = rendered.files.iter().filter(differs).cloned().collect();
    let founding =
        spec.role == (Role::Server { join: None }) && !seen.etcd_data && seen.unit == Unit::Stopped;
    if let (true, Some(ca)) = (founding, &spec.ca) {
        let laid = ca.files(binary.version.takes_ca_chain()).into_iter();
        let laid = laid.map(|(path, content)| FileSpec {
            path: seen.layout.tls().join(path),
            mode: 0o600,
            content,
        });
        write.extend(laid.filter(|file| differs(&file)));
    }
    if !write.is_empty() {
        actions.push(Action::Write(write));
    }
    actions
}

fn health(
    spec: &RunSpec,
    seen: &Observed,
    established: bool,
    mut actions: Vec<Action>,
    now: Instant,
) -> Step {
    let kind = spec.role.kind();
    let mut step = match &seen.probe {
        Probe::Ready if kind == RoleKind::Server && !complete(seen) => {
            Step::new(rising(spec, established), now)
                .waiting("K3s, which answers, to write its tokens and kubeconfig")
        }
        Probe::Ready if established => Step::new(Phase::Ready, now).calm(now),
        Probe::Ready => {
            actions.push(Action::Mark(Some(marker(spec, true))));
            let founder = spec.role == (Role::Server { join: None });
            Step::new(if founder { Phase::Bootstrapped } else { Phase::Ready }, now)
        }
        Probe::NotYet(why) | Probe::NotReady(why) => Step::new(rising(spec, established), now)
            .waiting(format!("K3s to be ready: {why}{}{}", lacks(seen), said(spec, seen, false))),
    };
    step.actions.splice(0..0, actions);
    step
}

fn complete(seen: &Observed) -> bool {
    let found = &seen.credentials;
    found.server_token.is_some() && found.kubeconfig.is_some() && found.server_ca.is_some()
}

fn rising(spec: &RunSpec, established: bool) -> Phase {
    match &spec.role {
        _ if established => Phase::Degraded,
        Role::Server { join: None } => Phase::Starting,
        Role::Server { .. } | Role::Agent { .. } => Phase::Joining,
    }
}

/// Tells whether K3s says that its server knows this node under another password: `/etc/rancher/node/password` was lost.
///
/// Its Node object still looks ready for most of a minute then. An agent that is refused says little else; one that went on
/// has soon said much more.
pub(crate) fn password_rejected(log_tail: &[String]) -> bool {
    log_tail.iter().rev().take(REFUSED_LINES).any(|line| line.contains(PASSWORD_REJECTED))
}

/// What this host lacks, as a clause: before anything that K3s says itself, since it is often the cause.
fn lacks(seen: &Observed) -> String {
    if seen.lacks.is_empty() {
        return String::new();
    }
    format!("; this host lacks {}", seen.lacks.join(" and "))
}

/// The last line of K3s' log that tells of a failure, without secrets and control characters. Only a K3s that `ended` is
/// quoted without one: what a running one says last is seldom why it is not ready.
fn said(spec: &RunSpec, seen: &Observed, ended: bool) -> String {
    let telling = |line: &&String| {
        let words = ["level=fatal", "level=error", "panic", PASSWORD_REJECTED];
        words.iter().any(|word| line.contains(word))
    };
    let any = || seen.log_tail.last().filter(|_| ended);
    let Some(line) = seen.log_tail.iter().rev().find(telling).or_else(any) else {
        return String::new();
    };
    let mut line: String = line.chars().filter(|letter| !letter.is_control()).take(300).collect();
    let join = match &spec.role {
        Role::Server { join } => join.as_ref(),
        Role::Agent { join } => Some(join),
    };
    for secret in
        [spec.server_token.as_ref(), spec.agent_token.as_ref(), join.map(|join| &join.token)]
            .into_iter()
            .flatten()
    {
        let bare = secret.expose().rsplit(':').next().unwrap_or_default();
        if bare.len() >= 4 {
            line = line.replace(bare, "..");
        }
    }
    format!("; its log says: {line}")
}
