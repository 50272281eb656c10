//! The K3s of one machine: what the daemon's driver sees and does, and how K3s goes on by itself. Shell.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::Duration;

use k3s::observe::{Binary, Credentials, Installed, Marker, Probe, Unit};
use k3s::render::Layout;
use k3s::{Action, HostError, Observed, Role, RoleKind, RunSpec, Secret, Spec, Version};
use raft_store::rt::now;
use tokio::time::Instant;

use super::Reach;
use super::cluster::{Cluster, Kubernetes, Member, Node, State, cluster_hash, host_of};
use crate::chaos::draw::Draw;

const VERSION: &str = "v1.33.5+k3s1";
/// The words by which Skein knows that a node's password was refused.
const PASSWORD: &str = "Node password rejected, duplicate hostname or contents of '/etc/rancher/node/password' may not match server node-passwd entry, try enabling a unique node name with the --with-node-id flag";

/// K3s on one machine.
#[derive(Debug)]
pub(super) struct Machine {
    draw: Draw,
    pub(super) unit: Unit,
    spec: Option<RunSpec>,
    run: Option<Run>,
    files: BTreeMap<PathBuf, String>,
    marker: Option<Marker>,
    binary_at: Option<Instant>,
    wiping_until: Option<Instant>,
    /// The cluster whose etcd data lie here, and the member.
    pub(super) etcd: Option<(usize, u64)>,
    credentials: Credentials,
    password: u64,
    restarts: u32,
    said: Vec<String>,
    slow: u32,
    pub(super) never_ready: bool,
    lies: bool,
}

/// A started K3s.
#[derive(Debug)]
struct Run {
    spec: RunSpec,
    /// When its next step is due.
    due: Instant,
    stage: Stage,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Starting,
    Learner(usize),
    Joined(usize),
}

impl Machine {
    pub(super) fn new(number: usize, seed: u64) -> Self {
        let mut draw = Draw::new(seed, "k3s", &[number as u64]);
        let password = draw.number();
        Self {
            draw,
            unit: Unit::Stopped,
            spec: None,
            run: None,
            files: BTreeMap::new(),
            marker: None,
            binary_at: None,
            wiping_until: None,
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

    pub(super) fn is_server(&self) -> bool {
        self.run.as_ref().is_some_and(|r| r.spec.role.kind() == RoleKind::Server)
    }

    pub(super) fn runs_in(&self, cluster: usize) -> bool {
        let joined = self.run.as_ref().is_some_and(|r| r.stage == Stage::Joined(cluster));
        joined && matches!(self.unit, Unit::Running { .. })
    }

    fn takes(&mut self, from_ms: u64, to_ms: u64) -> Duration {
        Duration::from_millis(self.draw.within(from_ms..=to_ms) * u64::from(self.slow))
    }

    fn say(&mut self, line: &str) {
        if self.said.last().is_none_or(|last| last != line) {
            self.said.push(line.to_owned());
            let old = self.said.len().saturating_sub(20);
            self.said.drain(..old);
        }
    }

    /// Lets K3s end by itself.
    fn end(&mut self, how: &str) {
        if let Unit::Running { role, .. } = self.unit {
            self.restarts += 1;
            let next_try = now() + Duration::from_secs(u64::from(self.restarts.min(8)));
            self.unit =
                Unit::Exited { role, how: how.to_owned(), restarts: self.restarts, next_try };
            self.run = None;
        }
    }

    fn wiped(&mut self) {
        self.marker = None;
        self.files.clear();
        self.etcd = None;
        self.credentials = Credentials::default();
        self.binary_at = None;
        self.said.clear();
        self.restarts = 0;
    }

    fn binary(&self) -> Binary {
        match self.binary_at {
            None => Binary::Missing { last_error: None, next_try: None },
            Some(at) if at > now() => Binary::Fetching { progress: "half".into() },
            Some(_) => match Version::parse(VERSION) {
                Some(version) => Binary::Present(Box::new(installed(version))),
                None => Binary::Missing { last_error: None, next_try: None },
            },
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

    fn with<T>(&self, act: impl FnOnce(&mut Machine) -> T) -> T {
        act(self.all.lock().machine(self.number))
    }

    /// Returns the port to it.
    pub fn host(&self) -> SimHost {
        SimHost { all: self.all.clone(), number: self.number }
    }

    /// Tells whether its API server answers.
    pub fn is_ready(&self) -> bool {
        let mut state = self.all.lock();
        advance(&mut state, &*self.all.reach, self.number);
        let cluster = state.machine(self.number).run.as_ref().map(|r| r.stage);
        match cluster {
            Some(Stage::Joined(cluster)) => state.serves(&*self.all.reach, self.number, cluster),
            _ => false,
        }
    }

    /// Lets K3s end by itself.
    pub fn crash_k3s(&self) {
        self.with(|m| m.end("exit status 2"));
    }

    /// Makes everything take so many times longer.
    pub fn set_slow(&self, factor: u32) {
        self.with(|m| m.slow = factor.max(1));
    }

    /// Keeps it from being ready, or no longer.
    pub fn set_never_ready(&self, never: bool) {
        self.with(|m| m.never_ready = never);
    }

    /// Lets the next look at it see the opposite.
    pub fn lie_once(&self) {
        self.with(|m| m.lies = true);
    }

    /// Ends K3s with the machine. It is started again by the daemon, once that looks.
    pub fn power_off(&self) {
        self.with(|m| {
            m.unit = Unit::Stopped;
            m.run = None;
            m.wiping_until = None;
        });
    }

    /// Takes away all that K3s has on the machine.
    pub fn wipe(&self) {
        self.power_off();
        self.with(|m| {
            m.wiped();
            m.password = m.draw.number();
        });
    }
}

/// Lets the K3s of a machine go on until now.
fn advance(state: &mut State, reach: &dyn Reach, number: usize) {
    let machine = state.machine(number);
    if machine.wiping_until.is_some_and(|at| at <= now()) {
        machine.wiping_until = None;
        machine.wiped();
    }
    if let Unit::Stopping { since, .. } = machine.unit
        && now() >= since + Duration::from_secs(1)
    {
        machine.unit = Unit::Stopped;
    }
    let due = machine.run.as_ref().is_some_and(|r| r.due <= now());
    if !due || !matches!(machine.unit, Unit::Running { .. }) {
        return;
    }
    let Some(stage) = machine.run.as_ref().map(|r| r.stage) else { return };
    match stage {
        Stage::Starting => rise(state, reach, number),
        Stage::Learner(cluster) => promote(state, reach, number, cluster),
        Stage::Joined(cluster) => stay(state, reach, number, cluster),
    }
    let takes = state.machine(number).takes(500, 2_000);
    if let Some(run) = &mut state.machine(number).run {
        run.due = now() + takes;
    }
}

/// A K3s that has started: it founds, joins, or comes back.
fn rise(state: &mut State, reach: &dyn Reach, number: usize) {
    let founds_again = state.founds_again;
    let machine = state.machine(number);
    let Some(mut spec) = machine.run.as_ref().map(|r| r.spec.clone()) else { return };
    if let Some((cluster, member)) = machine.etcd {
        let known =
            state.clusters.get(cluster).is_some_and(|c| c.members.iter().any(|m| m.id == member));
        let machine = state.machine(number);
        if known {
            set_stage(machine, Stage::Joined(cluster));
        } else {
            machine.end("exit status 1");
            machine.say("level=fatal msg=\"this server is a not a member of the etcd cluster\"");
        }
        return;
    }
    if let (true, Role::Server { join: Some(join) }) = (founds_again, &spec.role)
        && let Some((cluster, _)) = state.by_token(join.token.expose())
    {
        state.clusters[cluster].founders.push(number);
        spec.role = Role::Server { join: None };
    }
    match spec.role.clone() {
        Role::Server { join: None } => found(state, number, &spec),
        Role::Server { join: Some(join) } | Role::Agent { join } => {
            if let Err(why) = join_cluster(state, reach, number, &spec, &join) {
                state.machine(number).say(&why);
            }
        }
    }
}

fn set_stage(machine: &mut Machine, stage: Stage) {
    if let Some(run) = &mut machine.run {
        run.stage = stage;
    }
}

fn found(state: &mut State, number: usize, spec: &RunSpec) {
    let cluster = state.clusters.len();
    let hash = cluster_hash(state.seed, cluster);
    let secret = |s: &Option<Secret>| s.as_ref().map(|s| s.expose().to_owned());
    let server_secret = secret(&spec.server_token).unwrap_or_else(|| hash[..32].to_owned());
    let agent_secret = secret(&spec.agent_token).unwrap_or_else(|| server_secret.clone());
    let mut made = Cluster {
        name: spec.cluster.clone(),
        hash,
        server_secret,
        agent_secret,
        founders: vec![number],
        leader: Some(number),
        ..Cluster::default()
    };
    made.passwords.insert(spec.node_name.clone(), state.machine(number).password);
    state.clusters.push(made);
    add_member(state, cluster, number, spec, false);
    add_node(state, cluster, number, spec);
    set_stage(state.machine(number), Stage::Joined(cluster));
    give_credentials(state, cluster, number);
}

fn add_member(state: &mut State, cluster: usize, number: usize, spec: &RunSpec, learner: bool) {
    let id = state.machine(number).draw.number();
    let name = format!("{}-{}", spec.node_name, &format!("{id:016x}")[..8]);
    let addresses = spec.node_ips.clone();
    if let Some(found) = state.clusters.get_mut(cluster) {
        found.members.push(Member { id, machine: number, name, addresses, learner });
    }
    state.machine(number).etcd = Some((cluster, id));
}

fn add_node(state: &mut State, cluster: usize, number: usize, spec: &RunSpec) {
    let Some(found) = state.clusters.get_mut(cluster) else { return };
    found.next_pods += 1;
    let node = Node {
        machine: number,
        server: spec.role.kind() == RoleKind::Server,
        addresses: spec.node_ips.clone(),
        cordoned: false,
        cordoned_by_us: false,
        pods: found.next_pods,
        evicted_until: None,
        running_pods: 2,
    };
    found.nodes.entry(spec.node_name.clone()).or_insert(node);
}

fn give_credentials(state: &mut State, cluster: usize, number: usize) {
    let Some(found) = state.clusters.get(cluster) else { return };
    let token =
        |user: &str, secret: &str| Secret::new(format!("K10{}::{user}:{secret}\n", found.hash));
    let credentials = Credentials {
        server_token: Some(token("server", &found.server_secret)),
        agent_token: Some(token("node", &found.agent_secret)),
        kubeconfig: Some(Secret::new(format!("cluster {cluster}\n"))),
        server_ca: Some(format!("server authority {}\n", found.hash)),
    };
    state.machine(number).credentials = credentials;
}

fn join_cluster(
    state: &mut State,
    reach: &dyn Reach,
    number: usize,
    spec: &RunSpec,
    join: &k3s::Join,
) -> Result<(), String> {
    let refused = |why: &str| format!("level=error msg=\"failed to get CA certs: {why}\"");
    let address = host_of(&join.url).ok_or_else(|| refused("the URL has no address"))?;
    let gone = || refused("Get https: connect: connection refused");
    let server = reach.answers(number, address).ok_or_else(gone)?;
    let (cluster, may_serve) =
        state.by_token(join.token.expose()).ok_or_else(|| refused("token is not valid"))?;
    advance_joined(state, reach, server);
    if !state.serves(reach, server, cluster) {
        return Err(gone());
    }
    let password = state.machine(number).password;
    let found = state.clusters.get_mut(cluster).ok_or_else(gone)?;
    let known = *found.passwords.entry(spec.node_name.clone()).or_insert(password);
    if known != password {
        return Err(format!("level=info msg=\"{PASSWORD}\""));
    }
    if spec.role.kind() == RoleKind::Agent {
        add_node(state, cluster, number, spec);
        set_stage(state.machine(number), Stage::Joined(cluster));
        return Ok(());
    }
    if !may_serve {
        return Err(refused("not authorized"));
    }
    if found.members.iter().any(|m| m.learner) {
        return Err("level=error msg=\"etcdserver: too many learner members in cluster\"".into());
    }
    if !state.has_quorum(reach, cluster, server) {
        return Err("level=error msg=\"etcdserver: unhealthy cluster\"".into());
    }
    add_member(state, cluster, number, spec, true);
    set_stage(state.machine(number), Stage::Learner(cluster));
    Ok(())
}

/// A server that is asked may be further than when it was looked at last.
fn advance_joined(state: &mut State, reach: &dyn Reach, server: usize) {
    let starting = state.machine(server).run.as_ref().is_some_and(|r| r.stage == Stage::Starting);
    if starting && state.machine(server).etcd.is_some() {
        advance(state, reach, server);
    }
}

fn promote(state: &mut State, reach: &dyn Reach, number: usize, cluster: usize) {
    let Some(spec) = state.machine(number).run.as_ref().map(|r| r.spec.clone()) else { return };
    let voter = state
        .clusters
        .get(cluster)
        .and_then(|c| c.members.iter().find(|m| !m.learner && reach.connected(number, m.machine)));
    let Some(voter) = voter.map(|m| m.machine) else { return };
    if !state.has_quorum(reach, cluster, voter) {
        return;
    }
    let member = state.machine(number).etcd.map(|(_, id)| id);
    let members = state.clusters.get_mut(cluster).map(|c| &mut c.members);
    let mine = members.and_then(|all| all.iter_mut().find(|m| Some(m.id) == member));
    match mine {
        Some(mine) => mine.learner = false,
        None => {
            state.machine(number).end("exit status 1");
            return;
        }
    }
    add_node(state, cluster, number, &spec);
    set_stage(state.machine(number), Stage::Joined(cluster));
    give_credentials(state, cluster, number);
}

/// A K3s that belongs: it ends when it was taken out of etcd.
fn stay(state: &mut State, reach: &dyn Reach, number: usize, cluster: usize) {
    state.elect(reach, cluster);
    let member = state.machine(number).etcd.map(|(_, id)| id);
    let known = |c: &Cluster| c.members.iter().any(|m| Some(m.id) == member);
    let out = member.is_some() && !state.clusters.get(cluster).is_some_and(known);
    let connected = state.has_quorum(reach, cluster, number);
    if out {
        let machine = state.machine(number);
        machine.say("level=fatal msg=\"this server has been removed from the cluster\"");
        machine.end("exit status 1");
        return;
    }
    let spec = state.machine(number).run.as_ref().map(|r| r.spec.clone());
    let absent = |s: &RunSpec, c: &Cluster| !c.nodes.contains_key(&s.node_name);
    if let Some(spec) = spec.filter(|_| connected && member.is_some())
        && state.clusters.get(cluster).is_some_and(|c| absent(&spec, c))
    {
        // kubelet registers again, as long as its server is a member.
        add_node(state, cluster, number, &spec);
    }
}

/// The port to the K3s of a machine.
pub struct SimHost {
    all: Kubernetes,
    number: usize,
}

impl SimHost {
    fn probe(state: &mut State, reach: &dyn Reach, number: usize) -> Probe {
        let not = |why: &str| Probe::NotReady(why.to_owned());
        let machine = state.machine(number);
        let never = machine.never_ready;
        let lies = std::mem::take(&mut machine.lies);
        let Some(run) = machine.run.as_ref() else { return not("K3s does not run") };
        let (stage, server) = (run.stage, run.spec.role.kind() == RoleKind::Server);
        let ready = match stage {
            Stage::Joined(cluster) if server => state.serves(reach, number, cluster),
            Stage::Joined(cluster) => {
                let served = state.clusters.get(cluster).is_some_and(|c| {
                    let up =
                        |m: usize| reach.connected(number, m) && state.serves(reach, m, cluster);
                    c.members.iter().any(|m| up(m.machine))
                });
                served && !never
            }
            Stage::Starting | Stage::Learner(_) => false,
        };
        if ready != lies { Probe::Ready } else { not("the API server does not answer") }
    }
}

impl k3s::Host for SimHost {
    async fn observe(&self, spec: &Spec) -> Result<Observed, HostError> {
        let mut state = self.all.lock();
        let reach = &*self.all.reach;
        if let Spec::Run(run) = spec {
            state.machine(self.number).spec = Some((**run).clone());
        }
        advance(&mut state, reach, self.number);
        let probe = Self::probe(&mut state, reach, self.number);
        let m = state.machine(self.number);
        Ok(Observed {
            layout: Layout::default(),
            systemd: true,
            binary: m.binary(),
            unit: m.unit.clone(),
            files: m.files.clone(),
            marker: m.marker.clone(),
            foreign: None,
            etcd_data: m.etcd.is_some(),
            probe,
            credentials: m.credentials.clone(),
            wiping: m.wiping_until.map(|_| "removing".to_owned()),
            lacks: Vec::new(),
            log_tail: m.said.clone(),
            log_bytes: 0,
        })
    }

    async fn perform(&self, action: &Action) -> Result<(), HostError> {
        let mut state = self.all.lock();
        let m = state.machine(self.number);
        match action {
            Action::Fetch(_) => m.binary_at = Some(now() + m.takes(1_000, 4_000)),
            Action::Mark(marker) => m.marker.clone_from(marker),
            Action::Write(files) => {
                m.files.extend(files.iter().map(|f| (f.path.clone(), f.sha256())));
            }
            Action::Remove(paths) => m.files.retain(|path, _| !paths.contains(path)),
            Action::Start(plan) => {
                let spec = m.spec.clone().ok_or_else(|| HostError::Refused("no spec".into()))?;
                let fingerprint = Some(plan.fingerprint.clone());
                m.unit = Unit::Running { role: plan.role, fingerprint };
                let due = now() + m.takes(1_500, 5_000);
                m.run = Some(Run { spec, due, stage: Stage::Starting });
            }
            Action::Stop(role) => {
                m.unit = match m.unit {
                    Unit::Running { .. } => Unit::Stopping { role: *role, since: now() },
                    Unit::Stopping { role, since } => Unit::Stopping { role, since },
                    Unit::Stopped | Unit::Exited { .. } => Unit::Stopped,
                };
                m.run = None;
            }
            Action::Kill(_) => {
                m.unit = Unit::Stopped;
                m.run = None;
            }
            Action::Wipe => m.wiping_until = Some(now() + m.takes(1_000, 3_000)),
            Action::RotateLog => {}
        }
        Ok(())
    }

    async fn durable_write(&self) -> Result<Duration, HostError> {
        Ok(Duration::from_micros(700))
    }
}
