//! A fleet to test on: each command is proposed under a fresh request, and each step keeps the invariants. Pure.

use uuid::Uuid;

use super::invariant;
use crate::apply::{
    Change, Command, CreateCluster, FoundFleet, NewNode, Outcome, Proposal, Rejection, ReportPhase,
    apply,
};
use crate::model::{
    Assignment, Cluster, Digest, Generation, MoveReason, Name, Node, NodeId, Phase, PublicKey,
    RequestId, Role, Sealed, State, TicketId, TicketRole, UnixMillis, Vip,
};

pub(crate) const SECRET: &[u8] = b"the ticket's secret";
pub(crate) const ENDPOINT: &str = "https://[fd5e:1:2:1::100]:6443";

pub(crate) fn name(s: &str) -> Name {
    s.parse().unwrap()
}

pub(crate) fn names(all: &[&str]) -> Vec<Name> {
    all.iter().map(|s| name(s)).collect()
}

pub(crate) fn key(seed: u8) -> PublicKey {
    PublicKey([seed.max(1); 32])
}

/// A machine whose identity and keys follow from `seed`.
pub(crate) fn machine(called: &str, seed: u8) -> NewNode {
    NewNode {
        uuid: Uuid::from_u128(0xa000 + u128::from(seed)),
        name: name(called),
        wireguard: key(seed),
        sealing: key(seed),
    }
}

pub(crate) fn founding() -> FoundFleet {
    FoundFleet {
        id: Uuid::from_u128(0xf1ee7),
        ca_cert: "-----BEGIN CERTIFICATE-----".into(),
        ca_key: Sealed(vec![1, 2, 3]),
        ipv4_pool: "10.90.0.0/16".parse().unwrap(),
        ula: "fd5e:1:2::/48".parse().unwrap(),
        voters: 3,
        network: name("default"),
        node: machine("n1", 1),
        key_box: Sealed(vec![4, 5]),
    }
}

#[derive(Clone)]
pub(crate) struct World {
    pub(crate) state: State,
    pub(crate) index: u64,
    pub(crate) now: u64,
}

impl std::fmt::Debug for World {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (nodes, clusters) = (self.state.nodes.len(), self.state.clusters.len());
        write!(f, "{nodes} nodes, {clusters} clusters, index {}", self.index)
    }
}

impl World {
    pub(crate) fn empty() -> Self {
        Self { state: State::default(), index: 0, now: 1_000_000 }
    }

    /// A fleet of the nodes n1 to n`count`.
    pub(crate) fn fleet(count: u8) -> Self {
        let mut w = Self::empty();
        w.ok(Command::FoundFleet(founding()));
        for i in 2..=count {
            w.join(&format!("n{i}"), i);
        }
        w
    }

    /// A fleet with a working cluster `lab`: the first `servers` nodes are its servers.
    pub(crate) fn lab(servers: u8, workers: u8) -> Self {
        let mut w = Self::fleet(servers + workers);
        w.create("lab", servers, workers);
        w.bring_up("lab");
        w
    }

    pub(crate) fn propose(&self, request: u128, command: Command) -> Proposal {
        Proposal {
            request: RequestId(Uuid::from_u128(request)),
            at: UnixMillis(self.now),
            by: "operator".into(),
            command,
        }
    }

    pub(crate) fn run_as(&mut self, request: u128, command: Command) -> Outcome {
        self.index += 1;
        self.now += 10;
        let before = self.state.clone();
        let proposal = self.propose(request, command);
        let outcome = apply(&mut self.state, self.index, &proposal);
        invariant::check(&before, &self.state, &proposal.command, &outcome);
        outcome
    }

    pub(crate) fn run(&mut self, command: Command) -> Outcome {
        self.run_as(u128::from(self.index + 1), command)
    }

    pub(crate) fn ok(&mut self, command: Command) -> Change {
        let shown = format!("{command:?}");
        match self.run(command) {
            Outcome::Done { change } => change,
            other => panic!("{shown} gave {other:?}"),
        }
    }

    pub(crate) fn refused(&mut self, command: Command) -> Rejection {
        let shown = format!("{command:?}");
        match self.run(command) {
            Outcome::Rejected { rejection } => {
                assert!(!rejection.what.is_empty() && !rejection.why.is_empty());
                assert!(!rejection.next.is_empty());
                rejection
            }
            other => panic!("{shown} gave {other:?}"),
        }
    }

    pub(crate) fn ticket(&mut self, uses: u32) -> TicketId {
        let made = self.ok(Command::CreateTicket {
            digest: Digest::of(SECRET),
            role: TicketRole::Any,
            network: None,
            expires: UnixMillis(self.now + 3_600_000),
            uses,
        });
        let Change::Ticket { id } = made else { panic!("{made:?}") };
        id
    }

    pub(crate) fn admit(ticket: TicketId, node: NewNode, replaces: Option<&str>) -> Command {
        Command::AdmitNode {
            ticket,
            digest: Digest::of(SECRET),
            node,
            replaces: replaces.map(name),
        }
    }

    pub(crate) fn join(&mut self, called: &str, seed: u8) -> NodeId {
        let ticket = self.ticket(1);
        let made = self.ok(Self::admit(ticket, machine(called, seed), None));
        let Change::Node { id } = made else { panic!("{made:?}") };
        id
    }

    pub(crate) fn replace(&mut self, called: &str, seed: u8) -> NodeId {
        let ticket = self.ticket(1);
        let made = self.ok(Self::admit(ticket, machine(called, seed), Some(called)));
        let Change::Node { id } = made else { panic!("{made:?}") };
        id
    }

    pub(crate) fn create(&mut self, cluster: &str, servers: u8, workers: u8) {
        let nodes: Vec<Name> = (1..=servers + workers).map(|i| name(&format!("n{i}"))).collect();
        let (servers, workers) = nodes.split_at(usize::from(servers));
        self.ok(Command::CreateCluster(CreateCluster {
            name: name(cluster),
            network: None,
            servers: servers.to_vec(),
            workers: workers.to_vec(),
        }));
    }

    pub(crate) fn assign(node: &str, role: Role, cluster: Option<&str>) -> Command {
        Command::AssignRole { node: name(node), role, cluster: cluster.map(name) }
    }

    pub(crate) fn unassign(node: &str) -> Command {
        Command::UnassignRole { node: name(node), force: false }
    }

    /// What a daemon reports on entering `phase`.
    pub(crate) fn phase(&self, node: &str, phase: Phase) -> Command {
        let bootstrap = phase == Phase::Bootstrapped;
        Command::ReportPhase(ReportPhase {
            node: self.id(node),
            order: self.node(node).assignment.as_ref().map_or(0, |a| a.order),
            phase,
            message: None,
            version: Some("v1.34.1+k3s1".into()),
            endpoint: bootstrap.then(|| ENDPOINT.into()),
            secrets: bootstrap.then(|| Sealed(vec![9; 8])),
        })
    }

    pub(crate) fn report(&mut self, node: &str, phase: Phase) {
        let command = self.phase(node, phase);
        self.ok(command);
    }

    pub(crate) fn found_cluster(&mut self, founder: &str) {
        for phase in [Phase::Installing, Phase::Bootstrapped, Phase::Ready] {
            self.report(founder, phase);
        }
    }

    pub(crate) fn join_cluster(&mut self, member: &str) {
        for phase in [Phase::Installing, Phase::JoinRequested, Phase::Ready] {
            self.report(member, phase);
        }
    }

    pub(crate) fn bring_up(&mut self, cluster: &str) {
        let id = self.cluster(cluster).id;
        let founder = self.cluster(cluster).bootstrap.unwrap();
        let founder = self.state.nodes[&founder].name.clone();
        let others: Vec<Name> = (self.state.servers(id).into_iter())
            .chain(self.state.members(id, Role::K3sAgent))
            .map(|(n, _)| n.name.clone())
            .filter(|n| *n != founder)
            .collect();
        self.found_cluster(founder.as_str());
        for member in others {
            self.join_cluster(member.as_str());
        }
    }

    pub(crate) fn drain(node: &str, stop: bool, force: bool) -> Command {
        Command::Drain { node: name(node), stop, timeout_ms: 60_000, force }
    }

    pub(crate) fn undrain(node: &str) -> Command {
        Command::Undrain { node: name(node) }
    }

    pub(crate) fn move_vip(&self, to: &str) -> Command {
        let vip = self.vip("lab");
        Command::MoveVip {
            vip: vip.id,
            expect: vip.generation,
            to: self.id(to),
            reason: MoveReason::Manual,
        }
    }

    pub(crate) fn pods(&self, node: &str, expect: u64, cidrs: &[&str]) -> Command {
        Command::ReportPods {
            node: self.id(node),
            expect: Generation(expect),
            cidrs: cidrs.iter().map(|c| c.parse().unwrap()).collect(),
        }
    }

    pub(crate) fn id(&self, node: &str) -> NodeId {
        self.node(node).id
    }

    pub(crate) fn node(&self, node: &str) -> &Node {
        self.state.node_named(&name(node)).unwrap()
    }

    pub(crate) fn role(&self, node: &str) -> &Assignment {
        self.node(node).assignment.as_ref().unwrap()
    }

    pub(crate) fn ghosts(&self, cluster: &str) -> Vec<Name> {
        self.cluster(cluster).ghosts.iter().map(|g| g.name.clone()).collect()
    }

    pub(crate) fn cluster(&self, cluster: &str) -> &Cluster {
        self.state.cluster_named(&name(cluster)).unwrap()
    }

    pub(crate) fn vip(&self, cluster: &str) -> &Vip {
        self.state.vip_of(self.cluster(cluster)).unwrap()
    }

    pub(crate) fn holder(&self) -> String {
        self.state.name_of(self.vip("lab").holder.unwrap())
    }

    /// Kinds of all events after the one with index `after`, without their common `system.`.
    pub(crate) fn kinds(&self, after: u64) -> Vec<&str> {
        let events = self.state.events.after(after);
        events.map(|e| e.kind.strip_prefix("system.").unwrap_or(&e.kind)).collect()
    }
}
