//! The whole with real Kubernetes in K3s' clothes: pods over the overlay, drains and losses under kubectl.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stdout,
    reason = "a test that meets what it did not expect ends"
)]

#[path = "../common/mod.rs"]
mod common;

use std::collections::BTreeSet;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use common::{Lab, have, now, wait_for};
use serde_json::Value;

const CONFIG: &str = "/root/.kube/config";
const IMAGE: &str = "docker.io/lab/busybox:1";

/// A `kubectl` in the worker, through the VIP.
fn kubectl(lab: &Lab, args: &[&str]) -> Result<String, String> {
    let mut command = vec!["timeout", "20", "kubectl"];
    command.extend(args);
    let out = lab.exec("n4", &command);
    if out.status.success() {
        Ok(String::from_utf8_lossy(&out.stdout).into_owned())
    } else {
        Err(String::from_utf8_lossy(&out.stderr).into_owned())
    }
}

fn json(lab: &Lab, args: &[&str]) -> Result<Value, String> {
    let mut full = args.to_vec();
    full.extend(["-o", "json"]);
    serde_json::from_str(&kubectl(lab, &full)?).map_err(|e| e.to_string())
}

/// A folder with the image that test pods run.
fn images() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("labk3s/mkimage.sh");
    let made = Command::new(script).arg(dir.path().join("busybox.tar")).status().unwrap();
    assert!(made.success(), "mkimage.sh makes the image of the test pods");
    dir
}

/// What to run as K3s: the lab's Kubernetes, or the binary that the environment names.
fn runtime() -> String {
    std::env::var("SKEIN_TEST_K3S").unwrap_or_else(|_| "build".into())
}

#[test]
#[ignore = "makes hosts with Kubernetes: ./check kubernetes"]
fn a_cluster_through_its_life() {
    if !have(&["busybox"]) || runtime() == "build" && !have(&["go"]) {
        return;
    }
    let images = images();
    let images = images.path().display().to_string();
    let Some(lab) = Lab::up("kube", 3, 1, &["--k3s", &runtime(), "--images", &images]) else {
        return;
    };
    let config = lab.run("n4", &["skein", "kubeconfig", "lab"]);
    lab.run("n4", &["sh", "-c", &format!("umask 077; cat >{CONFIG} <<'E'\n{config}\nE")]);
    every_node_is_ready(&lab);
    pods_reach_each_other(&lab);
    a_daemon_dies_alone(&lab);
    a_lost_node_password_is_renewed(&lab);
    a_drain_is_not_noticed(&lab);
    nothing_acknowledged_is_lost(&lab);
    pods_reach_each_other(&lab);
    a_server_that_is_cut_off_does_not_keep_the_worker(&lab);
    pods_reach_each_other(&lab);
    lab.down();
}

fn every_node_is_ready(lab: &Lab) {
    wait_for("every node is Ready", 120, || {
        let nodes = json(lab, &["get", "nodes"])?;
        let items = nodes["items"].as_array().ok_or("no items")?;
        let ready = |node: &&Value| {
            let conditions = node["status"]["conditions"].as_array();
            conditions
                .is_some_and(|c| c.iter().any(|c| c["type"] == "Ready" && c["status"] == "True"))
        };
        let count = items.iter().filter(ready).count();
        if count == 4 { Ok(()) } else { Err(format!("{count} of 4 are Ready")) }
    });
}

fn pod(node: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: p-{node}, labels: {{app: talk}}}}\nspec:\n  nodeName: {node}\n  \
         terminationGracePeriodSeconds: 0\n  tolerations: [{{operator: Exists}}]\n  containers:\n  - name: main\n    \
         image: {IMAGE}\n    imagePullPolicy: Never\n    command: [httpd, -f, -p, '8080', -h, /www]\n---\n"
    )
}

fn pods_reach_each_other(lab: &Lab) {
    let hosts = lab.hosts();
    let _ = kubectl(lab, &["delete", "pod", "-l", "app=talk", "--force", "--ignore-not-found"]);
    let manifest: String = hosts.iter().map(|h| pod(h)).collect();
    lab.run("n4", &["sh", "-c", &format!("cat >/run/pods.yaml <<'E'\n{manifest}E")]);
    wait_for("pods are taken", 60, || kubectl(lab, &["apply", "-f", "/run/pods.yaml"]));
    let pods = wait_for("a pod on each node is up", 120, || {
        let pods = json(lab, &["get", "pods", "-l", "app=talk"])?;
        let items = pods["items"].as_array().cloned().unwrap_or_default();
        let running = |p: &Value| {
            let ready = p["status"]["containerStatuses"][0]["ready"] == true;
            let name = p["metadata"]["name"].as_str()?.to_owned();
            let addresses =
                p["status"]["podIPs"].as_array()?.iter().filter_map(|a| a["ip"].as_str());
            ready.then(|| (name, addresses.map(str::to_owned).collect::<Vec<_>>()))
        };
        let up: Vec<(String, Vec<String>)> = items.iter().filter_map(running).collect();
        if up.len() == hosts.len() {
            Ok(up)
        } else {
            Err(format!("{} of {} are up", up.len(), hosts.len()))
        }
    });
    for (from, _) in &pods {
        for (to, addresses) in pods.iter().filter(|(to, _)| to != from) {
            for address in addresses {
                wait_for(&format!("{from} pings {to} at {address}"), 30, || {
                    let ping = ["exec", from, "--", "ping", "-c", "1", "-W", "2", address];
                    kubectl(lab, &ping).map_err(|e| format!("{e}\n{}", paths(lab)))
                });
            }
        }
    }
}

/// What a host's kernel and the overlay know of each other, to tell a failure by.
fn paths(lab: &Lab) -> String {
    const LOOK: &str = "hostname; ip -br link; ip -br addr; ip route; ip -6 route; ip neigh; conntrack -L -p icmp 2>&1; \
        exec 3<>/dev/tcp/127.0.0.1/7480; printf 'GET /metrics HTTP/1.0\\r\\n\\r\\n' >&3; grep -aE '^skein_(overlay|peer)' <&3";
    let look = |host: &String| {
        let out = lab.exec(host, &["bash", "-c", LOOK]);
        format!("--- {host}\n{}", String::from_utf8_lossy(&out.stdout))
    };
    lab.hosts().iter().map(look).collect()
}

fn k3s_pids(lab: &Lab, host: &str) -> String {
    lab.run(host, &["sh", "-c", "pgrep -o -f '[k]3s server'"])
}

fn a_daemon_dies_alone(lab: &Lab) {
    let host = lab.holder("n4");
    let before = k3s_pids(lab, &host);
    lab.run(&host, &["sh", "-c", "kill -9 $(pgrep -x skein)"]);
    wait_for("the API answers without the holder's daemon", 30, || {
        kubectl(lab, &["get", "--raw", "/readyz"])
    });
    lab.must(&["start", &host]);
    lab.settled("n4", 90);
    assert_eq!(k3s_pids(lab, &host), before, "K3s was not restarted");
}

/// K3s refuses a node whose password file is gone; Skein has the cluster take the new one.
fn a_lost_node_password_is_renewed(lab: &Lab) {
    const FILE: &str = "/etc/rancher/node/password";
    let before = lab.run("n4", &["cat", FILE]);
    lab.run("n4", &["sh", "-c", &format!("rm {FILE}; kill -9 $(pgrep -o -f '[k]3s agent')")]);
    wait_for("the worker is under another password", 60, || {
        let now = lab.exec("n4", &["cat", FILE]);
        let renewed = now.status.success() && now.stdout != before.as_bytes();
        if renewed { Ok(()) } else { Err("it has none yet".to_owned()) }
    });
    wait_for("its daemon had the cluster forget the old one", 20, || {
        let log = lab.log("n4");
        if log.contains("had lost its node password") { Ok(()) } else { Err(log) }
    });
    lab.settled("n4", 90);
    every_node_is_ready(lab);
}

fn a_drain_is_not_noticed(lab: &Lab) {
    let old = lab.holder("n4");
    kubectl(lab, &["get", "nodes"]).unwrap();
    let probe = lab.probe("n4", true, 20);
    lab.must(&["drain", &old]);
    lab.moved_from("n4", &old, 5);
    wait_for("kubectl works after the drain", 20, || kubectl(lab, &["get", "nodes"]));
    let gap = probe.end();
    println!("    drain: {gap:?}");
    assert!(gap.longest < Duration::from_secs(1), "{gap:?}");
    let node = json(lab, &["get", "node", &old]).unwrap();
    assert_eq!(node["spec"]["unschedulable"], true, "it is cordoned");
    lab.run("n4", &["skein", "undrain", &old]);
    lab.settled("n4", 60);
    wait_for("it takes pods again", 30, || {
        let node = json(lab, &["get", "node", &old])?;
        if node["spec"]["unschedulable"] == true { Err("still cordoned".into()) } else { Ok(()) }
    });
}

/// The worker's connections to a server that has just vanished without a word are whole again within 15 s: a pod and a
/// service that are made now come up on it. The service names its endpoint itself: who does that else is a controller, which
/// may have to wait for a lease of 15 s that the lost server held.
fn what_is_made_now_reaches_the_worker(lab: &Lab, fault: &str) {
    let began = now();
    let name = format!("after-{fault}");
    let made =
        pod("n4").replace("name: p-n4", &format!("name: {name}")).replace("app: talk", "app: late");
    apply(lab, &name, &made);
    let taken = began.elapsed();
    let address = wait_for("the new pod is up", 60, || {
        let pod = json(lab, &["get", "pod", &name])?;
        let ready = pod["status"]["containerStatuses"][0]["ready"] == true;
        let address = pod["status"]["podIP"].as_str().unwrap_or_default().to_owned();
        if ready { Ok(address) } else { Err(pod["status"].to_string()) }
    });
    let up = began.elapsed();
    let service = format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\nspec:\n  ports: [{{port: 80, targetPort: 8080}}]\n---\n\
         apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {{name: {name}, labels: {{kubernetes.io/service-name: {name}}}}}\n\
         addressType: IPv4\nports: [{{name: '', port: 8080, protocol: TCP}}]\nendpoints: [{{addresses: ['{address}']}}]\n"
    );
    apply(lab, &name, &service);
    let service = json(lab, &["get", "service", &name]).unwrap();
    let call = format!(
        "timeout 1 bash -c '</dev/tcp/{}/80'",
        service["spec"]["clusterIP"].as_str().unwrap()
    );
    wait_for("the worker reaches it through the new service", 60, || {
        let out = lab.exec("n4", &["sh", "-c", &call]);
        if out.status.success() { Ok(()) } else { Err(call.clone()) }
    });
    let whole = began.elapsed();
    println!("    {fault}: taken after {taken:.1?}, up after {up:.1?}, reached after {whole:.1?}");
    assert!(whole < Duration::from_secs(15), "the worker was cut off for {whole:?}");
}

fn apply(lab: &Lab, name: &str, manifest: &str) {
    let file = format!("/run/{name}.yaml");
    lab.run("n4", &["sh", "-c", &format!("cat >{file} <<'E'\n{manifest}E")]);
    wait_for("it is taken", 15, || kubectl(lab, &["apply", "-f", &file]));
}

fn a_server_that_is_cut_off_does_not_keep_the_worker(lab: &Lab) {
    let old = lab.holder("n4");
    lab.must(&["cut", &old]);
    what_is_made_now_reaches_the_worker(lab, "cut");
    lab.must(&["heal"]);
    lab.settled("n4", 180);
    every_node_is_ready(lab);
}

/// Writes through the VIP, each half-second at most, while the holder loses power.
fn nothing_acknowledged_is_lost(lab: &Lab) {
    let script = "i=0; end=$(($(date +%s) + 60)); while [ $(date +%s) -lt $end ]; do i=$((i + 1)); \
        timeout 3 kubectl create configmap w-$i --from-literal=n=$i >/dev/null 2>&1 && echo w-$i; done";
    let mut writer = lab.command(&["exec", "n4", "--", "sh", "-c", script]);
    let writer = writer.stdout(Stdio::piped()).spawn().unwrap();
    std::thread::sleep(Duration::from_secs(6));
    let old = lab.holder("n4");
    lab.must(&["kill", &old]);
    what_is_made_now_reaches_the_worker(lab, "kill");
    lab.moved_from("n4", &old, 15);
    wait_for("kubectl works after the loss", 60, || kubectl(lab, &["get", "nodes"]));
    let written = String::from_utf8(writer.wait_with_output().unwrap().stdout).unwrap();
    let written: BTreeSet<&str> = written.lines().collect();
    println!("    {} writes were acknowledged", written.len());
    assert!(written.len() > 10, "{written:?}");
    let kept = wait_for("the writes are read", 30, || json(lab, &["get", "configmaps"]));
    let kept: BTreeSet<&str> = kept["items"]
        .as_array()
        .unwrap()
        .iter()
        .filter_map(|c| c["metadata"]["name"].as_str())
        .collect();
    let lost: Vec<_> = written.difference(&kept).collect();
    assert!(lost.is_empty(), "acknowledged and lost: {lost:?}");
    lab.must(&["start", &old]);
    lab.settled("n4", 180);
    every_node_is_ready(lab);
}
