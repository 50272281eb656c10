//! One simulated cluster: its Nodes, its pods, its etcd members, its node passwords. Pure: the time is passed in.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use ipnet::IpNet;
use k3s::token::Token;
use k3s::{EvictProgress, NodeInfo, RoleKind, RunSpec};
use tokio::time::Instant;

/// What every K3s here says of itself.
pub(super) const VERSION: &str = "v1.33.5+k3s1";
/// How long a pod takes to go.
const EVICTION: Duration = Duration::from_secs(2);
/// How long K3s takes to let a deleted Node go.
const DELETION: Duration = Duration::from_millis(1_500);
/// How long a kubelet may be silent before its Node counts as not ready.
const GRACE: Duration = Duration::from_secs(40);
/// How many pods each Node that joins brings to the cluster.
const PODS_PER_NODE: usize = 2;

/// A cluster.
#[derive(Debug)]
pub(super) struct Cluster {
    /// What people call it, from the founder's spec.
    pub(super) name: String,
    pub(super) founder: usize,
    /// The authority in PEM, by which clients tell one cluster from another.
    pub(super) server_ca: String,
    /// What tokens carry of the authority.
    pub(super) hash: String,
    pub(super) server_secret: String,
    pub(super) agent_secret: Option<String>,
    pub(super) ranges: Vec<IpNet>,
    pub(super) members: Vec<Member>,
    /// The id of the member that leads.
    pub(super) leader: Option<u64>,
    pub(super) nodes: BTreeMap<String, Node>,
    /// Nodes that were deleted and that K3s still holds, with when it looks.
    pub(super) deleting: BTreeMap<String, Instant>,
    /// The password that the cluster knows each Node under.
    pub(super) passwords: BTreeMap<String, u64>,
    pub(super) pods: BTreeMap<String, Pod>,
}

/// An etcd member.
#[derive(Clone, Debug)]
pub(super) struct Member {
    pub(super) id: u64,
    pub(super) machine: usize,
    /// Empty until it has started for the first time.
    pub(super) name: String,
    pub(super) address: Option<IpAddr>,
    pub(super) learner: bool,
    /// When a learner got on last.
    pub(super) progress: Instant,
}

/// A Node object.
#[derive(Clone, Debug)]
pub(super) struct Node {
    pub(super) machine: usize,
    pub(super) server: bool,
    pub(super) addresses: Vec<IpAddr>,
    pub(super) cordoned: bool,
    pub(super) cordoned_by_us: bool,
    pub(super) slot: usize,
    /// When its kubelet was heard last.
    pub(super) heard: Instant,
}

/// A pod that runs anywhere.
#[derive(Clone, Debug, Default)]
pub(super) struct Pod {
    pub(super) node: Option<String>,
    pub(super) leaves: Option<Instant>,
}

/// What a token lets its bearer become.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Grant {
    Server,
    Agent,
}

impl Member {
    /// Tells whether its name is one that K3s makes of a Node's.
    pub(super) fn is_named(&self, node: &str) -> bool {
        let suffix = self.name.strip_prefix(node).and_then(|rest| rest.strip_prefix('-'));
        suffix.is_some_and(|s| s.len() == 8 && s.bytes().all(|b| b.is_ascii_hexdigit()))
    }
}

impl Cluster {
    /// Tells what a token is good for, or in K3s' words why for nothing.
    pub(super) fn admits(&self, token: &str) -> Result<Grant, String> {
        let token = Token::parse(token).map_err(|error| error.to_string())?;
        if token.ca_hash.is_some_and(|hash| hash != self.hash) {
            return Err("token CA hash does not match the Cluster CA certificate hash".into());
        }
        let secret = token.secret.expose();
        if secret == self.server_secret {
            return Ok(Grant::Server);
        }
        let agent = self.agent_secret.as_ref().is_some_and(|known| known == secret);
        agent.then_some(Grant::Agent).ok_or_else(|| "401 Unauthorized".into())
    }

    pub(super) fn member(&mut self, id: u64) -> Option<&mut Member> {
        self.members.iter_mut().find(|m| m.id == id)
    }

    pub(super) fn take_out(&mut self, id: u64) {
        self.members.retain(|m| m.id != id);
        self.leader = self.leader.filter(|leader| *leader != id);
    }

    /// Takes a machine's kubelet in, unless the cluster knows its Node under another password.
    pub(super) fn register(
        &mut self,
        machine: usize,
        spec: &RunSpec,
        password: u64,
        now: Instant,
    ) -> bool {
        let name = &spec.node_name;
        if *self.passwords.entry(name.clone()).or_insert(password) != password {
            return false;
        }
        let taken: BTreeSet<usize> = self.nodes.values().map(|n| n.slot).collect();
        let slot = (0..=taken.len()).find(|slot| !taken.contains(slot)).unwrap_or_default();
        let new = Node {
            machine,
            server: false,
            addresses: Vec::new(),
            cordoned: false,
            cordoned_by_us: false,
            slot,
            heard: now,
        };
        let node = self.nodes.entry(name.clone()).or_insert(new);
        node.machine = machine;
        node.server = spec.role.kind() == RoleKind::Server;
        node.addresses.clone_from(&spec.node_ips);
        node.heard = now;
        for number in 0..PODS_PER_NODE {
            self.pods.entry(format!("default/web-{name}-{number}")).or_default();
        }
        self.schedule(now);
        true
    }

    /// Returns what the API says of a Node.
    pub(super) fn info(&self, name: &str, linked: bool, now: Instant) -> Option<NodeInfo> {
        let node = self.nodes.get(name)?;
        let ready = linked || now.saturating_duration_since(node.heard) < GRACE;
        let silent = "Kubelet stopped posting node status.";
        Some(NodeInfo {
            name: name.to_owned(),
            ready,
            detail: if ready { "kubelet is posting ready status" } else { silent }.into(),
            cordoned: node.cordoned,
            cordoned_by_us: node.cordoned_by_us,
            pod_cidrs: self.ranges.iter().filter_map(|r| slice(*r, node.slot)).collect(),
            addresses: node.addresses.clone(),
            server: node.server,
            version: VERSION.into(),
        })
    }

    pub(super) fn cordon(&mut self, name: &str) -> Option<()> {
        let node = self.nodes.get_mut(name)?;
        if !node.cordoned {
            (node.cordoned, node.cordoned_by_us) = (true, true);
        }
        Some(())
    }

    pub(super) fn uncordon(&mut self, name: &str, now: Instant) -> bool {
        let Some(node) = self.nodes.get_mut(name).filter(|n| n.cordoned && n.cordoned_by_us) else {
            return false;
        };
        (node.cordoned, node.cordoned_by_us) = (false, false);
        self.schedule(now);
        true
    }

    /// Asks every pod of a Node to go; that of a DaemonSet stays.
    pub(super) fn evict(&mut self, name: &str, now: Instant) -> EvictProgress {
        self.schedule(now);
        let staying = usize::from(self.nodes.contains_key(name));
        let mut progress = EvictProgress { staying, ..EvictProgress::default() };
        for (pod, place) in &mut self.pods {
            if place.node.as_deref() == Some(name) {
                place.leaves.get_or_insert(now + EVICTION);
                progress.leaving.push(pod.clone());
            }
        }
        progress
    }

    pub(super) fn delete(&mut self, name: &str, now: Instant) {
        if self.nodes.contains_key(name) {
            self.deleting.entry(name.to_owned()).or_insert(now + DELETION);
        }
    }

    /// Lets a Node go, and with it what the cluster knew of it.
    pub(super) fn forget(&mut self, name: &str, now: Instant) {
        self.nodes.remove(name);
        self.deleting.remove(name);
        self.passwords.remove(name);
        for pod in self.pods.values_mut().filter(|p| p.node.as_deref() == Some(name)) {
            *pod = Pod::default();
        }
        self.schedule(now);
    }

    /// Gives every pod without a place one, on the Node with the fewest.
    fn schedule(&mut self, now: Instant) {
        for pod in self.pods.values_mut().filter(|p| p.leaves.is_some_and(|at| at <= now)) {
            *pod = Pod::default();
        }
        if self.pods.values().all(|p| p.node.is_some()) {
            return;
        }
        let open = self.nodes.iter().filter(|(name, node)| {
            let heard = now.saturating_duration_since(node.heard) < GRACE;
            !node.cordoned && heard && !self.deleting.contains_key(*name)
        });
        let mut load: BTreeMap<String, usize> = open.map(|(name, _)| (name.clone(), 0)).collect();
        for node in self.pods.values().filter_map(|p| p.node.as_ref()) {
            if let Some(count) = load.get_mut(node) {
                *count += 1;
            }
        }
        for pod in self.pods.values_mut().filter(|p| p.node.is_none()) {
            let Some((node, count)) = load.iter_mut().min_by_key(|(_, count)| **count) else {
                return;
            };
            *count += 1;
            pod.node = Some(node.clone());
        }
    }
}

/// Returns one Node's part of a pod range, of the size that Kubernetes gives.
fn slice(range: IpNet, slot: usize) -> Option<IpNet> {
    match range {
        IpNet::V4(four) => four.subnets(24).ok()?.nth(slot).map(IpNet::V4),
        IpNet::V6(six) => six.subnets(64).ok()?.nth(slot).map(IpNet::V6),
    }
}
