//! K3s' configuration as files: what a spec means for this release on this host. Pure.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use ipnet::IpNet;
use sha2::{Digest, Sha256};

use crate::observe::Installed;
use crate::secret::Secret;
use crate::spec::{Cni, Role, RoleKind, RunSpec};
use crate::token::Token;
use crate::unit;

/// K3s' folders on a host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    /// Above `run`, `var/lib/kubelet`, `var/log` and the like; `/` on a real host.
    pub root: PathBuf,
    /// Holds `config.yaml`, `config.yaml.d` and `k3s.yaml`.
    pub config_dir: PathBuf,
    /// K3s' data directory.
    pub data_dir: PathBuf,
    /// systemd's folder for units of the administrator.
    pub unit_dir: PathBuf,
    /// The log of a supervised process.
    pub log: PathBuf,
}

impl Default for Layout {
    fn default() -> Self {
        Self::below(Path::new("/"))
    }
}

impl Layout {
    /// K3s' own places, below another root.
    pub fn below(root: &Path) -> Self {
        Self {
            root: root.to_owned(),
            config_dir: root.join("etc/rancher/k3s"),
            data_dir: root.join("var/lib/rancher/k3s"),
            unit_dir: root.join("etc/systemd/system"),
            log: root.join("var/log/k3s.log"),
        }
    }

    /// The operator's own configuration, which is made empty where it is missing: old releases read the drop-ins beside it only then.
    pub fn operator_config(&self) -> PathBuf {
        self.config_dir.join("config.yaml")
    }

    /// Our configuration, read after the operator's, so that it wins key by key.
    pub fn config(&self) -> PathBuf {
        self.config_dir.join("config.yaml.d/50-skein.yaml")
    }

    /// The admin kubeconfig that K3s writes.
    pub fn kubeconfig(&self) -> PathBuf {
        self.config_dir.join("k3s.yaml")
    }

    /// The environment of a role, holding secrets.
    pub fn environment(&self, role: RoleKind) -> PathBuf {
        self.unit_dir.join(format!("{}.service.env", role.unit()))
    }

    /// The environment of a role without systemd.
    pub fn process_environment(&self, role: RoleKind) -> PathBuf {
        self.config_dir.join(format!("{}.env", role.unit()))
    }

    /// The unit of a role.
    pub fn unit(&self, role: RoleKind) -> PathBuf {
        self.unit_dir.join(format!("{}.service", role.unit()))
    }

    /// The drop-in of a role's unit.
    pub fn drop_in(&self, role: RoleKind) -> PathBuf {
        self.unit_dir.join(format!("{}.service.d/10-skein.conf", role.unit()))
    }

    /// Every file that is ever rendered, but for the authority's.
    pub fn ours(&self) -> Vec<PathBuf> {
        let mut paths = vec![self.config()];
        for role in [RoleKind::Server, RoleKind::Agent] {
            paths.extend([
                self.environment(role),
                self.process_environment(role),
                self.unit(role),
                self.drop_in(role),
            ]);
        }
        paths
    }

    /// Where etcd's log lies once a member has begun.
    pub fn etcd_wal(&self) -> PathBuf {
        self.data_dir.join("server/db/etcd/member/wal")
    }

    /// Where authorities are laid.
    pub fn tls(&self) -> PathBuf {
        self.data_dir.join("server/tls")
    }

    fn default_places(&self) -> bool {
        self.config_dir == Path::new("/etc/rancher/k3s")
    }
}

/// A file as it should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileSpec {
    /// Where.
    pub path: PathBuf,
    /// The permission bits.
    pub mode: u32,
    /// The content.
    pub content: Secret,
}

impl FileSpec {
    /// SHA-256 of the content in hexadecimal.
    pub fn sha256(&self) -> String {
        hex::encode(Sha256::digest(self.content.expose()))
    }
}

/// A spec in K3s' terms.
#[derive(Debug, Clone, PartialEq)]
pub struct Rendered {
    /// The files.
    pub files: Vec<FileSpec>,
    /// Over everything that K3s reads at its start only; when it changes, K3s is started anew.
    pub fingerprint: String,
    /// What the release does not know, each with its reason.
    pub left_out: Vec<String>,
    /// The environment of a supervised process.
    pub environment: BTreeMap<String, String>,
}

/// Keys that K3s looks at when a server joins, and never again.
const ONLY_AT_JOIN: [&str; 3] = ["cluster-init", "server", "token"];

type Settings = BTreeMap<String, Vec<String>>;

/// What `spec` means for this binary, in these folders.
pub fn render(
    spec: &RunSpec,
    binary: &Installed,
    layout: &Layout,
    systemd: bool,
    established: bool,
) -> Rendered {
    let (settings, left_out) = settings(spec, binary, layout);
    let kind = spec.role.kind();
    let environment = environment(spec, layout);
    let mut files = vec![FileSpec {
        path: layout.config(),
        mode: 0o600,
        content: Secret::new(yaml(&settings)),
    }];
    if systemd {
        let guarded = established && matches!(spec.role, Role::Server { join: None });
        let wal = layout.etcd_wal();
        let guard = guarded.then_some(wal.as_path());
        files.push(FileSpec {
            path: layout.unit(kind),
            mode: 0o644,
            content: Secret::new(unit::service(kind, &binary.path)),
        });
        files.push(FileSpec {
            path: layout.drop_in(kind),
            mode: 0o600,
            content: Secret::new(unit::drop_in(&environment, &layout.environment(kind), guard)),
        });
    }
    let path = if systemd { layout.environment(kind) } else { layout.process_environment(kind) };
    files.push(FileSpec {
        path,
        mode: 0o600,
        content: Secret::new(unit::environment_file(&environment)),
    });
    let fingerprint = fingerprint(kind, &settings, &environment, binary);
    Rendered { files, fingerprint, left_out, environment }
}

fn fingerprint(
    kind: RoleKind,
    settings: &Settings,
    environment: &BTreeMap<String, String>,
    binary: &Installed,
) -> String {
    let mut hash = Sha256::new();
    hash.update(kind.verb());
    hash.update(&binary.sha256);
    for (key, values) in settings {
        if kind == RoleKind::Server && ONLY_AT_JOIN.contains(&key.as_str()) {
            continue;
        }
        hash.update(format!("\0{key}\0{}", values.join("\0")));
    }
    for (key, value) in environment {
        hash.update(format!("\0{key}={value}"));
    }
    hex::encode(hash.finalize())
}

/// A worker's address and token go through the environment, so that a configuration of the operator cannot show them; a server
/// gets neither there, since `K3S_URL` alone would make it join.
fn environment(spec: &RunSpec, layout: &Layout) -> BTreeMap<String, String> {
    let mut environment = BTreeMap::new();
    if let Role::Agent { join } = &spec.role {
        environment.insert("K3S_URL".to_owned(), join.url.clone());
        environment.insert("K3S_TOKEN".to_owned(), join.token.expose().to_owned());
    }
    if !layout.default_places() {
        environment
            .insert("K3S_CONFIG_FILE".to_owned(), layout.operator_config().display().to_string());
    }
    environment
}

fn settings(spec: &RunSpec, binary: &Installed, layout: &Layout) -> (Settings, Vec<String>) {
    let mut left_out = Vec::new();
    let ranges = Ranges::choose(spec, binary, &mut left_out);
    let mut wanted = node_settings(spec, binary, layout, &ranges);
    if let Role::Server { join } = &spec.role {
        wanted.extend(cluster_settings(spec, layout, &ranges));
        match join {
            Some(join) => {
                put(&mut wanted, "server", [join.url.clone()]);
                put(&mut wanted, "token", [join.token.expose().to_owned()]);
            }
            None => {
                put(&mut wanted, "cluster-init", ["true"]);
                // The founding server takes the short form only; the full one is refused before there is an authority.
                let token =
                    spec.server_token.as_ref().and_then(|token| Token::parse(token.expose()).ok());
                put(&mut wanted, "token", token.map(|token| token.secret.expose().to_owned()));
            }
        }
    }
    wanted.extend(spec.extra.iter().map(|(key, values)| (key.clone(), values.clone())));
    let known = match spec.role.kind() {
        RoleKind::Server => &binary.server_flags,
        RoleKind::Agent => &binary.agent_flags,
    };
    wanted.retain(|key, _| {
        let keep = known.is_empty() || known.contains(key);
        if !keep {
            left_out.push(format!("`{key}`: {} has no such flag", binary.version));
        }
        keep
    });
    (wanted, left_out)
}

/// What servers and agents have in common.
fn node_settings(spec: &RunSpec, binary: &Installed, layout: &Layout, ranges: &Ranges) -> Settings {
    let mut wanted = Settings::new();
    if !layout.default_places() || layout.data_dir != Path::new("/var/lib/rancher/k3s") {
        put(&mut wanted, "data-dir", [layout.data_dir.display().to_string()]);
    }
    put(&mut wanted, "node-name", [spec.node_name.clone()]);
    put(&mut wanted, "node-ip", ranges.node_ips.iter().map(IpAddr::to_string));
    if spec.cni == Cni::FlannelHostGw {
        put(&mut wanted, "flannel-iface", [spec.iface.clone()]);
    }
    if ranges.node_ips.len() == 2 && (binary.version.major, binary.version.minor) < (1, 27) {
        // Before 1.27 kubelet drops the second family of an interface that is not the default route's.
        let any = if ranges.node_ips[0].is_ipv4() { "node-ip=0.0.0.0" } else { "node-ip=::" };
        put(&mut wanted, "kubelet-arg", [any]);
    }
    wanted
}

/// What must be the same on all servers of a cluster.
fn cluster_settings(spec: &RunSpec, layout: &Layout, ranges: &Ranges) -> Settings {
    let mut wanted = Settings::new();
    put(&mut wanted, "advertise-address", ranges.node_ips.first().map(IpAddr::to_string));
    let mut names: Vec<String> = spec.vips.iter().map(IpAddr::to_string).collect();
    names.extend(spec.names.iter().cloned());
    names.extend(spec.node_ips.iter().map(IpAddr::to_string));
    names.dedup();
    put(&mut wanted, "tls-san", names);
    put(&mut wanted, "write-kubeconfig-mode", ["0600"]);
    if !layout.default_places() {
        put(&mut wanted, "write-kubeconfig", [layout.kubeconfig().display().to_string()]);
    }
    put(&mut wanted, "secrets-encryption", ["true"]);
    put(
        &mut wanted,
        "agent-token",
        spec.agent_token.as_ref().map(|token| token.expose().to_owned()),
    );
    put(&mut wanted, "cluster-cidr", ranges.cluster.iter().map(IpNet::to_string));
    put(&mut wanted, "service-cidr", ranges.service.iter().map(IpNet::to_string));
    match spec.cni {
        Cni::FlannelHostGw => {
            put(&mut wanted, "flannel-backend", ["host-gw"]);
            if ranges.cluster.iter().any(|range| range.addr().is_ipv6()) {
                // Pods have unique local addresses, which nobody outside answers.
                put(&mut wanted, "flannel-ipv6-masq", ["true"]);
            }
        }
        Cni::None => put(&mut wanted, "flannel-backend", ["none"]),
    }
    if !spec.network_policy || spec.cni == Cni::None {
        put(&mut wanted, "disable-network-policy", ["true"]);
    }
    put(&mut wanted, "disable", spec.disable.iter().cloned());
    put(&mut wanted, "etcd-arg", spec.etcd_args.iter().cloned());
    wanted
}

fn put<T: Into<String>>(settings: &mut Settings, key: &str, values: impl IntoIterator<Item = T>) {
    let values: Vec<String> = values.into_iter().map(Into::into).collect();
    if !values.is_empty() {
        settings.insert(key.to_owned(), values);
    }
}

/// Addresses and ranges of the families that this release carries, the primary family first.
struct Ranges {
    node_ips: Vec<IpAddr>,
    cluster: Vec<IpNet>,
    service: Vec<IpNet>,
}

impl Ranges {
    fn choose(spec: &RunSpec, binary: &Installed, left_out: &mut Vec<String>) -> Self {
        let have = |six: bool| spec.node_ips.iter().any(|ip| ip.is_ipv6() == six);
        let ranged = |six: bool| {
            let of = |ranges: &[IpNet]| ranges.iter().any(|range| range.addr().is_ipv6() == six);
            of(&spec.cluster_cidr) && of(&spec.service_cidr)
        };
        let first_six = match spec.cluster_cidr.first() {
            Some(range) => range.addr().is_ipv6(),
            None => !have(false),
        };
        let mut families: Vec<bool> =
            [first_six, !first_six].into_iter().filter(|six| have(*six)).collect();
        if families.len() == 2
            && spec.role.kind() == RoleKind::Server
            && !(ranged(true) && ranged(false))
        {
            left_out.push(format!(
                "{} of this node: the cluster's ranges have one family only",
                family(families[1])
            ));
            families.truncate(1);
        }
        if families.len() == 2 && !binary.version.has_dual_stack() {
            left_out.push(format!(
                "IPv6 pods and services: {} carries one family only (dual stack from 1.23.7 on)",
                binary.version
            ));
            families = vec![false];
        }
        if families == [true] && !binary.version.has_dual_stack() {
            left_out.push(format!("warning: {} is not known to run on IPv6 alone", binary.version));
        }
        let pick = |ranges: &[IpNet]| -> Vec<IpNet> {
            let of =
                |six: &bool| ranges.iter().find(|range| range.addr().is_ipv6() == *six).copied();
            families.iter().filter_map(of).collect()
        };
        let of = |six: &bool| spec.node_ips.iter().find(|ip| ip.is_ipv6() == *six).copied();
        Self {
            cluster: pick(&spec.cluster_cidr),
            service: pick(&spec.service_cidr),
            node_ips: families.iter().filter_map(of).collect(),
        }
    }
}

fn family(six: bool) -> &'static str {
    if six { "the IPv6 address" } else { "the IPv4 address" }
}

fn yaml(settings: &Settings) -> String {
    let mut text = String::from(
        "# Written by Skein at each change; settings of your own belong into ../config.yaml.\n",
    );
    for (key, values) in settings {
        match values.as_slice() {
            [one] if !is_list(key) => text.push_str(&format!("{key}: {}\n", scalar(one))),
            many => {
                text.push_str(&format!("{key}:\n"));
                for value in many {
                    text.push_str(&format!("  - {}\n", scalar(value)));
                }
            }
        }
    }
    text
}

fn is_list(key: &str) -> bool {
    matches!(key, "tls-san" | "etcd-arg" | "kubelet-arg" | "disable")
}

fn scalar(value: &str) -> String {
    match value {
        "true" | "false" => value.to_owned(),
        // A JSON string is a YAML string.
        _ => serde_json::Value::from(value).to_string(),
    }
}
