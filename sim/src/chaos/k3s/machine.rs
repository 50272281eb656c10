//! What K3s has on one machine: it outlives the daemon, and the files also K3s itself. Shell: it asks the clock.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use k3s::observe::{Binary, Credentials, Installed, Marker, Unit};
use k3s::{Release, RoleKind, RunSpec, Version};
use raft_store::rt::now;
use tokio::time::Instant;

use super::cluster::VERSION;
use super::host::SimHost;
use super::world::Kubernetes;
use crate::chaos::draw::Draw;

/// The longest pause before a restart, and the run after which pauses begin anew.
const BACKOFF_MAX: Duration = Duration::from_secs(30);
const GOOD_RUN: Duration = Duration::from_secs(60);
/// How many lines of a log are looked at.
const TAIL: usize = 8;

/// K3s on one machine.
#[derive(Debug)]
pub(super) struct Disk {
    pub(super) draw: Draw,
    pub(super) unit: Unit,
    /// There while the unit runs.
    pub(super) run: Option<Run>,
    /// The settings that were seen last: what the next start reads.
    pub(super) spec: Option<Arc<RunSpec>>,
    pub(super) files: BTreeMap<PathBuf, String>,
    pub(super) marker: Option<Marker>,
    /// The binary, and when it is whole.
    pub(super) binary: Option<(Release, Instant)>,
    /// Since when and until when a wipe goes on.
    pub(super) wiping: Option<(Instant, Instant)>,
    stops_at: Option<Instant>,
    /// The cluster whose etcd data lie here, and the member.
    pub(super) etcd: Option<(usize, u64)>,
    pub(super) credentials: Credentials,
    pub(super) password: u64,
    restarts: u32,
    pub(super) said: Vec<String>,
    pub(super) slow: u32,
    pub(super) never_ready: bool,
    pub(super) lies: bool,
}

/// A started K3s.
#[derive(Debug)]
pub(super) struct Run {
    pub(super) spec: Arc<RunSpec>,
    began: Instant,
    pub(super) stage: Stage,
    /// When its next step is due.
    pub(super) due: Instant,
    /// When it is ready at the earliest.
    pub(super) ready_at: Instant,
    /// Whether its kubelet has registered since the start.
    pub(super) registered: bool,
    /// Why its last try to join failed.
    pub(super) refused: Option<String>,
}

/// How far a started K3s is; with the cluster's number, once it is part of one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    Starting,
    Joining,
    /// In etcd's list under this id, but without data yet.
    Added(usize, u64),
    Learner(usize),
    Member(usize),
    Worker(usize),
}

impl Disk {
    pub(super) fn new(number: usize, seed: u64) -> Self {
        let place = u64::try_from(number).unwrap_or(u64::MAX);
        let mut draw = Draw::new(seed, "k3s", &[place]);
        let password = draw.number();
        Self {
            draw,
            unit: Unit::Stopped,
            run: None,
            spec: None,
            files: BTreeMap::new(),
            marker: None,
            binary: None,
            wiping: None,
            stops_at: None,
            etcd: None,
            credentials: Credentials::default(),
            password,
            restarts: 0,
            said: Vec::new(),
            slow: 1,
            never_ready: false,
            lies: false,
        }
    }

    pub(super) fn takes(&mut self, ms: RangeInclusive<u64>) -> Duration {
        Duration::from_millis(self.draw.within(ms)) * self.slow
    }

    pub(super) fn say(&mut self, line: impl Into<String>) {
        self.said.push(line.into());
        let old = self.said.len().saturating_sub(TAIL);
        self.said.drain(..old);
    }

    /// Goes to a stage; the next step is due after a while from then.
    pub(super) fn enter(&mut self, stage: Stage, at: Instant, ms: RangeInclusive<u64>) {
        let due = at + self.takes(ms);
        if let Some(run) = &mut self.run {
            (run.stage, run.due, run.ready_at) = (stage, due, due);
            run.refused = None;
        }
    }

    pub(super) fn start(&mut self, role: RoleKind, fingerprint: &str, spec: Arc<RunSpec>) {
        if matches!(self.unit, Unit::Exited { .. }) {
            self.restarts = self.restarts.saturating_add(1);
        }
        let began = now();
        let due = began + self.takes(1_500..=5_000);
        self.unit = Unit::Running { role, fingerprint: Some(fingerprint.to_owned()) };
        self.run = Some(Run {
            spec,
            began,
            stage: Stage::Starting,
            due,
            ready_at: due,
            registered: false,
            refused: None,
        });
    }

    pub(super) fn stop(&mut self, role: RoleKind) {
        match self.unit {
            Unit::Running { .. } => {
                self.unit = Unit::Stopping { role, since: now() };
                self.stops_at = Some(now() + self.takes(500..=1_500));
                self.run = None;
            }
            Unit::Exited { .. } => self.kill(),
            Unit::Stopping { .. } | Unit::Stopped => {}
        }
    }

    pub(super) fn kill(&mut self) {
        self.unit = Unit::Stopped;
        self.run = None;
        self.stops_at = None;
        self.restarts = 0;
    }

    /// Lets K3s end by itself.
    pub(super) fn end(&mut self, how: &str) {
        let (Unit::Running { role, .. }, Some(run)) = (&self.unit, self.run.take()) else { return };
        if now().saturating_duration_since(run.began) >= GOOD_RUN {
            self.restarts = 0;
        }
        let pause = Duration::from_secs(1 << self.restarts.min(5)).min(BACKOFF_MAX);
        self.unit = Unit::Exited {
            role: *role,
            how: how.to_owned(),
            restarts: self.restarts,
            next_try: now() + pause,
        };
    }

    pub(super) fn fatal(&mut self, why: &str) {
        self.say(format!("level=fatal msg=\"{why}\""));
        self.end("exit status 1");
    }

    /// Ends what needed only time: a stop, a wipe.
    pub(super) fn finish(&mut self) {
        if self.stops_at.is_some_and(|at| at <= now()) {
            self.kill();
        }
        if self.wiping.is_some_and(|(_, until)| until <= now()) {
            self.wiping = None;
            self.kill();
            self.lose_data();
            self.marker = None;
        }
    }

    /// Takes all that K3s made; a wipe forgets the marker after it.
    fn lose_data(&mut self) {
        self.files.clear();
        self.etcd = None;
        self.credentials = Credentials::default();
        self.binary = None;
        self.said.clear();
    }

    /// Ends what a daemon did in the background, half-way where it was.
    pub(super) fn interrupt(&mut self) {
        self.finish();
        self.binary = self.binary.take().filter(|(_, at)| *at <= now());
        if let Some((since, until)) = self.wiping.take()
            && now().saturating_duration_since(since) * 2 > until.saturating_duration_since(since)
        {
            self.lose_data();
        }
    }

    pub(super) fn binary(&self, release: &Release) -> Binary {
        let missing = Binary::Missing { last_error: None, next_try: None };
        match self.binary.as_ref().filter(|(fetched, _)| fetched == release) {
            None => missing,
            Some((_, at)) if *at > now() => Binary::Fetching { progress: "half".into() },
            Some(_) => {
                Version::parse(VERSION).map_or(missing, |v| Binary::Present(Box::new(installed(v))))
            }
        }
    }
}

fn installed(version: Version) -> Installed {
    const SERVER: &str = "advertise-address agent-token cluster-cidr cluster-init config data-dir disable \
        disable-network-policy etcd-arg flannel-backend flannel-iface flannel-ipv6-masq kubelet-arg node-ip node-name \
        secrets-encryption server service-cidr tls-san token write-kubeconfig write-kubeconfig-mode";
    const AGENT: &str = "data-dir flannel-iface kubelet-arg node-ip node-name server token";
    let set =
        |flags: &str| -> BTreeSet<String> { flags.split_whitespace().map(str::to_owned).collect() };
    Installed {
        path: "/var/lib/skein/k3s/bin/aa/k3s".into(),
        sha256: "aa".into(),
        version,
        server_flags: set(SERVER),
        agent_flags: set(AGENT),
    }
}

/// The K3s of a machine, as the world handles it.
#[derive(Clone)]
pub struct SimK3s {
    all: Kubernetes,
    number: usize,
}

impl SimK3s {
    pub(super) fn new(all: Kubernetes, number: usize) -> Self {
        Self { all, number }
    }

    fn with<T>(&self, act: impl FnOnce(&mut Disk) -> T) -> T {
        act(self.all.lock().disk(self.number))
    }

    /// Returns the port to it for a daemon that starts now; what an earlier one did in the background ends.
    pub fn host(&self) -> SimHost {
        self.with(Disk::interrupt);
        SimHost::new(self.all.clone(), self.number)
    }

    /// Tells whether its API server answers.
    pub fn is_ready(&self) -> bool {
        let mut state = self.all.lock();
        state.go_on(&*self.all.reach, self.number);
        state.serves(&*self.all.reach, self.number).is_some()
    }

    /// Lets K3s end by itself.
    pub fn crash_k3s(&self) {
        self.with(|disk| disk.end("exit status 2"));
    }

    /// Makes everything take so many times longer.
    pub fn set_slow(&self, factor: u32) {
        self.with(|disk| disk.slow = factor.max(1));
    }

    /// Keeps it from being ready, or no longer.
    pub fn set_never_ready(&self, never: bool) {
        self.with(|disk| disk.never_ready = never);
    }

    /// Lets the next probe of a running K3s report the opposite.
    pub fn lie_once(&self) {
        self.with(|disk| disk.lies = true);
    }

    /// Ends K3s with the machine; the daemon starts it again.
    pub fn power_off(&self) {
        self.with(|disk| {
            disk.interrupt();
            disk.kill();
        });
    }

    /// Takes away all that K3s has on the machine, the node password too.
    pub fn wipe(&self) {
        self.power_off();
        self.with(|disk| {
            disk.lose_data();
            disk.marker = None;
            disk.password = disk.draw.number();
        });
    }
}
