//! The simulated K3s under the real driver.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use k3s::{
    Captured, Cni, Driver, EtcdApi, HandOver, Identity, Join, KubeApi, KubeError, Phase, Release,
    Role, RunSpec, Secret, Spec, Turn,
};
use raft_store::rt::{elapsed, now, sleep};

use super::*;

const SEED: u64 = 11;

/// Machine n has the address 10.91.0.n; the VIP is where it was put.
#[derive(Default)]
struct Net {
    vip: Mutex<usize>,
    cut: Mutex<BTreeSet<usize>>,
}

impl Reach for Net {
    fn answers(&self, from: usize, to: IpAddr) -> Option<usize> {
        let IpAddr::V4(four) = to else { return None };
        let machine = match four.octets()[3] {
            100 => *self.vip.lock().unwrap(),
            last => usize::from(last),
        };
        self.connected(from, machine).then_some(machine)
    }

    fn connected(&self, from: usize, to: usize) -> bool {
        let cut = self.cut.lock().unwrap();
        from == to || !(cut.contains(&from) || cut.contains(&to))
    }
}

fn spec(machine: usize, role: Role) -> RunSpec {
    RunSpec {
        node_name: format!("n{machine}"),
        cluster: "lab".into(),
        incarnation: format!("uuid-{machine}-1"),
        role,
        release: Release::path("/opt/k3s"),
        node_ips: vec![address(machine), format!("fd5e::{machine}").parse().unwrap()],
        iface: "wg-sdwan-0a1b2c".into(),
        vips: vec!["10.91.0.100".parse().unwrap()],
        names: Vec::new(),
        cluster_cidr: vec!["10.42.0.0/16".parse().unwrap(), "fd42::/56".parse().unwrap()],
        service_cidr: vec!["10.43.0.0/16".parse().unwrap(), "fd43::/112".parse().unwrap()],
        server_token: Some(Secret::new("foundersecret")),
        agent_token: Some(Secret::new("agentsecret")),
        ca: Some(cluster_ca("lab", [7; 32])),
        cni: Cni::FlannelHostGw,
        network_policy: false,
        etcd_args: Vec::new(),
        disable: Vec::new(),
        extra: BTreeMap::new(),
    }
}

fn address(machine: usize) -> IpAddr {
    format!("10.91.0.{machine}").parse().unwrap()
}

/// A few machines with a driver each.
struct Lab {
    net: Arc<Net>,
    world: Kubernetes,
    drivers: BTreeMap<usize, (Driver<SimHost>, Spec)>,
    turns: BTreeMap<usize, Turn>,
    most_learners: usize,
}

impl Lab {
    fn new() -> Self {
        let net = Arc::new(Net { vip: Mutex::new(1), cut: Mutex::default() });
        let world = Kubernetes::new(net.clone(), SEED);
        let (drivers, turns) = (BTreeMap::new(), BTreeMap::new());
        Self { net, world, drivers, turns, most_learners: 0 }
    }

    fn give(&mut self, machine: usize, spec: Spec) {
        let host = || Driver::new(self.world.machine(machine).host());
        let entry = self.drivers.entry(machine).or_insert_with(|| (host(), Spec::Absent));
        entry.1 = spec;
    }

    fn run(&mut self, machine: usize, role: Role) {
        self.give(machine, Spec::Run(Box::new(spec(machine, role))));
    }

    fn server(&mut self, machine: usize, founder: &Captured) {
        let (url, token) = ("https://10.91.0.100:6443".into(), founder.server_token.clone());
        self.run(machine, Role::Server { join: Some(Join { url, token }) });
    }

    fn worker(&mut self, machine: usize, token: Secret) {
        let url = "https://10.91.0.100:6443".into();
        self.run(machine, Role::Agent { join: Join { url, token } });
    }

    async fn turn(&mut self) {
        for (machine, (driver, spec)) in &mut self.drivers {
            let turn = driver.turn(spec, now()).await;
            self.turns.insert(*machine, turn);
        }
        for cluster in self.world.clusters() {
            let learners = cluster.members.iter().filter(|m| m.learner).count();
            self.most_learners = self.most_learners.max(learners);
        }
        sleep(Duration::from_millis(300)).await;
    }

    /// Goes on until something is so, and returns how long it took.
    async fn until(&mut self, what: &str, so: impl Fn(&Self) -> bool) -> Duration {
        let began = now();
        while !so(self) {
            assert!(elapsed(began) < Duration::from_secs(120), "{what}: {:#?}", self.turns);
            self.turn().await;
        }
        elapsed(began)
    }

    async fn pass(&mut self, seconds: u64) {
        let began = now();
        while elapsed(began) < Duration::from_secs(seconds) {
            self.turn().await;
        }
    }

    fn phase(&self, machine: usize) -> Option<&Phase> {
        self.turns.get(&machine).map(|turn| &turn.phase)
    }

    fn waits(&self, machine: usize) -> String {
        self.turns.get(&machine).and_then(|t| t.waiting_for.clone()).unwrap_or_default()
    }

    async fn ready(&mut self, machines: &[usize]) -> Duration {
        let so = |lab: &Self| machines.iter().all(|m| lab.phase(*m) == Some(&Phase::Ready));
        self.until(&format!("{machines:?} to be ready"), so).await
    }

    async fn founded(&mut self) -> Captured {
        self.run(1, Role::Server { join: None });
        self.ready(&[1]).await;
        self.turns[&1].captured.clone().unwrap()
    }

    /// Three servers, of which the first founded.
    async fn three() -> (Self, Captured) {
        let mut lab = Self::new();
        let captured = lab.founded().await;
        lab.server(2, &captured);
        lab.server(3, &captured);
        lab.ready(&[1, 2, 3]).await;
        (lab, captured)
    }

    fn kube(&self, from: usize, c: &Captured) -> SimKube {
        self.world.kube(from, &c.kubeconfig, Some("https://10.91.0.100:6443")).unwrap()
    }

    fn members(&self) -> Vec<usize> {
        self.world.clusters()[0].members.iter().map(|m| m.machine).collect()
    }

    fn cut(&self, machines: &[usize]) {
        *self.net.cut.lock().unwrap() = machines.iter().copied().collect();
    }
}

#[tokio::test(start_paused = true)]
async fn a_founder_becomes_ready_with_the_authority_that_was_laid() {
    let mut lab = Lab::new();
    let captured = lab.founded().await;
    let ca = cluster_ca("lab", [7; 32]);
    assert_eq!(captured.server_ca, ca.authorities[0].chain);
    let token = k3s::token::Token::parse(captured.server_token.expose()).unwrap();
    assert_eq!(token.ca_hash, Some(ca::fingerprint(&ca.root_certificate)));
    assert_eq!(token.secret.expose(), "foundersecret");
    assert!(captured.agent_token.expose().ends_with("::node:agentsecret"));
    let kube = lab.world.kube(1, &captured.kubeconfig, None).unwrap();
    let node = kube.node("n1").await.unwrap().unwrap();
    assert!(node.ready && node.server && node.addresses.contains(&address(1)));
    let cidrs: Vec<String> = node.pod_cidrs.iter().map(ToString::to_string).collect();
    assert_eq!(cidrs, ["10.42.0.0/24", "fd42::/64"]);
    assert_eq!(lab.world.founders(), [("lab".to_owned(), vec![1])]);
    assert!(lab.world.has_etcd_data(1) && lab.world.machine(1).is_ready());
    let handed = k3s::kubeconfig_for(&captured.kubeconfig, "https://10.91.0.100:6443", "lab");
    assert!(lab.world.kube(4, &handed.unwrap(), None).is_ok());
}

#[tokio::test(start_paused = true)]
async fn servers_join_one_after_the_other() {
    let (lab, captured) = Lab::three().await;
    assert_eq!(lab.most_learners, 1);
    let cluster = lab.world.clusters().remove(0);
    assert!(cluster.quorum && cluster.members.iter().all(|m| !m.learner && m.name.len() == 11));
    assert_eq!(lab.world.founders(), [("lab".to_owned(), vec![1])]);
    assert_eq!(cluster.members.iter().filter(|m| m.leader).count(), 1);
    let own = lab.turns[&3].captured.clone().unwrap();
    assert_eq!(own, captured, "every server writes the same");
}

#[tokio::test(start_paused = true)]
async fn a_worker_joins_with_the_right_token_at_a_reachable_server() {
    let mut lab = Lab::new();
    let captured = lab.founded().await;
    let text = captured.agent_token.expose();
    lab.worker(4, Secret::new(text.replace("agentsecret", "guessed")));
    lab.pass(20).await;
    assert!(lab.waits(4).contains("401 Unauthorized"), "{}", lab.waits(4));
    assert!(!lab.waits(4).contains("guessed"));
    lab.worker(4, Secret::new(format!("K10{}{}", "0".repeat(64), &text[67..])));
    lab.pass(20).await;
    assert!(lab.waits(4).contains("CA hash does not match"), "{}", lab.waits(4));
    lab.cut(&[1]);
    lab.worker(4, captured.agent_token.clone());
    lab.pass(20).await;
    assert!(lab.waits(4).contains("failed to get CA certs"), "{}", lab.waits(4));
    assert_eq!(lab.turns[&4].health.ready, Some(false));
    lab.cut(&[]);
    lab.ready(&[4]).await;
    let own = lab.world.kube(4, &captured.kubeconfig, None).unwrap();
    let refused = own.node("n4").await;
    assert!(matches!(refused, Err(KubeError::Unreachable { .. })), "no API on a worker");
    let node = lab.kube(4, &captured).node("n4").await.unwrap().unwrap();
    assert!(node.ready && !node.server);
    lab.cut(&[4]);
    lab.until("the worker to lose touch", |lab| lab.turns[&4].health.ready == Some(false)).await;
    lab.cut(&[]);
    lab.ready(&[4]).await;
}

#[tokio::test(start_paused = true)]
async fn an_agents_token_makes_no_server() {
    let mut lab = Lab::new();
    let mut captured = lab.founded().await;
    captured.server_token = captured.agent_token.clone();
    lab.server(2, &captured);
    lab.pass(30).await;
    assert!(lab.waits(2).contains("server-bootstrap: 401"), "{}", lab.waits(2));
    assert_eq!(lab.members(), [1]);
}

#[tokio::test(start_paused = true)]
async fn without_a_quorum_servers_are_not_ready_until_it_is_back() {
    let (mut lab, captured) = Lab::three().await;
    lab.cut(&[1]);
    lab.until("the cut-off one to degrade", |lab| lab.phase(1) == Some(&Phase::Degraded)).await;
    lab.pass(5).await;
    assert!(lab.world.machine(2).is_ready() && lab.world.machine(3).is_ready());
    assert!(lab.world.clusters()[0].quorum);
    let began = now();
    let silent = lab.kube(2, &captured).node("n1").await;
    assert!(matches!(silent, Err(KubeError::Unreachable { .. })));
    assert_eq!(elapsed(began), Duration::from_secs(3), "silence takes time");
    *lab.net.vip.lock().unwrap() = 2;
    lab.pass(60).await;
    let node = lab.kube(2, &captured).node("n1").await.unwrap().unwrap();
    assert!(!node.ready, "{node:?}");
    lab.world.machine(2).power_off();
    assert!(!lab.world.machine(3).is_ready() && !lab.world.clusters()[0].quorum);
    lab.cut(&[]);
    lab.ready(&[1, 2, 3]).await;
}

#[tokio::test(start_paused = true)]
async fn a_deleted_node_takes_its_member_along_and_may_join_anew() {
    let (mut lab, captured) = Lab::three().await;
    let kube = lab.kube(1, &captured);
    kube.delete_node("n3").await.unwrap();
    assert!(kube.node("n3").await.unwrap().is_some(), "K3s holds it at first");
    sleep(Duration::from_secs(2)).await;
    assert!(kube.node("n3").await.unwrap().is_none());
    assert_eq!(lab.members(), [1, 2]);
    lab.until("the removed one to end", |lab| lab.waits(3).contains("it ended")).await;
    assert!(lab.waits(3).contains("removed from the etcd cluster"), "{}", lab.waits(3));
    lab.give(3, Spec::Absent);
    lab.until("it to be gone", |lab| lab.phase(3) == Some(&Phase::Absent)).await;
    assert!(!lab.world.has_etcd_data(3));
    lab.server(3, &captured);
    lab.ready(&[1, 2, 3]).await;
}

#[tokio::test(start_paused = true)]
async fn a_wiped_machine_joins_again_once_its_password_is_forgotten() {
    let mut lab = Lab::new();
    let captured = lab.founded().await;
    lab.worker(4, captured.agent_token.clone());
    lab.ready(&[4]).await;
    lab.world.machine(4).wipe();
    lab.until("the refusal", |lab| lab.turns[&4].password_rejected).await;
    lab.pass(20).await;
    assert!(lab.waits(4).contains("Node password rejected"), "{}", lab.waits(4));
    lab.kube(1, &captured).delete_node_password("n4").await.unwrap();
    lab.ready(&[4]).await;
    lab.pass(2).await;
    assert!(!lab.turns[&4].password_rejected);
}

#[tokio::test(start_paused = true)]
async fn a_wiped_server_is_refused_while_etcd_has_its_name() {
    let (mut lab, captured) = Lab::three().await;
    lab.world.machine(3).wipe();
    lab.until("the refusal", |lab| lab.waits(3).contains("duplicate node name")).await;
    lab.kube(1, &captured).delete_node("n3").await.unwrap();
    lab.ready(&[1, 2, 3]).await;
    lab.pass(5).await;
    assert!(!lab.turns[&3].password_rejected, "it went with the Node");
}

#[tokio::test(start_paused = true)]
async fn evicted_pods_go_elsewhere_and_come_back() {
    let mut lab = Lab::new();
    let captured = lab.founded().await;
    lab.worker(4, captured.agent_token.clone());
    lab.ready(&[4]).await;
    let kube = lab.kube(4, &captured);
    let at = |lab: &Lab, node: &str| {
        let pods = lab.world.clusters()[0].pods.clone();
        pods.values().filter(|p| p.as_deref() == Some(node)).count()
    };
    assert_eq!((at(&lab, "n1"), at(&lab, "n4")), (2, 2));
    kube.cordon("n4").await.unwrap();
    let progress = kube.evict("n4").await.unwrap();
    assert!(!progress.done() && progress.staying == 1);
    sleep(Duration::from_secs(3)).await;
    assert!(kube.evict("n4").await.unwrap().done());
    assert_eq!((at(&lab, "n1"), at(&lab, "n4")), (4, 0));
    assert!(kube.node("n4").await.unwrap().unwrap().cordoned_by_us);
    assert!(kube.uncordon("n4").await.unwrap() && !kube.uncordon("n4").await.unwrap());
    assert!(matches!(kube.cordon("n9").await, Err(KubeError::Refused { status: 404, .. })));
}

#[tokio::test(start_paused = true)]
async fn etcd_hands_over_and_keeps_its_majority() {
    let (mut lab, _) = Lab::three().await;
    assert!(lab.world.etcd(4).is_err());
    let [one, two, three] = [1, 2, 3].map(|m| lab.world.etcd(m).unwrap());
    let named = |node: &str, m: usize| Identity { node: node.into(), addresses: vec![address(m)] };
    assert_eq!(two.hand_over(&[]).await.unwrap(), HandOver::NotLeader);
    let moved = one.hand_over(&[named("n2", 2)]).await.unwrap();
    assert!(matches!(moved, HandOver::Moved { to } if to.starts_with("n3-")));
    assert_eq!(one.hand_over(&[]).await.unwrap(), HandOver::NotLeader);
    let moved = three.hand_over(&[named("n1", 1), named("n2", 2)]).await.unwrap();
    assert!(matches!(moved, HandOver::Moved { .. }), "to an avoided one, for lack of others");

    lab.world.machine(1).crash_k3s();
    assert!(one.members_anywhere(&[]).await.is_err());
    let view = one.members_anywhere(&[address(2)]).await.unwrap();
    assert!(view.members.iter().all(|m| !m.local));
    let find = |node: &str, m| named(node, m).find(&view.members).unwrap().clone();
    assert!(one.remove(&view, &find("n2", 2)).await.is_err(), "two of three are up");
    one.remove(&view, &find("n1", 1)).await.unwrap();
    assert!(one.remove(&view, &find("n1", 1)).await.is_err(), "it is gone");
    let view = two.members_anywhere(&[]).await.unwrap();
    assert_eq!(view.members.iter().filter(|m| m.local).count(), 1);
    assert!(two.remove(&view, &find("n3", 3)).await.is_ok());
    assert_eq!(two.hand_over(&[]).await.unwrap(), HandOver::NoCandidate);
    assert!(two.remove(&view, &find("n2", 2)).await.is_err(), "the last one stays");
    lab.until("the removed one to end", |lab| lab.waits(1).contains("it ended")).await;
}

#[tokio::test(start_paused = true)]
async fn k3s_outlives_the_daemon_and_comes_back_from_faults() {
    let (mut lab, _) = Lab::three().await;
    let machine = lab.world.machine(2);
    lab.drivers.remove(&2);
    lab.pass(5).await;
    assert!(machine.is_ready(), "without a daemon");
    lab.give(2, Spec::Waiting { reason: "the fleet".into() });
    lab.ready(&[2]).await;
    let captured = lab.turns[&1].captured.clone().unwrap();
    lab.server(2, &captured);
    lab.pass(2).await;
    machine.lie_once();
    lab.turn().await;
    assert_eq!(lab.turns[&2].health.ready, Some(false));
    lab.turn().await;
    assert_eq!(lab.turns[&2].health.ready, Some(true));
    machine.set_never_ready(true);
    lab.turn().await;
    assert_eq!(lab.phase(2), Some(&Phase::Degraded));
    assert!(lab.world.clusters()[0].quorum && lab.world.machine(3).is_ready());
    machine.set_never_ready(false);
    machine.crash_k3s();
    lab.turn().await;
    assert!(lab.waits(2).contains("exit status 2"), "{}", lab.waits(2));
    let usual = lab.ready(&[2]).await;
    machine.set_slow(20);
    machine.power_off();
    lab.turn().await;
    assert!(lab.ready(&[2]).await > usual * 2);
    assert_eq!(lab.world.founders(), [("lab".to_owned(), vec![1])]);
}

#[tokio::test(start_paused = true)]
async fn an_interrupted_wipe_goes_on_with_the_next_daemon() {
    let mut lab = Lab::new();
    lab.founded().await;
    lab.world.machine(1).set_slow(10);
    lab.give(1, Spec::Absent);
    lab.until("the wipe", |lab| lab.waits(1).contains("removing what K3s left")).await;
    lab.pass(16).await;
    lab.drivers.remove(&1);
    lab.give(1, Spec::Absent);
    assert!(lab.phase(1) == Some(&Phase::Stopping) || lab.phase(1) == Some(&Phase::Absent));
    lab.until("it to be gone", |lab| lab.phase(1) == Some(&Phase::Absent)).await;
    assert!(!lab.world.has_etcd_data(1));
}

#[tokio::test(start_paused = true)]
async fn a_second_founding_under_one_authority_shows() {
    let mut lab = Lab::new();
    let captured = lab.founded().await;
    lab.run(2, Role::Server { join: None });
    lab.ready(&[2]).await;
    assert_eq!(lab.world.founders(), [("lab".to_owned(), vec![1, 2])]);
    lab.world.found_again();
    lab.server(3, &captured);
    lab.ready(&[3]).await;
    assert_eq!(lab.world.founders(), [("lab".to_owned(), vec![1, 2, 3])]);
}

#[tokio::test(start_paused = true)]
async fn the_same_seed_gives_the_same_world() {
    let (first, one) = Lab::three().await;
    let began = now();
    let (second, two) = Lab::three().await;
    assert_eq!((first.world.clusters(), one), (second.world.clusters(), two));
    assert!(elapsed(began) > Duration::from_secs(5));
}
