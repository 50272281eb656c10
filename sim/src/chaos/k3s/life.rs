//! How a started K3s founds a cluster, joins one, comes back to it, and stays. Shell: it asks the clock and the network.

use std::sync::Arc;
use std::time::Duration;

use k3s::observe::Credentials;
use k3s::render::Layout;
use k3s::token::Token;
use k3s::{Join, Role, RoleKind, RunSpec, Secret};
use raft_store::rt::now;
use tokio::time::Instant;

use super::ca::{fingerprint, kubeconfig, pem};
use super::cluster::{Cluster, Grant, Member};
use super::machine::Stage;
use super::world::State;
use super::{Reach, host_of};

/// The words by which Skein knows that a node's password was refused.
const PASSWORD: &str = "level=info msg=\"Waiting to retrieve agent configuration; server is not ready: Node password rejected, duplicate hostname or contents of '/etc/rancher/node/password' may not match server node-passwd entry, try enabling a unique node name with the --with-node-id flag\"";
/// What an agent says once it was taken: enough that earlier lines are out of sight.
const TAKEN: [&str; 8] = [
    "Module overlay was already loaded",
    "Logging containerd to /var/lib/rancher/k3s/agent/containerd/containerd.log",
    "containerd is now running",
    "Running kubelet",
    "Annotations and labels have been set successfully on node",
    "Started kubelet",
    "Starting flannel with backend host-gw",
    "Tunnel authorizer set Kubelet Port",
];
/// How often what failed is tried again.
const RETRY: Duration = Duration::from_secs(2);
/// How often a member looks after itself.
const TICK: Duration = Duration::from_secs(1);
/// After so long without progress a learner is taken out.
const STALLED: Duration = Duration::from_secs(300);
/// The most steps at one look, against going round for ever.
const STEPS: usize = 16;

/// Why a try to join failed.
enum Refusal {
    Again(String),
    Fatal(String),
}

fn again(why: impl std::fmt::Display) -> Refusal {
    Refusal::Again(why.to_string())
}

impl State {
    /// Lets a machine's K3s go as far as it gets without the others.
    pub(super) fn settle(&mut self, number: usize) {
        let founds_again = self.founds_again;
        let disk = self.disk(number);
        disk.finish();
        let starting = |r: &&super::machine::Run| r.stage == Stage::Starting && r.due <= now();
        let Some(run) = disk.run.as_ref().filter(starting) else { return };
        let (spec, at) = (Arc::clone(&run.spec), run.due);
        match (&spec.role, disk.etcd) {
            (Role::Server { .. }, Some((cluster, id))) => self.resume(number, &spec, cluster, id),
            (Role::Server { join: None }, None) => self.found(number, &spec, at),
            (Role::Server { join: Some(_) }, None) if founds_again => {
                self.found(number, &spec, at);
            }
            (Role::Server { .. } | Role::Agent { .. }, _) => disk.enter(Stage::Joining, at, 0..=0),
        }
    }

    /// Lets a machine's K3s go on until now.
    pub(super) fn go_on(&mut self, reach: &dyn Reach, number: usize) {
        for _ in 0..STEPS {
            self.settle(number);
            let disk = self.disk(number);
            let Some(run) = disk.run.as_ref().filter(|r| r.due <= now()) else { return };
            let (stage, spec, at) = (run.stage, Arc::clone(&run.spec), run.due);
            match stage {
                Stage::Starting => return,
                Stage::Joining => match self.join(reach, number, &spec) {
                    Ok(next) => self.disk(number).enter(next, at, 500..=2_000),
                    Err(refusal) => self.refused(number, refusal),
                },
                Stage::Added(cluster, id) => self.begin(number, &spec, cluster, id, at),
                Stage::Learner(cluster) => self.promote(reach, number, cluster, at),
                Stage::Member(cluster) => self.stay(reach, number, cluster, &spec),
                Stage::Worker(cluster) => {
                    let served = self.served_by(reach, cluster, number).is_some();
                    self.tick(number, cluster, &spec.node_name, served);
                }
            }
        }
    }

    fn refused(&mut self, number: usize, refusal: Refusal) {
        let disk = self.disk(number);
        match refusal {
            Refusal::Fatal(why) => disk.fatal(&why),
            Refusal::Again(why) => {
                let line = if why == PASSWORD { why } else { format!("level=error msg=\"{why}\"") };
                disk.say(line.clone());
                if let Some(run) = &mut disk.run {
                    run.due = now() + RETRY;
                    run.refused = Some(line);
                }
            }
        }
    }

    /// A server comes back to the data that it has.
    fn resume(&mut self, number: usize, spec: &RunSpec, cluster: usize, id: u64) {
        let Some(found) = self.clusters.get_mut(cluster) else { return };
        let token = match &spec.role {
            Role::Server { join: Some(join) } => Some(&join.token),
            Role::Server { join: None } | Role::Agent { .. } => spec.server_token.as_ref(),
        };
        let secret = token.and_then(|t| Token::parse(t.expose()).ok()).map(|t| t.secret);
        let other = secret.is_some_and(|secret| secret.expose() != found.server_secret);
        let learner = found.member(id).is_some_and(|m| m.learner);
        let disk = self.disk(number);
        if other {
            disk.fatal("starting kubernetes: preparing server: bootstrap data already found and encrypted with different token");
            return;
        }
        let stage = if learner { Stage::Learner(cluster) } else { Stage::Member(cluster) };
        let at = disk.run.as_ref().map_or_else(now, |r| r.due);
        disk.enter(stage, at, 0..=0);
    }

    /// A server starts with `--cluster-init`.
    fn found(&mut self, number: usize, spec: &RunSpec, at: Instant) {
        let cluster = self.clusters.len();
        let disk = self.disk(number);
        let own = fingerprint(&hex::encode(disk.draw.bytes()));
        let drawn = hex::encode(disk.draw.bytes());
        // Laid by an action; what only the spec has, K3s cannot know.
        let laid = disk.files.contains_key(&Layout::default().tls().join("server-ca.crt"));
        let ca = spec.ca.as_ref().filter(|_| laid);
        let chain = ca.and_then(|ca| ca.authorities.iter().find(|a| a.name == "server-ca"));
        let hash = ca.map(|ca| fingerprint(&ca.root_certificate));
        // A joiner founds in a flawed world only: then under the name and with the secret of the cluster that it was to join.
        let (token, hash) = match &spec.role {
            Role::Server { join: Some(join) } | Role::Agent { join } => {
                let token = Token::parse(join.token.expose()).ok();
                let known = token.as_ref().and_then(|t| t.ca_hash.clone());
                (token, known.or(hash))
            }
            Role::Server { join: None } => {
                (spec.server_token.as_ref().and_then(|t| Token::parse(t.expose()).ok()), hash)
            }
        };
        let hash = hash.unwrap_or(own);
        let agent = spec.agent_token.as_ref().and_then(|t| Token::parse(t.expose()).ok());
        let made = Cluster {
            name: spec.cluster.clone(),
            founder: number,
            server_ca: chain
                .map_or_else(|| pem("CERTIFICATE", hash.as_bytes()), |a| a.chain.clone()),
            hash,
            server_secret: token.map_or(drawn, |t| t.secret.expose().to_owned()),
            agent_secret: agent.map(|t| t.secret.expose().to_owned()),
            ranges: spec.cluster_cidr.clone(),
            members: Vec::new(),
            leader: None,
            nodes: Default::default(),
            deleting: Default::default(),
            passwords: Default::default(),
            pods: Default::default(),
        };
        self.clusters.push(made);
        let id = self.add(cluster, number, spec, false);
        self.seat(number, spec, cluster, id);
        if let Some(found) = self.clusters.get_mut(cluster) {
            found.leader = Some(id);
        }
        self.disk(number).enter(Stage::Member(cluster), at, 0..=0);
        self.write_credentials(number, cluster);
    }

    fn add(&mut self, cluster: usize, number: usize, spec: &RunSpec, learner: bool) -> u64 {
        let id = self.disk(number).draw.number();
        let address = spec.node_ips.first().copied();
        let (name, progress) = (String::new(), now());
        let member = Member { id, machine: number, name, address, learner, progress };
        if let Some(found) = self.clusters.get_mut(cluster) {
            found.members.push(member);
        }
        id
    }

    /// A member starts for the first time: it gets its name, and data.
    fn seat(&mut self, number: usize, spec: &RunSpec, cluster: usize, id: u64) {
        let disk = self.disk(number);
        let suffix = u32::try_from(disk.draw.number() >> 32).unwrap_or_default();
        disk.etcd = Some((cluster, id));
        if let Some(member) = self.clusters.get_mut(cluster).and_then(|c| c.member(id)) {
            member.name = format!("{}-{suffix:08x}", spec.node_name);
        }
    }

    fn write_credentials(&mut self, number: usize, cluster: usize) {
        let Some(found) = self.clusters.get(cluster) else { return };
        let token =
            |user: &str, secret: &str| Secret::new(format!("K10{}::{user}:{secret}\n", found.hash));
        let credentials = Credentials {
            server_token: Some(token("server", &found.server_secret)),
            agent_token: found.agent_secret.as_ref().map(|secret| token("node", secret)),
            kubeconfig: Some(Secret::new(kubeconfig(&found.server_ca))),
            server_ca: Some(found.server_ca.clone()),
        };
        self.disk(number).credentials = credentials;
    }

    fn join(&mut self, reach: &dyn Reach, number: usize, spec: &RunSpec) -> Result<Stage, Refusal> {
        let (Role::Server { join: Some(join) } | Role::Agent { join }) = &spec.role else {
            return Err(again("no server to join"));
        };
        let (cluster, grant) = self.knock(reach, number, join)?;
        if spec.role.kind() == RoleKind::Server {
            if grant != Grant::Server {
                let what = "failed to validate token: /v1-k3s/server-bootstrap";
                return Err(again(format!("{what}: 401 Unauthorized")));
            }
            let id = self.add_learner(cluster, number, spec)?;
            return Ok(Stage::Added(cluster, id));
        }
        let password = self.disk(number).password;
        let found = self.clusters.get_mut(cluster);
        if found.is_some_and(|c| c.register(number, spec, password, now())) {
            TAKEN.iter().for_each(|line| self.disk(number).say(*line));
            return Ok(Stage::Worker(cluster));
        }
        Err(again(PASSWORD))
    }

    /// Asks at the registration address, and shows the token there.
    fn knock(
        &mut self,
        reach: &dyn Reach,
        number: usize,
        join: &Join,
    ) -> Result<(usize, Grant), Refusal> {
        let asked = format!("failed to get CA certs: Get {}/cacerts", join.url);
        let address = host_of(&join.url).ok_or_else(|| again(format!("{asked}: no address")))?;
        let answering = reach.answers(number, address);
        let server =
            answering.ok_or_else(|| again(format!("{asked}: context deadline exceeded")))?;
        let closed = || again(format!("{asked}: connect: connection refused"));
        let cluster = self.serves(reach, server).ok_or_else(closed)?;
        let found = self.clusters.get(cluster).ok_or_else(closed)?;
        let grant = found.admits(join.token.expose());
        let grant = grant.map_err(|why| again(format!("failed to validate token: {why}")))?;
        Ok((cluster, grant))
    }

    fn add_learner(
        &mut self,
        cluster: usize,
        number: usize,
        spec: &RunSpec,
    ) -> Result<u64, Refusal> {
        let failed = |why: &str| Refusal::Fatal(format!("etcd cluster join failed: {why}"));
        let address = spec.node_ips.first().copied();
        let members = self.clusters.get(cluster).map(|c| c.members.clone()).unwrap_or_default();
        for member in &members {
            if member.name.is_empty() && member.address == address {
                // An earlier try got this far: it is this server's.
                return Ok(member.id);
            }
            if member.is_named(&spec.node_name) {
                let why = "duplicate node name found, please use a unique name for this node";
                return Err(failed(why));
            }
            if member.address == address {
                return Err(failed("etcdserver: Peer URLs already exists"));
            }
        }
        if members.iter().any(|m| m.learner) {
            let why = "etcdserver: too many learner members in cluster";
            return Err(again(format!(
                "Waiting for other members to finish joining etcd cluster: {why}"
            )));
        }
        Ok(self.add(cluster, number, spec, true))
    }

    fn begin(&mut self, number: usize, spec: &RunSpec, cluster: usize, id: u64, at: Instant) {
        let known = self.clusters.get_mut(cluster).and_then(|c| c.member(id));
        let Some(member) = known else { return self.out(number) };
        (member.machine, member.progress) = (number, now());
        self.seat(number, spec, cluster, id);
        self.disk(number).enter(Stage::Learner(cluster), at, 1_000..=4_000);
    }

    /// A learner that has caught up gets its vote.
    fn promote(&mut self, reach: &dyn Reach, number: usize, cluster: usize, at: Instant) {
        let id = self.disk(number).etcd.map(|(_, id)| id);
        let leader = self.leads(reach, cluster);
        let near = leader.filter(|leader| reach.connected(number, *leader));
        if near.is_none() {
            self.disk(number).say("level=info msg=\"Waiting for etcd server to become available\"");
            if let Some(run) = &mut self.disk(number).run {
                run.due = now() + RETRY;
            }
            return;
        }
        let member = self.clusters.get_mut(cluster).zip(id).and_then(|(c, id)| c.member(id));
        let Some(member) = member else { return self.out(number) };
        member.learner = false;
        self.disk(number).enter(Stage::Member(cluster), at, 500..=2_000);
        self.write_credentials(number, cluster);
    }

    fn out(&mut self, number: usize) {
        self.disk(number).fatal("this server has been removed from the etcd cluster");
    }

    /// A server looks after its kubelet, and ends once it hears that it was taken out of etcd.
    fn stay(&mut self, reach: &dyn Reach, number: usize, cluster: usize, spec: &RunSpec) {
        let disk = self.disk(number);
        let (seat, password) = (disk.etcd, disk.password);
        let voters = self.voters(cluster);
        if !voters.iter().any(|(id, _)| seat == Some((cluster, *id))) {
            let told = voters
                .iter()
                .any(|(_, m)| reach.connected(number, *m) && self.has_quorum(reach, cluster, *m));
            return if told { self.out(number) } else { self.tick(number, cluster, "", false) };
        }
        let serves = self.serves(reach, number) == Some(cluster);
        let registered = self.disk(number).run.as_ref().is_some_and(|r| r.registered);
        if serves && !registered {
            let found = self.clusters.get_mut(cluster);
            let taken = found.is_some_and(|c| c.register(number, spec, password, now()));
            let disk = self.disk(number);
            let lines: &[&str] = if taken { &TAKEN } else { &[PASSWORD] };
            lines.iter().for_each(|line| disk.say(*line));
            if let Some(run) = &mut disk.run {
                run.registered = taken;
            }
        }
        self.tick(number, cluster, &spec.node_name, serves);
    }

    /// A kubelet is heard, if a server serves it.
    fn tick(&mut self, number: usize, cluster: usize, node: &str, served: bool) {
        let node = self.clusters.get_mut(cluster).and_then(|c| c.nodes.get_mut(node));
        if let Some(node) = node.filter(|n| n.machine == number && served) {
            node.heard = now();
        }
        if let Some(run) = &mut self.disk(number).run {
            run.due = now() + TICK;
        }
    }
}

/// Brings a cluster to where it is now: its learners, its leader, its deleted Nodes.
pub(super) fn tend(state: &mut State, reach: &dyn Reach, cluster: usize) {
    let Some(leader) = state.leads(reach, cluster) else { return };
    let members = state.clusters.get(cluster).map(|c| c.members.clone()).unwrap_or_default();
    for learner in members.iter().filter(|m| m.learner) {
        state.go_on(reach, learner.machine);
        let stage = state.disk(learner.machine).run.as_ref().map(|r| r.stage);
        let runs = stage == Some(Stage::Learner(cluster));
        let gets_on = runs && reach.connected(learner.machine, leader);
        let Some(found) = state.clusters.get_mut(cluster) else { return };
        let Some(member) = found.member(learner.id).filter(|m| m.learner) else { continue };
        if gets_on {
            member.progress = now();
        } else if now().saturating_duration_since(member.progress) >= STALLED {
            found.take_out(learner.id);
        }
    }
    let due = |at: &Instant| *at <= now();
    let deleting = state.clusters.get(cluster).map(|c| c.deleting.clone()).unwrap_or_default();
    for (name, _) in deleting.into_iter().filter(|(_, at)| due(at)) {
        // K3s holds the Node until it has taken the member of its name out.
        let member = members.iter().find(|m| m.is_named(&name)).map(|m| m.id);
        if member.is_some_and(|id| !state.may_remove(reach, cluster, id)) {
            continue;
        }
        let Some(found) = state.clusters.get_mut(cluster) else { return };
        if let Some(id) = member {
            found.take_out(id);
        }
        found.forget(&name, now());
    }
    state.leads(reach, cluster);
}
