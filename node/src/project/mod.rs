//! Replicated state as specs for the data plane and for K3s: the only place that knows both sides. Pure.

mod peers;

use std::collections::BTreeMap;
use std::net::IpAddr;

use api::secrets::ClusterSecrets;
use ipnet::{IpNet, Ipv4Net};
use raft_store::model::{
    Cluster, DrainStep, Generation, MoveReason, Network, Node, NodeId, Role, State, Vip, VipId,
    overlap4,
};
use sdwan::{MeshSpec, PrivateKey, interface_name};
use uuid::Uuid;

use peers::peers;

/// What the data plane's specs are made from, beside the state.
pub struct Local<'a> {
    /// This node.
    pub me: NodeId,
    /// Its WireGuard key.
    pub wireguard: &'a [u8; 32],
    /// Where the hosts of other nodes are.
    pub hosts: &'a BTreeMap<Uuid, Vec<IpAddr>>,
    /// VIPs that moved a moment ago as planned, each with its former holder.
    pub former: &'a BTreeMap<VipId, NodeId>,
}

/// Returns the overlays that this host should have; what is as it was in those of `before` is shared with them.
pub fn meshes(
    state: &State,
    generation: u64,
    local: &Local<'_>,
    before: &[MeshSpec],
) -> Vec<MeshSpec> {
    let Some(me) = state.nodes.get(&local.me) else {
        return Vec::new();
    };
    let known =
        |net: &Network| before.iter().find(|b| b.network == net.name.as_str()).map(|b| &b.peers);
    let networks = me.networks.iter();
    networks
        .filter_map(|(id, own)| Some((state.networks.get(id)?, own)))
        .map(|(net, own)| MeshSpec {
            generation,
            network: net.name.to_string(),
            interface: interface_name(net.name.as_str()),
            private_key: PrivateKey::new(*local.wireguard),
            listen_port: net.port,
            mtu: net.mtu,
            addresses: vec![own.v6.into(), own.v4.into()],
            prefixes: vec![IpNet::V6(net.v6), IpNet::V4(net.v4)],
            held: held(state, net, local.me),
            peers: peers(state, net, local, known(net)),
            handovers: handovers(state, net, local),
        })
        .collect()
}

/// VIPs that this node answers for, and those that it prepares to answer for.
fn held(state: &State, net: &Network, me: NodeId) -> Vec<IpAddr> {
    let mine = |v: &&Vip| v.holder == Some(me) || v.next.is_some_and(|n| n.node == me);
    let vips = state.vips.values().filter(|v| v.network == net.id).filter(mine);
    vips.flat_map(Vip::addresses).collect()
}

/// Addresses that moved a moment ago between two other nodes.
fn handovers(state: &State, net: &Network, local: &Local<'_>) -> Vec<sdwan::Handover> {
    let moved = local.former.iter().filter_map(|(vip, former)| {
        let vip = state.vips.get(vip).filter(|v| v.network == net.id)?;
        let from = sdwan::PublicKey(state.nodes.get(former)?.wireguard.0);
        let apart = *former != local.me && vip.holder != Some(local.me);
        apart.then(|| vip.addresses().map(|address| sdwan::Handover { address, from }))
    });
    moved.flatten().collect()
}

/// Returns the overlay addresses of a node: where connections end when it is lost.
pub fn addresses(state: &State, node: NodeId) -> Vec<IpAddr> {
    let own = state.nodes.get(&node).into_iter().flat_map(|n| n.networks.values());
    own.flat_map(|a| [IpAddr::from(a.v6), a.v4.into()]).collect()
}

/// Returns who held a VIP before its newest move, if that was a planned one that came after the generation `known`.
pub fn former_holder(vip: &Vip, known: Generation) -> Option<NodeId> {
    let [.., before, last] = vip.history.as_slice() else { return None };
    (last.generation > known && last.reason != MoveReason::Loss).then_some(before.holder)
}

/// Returns who lost a VIP by dying since the generation `known`, however many moves there were.
pub fn lost_holders(vip: &Vip, known: Generation) -> Vec<NodeId> {
    let moves = vip.history.windows(2);
    let lost = moves.filter(|w| w[1].generation > known && w[1].reason == MoveReason::Loss);
    lost.map(|w| w[0].holder).collect()
}

/// Says which of the host's own routes overlaps a network that node `me` is in.
pub fn route_clash(state: &State, me: NodeId, routes: &[Ipv4Net]) -> Option<String> {
    let networks = state.nodes.get(&me)?.networks.keys().filter_map(|id| state.networks.get(id));
    let mut pairs = networks.flat_map(|n| routes.iter().map(move |r| (n, r)));
    let (network, route) = pairs.find(|(n, route)| overlap4(n.v4, **route))?;
    Some(format!(
        "its own route to {route} to go: it overlaps {} of network {}, and one of them is not reached",
        network.v4, network.name
    ))
}

/// Returns where a cluster's API is to be reached: its VIP, or the founder itself where it has none.
pub fn endpoint_addresses(state: &State, cluster: &Cluster, founder: NodeId) -> Vec<IpAddr> {
    if let Some(vip) = state.vip_of(cluster) {
        return vip.addresses().to_vec();
    }
    let own = state.nodes.get(&founder).and_then(|n| n.networks.get(&cluster.network));
    own.into_iter().flat_map(|a| a.both()).collect()
}

/// What K3s' spec is made from, beside the state.
pub struct K3sInputs<'a> {
    /// This node.
    pub me: NodeId,
    /// Where its K3s comes from.
    pub release: &'a k3s::Release,
    /// The cluster's secrets, once they exist and this node can open them.
    pub secrets: Option<&'a ClusterSecrets>,
    /// What a founding server brings: kept on its disk until it is in the state.
    pub founding: Option<&'a Founding>,
    /// Whether a server that gives up its role is out of etcd.
    pub left: bool,
}

/// What the founding server makes before K3s' first start.
#[derive(Clone, Debug, PartialEq)]
pub struct Founding {
    /// The cluster's own authority.
    pub ca: k3s::CaBundle,
    /// The agent secret.
    pub agent_secret: k3s::Secret,
    /// The server secret: old releases encrypt the authority's keys with nothing where none is given. Absent from old files.
    pub server_secret: Option<k3s::Secret>,
}

/// Returns what K3s should be on this host.
pub fn k3s_spec(state: &State, inputs: &K3sInputs<'_>) -> k3s::Spec {
    let Some(node) = state.nodes.get(&inputs.me) else {
        return k3s::Spec::Absent;
    };
    let Some(a) = &node.assignment else {
        return k3s::Spec::Absent;
    };
    if a.leaving {
        // What runs goes on until it is out of etcd; what does not, as after an interrupted wipe, is not started again.
        return if inputs.left || a.role == Role::K3sAgent {
            k3s::Spec::Absent
        } else {
            k3s::Spec::Waiting { reason: "this server to leave etcd".into() }
        };
    }
    let stops = |d: &raft_store::model::Drain| d.stop && d.step >= DrainStep::Stop;
    if node.drain.as_ref().is_some_and(stops) {
        return k3s::Spec::Stopped;
    }
    let Some(cluster) = state.cluster_of(node) else {
        return k3s::Spec::Waiting { reason: "a cluster to be created".into() };
    };
    if let Some(reason) = state.member_blocked_by(cluster, node) {
        return k3s::Spec::Waiting { reason };
    }
    match role(cluster, node, a.role, inputs) {
        Err(reason) => k3s::Spec::Waiting { reason },
        Ok(role) => match run_spec(state, cluster, node, role, inputs) {
            Some(run) => k3s::Spec::Run(Box::new(run)),
            None => k3s::Spec::Waiting { reason: "an address in the cluster's network".into() },
        },
    }
}

fn role(
    cluster: &Cluster,
    node: &Node,
    role: Role,
    inputs: &K3sInputs<'_>,
) -> Result<k3s::Role, String> {
    let founds = cluster.bootstrap == Some(node.id);
    let join = |token: fn(&ClusterSecrets) -> &String| {
        let secrets = inputs.secrets.ok_or("the fleet's key, to open the cluster's secrets")?;
        let url = cluster.endpoint.clone().ok_or("the cluster's endpoint")?;
        Ok::<_, String>(k3s::Join { url, token: k3s::Secret::new(token(secrets).clone()) })
    };
    match role {
        Role::K3sServer if founds && cluster.secrets.is_none() && cluster.etcd.is_none() => {
            Err("etcd's timers, for which round trips and disks are measured".into())
        }
        Role::K3sServer if founds && inputs.secrets.is_none() && inputs.founding.is_none() => {
            // Its settings would lack the secrets that it was founded with.
            Err("the fleet's key, to open the cluster's secrets".into())
        }
        Role::K3sServer if founds => Ok(k3s::Role::Server { join: None }),
        Role::K3sServer => Ok(k3s::Role::Server { join: Some(join(|s| &s.server_token)?) }),
        Role::K3sAgent => Ok(k3s::Role::Agent { join: join(|s| &s.agent_token)? }),
    }
}

/// etcd's timers as its arguments; where they are K3s' own, or were never decided, nothing is said.
fn etcd_args(cluster: &Cluster) -> Vec<String> {
    let decided = cluster.etcd.filter(|t| !t.are_k3s_own());
    decided.map_or_else(Vec::new, |t| {
        vec![
            format!("heartbeat-interval={}", t.heartbeat_ms),
            format!("election-timeout={}", t.election_ms),
        ]
    })
}

fn run_spec(
    state: &State,
    cluster: &Cluster,
    node: &Node,
    role: k3s::Role,
    inputs: &K3sInputs<'_>,
) -> Option<k3s::RunSpec> {
    let own = node.networks.get(&cluster.network)?;
    let net = state.networks.get(&cluster.network)?;
    let vip = state.vip_of(cluster);
    let order = node.assignment.as_ref()?.order;
    let secret = inputs.secrets.map(|s| k3s::Secret::new(s.agent_secret.clone()));
    let founding = inputs.founding;
    // Later on the same secret as at the first start: with another one, or none, K3s could not read what it encrypted.
    let server_token = match inputs.secrets {
        Some(s) => Some(k3s::Secret::new(s.server_token.clone())),
        None => founding.and_then(|f| f.server_secret.clone()),
    };
    Some(k3s::RunSpec {
        node_name: node.name.to_string(),
        cluster: cluster.name.to_string(),
        incarnation: format!("{}-{order}", node.uuid),
        release: inputs.release.clone(),
        node_ips: vec![own.v4.into(), own.v6.into()],
        iface: interface_name(net.name.as_str()),
        vips: vip.iter().flat_map(|v| v.addresses()).collect(),
        names: vip.iter().map(|v| format!("{}.skein", v.name)).collect(),
        cluster_cidr: cluster.pods.clone(),
        service_cidr: cluster.services.clone(),
        server_token,
        agent_token: secret.or_else(|| founding.map(|f| f.agent_secret.clone())),
        ca: founding.map(|f| f.ca.clone()),
        cni: k3s::Cni::FlannelHostGw,
        network_policy: false,
        etcd_args: etcd_args(cluster),
        disable: Vec::new(),
        extra: BTreeMap::new(),
        role,
    })
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Three servers and a worker, as a state that was once written.
    pub(crate) fn lab() -> State {
        let text = include_str!("../../../raft-store/tests/golden/v1/state-lab.json");
        let envelope: serde_json::Value = serde_json::from_str(text).unwrap();
        serde_json::from_value(envelope["body"].clone()).unwrap()
    }

    #[test]
    fn a_route_that_overlaps_the_overlay_is_told() {
        let state = lab();
        let (me, node) = state.nodes.iter().next().unwrap();
        let network = &state.networks[node.networks.keys().next().unwrap()];
        let within = Ipv4Net::new(network.v4.network(), 28).unwrap();
        let said = route_clash(&state, *me, &[within]).unwrap();
        assert!(said.contains(&within.to_string()) && said.contains("overlaps"), "{said}");
        assert_eq!(route_clash(&state, *me, &["192.0.2.0/24".parse().unwrap()]), None);
    }

    fn secrets() -> ClusterSecrets {
        ClusterSecrets {
            server_token: "K10ab::server:s".into(),
            agent_token: "K10ab::node:a".into(),
            agent_secret: "a".into(),
            kubeconfig: String::new(),
            ca: String::new(),
        }
    }

    fn spec(state: &State, me: u64, secrets: Option<&ClusterSecrets>, left: bool) -> k3s::Spec {
        let release = k3s::Release::Pinned;
        let inputs = K3sInputs { me: NodeId(me), release: &release, secrets, founding: None, left };
        k3s_spec(state, &inputs)
    }

    #[test]
    fn a_leaving_server_is_neither_started_nor_stopped_until_it_is_out() {
        let mut state = lab();
        let secrets = secrets();
        for id in [3, 32] {
            let node = state.node_mut(NodeId(id)).unwrap();
            node.assignment.as_mut().unwrap().leaving = true;
        }
        let waits = spec(&state, 3, Some(&secrets), false);
        assert!(matches!(&waits, k3s::Spec::Waiting { reason } if reason.contains("etcd")));
        assert_eq!(spec(&state, 3, Some(&secrets), true), k3s::Spec::Absent);
        assert_eq!(spec(&state, 32, Some(&secrets), false), k3s::Spec::Absent);
    }

    #[test]
    fn the_former_holder_is_known_of_planned_moves_and_the_lost_one_of_losses() {
        let state = lab();
        let mut vip = state.vips.values().next().unwrap().clone();
        let took = |holder, generation, reason| raft_store::model::Assumption {
            holder: NodeId(holder),
            generation: Generation(generation),
            reason,
            at: raft_store::model::UnixMillis(0),
        };
        let planned = [MoveReason::Initial, MoveReason::Drain];
        vip.history = vec![took(1, 1, planned[0]), took(3, 2, planned[1])];
        assert_eq!(former_holder(&vip, Generation(1)), Some(NodeId(1)));
        assert_eq!(former_holder(&vip, Generation(2)), None, "seen already");
        assert_eq!(lost_holders(&vip, Generation(1)), []);
        vip.history.push(took(5, 3, MoveReason::Loss));
        vip.history.push(took(1, 4, MoveReason::Manual));
        assert_eq!(lost_holders(&vip, Generation(1)), [NodeId(3)], "also if it moved again since");
        assert_eq!(former_holder(&vip, Generation(3)), Some(NodeId(5)));
        vip.history.pop();
        assert_eq!(former_holder(&vip, Generation(1)), None, "the dead finish nothing");
    }

    #[test]
    fn a_founder_waits_for_etcds_timers_and_all_servers_start_with_the_same() {
        let mut state = lab();
        let sealed = {
            let c = state.clusters.values_mut().next().unwrap();
            (c.etcd, c.secrets.take())
        };
        assert_eq!(sealed.0, None);
        let waits = spec(&state, 1, None, false);
        assert!(matches!(&waits, k3s::Spec::Waiting { reason } if reason.contains("timers")));
        let cluster = state.clusters.values_mut().next().unwrap();
        cluster.secrets = sealed.1;
        let args = |state: &State, id| match spec(state, id, Some(&secrets()), false) {
            k3s::Spec::Run(run) => run.etcd_args,
            other => panic!("{other:?}"),
        };
        assert!(args(&state, 1).is_empty(), "a cluster of before keeps what it was founded with");
        let decide = |state: &mut State, rtt, sync| {
            let timers = raft_store::plan::etcd_timers(rtt, sync);
            state.clusters.values_mut().next().unwrap().etcd = Some(timers);
        };
        decide(&mut state, 900, Some(4_000));
        let wanted = ["heartbeat-interval=100", "election-timeout=1000"];
        assert_eq!(
            (args(&state, 1), args(&state, 3)),
            (wanted.map(String::from).to_vec(), wanted.map(String::from).to_vec())
        );
        decide(&mut state, 900, None);
        assert!(args(&state, 1).is_empty(), "K3s' own need no argument");
    }

    #[test]
    fn a_founder_starts_with_its_secrets_only() {
        let state = lab();
        let without = spec(&state, 1, None, false);
        assert!(matches!(&without, k3s::Spec::Waiting { reason } if reason.contains("key")));
        let secrets = secrets();
        let k3s::Spec::Run(run) = spec(&state, 1, Some(&secrets), false) else {
            panic!("it does not run")
        };
        let token = run.server_token.unwrap();
        assert_eq!(
            (run.role, token.expose()),
            (k3s::Role::Server { join: None }, "K10ab::server:s")
        );
    }
}
