//! What was seen on the host, and what a turn reports. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use ipnet::IpNet;
use tokio::time::Instant;

use crate::release::Version;
use crate::render::Layout;
use crate::secret::Secret;
use crate::spec::RoleKind;

/// Everything that the host could see, taken anew on each turn.
#[derive(Debug, Clone, PartialEq)]
pub struct Observed {
    /// Where K3s' files lie on this host.
    pub layout: Layout,
    /// Whether K3s runs as units of systemd here.
    pub systemd: bool,
    /// The binary that the spec asks for.
    pub binary: Binary,
    /// The K3s that runs, or does not.
    pub unit: Unit,
    /// SHA-256 in hexadecimal of each file of [`Layout::ours`] that exists, and of the authority's files.
    pub files: BTreeMap<PathBuf, String>,
    /// What earlier turns left on disk about this host's K3s.
    pub marker: Option<Marker>,
    /// A K3s that is not ours, in words.
    pub foreign: Option<String>,
    /// Whether an etcd member's data are in the data directory.
    pub etcd_data: bool,
    /// The outcome of the health probe.
    pub probe: Probe,
    /// K3s' own credentials, where written.
    pub credentials: Credentials,
    /// A wipe under way, in words.
    pub wiping: Option<String>,
    /// What this host lacks that K3s needs, in words.
    pub lacks: Vec<String>,
    /// The last lines of K3s' log, newest last.
    pub log_tail: Vec<String>,
    /// The size of a supervised process' log.
    pub log_bytes: u64,
}

/// The binary that the spec asks for.
#[derive(Debug, Clone, PartialEq)]
pub enum Binary {
    /// Not there, and nothing fetches it.
    Missing { last_error: Option<String>, next_try: Option<Instant> },
    /// Being copied or downloaded.
    Fetching { progress: String },
    /// Checked and ready.
    Present(Box<Installed>),
}

/// A checked binary.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Installed {
    /// Where it is run from.
    pub path: PathBuf,
    /// Its SHA-256.
    pub sha256: String,
    /// What `--version` says.
    pub version: Version,
    /// Flags that `k3s server --help` names.
    pub server_flags: BTreeSet<String>,
    /// Flags that `k3s agent --help` names.
    pub agent_flags: BTreeSet<String>,
}

/// K3s as a unit or a process.
#[derive(Debug, Clone, PartialEq)]
pub enum Unit {
    /// Nothing of ours runs.
    Stopped,
    /// It runs, or systemd is about to start it again; `fingerprint` is of the settings that it was started with, if known.
    Running { role: RoleKind, fingerprint: Option<String> },
    /// It ended by itself; `next_try` is when the backoff is over.
    Exited { role: RoleKind, how: String, restarts: u32, next_try: Instant },
    /// A stop is under way since then.
    Stopping { role: RoleKind, since: Instant },
}

/// What this host remembers on disk about its K3s.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Marker {
    /// The incarnation whose data are in the data directory.
    pub incarnation: String,
    /// The role that it was.
    pub role: RoleKind,
    /// Whether K3s was healthy in this incarnation.
    pub established: bool,
    /// The interface that pods' routes go over.
    #[serde(default)]
    pub iface: String,
    /// The cluster's pod ranges, whose routes are K3s'.
    #[serde(default)]
    pub pods: Vec<IpNet>,
}

/// The outcome of the health probe.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Probe {
    /// Nothing to ask yet: no credentials on disk.
    NotYet(String),
    /// Healthy.
    Ready,
    /// It answered otherwise, or not at all.
    NotReady(String),
}

/// K3s' own credential files, where they exist and are whole.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Credentials {
    /// `server/token`.
    pub server_token: Option<Secret>,
    /// `server/agent-token`.
    pub agent_token: Option<Secret>,
    /// The admin kubeconfig.
    pub kubeconfig: Option<Secret>,
    /// `server/tls/server-ca.crt`, in PEM.
    pub server_ca: Option<String>,
}

/// Where K3s on this host is on its way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Phase {
    /// Nothing of K3s is here.
    Absent,
    /// The binary is being fetched, or files are being laid.
    Installing,
    /// The founding server was started and does not answer yet.
    Starting,
    /// The founding server answers and its credentials were captured.
    Bootstrapped,
    /// A joining server or a worker was started and is not ready yet.
    Joining,
    /// Healthy.
    Ready,
    /// Was healthy before, and is not now.
    Degraded,
    /// Being stopped, or removed.
    Stopping,
    /// Not running, on purpose.
    Stopped,
    /// Cannot go on without the operator.
    Failed { reason: String },
}

/// The credentials of a cluster, read from K3s' own files.
#[derive(Debug, Clone, PartialEq)]
pub struct Captured {
    /// The full server token.
    pub server_token: Secret,
    /// The full agent token; the server token where the cluster has no separate one.
    pub agent_token: Secret,
    /// The admin kubeconfig, unchanged (server `https://127.0.0.1:6443`).
    pub kubeconfig: Secret,
    /// The certificates that clients trust for the API, in PEM.
    pub server_ca: String,
}

/// Health of K3s on this host.
#[derive(Debug, Clone, PartialEq)]
pub struct Health {
    /// `None` while nothing is known yet: neither dead nor alive.
    pub ready: Option<bool>,
    /// Since when it is so.
    pub since: Instant,
    /// What the probe said.
    pub detail: String,
}

/// The outcome of one turn.
#[derive(Debug, Clone, PartialEq)]
pub struct Turn {
    /// Where it is on its way.
    pub phase: Phase,
    /// The exact condition that blocks, the last error, and the next try, for people.
    pub waiting_for: Option<String>,
    /// The version of the binary that is meant to run.
    pub version: Option<String>,
    /// On a healthy server: the cluster's credentials.
    pub captured: Option<Captured>,
    /// Health, independent of the phase.
    pub health: Health,
    /// Settings that the release does not know and that were left out, each with its reason.
    pub left_out: Vec<String>,
    /// Whether the cluster refuses this host because it knows its node under another password.
    pub password_rejected: bool,
    /// Whether anything on the host was changed.
    pub changed: bool,
    /// When to take the next turn, at the latest.
    pub wake: Instant,
}
