//! systemd units, drop-ins and environment files as text. Pure.

use std::collections::BTreeMap;
use std::path::Path;

use crate::spec::RoleKind;

/// The first line of every unit of ours; a unit without it belongs to somebody else.
pub const HEADER: &str = "# Written by Skein; changes belong into a drop-in of your own.\n";

/// The unit of a role, as K3s' own installer has it, but never giving up on restarts.
pub fn service(role: RoleKind, binary: &Path) -> String {
    let verb = role.verb();
    // The overlay, over which K3s talks, is Skein's. Restarts are normal: a server that joins too early, or loses its datastore, ends by design. Only the main process is
    // killed, so that pods live on.
    format!(
        "{HEADER}[Unit]
Description=Lightweight Kubernetes ({verb})
Documentation=https://k3s.io
Wants=network-online.target skein.service
After=network-online.target skein.service
StartLimitIntervalSec=0

[Service]
Type=notify
ExecStartPre=-/sbin/modprobe br_netfilter
ExecStartPre=-/sbin/modprobe overlay
ExecStart={binary} {verb}
KillMode=process
Delegate=yes
User=root
LimitNOFILE=1048576
LimitNPROC=infinity
LimitCORE=infinity
TasksMax=infinity
TimeoutStartSec=0
Restart=always
RestartSec=5s

[Install]
WantedBy=multi-user.target
",
        binary = binary.display()
    )
}

/// The drop-in of a role's unit. `Environment=` can be read by every user through systemd, so secrets go into `secrets`.
pub fn drop_in(
    environment: &BTreeMap<String, String>,
    secrets: &Path,
    etcd_wal: Option<&Path>,
) -> String {
    let mut text = String::from(HEADER);
    if let Some(wal) = etcd_wal {
        // A founding server whose data are gone must not found a second cluster at the next boot.
        text.push_str(&format!("[Unit]\nConditionPathExists={}\n\n", wal.display()));
    }
    text.push_str("[Service]\n");
    let joins = environment.contains_key("K3S_URL");
    if !joins {
        text.push_str("UnsetEnvironment=K3S_URL K3S_TOKEN K3S_CLUSTER_INIT\n");
    }
    for (key, value) in environment.iter().filter(|(key, _)| !is_secret(key)) {
        text.push_str(&format!("Environment=\"{key}={}\"\n", escape(value)));
    }
    if environment.keys().any(|key| is_secret(key)) {
        text.push_str(&format!("EnvironmentFile={}\n", secrets.display()));
    }
    text
}

/// The environment as `KEY=value` lines.
pub fn environment_file(environment: &BTreeMap<String, String>) -> String {
    let mut text = String::from(HEADER);
    for (key, value) in environment {
        text.push_str(&format!("{key}={value}\n"));
    }
    text
}

fn is_secret(key: &str) -> bool {
    key.ends_with("TOKEN")
}

/// `%` begins a specifier, `"` and `\` are quoting.
fn escape(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('%', "%%")
}
