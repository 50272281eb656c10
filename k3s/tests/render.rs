//! Golden texts: what each release gets.
#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "a test fails by panicking, and may talk"
)]

mod common;

use common::{binary, founder, join, spec};
use k3s::Role;
use k3s::render::{Layout, Rendered, render};

fn text(rendered: &Rendered, suffix: &str) -> String {
    let file = rendered
        .files
        .iter()
        .find(|file| file.path.display().to_string().ends_with(suffix))
        .unwrap();
    file.content.expose().to_owned()
}

/// Of a founding server under a current release.
const FOUNDER: &str = r#"# Written by Skein at each change; settings of your own belong into ../config.yaml.
advertise-address: "10.91.0.1"
agent-token: "agentsecret"
cluster-cidr:
  - "10.42.0.0/16"
  - "fd42::/56"
cluster-init: true
disable:
  - "traefik"
disable-network-policy: true
etcd-arg:
  - "heartbeat-interval=100"
  - "election-timeout=1000"
flannel-backend: "host-gw"
flannel-iface: "wg-sdwan-0a1b2c"
flannel-ipv6-masq: true
node-ip:
  - "10.91.0.1"
  - "fd5e::1"
node-name: "n1"
secrets-encryption: true
service-cidr:
  - "10.43.0.0/16"
  - "fd43::/112"
tls-san:
  - "fd5e::100"
  - "10.91.0.100"
  - "lab.example"
  - "10.91.0.1"
  - "fd5e::1"
token: "foundersecret"
write-kubeconfig-mode: "0600"
"#;

#[test]
fn a_founding_server_of_a_current_release() {
    let rendered =
        render(&spec(founder()), &binary("v1.33.5+k3s1"), &Layout::default(), true, false);
    assert_eq!(text(&rendered, "50-skein.yaml"), FOUNDER);
    assert!(rendered.left_out.is_empty());
    let modes: Vec<(String, u32)> =
        rendered.files.iter().map(|file| (file.path.display().to_string(), file.mode)).collect();
    assert_eq!(
        modes,
        [
            ("/etc/rancher/k3s/config.yaml.d/50-skein.yaml".to_owned(), 0o600),
            ("/etc/systemd/system/k3s.service".to_owned(), 0o644),
            ("/etc/systemd/system/k3s.service.d/10-skein.conf".to_owned(), 0o600),
            ("/etc/systemd/system/k3s.service.env".to_owned(), 0o600),
        ]
    );
    let drop_in = text(&rendered, "10-skein.conf");
    assert!(
        drop_in.contains("UnsetEnvironment=K3S_URL") && !drop_in.contains("Environment=\"K3S_URL")
    );
    let unit = text(&rendered, "k3s.service");
    for line in [
        "After=network-online.target skein.service",
        "Wants=network-online.target skein.service",
        "Type=notify",
        "KillMode=process",
        "Delegate=yes",
        "Restart=always",
        "RestartSec=5s",
        "ExecStart=/var/lib/skein/k3s/bin/aa/k3s server",
    ] {
        assert!(unit.lines().any(|found| found == line), "{line}");
    }
}

#[test]
fn an_old_release_gets_one_family_and_only_flags_that_it_has() {
    let mut old = binary("v1.21.2+k3s1");
    old.server_flags.remove("flannel-ipv6-masq");
    old.server_flags.remove("etcd-arg");
    let rendered = render(&spec(founder()), &old, &Layout::default(), true, false);
    let config = text(&rendered, "50-skein.yaml");
    assert!(
        config.contains("cluster-cidr: \"10.42.0.0/16\"\n")
            && config.contains("node-ip: \"10.91.0.1\"\n"),
        "{config}"
    );
    assert!(
        !config.contains("flannel-ipv6-masq")
            && !config.contains("etcd-arg")
            && !config.contains("fd42")
    );
    assert!(
        config.contains("  - \"fd5e::100\"\n"),
        "names cost nothing and serve after an upgrade"
    );
    assert_eq!(rendered.left_out.len(), 2, "{:?}", rendered.left_out);
}

#[test]
fn a_joining_server_gets_url_and_full_token() {
    let rendered = render(
        &spec(Role::Server { join: Some(join("server")) }),
        &binary("v1.26.1+k3s1"),
        &Layout::default(),
        true,
        true,
    );
    let config = text(&rendered, "50-skein.yaml");
    assert!(config.contains("server: \"https://[fd5e::100]:6443\"\n"));
    assert!(config.contains(&format!("token: \"K10{}::server:joinsecret\"\n", common::HASH)));
    assert!(config.contains("agent-token: \"agentsecret\"\n") && !config.contains("cluster-init"));
    assert!(config.contains("kubelet-arg:\n  - \"node-ip=0.0.0.0\"\n"), "before 1.27: {config}");
}

#[test]
fn a_worker_gets_its_token_in_a_private_environment() {
    let rendered = render(
        &spec(Role::Agent { join: join("node") }),
        &binary("v1.33.5+k3s1"),
        &Layout::default(),
        true,
        false,
    );
    let config = text(&rendered, "50-skein.yaml");
    assert_eq!(
        config.lines().skip(1).collect::<Vec<_>>(),
        [
            "flannel-iface: \"wg-sdwan-0a1b2c\"",
            "node-ip:",
            "  - \"10.91.0.1\"",
            "  - \"fd5e::1\"",
            "node-name: \"n1\"",
        ]
    );
    let drop_in = text(&rendered, "10-skein.conf");
    assert!(
        drop_in.contains("Environment=\"K3S_URL=https://[fd5e::100]:6443\"\n")
            && !drop_in.contains("joinsecret")
    );
    assert!(drop_in.contains("EnvironmentFile=/etc/systemd/system/k3s-agent.service.env\n"));
    assert!(text(&rendered, "k3s-agent.service.env").contains("K3S_TOKEN=K10"));
}

#[test]
fn an_established_founder_needs_its_data_at_boot() {
    let guarded = render(&spec(founder()), &binary("v1.33.5+k3s1"), &Layout::default(), true, true);
    let fresh = render(&spec(founder()), &binary("v1.33.5+k3s1"), &Layout::default(), true, false);
    assert!(
        text(&guarded, "10-skein.conf")
            .contains("ConditionPathExists=/var/lib/rancher/k3s/server/db/etcd/member/wal\n")
    );
    assert!(!text(&fresh, "10-skein.conf").contains("ConditionPathExists"));
    assert_eq!(guarded.fingerprint, fresh.fingerprint);
}

#[test]
fn values_cannot_break_out_of_the_configuration() {
    let mut hostile = spec(founder());
    hostile.node_name = "n1\"\ntoken: evil\n#".into();
    hostile.extra.insert("node-label".into(), vec!["a: b".into(), "- c".into()]);
    let mut known = binary("v1.33.5+k3s1");
    known.server_flags.insert("node-label".into());
    let rendered = render(&hostile, &known, &Layout::default(), false, false);
    let read: serde_norway::Value =
        serde_norway::from_str(&text(&rendered, "50-skein.yaml")).unwrap();
    assert_eq!(read["token"].as_str(), Some("foundersecret"));
    assert_eq!(read["node-name"].as_str(), Some("n1\"\ntoken: evil\n#"));
    assert_eq!(read["node-label"][1].as_str(), Some("- c"));
}
