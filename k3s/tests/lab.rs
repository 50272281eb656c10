//! The driver against a program with K3s' contract, in namespaces of its own. Runs where `SKEIN_LABK3S` names one.
#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "a test fails by panicking, and may talk"
)]

mod common;

use std::path::{Path, PathBuf};
use std::process::Command;

use common::{founder, spec};
use k3s::render::Layout;
use k3s::{
    Driver, Etcd, HandOver, Kube, LinuxConfig, LinuxHost, Manager, Phase, Release, RunSpec, Secret,
    Spec, Turn,
};
use tokio::time::{Duration, Instant};

const INNER: &str = "SKEIN_LAB_INNER";

#[test]
fn a_founding_server_comes_up_survives_and_goes() {
    let Ok(program) = std::env::var("SKEIN_LABK3S") else {
        eprintln!(
            "SKIPPED: SKEIN_LABK3S is not set to a program with K3s' contract; the driver was not tried against one"
        );
        return;
    };
    if std::env::var_os(INNER).is_some_and(|which| which == "2") {
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap()
            .block_on(joiner(Path::new(&program)));
        return;
    }
    if std::env::var_os(INNER).is_some() {
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap()
            .block_on(inner(Path::new(&program)));
        return;
    }
    let dir = tempfile::tempdir_in("/var/tmp").unwrap();
    let mut child = Command::new("unshare");
    child.args(["--net", "--mount", "--pid", "--fork", "--mount-proc", "--kill-child", "--"]);
    child.arg(std::env::current_exe().unwrap()).args([
        "--exact",
        "a_founding_server_comes_up_survives_and_goes",
        "--nocapture",
    ]);
    let status = child.env(INNER, "1").env("SKEIN_LAB_DIR", dir.path()).status();
    match status {
        Ok(status) => assert!(status.success(), "the part inside the namespaces failed"),
        Err(error) => eprintln!("SKIPPED: no namespaces here ({error}); the driver was not tried"),
    }
}

fn ip(arguments: &str) {
    let status = Command::new("ip").args(arguments.split(' ')).status().unwrap();
    assert!(status.success(), "ip {arguments}");
}

fn host(dir: &Path) -> Driver<LinuxHost> {
    let config = LinuxConfig {
        state_dir: dir.join("state"),
        manager: Manager::Process,
        layout: Layout::below(dir),
    };
    Driver::new(LinuxHost::new(config))
}

fn wanted(program: &Path) -> RunSpec {
    let mut wanted = spec(founder());
    wanted.release = Release::path(program);
    wanted.iface = "eth0".into();
    wanted.ca = Some(k3s::make_cluster_ca("lab", 1_795_000_000).unwrap());
    wanted.extra.insert("disable-agent".into(), vec!["true".into()]);
    wanted
}

async fn until(
    driver: &mut Driver<LinuxHost>,
    spec: &Spec,
    phase: &Phase,
    limit_s: u64,
) -> (Turn, Vec<Phase>) {
    let started = Instant::now();
    let mut passed = Vec::new();
    loop {
        let turn = driver.turn(spec, Instant::now()).await;
        if passed.last() != Some(&turn.phase) {
            eprintln!(
                "{:6.1} s  {:?}  {}",
                started.elapsed().as_secs_f32(),
                turn.phase,
                turn.waiting_for.clone().unwrap_or_default()
            );
            passed.push(turn.phase.clone());
        }
        if turn.phase == *phase {
            return (turn, passed);
        }
        assert!(
            started.elapsed() < Duration::from_secs(limit_s),
            "no {phase:?} in {limit_s} s: {turn:?}"
        );
        tokio::time::sleep_until(turn.wake.min(Instant::now() + Duration::from_millis(300))).await;
    }
}

fn pid(dir: &Path) -> i32 {
    let note = std::fs::read_to_string(dir.join("state/process")).unwrap();
    note.lines().nth(1).unwrap().split(' ').next().unwrap().parse().unwrap()
}

fn wire() {
    for line in [
        "link set lo up",
        "link add eth0 type veth peer name eth1",
        "link set eth1 up",
        "link set eth0 up",
        "addr add 10.91.0.1/24 dev eth0",
        "addr add fd5e::1/64 dev eth0 nodad",
        "addr add fd5e::100/128 dev eth0 nodad",
        "route add default via 10.91.0.254",
    ] {
        ip(line);
    }
    // Names of network namespaces must not reach the machine's own /run.
    assert!(
        Command::new("mount").args(["-t", "tmpfs", "tmpfs", "/run"]).status().unwrap().success()
    );
}

async fn inner(program: &Path) {
    let dir = PathBuf::from(std::env::var_os("SKEIN_LAB_DIR").unwrap());
    wire();
    let run = Spec::Run(Box::new(wanted(program)));
    let mut driver = host(&dir);
    let (_, passed) = until(&mut driver, &run, &Phase::Bootstrapped, 180).await;
    assert!(passed.contains(&Phase::Installing) && passed.contains(&Phase::Starting), "{passed:?}");
    let (turn, _) = until(&mut driver, &run, &Phase::Ready, 60).await;
    let captured = turn.captured.expect("a ready server has credentials");
    let Spec::Run(asked) = &run else { unreachable!() };
    let authority = asked
        .ca
        .clone()
        .unwrap()
        .authorities
        .into_iter()
        .find(|one| one.name == "server-ca")
        .unwrap();
    assert_eq!(captured.server_ca, authority.chain, "the cluster's own authority is in force");
    assert!(
        captured.server_token.expose().starts_with("K10")
            && captured.server_token.expose().ends_with("::server:foundersecret")
    );
    assert!(
        captured.agent_token.expose().starts_with("K10")
            && captured.agent_token.expose().ends_with("agentsecret")
    );

    let kube = Kube::new(&captured.kubeconfig, Some("https://[fd5e::100]:6443")).unwrap();
    kube.readyz().await.unwrap();
    eprintln!("nodes: {:?}", kube.nodes().await.unwrap());
    assert!(!kube.uncordon("nobody").await.unwrap());
    kube.delete_node("nobody").await.unwrap();
    kube.delete_node_password("nobody").await.unwrap();

    let etcd = Etcd::open(&Layout::below(&dir).data_dir).unwrap();
    assert!(etcd.is_leader().await.unwrap() && etcd.healthy().await.unwrap());
    let members = etcd.members().await.unwrap();
    assert!(members.len() == 1 && members[0].leader && members[0].local, "{members:?}");
    assert_eq!(identity("n1").find(&members), Some(&members[0]));
    assert_eq!(etcd.hand_over(&[]).await.unwrap(), HandOver::NoCandidate);

    second(program, &dir, &captured.server_token, &etcd).await;
    drop(driver);
    interrupted(&dir, &run).await;
}

/// The daemon comes back, K3s is killed, stopped, removed.
async fn interrupted(dir: &Path, run: &Spec) {
    let before = pid(dir);
    let mut driver = host(dir);
    until(&mut driver, run, &Phase::Ready, 20).await;
    assert_eq!(pid(dir), before, "a daemon's restart is none of K3s");

    Command::new("kill").args(["-9", &before.to_string()]).status().unwrap();
    until(&mut driver, run, &Phase::Degraded, 20).await;
    until(&mut driver, run, &Phase::Ready, 120).await;
    assert_ne!(pid(dir), before);

    until(&mut driver, &Spec::Stopped, &Phase::Stopped, 5).await;
    until(&mut driver, &Spec::Absent, &Phase::Absent, 60).await;
    assert!(!Layout::below(dir).data_dir.exists() && !dir.join("state/bin").exists());
}

/// A second server in a network namespace of its own joins through the virtual address, gets etcd's leadership, and leaves.
async fn second(program: &Path, dir: &Path, token: &Secret, etcd: &Etcd) {
    for line in [
        "netns add n2",
        "link set eth1 netns n2",
        "-n n2 link set lo up",
        "-n n2 link set eth1 name eth0 up",
        "-n n2 addr add 10.91.0.2/24 dev eth0",
        "-n n2 addr add fd5e::2/64 dev eth0 nodad",
        "-n n2 route add default via 10.91.0.254",
    ] {
        ip(line);
    }
    let below = dir.join("n2");
    std::fs::create_dir(&below).unwrap();
    std::fs::write(below.join("token"), token.expose()).unwrap();
    let mut child = Command::new("ip");
    child.args(["netns", "exec", "n2"]).arg(std::env::current_exe().unwrap()).args([
        "--exact",
        "a_founding_server_comes_up_survives_and_goes",
        "--nocapture",
    ]);
    let mut child = child
        .env(INNER, "2")
        .env("SKEIN_LABK3S", program)
        .env("SKEIN_LAB_DIR", &below)
        .spawn()
        .unwrap();
    let started = Instant::now();
    while !below.join("ready").exists() {
        assert!(started.elapsed() < Duration::from_secs(150), "the second server is not ready");
        assert!(child.try_wait().unwrap().is_none(), "the second server's driver ended");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    eprintln!("second server ready after {:.1} s", started.elapsed().as_secs_f32());
    let members = etcd.members().await.unwrap();
    assert!(members.iter().filter(|member| !member.learner).count() == 2, "{members:?}");
    let HandOver::Moved { to } = etcd.hand_over(&[]).await.unwrap() else {
        panic!("nobody took the leadership")
    };
    assert!(to.starts_with("n2-"), "{to}");
    assert_eq!(etcd.hand_over(&[]).await.unwrap(), HandOver::NotLeader);
    assert!(!etcd.is_leader().await.unwrap());
    std::fs::write(below.join("hand-back"), "").unwrap();
    assert!(child.wait().unwrap().success());
    assert!(etcd.is_leader().await.unwrap());
    assert_eq!(etcd.members().await.unwrap().len(), 1);
    // That the removal is committed must reach n1's disk, with a later write, before n1 may crash: else it waits for n2 for ever.
    tokio::time::sleep(Duration::from_secs(6)).await;
}

async fn joiner(program: &Path) {
    let dir = PathBuf::from(std::env::var_os("SKEIN_LAB_DIR").unwrap());
    let token = Secret::new(std::fs::read_to_string(dir.join("token")).unwrap());
    let mut asked = wanted(program);
    asked.node_name = "n2".into();
    asked.node_ips = vec!["10.91.0.2".parse().unwrap(), "fd5e::2".parse().unwrap()];
    asked.role = k3s::Role::Server {
        join: Some(k3s::Join { url: "https://[fd5e::100]:6443".into(), token }),
    };
    asked.server_token = None;
    let run = Spec::Run(Box::new(asked));
    let mut driver = host(&dir);
    let (_, passed) = until(&mut driver, &run, &Phase::Ready, 150).await;
    assert!(passed.contains(&Phase::Joining), "{passed:?}");
    std::fs::write(dir.join("ready"), "").unwrap();
    while !dir.join("hand-back").exists() {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let etcd = Etcd::open(&Layout::below(&dir).data_dir).unwrap();
    let HandOver::Moved { to } = etcd.hand_over(&[identity("n1")]).await.unwrap() else {
        panic!("nobody took it back")
    };
    assert!(to.starts_with("n1-"), "{to}");
    let started = Instant::now();
    let view = etcd.members_anywhere(&[]).await.unwrap();
    let own = identity("n2").find(&view.members).unwrap();
    while let Err(error) = etcd.remove(&view, own).await {
        assert!(
            error.to_string().contains("unhealthy cluster")
                && started.elapsed() < Duration::from_secs(20),
            "{error}"
        );
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    until(&mut driver, &Spec::Absent, &Phase::Absent, 90).await;
}

fn identity(node: &str) -> k3s::Identity {
    k3s::Identity { node: node.to_owned(), addresses: Vec::new() }
}
