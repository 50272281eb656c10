//! A stock WireGuard device on the overlay: wireguard-go, configured with what `skein peer add` prints.

use std::process::{Command, Output, Stdio};

use crate::common::{Lab, have, wait_for};

/// A machine on the lab's wire that runs no daemon. It goes with the lab.
pub(crate) struct Device {
    netns: String,
    interface: &'static str,
}

fn run(program: &str, args: &[&str]) -> Output {
    let out = Command::new(program).args(args).stdin(Stdio::null()).output();
    let out = out.unwrap_or_else(|e| panic!("{program}: {e}"));
    let words = String::from_utf8_lossy(&out.stderr).into_owned();
    assert!(out.status.success(), "{program} {}: {words}", args.join(" "));
    out
}

impl Device {
    pub(crate) fn plug(lab: &str, address: &str) -> Self {
        let netns = format!("skein-{lab}-dev");
        let wire = format!("skein-{lab}-wire");
        run("ip", &["netns", "add", &netns]);
        run(
            "ip",
            &[
                "-n", &netns, "link", "add", "eth0", "type", "veth", "peer", "name", "pdev",
                "netns", &wire,
            ],
        );
        run("ip", &["-n", &wire, "link", "set", "pdev", "master", "br0", "up"]);
        run("ip", &["-n", &netns, "link", "set", "lo", "up"]);
        run("ip", &["-n", &netns, "link", "set", "eth0", "up"]);
        run("ip", &["-n", &netns, "addr", "add", address, "dev", "eth0"]);
        Self { netns, interface: "wgdev" }
    }

    pub(crate) fn inside(&self, args: &[&str]) -> Output {
        let full = [&["netns", "exec", &self.netns], args].concat();
        Command::new("ip").args(full).stdin(Stdio::null()).output().expect("ip runs")
    }

    fn must(&self, args: &[&str]) {
        let out = self.inside(args);
        assert!(
            out.status.success(),
            "{}: {}",
            args.join(" "),
            String::from_utf8_lossy(&out.stderr)
        );
    }

    /// Starts wireguard-go and configures it with the printed text, as wg-quick would.
    fn configure(&self, config: &str, private_key: &std::path::Path) {
        self.must(&["wireguard-go", self.interface]);
        let interface_lines = ["Address", "MTU"];
        let setconf: String = config
            .lines()
            .filter(|l| !interface_lines.iter().any(|w| l.starts_with(w)))
            .map(|l| format!("{l}\n"))
            .collect();
        let file = private_key.with_extension("conf");
        std::fs::write(&file, setconf).expect("a file in a temporary folder");
        let (file, key) = (file.display().to_string(), private_key.display().to_string());
        self.must(&["wg", "setconf", self.interface, &file]);
        self.must(&["wg", "set", self.interface, "private-key", &key]);
        let addresses =
            config.lines().find_map(|l| l.strip_prefix("Address = ")).expect("addresses");
        for address in addresses.split(", ") {
            self.must(&["ip", "addr", "add", address, "dev", self.interface]);
        }
        self.must(&["ip", "link", "set", self.interface, "mtu", "1420", "up"]);
        let allowed = config.lines().filter_map(|l| l.strip_prefix("AllowedIPs = "));
        for net in allowed.flat_map(|l| l.split(", ")) {
            self.must(&["ip", "route", "add", net, "dev", self.interface]);
        }
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        // The device ends wireguard-go.
        self.inside(&["ip", "link", "del", self.interface]);
        let _ = Command::new("ip").args(["netns", "del", &self.netns]).status();
    }
}

#[test]
#[ignore = "makes hosts: ./check rehearsal"]
fn a_stock_wireguard_device_reaches_the_nodes_and_they_reach_it() {
    if !have(&["wireguard-go", "wg", "ping"]) {
        return;
    }
    let Some(lab) = Lab::up("device", 1, 1, &["--k3s", "rehearsal", "--no-cluster"]) else {
        return;
    };
    let underlay = lab.host("n1")["underlay"].as_str().expect("an address").to_owned();
    let net = underlay.rsplit_once('.').expect("IPv4").0.to_owned();
    let device = Device::plug(&lab.name, &format!("{net}.250/24"));
    let folder = tempfile::tempdir().expect("a temporary folder");
    let key = folder.path().join("key");
    let private = run("wg", &["genkey"]).stdout;
    std::fs::write(&key, &private).expect("a file in a temporary folder");
    let public = run("sh", &["-c", &format!("wg pubkey <{}", key.display())]).stdout;
    let public = String::from_utf8_lossy(&public).trim().to_owned();
    // The nodes' IPv6 underlay is not on this machine: what is printed must lead to IPv4.
    let config = lab.run(
        "n1",
        &["skein", "peer", "add", "laptop", "--network", "default", "--public-key", &public],
    );
    device.configure(&config, &key);

    for host in ["n1", "n2"] {
        for v6 in [true, false] {
            let to = lab.overlay(host, v6);
            wait_for(&format!("the device to reach {to}"), 15, || {
                let out = device.inside(&["ping", "-c", "1", "-W", "1", &to]);
                out.status.success().then_some(()).ok_or_else(|| "no answer".into())
            });
        }
    }
    let own = config.lines().find_map(|l| l.strip_prefix("Address = ")).expect("addresses");
    for address in own.split(", ").filter_map(|a| a.split('/').next()) {
        lab.run("n2", &["ping", "-c", "1", "-W", "2", address]);
    }
    // It turns up at another address and port: nodes follow it as soon as they hear it.
    device.must(&["ip", "addr", "del", &format!("{net}.250/24"), "dev", "eth0"]);
    device.must(&["ip", "addr", "add", &format!("{net}.251/24"), "dev", "eth0"]);
    device.must(&["wg", "set", device.interface, "listen-port", "40404"]);
    let to = lab.overlay("n2", true);
    wait_for("the device to reach n2 from elsewhere", 15, || {
        let out = device.inside(&["ping", "-c", "1", "-W", "1", &to]);
        out.status.success().then_some(()).ok_or_else(|| "no answer".into())
    });
    for address in own.split(", ").filter_map(|a| a.split('/').next()) {
        lab.run("n2", &["ping", "-c", "1", "-W", "2", address]);
    }
    drop(device);
    lab.down();
}
