//! Removing K3s from the host's network. Shell.

use std::path::Path;

use super::HostError;
use super::command::run;
use crate::observe::Marker;

/// Interfaces that flannel and its bridge make.
const INTERFACES: [&str; 6] =
    ["cni0", "flannel.1", "flannel-v6.1", "kube-ipvs0", "flannel-wg", "flannel-wg-v6"];

/// Removes interfaces, routes and packet filter rules of K3s.
///
/// K3s brings a packet filter along for hosts that have none, or whose own keeps its rules elsewhere.
pub(super) async fn remove(marker: Option<&Marker>, data_dir: &Path) -> Result<(), HostError> {
    let ports = run("ip", &["-o", "link", "show", "master", "cni0"], "").await;
    let mut links: Vec<String> =
        ports.map(|said| said.out.lines().filter_map(link_name).collect()).unwrap_or_default();
    links.extend(INTERFACES.map(str::to_owned));
    for link in links {
        // Most are not there.
        run("ip", &["link", "delete", &link], "").await?;
    }
    let bundled = data_dir.join("data/current/bin/aux");
    for family in ["iptables", "ip6tables"] {
        filter(family).await?;
        // What it cannot do, such as a table that this kernel lacks, K3s could not do with it either.
        if let Err(error) = filter(&bundled.join(family).display().to_string()).await {
            tracing::warn!(%error, "K3s' own packet filter did not take its rules back");
        }
    }
    match marker {
        Some(marker) => routes(marker).await,
        None => Ok(()),
    }
}

/// Removes flannel's routes to other nodes' pods. Those without a gateway were made by the overlay.
async fn routes(marker: &Marker) -> Result<(), HostError> {
    for range in &marker.pods {
        let family = if range.addr().is_ipv6() { "-6" } else { "-4" };
        let range = range.to_string();
        let said =
            run("ip", &[family, "-o", "route", "show", "root", &range, "dev", &marker.iface], "")
                .await?;
        for line in said.out.lines().filter(|line| line.contains(" via ")) {
            let target = line.split_whitespace().next().unwrap_or_default();
            run("ip", &[family, "route", "delete", target, "dev", &marker.iface], "").await?;
        }
    }
    Ok(())
}

fn link_name(line: &str) -> Option<String> {
    let name = line.split(':').nth(1)?.trim();
    name.split('@').next().map(str::to_owned)
}

/// Takes K3s' rules out of the packet filter and leaves all others; without the program nothing is done.
async fn filter(program: &str) -> Result<(), HostError> {
    let Ok(saved) = run(&format!("{program}-save"), &[], "").await else {
        return Ok(());
    };
    let Some(kept) = without_k3s(&saved.out) else {
        return Ok(());
    };
    let restored = run(&format!("{program}-restore"), &[], &kept).await?;
    if restored.ok {
        return Ok(());
    }
    Err(HostError::Command {
        command: format!("{program}-restore"),
        detail: restored.err.trim().to_owned(),
    })
}

/// The rules without those of Kubernetes, CNI and flannel; `None` where there are none of them.
fn without_k3s(saved: &str) -> Option<String> {
    let theirs = |line: &str| {
        line.contains("KUBE-")
            || line.contains("CNI-")
            || line.to_ascii_lowercase().contains("flannel")
    };
    let kept: Vec<&str> = saved.lines().filter(|line| !theirs(line)).collect();
    (kept.len() != saved.lines().count()).then(|| kept.join("\n") + "\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_programs_that_k3s_brought_are_used_where_they_lie() {
        use std::os::unix::fs::PermissionsExt as _;
        let dir = tempfile::tempdir().unwrap();
        let program = dir.path().join("iptables").display().to_string();
        filter(&program).await.unwrap();
        let rules = "*nat\n:KUBE-SERVICES - [0:0]\n-A INPUT -j DROP\nCOMMIT\n";
        std::fs::write(dir.path().join("rules"), rules).unwrap();
        for (name, script) in [
            ("iptables-save", "cat \"$(dirname \"$0\")/rules\""),
            ("iptables-restore", "cat > \"$(dirname \"$0\")/restored\""),
        ] {
            let path = dir.path().join(name);
            std::fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        }
        filter(&program).await.unwrap();
        let restored = std::fs::read_to_string(dir.path().join("restored")).unwrap();
        assert_eq!(restored, "*nat\n-A INPUT -j DROP\nCOMMIT\n");
    }

    #[test]
    fn only_k3s_rules_are_taken_out() {
        let saved = "*nat\n:PREROUTING ACCEPT [0:0]\n:KUBE-SERVICES - [0:0]\n-A PREROUTING -j KUBE-SERVICES\n-A POSTROUTING -s 10.42.0.0/16 -m comment --comment \"flanneld masq\" -j FLANNEL-POSTRTG\n-A INPUT -p tcp -j DROP\nCOMMIT\n";
        assert_eq!(
            without_k3s(saved).unwrap(),
            "*nat\n:PREROUTING ACCEPT [0:0]\n-A INPUT -p tcp -j DROP\nCOMMIT\n"
        );
        assert_eq!(without_k3s("*nat\nCOMMIT\n"), None);
    }
}
