//! A role that is taken away again: the cluster goes on, and the host is as it was.

use crate::common::{Lab, wait_for};

/// Lists what K3s left on a host. The node's password is to stay, so that it may come back under its name.
fn left_of_k3s(lab: &Lab, host: &str) -> Vec<String> {
    let script = "pgrep -af '[k]3s (server|agent)'; ip -o link show cni0 2>/dev/null; \
        find /etc/rancher /var/lib/rancher /var/lib/kubelet /var/lib/cni -type f -o -type l 2>/dev/null; \
        find /var/lib/rancher -mindepth 1 -type d 2>/dev/null; true";
    let out = lab.run(host, &["sh", "-c", script]);
    out.lines().filter(|l| *l != "/etc/rancher/node/password").map(str::to_owned).collect()
}

#[test]
#[ignore = "makes hosts: ./check rehearsal"]
fn a_server_gives_up_its_role_and_takes_it_again() {
    let Some(lab) = Lab::rehearsal("unassign", 3, 1) else { return };
    let (old, generation) = (lab.holder("n4"), lab.generation("n4"));
    // K3s' bridge, which the rehearsal does not make.
    lab.run(&old, &["ip", "link", "add", "cni0", "type", "bridge"]);
    assert!(left_of_k3s(&lab, &old).len() > 3, "K3s is there before");

    let probe = lab.probe("n4", true, 15);
    lab.run("n4", &["skein", "node", "unassign", &old]);
    let new = lab.moved_from("n4", &old, 20);
    assert_eq!(lab.generation("n4"), generation + 1);
    wait_for("the node has no role", 60, || {
        let node = lab.ask("n4", &["node", "show", &old])?;
        if node["role"] == "" { Ok(()) } else { Err(node.to_string()) }
    });
    wait_for("the cluster goes on with two servers", 20, || {
        let cluster = lab.ask("n4", &["cluster", "show", "lab"])?;
        let servers = cluster["servers"].as_array().cloned().unwrap_or_default();
        let ready = servers.iter().filter(|s| s["status"] == "ready").count();
        let fine = cluster["status"] == "active" && (ready, servers.len()) == (2, 2);
        if fine { Ok(()) } else { Err(cluster.to_string()) }
    });
    let gap = probe.end();
    println!("    unassign the holder: {gap:?}");
    assert!(gap.longest.as_millis() < 1_000, "a planned move is not felt: {gap:?}");
    wait_for("nothing of K3s is left on the host", 20, || {
        let left = left_of_k3s(&lab, &old);
        if left.is_empty() { Ok(()) } else { Err(format!("{left:#?}")) }
    });
    lab.one_bearer("n4");

    lab.run("n4", &["skein", "node", "assign", &old, "k3s-server", "--cluster", "lab"]);
    lab.settled("n4", 60);
    let cluster = lab.ask("n4", &["cluster", "show", "lab"]).unwrap();
    assert_eq!(cluster["servers"].as_array().map(Vec::len), Some(3), "{cluster}");
    assert_eq!(lab.holder("n4"), new, "the VIP stays where it went");
    lab.down();
}
