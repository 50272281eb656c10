//! Answers for operators, assembled from state and from what the leader sees. Pure.

use raft_store::model::{
    Assignment, Cluster, ClusterStatus, DrainStep, Node, NodeId, Phase, Role, State, UnixMillis,
    Vip,
};
use raft_store::plan::{CLOCK_TOLERANCE, Health, unfit};

use crate::daemon::FleetView;
use crate::proto;

/// State and sight together, at one moment.
#[derive(Clone, Copy)]
pub struct Scene<'a> {
    /// What is agreed.
    pub state: &'a State,
    /// What the leader sees.
    pub view: &'a FleetView,
    /// The log index of what is agreed.
    pub applied: u64,
    /// The time, for durations in words.
    pub now: UnixMillis,
}

/// Says a duration as people do.
pub fn age(since: UnixMillis, now: UnixMillis) -> String {
    let s = now.0.saturating_sub(since.0) / 1000;
    match s {
        0..=119 => format!("{s} s"),
        120..=7199 => format!("{} min", s / 60),
        7200..=172_799 => format!("{} h", s / 3600),
        _ => format!("{} days", s / 86_400),
    }
}

fn drain_state(n: &Node) -> &'static str {
    let over = n.drain.as_ref().is_some_and(|d| d.step == DrainStep::Done);
    if over { "drained" } else { "draining" }
}

impl Scene<'_> {
    fn health(&self, id: NodeId) -> Health {
        self.view.nodes.get(&id).map_or(Health::Unknown, |n| n.health)
    }

    fn api_ready(&self, id: NodeId) -> Option<bool> {
        self.view.nodes.get(&id)?.report.as_ref()?.api_ready
    }

    /// Returns a node's state in one word.
    pub fn node_state(&self, n: &Node) -> &'static str {
        match self.health(n.id) {
            Health::Lost => "down",
            Health::Unknown => "unknown",
            Health::Live if n.drain.is_some() => drain_state(n),
            Health::Live if n.key_box.is_none() => "joining",
            Health::Live => match &n.assignment {
                Some(a) if a.phase != Phase::Ready => "joining",
                _ => "ready",
            },
        }
    }

    /// Returns everything that a node waits for, most important first.
    pub fn node_waits(&self, n: &Node) -> Vec<String> {
        let mut waits = Vec::new();
        if self.lost(n.id) {
            waits.push(self.silence(n));
        }
        if self.health(n.id) == Health::Unknown {
            waits.push(format!("word from {}: it has not been heard of yet", n.name));
        }
        if n.key_box.is_none() {
            let since = age(n.at, self.now);
            waits.push(format!("the leader to hand over the fleet's key (for {since})"));
        }
        if let Some(a) = &n.assignment {
            waits.extend(self.role_wait(n, a));
        }
        if let Some(d) = n.drain.as_ref().filter(|d| d.step != DrainStep::Done) {
            let what = d.message.as_deref().unwrap_or("in progress");
            waits.push(format!(
                "drain, step {}: {what} (for {})",
                d.step.as_str(),
                age(d.since, self.now)
            ));
        }
        let reported = self.view.nodes.get(&n.id).and_then(|v| v.report.as_ref());
        for wait in reported.iter().flat_map(|r| &r.waiting_for) {
            if !waits.iter().any(|w| w.contains(wait.as_str())) {
                waits.push(wait.clone());
            }
        }
        waits
    }

    /// Says of a lost node since when it is, and why, if it said so before it ended.
    fn silence(&self, n: &Node) -> String {
        let view = self.view.nodes.get(&n.id);
        let silent = view.and_then(|v| v.silent_ms).map(|ms| age(UnixMillis(0), UnixMillis(ms)));
        let since = silent.map_or_else(String::new, |age| format!(" (for {age})"));
        let report = view.and_then(|v| v.report.as_ref());
        match report.and_then(|r| r.last_words.as_deref()) {
            Some(words) => format!("its daemon ended: {words}{since}"),
            None => format!(
                "{} is not heard of: is it running, and does its network reach the others?{since}",
                n.name
            ),
        }
    }

    fn role_wait(&self, n: &Node, a: &Assignment) -> Option<String> {
        let since = age(a.since, self.now);
        let says = a.message.as_deref();
        if a.leaving {
            return Some(format!("its k3s to be removed (for {since})"));
        }
        if a.phase == Phase::Ready || a.phase == Phase::Stopped && n.drain.is_some() {
            return None;
        }
        let Some(cluster) = a.cluster.and_then(|c| self.state.clusters.get(&c)) else {
            let known = self.state.clusters.len();
            return Some(if known == 0 {
                format!("a cluster to be created (for {since})")
            } else {
                format!(
                    "a target: {known} clusters exist, name one with `skein node assign {} k3s-agent --cluster NAME` (for {since})",
                    n.name
                )
            });
        };
        let blocked = self.state.member_blocked_by(cluster, n);
        let reported = self.view.nodes.get(&n.id).and_then(|v| v.report.as_ref());
        let reported = reported.and_then(|r| r.waiting_for.first().cloned());
        let what = says.map(str::to_owned).or(reported).or(blocked);
        let what = what.unwrap_or_else(|| "its daemon to go on".into());
        Some(format!("{}: {what} (for {since})", a.phase.as_str()))
    }

    /// Returns a node for lists.
    pub fn node_status(&self, n: &Node) -> proto::NodeStatus {
        proto::NodeStatus {
            name: n.name.to_string(),
            state: self.node_state(n).into(),
            role: n.assignment.as_ref().map_or("", |a| a.role.module()).into(),
            overlay: overlay(n),
            raft: self.raft_role(n.id).into(),
            cluster: self.state.cluster_of(n).map(|c| c.name.to_string()).unwrap_or_default(),
            waiting_for: self.node_waits(n).into_iter().next().unwrap_or_default(),
        }
    }

    fn raft_role(&self, id: NodeId) -> &'static str {
        if self.view.voters.contains(&id) { "voter" } else { "learner" }
    }

    /// Returns one node with everything.
    pub fn node(&self, n: &Node, endpoints: Vec<String>) -> proto::Node {
        let a = n.assignment.as_ref();
        let report = self.view.nodes.get(&n.id).and_then(|v| v.report.as_ref());
        proto::Node {
            name: n.name.to_string(),
            uuid: n.uuid.to_string(),
            state: self.node_state(n).into(),
            role: a.map_or("", |a| a.role.module()).into(),
            cluster: self.state.cluster_of(n).map(|c| c.name.to_string()).unwrap_or_default(),
            phase: a.map_or("", |a| if a.leaving { "leaving" } else { a.phase.as_str() }).into(),
            overlay: overlay(n),
            endpoints,
            raft: self.raft_role(n.id).into(),
            version: a.and_then(|a| a.version.clone()).unwrap_or_default(),
            pod_cidrs: a.iter().flat_map(|a| &a.pods.cidrs).map(ToString::to_string).collect(),
            drain: n.drain.as_ref().map_or("", |d| d.step.as_str()).into(),
            waiting_for: self.node_waits(n),
            skein_version: report.map(|r| r.version.clone()).unwrap_or_default(),
            wireguard_key: n.wireguard.to_string(),
            applied: self.applied,
        }
    }

    fn member_status(&self, n: &Node, a: &Assignment) -> &'static str {
        if a.leaving {
            return "leaving";
        }
        // What was agreed once says nothing of now: after a reboot K3s has to start first.
        let api_up = a.role != Role::K3sServer || self.api_ready(n.id) == Some(true);
        match (a.phase, self.health(n.id)) {
            (_, Health::Lost) => "down",
            (Phase::Stopped, _) => "stopped",
            _ if n.drain.is_some() => drain_state(n),
            (Phase::Ready, Health::Live) if !api_up => "unready",
            (phase, _) => phase.as_str(),
        }
    }

    fn members(&self, c: &Cluster, role: Role) -> Vec<proto::ClusterMember> {
        let all = self.state.nodes.values().filter_map(|n| Some((n, n.assignment.as_ref()?)));
        let mut all: Vec<_> =
            all.filter(|(_, a)| a.cluster == Some(c.id) && a.role == role).collect();
        all.sort_by_key(|(_, a)| a.order);
        all.into_iter()
            .map(|(n, a)| proto::ClusterMember {
                name: n.name.to_string(),
                status: self.member_status(n, a).into(),
                version: a.version.clone().unwrap_or_default(),
                role: a.role.display().into(),
            })
            .collect()
    }

    /// Returns how many servers may still be lost before etcd loses its quorum.
    pub fn tolerates(&self, c: &Cluster) -> u32 {
        let servers = self.state.servers(c.id);
        let in_etcd: Vec<_> = servers
            .iter()
            .filter(|(_, a)| matches!(a.phase, Phase::Ready | Phase::Bootstrapped | Phase::Stopped))
            .collect();
        let running = in_etcd
            .iter()
            .filter(|(n, a)| a.phase != Phase::Stopped && self.health(n.id) == Health::Live)
            .count();
        let needed = in_etcd.len() / 2 + 1;
        u32::try_from(running.saturating_sub(needed)).unwrap_or(0)
    }

    /// Returns a cluster's status in one word: `degraded` is seen, not stored.
    pub fn cluster_word(&self, c: &Cluster) -> &'static str {
        match c.status {
            ClusterStatus::Pending => "pending",
            ClusterStatus::Bootstrapping => "bootstrapping",
            ClusterStatus::Error => "error",
            ClusterStatus::Decommissioning => "decommissioning",
            ClusterStatus::Active => {
                let servers = self.members(c, Role::K3sServer);
                let workers = self.members(c, Role::K3sAgent);
                let bad = |m: &proto::ClusterMember| {
                    matches!(m.status.as_str(), "down" | "failed" | "unready")
                };
                let holder = self.state.vip_of(c).and_then(|v| v.holder);
                let headless = holder.is_some_and(|h| self.lost(h));
                if headless || servers.iter().chain(&workers).any(bad) {
                    "degraded"
                } else {
                    "active"
                }
            }
        }
    }

    /// Returns a cluster with its members.
    pub fn cluster(&self, c: &Cluster) -> proto::Cluster {
        let servers = self.members(c, Role::K3sServer);
        let workers = self.members(c, Role::K3sAgent);
        let network = self.state.networks.get(&c.network);
        proto::Cluster {
            name: c.name.to_string(),
            status: self.cluster_word(c).into(),
            endpoint: c.endpoint.clone().unwrap_or_default(),
            vip: self.state.vip_of(c).map(|v| v.name.to_string()).unwrap_or_default(),
            node_count: u32::try_from(servers.len() + workers.len()).unwrap_or(0),
            tolerates: self.tolerates(c),
            waiting_for: self.cluster_waits(c),
            network: network.map(|n| n.name.to_string()).unwrap_or_default(),
            flavor: "k3s".into(),
            cni: c.cni.clone(),
            version: c.version.clone().unwrap_or_default(),
            pod_cidrs: c.pods.iter().map(ToString::to_string).collect(),
            service_cidrs: c.services.iter().map(ToString::to_string).collect(),
            etcd: c.etcd.map(|t| proto::EtcdTimers {
                heartbeat_ms: t.heartbeat_ms,
                election_ms: t.election_ms,
                rtt_us: t.rtt_us,
                sync_us: t.sync_us.unwrap_or_default(),
            }),
            servers,
            workers,
            applied: self.applied,
        }
    }

    fn cluster_waits(&self, c: &Cluster) -> Vec<String> {
        let of = |n: &Node| n.assignment.as_ref().is_some_and(|a| a.cluster == Some(c.id));
        let nodes = self.state.nodes.values().filter(|n| of(n));
        let mut waits: Vec<String> = nodes
            .filter_map(|n| Some(format!("{}: {}", n.name, self.node_waits(n).into_iter().next()?)))
            .collect();
        waits.extend(
            c.ghosts
                .iter()
                .map(|g| format!("the former node {} to be removed from Kubernetes", g.name)),
        );
        waits
    }

    /// Returns the whole fleet in one screen.
    pub fn status(&self, me: NodeId) -> proto::Status {
        let name = |id: NodeId| self.state.name_of(id);
        let problems = self.problems();
        proto::Status {
            healthy: problems.is_empty(),
            quorum: self.view.quorum,
            leader: self.view.leader.map(name).unwrap_or_default(),
            term: self.view.term,
            applied: self.applied,
            voters: self.view.voters.iter().map(|id| name(*id)).collect(),
            nodes: self.state.nodes.values().map(|n| self.node_status(n)).collect(),
            problems,
            served_by: name(me),
            clusters: self.state.clusters.values().map(|c| self.cluster_status(c)).collect(),
            vips: self.state.vips.values().map(|v| self.vip_status(v)).collect(),
        }
    }

    fn cluster_status(&self, c: &Cluster) -> proto::ClusterStatus {
        let count = |members: &[proto::ClusterMember]| {
            let ready = members.iter().filter(|m| m.status == "ready").count();
            (u32::try_from(ready).unwrap_or(0), u32::try_from(members.len()).unwrap_or(0))
        };
        let (servers_ready, servers) = count(&self.members(c, Role::K3sServer));
        let (workers_ready, workers) = count(&self.members(c, Role::K3sAgent));
        proto::ClusterStatus {
            name: c.name.to_string(),
            status: self.cluster_word(c).into(),
            servers_ready,
            servers,
            workers_ready,
            workers,
            tolerates: self.tolerates(c),
        }
    }

    fn vip_status(&self, v: &Vip) -> proto::VipStatus {
        proto::VipStatus {
            name: v.name.to_string(),
            holder: v.holder.map(|h| self.state.name_of(h)).unwrap_or_default(),
            generation: v.generation.0,
            addresses: v.addresses().iter().map(ToString::to_string).collect(),
        }
    }

    /// Returns what is wrong, worst first.
    pub fn problems(&self) -> Vec<String> {
        if self.view.removed {
            return vec![
                "this node was removed from the fleet; to take it back, stop its daemon (systemctl stop skein) and run `skein join TICKET` with a new ticket".into(),
            ];
        }
        let mut problems = Vec::new();
        if self.view.leader.is_none() || !self.view.quorum {
            let voters: Vec<String> =
                self.view.voters.iter().map(|v| self.state.name_of(*v)).collect();
            problems.push(if voters.is_empty() {
                "this node knows of no voters: it has just joined, or was just removed from the fleet".into()
            } else {
                format!(
                    "no quorum: a majority of the voters ({}) does not answer; nothing can be changed, the overlay keeps its last state",
                    voters.join(", ")
                )
            });
        }
        for n in self.state.nodes.values() {
            let waits = self.node_waits(n);
            match self.node_state(n) {
                "down" => problems.push(format!(
                    "node {} is down: {}",
                    n.name,
                    waits.first().cloned().unwrap_or_default()
                )),
                "joining" => problems.push(format!(
                    "node {} is not ready: {}",
                    n.name,
                    waits.first().cloned().unwrap_or_default()
                )),
                _ => {}
            }
        }
        problems.extend(self.wrong_clocks());
        for c in self.state.clusters.values() {
            match self.cluster_word(c) {
                // That a cluster ends as it was told to is no problem.
                "active" | "decommissioning" => {}
                word => problems.push(format!("cluster {} is {word}", c.name)),
            }
        }
        problems
    }

    /// Clocks so far from the fleet's time that certificates and tokens fail.
    fn wrong_clocks(&self) -> impl Iterator<Item = String> + '_ {
        let tolerated = i64::try_from(CLOCK_TOLERANCE.as_millis()).unwrap_or(i64::MAX);
        self.state.nodes.values().filter_map(move |n| {
            let view = self.view.nodes.get(&n.id).filter(|v| v.health == Health::Live)?;
            let ahead = view.clock_ms.filter(|ms| ms.saturating_abs() > tolerated)?;
            let way = if ahead > 0 { "ahead of" } else { "behind" };
            Some(format!(
                "the clock of {} is {} s {way} the fleet's time; set it right on {}: timedatectl set-ntp true",
                n.name,
                ahead.unsigned_abs() / 1_000,
                n.name
            ))
        })
    }

    /// Returns a VIP with its candidates, as the leader sees them.
    pub fn vip(&self, v: &Vip) -> proto::Vip {
        let name = |id: NodeId| self.state.name_of(id);
        proto::Vip {
            name: v.name.to_string(),
            addresses: v.addresses().iter().map(ToString::to_string).collect(),
            holder: v.holder.map(name).unwrap_or_default(),
            generation: v.generation.0,
            candidates: self.candidates(v).into_iter().map(|(_, c)| c).collect(),
            history: v
                .history
                .iter()
                .map(|h| proto::VipAssumption {
                    holder: name(h.holder),
                    generation: h.generation.0,
                    reason: h.reason.as_str().into(),
                    at: h.at.0,
                })
                .collect(),
            cluster: self
                .state
                .clusters
                .get(&v.cluster)
                .map(|c| c.name.to_string())
                .unwrap_or_default(),
            next: v.next.map(|n| name(n.node)).unwrap_or_default(),
            applied: self.applied,
        }
    }

    /// Lists who could hold a VIP, in join order, each with the reason that speaks against it.
    pub fn candidates(&self, v: &Vip) -> Vec<(NodeId, proto::VipCandidate)> {
        let servers = self.state.servers(v.cluster).into_iter();
        servers
            .map(|(n, _)| {
                let reason = self.refusal(v, n);
                let eligible = reason.is_none();
                let said =
                    if v.holder == Some(n.id) { "holds it".to_owned() } else { String::new() };
                let candidate = proto::VipCandidate {
                    node: n.name.to_string(),
                    eligible,
                    reason: reason.unwrap_or(said),
                };
                (n.id, candidate)
            })
            .collect()
    }

    /// Tells whether a node is heard and its API server answers.
    pub fn serves(&self, id: NodeId) -> bool {
        self.health(id) == Health::Live && self.api_ready(id) == Some(true)
    }

    /// Tells whether a node has been silent for so long that it counts as lost; one not heard yet does not.
    pub fn lost(&self, id: NodeId) -> bool {
        self.health(id) == Health::Lost
    }

    fn refusal(&self, v: &Vip, n: &Node) -> Option<String> {
        let report = self.view.nodes.get(&n.id).and_then(|v| v.report.as_ref());
        unfit(self.state, v, n, self.health(n.id), report)
    }
}

fn overlay(n: &Node) -> Vec<String> {
    n.networks.values().flat_map(|a| [a.v6.to_string(), a.v4.to_string()]).collect()
}
