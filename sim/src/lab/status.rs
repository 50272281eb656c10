//! How a lab stands. Shell.

use serde_json::{Value, json};

use super::store::{self, HostRecord, Lab};
use super::{host, print};

fn one(lab: &Lab, h: &HostRecord) -> Value {
    let daemon = host::daemon(lab, h);
    let state = match (host::running(lab, h), daemon) {
        (Some(_), Some((_, true))) => "paused",
        (Some(_), _) => "up",
        (None, _) => "down",
    };
    json!({
        "name": h.name,
        "state": state,
        "pid": daemon.map(|(pid, _)| pid.as_raw()),
        "underlay": lab.address(h),
        "overlay": overlay(lab, h),
        "dir": lab.host_dir(h),
    })
}

/// Reads the host's own overlay addresses off its device; VIPs are there as deprecated ones, never used as a source.
fn overlay(lab: &Lab, h: &HostRecord) -> Vec<String> {
    let listed = super::sh("ip", &["-n", &lab.netns(h), "-j", "addr"]).unwrap_or_default();
    let links: Value = serde_json::from_str(&listed).unwrap_or_default();
    let links = links.as_array().into_iter().flatten();
    let ours = links.filter(|l| l["ifname"].as_str().is_some_and(|n| n.starts_with("wg-sdwan-")));
    let addresses = ours.flat_map(|l| l["addr_info"].as_array().into_iter().flatten());
    let own = addresses.filter(|a| a["deprecated"] != true && a["scope"] == "global");
    own.filter_map(|a| a["local"].as_str().map(str::to_owned)).collect()
}

/// Returns the lab's status for programs.
pub(super) fn value(lab: &Lab) -> Value {
    let hosts: Vec<Value> = lab.hosts.iter().map(|h| one(lab, h)).collect();
    json!({"schema": 1, "name": lab.name, "k3s": lab.k3s, "hosts": hosts})
}

/// Prints the status.
pub(super) fn show(lab: &Lab, as_json: bool) {
    let status = value(lab);
    if as_json {
        print(serde_json::to_string_pretty(&status).unwrap_or_default());
        return;
    }
    let dir = store::dir(&lab.name);
    print(format!("lab {}   k3s: {}   hosts under {}", lab.name, lab.k3s, dir.display()));
    for h in status["hosts"].as_array().into_iter().flatten() {
        let overlay: Vec<&str> =
            h["overlay"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        let line = format!(
            "  {:<5} {:<7} pid {:<8} {:<14} {}",
            h["name"].as_str().unwrap_or_default(),
            h["state"].as_str().unwrap_or_default(),
            h["pid"].as_i64().map_or("-".into(), |p| p.to_string()),
            h["underlay"].as_str().unwrap_or_default(),
            overlay.join(" "),
        );
        print(line.trim_end());
    }
}
