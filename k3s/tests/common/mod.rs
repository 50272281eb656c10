//! What several tests share: specs, and a host that is only a value.
#![allow(
    dead_code,
    clippy::unwrap_used,
    reason = "each test uses its part, and fails by panicking"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::PathBuf;

use k3s::observe::{Binary, Credentials, Installed, Marker, Probe, Unit};
use k3s::render::Layout;
use k3s::{Action, Cni, Join, Observed, Release, Role, RunSpec, Secret, Version};
use tokio::time::{Duration, Instant};

pub(crate) const HASH: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

pub(crate) fn spec(role: Role) -> RunSpec {
    let ips: [IpAddr; 2] = ["10.91.0.1".parse().unwrap(), "fd5e::1".parse().unwrap()];
    RunSpec {
        node_name: "n1".into(),
        cluster: "lab".into(),
        incarnation: "lab-1".into(),
        role,
        release: Release::path("/opt/k3s"),
        node_ips: ips.into(),
        iface: "wg-sdwan-0a1b2c".into(),
        vips: vec!["fd5e::100".parse().unwrap(), "10.91.0.100".parse().unwrap()],
        names: vec!["lab.example".into()],
        cluster_cidr: vec!["10.42.0.0/16".parse().unwrap(), "fd42::/56".parse().unwrap()],
        service_cidr: vec!["10.43.0.0/16".parse().unwrap(), "fd43::/112".parse().unwrap()],
        server_token: Some(Secret::new("foundersecret")),
        agent_token: Some(Secret::new("agentsecret")),
        ca: None,
        cni: Cni::FlannelHostGw,
        network_policy: false,
        etcd_args: vec!["heartbeat-interval=100".into(), "election-timeout=1000".into()],
        disable: vec!["traefik".into()],
        extra: BTreeMap::new(),
    }
}

pub(crate) fn founder() -> Role {
    Role::Server { join: None }
}

pub(crate) fn join(user: &str) -> Join {
    Join {
        url: "https://[fd5e::100]:6443".into(),
        token: Secret::new(format!("K10{HASH}::{user}:joinsecret")),
    }
}

pub(crate) fn binary(version: &str) -> Installed {
    let server = [
        "advertise-address",
        "agent-token",
        "cluster-cidr",
        "cluster-init",
        "config",
        "data-dir",
        "disable",
        "disable-network-policy",
        "etcd-arg",
        "flannel-backend",
        "flannel-iface",
        "flannel-ipv6-masq",
        "kubelet-arg",
        "node-ip",
        "node-name",
        "secrets-encryption",
        "server",
        "service-cidr",
        "tls-san",
        "token",
        "write-kubeconfig",
        "write-kubeconfig-mode",
    ];
    let agent =
        ["data-dir", "flannel-iface", "kubelet-arg", "node-ip", "node-name", "server", "token"];
    let set = |flags: &[&str]| -> BTreeSet<String> {
        flags.iter().map(|flag| (*flag).to_owned()).collect()
    };
    Installed {
        path: "/var/lib/skein/k3s/bin/aa/k3s".into(),
        sha256: "aa".into(),
        version: Version::parse(version).unwrap(),
        server_flags: set(&server),
        agent_flags: set(&agent),
    }
}

/// A host that is a value: actions change it at once, and K3s comes up some looks after its start.
pub(crate) struct Fake {
    pub(crate) seen: Observed,
    pub(crate) version: &'static str,
    pub(crate) looks_until_ready: u32,
    pub(crate) ended: u32,
    pub(crate) log: Vec<Action>,
}

impl Fake {
    pub(crate) fn new() -> Self {
        let seen = Observed {
            layout: Layout::default(),
            systemd: true,
            binary: Binary::Missing { last_error: None, next_try: None },
            unit: Unit::Stopped,
            files: BTreeMap::new(),
            marker: None,
            foreign: None,
            etcd_data: false,
            probe: Probe::NotReady("K3s does not run".into()),
            credentials: Credentials::default(),
            wiping: None,
            lacks: Vec::new(),
            log_tail: Vec::new(),
            log_bytes: 0,
        };
        Self { seen, version: "v1.33.5+k3s1", looks_until_ready: 3, ended: 0, log: Vec::new() }
    }

    /// Lets time pass on the host.
    pub(crate) fn tick(&mut self) {
        match &self.seen.unit {
            Unit::Stopping { .. } => self.seen.unit = Unit::Stopped,
            Unit::Running { .. } if self.looks_until_ready == 0 => {
                self.seen.probe = Probe::Ready;
                self.seen.credentials = Credentials {
                    server_token: Some(Secret::new(format!("K10{HASH}::server:foundersecret\n"))),
                    agent_token: None,
                    kubeconfig: Some(Secret::new("kubeconfig\n")),
                    server_ca: Some("ca".into()),
                };
            }
            Unit::Running { .. } => {
                self.looks_until_ready -= 1;
                self.seen.etcd_data = true;
                self.seen.probe = Probe::NotReady("starting".into());
            }
            Unit::Stopped | Unit::Exited { .. } => {
                self.seen.probe = Probe::NotReady("K3s does not run".into())
            }
        }
        if matches!(self.seen.binary, Binary::Fetching { .. }) {
            self.seen.binary = Binary::Present(Box::new(binary(self.version)));
        }
        if self.seen.wiping.take().is_some() {
            self.seen.marker = None;
            self.seen.files.clear();
            self.seen.etcd_data = false;
            self.seen.credentials = Credentials::default();
            self.seen.binary = Binary::Missing { last_error: None, next_try: None };
        }
    }

    pub(crate) fn apply(&mut self, action: &Action, now: Instant) {
        self.log.push(action.clone());
        match action {
            Action::Fetch(_) => self.seen.binary = Binary::Fetching { progress: "half".into() },
            Action::Mark(marker) => self.seen.marker.clone_from(marker),
            Action::Write(files) => {
                self.seen.files.extend(files.iter().map(|file| (file.path.clone(), file.sha256())));
            }
            Action::Remove(paths) => {
                paths.iter().for_each(|path| drop(self.seen.files.remove(path)))
            }
            Action::Start(plan) => {
                self.seen.unit =
                    Unit::Running { role: plan.role, fingerprint: Some(plan.fingerprint.clone()) };
                self.looks_until_ready = 2;
            }
            Action::Stop(role) => match self.seen.unit {
                Unit::Running { .. } => self.seen.unit = Unit::Stopping { role: *role, since: now },
                Unit::Exited { .. } => self.seen.unit = Unit::Stopped,
                Unit::Stopped | Unit::Stopping { .. } => {}
            },
            Action::Kill(_) => self.seen.unit = Unit::Stopped,
            Action::Wipe => self.seen.wiping = Some("removing".into()),
            Action::RotateLog => self.seen.log_bytes = 0,
        }
    }

    /// K3s ends by itself.
    pub(crate) fn end(&mut self, now: Instant) {
        if let Unit::Running { role, .. } = self.seen.unit {
            self.ended += 1;
            let next_try = now + Duration::from_secs(1);
            self.seen.unit =
                Unit::Exited { role, how: "exit status 1".into(), restarts: self.ended, next_try };
        }
    }

    pub(crate) fn started(&self) -> usize {
        self.log.iter().filter(|action| matches!(action, Action::Start(_))).count()
    }

    pub(crate) fn marker(&self) -> Option<&Marker> {
        self.seen.marker.as_ref()
    }
}

pub(crate) fn paths(files: &BTreeMap<PathBuf, String>) -> Vec<String> {
    files.keys().map(|path| path.display().to_string()).collect()
}
