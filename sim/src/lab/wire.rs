//! The underlay: a bridge in a network namespace of its own, and a cable to each host. Shell.

use super::store::{HostRecord, Lab};
use super::{Result, sh, try_sh};

fn port(h: &HostRecord) -> String {
    format!("p{}", h.index)
}

/// Makes the bridge, if it is not there.
pub(super) fn make(lab: &Lab) -> Result<()> {
    let ns = lab.wire();
    // The namespace alone tells nothing: an interrupted start may have made it and no more.
    if sh("ip", &["-n", &ns, "link", "show", "br0"]).is_ok() {
        return Ok(());
    }
    try_sh("ip", &["netns", "del", &ns]);
    sh("ip", &["netns", "add", &ns])?;
    sh("ip", &["-n", &ns, "link", "add", "br0", "type", "bridge"])?;
    sh("ip", &["-n", &ns, "link", "set", "br0", "up"])?;
    sh("ip", &["-n", &ns, "link", "set", "lo", "up"]).map(drop)
}

/// Gives a host a fresh network namespace with a cable in the bridge.
pub(super) fn plug(lab: &Lab, h: &HostRecord) -> Result<()> {
    unplug(lab, h);
    let (ns, wire, port) = (lab.netns(h), lab.wire(), port(h));
    sh("ip", &["netns", "add", &ns])?;
    sh(
        "ip",
        &["-n", &ns, "link", "add", "eth0", "type", "veth", "peer", "name", &port, "netns", &wire],
    )?;
    sh("ip", &["-n", &wire, "link", "set", &port, "master", "br0", "up"])?;
    sh("ip", &["-n", &ns, "link", "set", "lo", "up"])?;
    sh("ip", &["-n", &ns, "link", "set", "eth0", "up"])?;
    let v4 = format!("{}/24", lab.address(h));
    let v6 = format!("{}/64", lab.address6(h));
    sh("ip", &["-n", &ns, "addr", "add", &v4, "dev", "eth0"])?;
    sh("ip", &["-n", &ns, "addr", "add", &v6, "dev", "eth0", "nodad"])?;
    // It leads nowhere, but a host has one.
    sh("ip", &["-n", &ns, "route", "add", "default", "dev", "eth0"])?;
    sh("ip", &["-n", &ns, "-6", "route", "add", "default", "dev", "eth0"]).map(drop)
}

/// Takes a host's cable and network namespace away.
pub(super) fn unplug(lab: &Lab, h: &HostRecord) {
    try_sh("ip", &["-n", &lab.wire(), "link", "del", &port(h)]);
    try_sh("ip", &["netns", "del", &lab.netns(h)]);
}

/// Pulls the cable out, or puts it in again.
pub(super) fn set(lab: &Lab, h: &HostRecord, up: bool) {
    let state = if up { "up" } else { "down" };
    try_sh("ip", &["-n", &lab.wire(), "link", "set", &port(h), state]);
}

/// Removes the bridge.
pub(super) fn remove(lab: &Lab) {
    try_sh("ip", &["netns", "del", &lab.wire()]);
}
